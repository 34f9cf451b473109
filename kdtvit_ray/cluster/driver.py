"""The driver of a study: starts Ray, the coordinator, the worker groups and the trials, and shows how it goes.

Everything that must outlive it lies in the study's folder, so it may be killed at any moment.
"""

import logging
import math
import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rich.console import Console

from kdtvit_ray.cluster.connection import connect
from kdtvit_ray.cluster.environment import set_environment
from kdtvit_ray.cluster.groups import Groups
from kdtvit_ray.cluster.head_watch import watch_head
from kdtvit_ray.cluster.live_view import LiveView
from kdtvit_ray.cluster.messages import Snapshot
from kdtvit_ray.cluster.nodes import Nodes, ended_by_ray
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.cluster.precision import in_its_dtype
from kdtvit_ray.cluster.probe import expected
from kdtvit_ray.cluster.stop import Stop
from kdtvit_ray.cluster.targets import check_target, kept_device, log_of
from kdtvit_ray.cluster.totals import Total
from kdtvit_ray.cluster.tracking import publish_meanwhile
from kdtvit_ray.console import ended_words, quiet
from kdtvit_ray.errors import EXIT_AWAY, EXIT_INTERRUPTED, EXIT_OK, EXIT_TRIALS_FAILED, Away, UserError, first_line
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.sessions import Session
from kdtvit_ray.results.study_status import Status
from kdtvit_ray.study.asks import Ask
from kdtvit_ray.study.binding import Bound, as_begun, write_study
from kdtvit_ray.study.importance import write_importance
from kdtvit_ray.study.ledger import Ledger
from kdtvit_ray.study.ledger_status import status_of, write_finished
from kdtvit_ray.study.lock import StudyLock
from kdtvit_ray.study.mending import mend_rows
from kdtvit_ray.study.retries import Retried
from kdtvit_ray.study.stage_results import versions

STATUS_SECONDS = 1.0
GOES_ON = "the same command goes on from here"
log = logging.getLogger(__name__)


def sweep(bound: Bound, options: Options, console: Console, confirm: Sequence[Ask] = ()) -> int:
    """Run a study to its end, starting from where an earlier run stopped. If `confirm` lists replicates, run those
    instead of the search.

    Returns the exit code; raises `UserError`.
    """
    folder = StudyFolder(options.out)
    try:
        return _sweep(folder, bound, options, console, confirm)
    except BrokenPipeError:
        raise  # the reader of the output is gone; storage works
    except OSError as error:
        from ray.exceptions import GetTimeoutError

        if isinstance(error, GetTimeoutError):  # which is a TimeoutError, and so an OSError
            where = log_of(folder, bound.space.study["name"])
            raise Away(f"Ray does not answer ({first_line(error)}); the log is {where}; {GOES_ON}") from error
        raise Away(f"The storage of the study '{folder.shown}' fails: {first_line(error)}") from error


def _sweep(folder: StudyFolder, bound: Bound, options: Options, console: Console, confirm: Sequence[Ask]) -> int:
    folder.make("the study's folder")
    check_target(folder)
    if options.stages:
        StudyFolder(options.stages).make("the store of stages")
    lock = StudyLock(folder)
    lock.acquire(options.takeover)
    try:
        bound = in_its_dtype(bound, folder, options, log_of(folder, bound.space.study["name"]), console)
        bound = as_begun(bound, folder)
        write_study(folder, bound, replicates=bool(confirm))
        storage = StudyFolder(options.out, options.pauses)
        retried = Retried(options.retry_failed, frozenset(options.retry))
        ledger = Ledger(storage, bound.space, confirm, bound.magnifications if bound.space.parts else (), retried)
        if note := retried.note(ledger.records):
            console.print(note, soft_wrap=True)
        if ledger.finished():
            console.print(f"The study {folder.shown} is finished: {ended_words(ledger.counts())}.", soft_wrap=True)
            write_finished(ledger, bool(confirm), log_of(folder, ledger.name))
            code = EXIT_OK
        else:
            code = _Driver(folder, bound, ledger, options, lock).run(console)
        if not confirm and code == EXIT_OK:
            for told in mend_rows(ledger):
                console.print(told, soft_wrap=True)
        ledger.compact()
        if not confirm:
            write_importance(folder, ledger)
    finally:
        lock.release()
    failed = sum(each.failed for each in ledger.counts().values())
    return code if code != EXIT_OK or not failed else EXIT_TRIALS_FAILED


