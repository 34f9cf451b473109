"""The coordinator: one actor that keeps the stage tree, hands stages to worker groups and results to trials.

Every call may be repeated, since Ray repeats calls after the actor was lost and restarted. Others can tell it again
what it knew: the store knows finished stages, the driver knows the trials that run (and names them again when they are
not known), and the groups' heartbeats name the stages that run. So it keeps nothing on storage of its own.

Time is this process's monotonic clock only: clocks of other nodes play no part.
"""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from kdtvit_ray.cluster.blame import Blame
from kdtvit_ray.cluster.change_signal import Changes
from kdtvit_ray.cluster.claims import Claims
from kdtvit_ray.cluster.finished_stages import FinishedStages
from kdtvit_ray.cluster.health import Fault
from kdtvit_ray.cluster.messages import GREET, STOP, WAIT, Keys, Snapshot, StageOutcome, Work
from kdtvit_ray.cluster.probe import Expected, Probe, differences, mismatch, probe
from kdtvit_ray.cluster.roster import Group
from kdtvit_ray.errors import UserError
from kdtvit_ray.metrics import gain
from kdtvit_ray.paths import PAUSES, StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.stage_record import StageSummary
from kdtvit_ray.study.library import Claim
from kdtvit_ray.study.store import DamagedStage, EpochCheckpoint, StageStore
from kdtvit_ray.study.tree import StageTree, State

POLL_SECONDS = 2.0
"""Seconds that a question for work is kept open before the answer is `WAIT`."""
RESULT_SECONDS = 30.0
"""Seconds that a trial's question for a result is kept open before the answer is "waiting"."""
GRACE_SECONDS = 11.0
"""Seconds: more than two heartbeats of a worker group."""


