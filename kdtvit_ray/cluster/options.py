"""How a study is run. Nothing here changes its results."""

import math
from dataclasses import dataclass

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import PAUSES

AUTO = -1.0


@dataclass(frozen=True)
class Options:
    """`retry` names failed trials to run again, `retry_failed` says so of all that failed for reasons of the
    infrastructure; `node_wait` is how many seconds a cluster without a node that works is waited for. `groups` = 0
    takes as many as the cluster has room for and as can be busy; `gpus_per_worker` = `AUTO` takes one GPU per worker
    where the cluster has any, else none. Raises `UserError` for shares of GPUs that cannot work."""

    out: str
    workers: int = 1
    groups: int = 0
    gpus_per_worker: float = AUTO
    address: str = ""
    takeover: bool = False
    checkpoint_seconds: float = 20.0
    silence: float = 60.0
    stages: str = ""
    """A store of stages that several studies share, a folder or a URI."""
    retry_failed: bool = False
    retry: tuple[str, ...] = ()
    node_wait: float = 600.0
    pauses: tuple[float, ...] = PAUSES
    """Seconds between attempts at storage that fails."""
    worker: type | None = None
    """A class to use instead of `StageWorker`, to measure the orchestration alone."""

    def __post_init__(self) -> None:
        share = self.gpus_per_worker
        if not math.isfinite(share) or (share < 0 and share != AUTO):
            raise UserError(f"--gpus-per-worker is {share:g}; allowed: 0, a share such as 0.25, or a whole number")
        if share > 1 and share != int(share):
            raise UserError(
                f"--gpus-per-worker is {share:g}; allowed: a share below 1, such as 0.25, or a whole number"
            )
        if 0 < share < 1 and self.workers > 1:  # NCCL has one process on a GPU
            raise UserError(
                f"--gpus-per-worker {share:g} with --workers {self.workers}: workers of one group cannot share a GPU; "
                "allowed: --workers 1, or whole GPUs"
            )
