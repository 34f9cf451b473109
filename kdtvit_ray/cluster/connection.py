"""How a driver joins a Ray cluster, or starts Ray on its own machine."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdtvit_ray.cluster.environment import RAY_ENVIRONMENT
from kdtvit_ray.cluster.head_watch import reach
from kdtvit_ray.errors import Away, UserError, first_line

log = logging.getLogger(__name__)


def connect(address: str, log_file: Path) -> None:
    """Join the cluster at the address, or start Ray on this machine where it is empty. On a busy machine the first
    attempt may fail, so there are two. Raises `Away`, or `UserError` for an address of another form; both name
    `log_file`."""
    import ray

    for attempt in (1, 2):
        try:
            if address not in ("", "auto"):
                reach(address)
            ray.init(**_arguments(address))
            return
        except Exception as error:  # Ray raises bare Exceptions here
            ray.shutdown()
            log.warning("Ray did not start: %s", error)
            if attempt == 2 or address:
                what = f"reach the Ray cluster at '{address}'" if address else "start Ray"
                kind = UserError if isinstance(error, ValueError) else Away  # an address of another form
                raise kind(f"Cannot {what}: {first_line(error)}; the log is {log_file}") from None


def _arguments(address: str) -> dict[str, Any]:
    """Those of `ray.init`, which writes into the runtime environment that it is given, so that a second attempt needs
    one of its own."""
    # a user's own values are kept, on the cluster too
    variables = {name: os.environ.get(name, value) for name, value in RAY_ENVIRONMENT.items()}
    runtime: dict[str, Any] = {"env_vars": variables}
    where = {"address": address or "local", "log_to_driver": True, "runtime_env": runtime}
    if address:
        return where
    runtime["worker_process_setup_hook"] = _without_dashboard()
    return {**where, "include_dashboard": False}


def _without_dashboard() -> Callable[[], None]:
    """What each of Ray's processes runs as it starts. Where there is no dashboard, a helper of each group's trainer
    would write a line into the log every second: it asks the dashboard whether the trainer lives."""

    def hush() -> None:  # inside, so that it is sent whole and imports nothing of this package
        import logging

        name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
        logging.getLogger(name).setLevel(logging.ERROR)

    return hush
