"""One worker group: a Ray Train run that stays up while its workers pull stages from the coordinator.

`run_group` is a Ray task without a CPU of its own that holds one `TorchTrainer.fit()`; Ray Train places the workers,
sets up the process group (NCCL on GPUs, gloo on CPUs) and restarts them when one dies. `serve` is the loop inside each
worker: rank 0 asks for a stage and tells the other ranks the answer, all ranks train it, rank 0 saves it.
"""

import uuid
from collections.abc import Callable, Mapping
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
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = config["gpus_per_worker"]
    resources = {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
    return TorchTrainer(
        loop,
        train_loop_config=dict(config),
        # one worker has nothing to reduce, and NCCL would take memory of the GPU for each group on it
        torch_config=TorchConfig(backend="gloo" if config["workers"] == 1 else None),
        scaling_config=ScalingConfig(
            num_workers=config["workers"],
            use_gpu=bool(gpus),
            resources_per_worker=resources,
            label_selector=elsewhere(config["unfit"]) or None,
        ),
        run_config=run,
    )


def serve(config: dict[str, Any]) -> None:
    """The loop of one worker (`train_loop_per_worker`): run stages until the coordinator says stop."""
    import ray.train

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
