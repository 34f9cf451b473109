"""One worker group: a Ray Train run that stays up while its workers pull stages from the coordinator.

`run_group` is a Ray task without a CPU of its own that holds one `TorchTrainer.fit()`; Ray Train places the workers,
sets up the process group of several (NCCL on GPUs, gloo on CPUs) and restarts them when one dies. `serve` is the loop
inside each worker: rank 0 asks for a stage and tells the other ranks the answer, all ranks train it, rank 0 saves it.
"""

import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from kdtvit_ray.cluster.nodes import elsewhere
from kdtvit_ray.cluster.workers import StageWorker
from kdtvit_ray.paths import StudyFolder


def run_group(name: str, config: Mapping[str, Any]) -> str:
    """Run one worker group until it is told to stop. Returns its name. Runs inside a Ray task without a CPU."""
    from ray.train import FailureConfig, RunConfig

    folder = StudyFolder(config["location"])
    run = RunConfig(
        name=f"group-{name}-{uuid.uuid4().hex[:8]}",
        storage_path=folder.path(folder.tune),
        storage_filesystem=folder.fs,
        # the coordinator limits the deaths in one stage; the group itself is restarted each time
        failure_config=FailureConfig(max_failures=1000, controller_failure_limit=10),
    )
    group_trainer(serve, {**config, "group": name}, run).fit()
    return name


def group_trainer(loop: Callable[[dict[str, Any]], None], config: Mapping[str, Any], run: Any) -> Any:
    """A `TorchTrainer` for the loop of one worker group. The config names its `workers`, the `gpus_per_worker`, and the
    `unfit` nodes, on which none of its workers may run; `run` is Ray Train's `RunConfig`."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    gpus = config["gpus_per_worker"]
    resources = {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
    return TorchTrainer(
        loop,
        train_loop_config=dict(config),
        torch_config=_torch_config(config["workers"], gpus),
        scaling_config=ScalingConfig(
            num_workers=config["workers"],
            use_gpu=bool(gpus),
            resources_per_worker=resources,
            label_selector=elsewhere(config["unfit"]) or None,
        ),
        run_config=run,
    )


def _torch_config(workers: int, gpus: float) -> Any:
    """How Ray Train prepares torch in each worker: it makes a process group, unless there is one worker, which has
    nothing to reduce: gloo asks for the names of addresses, which takes 20 s each where nobody knows them, and NCCL
    takes memory of the GPU. It sets the current GPU, unless the CPU trains: that alone takes memory of a GPU, too."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class Alone(Backend):
        share_cuda_visible_devices = True  # as torch's backend has it

    class Prepared(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Alone if workers == 1 else super().backend_cls

        @property
        def train_func_context(self) -> Any:
            return super().train_func_context if gpus else nullcontext

    return Prepared()


def serve(config: dict[str, Any]) -> None:
    """The loop of one worker (`train_loop_per_worker`): run stages until the coordinator says stop."""
    import ray.train

    _limit_compiling(config["gpus_per_worker"])
    from kdtvit_ray.learning.team import Team

    context = ray.train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    worker = config.get("worker", StageWorker)(config, team)
    try:
        if worker.greet():
            while worker.work():
                pass
    finally:
        worker.close()


def _limit_compiling(gpus: float) -> None:
    """Let this worker compile models in no more processes than its share of the node's CPUs. Left to itself torch
    starts up to 32 in each worker, and eight workers of a node begin to compile at the same time. The CPU alone (`gpus`
    of 0) compiles nothing. Works before torch's compiler is imported."""
    if not gpus:
        return
    import ray

    here = ray.get_runtime_context().get_node_id()
    resources = next(each["Resources"] for each in ray.nodes() if each["NodeID"] == here)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(compile_processes(resources, gpus)))


def compile_processes(resources: Mapping[str, float], gpus: float) -> int:
    """In how many processes a worker with so many `gpus` may compile on a node with these resources, on which others
    work like it: 1 to 32."""
    return min(max(int(resources.get("CPU", 0) * gpus / resources.get("GPU", gpus) + 1e-9), 1), 32)
