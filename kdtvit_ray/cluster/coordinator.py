"""The coordinator: one actor that keeps the stage tree, hands stages to worker groups and results to trials.

Every call may be repeated, since Ray repeats calls after the actor was lost and restarted. Others can tell it again
what it knew: the store knows finished stages, the driver knows the trials that run (and names them again when they are
not known), and the groups' heartbeats name the stages that run. So it keeps nothing on storage of its own.

Time is this process's monotonic clock only: clocks of other nodes play no part.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from kdtvit_ray.cluster.messages import STOP, WAIT, Snapshot, StageOutcome, Work
from kdtvit_ray.errors import StorageLost, UserError
from kdtvit_ray.metrics import gain
from kdtvit_ray.paths import PAUSES, StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.stage_record import StageSummary
from kdtvit_ray.results.study_status import GroupStatus
from kdtvit_ray.study.store import DamagedStage, StageStore
from kdtvit_ray.study.tree import StageTree, State

POLL_SECONDS = 2.0
"""Seconds that a question for work is kept open before the answer is `WAIT`."""
RESULT_SECONDS = 30.0
"""Seconds that a trial's question for a result is kept open before the answer is "waiting"."""
GRACE_SECONDS = 11.0
"""Seconds: more than two heartbeats of a worker group."""
MOST_REPAIRS = 3
"""How often a stage that turns out to be damaged is run again."""
SUMMARIES_KEPT = 20_000


@dataclass
class Group(GroupStatus):
    """A worker group as the coordinator knows it. `incarnation` changes whenever its processes are restarted."""

    incarnation: str = ""
    seen: float = 0.0
    last_error: str = ""
    """The first error that one of its workers has reported before it died."""

    def status(self) -> GroupStatus:
        return GroupStatus(**{each.name: getattr(self, each.name) for each in fields(GroupStatus)})


