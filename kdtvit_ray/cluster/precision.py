"""The dtype of a new study whose space leaves it to the devices: they are asked once, before anything is written.

On a cluster one GPU of each node answers for the others there. Of a machine on which Ray runs for the study alone all
are asked.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kdtvit_ray.cluster.connection import connect
from kdtvit_ray.cluster.environment import set_environment
from kdtvit_ray.cluster.nodes import PATIENCE_SECONDS, task_on
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.console import quiet
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import Numeric
from kdtvit_ray.study.binding import Bound, dtype_of

SHARE = 0.01
"""Of a GPU, which is enough to be asked and leaves room for whatever else runs on it."""


def in_its_dtype(bound: Bound, folder: StudyFolder, options: Options, log: Path, console: Console) -> Bound:
    """The space in the dtype that the study was started with, or else that its devices have. Only where they have to be
    asked is Ray connected, and left again. Raises what `connect` does."""
    if not bound.space.dtype_by_device:
        return bound
    dtype = dtype_of(folder) or _asked(options, log, console)
    return replace(bound, space=bound.space.with_dtype(dtype))


def _asked(options: Options, log: Path, console: Console) -> str:
    """bfloat16 where all GPUs that train have it; float32 where the CPU trains, and where no GPU has answered."""
    import torch

    if not options.gpus_per_worker or not (options.address or torch.cuda.device_count()):
        return Numeric.dtype
    set_environment()
    with quiet(log) as terminal, terminal.status("asking the GPUs whether they have bfloat16"):
        import ray

        try:
            connect(options.address, log)
            nodes = {each["NodeID"]: each["Resources"] for each in ray.nodes() if each["Alive"]}
            answers = _answers(nodes, options.address)
        finally:
            ray.shutdown()
    there = {name for resources in nodes.values() for name, amount in resources.items() if amount}
    cpus_train = options.gpus_per_worker < 0 and "CPU" in there and "GPU" not in there
    if not answers and not cpus_train:
        console.print(
            'No GPU has answered yet, so dtype "auto" is float32; where the GPUs have it, [numeric] dtype = "bfloat16" '
            f"asks for it by name (the log is {log})",
            markup=False,
            soft_wrap=True,
        )
    return common(answers)


def common(answers: Mapping[str, str]) -> str:
    """The dtype of a study from what the GPUs of each node have."""
    return "bfloat16" if set(answers.values()) == {"bfloat16"} else "float32"


def _answers(nodes: Mapping[str, Mapping[str, float]], address: str) -> dict[str, str]:
    """What the GPUs of each node have, by Ray's id. Nodes that do not answer, or with an error, are left out: a sweep
    sets them aside, and says why."""
    import ray

    gpus = {node: resources["GPU"] for node, resources in nodes.items() if resources.get("GPU")}
    tasks: dict[str, Any] = {
        node: task_on(node, of_this_process, SHARE if address else count).remote() for node, count in gpus.items()
    }
    end, found = time.monotonic() + PATIENCE_SECONDS, {}
    for node, task in tasks.items():
        try:
            found[node] = ray.get(task, timeout=max(end - time.monotonic(), 0.0))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(task, force=True)
        except ray.exceptions.RayError:
            continue
    return found


def of_this_process() -> str:
    """The dtype for all GPUs that this process sees. Raises `NodeFault` where torch can use none."""
    import torch

    from kdtvit_ray.learning.numeric import auto_dtype, pick_device

    pick_device(None, gpu_reserved=True)
    return auto_dtype([torch.device("cuda", index) for index in range(torch.cuda.device_count())])
