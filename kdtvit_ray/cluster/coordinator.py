"""The coordinator: one actor that keeps the stage tree, hands stages to worker groups and results to trials.

Every call may be repeated, since Ray repeats calls after the actor was lost and restarted. What the coordinator knows
can be told again by others: finished stages by the store, wanted ones by the live trials (which join again when they
are not known), running ones by the groups' heartbeats. So it keeps nothing on storage of its own.

Time is this process's monotonic clock only: clocks of other nodes play no part.
"""

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdtvit_ray.errors import StorageLost, UserError
from kdtvit_ray.paths import PAUSES, StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.stage_results import summary_of
from kdtvit_ray.study.store import DamagedStage, StageStore
from kdtvit_ray.study.tree import StageTree, State

POLL_SECONDS = 2.0
"""How long a question for work is kept open before the answer is "nothing yet"."""
GRACE_SECONDS = 11.0
"""More than two heartbeats of a worker group."""
MOST_REPAIRS = 3
"""How often a stage that turns out to be damaged is run again."""


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
    placement_group: str = ""
    """Id of the placement group that holds its resources."""
    last_error: str = ""
    """What its workers said of an error that they do not survive."""


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
        grace: float = GRACE_SECONDS,
        restarted: bool = False,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        self.store = StageStore(StudyFolder(location, pauses))
        self.space = space
        self.metric = space.study["metric"]
        self.tree = StageTree(attempts)
        self.silence = silence
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
        self._repairs: Counter[str] = Counter()
        self.open_from = time.monotonic() + (grace if restarted else 0.0)  # after the listing, which may take long

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
                if measured:
                    return {"state": "done", "key": node.key, **measured}
                if self.draining:
                    return {"state": "stopped"}
                continue  # it has to be run again
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

    async def next_stage(
        self, name: str, incarnation: str, node: str, workers: int, after: str, placement_group: str = ""
    ) -> dict[str, Any]:
        """Work for a group: `action` is run (with the stage's and its parent's spec), wait (ask again) or stop."""
        self._idle(self._heard_from(name, incarnation, node, workers, placement_group))
        deadline = time.monotonic() + POLL_SECONDS
        while True:
            self._forget_silent_groups()
            if self.draining:
                return {"action": "stop"}
            key = self.tree.running.get(name)  # an answer that never arrived is given again
            if key is None and time.monotonic() >= self.open_from:
                # others may be running stages that no trial has joined again yet
                held = {each.key for each in self.groups.values() if each.key and each.name != name}
                key = self.tree.take(name, after or None, held)
            if key is not None:
                return self._order(name, key)
            if time.monotonic() >= deadline:
                return {"action": "wait"}
            await self._change(min(deadline - time.monotonic(), 0.5))

    async def progress(self, name: str, incarnation: str, key: str, epoch: int, epochs: int) -> bool:
        """An epoch of a stage is done. Returns whether the group should go on with the stage."""
        group = self._heard_from(name, incarnation)
        if self.tree.running.get(name) != key and not self.tree.resume(name, key):
            return False
        self._busy(group, key)
        group.epoch, group.epochs = epoch, epochs
        wanted = self.tree.progress(key, epoch)
        if wanted:
            self.stopped.discard(key)
        return wanted and not self.draining

    async def heartbeat(
        self, name: str, incarnation: str, key: str, workers: int, node: str, placement_group: str = ""
    ) -> None:
        """The group is alive, and running this stage (or none)."""
        group = self._heard_from(name, incarnation, node, workers, placement_group)
        if key and self.tree.running.get(name, key) == key:
            self.tree.resume(name, key)
            self._busy(group, key)  # known or not: nobody else is given it

    async def finished(self, name: str, incarnation: str, key: str, measured: dict[str, Any]) -> None:
        """The group has put a stage on storage. `measured`: objectives by metric, seconds, parameters."""
        self._idle(self._heard_from(name, incarnation))
        if key not in self._on_storage:
            self._on_storage.add(key)
            self.trained += 1
            self.train_seconds += measured["train_seconds"]
        self._remember(key, measured)
        self.tree.finish(name, key)
        self._wake()

    async def failed(self, name: str, incarnation: str, key: str, reason: str) -> None:
        """The stage cannot be finished, on any machine."""
        self._idle(self._heard_from(name, incarnation))
        await self.fail(name, key, reason)

    async def fail(self, name: str, key: str, reason: str) -> None:
        """One worker of the group, of any rank, cannot finish the stage; the group may not get to say so."""
        self.tree.fail(name, key, reason)
        self._wake()

    async def last_error(self, name: str, reason: str) -> None:
        """A worker of the group is about to die of this."""
        if name in self.groups:
            self.groups[name].last_error = reason

    async def damaged(self, name: str, key: str, bad: str, reason: str) -> None:
        """The group cannot run stage `key`, because its parent, stage `bad`, is damaged on storage."""
        if name in self.groups:
            self._idle(self.groups[name])
        self.tree.abandon(name, key)
        await self._repair(DamagedStage(bad, reason))

    async def abandoned(self, name: str, incarnation: str, key: str) -> None:
        """The group has stopped the stage at an epoch's end, because it was told to."""
        self._idle(self._heard_from(name, incarnation))
        self.tree.abandon(name, key)
        self._wake()

    async def gone(self, name: str) -> None:
        """The group has ended: it says so itself when it was told to stop, else the driver does."""
        self._forget_group(name)

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
        self._forget_silent_groups()
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

    def _heard_from(
        self, name: str, incarnation: str, node: str = "", workers: int = 0, placement_group: str = ""
    ) -> Group:
        group = self.groups.get(name)
        if group is None or group.incarnation != incarnation:
            if group is not None:
                self._forget_group(name)  # the group came back: what it ran before died with it
            group = self.groups[name] = Group(name, incarnation)
        group.seen = time.monotonic()
        group.node, group.workers, group.placement_group = (
            node or group.node,
            workers or group.workers,
            placement_group or group.placement_group,
        )
        return group

    def _idle(self, group: Group) -> None:
        group.key = group.stage = group.last_error = ""

    def _busy(self, group: Group, key: str) -> None:
        spec = self.specs.get(key)
        if group.key != key:
            group.key, group.stage, group.epoch, group.busy_since = key, "", 0, time.monotonic()
        if spec and not group.stage:
            group.stage = "+".join(map(str, spec.magnifications)) + "X " + self.space.label(spec.model)
            group.epochs = spec.training.epochs

    def _forget_group(self, name: str) -> None:
        group = self.groups.pop(name, None)
        if group is not None:
            self.tree.lose(name, group.last_error)
            self._wake()

    def _forget_silent_groups(self) -> None:
        limit = time.monotonic() - self.silence
        for name in [each.name for each in self.groups.values() if each.seen < limit]:
            self._forget_group(name)

    def _order(self, name: str, key: str) -> dict[str, Any]:
        spec = self.specs[key]
        self._busy(self.groups[name], key)
        parent = self.specs[spec.parent].to_dict() if spec.parent else None
        again = key in self._repairs  # whatever lies on storage
        return {"action": "run", "key": key, "spec": spec.to_dict(), "parent": parent, "again": again}

    async def _measured(self, key: str) -> dict[str, Any] | None:
        """What a finished stage measured; None where storage no longer tells: the stage is run again where it is
        damaged, else the study stops."""
        measured = self._results.get(key)
        if measured is None:
            try:
                about = await asyncio.to_thread(self.store.about, key)  # may wait for storage: others need not
            except DamagedStage as error:
                await self._repair(error)
                return None
            except (StorageLost, UserError) as error:
                await self.lost_storage(f"A finished stage cannot be read: {error}")
                return None
            measured = summary_of(about)
            self._remember(key, measured)
        objective = measured["objectives"].get(self.metric, math.nan)
        return {"objective": objective, "parameters": measured["parameters"], "cost": measured["cost"]}

    async def _repair(self, error: DamagedStage) -> None:
        """Have a stage run again that is not what was saved; a study whose storage damages files stops."""
        self._repairs[error.key] += 1
        if self._repairs[error.key] > MOST_REPAIRS:
            await self.lost_storage(f"{error}, again after {MOST_REPAIRS} repairs")
        self._on_storage.discard(error.key)
        self._results.pop(error.key, None)
        self.tree.reopen(error.key)
        self._wake()

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
    return actor.options(scheduling_strategy=beside_the_driver()).remote(*arguments, **settings)


def beside_the_driver() -> Any:
    """Where what coordinates runs, if it can: other nodes may be preemptible, and the driver's ends the session."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
