"""Sums over a session of what the coordinator counts."""


class Total:
    """The `value` of a count that begins at zero again when who counts is restarted."""

    def __init__(self) -> None:
        self.value = 0
        self._last = 0

    def add(self, now: int) -> None:
        """The count is at `now`."""
        self.value += now - self._last if now >= self._last else now
        self._last = now
