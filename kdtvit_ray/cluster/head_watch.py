"""Watches whether Ray's head answers. At its start Ray needs minutes to report a head that is not there, and later it
ends a process that has lost its head without a message."""

import socket
import threading
import time
from collections.abc import Callable

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0
"""Seconds without an answer after which the head counts as lost. A head that is restarted sooner is not lost. Ray
itself gives up after 60 s."""


def reach(address: str, timeout: float = 10.0) -> None:
    """Connect to HOST:PORT once. Raises `OSError` where nothing answers, and `ValueError` for another form."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "://" in host:
        raise ValueError("it is not of the form HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()


def watch_head(
    address: str,
    closing: threading.Event,
    lost: Callable[[str], None],
    silence: float = SILENCE_SECONDS,
    beat: float = BEAT_SECONDS,
) -> None:
    """Check until `closing` is set that something answers at `address` (HOST:PORT). Calls `lost` with a sentence, once,
    when nothing has answered for `silence` seconds. Blocks, so it needs a thread of its own."""
    answered = time.monotonic()
    while not closing.wait(beat):
        try:
            reach(address, timeout=beat)
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered >= silence and not closing.is_set():
                lost(f"Ray's head at {address} has not answered for {silence:.0f} s")
                return
