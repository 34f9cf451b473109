"""Sweeps that a test leaves running, because it failed, are ended."""

import pytest

from tests.cluster.real_sweeps import Sweep


@pytest.fixture(autouse=True)
def end_sweeps():
    yield
    Sweep.end_all()
