"""Waiting for the next change of something, in one event loop."""

import asyncio


class Changes:
    """`wake` says that something has changed; `wait` returns then."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def wake(self) -> None:
        """Let all return that wait now."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, timeout: float) -> None:
        """Wait for a change, at most `timeout` seconds."""
        try:
            await asyncio.wait_for(self._next.wait(), max(timeout, 0.01))
        except TimeoutError:
            return
