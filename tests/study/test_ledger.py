"""The ledger: which trials come next, what is written when one ends, what a second session takes up."""

import json

import pandas as pd
import pyarrow as pa
import pytest

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_rows, read_trials
from kdtvit_ray.results.study_status import Status
from kdtvit_ray.study.asks import replicate
from kdtvit_ray.study.ledger import Ledger
from kdtvit_ray.study.queues import SearchQueue
from kdtvit_ray.study.search import Outcome
from tests.study import made_stages
from tests.study.test_dimensions import repeating

STUDY = {"trials": 6, "lag": 3, "seed": 1, "startup": 3, "baselines": ["joint", "sequential"]}


def open_ledger(tmp_path, **options):
    folder = StudyFolder(str(tmp_path))
    bound = made_stages.space(**STUDY).with_data("none")
    return Ledger(folder, bound, **options)


def train(ledger, ask):
    """Put the stages of a trial into the store, as worker groups would."""
    for spec in ask.stages:
        if not ledger.store.has(spec.key):
            ledger.store.save(made_stages.record(spec), {}, pa.table({"image": []}))
    return len(ask.stages)


def finish(ledger, limit=100):
    for _ in range(limit):
        ask = ledger.next()
        if ask is None:
            return
        ledger.ended(ask.trial, "complete", train(ledger, ask))


def test_searched_trials_go_first_and_baselines_fill_the_gaps(tmp_path):
    ledger = open_ledger(tmp_path)
    asks = [ledger.next() for _ in range(4)]
    assert [ask.trial for ask in asks[:3]] == ["t0000", "t0001", "t0002"]
    assert asks[3] is None, "no more than lag trials run at once"
    ledger.ended("t0001", "complete", train(ledger, asks[1]))
    assert ledger.next().trial == "joint", "the search waits for t0000; a baseline does not"
    assert ledger.counts()["search"].running == 2


def test_what_a_trial_leaves_on_storage(tmp_path):
    ledger = open_ledger(tmp_path)
    ask = ledger.next()
    ledger.ended(ask.trial, "complete", train(ledger, ask))
    record = read_trials(ledger.folder).iloc[0]
    stages = ledger.space.plan(ask.params)
    assert list(record["stages"]) == [spec.key for spec in stages]
    assert json.loads(record["params"]) == ask.params
    measured = [
        each.value for each in made_stages.measures(stages[-1]) if (each.split, each.metric) == ("validation", "auc")
    ]
    assert record["objective"] == pytest.approx(sum(measured) / 4), "the objective is validation's, of the last stage"
    rows = read_rows(ledger.folder)
    assert len(rows) == 4 * len(made_stages.measures(stages[0]))


def test_a_study_resumed_after_every_trial_is_the_study_that_was_never_stopped(tmp_path):
    plain = open_ledger(tmp_path / "plain")
    finish(plain)
    assert plain.finished()
    for _ in range(20):
        ledger = open_ledger(tmp_path / "resumed")
        ask = ledger.next()
        if ask is None:
            break
        ledger.next()  # one more is under way when it is killed
        ledger.ended(ask.trial, "complete", train(ledger, ask))
    assert ledger.finished()
    assert ledger.best == plain.best
    drop = ["started", "finished"]
    pd.testing.assert_frame_equal(
        read_trials(ledger.folder).drop(columns=drop), read_trials(plain.folder).drop(columns=drop)
    )


def test_the_chosen_chain_that_rehearses_is_run_once_more_without(tmp_path):
    space = made_stages.space(training={"rehearsal": 0.3}, **STUDY).with_data("none")
    folder = StudyFolder(str(tmp_path))
    for _ in range(20):  # stopped after every trial
        ledger = Ledger(folder, space)
        ask = ledger.next()
        if ask is None:
            break
        assert ledger.left > 0
        assert not ledger.finished()
        ledger.ended(ask.trial, "complete", train(ledger, ask))
    assert ledger.finished()
    assert ledger.left == 0
    trials = read_trials(folder)
    assert ask is None
    best = trials[trials["kind"] == "search"].sort_values("objective").iloc[-1]
    (twin,) = trials[trials["kind"] == "refit"].itertuples()
    assert twin.trial == f"{best['trial']}-without_rehearsal-refit"
    assert twin.order == best["order"]
    one, two = ([ledger.store.record(key).spec for key in keys] for keys in (best["stages"], twin.stages))
    assert one[0] == two[0]
    assert [[each["training"]["rehearsal"] for each in specs] for specs in (one, two)] == [[0, 0.3, 0.3, 0.3], [0] * 4]
    assert one[1]["data"] == two[1]["data"]
    assert ledger.counts()["refit"].complete == ledger.counts()["refit"].total == 1