class Coordinator:
    """The stage tree of one study, shared by trials and worker groups. A group tells with each of its calls which
    stages it has trained and is `saving`.

    `metric` is the study's, in which trials are told their objective, so that larger is better. `silence` is how many
    seconds without a word make a group count as dead. A coordinator that was `restarted` gives no work for `grace`
    seconds, so that groups which are still running stages can say so first. Groups that are not as `expected` get no
    stage. `more` says that nodes may join.
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
        expected: Expected | None = None,
        more: bool = False,
    ) -> None:
        self.expected = expected
        self.store = StageStore(StudyFolder(location, pauses))
        self.metric = metric
        self.tree = StageTree(attempts)
        self.silence = silence
        self.specs: dict[str, StageSpec] = {}
        self.labels: dict[str, str] = {}
        self._changes = Changes()
        self.blame = Blame(self.tree, self._changes, more)
        self.health, self.roster = self.blame.health, self.blame.roster
        self.trained = 0
        self.differing: dict[str, str] = {}
        """In which versions a host differs from the driver's."""
        self._taken_over: set[str] = set()
        self._claims = Claims()
        self._finished = FinishedStages(self.store)
        self.storage_lost, self.draining = self._finished.lost, bool(self._finished.lost)
        self.open_from = time.monotonic() + (grace if restarted else 0.0)  # the listing above may take long

    # -- trials ----------------------------------------------------------------------------------------------------

    async def join(self, trial: str, stages: Sequence[StageSpec], labels: Sequence[str]) -> None:
        """The trial wants these stages, parents first; `labels` name them for the live view."""
        for stage, label in zip(stages, labels, strict=True):
            self.specs[stage.key], self.labels[stage.key] = stage, label
        if trial not in self.tree.paths:
            self.tree.join(trial, [(stage.key, stage.parent) for stage in stages], self._finished.keys)
            self._changes.wake()

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
                return StageOutcome("failed", reason=node.reason, fault=node.fault)
            if self.draining:
                return StageOutcome("stopped")
            if time.monotonic() > deadline:
                return StageOutcome("waiting")
            await self._changes.wait(deadline - time.monotonic())

    async def leave(self, trial: str) -> None:
        """The trial has ended or was stopped: stages that only it wanted are dropped or abandoned."""
        self.tree.leave(trial)

    # -- worker groups ---------------------------------------------------------------------------------------------

    async def greet(self, name: str, incarnation: str, rank: int, found: Probe) -> str:
        """A worker of a group says where it runs and what it found there. Returns why the group must end, in one
        sentence; an empty string where it may ask for stages. Each rank greets before its group asks for the first
        one."""
        group = self.roster.heard_from(name, incarnation)
        if group is None:
            return "another process has taken its place"
        group.places[rank] = found.node
        if self.expected is not None:
            self._meet(self.expected, found)
        return self.health.aside.get(found.node, "")

    async def next_stage(
        self, name: str, incarnation: str, node: str, workers: int, after: str, placement: str = "", saving: Keys = ()
    ) -> Work | str:
        """Work for a group that has trained stage `after`; `WAIT` or `STOP` where there is none."""
        group = self.roster.heard_from(name, incarnation, node, workers, placement)
        if group is None:
            return STOP
        self._saves(group, saving)
        if self.expected is not None and len(group.places) < workers:
            return GREET
        group.idle()
        deadline = time.monotonic() + POLL_SECONDS
        while True:
            self.roster.forget_silent(self.silence)
            if self.roster.known(name, incarnation) is not group:
                return STOP  # it has ended meanwhile, and nobody would run the stage
            if self.draining or self.health.aside.keys() & set(group.places.values()):
                return STOP
            key = self.tree.running.get(name)  # the group may never have got the first answer
            if key is None and time.monotonic() >= self.open_from:
                key = self._take(group, after)
            if key is not None:
                return self._work(name, key)
            if time.monotonic() >= deadline:
                return WAIT
            await self._changes.wait(min(deadline - time.monotonic(), 0.5))

    async def progress(self, name: str, incarnation: str, key: str, epoch: int, epochs: int, saving: Keys = ()) -> bool:
        """An epoch of a stage is done. Returns whether the group should go on with the stage."""
        group = self.roster.heard_from(name, incarnation)
        if group is None:
            return False
        self._saves(group, saving)
        if self.tree.running.get(name) != key and not self.tree.resume(name, key):
            return False
        self._busy(group, key)
        group.epoch, group.epochs = epoch, epochs
        return self.tree.progress(key, epoch) and not self.draining

    async def heartbeat(
        self, name: str, incarnation: str, key: str, workers: int, node: str, placement: str = "", saving: Keys = ()
    ) -> None:
        """The group is alive, and running this stage (or none)."""
        if group := self.roster.heard_from(name, incarnation, node, workers, placement):
            self._saves(group, saving)
        if group and key and self.tree.running.get(name, key) == key:
            self.tree.resume(name, key)
            self._busy(group, key)  # no other group gets it, even if no trial has asked for it yet

    async def finished(self, name: str, incarnation: str, key: str, summary: StageSummary) -> None:
        """The group has put a stage on storage. It may be running the next one."""
        group = self.roster.heard_from(name, incarnation)
        if group:
            if group.key == key:
                group.idle()
            group.saving = tuple(each for each in group.saving if each != key)
            self.health.finished(key, group.places.values())
        self.trained += self._finished.add(key, summary) and key not in self._taken_over
        self.tree.finish(name, key)
        self._changes.wake()

    async def faulted(self, name: str, incarnation: str, key: str, fault: Fault) -> None:
        """A worker, of any rank, could not finish the stage. Where that is the stage's fault it fails; else it is tried
        again where it has not failed."""
        group = self.roster.known(name, incarnation)
        if group is None or self.tree.running.get(name) != key:
            return  # another rank has told it
        self.blame.met(group, key, fault)

    async def worker_dies(self, name: str, incarnation: str, fault: Fault) -> None:
        """One worker, of any rank, dies of an error; its group is restarted."""
        if group := self.roster.known(name, incarnation):
            group.last_fault = group.last_fault or fault  # the other ranks lose the connection after it

    async def placed(self, name: str, nodes: Sequence[str]) -> None:
        """The group is being started, with its ranks on these nodes, by Ray's ids."""
        self.blame.placed(name, nodes)

    async def died(self, name: str, reasons: Mapping[int, str], killed: Collection[int] = ()) -> bool:
        """Workers of the group have died, as Ray has seen, by rank; of those `killed` the process has ended. Returns
        whether these had no stage yet."""
        return self.blame.died(name, reasons, killed)

    async def damaged(self, name: str, incarnation: str, key: str, bad: str, reason: str) -> None:
        """A worker, of any rank, cannot run stage `key`: stage `bad`, which it depends on, is damaged on storage."""
        group = self.roster.known(name, incarnation)
        if group is None:
            return
        spec = self.specs.get(key)
        stale = spec is not None and spec.parent == bad and group.repairs != self._finished.repairs[bad]
        group.idle()
        self.tree.abandon(name, key)
        if stale:
            self._changes.wake()  # it has been repaired since the group read it
        else:
            self._repair(DamagedStage(bad, reason))

    async def taken_over(self, name: str, incarnation: str, key: str) -> None:
        """The group has found the stage in the store that studies share; it is told as finished next."""
        self._taken_over |= {key} - self._finished.keys

    async def deferred(self, name: str, incarnation: str, key: str, claim: Claim) -> None:
        """The group did not begin the stage, since another study trains it: it is tried again later."""
        if group := self.roster.heard_from(name, incarnation):
            group.idle()
            self.tree.abandon(name, key)
            self._claims.deferred(key, claim)

    async def abandoned(self, name: str, incarnation: str, key: str) -> None:
        """The group has stopped the stage at an epoch's end, because it was told to."""
        group = self.roster.heard_from(name, incarnation)
        if group is None:
            return
        group.idle()
        self.tree.abandon(name, key)
        node = self.tree.nodes.get(key)
        if not self.draining and (node is None or not node.subscribers):
            self.health.forget(key)
            await asyncio.to_thread(EpochCheckpoint(self.store.folder, key).clear)
        self._changes.wake()

    async def gone(self, name: str, incarnation: str = "") -> None:
        """The group has ended: it says so itself when it was told to stop, else the driver does, which does not know
        the `incarnation`."""
        if not incarnation or self.roster.known(name, incarnation):
            self.roster.forget(name)

    # -- driver ----------------------------------------------------------------------------------------------------

    async def ready(self) -> str:
        """Answers as soon as the coordinator has started: why it is not fit to keep the study, in one sentence, or an
        empty string. Its process is Ray's, which may have another environment than the driver's."""
        wanted = self.expected
        return mismatch(wanted, replace(probe("", wanted.spec, ""), trouble="")) if wanted else ""

    async def nodes(self, living: Mapping[str, str], aside: Mapping[str, str], to_come: Collection[str]) -> None:
        """What the driver sees of the cluster: the host of each node that lives, by Ray's id; nodes that it has set
        aside, with their reasons; while groups are being started, the nodes that can hold a worker of theirs."""
        self.blame.nodes(living, aside, to_come)

    async def drain(self) -> None:
        """No new stages; running ones stop at the end of their epoch, with a checkpoint."""
        self.draining = True
        self._changes.wake()

    async def lost_storage(self, reason: str) -> None:
        """Storage stayed away: the whole study has to stop, with this reason."""
        self.storage_lost = self.storage_lost or reason
        await self.drain()

    async def snapshot(self) -> Snapshot:
        """What the study is doing."""
        self.roster.forget_silent(self.silence)
        groups = tuple(each.status() for each in self.roster.groups.values())
        return Snapshot(
            self.tree.counts(self._claims.elsewhere),
            self.trained,
            len(self._taken_over),
            groups,
            frozenset(self.tree.paths),
            self.storage_lost,
            dict(self.health.aside),
            tuple(f"{host} has {differing}" for host, differing in sorted(self.differing.items())),
            any(each.key or each.saving for each in self.roster.groups.values()),
            tuple(self.blame.dying.values()),
        )

    # -- inside ----------------------------------------------------------------------------------------------------

    def _take(self, group: Group, after: str) -> str | None:
        """A stage for the group that no other group may be running and that has not failed on its nodes."""
        beside = [each for each in self.roster.beside(group) if each.key]
        if any(each.key in self.health.alone for each in beside):
            return None
        held = self.roster.held_by_others(group) | self.health.avoided(group.places.values()) | self._claims.waiting()
        if beside:
            held |= self.health.alone
        return self.tree.take(group.name, after or None, held)

    def _meet(self, expected: Expected, found: Probe) -> None:
        """Set a worker's node aside if it is not as expected. The first one that trains says on what device."""
        if wrong := mismatch(expected, found):
            self.health.set_aside(found.node, wrong)
            return
        self.expected = replace(expected, device=expected.device or found.device)
        if differing := differences(expected, found):
            self.differing[found.host] = differing

    def _saves(self, group: Group, saving: Keys) -> None:
        group.saving = saving
        for key in saving:
            self.tree.trained(group.name, key)

    def _work(self, name: str, key: str) -> Work:
        spec = self.specs[key]
        self._busy(self.roster.groups[name], key)
        parent = self.specs[spec.parent] if spec.parent else None
        self.roster.groups[name].repairs = self._finished.repairs[parent.key] if parent else 0
        return Work(spec, parent, again=key in self._finished.repairs, seize=self._claims.tried(key))

    def _busy(self, group: Group, key: str) -> None:
        spec = self.specs.get(key)
        self.blame.busy(group.name)
        group.busy(key, self.labels.get(key, ""), spec.training.epochs if spec else 0)

    async def _summary(self, key: str) -> StageSummary | None:
        """The summary of a finished stage. None where storage no longer has it: a damaged stage is run again, and the
        study stops where storage is away."""
        repairs = self._finished.repairs[key]
        try:
            return await self._finished.summary(key)
        except DamagedStage as error:
            if self._finished.repairs[key] == repairs:  # else another trial has met the same damage
                self._repair(error)
        except (OSError, UserError) as error:
            await self.lost_storage(f"A finished stage cannot be read: {error}")
        return None

    def _repair(self, error: DamagedStage) -> None:
        """Run a damaged stage again. Each rank of a group may report the same damage."""
        if given_up := self._finished.repair(error, self.tree):
            self.storage_lost, self.draining = self.storage_lost or given_up, True
        self._changes.wake()
