"""The driver of a study: starts Ray, the coordinator, the worker groups and the trials, and shows how it goes.

Everything that must outlive it lies in the study's folder, so it may be killed at any moment.
"""

import json
import logging
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from kdtvit_ray.cluster.environment import RAY_ENVIRONMENT
from kdtvit_ray.cluster.groups import Groups
from kdtvit_ray.cluster.head_watch import reach, watch_head
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.console import progress_lines, quiet, status_view, waiting_line
from kdtvit_ray.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_TRIALS_FAILED, EXIT_USER_ERROR, UserError, first_line
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.study.binding import Bound, write_study
from kdtvit_ray.study.importance import write_importance
from kdtvit_ray.study.ledger import Ask, Ledger
from kdtvit_ray.study.lock import StudyLock

TRIAL_CPU = 0.001
STATUS_SECONDS = 1.0
PLAIN_SECONDS = 10.0
"""Least time between two reports where the output is not a terminal."""
WAITING_SECONDS = 30.0
"""How long worker groups wait for resources before that is reported there."""
log = logging.getLogger(__name__)


def sweep(bound: Bound, options: Options, console: Console, confirm: Sequence[Ask] = ()) -> int:
    """Run a study to its end, or on from where it was; where `confirm` lists replicates, run those instead.

    Returns the exit code; raises `UserError`.
    """
    folder = StudyFolder(options.out)
    try:
        return _sweep(folder, bound, options, console, confirm)
    except BrokenPipeError:
        raise  # nobody reads what is printed; storage is well
    except OSError as error:
        raise UserError(f"The storage of the study '{folder.shown}' fails: {first_line(error)}") from error


def _sweep(folder: StudyFolder, bound: Bound, options: Options, console: Console, confirm: Sequence[Ask]) -> int:
    if folder.local is not None:
        _make(folder)
    lock = StudyLock(folder)
    lock.acquire(options.takeover)
    try:
        write_study(folder, bound, replicates=bool(confirm))
        ledger = Ledger(StudyFolder(options.out, options.pauses), bound.space, confirm)
        if ledger.finished():
            console.print(f"The study {folder.shown} is finished: {len(ledger.records)} trials.")
            code = EXIT_OK
        else:
            code = _Driver(folder, bound, ledger, options, lock).run(console)
        ledger.compact()
        if not confirm:
            write_importance(folder, ledger)
    finally:
        lock.release()
    failed = sum(each.failed for each in ledger.counts().values())
    return code if code != EXIT_OK or not failed else EXIT_TRIALS_FAILED


def _make(folder: StudyFolder) -> None:
    assert folder.local is not None
    try:
        folder.local.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the study's folder '{folder.shown}': {error.strerror}") from None


