"""The coordinator: one actor that keeps the stage tree, hands stages to worker groups and results to trials.

Every call may be repeated, since Ray repeats calls after the actor was lost and restarted. What the coordinator knows
can be told again by others: finished stages by the store, wanted ones by the live trials (which join again when they
are not known), running ones by the groups' heartbeats. So it keeps nothing on storage of its own.

Time is this process's monotonic clock only: clocks of other nodes play no part.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.store import PAUSES, StageStore, StorageLost
from kdtvit_ray.study.tree import StageTree, State

POLL_SECONDS = 2.0
"""How long a question for work is kept open before the answer is "nothing yet"."""


@dataclass
class Group:
    """A worker group as the coordinator knows it."""

    name: str
    incarnation: str
    node: str = ""
    workers: int = 1
    key: str = ""
    stage: str = ""
    epoch: int = 0
    epochs: int = 0
    seen: float = 0.0
    busy_since: float = 0.0


class Coordinator:
    """The stage tree of one study, shared by trials and worker groups.

    `metric` is the study's: the objective of a stage is its mean over magnifications, on validation images.
    `silence` is how many seconds without a word make a group count as dead. `restarted` holds new work back for
    `grace` seconds, so that groups which are still running stages can say so first.
    """

    def __init__(
        self,
        location: str,
        space: Space,
        *,
        silence: float = 60.0,
        attempts: int = 3,
        grace: float = 5.0,
        restarted: bool = False,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        self.store = StageStore(StudyFolder(location), pauses)
        self.space = space
        self.metric = space.study["metric"]
        self.tree = StageTree(attempts)
        self.silence = silence
        self.open_from = time.monotonic() + (grace if restarted else 0.0)
        self.specs: dict[str, StageSpec] = {}
        self.groups: dict[str, Group] = {}
        self.stopped: set[str] = set()
        self.draining = False
        self.fatal = ""
        self.trained = self.asked = 0
        self.train_seconds = 0.0
        self._results: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._changed = asyncio.Event()
        self._on_storage: set[str] = set()
        try:
            self._on_storage = self.store.keys()
        except StorageLost as error:  # raised here, it would be a dead actor, and the reason in Ray's words
            self.fatal, self.draining = str(error), True

    # -- trials ----------------------------------------------------------------------------------------------------

    async def join(self, trial: str, kind: str, params: Mapping[str, Any]) -> list[str]:
        """The trial wants its stages. Returns their keys in order."""
        stages = self.space.stages(trial, kind, params)
        for stage in stages:
            self.specs[stage.key] = stage
        if trial not in self.tree.paths:
            self.asked += len(stages)
            self.tree.join(trial, [(stage.key, stage.parent) for stage in stages], self._on_storage)
            self._wake()
        return [stage.key for stage in stages]

    async def result(self, trial: str, index: int) -> dict[str, Any]:
        """The outcome of the trial's stage, as soon as it has one: `state` is done, failed, stopped (the study is
        stopping), waiting (ask again) or unknown (join again)."""
        deadline = time.monotonic() + 30.0
        while True:
            if trial not in self.tree.paths:
                return {"state": "stopped" if self.draining else "unknown"}
            node = self.tree.nodes[self.tree.paths[trial][index]]
            if node.state is State.DONE:
                measured = await self._measured(node.key)
                return {"state": "done", "key": node.key, **measured} if measured else {"state": "stopped"}
            if node.state is State.FAILED:
                return {"state": "failed", "reason": node.reason}
            if self.draining:
                return {"state": "stopped"}
            if time.monotonic() > deadline:
                return {"state": "waiting"}
            await self._change(deadline - time.monotonic())

    async def leave(self, trial: str) -> None:
        """The trial has ended or was stopped: stages that only it wanted are dropped or abandoned."""
        self.stopped.update(self.tree.leave(trial))

    # -- worker groups ---------------------------------------------------------------------------------------------

    async def next_stage(self, name: str, incarnation: str, node: str, workers: int, after: str) -> dict[str, Any]:
        """Work for a group: `action` is run (with the stage's and its parent's spec), wait (ask again) or stop."""
        self._greet(name, incarnation, node, workers)
        deadline = time.monotonic() + POLL_SECONDS
        while True:
            self._bury_the_silent()
            if self.draining:
                return {"action": "stop"}
            key = self.tree.running.get(name)  # an answer that never arrived is given again
            if key is None and time.monotonic() >= self.open_from:
                key = self.tree.take(name, after or None)
            if key is not None:
                return self._order(name, key)
            if time.monotonic() >= deadline:
                return {"action": "wait"}
            await self._change(min(deadline - time.monotonic(), 0.5))

    async def progress(self, name: str, incarnation: str, key: str, epoch: int, epochs: int) -> bool:
        """An epoch of a stage is done. Returns whether the group should go on with the stage."""
        group = self._greet(name, incarnation)
        if self.tree.running.get(name) != key and not self.tree.resume(name, key):
            return False
        group.key, group.epoch, group.epochs = key, epoch, epochs
        wanted = self.tree.progress(key, epoch)
        if wanted:
            self.stopped.discard(key)
        return wanted and not self.draining

    async def heartbeat(self, name: str, incarnation: str, key: str, workers: int, node: str) -> None:
        """The group is alive, and running this stage (or none)."""
        self._greet(name, incarnation, node, workers)
        if key and self.tree.running.get(name) != key:
            self.tree.resume(name, key)

    async def finished(self, name: str, incarnation: str, key: str, measured: dict[str, Any]) -> None:
        """The group has put a stage on storage. `measured`: objectives by metric, seconds, parameters."""
        self._idle(self._greet(name, incarnation))
        if key not in self._on_storage:
            self._on_storage.add(key)
            self.trained += 1
            self.train_seconds += measured["train_seconds"]
        self._remember(key, measured)
        self.tree.finish(name, key)
        self._wake()

    async def failed(self, name: str, incarnation: str, key: str, reason: str) -> None:
        """The stage cannot be finished, on any machine."""
        self._idle(self._greet(name, incarnation))
        await self.fail(name, key, reason)

    async def fail(self, name: str, key: str, reason: str) -> None:
        """One worker of the group, of any rank, cannot finish the stage; the group may not get to say so."""
        self.tree.fail(name, key, reason)
        self._wake()

    async def abandoned(self, name: str, incarnation: str, key: str) -> None:
        """The group has stopped the stage at an epoch's end, because it was told to."""
        self._idle(self._greet(name, incarnation))
        self.tree.abandon(name, key)
        self._wake()

    async def gone(self, name: str) -> None:
        """The group has ended: it says so itself when it was told to stop, else the driver does."""
        self._bury(name)

    # -- driver ----------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """No new stages; running ones stop at the end of their epoch, with a checkpoint."""
        self.draining = True
        self._wake()

    async def lost_storage(self, reason: str) -> None:
        """Storage stayed away: the whole study stops, with this reason."""
        self.fatal = self.fatal or reason
        await self.drain()

    async def snapshot(self) -> dict[str, Any]:
        """What the study is doing, as plain values."""
        self._bury_the_silent()
        now = time.monotonic()
        groups = [
            {**asdict(each), "seen": now - each.seen, "busy_since": now - each.busy_since if each.key else 0.0}
            for each in self.groups.values()
        ]
        return {
            "stages": self.tree.counts(), "trained": self.trained, "asked": self.asked, "groups": groups,
            "train_seconds": self.train_seconds, "fatal": self.fatal, "draining": self.draining,
            "on_storage": len(self._on_storage),
        }  # fmt: skip

    async def process(self) -> int:
        """Process id, for tests that kill it."""
        import os

        return os.getpid()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _greet(self, name: str, incarnation: str, node: str = "", workers: int = 0) -> Group:
        group = self.groups.get(name)
        if group is None or group.incarnation != incarnation:
            if group is not None:
                self._bury(name)  # the group came back: what it ran before died with it
            group = self.groups[name] = Group(name, incarnation)
        group.seen = time.monotonic()
        group.node, group.workers = node or group.node, workers or group.workers
        return group

    def _idle(self, group: Group) -> None:
        group.key = group.stage = ""

    def _bury(self, name: str) -> None:
        if self.groups.pop(name, None) is not None:
            self.tree.lose(name)
            self._wake()

    def _bury_the_silent(self) -> None:
        limit = time.monotonic() - self.silence
        for name in [each.name for each in self.groups.values() if each.seen < limit]:
            self._bury(name)

    def _order(self, name: str, key: str) -> dict[str, Any]:
        spec = self.specs[key]
        group = self.groups[name]
        group.key, group.epoch, group.epochs = key, 0, spec.training.epochs
        group.stage = "+".join(map(str, spec.magnifications)) + "X " + self.space.label(spec.model)
        group.busy_since = time.monotonic()
        parent = self.specs[spec.parent].to_dict() if spec.parent else None
        return {"action": "run", "key": key, "spec": spec.to_dict(), "parent": parent}

    async def _measured(self, key: str) -> dict[str, Any] | None:
        """What a finished stage measured; None where storage no longer tells, which stops the study."""
        measured = self._results.get(key)
        if measured is None:
            try:
                about = await asyncio.to_thread(self.store.about, key)  # may wait for storage: others need not
            except (StorageLost, FileNotFoundError) as error:
                await self.lost_storage(f"A finished stage cannot be read: {error}")
                return None
            measured = summary_of(about)
            self._remember(key, measured)
        objective = measured["objectives"].get(self.metric, math.nan)
        return {"objective": objective, "parameters": measured["parameters"], "cost": measured["cost"]}

    def _remember(self, key: str, measured: dict[str, Any]) -> None:
        self._results[key] = measured
        while len(self._results) > 20_000:
            self._results.popitem(last=False)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self, timeout: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), max(timeout, 0.01))
        except TimeoutError:
            return


def start_coordinator(*arguments: Any, **settings: Any) -> Any:
    """A `Coordinator` as an actor that Ray restarts whenever it dies; it finds out by itself that it was restarted."""
    import ray

    class CoordinatorActor(Coordinator):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            restarted = ray.get_runtime_context().was_current_actor_reconstructed
            super().__init__(*arguments, restarted=restarted, **settings)

    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=10_000)(CoordinatorActor)
    return actor.remote(*arguments, **settings)


def summary_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """What the coordinator keeps of a stage's `stage.json`: objective by metric, parameters, seconds.

    A stage's objective is the mean over magnifications of a metric on validation images; the test set plays no part.
    """
    by_metric: dict[str, list[float]] = {}
    for _, split, level, metric, value in about["measures"]:
        if split == "validation" and level == "image":
            by_metric.setdefault(metric, []).append(value)
    cost = about["cost"]
    return {
        "objectives": {metric: sum(values) / len(values) for metric, values in by_metric.items()},
        "parameters": int(cost["parameters"]),
        "train_seconds": float(cost["train_seconds"]),
        "cost": float(cost["train_seconds"] + cost["evaluate_seconds"]),
    }
