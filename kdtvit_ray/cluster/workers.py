"""The worker of a group (`cluster.group_run`): it asks for stages, trains them and puts them on storage.

A stage goes to storage beside the training of the next one. It is finished when it is there, not before.
"""

import logging
import platform
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray

from kdtvit_ray.cluster.health import MEMORY, NODE, STAGE, UNKNOWN, Fault, of_the_device, of_the_node
from kdtvit_ray.cluster.inputs import Inputs
from kdtvit_ray.cluster.messages import GREET, STOP, Work
from kdtvit_ray.cluster.probe import Probe, probe
from kdtvit_ray.cluster.saving import NotSaved, Saver
from kdtvit_ray.errors import NodeFault, OutOfMemory, StageFailed, StorageLost, UserError, first_line
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.stage_record import StageSummary
from kdtvit_ray.study.library import BEAT_SECONDS, Claim, StageLibrary
from kdtvit_ray.study.store import DamagedStage, EpochCheckpoint, StageStore

if TYPE_CHECKING:
    from kdtvit_ray.learning.team import Team

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0


class Deferred(Exception):
    """Another study trains the stage, as its `claim` says."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(claim)
        self.claim = claim


class StageWorker:
    """One worker of a group. It keeps data, parents' weights and teachers' outputs in memory between stages, and talks
    to the coordinator."""

    def __init__(self, config: Mapping[str, Any], team: "Team") -> None:
        self.config, self.team = config, team
        self.name = config["group"]
        self.incarnation = team.agree(uuid.uuid4().hex)
        self.coordinator = config["coordinator"]
        self.store = StageStore(StudyFolder(config["location"], config["pauses"]))
        self.library = StageLibrary(config["stages"], self.store) if config["stages"] else None
        self.node = platform.node()
        self.device = ""
        """The kind of device that trains here."""
        self.place = ray.get_runtime_context().get_node_id()
        self.after = ""
        self.key = ""
        self._inputs = Inputs(config, self.store)
        self._saver = Saver()
        self._saving: tuple[str, ...] = ()
        """Stages that are being put on storage, in the order in which they were trained."""
        self._speaking = threading.Lock()
        """Held while a call is sent, so that what it says of the stages is not outdated when it arrives."""
        self._shape: tuple[str, str, int] | None = None
        """Architecture and image size of the last stage."""
        self._lacked_memory = False
        self._closed = threading.Event()
        reserved = ray.util.get_current_placement_group()
        self.placement_group = reserved.id.hex() if reserved else ""
        if team.leads:
            threading.Thread(target=self._send_heartbeats, daemon=True).start()
            if self.library:
                threading.Thread(target=self._beat_claims, args=(self.library,), daemon=True).start()

    def close(self) -> None:
        """Put on storage what is trained, then fall silent."""
        self._saver.finish()
        if self.library:
            self.library.offer_owed()
        self._closed.set()

    def greet(self) -> bool:
        """Tell the coordinator what this worker finds where it runs. Returns whether the whole team may work."""
        found = self._probe()
        self.device = found.device
        refused = self._call("greet", self.team.rank, found)
        if refused:
            log.error("Worker %d of group %s on %s ends: %s", self.team.rank, self.name, self.node, refused)
        if not self.team.none(bool(refused)):
            self.close()
            return False
        return True

    def _probe(self) -> Probe:
        config = self.config
        return probe(self.place, config["sample"], config["data"], gpus=config["gpus_per_worker"], train=True)

    def work(self) -> bool:
        """Ask for a stage and run it. Returns False when there is no more work."""
        work = self.team.agree(self._ask() if self.team.leads else None)
        if isinstance(work, Work):
            self._run(work)
        elif work == GREET:
            return self.greet()
        elif work == STOP:
            self.close()
            if self.team.leads:
                self._call("gone")
            return False
        return True

    # -- conversation ----------------------------------------------------------------------------------------------

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the coordinator in the name of this group."""
        return ray.get(self._send(method, *arguments))

    def _send(self, method: str, *arguments: Any) -> Any:
        return getattr(self.coordinator, method).remote(self.name, self.incarnation, *arguments)

    def _tell(self, method: str, *arguments: Any) -> Any:
        """Call a method that also wants to know which stages are being saved."""
        with self._speaking:
            sent = self._send(method, *arguments, self._saving)
        return ray.get(sent)

    def _ask(self) -> Work | str:
        self._saver.check()
        return self._tell("next_stage", self.node, self.team.size, self.after, self.placement_group)

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            try:
                self._tell("heartbeat", self.key, self.team.size, self.node, self.placement_group)
            except ray.exceptions.RayError as error:
                log.warning("The coordinator does not answer: %s", error)

    def _beat_claims(self, library: StageLibrary) -> None:
        """In a thread of its own: it waits for the shared store where that is slow, and a group that sends no heartbeat
        counts as dead."""
        while not self._closed.wait(BEAT_SECONDS):
            library.beat()

    # -- one stage -------------------------------------------------------------------------------------------------

    def _run(self, work: Work) -> None:
        """Run a stage and report how it ended. Raises where only a restart of the whole group helps: after an error on
        one worker the others wait for it in a collective call."""
        if self._lacked_memory:
            from kdtvit_ray.learning.numeric import empty_caches

            empty_caches(after_error=True)  # the error and what it held are gone by now
        self._lacked_memory = False
        key = self.key = work.key
        try:
            found = self._obtain(work)
        except Deferred as deferred:
            self._say("deferred", key, deferred.claim)
        except (StageFailed, UserError) as error:
            log.warning("Stage %s failed: %s", key, error)
            kind = MEMORY if isinstance(error, OutOfMemory) else NODE if isinstance(error, NodeFault) else STAGE
            self._lacked_memory = kind == MEMORY
            fault = Fault(kind, self.place, str(error))
            if not self.team.alone and isinstance(error, OutOfMemory | UserError):
                self._call("faulted", key, fault)
                raise
            self._say("faulted", key, fault)  # every worker has seen the non-finite loss
        except DamagedStage as error:
            self._call("damaged", key, error.key, error.reason)
            if not self.team.alone:
                raise
        except StorageLost as error:
            ray.get(self.coordinator.lost_storage.remote(str(error)))
            if not self.team.alone:
                raise
            self._say("abandoned", key)
        except (ray.exceptions.RayError, NotSaved):
            raise  # the coordinator is gone; it was told what could not be saved
        except Exception as error:
            log.error("Stage %s failed:\n%s", key, traceback.format_exc())
            fault = self._fault(error)
            if not self.team.alone or of_the_device(error):
                self._call("worker_dies", fault)
                raise
            self._say("faulted", key, fault)
        else:
            if found is None:
                self._say("abandoned", key)
            elif isinstance(found, StageSummary):
                self._say("finished", key, found)
                self.after = key
            else:
                self._save(key, found)
                self.after = key
        finally:
            self.key = ""

    def _fault(self, error: Exception) -> Fault:
        """An error that nobody has expected."""
        kind = NODE if of_the_node(error) else UNKNOWN
        return Fault(kind, self.place, f"{type(error).__name__}: {first_line(error)}")

    def _say(self, method: str, *arguments: Any) -> None:
        """Report what all workers of the group know. Only the leading worker calls the coordinator."""
        if self.team.leads:
            self._call(method, *arguments)

    def _save(self, key: str, put: Callable[[], StageSummary]) -> None:
        """Put a trained stage on storage, beside what comes next, and tell when it is there."""
        if not self.team.leads:
            return

        def job() -> None:
            try:
                summary = put()
                with self._speaking:
                    self._saving = tuple(each for each in self._saving if each != key)
                    told = self._send("finished", key, summary)
                if self.library:  # the study needs only its own
                    self.library.offer(key)
            except StorageLost as error:
                ray.get(self.coordinator.lost_storage.remote(str(error)))
                return
            except Exception as error:
                log.error("Stage %s was not saved:\n%s", key, traceback.format_exc())
                self._call("worker_dies", self._fault(error))
                raise
            finally:
                if self.library:
                    self.library.release(key)
            ray.get(told)

        with self._speaking:
            self._saving = (*self._saving, key)
        self._saver.put(job)

    def _obtain(self, work: Work) -> StageSummary | Callable[[], StageSummary] | None:
        """The stage's summary, from storage or from the store that studies share, else what `_train` gives. Raises
        `Deferred` where another study trains it."""
        library = self.library
        stored = self.team.agree(self._stored(work) if self.team.leads else None)
        if stored:  # a group that seemed dead has finished it
            return stored
        if library is None:
            return self._train(work)
        if summary := self._taken_over(library, work):
            return summary
        standing = self.team.agree(library.claim(work.key, work.seize) if self.team.leads else None)
        if standing:
            raise Deferred(standing)
        put = None
        try:
            summary = self._taken_over(library, work)  # who claimed it before may have put it there meanwhile
            if summary is None:
                put = self._train(work)
        finally:
            if put is None and self.team.leads:
                library.release(work.key)
        return summary or put

    def _taken_over(self, library: StageLibrary, work: Work) -> StageSummary | None:
        """The summary of a stage that another study has trained, which is in the study's own folder by now."""
        taken = None
        if self.team.leads and not work.again:
            taken = library.take_over(work.key, "" if self.config["mix_devices"] else self.device)
        summary = self.team.agree(taken.summary() if taken else None)
        if summary:
            self._say("taken_over", work.key)
        return summary

    def _train(self, work: Work) -> Callable[[], StageSummary] | None:
        """Train and evaluate one stage. Returns what puts it on storage and gives its summary, for the worker that
        leads to call; None when told to stop."""
        from kdtvit_ray.learning.numeric import reserved_device
        from kdtvit_ray.learning.stage import train_stage
        from kdtvit_ray.learning.teacher import Parent
        from kdtvit_ray.study.stage_results import stage_results

        started = time.time()
        data = self._inputs.data(work.spec)
        parent = Parent(work.parent, self._inputs.state(work.parent.key)) if work.parent else None
        checkpoint = EpochCheckpoint(self.store.folder, work.key, self.config["checkpoint_seconds"])
        spec = self._inputs.located(work.spec)
        self._make_room(spec)
        result = train_stage(
            spec,
            data,
            parent,
            device=reserved_device(self.config["gpus_per_worker"]),
            checkpoint=checkpoint,
            on_epoch=self._on_epoch,
            outputs=self._outputs,
            models=self._models,
            team=self.team,
        )
        if result is None:
            return None
        self._inputs.keep(work.key, result.state)
        finished = time.time()

        def put() -> StageSummary:
            record, predictions = stage_results(spec, result, data)
            record = replace(
                record,
                group=self.name,
                host=self.node,
                workers=self.team.size,
                started=started,
                finished=finished,
                study=self.config["study"],
            )
            self.store.save(record, result.state, predictions)
            checkpoint.clear()
            return record.summary()

        return put

    def _make_room(self, spec: StageSpec) -> None:
        """Keep to this worker's share of a GPU, and give back what a model of another shape has left there."""
        from kdtvit_ray.learning.numeric import cap_memory, empty_caches, reserved_device

        share = float(self.config["gpus_per_worker"])
        shape = spec.model.name, str(spec.model.args), spec.model.image_size
        if share and self._shape is None:
            cap_memory(share, reserved_device(share))
        elif share and shape != self._shape:
            empty_caches()
        self._shape = shape

    def _stored(self, work: Work) -> StageSummary | None:
        """The summary of a stage that is on storage and can be read."""
        if work.again or not self.store.has(work.key):
            return None
        try:
            return self.store.verified(work.key).summary()
        except DamagedStage:
            return None

    def _on_epoch(self, progress: Any) -> bool:
        """Whether to go on with the stage. The leading worker asks the coordinator, and its answer counts."""
        if not self.team.leads:
            return True
        self._saver.check()
        return bool(self._tell("progress", self.key, progress.epoch, progress.epochs))

    @cached_property
    def _outputs(self) -> Any:
        from kdtvit_ray.learning.outputs import StoredOutputs

        return StoredOutputs()

    @cached_property
    def _models(self) -> Any:
        from kdtvit_ray.learning.warm import WarmModels

        return WarmModels()
