"""A sweep as it looks in a terminal: the live view, and nothing of Ray's."""

import fcntl
import io
import json
import os
import re
import struct
import subprocess
import sys
import termios

import pytest
from rich.console import Console

from kdtvit_ray.cluster.live_view import LiveView
from kdtvit_ray.results.study_status import Status, TrialCounts
from tests.cluster.real_sweeps import ROOT, STUDY, sweep_log

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


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


def test_a_terminal_shows_the_live_view_and_nothing_of_rays(tmp_path):
    out = tmp_path / "study"
    study = {**STUDY, "trials": 4, "baselines": ["joint"]}
    code, written = in_terminal(
        sys.executable,
        "-m",
        "tests.cluster.noop",
        str(out),
        json.dumps(study),
        json.dumps({"groups": 1}),
        NOOP_SECONDS="0.1",
    )
    assert code == 0, written + sweep_log(out)
    assert "Started training worker group" in (out / "sweep.log").read_text(), "Ray had nothing to say"
    plain = re.sub(r"\x1b\[[0-9;?]*m", "", written)  # colours; what moves the cursor begins another line
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", plain)
    shown = {line.strip() for line in plain.replace("\r", "").splitlines()} - {""}
    ours = {"Study", "noop", "trials", "stages", "best", "40X", "groups", "group", "time", "log"}
    path = str(out / "sweep.log")
    strange = [line for line in shown if line.split()[0] not in ours and line not in path]
    assert not strange
    assert any("4 of 4 done" in line for line in shown)


WAITING = Status(state="running", trials=TrialCounts(total=4), groups_wanted=2, group_needs="4 x 1 CPU at once")


class Unread:
    """A terminal's console whose other end is gone."""

    is_terminal = False
    tried = 0

    def print(self, *_, **__):
        self.tried += 1
        raise BrokenPipeError


def test_output_that_nobody_reads_any_more_stops_nothing():
    terminal = Unread()
    shown = LiveView(terminal)
    for ended in range(3):
        shown.show(WAITING, ended, last=ended == 2)
    shown.close()
    assert terminal.tried == 1


def test_groups_that_wait_for_long_are_told_without_a_terminal_too(monkeypatch):
    now = 1_000.0
    monkeypatch.setattr("kdtvit_ray.cluster.live_view.time.monotonic", lambda: now)
    out = io.StringIO()
    shown = LiveView(Console(file=out, width=80))
    for second in range(100):
        shown.show(WAITING, 0, last=False)
        assert second >= 30 or "waiting" not in out.getvalue()
        now += 1.0
    assert out.getvalue().count("2 of 2 waiting for 4 x 1 CPU at once") == 1
