"""A clock that moves only when a test says so."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest


def clock_of(module: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Give a module a monotonic clock that stands still; the answer makes so many seconds pass."""
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: clock.now))

    def passes(seconds: float) -> None:
        clock.now += seconds

    return passes
