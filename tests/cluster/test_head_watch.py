"""A head that answers, one that is away for a while, and one that is gone."""

import socket
import threading
import time

from kdtvit_ray.cluster.head_watch import watch_head


def watched(address, closing):
    told = []
    thread = threading.Thread(target=watch_head, args=(address, closing, told.append, 0.6, 0.05))
    thread.start()
    return thread, told


def test_a_head_that_stays_away_is_told_once_and_one_that_comes_back_is_not():
    closing = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    thread, told = watched(f"127.0.0.1:{port}", closing)
    time.sleep(0.3)
    server.close()
    time.sleep(0.2)
    server = socket.create_server(("127.0.0.1", port))
    time.sleep(1.0)
    assert told == []
    server.close()
    thread.join(timeout=10)
    assert told == [f"Ray's head at 127.0.0.1:{port} has not answered for 1 s"]


def test_nothing_is_told_of_a_study_that_is_closing():
    closing = threading.Event()
    closing.set()
    thread, told = watched("127.0.0.1:1", closing)
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert told == []
