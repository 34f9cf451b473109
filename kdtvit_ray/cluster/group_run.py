"""One worker group: a Ray Train run that stays up while its workers pull stages from the coordinator.

`run_group` is a Ray task without a CPU of its own that holds one `TorchTrainer.fit()`; Ray Train places the workers,
and sets up the process group of several (NCCL on GPUs, gloo on CPUs). When one dies the run ends, and the driver starts
the group anew, with what is known of the nodes by then. `serve` is the loop inside each worker: rank 0 asks for a stage
and tells the other ranks the answer, all ranks train it, rank 0 saves it.
"""

import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from textwrap import shorten
from typing import Any

from kdtvit_ray.cluster.nodes import elsewhere, said
from kdtvit_ray.cluster.workers import StageWorker
from kdtvit_ray.errors import first_line
from kdtvit_ray.paths import StudyFolder

LONGEST_CAUSE = 200
"""Characters of the cause of a death; Ray lists all that it can think of."""
log = logging.getLogger(__name__)


def run_group(name: str, config: Mapping[str, Any]) -> bool:
    """Run one worker group until it is told to stop, or a worker dies, which the coordinator is told. Returns whether
    one died before the group had a stage. Runs inside a Ray task without a CPU."""
    import ray
    from ray.train import FailureConfig, RunConfig, WorkerGroupError

    folder, coordinator = StudyFolder(config["location"]), config["coordinator"]
    run = RunConfig(
        name=f"group-{name}-{uuid.uuid4().hex[:8]}",
        storage_path=folder.path(folder.tune),
        storage_filesystem=folder.fs,
        failure_config=FailureConfig(max_failures=0, controller_failure_limit=10),
        callbacks=[_places(name, coordinator)],
    )
    try:
        group_trainer(serve, {**config, "group": name}, run).fit()
    except WorkerGroupError as error:
        died = {rank: cause_of(each) for rank, each in error.worker_failures.items()}
        log.error("Of group %s workers died, by rank: %s", name, died)
        return bool(ray.get(coordinator.died.remote(name, died, killed(error.worker_failures))))
    return False


def _places(name: str, coordinator: Any) -> Any:
    """What tells the coordinator on which nodes the group's workers are, before they run anything that may kill them.
    Ray Train's public callback does not know the nodes."""
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class Places(WorkerGroupCallback):
        def before_init_train_context(self, workers: Sequence[Any]) -> dict[str, list[Any]]:
            coordinator.placed.remote(name, [each.metadata.node_id for each in workers])
            return {}

    return Places()


def cause_of(error: Exception) -> str:
    """Why a worker died, in one line: what its code raised, else what Ray has seen. Ray Train wraps both."""
    from ray.exceptions import RayError

    cause = getattr(error, "_base_exc", getattr(error, "health_check_failure", error))
    told = said(cause) if isinstance(cause, RayError) else f"{type(cause).__name__}: {first_line(cause)}"
    return shorten(told, LONGEST_CAUSE, placeholder=" ...")


def killed(failures: Mapping[int, Exception]) -> tuple[int, ...]:
    """The ranks of which the process has ended, as Ray has seen; those of the others have raised an error."""
    from ray.exceptions import RayError, RayTaskError

    seen = {rank: getattr(each, "health_check_failure", None) for rank, each in failures.items()}
    return tuple(
        rank for rank, each in seen.items() if isinstance(each, RayError) and not isinstance(each, RayTaskError)
    )


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