class Coordinator:
    """The stage tree of one study, shared by trials and worker groups.

    `metric` is the study's, in which trials are told their objective, so that larger is better. `silence` is how many
    seconds without a word make a group count as dead. A coordinator that was `restarted` gives no work for `grace`
    seconds, so that groups which are still running stages can say so first.
    """

    def __init__(
        self,
        location: str,
        metric: str,
        *,
        silence: float = 60.0,
        attempts: int = 3,
        grace: float = GRACE_SECONDS,
        restarted: bool = False,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        self.store = StageStore(StudyFolder(location, pauses))
        self.metric = metric
        self.tree = StageTree(attempts)
        self.silence = silence
        self.specs: dict[str, StageSpec] = {}
        self.labels: dict[str, str] = {}
        self.groups: dict[str, Group] = {}
        self.draining = False
        self.storage_lost = ""
        self.trained = 0
        self._summaries: OrderedDict[str, StageSummary] = OrderedDict()
        self._changed = asyncio.Event()
        self._on_storage: set[str] = set()
        try:
            self._on_storage = self.store.keys()
        except StorageLost as error:  # an actor that raises here is dead, and Ray hides the reason
            self.storage_lost, self.draining = str(error), True
        self._repairs: Counter[str] = Counter()
        self.open_from = time.monotonic() + (grace if restarted else 0.0)  # the listing above may take long

    # -- trials ----------------------------------------------------------------------------------------------------

    async def join(self, trial: str, stages: Sequence[StageSpec], labels: Sequence[str]) -> None:
        """The trial wants these stages, parents first; `labels` name them for the live view."""
        for stage, label in zip(stages, labels, strict=True):
            self.specs[stage.key], self.labels[stage.key] = stage, label
        if trial not in self.tree.paths:
            self.tree.join(trial, [(stage.key, stage.parent) for stage in stages], self._on_storage)
            self._wake()

    async def result(self, trial: str, index: int) -> StageOutcome:
        """The outcome of the trial's stage, as soon as it has one."""
        deadline = time.monotonic() + RESULT_SECONDS
        while True:
            path = self.tree.paths.get(trial)  # None until the driver has named the trial (again)
            node = self.tree.nodes[path[index]] if path else None
            if node and node.state is State.DONE:
                summary = await self._summary(node.key)
                if summary:
                    return StageOutcome("done", gain(self.metric, summary.objective(self.metric)))
                if not self.draining:
                    continue  # it has to be run again
            if node and node.state is State.FAILED:
                return StageOutcome("failed", reason=node.reason)
            if self.draining:
                return StageOutcome("stopped")
            if time.monotonic() > deadline:
                return StageOutcome("waiting")
            await self._change(deadline - time.monotonic())

    async def leave(self, trial: str) -> None:
        """The trial has ended or was stopped: stages that only it wanted are dropped or abandoned."""
        self.tree.leave(trial)

    # -- worker groups ---------------------------------------------------------------------------------------------

    async def next_stage(
        self, name: str, incarnation: str, node: str, workers: int, after: str, placement_group: str = ""
    ) -> Work | str:
        """Work for a group that has finished stage `after`; `WAIT` or `STOP` where there is none."""
        self._idle(self._heard_from(name, incarnation, node, workers, placement_group))
        deadline = time.monotonic() + POLL_SECONDS
        while True:
            self._forget_silent_groups()
            if self.draining:
                return STOP
            key = self.tree.running.get(name)  # the group may never have got the first answer
            if key is None and time.monotonic() >= self.open_from:
                # other groups may be running stages that no trial has asked for yet
                held = {each.key for each in self.groups.values() if each.key and each.name != name}
                key = self.tree.take(name, after or None, held)
            if key is not None:
                return self._work(name, key)
            if time.monotonic() >= deadline:
                return WAIT
            await self._change(min(deadline - time.monotonic(), 0.5))

    async def progress(self, name: str, incarnation: str, key: str, epoch: int, epochs: int) -> bool:
        """An epoch of a stage is done. Returns whether the group should go on with the stage."""
        group = self._heard_from(name, incarnation)
        if self.tree.running.get(name) != key and not self.tree.resume(name, key):
            return False
        self._busy(group, key)
        group.epoch, group.epochs = epoch, epochs
        return self.tree.progress(key, epoch) and not self.draining

    async def heartbeat(
        self, name: str, incarnation: str, key: str, workers: int, node: str, placement_group: str = ""
    ) -> None:
        """The group is alive, and running this stage (or none)."""
        group = self._heard_from(name, incarnation, node, workers, placement_group)
        if key and self.tree.running.get(name, key) == key:
            self.tree.resume(name, key)
            self._busy(group, key)  # no other group gets it, even if no trial has asked for it yet

    async def finished(self, name: str, incarnation: str, key: str, summary: StageSummary) -> None:
        """The group has put a stage on storage."""
        self._idle(self._heard_from(name, incarnation))
        if key not in self._on_storage:
            self._on_storage.add(key)
            self.trained += 1
        self._remember(key, summary)
        self.tree.finish(name, key)
        self._wake()

    async def failed(self, name: str, incarnation: str, key: str, reason: str) -> None:
        """The group cannot finish the stage, on any machine; all of its workers know."""
        self._idle(self._heard_from(name, incarnation))
        self.tree.fail(name, key, reason)
        self._wake()

    async def worker_failed(self, name: str, incarnation: str, key: str, reason: str) -> None:
        """One worker, of any rank, cannot finish the stage, on any machine: it dies, and its group is restarted."""
        self.tree.fail(name, key, reason)
        self._wake()

    async def worker_dies(self, name: str, incarnation: str, reason: str) -> None:
        """One worker, of any rank, dies of an error; its group is restarted and may be given the stage again."""
        group = self._known(name, incarnation)
        if group:
            group.last_error = group.last_error or reason  # the other ranks lose the connection after it

    async def damaged(self, name: str, incarnation: str, key: str, bad: str, reason: str) -> None:
        """A worker, of any rank, cannot run stage `key`: stage `bad`, which it depends on, is damaged on storage."""
        group = self._known(name, incarnation)
        if group:
            self._idle(group)
        self.tree.abandon(name, key)
        self._repair(DamagedStage(bad, reason))

    async def abandoned(self, name: str, incarnation: str, key: str) -> None:
        """The group has stopped the stage at an epoch's end, because it was told to."""
        self._idle(self._heard_from(name, incarnation))
        self.tree.abandon(name, key)
        self._wake()

    async def gone(self, name: str) -> None:
        """The group has ended: it says so itself when it was told to stop, else the driver does."""
        self._forget_group(name)

    # -- driver ----------------------------------------------------------------------------------------------------

    async def ready(self) -> bool:
        """Answers as soon as the coordinator has started."""
        return True

    async def drain(self) -> None:
        """No new stages; running ones stop at the end of their epoch, with a checkpoint."""
        self.draining = True
        self._wake()

    async def lost_storage(self, reason: str) -> None:
        """Storage stayed away: the whole study has to stop, with this reason."""
        self.storage_lost = self.storage_lost or reason
        await self.drain()

    async def snapshot(self) -> Snapshot:
        """What the study is doing."""
        self._forget_silent_groups()
        groups = tuple(each.status() for each in self.groups.values())
        return Snapshot(self.tree.counts(), self.trained, groups, frozenset(self.tree.paths), self.storage_lost)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _heard_from(
        self, name: str, incarnation: str, node: str = "", workers: int = 0, placement_group: str = ""
    ) -> Group:
        group = self._known(name, incarnation)
        if group is None:
            self._forget_group(name)  # a restarted group has lost the stage that it ran
            group = self.groups[name] = Group(name, incarnation=incarnation)
        group.seen = time.monotonic()
        group.node, group.workers = node or group.node, workers or group.workers
        group.placement_group = placement_group or group.placement_group
        return group

    def _known(self, name: str, incarnation: str) -> Group | None:
        group = self.groups.get(name)
        return group if group and group.incarnation == incarnation else None

    def _idle(self, group: Group) -> None:
        group.key = group.stage = group.last_error = ""

    def _busy(self, group: Group, key: str) -> None:
        if group.key != key:
            group.key, group.stage, group.epoch = key, "", 0
        if key in self.specs and not group.stage:
            group.stage, group.epochs = self.labels[key], self.specs[key].training.epochs

    def _forget_group(self, name: str) -> None:
        group = self.groups.pop(name, None)
        if group is not None:
            self.tree.lose(name, group.last_error)
            self._wake()

    def _forget_silent_groups(self) -> None:
        limit = time.monotonic() - self.silence
        for name in [each.name for each in self.groups.values() if each.seen < limit]:
            self._forget_group(name)

    def _work(self, name: str, key: str) -> Work:
        spec = self.specs[key]
        self._busy(self.groups[name], key)
        parent = self.specs[spec.parent] if spec.parent else None
        return Work(spec, parent, again=key in self._repairs)

    async def _summary(self, key: str) -> StageSummary | None:
        """The summary of a finished stage. None where storage no longer has it: a damaged stage is run again, and the
        study stops where storage is away."""
        found = self._summaries.get(key)
        if found is None:
            try:
                # in a thread: it may wait for storage, and other calls must not
                record = await asyncio.to_thread(self.store.record, key)
            except DamagedStage as error:
                self._repair(error)
                return None
            except (OSError, UserError) as error:
                await self.lost_storage(f"A finished stage cannot be read: {error}")
                return None
            found = record.summary()
            self._remember(key, found)
        return found

    def _repair(self, error: DamagedStage) -> None:
        """Run a damaged stage again. Each rank of a group may report the same damage. The study stops where storage
        damages the stage again and again."""
        self._on_storage.discard(error.key)
        self._summaries.pop(error.key, None)
        if not self.tree.reopen(error.key):
            return
        self._repairs[error.key] += 1
        if self._repairs[error.key] > MOST_REPAIRS:
            self.storage_lost = self.storage_lost or f"{error}, again after {MOST_REPAIRS} repairs"
            self.draining = True
        self._wake()

    def _remember(self, key: str, summary: StageSummary) -> None:
        self._summaries[key] = summary
        while len(self._summaries) > SUMMARIES_KEPT:
            self._summaries.popitem(last=False)

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
    return actor.options(scheduling_strategy=on_the_drivers_node()).remote(*arguments, **settings)


def on_the_drivers_node() -> Any:
    """Where the coordinator and the groups' tasks run, if they can: other nodes may be preemptible, and the loss of the
    driver's own node ends the session anyway."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