@dataclass
class _Driver:
    folder: StudyFolder
    bound: Bound
    ledger: Ledger
    options: Options
    lock: StudyLock
    interrupts: int = 0
    searcher: Any = None
    coordinator: Any = None
    groups: Groups | None = None
    fatal: str = ""
    view: Live | None = None
    last_status: dict[str, Any] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)

    def run(self, console: Console) -> int:
        self.started = time.monotonic()
        self.ended_before = len(self.ledger.records)
        local = self.folder.local or Path.home() / ".cache" / "kdtvit_ray"
        self.log = local / (self.folder.log if self.folder.local else f"{self.ledger.name}-{self.folder.log}")
        console.print(f"Study {self.folder.shown}: log in {self.log}")
        complete = False
        # before Ray is imported
        os.environ.update({name: os.environ.get(name, value) for name, value in RAY_ENVIRONMENT.items()})
        with quiet(self.log) as terminal, self._signals(terminal):
            try:
                self._publish(self._status("running"))  # what an earlier session left there is no news
                self._start_ray()
                self._run_trials(terminal)
                complete = not self.interrupts and not self.fatal
            except KeyboardInterrupt:
                self.interrupts = 2
            except Exception:
                if not self.fatal:
                    raise
                log.exception("What went wrong after the study had to stop")
            finally:
                self._stop_ray()
                try:
                    self._publish(self._status("finished" if complete else "stopped"))
                except OSError as error:
                    log.warning("No last status: %s", error)
        if self.fatal:
            raise UserError(self.fatal)
        if self.interrupts:
            console.print("Stopped. The same command goes on from here.")
            return EXIT_INTERRUPTED
        return EXIT_OK

    # -- Ray ---------------------------------------------------------------------------------------------------------

    def _start_ray(self) -> None:
        import ray

        from kdtvit_ray.cluster.coordinator import start_coordinator

        self._connect()
        self.coordinator = start_coordinator(
            self.folder.location, self.bound.space, silence=self.options.silence, pauses=self.options.pauses
        )
        ray.get(self.coordinator.process.remote())
        self.groups = Groups(self.ledger.folder, self.bound, self.options, self.coordinator, self.ledger.in_flight)

    def _connect(self) -> None:
        """Join the cluster at the address, or start Ray on this machine: a busy one may take a second attempt."""
        import ray

        runtime = {"env_vars": dict(RAY_ENVIRONMENT)}
        where = {"address": self.options.address or "local", "log_to_driver": True, "runtime_env": runtime}
        if not self.options.address:
            where["include_dashboard"] = False
        for attempt in (1, 2):
            try:
                if self.options.address not in ("", "auto"):
                    reach(self.options.address)
                ray.init(**where)
                return
            except Exception as error:  # Ray raises bare Exceptions here
                ray.shutdown()
                log.warning("Ray did not start: %s", error)
                if attempt == 2 or self.options.address:
                    what = f"reach the Ray cluster at '{self.options.address}'" if self.options.address else "start Ray"
                    raise UserError(f"Cannot {what}: {first_line(error)}; the log is {self.log}") from None

    def _stop_ray(self) -> None:
        import ray

        self.closing.set()
        if ray.is_initialized():
            if self.interrupts < 2 and self.groups is not None:
                self.coordinator.drain.remote()
                self.groups.wait(300.0 if self.interrupts else 10.0)
            ray.shutdown()

    def _run_trials(self, terminal: Console) -> None:
        import ray

        from kdtvit_ray.cluster.tuner import LedgerSearcher, run_trials

        self.searcher = LedgerSearcher(self.ledger, self.coordinator)
        assert self.groups is not None
        self.groups.start()
        watcher = threading.Thread(target=self._watch, args=(terminal,), daemon=True)
        watcher.start()
        head = ray.get_runtime_context().gcs_address
        lost = partial(self._lost_head, terminal)
        threading.Thread(target=watch_head, args=(head, self.closing, lost), daemon=True).start()
        try:
            run_trials(
                self.folder, self.searcher, self.coordinator,
                pruner=self.bound.space.study["pruner"], session=time.strftime("session-%Y%m%d-%H%M%S"),
                trial_cpu=TRIAL_CPU,
            )  # fmt: skip
        finally:
            self.closing.set()
            watcher.join(timeout=10)
            self.fatal = self.fatal or self.searcher.fatal

    # -- what the user sees and does -----------------------------------------------------------------------------------

    def _watch(self, terminal: Console) -> None:
        import ray

        shown = _Shown(terminal)
        self.view = shown.view
        while True:
            last = self.closing.wait(STATUS_SECONDS)
            try:
                if not last:
                    self._tend_groups()
                if self.interrupts or self.fatal:
                    self.coordinator.drain.remote()  # again: the coordinator may have been restarted meanwhile
                status = self._status("running")
                if status["fatal"] and not self.fatal:
                    self.fatal = status["fatal"]
                    self._drain()
                if self.lock.lost.is_set() and not self.fatal:
                    self.fatal = f"The study '{self.folder.shown}' has been taken over by another process"
                    self._drain()
                self._publish(status)
            except (ray.exceptions.RayError, OSError) as error:
                log.warning("No status just now: %s", error)
            else:
                shown.show(status, len(self.ledger.records), last)
            if last:
                shown.close()
                return

    def _tend_groups(self) -> None:
        assert self.groups is not None
        reason = self.groups.tend(more=not (self.closing.is_set() or self.interrupts or self.fatal))
        if reason and not self.fatal:
            self.fatal = f"{reason}; the log is {self.log}"
            self._drain()

    def _status(self, state: str) -> dict[str, Any]:
        import ray

        snapshot: dict[str, Any] = {"stages": {}, "groups": [], "trained": 0, "fatal": "", "asked": 0}
        if ray.is_initialized():
            snapshot = ray.get(self.coordinator.snapshot.remote(), timeout=30)
            self.trained_now = max(snapshot["trained"], getattr(self, "trained_now", 0))
            if self.groups:
                self.groups.note(snapshot["groups"])
        counts = self.ledger.counts()
        elapsed = time.monotonic() - self.started
        ended = len(self.ledger.records) - self.ended_before
        left = self.ledger.left
        wanted = self.groups.wanted() if self.groups else {}
        stages = {"waiting": 0, "ready": 0, "running": 0, "done": 0, "failed": 0, **snapshot["stages"]}
        return {
            "state": state, "name": self.ledger.name, "metric": self.ledger.metric, "host": platform.node(),
            "pid": os.getpid(), "elapsed": elapsed, "seconds_left": elapsed / ended * left if ended else None,
            "trials": asdict(counts["search"]), "baselines": asdict(counts["baseline"]),
            "replicates": asdict(counts["confirm"]),
            "best": {**asdict(self.ledger.best), "objective": max(self.ledger.best.objective, -1.0)},
            "stages": {**stages, "trained": getattr(self, "trained_now", 0), "shared": self.ledger.shared_uses},
            "groups": snapshot["groups"], "groups_wanted": 0, "group_needs": "", **wanted,
            "log": str(self.log), "fatal": snapshot["fatal"], "version": 1,
        }  # fmt: skip

    def _publish(self, status: dict[str, Any]) -> None:
        self.last_status = status
        now = time.monotonic()
        pause = 0.0 if self.folder.local else 10.0  # object stores charge by the request
        if status["state"] != "running" or now - getattr(self, "published", -1e9) >= pause:
            self.published = now
            self.folder.write(self.folder.status, json.dumps(status, allow_nan=True).encode())

    def _lost_head(self, terminal: Console, reason: str) -> None:
        """End this process: calls of Ray that are under way would not return, and Ray would end it without a word."""
        reason += "; what is finished is kept, the same command goes on as soon as there is a cluster again"
        if self.view:
            self.view.stop()
        terminal.print(f"kdtvit-ray: {reason}", soft_wrap=True)
        terminal.file.flush()
        try:
            self._publish({**self.last_status, "state": "stopped", "groups": [], "fatal": reason})
            self.lock.release()
        finally:
            os._exit(EXIT_USER_ERROR)

    def _drain(self) -> None:
        self.searcher.draining = True
        self.coordinator.drain.remote()

    @contextmanager
    def _signals(self, terminal: Console) -> Iterator[None]:
        """First Ctrl-C: stop at the next epoch. Second: stop at once."""

        def interrupted(number: int, frame: Any) -> None:
            self.interrupts += 1
            if self.interrupts == 1 and self.searcher is not None:
                terminal.print("Stopping at the end of the epoch, all is kept. Ctrl-C again stops at once.")
                threading.Thread(target=self._drain, daemon=True).start()
            else:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Shown:
    """The view on the terminal, or plain lines now and then where the output is none; nothing more once nobody reads
    it, which does not stop a study."""

    def __init__(self, terminal: Console) -> None:
        self.terminal = terminal
        self.view: Live | None = None
        self._said, self._spoken = -1, 0.0
        self._waiting, self._since = "", 0.0
        self._silent = False
        if terminal.is_terminal:
            # what is printed meanwhile is Ray's, and belongs into the log
            self.view = Live(console=terminal, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._safely(self.view.start)

    def show(self, status: dict[str, Any], ended: int, last: bool) -> None:
        if self.view:
            self._safely(partial(self.view.update, status_view(status, self.terminal.width), refresh=True))
            return
        now, waiting = time.monotonic(), waiting_line(status)
        if waiting != self._waiting:
            self._waiting, self._since = waiting, now
        news = ended != self._said and (last or self._said < 0 or now - self._spoken >= PLAIN_SECONDS)
        stuck = bool(waiting) and now - self._since >= WAITING_SECONDS
        if news or stuck:
            self._said, self._spoken = ended, now
            lines = progress_lines(status) + [waiting] * stuck
            self._safely(partial(self.terminal.print, "\n".join(lines), soft_wrap=True))
        if stuck:
            self._since = math.inf  # said once

    def close(self) -> None:
        if self.view:
            self._safely(self.view.stop)

    def _safely(self, action: Callable[[], Any]) -> None:
        if not self._silent:
            try:
                action()
            except OSError as error:
                self._silent = True
                log.warning("Nobody reads what is printed: %s", error)
