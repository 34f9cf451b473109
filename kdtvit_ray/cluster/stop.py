"""Whether a study has to stop before its end, and why. The driver, its threads and the search share one `Stop`."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """`reason` is a sentence that says why the study cannot go on; the first one stays, and `final` says whether the
    same command would not either. `interrupts` counts Ctrl-C."""

    def __init__(self) -> None:
        self.reason = ""
        self.final = False
        self.interrupts = 0

    @property
    def wished(self) -> bool:
        """Whether no more trials and stages should begin."""
        return bool(self.reason or self.interrupts)

    def because(self, reason: str, final: bool = False) -> None:
        """The study cannot go on."""
        if not self.reason:
            self.reason, self.final = reason, final

    @contextmanager
    def on_signals(self, first: Callable[[], bool]) -> Iterator[None]:
        """Count SIGINT and SIGTERM. The first one calls `first`, which returns whether the study will stop by itself.
        Where it will not, and at every later one, `KeyboardInterrupt` is raised."""

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
