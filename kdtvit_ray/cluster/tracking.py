"""Publishing a study while its sweep runs and at its end, in processes of their own: a tracker that hangs, fails or
prints takes nothing from the study but a part of one core."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PAUSE = 60.0
SHARE = 10
"""The pause is at least so many times as long as publishing took."""
AT_END = 600.0
"""Seconds that publishing may take when the sweep has ended."""
LAST = 15.0
"""Seconds that publishing meanwhile may still take when the sweep ends."""


def publish_meanwhile(study: str, trackers: Sequence[str], log: Path, closing: threading.Event) -> None:
    """Publish again and again until `closing` is set. Failures are told in the log: the next time may be better."""
    pause = PAUSE
    while not closing.wait(pause):
        before = time.monotonic()
        for tracker in trackers:
            with suppress(OSError):  # no process can be started just now
                _publish(study, tracker, log, closing)
        pause = max(PAUSE, SHARE * (time.monotonic() - before))


def publish_at_end(study: str, trackers: Sequence[str], log: Path) -> list[str]:
    """Publish, and return a sentence for each tracker on how it went."""
    told = []
    for tracker in trackers:
        try:
            code, sentence = _publish(study, tracker, log, None)
        except OSError as error:
            code, sentence = 1, f"Publishing to {tracker} failed: {error}"
        told.append(sentence if code == 0 else f"{sentence}; details in {log}; 'kdtvit-ray track' tries again")
    return told


def _publish(study: str, tracker: str, log: Path, closing: threading.Event | None) -> tuple[int, str]:
    """The exit code and the last line of a process that publishes. It has ended then, with all that it has started."""
    with log.open("ab") as details, tempfile.TemporaryFile() as told:  # a pipe stays open while any child lives
        process = subprocess.Popen(
            [sys.executable, "-m", "kdtvit_ray.deliver.tracking", study, tracker],
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=details,
            start_new_session=True,  # Ctrl-C ends the sweep, and the sweep ends this
        )
        try:
            code = _wait(process, closing)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # what waits for a disk ends when that answers
                process.wait(timeout=1.0)
        if code is None:
            return 1, f"Publishing to {tracker} took too long and was stopped"
        told.seek(0)
        lines = told.read().decode(errors="replace").strip().splitlines()
    return code, lines[-1] if lines else f"Publishing to {tracker} ended without a word"


def _wait(process: subprocess.Popen[bytes], closing: threading.Event | None) -> int | None:
    """The exit code of a process; None where it takes longer than it may."""
    until = time.monotonic() + AT_END
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.5)
        if closing is not None and closing.is_set():
            until, closing = min(until, time.monotonic() + LAST), None
        if time.monotonic() > until:
            return None
