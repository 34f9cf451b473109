"""The worker groups of a running study: as many as the cluster has room for, those that end replaced.

Imports Ray when it is used, so that the driver can say what is wrong before Ray starts.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdtvit_ray.cluster.options import Options
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.study_status import GroupStatus
from kdtvit_ray.study.binding import Bound

MOST_FAILURES = 10
"""Deaths of one group in a row, each soon after its start, that make a study stop."""
STEADY_SECONDS = 120.0
LONGEST_PAUSE = 60.0
log = logging.getLogger(__name__)


@dataclass
class _Deaths:
    """Of one group: how many in a row came soon after its start, and when it may start again."""

    count: int = 0
    started: float = 0.0
    until: float = 0.0

    def again(self) -> int:
        now = time.monotonic()
        self.count = 1 if now - self.started > STEADY_SECONDS else self.count + 1
        self.until = now + min(2.0 ** (self.count - 1), LONGEST_PAUSE)
        return self.count

    def over(self) -> bool:
        return time.monotonic() >= self.until


class Groups:
    """Starts, counts and ends the worker groups of one session, each a task that holds a Ray Train run."""

    def __init__(self, folder: StudyFolder, bound: Bound, options: Options, coordinator: Any, most: int) -> None:
        """`most` is how many can be busy at once: a trial runs one stage at a time."""
        self.folder, self.bound, self.options, self.coordinator = folder, bound, options, coordinator
        self.gpus, self.most = options.gpus_per_worker, most
        self._tasks: dict[str, Any] = {}
        self._deaths: dict[str, _Deaths] = {}
        self._placement_groups: dict[str, str] = {}
        self._config: dict[str, Any] = {}

    def start(self) -> None:
        """Put data and weights where other nodes find them, and start the groups. Raises `StorageLost`, and `UserError`
        where this machine has no room for a single group."""
        self._check_fits()
        data, weights = self._publish()
        self._config = {
            "location": self.folder.location,
            "data": self.bound.data["path"],
            "coordinator": self.coordinator,
            "workers": self.options.workers,
            "weights": self.bound.weights,
            "checkpoint_seconds": self.options.checkpoint_seconds,
            "published": data,
            "published_weights": weights,
            "pauses": self.options.pauses,
        }
        if self.options.worker:
            self._config["worker"] = self.options.worker
        self._start_missing()

    def tend(self, more: bool) -> str:
        """Take note of groups that have ended; with `more`, start those that are missing: the cluster may have grown,
        or a node may be gone. Returns why the study cannot go on, else an empty string."""
        import ray

        by_task = {task: name for name, task in self._tasks.items()}
        ended = ray.wait(list(by_task), num_returns=len(by_task), timeout=0)[0] if by_task else []
        for task in ended:
            name = by_task[task]
            del self._tasks[name]
            self.coordinator.gone.remote(name)
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:
                log.error("Worker group %s ended: %s", name, error)
                self._free(name)
                if self._deaths[name].again() >= MOST_FAILURES:
                    reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
                    return f"Worker group {name} keeps dying, last with: {reason}"
        if more:
            self._start_missing()
        return ""

    def note(self, groups: Sequence[GroupStatus]) -> None:
        """Remember what the coordinator's snapshot tells of each group's placement group."""
        self._placement_groups |= {each.name: each.placement_group for each in groups if each.placement_group}

    def _free(self, name: str) -> None:
        """Give back what a dead group held: Ray removes the placement group of a dead Ray Train controller only where
        its state API answers, which takes a dashboard, and else when this session ends."""
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        reserved = self._placement_groups.pop(name, "")
        if reserved:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(reserved))))

    def wait(self, seconds: float) -> None:
        """Groups that were told to stop end by themselves, an interrupted one with the checkpoint of its epoch.

        On this machine that is when their workers have said so: Ray's controllers, which take ten seconds more where
        there is no dashboard, end with Ray. On a cluster they are waited for, since they free its resources.
        """
        import ray

        end = time.monotonic() + seconds
        while self._tasks and time.monotonic() < end:
            _, left = ray.wait(list(self._tasks.values()), num_returns=len(self._tasks), timeout=0.2)
            if not left:
                return
            if not self.options.address and not ray.get(self.coordinator.snapshot.remote(), timeout=10).groups:
                return

    def wanted(self) -> tuple[int, str]:
        """How many groups are to run, whether they do or wait, and what each of them needs."""
        if self.gpus < 0:
            return self.options.groups or 1, "a node with CPUs or GPUs"
        return len(self._tasks), self._needs()

    def _needs(self) -> str:
        each = f"{self.gpus:g} GPU and 1 CPU" if self.gpus else "1 CPU"
        workers = self.options.workers
        return each if workers == 1 else f"{workers} x {each} at once"

    def _settle_gpus(self, resources: Mapping[str, float]) -> None:
        if self.gpus < 0:
            self.gpus = 1.0 if resources.get("GPU") else 0.0

    def _check_fits(self) -> None:
        import ray

        if self.options.address:
            return  # a cluster may grow, this machine does not
        resources = ray.cluster_resources()
        self._settle_gpus(resources)
        if groups_that_fit(resources, self.options.workers, self.gpus) < 1:
            raise UserError(
                f"A worker group needs {self._needs()}; this machine has {resources.get('CPU', 0):g} CPU and "
                f"{resources.get('GPU', 0):g} GPU; allowed: fewer --workers, or fewer --gpus-per-worker"
            )

    def _start_missing(self) -> None:
        import ray

        from kdtvit_ray.cluster.coordinator import on_the_drivers_node
        from kdtvit_ray.cluster.workers import run_group

        wanted = self._number()
        self._config["gpus_per_worker"] = self.gpus
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_the_drivers_node())(run_group)
        for number in range(1, wanted + 1):
            name = str(number)
            deaths = self._deaths.setdefault(name, _Deaths())
            if name not in self._tasks and deaths.over():
                deaths.started = time.monotonic()
                self._tasks[name] = task.options(name=f"group-{name}").remote(name, self._config)

    def _number(self) -> int:
        """How many groups are to run by what the cluster has just now; none before it has a node that tells whether
        there are GPUs."""
        import ray

        if self.options.groups and self.gpus >= 0:
            return self.options.groups  # that does not depend on the cluster, which need not be asked
        resources = ray.cluster_resources()
        if self.gpus < 0:
            if not (resources.get("CPU") or resources.get("GPU")):
                return 0  # a head alone does not tell what the nodes to come will have
            self._settle_gpus(resources)
        if self.options.groups:
            return self.options.groups
        fit = groups_that_fit(resources, self.options.workers, self.gpus)
        if fit > self.most and not self._tasks:
            log.warning(
                "%d worker groups fit, %d are started: trials that run at once are bound by the lag", fit, self.most
            )
        return max(min(fit, self.most), 1)

    def _publish(self) -> tuple[str, str]:
        """Locations of the prepared set and of the weights files on the study's storage, empty on one machine."""
        from kdtvit_ray.data.cache import publish, publish_file

        if self.bound.prepared is None or (self.folder.local is not None and not self.options.address):
            return "", ""
        name = f"{self.folder.data}/{self.bound.data['fingerprint']}"
        what = f"Copying the prepared set to {self.folder.shown}"
        data = self.folder.patiently(what, lambda: publish(self.bound.prepared, self.folder, name))
        weights = ""
        for digest, path in self.bound.weights.items():
            weights = self.folder.patiently(
                f"Copying {path} to {self.folder.shown}",
                partial(publish_file, Path(path), digest, self.folder, f"{self.folder.data}/weights"),
            )
        return data, weights


def groups_that_fit(resources: Mapping[str, float], workers: int, gpus: float) -> int:
    """How many worker groups of `workers` workers a cluster has room for; each takes one CPU, and `gpus` of a GPU."""
    by_cpu = resources.get("CPU", 0) / workers
    by_gpu = resources.get("GPU", 0) / (gpus * workers) if gpus else by_cpu
    return int(min(by_cpu, by_gpu) + 1e-9)  # 0.1 GPU a worker: ten and not nine
