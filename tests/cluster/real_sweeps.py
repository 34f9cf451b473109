"""Real sweeps in processes of their own, to be disturbed and compared. Stages sleep instead of training.

No wait ends by itself: a busy machine may take long, and what never comes ends with the test's own timeout.
"""

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import ClassVar

import pandas as pd

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_rows, read_trials

STUDY = {"trials": 14, "lag": 4, "seed": 3, "startup": 4}
ROOT = Path(__file__).parents[2]


def until(condition):
    """Wait for it."""
    while not condition():
        time.sleep(0.05)


class Sweep:
    """One sweep in a process of its own, in a session of its own, as from a shell."""

    running: ClassVar[list["Sweep"]] = []

    def __init__(self, out, study=STUDY, *, seconds="0.05", log=None, **options):
        self.out = out
        self.log = Path(log or f"{out}.stages")
        environment = {**os.environ, "NOOP_SECONDS": seconds, "NOOP_LOG": str(self.log), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.cluster.noop",
                str(out),
                json.dumps(study),
                json.dumps({"groups": 2, "checkpoint_seconds": 0.0, **options}),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.running.append(self)

    def wait(self):
        output, _ = self.process.communicate()
        return self.process.returncode, output

    def stages(self):
        return logged(self.log)

    def until_stages(self, count):
        """Wait until that many stages are finished."""

        def enough():
            if len(self.stages()) < count:
                assert self.process.poll() is None, self.process.communicate()[0] + sweep_log(self.out)
            return len(self.stages()) >= count

        until(enough)

    def kill(self):
        others = family(self.process.pid)
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        wait_for_end(others, agents=False)

    @classmethod
    def end_all(cls):
        """Kill the sweeps that have not ended, with all their processes."""
        for sweep in cls.running:
            if sweep.process.poll() is None:
                for pid in [*family(sweep.process.pid), sweep.process.pid]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                sweep.process.communicate()
        cls.running.clear()


def in_terminal(*command, columns=80, lines=24, **environment):
    """(exit code, everything written) of a command whose output is a terminal of that size."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment},
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65_536):
            written += part
    except OSError:  # the terminal's other end is closed
        pass
    os.close(ours)
    return process.wait(), written.decode(errors="replace")


def logged(log):
    """[key, group, worker's pid] of every stage that was finished, in that order, those of killed sweeps included."""
    log = Path(log)
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def sweep_log(out):
    path = Path(out) / "sweep.log"
    return path.read_text()[-3000:] if path.exists() else ""


def processes():
    """{pid: (parent's pid, command)} of all processes that live."""
    found = {}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            fields = (each / "stat").read_text().rpartition(")")[2].split()
            command = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(each.name)] = (int(fields[1]), command)
    return found


def family(pid):
    """{pid: command} of a process's descendants."""
    everyone, found = processes(), {pid: ""}
    while True:
        more = {
            child: command for child, (parent, command) in everyone.items() if parent in found and child not in found
        }
        if not more:
            return {child: command for child, command in found.items() if child != pid}
        found |= more


def wait_for_end(family, agents=True):
    """Wait until the processes have ended. After a SIGKILL of the driver Ray's two agents notice the death of their
    raylet only after a minute; they hold nothing of a study."""

    def left():
        alive = processes()
        return [pid for pid in family if pid in alive and (agents or "Agent" not in alive[pid][1])]

    until(lambda: not left())


def table(out):
    """Rows of a study without what may differ: nothing may, save the times and costs that are not in rows."""
    frame = read_rows(StudyFolder(str(out)))
    text = {name: frame[name].astype(str) for name in ("study", "trial", "key", "trained", "split", "level", "metric")}
    return frame.assign(**text).sort_values(list(frame.columns)).reset_index(drop=True)


def trials(out):
    frame = read_trials(StudyFolder(str(out)))
    return frame.drop(columns=["started", "finished", "cost_seconds"])


def same(out, undisturbed):
    pd.testing.assert_frame_equal(table(out), table(undisturbed))
    pd.testing.assert_frame_equal(trials(out), trials(undisturbed))
