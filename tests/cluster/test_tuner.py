"""The searcher between Tune and the ledger, and what makes a study stop: without Ray's processes."""

import os
import signal
import types

import pyarrow as pa
import pytest
from rich.console import Console

from kdtvit_ray.cluster.driver import _Driver
from kdtvit_ray.cluster.stop import Stop
from kdtvit_ray.cluster.tuner import LedgerSearcher, Searcher
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.study.ledger import Ledger
from tests.study import made_stages


class Coordinator:
    """Notes what it is told, as (method, trial)."""

    def __init__(self):
        self.told = []

    def __getattr__(self, method):
        return types.SimpleNamespace(remote=lambda trial, *_: self.told.append((method, trial)))


@pytest.fixture
def searcher(tmp_path):
    ledger = Ledger(StudyFolder(str(tmp_path)), made_stages.space(trials=3, lag=2, baselines=[]).with_data("none"))
    return LedgerSearcher(ledger, Coordinator(), Stop())


def done(stages=4):
    return {"state": "done", "stage": stages, "stages": 4}


def store(searcher, tune):
    for spec in searcher._running[tune].stages:
        searcher.ledger.store.save(made_stages.record(spec), {}, pa.table({"image": []}))


def test_a_trial_is_named_to_the_coordinator_and_again_after_a_restart_but_not_after_its_end(searcher):
    assert searcher.suggest("a") == {"trial": "t0000", "kind": "search", "stages": 4}
    searcher.suggest("b")
    told = searcher.coordinator.told
    assert told == [("join", "t0000"), ("join", "t0001")]
    searcher.join_missing({"t0000", "t0001"})
    assert len(told) == 2
    searcher.join_missing({"t0001"})
    assert told[2:] == [("join", "t0000")]
    store(searcher, "a")
    searcher.on_trial_complete("a", done())
    assert told[3:] == [("leave", "t0000")]
    searcher.join_missing(set())
    assert told[4:] == [("join", "t0001")]
    assert searcher.ledger.records == {"t0000": ("search", "complete")}


def test_a_trial_that_the_scheduler_stopped_is_pruned_after_the_stages_that_it_has(searcher):
    searcher.suggest("a")
    store(searcher, "a")
    searcher.on_trial_result("a", done(stages=2))
    searcher.on_trial_complete("a")
    assert searcher.ledger.records == {"t0000": ("search", "pruned")}


def test_storage_that_is_lost_while_a_trial_is_saved_stops_the_study(searcher, monkeypatch):
    def away(*_):
        raise OSError("no route to host")

    searcher.suggest("a")
    monkeypatch.setattr("kdtvit_ray.study.ledger.StageStore.record", away)
    searcher.on_trial_complete("a", done())
    assert searcher.stop.reason == "no route to host"
    assert searcher.suggest("b") == Searcher.FINISHED
    assert searcher.ledger.records == {}
    assert searcher.ledger.counts()["search"].running == 0, "it will be run again"


def test_the_first_reason_to_stop_stays():
    stop = Stop()
    assert not stop.wished
    stop.because("storage is away")
    stop.because("a group keeps dying")
    assert stop.wished
    assert stop.reason == "storage is away"


def test_the_first_signal_is_counted_and_the_second_interrupts():
    stop, asked = Stop(), []
    before = signal.getsignal(signal.SIGTERM)
    with stop.on_signals(lambda: asked.append(1) or True):
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.interrupts, stop.wished) == (1, True)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert len(asked) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_before_anything_can_stop_by_itself_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), Stop().on_signals(lambda: False):
        os.kill(os.getpid(), signal.SIGINT)


def test_before_the_first_stage_one_signal_ends_a_study(capsys):
    driver = object.__new__(_Driver)
    driver.searcher = object()
    assert not driver._interrupted(Console()), "groups are starting: there is nothing to wait for"
    driver.began = 1.0
    assert driver._interrupted(Console())
    assert "Stopping at the end of the epoch" in capsys.readouterr().out
