"""Shows the state of a running sweep: as a live view on a terminal, as plain lines elsewhere."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.live import Live

from kdtvit_ray.console import progress_lines, status_view, waiting_line
from kdtvit_ray.results.study_status import Status

PLAIN_SECONDS = 10.0
"""Least seconds between two plain reports."""
WAITING_SECONDS = 30.0
"""After this many seconds of waiting for resources a plain report says so."""
log = logging.getLogger(__name__)


class LiveView:
    """Shows the status of a sweep. When nobody reads the output any more, the view falls silent and the study goes
    on."""

    def __init__(self, terminal: Console) -> None:
        self.terminal = terminal
        self.view: Live | None = None
        self._said, self._spoken = -1, 0.0
        self._waiting, self._since = "", 0.0
        self._silent = False
        if terminal.is_terminal:
            # other output is Ray's and belongs in the log
            self.view = Live(console=terminal, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._safely(self.view.start)

    def show(self, status: Status, ended: int, last: bool) -> None:
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
            self._since = math.inf  # it is reported once

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
