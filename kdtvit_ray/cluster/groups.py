"""Starts the worker groups of a running study, as many as fit on the cluster, and replaces those that end.

The functions import Ray when they need it, so that the driver can report mistakes before Ray starts.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdtvit_ray.cluster.nodes import Nodes, said
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.study_file import settings_of
from kdtvit_ray.results.study_status import GroupStatus
from kdtvit_ray.study.binding import Bound

MOST_FAILURES = 10
"""A study stops when one group has died this often in a row, each time soon after its start."""
STEADY_SECONDS = 120.0
IDLE_SECONDS = 10.0
"""Groups that are still starting, or have nothing to save, are waited for no longer when a study stops."""
LONGEST_PAUSE = 60.0
log = logging.getLogger(__name__)


@dataclass
class _Deaths:
    """How often one group has died in a row, each time soon after its start, and when it may start again."""

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
    """Starts, counts and ends the worker groups of one session. Each group is a Ray task that holds a Ray Train run."""

    def __init__(
        self, folder: StudyFolder, bound: Bound, options: Options, coordinator: Any, most: int, nodes: Nodes
    ) -> None:
        """`most` is the number of groups that can be busy at once: a chain runs one stage at a time."""
        self.folder, self.bound, self.options, self.coordinator = folder, bound, options, coordinator
        self.nodes = nodes
        self.gpus, self.most = options.gpus_per_worker, most
        self.idle_note = ""
        """One sentence where the cluster has room for more groups than can be busy."""
        self._tasks: dict[str, Any] = {}
        self._deaths: dict[str, _Deaths] = {}
        self._placement_groups: dict[str, str] = {}
        self._config: dict[str, Any] = {}

    def start(self) -> None:
        """Copy data and weights to where other nodes find them, then start the groups. Raises `StorageLost`, and
        `UserError` where this machine has too few resources for a single group."""
        self._check_fits()
        data, weights = self._publish()
        study_id = settings_of(self.folder)["id"]
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
            "sample": self.nodes.expected.spec,
            "stages": self.options.stages,
            "mix_devices": self.nodes.expected.mix,
            "study": study_id,
        }
        if self.options.worker:
            self._config["worker"] = self.options.worker
        self._start_missing()

    def tend(self, more: bool) -> str:
        """Take note of groups that have ended. With `more`, start the missing ones: the cluster may have grown, or a
        node may be gone. Returns why the study cannot go on, or an empty string."""
        import ray

        by_task = {task: name for name, task in self._tasks.items()}
        ended = ray.wait(list(by_task), num_returns=len(by_task), timeout=0)[0] if by_task else []
        for task in ended:
            name = by_task[task]
            del self._tasks[name]
            self.coordinator.gone.remote(name)
            try:
                if ray.get(task):
                    self._deaths[name].again()  # the coordinator counts it; here it makes a pause
            except ray.exceptions.RayError as error:
                log.error("Worker group %s ended: %s", name, error)
                self._free(name)
                if self._deaths[name].again() >= MOST_FAILURES:
                    return f"Worker group {name} keeps dying, last with: {said(getattr(error, 'cause', None) or error)}"
        if more:
            self._start_missing()
        return ""

    def note(self, groups: Sequence[GroupStatus]) -> None:
        """Remember the placement group of each worker group."""
        self._placement_groups |= {each.name: each.placement_group for each in groups if each.placement_group}

    def _free(self, name: str) -> None:
        """Free the resources of a dead group. Ray itself removes the placement group of a dead Ray Train controller
        only where its state API answers, which needs a dashboard, or at the end of the session."""
        import ray
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        reserved = self._placement_groups.pop(name, "")
        if reserved:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(reserved))))

    @property
    def started(self) -> int:
        """How many groups have been started and have not ended."""
        return len(self._tasks)

    def wait(self, seconds: float) -> None:
        """Wait until the groups that were told to stop have ended: `seconds` at most while a stage is in flight, since
        an interrupted group first writes the checkpoint of its epoch, and `IDLE_SECONDS` where none is.

        On this machine a group has ended when its workers have said so. Ray's controllers end with Ray: without a
        dashboard they would need ten more seconds. On a cluster this waits for the controllers as well, since they hold
        its resources.
        """
        import ray

        began = idle_since = time.monotonic()
        while self._tasks:
            _, left = ray.wait(list(self._tasks.values()), num_returns=len(self._tasks), timeout=0.2)
            if not left:
                return
            now, seen = time.monotonic(), ray.get(self.coordinator.snapshot.remote(), timeout=10)
            if not self.options.address and not seen.groups:
                return
            if seen.in_flight:
                idle_since = now
            if now - began >= seconds or now - idle_since >= IDLE_SECONDS:
                return

    def wanted(self) -> tuple[int, str]:
        """How many groups should run, and what each of them needs."""
        if self.gpus < 0:
            return min(self.options.groups or 1, self.most), "a node with CPUs or GPUs"
        return len(self._tasks), self._needs()

    def _needs(self) -> str:
        each = f"{self.gpus:g} GPU and 1 CPU" if self.gpus else "1 CPU"
        workers = self.options.workers
        return each if workers == 1 else f"{workers} x {each} at once"

    def _settle_gpus(self, resources: Mapping[str, float]) -> None:
        if self.gpus < 0:
            self.gpus = 1.0 if resources.get("GPU") else 0.0

    def _check_fits(self) -> None:
        if self.options.address:
            return  # a cluster may grow, this machine does not
        resources = self.nodes.resources()
        if self.gpus < 0 and not resources.get("GPU"):
            _check_no_gpus()
        self._settle_gpus(resources)
        fit, asked = groups_that_fit(resources, self.options.workers, self.gpus), self.options.groups
        if fit and asked > fit:
            raise UserError(
                f"--groups is {asked}; this machine has room for {fit} (each needs {self._needs()}), and this space "
                f"keeps at most {self.most} busy; allowed: auto, or at most {fit}"
            )
        if fit < 1:
            raise UserError(
                f"A worker group needs {self._needs()}; this machine has {resources.get('CPU', 0):g} CPU and "
                f"{resources.get('GPU', 0):g} GPU; allowed: fewer --workers, or fewer --gpus-per-worker"
            )

    def _start_missing(self) -> None:
        import ray

        from kdtvit_ray.cluster.group_run import run_group
        from kdtvit_ray.cluster.nodes import on_the_drivers_node

        if self.nodes.asking:
            return
        wanted = self._number()
        self._config |= {"gpus_per_worker": self.gpus, "unfit": sorted(self.nodes.unfit)}
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_the_drivers_node())(run_group)
        for number in range(1, wanted + 1):
            name = str(number)
            deaths = self._deaths.setdefault(name, _Deaths())
            if name not in self._tasks and deaths.over():
                deaths.started = time.monotonic()
                self._tasks[name] = task.options(name=f"group-{name}").remote(name, self._config)

    def _number(self) -> int:
        """How many groups should run on the cluster as it is now, no more than can be busy. Zero while the cluster has
        no node but its head, which does not tell whether the nodes will have GPUs."""
        if self.nodes.none_works:
            return 0
        if self.options.groups and self.gpus >= 0:
            return self._busy(self.options.groups, "asked for")  # nothing to ask the cluster for
        resources = self.nodes.resources()
        if self.gpus < 0:
            if not (resources.get("CPU") or resources.get("GPU")):
                return 0  # the head alone: its nodes are still to come
            self._settle_gpus(resources)
        if self.options.groups:
            return self._busy(self.options.groups, "asked for")
        return max(self._busy(groups_that_fit(resources, self.options.workers, self.gpus), "that fit"), 1)

    def _busy(self, number: int, words: str) -> int:
        """As many of a number of groups as can be busy at once; takes note of where these are fewer."""
        self.idle_note = (
            f"{self.most} of {number} {words} are started: chains are bound by lag" if number > self.most else ""
        )
        if self.idle_note and not self._tasks:
            log.warning("Of the worker groups %s", self.idle_note)
        return min(number, self.most)

    def _publish(self) -> tuple[str, str]:
        """Copy the prepared set and the weights files to the study's storage. Returns their locations there, or empty
        strings where all groups run on this machine."""
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


def _check_no_gpus() -> None:
    """Raise a `UserError` where Ray has found no GPU on this machine and torch sees one: nobody means the CPU then."""
    import torch

    if seen := torch.cuda.device_count():
        raise UserError(
            f"Ray finds no GPU on this machine, and torch sees {seen}; allowed: --gpus-per-worker 0, which trains on "
            "the CPU, or a driver that answers nvidia-smi, as it answers Ray"
        )


def groups_that_fit(resources: Mapping[str, float], workers: int, gpus: float) -> int:
    """How many worker groups of `workers` workers a cluster has room for; each takes one CPU, and `gpus` of a GPU."""
    by_cpu = resources.get("CPU", 0) / workers
    by_gpu = resources.get("GPU", 0) / (gpus * workers) if gpus else by_cpu
    return int(min(by_cpu, by_gpu) + 1e-9)  # a share such as 0.1 is not exact in floating point
