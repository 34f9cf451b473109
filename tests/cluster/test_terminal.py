"""The live view where nobody reads it, or where it is no terminal. `test_faults.py` shows a sweep in a terminal."""

import io

from rich.console import Console

from kdtvit_ray.cluster.live_view import LiveView
from kdtvit_ray.results.study_status import Status, TrialCounts

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
    assert out.getvalue().count("2 of 2 starting, or waiting for 4 x 1 CPU at once") == 1
