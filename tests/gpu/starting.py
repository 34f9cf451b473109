"""What the start of a search depends on and no figure shows: `python -m tests.gpu.starting` prints it as JSON.

A process of its own, in which nothing is imported yet.
"""

import importlib
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def seconds_of(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    with suppress(OSError):  # of a name that nobody knows
        run()
    return time.perf_counter() - started


def seen() -> dict[str, float]:
    """Seconds to find this host's full name, and the name of its address; seconds of imports; GPUs that Ray and torch
    see."""
    found = {
        "host's name": seconds_of(socket.getfqdn),
        "name of its address": seconds_of(lambda: socket.gethostbyaddr(socket.gethostbyname(socket.gethostname()))),
    }
    for name in ("ray", "torch", "timm"):
        found[f"import {name}"] = seconds_of(lambda name=name: importlib.import_module(name))
    import torch
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    found["Ray's GPUs"] = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    found["torch's GPUs"] = torch.cuda.device_count()
    return found


if __name__ == "__main__":
    print(json.dumps(seen()))
