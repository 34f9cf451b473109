"""A port for a server of a test."""

import socket


def free_port() -> int:
    """A TCP port of this machine that nobody listens on just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
