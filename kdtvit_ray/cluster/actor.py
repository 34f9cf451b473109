"""The coordinator as an actor of Ray."""

import platform
from typing import Any

from rich.console import Console

from kdtvit_ray.cluster.coordinator import Coordinator
from kdtvit_ray.cluster.nodes import on_the_drivers_node

SILENT_SECONDS = 60.0
"""Seconds that the coordinator's start is waited for without a word."""


def start_coordinator(*arguments: Any, **settings: Any) -> Any:
    """A `Coordinator` as an actor that Ray restarts whenever it dies; it finds out by itself that it was restarted."""
    import ray

    class CoordinatorActor(Coordinator):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            restarted = ray.get_runtime_context().was_current_actor_reconstructed
            super().__init__(*arguments, restarted=restarted, **settings)

    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=10_000)(CoordinatorActor)
    return actor.options(scheduling_strategy=on_the_drivers_node()).remote(*arguments, **settings)


def first_answer(coordinator: Any, terminal: Console, log: Any, longest: float) -> str:
    """What the coordinator says when it has started: why it is not fit to keep the study, or an empty string. Ray may
    be unable to start it, and says so in the `log` alone. Raises Ray's `GetTimeoutError` after `longest` seconds more.
    """
    import ray

    answer = coordinator.ready.remote()
    try:
        return str(ray.get(answer, timeout=SILENT_SECONDS))
    except ray.exceptions.GetTimeoutError:
        terminal.print(
            f"Ray has not started the study's coordinator on {platform.node()} within {SILENT_SECONDS:.0f} s, and is "
            f"waited for; {log} may tell what it lacks",
            soft_wrap=True,
        )
        return str(ray.get(answer, timeout=longest))
