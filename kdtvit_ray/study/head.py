"""Whether Ray's head still answers. A process that has lost it is ended by Ray after a minute, without a word."""

import socket
import threading
import time
from collections.abc import Callable

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0
"""A head that is restarted in time is none that is lost; Ray itself gives up after 60 s."""


def watch_head(
    address: str,
    closing: threading.Event,
    lost: Callable[[str], None],
    silence: float = SILENCE_SECONDS,
    beat: float = BEAT_SECONDS,
) -> None:
    """Until `closing` is set, see that something answers at `address` (HOST:PORT); call `lost` with a sentence when
    nothing has for `silence` seconds. Blocks: for a thread of its own."""
    host, _, port = address.rpartition(":")
    answered = time.monotonic()
    while not closing.wait(beat):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=beat).close()
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered >= silence and not closing.is_set():
                lost(f"Ray's head at {address} has not answered for {silence:.0f} s")
                return