@dataclass
class _Driver:
    folder: StudyFolder
    bound: Bound
    ledger: Ledger
    options: Options
    lock: StudyLock
    stop: Stop = field(default_factory=Stop)
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the driver's threads have to end."""
    searcher: Any = None
    coordinator: Any = None
    groups: Groups | None = None
    nodes: Nodes | None = None
    view: LiveView | None = None
    status: Status = field(default_factory=Status)
    """The newest status."""
    written: float = -math.inf
    """Time of its last write, by the monotonic clock."""
    without: float = math.inf
    """Since when no node works, by the monotonic clock."""
    began: float = math.inf
    """When the first stage ran, by the monotonic clock: what Ray took to start is no measure of the time left."""
    taken_over: Total = field(default_factory=Total)
    """Number of stages taken over from other studies in this session."""
    trained: Total = field(default_factory=Total)
    """Number of stages trained in this session."""

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.session = Session(time.strftime("session-%Y%m%d-%H%M%S"), platform.node(), versions())
        self.ended_before = self.ledger.ended_chains
        self.log = log_of(self.folder, self.ledger.name)

    def run(self, console: Console) -> int:
        console.print(f"Study {self.folder.shown}: log in {self.log}", soft_wrap=True)
        complete = False
        set_environment()
        with quiet(self.log) as terminal, self.stop.on_signals(partial(self._interrupted, terminal)):
            try:
                self._write(self._status("running"))  # replaces the status of an earlier session
                self.session.write(self.ledger.folder)
                self._start_ray(terminal)
                self._run_trials(terminal)
                complete = not self.stop.wished
                if complete:
                    self.ledger.folder.delete(self.folder.checkpoints)  # of stages that nobody wanted in the end
            except KeyboardInterrupt:
                self.stop.interrupts = 2
            except Exception as error:
                if told := ended_by_ray(error):
                    self.stop.because(
                        f"Ray ended trials on {platform.node()}: {told}; the log is {self.log}; {GOES_ON}"
                    )
                if not self.stop.reason:
                    raise
                log.exception("What went wrong after the study had to stop")
            finally:
                self._stop_ray()
                try:
                    self._write(self._status("finished" if complete else "stopped"))
                except OSError as error:
                    log.warning("No last status: %s", error)
        if self.stop.reason:
            raise UserError(self.stop.reason) if self.stop.final else Away(self.stop.reason)
        if self.stop.interrupts:
            console.print("Stopped. The same command goes on from here.")
            return EXIT_INTERRUPTED
        return EXIT_OK

    # -- Ray ---------------------------------------------------------------------------------------------------------

    def _start_ray(self, terminal: Console) -> None:
        from kdtvit_ray.cluster.actor import first_answer, start_coordinator

        mix = self.bound.space.study["mix_devices"]
        wanted = expected(self.bound.space.plan({})[0], mix, "" if mix else kept_device(self.ledger.store))
        connect(self.options.address, self.log)
        self.nodes = Nodes(wanted, self.bound.data["path"], self.options.address)
        self.nodes.look()
        self.coordinator = start_coordinator(
            self.folder.location,
            self.ledger.metric,
            silence=self.options.silence,
            pauses=self.options.pauses,
            expected=wanted,
            more=bool(self.options.address),
        )
        unfit = first_answer(self.coordinator, terminal, self.log, self.options.node_wait)
        if unfit:
            raise UserError(
                f"Ray on {platform.node()} runs in another environment than this command: {unfit}; start Ray there "
                "from the environment of this command"
            )
        self.nodes.settle()
        self.groups = Groups(
            self.ledger.folder, self.bound, self.options, self.coordinator, self.ledger.in_flight, self.nodes
        )

    def _stop_ray(self) -> None:
        import ray

        self.closing.set()
        if not ray.is_initialized():
            return
        try:
            if self.stop.interrupts < 2 and self.groups is not None:
                self.coordinator.drain.remote()
                # who interrupts was told that epochs are ended, however long they take
                self.groups.wait(math.inf if self.stop.interrupts else 10.0)
        except KeyboardInterrupt:
            log.warning("The worker groups were not waited for: interrupted again")
        except ray.exceptions.RayError as error:
            log.warning("The worker groups were not waited for: %s", error)
        finally:
            ray.shutdown()

    def _run_trials(self, terminal: Console) -> None:
        import ray

        from kdtvit_ray.cluster.tuner import LedgerSearcher, run_trials

        groups = self.groups
        assert groups is not None
        self.searcher = LedgerSearcher(self.ledger, self.coordinator, self.stop, lambda: groups.started)
        groups.start()
        watcher = threading.Thread(target=self._watch, args=(terminal,), daemon=True)
        watcher.start()
        head = ray.get_runtime_context().gcs_address
        lost = partial(self._lost_head, terminal)
        threading.Thread(target=watch_head, args=(head, self.closing, lost), daemon=True).start()
        told = (self.folder.location, self.bound.space.study["track"], self.log, self.closing)
        publisher = threading.Thread(target=publish_meanwhile, args=told, daemon=True)
        publisher.start()
        try:
            run_trials(
                self.folder,
                self.searcher,
                self.coordinator,
                pruner=self.bound.space.study["pruner"],
                session=self.session.name,
            )
        finally:
            self.closing.set()
            watcher.join(timeout=10)
            publisher.join(timeout=20)

    # -- what the user sees and does -----------------------------------------------------------------------------------

    def _watch(self, terminal: Console) -> None:
        """Each second: start missing groups, tell the coordinator what the study wants, show and write the status."""
        import ray

        self.view = LiveView(terminal)
        while True:
            last = self.closing.wait(STATUS_SECONDS)
            try:
                if not last:
                    self._tend_nodes()
                    self._tend_groups()
                if self.lock.lost.is_set():
                    self.stop.because(f"The study '{self.folder.shown}' has been taken over by another process", True)
                if self.stop.wished:
                    self.coordinator.drain.remote()  # each time: the coordinator may have been restarted meanwhile
                status = self._status("running")
                self._write(status)
                self.view.show(status, len(self.ledger.records), last)
            except (ray.exceptions.RayError, OSError) as error:
                log.warning("No status just now: %s", error)
            except Exception:  # a study that nobody tends would run for ever
                log.exception("Something went wrong while the study was tended")
            if last:
                self.view.close()
                return

    def _tend_nodes(self) -> None:
        """See which nodes live and work, and tell the coordinator. Stops the study where none works."""
        assert self.nodes is not None
        assert self.groups is not None
        self.nodes.look()
        starting = self.groups.started > len(self.status.groups)
        to_come = self.nodes.able(self.groups.gpus) if starting else set()
        self.coordinator.nodes.remote(self.nodes.living, self.nodes.aside, to_come)
        now = time.monotonic()
        self.without = min(self.without, now) if self.nodes.none_works else math.inf
        if now - self.without >= (self.options.node_wait if self.options.address else 0.0):
            told = "; ".join(self.nodes.told_aside())
            self.stop.because(f"No node works: {told}; the log is {self.log}; {GOES_ON}")

    def _tend_groups(self) -> None:
        assert self.groups is not None
        reason = self.groups.tend(more=not (self.closing.is_set() or self.stop.wished))
        if reason:
            self.stop.because(f"{reason}; the log is {self.log}")

    def _status(self, state: str) -> Status:
        import ray

        snapshot = Snapshot()
        if ray.is_initialized():
            snapshot = ray.get(self.coordinator.snapshot.remote(), timeout=30)
            self.trained.add(snapshot.trained)
            self.taken_over.add(snapshot.taken_over)
            if self.groups:
                self.groups.note(snapshot.groups)
            if self.nodes:
                self.nodes.set_aside(snapshot.aside)
                self._note_session(self.nodes, snapshot.differences)
            if self.searcher:
                self.searcher.join_missing(snapshot.trials)
                self.searcher.elsewhere = snapshot.stages.get("elsewhere", 0)
            if snapshot.lost_storage:
                self.stop.because(snapshot.lost_storage)
        now = time.monotonic()
        elapsed = now - self.started
        if snapshot.stages.get("running"):
            self.began = min(self.began, now)
        spent = now - self.began if self.began < now else elapsed
        ended = self.ledger.ended_chains - self.ended_before
        wanted, needs = self.groups.wanted() if self.groups else (0, "")
        known = status_of(self.ledger)
        return replace(
            known,
            state=state,
            elapsed=elapsed,
            seconds_left=spent / ended * self.ledger.left if ended else None,
            stages=replace(
                known.stages, **snapshot.stages, trained=self.trained.value, taken_over=self.taken_over.value
            ),
            groups=snapshot.groups,
            groups_wanted=wanted,
            group_needs=needs,
            idle_note=self.groups.idle_note if self.groups else "",
            aside=self.nodes.told_aside() if self.nodes else (),
            dying=snapshot.dying,
            log=str(self.log),
            fatal=self.stop.reason,
        )

    def _note_session(self, nodes: Nodes, differences: Sequence[str]) -> None:
        """Keep what the report says of the machines."""
        differ = {f"{host} has {each}" for host, each in nodes.differing.items()} | set(differences)
        now = replace(self.session, aside=nodes.told_aside(), differences=tuple(sorted(differ)))
        if now != self.session:
            self.session = now
            now.write(self.ledger.folder)

    def _write(self, status: Status) -> None:
        self.status = status
        now = time.monotonic()
        pause = 0.0 if self.folder.local else 10.0  # object stores charge by the request
        if status.state != "running" or now - self.written >= pause:
            self.written = now
            status.write(self.folder)

    def _lost_head(self, terminal: Console, reason: str) -> None:
        """End this process. Calls of Ray that are under way would never return, and Ray itself would end the process
        without a message."""
        reason += "; what is finished is kept, the same command goes on as soon as there is a cluster again"
        if self.view:
            self.view.close()
        terminal.print(f"kdtvit-ray: {reason}", soft_wrap=True)
        terminal.file.flush()
        try:
            self._write(replace(self.status, state="stopped", groups=(), fatal=reason))
            self.lock.release()
        finally:
            os._exit(EXIT_AWAY)

    def _interrupted(self, terminal: Console) -> bool:
        """Answer the first Ctrl-C. Returns False where no stage has run yet: there is nothing to wait for."""
        if self.searcher is None or self.began == math.inf:
            return False
        terminal.print("Stopping at the end of the epoch, all is kept. Ctrl-C again stops at once.")
        return True
