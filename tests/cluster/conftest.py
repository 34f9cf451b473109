"""Sweeps that a test leaves running, because it failed, are ended; Ray's workers do not give way to other processes."""

import os

import pytest

from tests.cluster.real_sweeps import Sweep

# at Ray's own 15 a sweep would stand still beside the tests that run at the same time
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(autouse=True)
def end_sweeps():
    yield
    Sweep.end_all()