def test_small_files_are_merged_though_no_session_ends_many_trials(tmp_path, monkeypatch):
    monkeypatch.setattr("kdtvit_ray.study.ledger.COMPACT_EVERY", 3)
    for _ in range(3):
        ledger = open_ledger(tmp_path)
        ask = ledger.next()
        ledger.ended(ask.trial, "complete", train(ledger, ask))
    assert ledger.folder.names(ledger.folder.rows) == ["part-000001.parquet"]
    assert ledger.folder.names(ledger.folder.trials) == ["part-000001.parquet"]


def test_a_stopped_trial_has_not_ended(tmp_path):
    ledger = open_ledger(tmp_path)
    ask = ledger.next()
    ledger.forget(ask.trial)
    assert not ledger.finished()
    assert open_ledger(tmp_path).next() == ask


def test_failed_trials_are_kept_with_their_reason_and_told_to_the_search(tmp_path):
    ledger = open_ledger(tmp_path)
    ask = ledger.next()
    train(ledger, ask)
    ledger.ended(ask.trial, "failed", 2, "non-finite loss in epoch 3")
    record = read_trials(ledger.folder).iloc[0]
    assert (record["state"], record["reason"], len(record["stages"])) == ("failed", "non-finite loss in epoch 3", 2)
    assert pd.isna(record["objective"])
    finish(ledger)
    assert ledger.searches[""].search.study.trials[0].state.name == "FAIL"
    assert ledger.counts()["search"].failed == 1


def test_confirmation_runs_replicates_at_other_folds_and_seeds_and_shares_what_it_may(tmp_path):
    ledger = open_ledger(tmp_path)
    finish(ledger)
    before = ledger.store.keys()
    params = json.loads(read_trials(ledger.folder).iloc[0]["params"])
    asks = [replicate(ledger.space, "t0000", params, fold, seed) for fold in (1, 2) for seed in (1, 2)] + [
        replicate(ledger.space, "joint", {}, 2, 1)
    ]
    confirm = open_ledger(tmp_path, replicates=asks)
    assert confirm.left == 5
    finish(confirm)
    assert confirm.finished()
    records = read_trials(ledger.folder).query("kind == 'confirm'")
    assert set(zip(records["fold"], records["seed"], strict=True)) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    first = records[(records["fold"] == 1) & (records["seed"] == 1)].iloc[0]
    assert set(first["stages"]) <= before, "fold 1 and seed 1 are the study's own: every stage is shared"
    others = records[records["trial"] != first["trial"]]
    assert not {key for keys in others["stages"] for key in keys} & before
    assert open_ledger(tmp_path).finished(), "replicates do not count as the study's trials"
    more = open_ledger(tmp_path, replicates=[*asks[:1], replicate(ledger.space, "joint", {}, 1, 7)])
    counts = more.counts()["confirm"]
    assert (counts.total, counts.complete, more.left) == (2, 1, 1), "those of another confirmation are not counted"


def test_a_trial_that_is_restored_without_an_end_is_left_to_do():
    space = made_stages.space(**STUDY).with_data("none")
    params = SearchQueue(space, None).next().params
    queue = SearchQueue(space, None)
    queue.restore(0, params)
    assert queue.left == 6
    queue = SearchQueue(space, None)
    queue.restore(0, params, Outcome("complete", (0.5,)))
    assert queue.left == 5
    queue.ended(queue.next(), Outcome("failed"))
    assert queue.left == 4


@pytest.mark.parametrize("first", ["t0002", "t0010"])
def test_of_equal_objectives_the_earlier_trial_is_the_best_whichever_ended_first(tmp_path, first):
    ledger = open_ledger(tmp_path)
    for trial in (first, "t0002", "t0010"):
        ledger._update_best(trial, 0.7, {}, {})
    assert ledger.best.trial == "t0002"


def test_a_search_that_finds_no_other_setting_has_no_more_trials(tmp_path):
    """Also when its study is confirmed, and searches nothing."""
    folder = StudyFolder(str(tmp_path))
    space = repeating(300).with_data("none")
    ledger = Ledger(folder, space)
    assert ledger.counts()["search"].total == 8
    finish(ledger)
    assert (ledger.finished(), ledger.counts()["search"].total, ledger.counts()["search"].ended) == (True, 2, 2)
    Status("finished", trials=ledger.counts()["search"]).write(folder)
    asks = [replicate(space, "t0000", {"student": "micro"}, 1, 0)]
    assert Ledger(folder, space, asks).counts()["search"].total == 2
    again = Ledger(folder, space)
    assert (again.finished(), again.counts()["search"].total) == (True, 2)
