"""The coordinator as an actor of Ray."""

from typing import Any

from kdtvit_ray.cluster.coordinator import Coordinator
from kdtvit_ray.cluster.nodes import on_the_drivers_node


def start_coordinator(*arguments: Any, **settings: Any) -> Any:
    """A `Coordinator` as an actor that Ray restarts whenever it dies; it finds out by itself that it was restarted."""
    import ray

    class CoordinatorActor(Coordinator):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            restarted = ray.get_runtime_context().was_current_actor_reconstructed
            super().__init__(*arguments, restarted=restarted, **settings)

    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=10_000)(CoordinatorActor)
    return actor.options(scheduling_strategy=on_the_drivers_node()).remote(*arguments, **settings)
