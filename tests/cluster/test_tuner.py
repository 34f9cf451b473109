"""The searcher between Tune and the ledger, and what makes a study stop: without Ray's processes."""

import heapq
import itertools
import os
import signal
import types
from collections import Counter

import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console

from kdtvit_ray.cluster.driver import _Driver
from kdtvit_ray.cluster.stop import Stop
from kdtvit_ray.cluster.tuner import LedgerSearcher, Searcher
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_trials
from kdtvit_ray.study.ledger import Ledger
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.tree import StageTree
from tests.study import judged_stages, made_stages


class Coordinator:
    """Notes what it is told, as (method, trial)."""

    def __init__(self):
        self.told = []

    def __getattr__(self, method):
        return types.SimpleNamespace(remote=lambda trial, *_: self.told.append((method, trial)))


@pytest.fixture
def searcher(tmp_path):
    ledger = Ledger(StudyFolder(str(tmp_path)), made_stages.space(trials=3, lag=2, baselines=[]).with_data("none"))
    return LedgerSearcher(ledger, Coordinator(), Stop(), lambda: 1)


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


def opening(tmp_path, searched):
    """A searcher whose ledger would open 30 trials at once, of the same order."""
    plain = made_stages.space(trials=40, lag=30, baselines=[], sampler="random").plain()
    ledger = Ledger(StudyFolder(str(tmp_path)), Space({**plain, "search": searched}).with_data("none"))
    return LedgerSearcher(ledger, Coordinator(), Stop(), lambda: 1)


def opened(searcher):
    """How many more trials are opened now."""
    before = len(searcher._running)
    while isinstance(searcher.suggest(str(len(searcher._running))), dict):
        pass
    return len(searcher._running) - before


def test_no_more_trials_are_open_than_give_work_to_the_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("kdtvit_ray.cluster.tuner.LEAST_OPEN", 3)
    searcher = opening(tmp_path, {"training": {"lr": {"low": 1e-5, "high": 1e-3}}})
    assert opened(searcher) == 3
    searcher.groups = lambda: 3
    assert opened(searcher) == 3, "there are more groups now"
    searcher.elsewhere = 2
    assert opened(searcher) == 2, "of stages that are wanted other studies train two"


def test_trials_that_wait_for_one_stage_give_work_to_one_group(tmp_path, monkeypatch):
    monkeypatch.setattr("kdtvit_ray.cluster.tuner.LEAST_OPEN", 3)
    searcher = opening(tmp_path, {"alpha": [0.1, 0.3, 0.5, 0.7, 0.9], "temperature": [1.0, 2.0, 4.0, 8.0]})
    assert opened(searcher) == 20, "all of this space: none has a first stage of its own"
    assert not searcher._enough_open()
    searcher.on_trial_result("0", done(stages=1))
    assert searcher._enough_open(), "one waits for its second stage"


class Played:
    """A study by a clock of its own: a stage is trained in 10 s and on storage 2 s later, while the group trains
    another one, and its trials know it after 0.3 s more."""

    def __init__(self, folder, groups, **study):
        ledger = Ledger(folder, judged_stages.space(**study), magnifications=judged_stages.MAGNIFICATIONS)
        self.searcher = LedgerSearcher(ledger, Coordinator(), Stop(), lambda: groups)
        self.tree, self.now, self.most, self.specs = StageTree(), 0.0, 0, {}
        self.events, self.order, self.names = [], itertools.count(), map(str, itertools.count())
        self.stage, self.done = Counter(), set()
        after = dict.fromkeys(map(str, range(groups)))
        self.open()
        while True:
            for group in sorted(after.keys() - self.tree.running.keys()):
                if key := self.tree.take(group, after[group]):
                    self.at(10, "trained", group, key)
            if not self.events:
                break
            self.now, _, what, group, key = heapq.heappop(self.events)
            if what == "trained":
                self.tree.trained(group, key)
                after[group] = key
                self.at(2, "saved", group, key)
            elif what == "saved":
                judged_stages.save(ledger.store, self.specs[key])
                self.tree.finish(group, key)
                self.done.add(key)
                for name in self.searcher._running:
                    self.await_stage(name, key)
            else:
                self.known(key)
        assert ledger.finished()

    def at(self, seconds, *what):
        heapq.heappush(self.events, (self.now + seconds, next(self.order), *what))

    def open(self):
        while isinstance(self.searcher.suggest(name := next(self.names)), dict):
            ask = self.searcher._running[name]
            self.specs |= {spec.key: spec for spec in ask.stages}
            self.tree.join(ask.trial, [(spec.key, spec.parent) for spec in ask.stages], self.done)
            self.await_stage(name)
        self.most = max(self.most, len(self.searcher._running))

    def await_stage(self, name, only=""):
        key = self.searcher._running[name].stages[self.stage[name]].key
        if key in self.done and only in ("", key):
            self.at(0.3, "known", "", name)

    def known(self, name):
        ask = self.searcher._running[name]
        self.stage[name] += 1
        self.searcher.on_trial_result(name, done(self.stage[name]))
        if self.stage[name] < len(ask.stages):
            self.await_stage(name)
        else:
            self.tree.leave(ask.trial)
            self.searcher.on_trial_complete(name, done(self.stage[name]))
        self.open()


def test_a_study_is_the_same_and_takes_no_longer_where_fewer_trials_are_open(tmp_path, monkeypatch):
    played, found = {}, {}
    for least in (1_000, 4):
        monkeypatch.setattr("kdtvit_ray.cluster.tuner.LEAST_OPEN", least)
        folder = StudyFolder(str(tmp_path / str(least)))
        played[least] = Played(folder, groups=2, trials=6, lag=3, racing=True, baselines=[])
        found[least] = read_trials(folder).drop(columns=["started", "finished"])
    assert played[1_000].most == 12
    assert played[4].most < 8
    pd.testing.assert_frame_equal(found[4], found[1_000])
    assert played[4].now <= 1.02 * played[1_000].now


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
