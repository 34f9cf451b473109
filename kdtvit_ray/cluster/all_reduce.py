"""One worker group, started as a sweep starts its groups, adds up a tensor between its workers."""

from collections.abc import Mapping
from typing import Any

from kdtvit_ray.cluster.nodes import said

LENGTH = 100_000
"""Numbers in the tensor: as many as make the collective call cut it into pieces, as gradients are."""


def reduce_once(config: Mapping[str, Any]) -> str:
    """Why a group of this config (see `group_trainer`) cannot add up a tensor, empty where it can. Ray Train keeps its
    files in the folder `storage` of the config. Runs inside a Ray task without a CPU."""
    from ray.train import ControllerError, FailureConfig, RunConfig, WorkerGroupError

    from kdtvit_ray.cluster.group_run import group_trainer

    failures = FailureConfig(max_failures=0, controller_failure_limit=0)
    run = RunConfig(name="all-reduce", storage_path=config["storage"], failure_config=failures)
    try:
        group_trainer(_add_up, config, run).fit()
    except WorkerGroupError as error:
        rank, failure = min(error.worker_failures.items())
        return f"worker {rank} of {config['workers']}: {said(failure)}"
    except ControllerError as error:
        return said(error.controller_failure)
    return ""


def _add_up(config: dict[str, Any]) -> None:
    """The loop of one worker: rank r gives r + 1 everywhere, so that n workers add up to n (n + 1) / 2."""
    import ray.train
    import torch

    from kdtvit_ray.learning.numeric import reserved_device
    from kdtvit_ray.learning.team import Team

    context = ray.train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    device = reserved_device(config["gpus_per_worker"])
    values = torch.full((LENGTH,), team.rank + 1.0, device=device)
    team.add_up(values)
    right = team.size * (team.size + 1) / 2
    if not bool((values == right).all()):
        raise RuntimeError(f"the sum over {team.size} workers is {values[0].item():g}, not {right:g}")
