"""Whether a study is to stop before its end, and why: one place for the driver, its threads and the search."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """`reason` is why the study cannot go on, in a sentence; the first one stays. `interrupts` counts Ctrl-C."""

    def __init__(self) -> None:
        self.reason = ""
        self.interrupts = 0

    @property
    def wished(self) -> bool:
        """Whether no stage and no trial should be begun any more."""
        return bool(self.reason or self.interrupts)

    def because(self, reason: str) -> None:
        """The study cannot go on."""
        self.reason = self.reason or reason

    @contextmanager
    def on_signals(self, first: Callable[[], bool]) -> Iterator[None]:
        """Count SIGINT and SIGTERM. The first calls `first`, which says whether the study will stop by itself; where it
        will not, and at any later one, `KeyboardInterrupt` is raised."""

        def interrupted(number: int, frame: Any) -> None:
            self.interrupts += 1
            if self.interrupts > 1 or not first():
                raise KeyboardInterrupt

        before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
