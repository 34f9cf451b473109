"""A head that answers, one that is away for a while, and one that is gone. Time is the test's own."""

import socket

import pytest

from kdtvit_ray.cluster import head_watch
from kdtvit_ray.cluster.head_watch import reach, watch_head


class Time:
    """A clock that a wait moves on, and an event that is set at `end`; the head is away from `away` to `back`."""

    def __init__(self, away, back, end):
        self.away, self.back, self.end = away, back, end
        self.now = 0.0
        self.asked = 0

    def wait(self, seconds):
        self.now += seconds
        return self.is_set()

    def is_set(self):
        return self.now >= self.end

    def monotonic(self):
        return self.now

    def reach(self, address, timeout):
        self.asked += 1
        if self.away <= self.now < self.back:
            raise ConnectionRefusedError


@pytest.fixture
def watched(monkeypatch):
    def watch(away, back, end=1_000.0):
        time, told = Time(away, back, end), []
        monkeypatch.setattr(head_watch.time, "monotonic", time.monotonic)
        monkeypatch.setattr(head_watch, "reach", time.reach)
        watch_head("head:6379", time, told.append)
        return time, told

    return watch


def test_a_head_that_comes_back_within_30_seconds_is_not_lost(watched):
    time, told = watched(100.0, 128.0)
    assert told == []
    assert time.asked == 499, "every two seconds, until the study closes"


def test_a_head_that_stays_away_is_told_once(watched):
    time, told = watched(100.0, 1_000.0)
    assert told == ["Ray's head at head:6379 has not answered for 30 s"]
    assert time.now == 128.0, "30 s after its last answer"


def test_nothing_is_told_of_a_study_that_is_closing(watched):
    assert watched(0.0, 1_000.0, end=0.0)[1] == []


def test_an_address_is_reached_or_the_reason_is_raised():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach(f"127.0.0.1:{port}")
    with pytest.raises(ConnectionRefusedError):
        reach(f"127.0.0.1:{port}")
    for other in ("ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:x"):
        with pytest.raises(ValueError, match="it is not of the form HOST:PORT"):
            reach(other)
