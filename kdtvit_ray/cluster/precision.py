"""The dtype of a new study whose space leaves it to the devices: they are asked once, before anything is written.

On a cluster one GPU of each node answers for the others there. On one machine a process of its own is asked for all of
them, without Ray, whose start takes longer; this process then holds no memory of theirs.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kdtvit_ray.cluster.connection import connect
from kdtvit_ray.cluster.environment import set_environment
from kdtvit_ray.cluster.nodes import PATIENCE_SECONDS, PROBE_SECONDS, task_on
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.console import quiet
from kdtvit_ray.errors import Away
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import Numeric
from kdtvit_ray.study.binding import Bound, dtype_of

SHARE = 0.01
"""Of a GPU, which is enough to be asked and leaves room for whatever else runs on it."""


def in_its_dtype(bound: Bound, folder: StudyFolder, options: Options, log: Path, console: Console) -> Bound:
    """The space in the dtype that the study was started with, or else that its devices have. Only where those of a
    cluster have to be asked is Ray connected, and left again. Raises what `connect` does, and `Away` where all GPUs
    that could answer take too long: a slow machine decides no dtype."""
    if not bound.space.dtype_by_device:
        return bound
    dtype = dtype_of(folder) or _asked(options, log, console)
    return replace(bound, space=bound.space.with_dtype(dtype))


def _asked(options: Options, log: Path, console: Console) -> str:
    """bfloat16 where all GPUs that train have it; float32 where the CPU trains, and where no GPU has answered."""
    import torch

    if not options.gpus_per_worker or not (options.address or torch.cuda.device_count()):
        return Numeric.dtype
    with quiet(log) as terminal, terminal.status("asking the GPUs whether they have bfloat16"):
        answers, cpus_train = _of_cluster(options, log) if options.address else (of_this_machine(), False)
    if not answers and not cpus_train:
        console.print(
            'No GPU has answered yet, so dtype "auto" is float32; where the GPUs have it, [numeric] dtype = "bfloat16" '
            f"asks for it by name (the log is {log})",
            soft_wrap=True,
        )
    return common(answers)


def of_this_machine() -> list[str]:
    """The dtype for all GPUs of this machine, asked in another process; nothing where it finds none that works. What it
    says of the reason goes where this process's stderr goes. Raises `Away` where it does not answer."""
    asked = f"from {__name__} import of_this_process; print(of_this_process())"
    try:
        told = subprocess.run(
            [sys.executable, "-c", asked], stdout=subprocess.PIPE, text=True, timeout=PROBE_SECONDS, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise _silent("GPUs of this machine") from error
    except (OSError, subprocess.SubprocessError):
        return []
    return told.stdout.split()[-1:]


def _of_cluster(options: Options, log: Path) -> tuple[list[str], bool]:
    """What the GPUs of a cluster's nodes have, and whether its CPUs train."""
    import ray

    set_environment()
    try:
        connect(options.address, log)
        nodes = {each["NodeID"]: each["Resources"] for each in ray.nodes() if each["Alive"]}
        answers = _answers(nodes)
    finally:
        ray.shutdown()
    there = {name for resources in nodes.values() for name, amount in resources.items() if amount}
    return answers, options.gpus_per_worker < 0 and "CPU" in there and "GPU" not in there


def common(answers: Sequence[str]) -> str:
    """The dtype of a study from what the GPUs of each node have."""
    return "bfloat16" if set(answers) == {"bfloat16"} else "float32"


def _answers(nodes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the GPUs of each node have. Nodes that answer with an error, or long after others, are left out: a sweep
    sets them aside, and says why. Raises `Away` where none has answered and some might still."""
    import ray

    gpus = [node for node, resources in nodes.items() if resources.get("GPU")]
    tasks: list[Any] = [task_on(node, of_this_process, SHARE).remote() for node in gpus]
    found: list[str] = []
    started, late = time.monotonic(), False
    for task in tasks:
        end = started + (PATIENCE_SECONDS if found else PROBE_SECONDS)
        try:
            found.append(ray.get(task, timeout=max(end - time.monotonic(), 0.0)))
        except ray.exceptions.GetTimeoutError:
            late = True
            ray.cancel(task, force=True)
        except ray.exceptions.RayError:
            continue
    if late and not found:
        raise _silent("GPUs of the cluster")
    return found


def _silent(gpus: str) -> Away:
    return Away(
        f'dtype "auto" asks the {gpus} whether they have bfloat16, and they have not answered within '
        f'{PROBE_SECONDS:.0f} s; allowed: the same command when they are free, or [numeric] dtype = "bfloat16" or '
        '"float32", which asks nobody'
    )


def of_this_process() -> str:
    """The dtype for all GPUs that this process sees. Raises `NodeFault` where torch can use none."""
    import torch

    from kdtvit_ray.learning.numeric import auto_dtype, reserved_device

    reserved_device(SHARE)
    return auto_dtype([torch.device("cuda", index) for index in range(torch.cuda.device_count())])
