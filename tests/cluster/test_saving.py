"""Stages go to storage beside the next one, in their order, and what fails is told."""

import threading

import pytest

from kdtvit_ray.cluster.saving import AT_ONCE, NotSaved, Saver
from tests.cluster.real_sweeps import until


def test_jobs_run_one_after_another_beside_the_caller():
    saver, done, go = Saver(), [], threading.Event()
    saver.put(lambda: go.wait() and done.append(1))
    saver.put(lambda: done.append(2))
    assert done == [], "the caller goes on meanwhile"
    go.set()
    saver.finish()
    assert done == [1, 2]
    saver.check()


def test_who_is_faster_than_storage_waits():
    saver, go, given = Saver(), threading.Event(), []

    def give():
        for number in range(AT_ONCE + 1):
            saver.put(go.wait)
            given.append(number)

    giver = threading.Thread(target=give)
    giver.start()
    until(lambda: len(given) == AT_ONCE)
    assert giver.is_alive()
    go.set()
    giver.join()
    saver.finish()
    assert len(given) == AT_ONCE + 1


def test_after_a_job_that_fails_none_is_done_and_the_caller_is_told():
    saver, done = Saver(), []

    def fail():
        raise OSError("no space")

    saver.put(fail)
    saver.finish()
    with pytest.raises(NotSaved, match="no space"):
        saver.check()
    with pytest.raises(NotSaved):
        saver.put(lambda: done.append(1))
    saver.finish()
    assert done == []
