"""Whether Ray's head answers: at the start Ray takes minutes to say that it does not, and later it ends a process that
has lost it without a word."""

import socket
import threading
import time
from collections.abc import Callable

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0
"""A head that is restarted in time is none that is lost; Ray itself gives up after 60 s."""


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
    """Until `closing` is set, see that something answers at `address` (HOST:PORT); call `lost` with a sentence when
    nothing has for `silence` seconds. Blocks: for a thread of its own."""
    answered = time.monotonic()
    while not closing.wait(beat):
        try:
            reach(address, timeout=beat)
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered >= silence and not closing.is_set():
                lost(f"Ray's head at {address} has not answered for {silence:.0f} s")
                return
