"""Baselines that are searched like the distilled chains: their spaces, their budget, and studies of them that end alike
however they are disturbed."""

import json

import pandas as pd
import pyarrow as pa
import pytest

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import baseline_of, read_trials
from kdtvit_ray.study.asks import searched
from kdtvit_ray.study.audit import stages_of
from kdtvit_ray.study.binding import write_study
from kdtvit_ray.study.inner_folds import InnerFolds
from kdtvit_ray.study.ledger import Ledger
from kdtvit_ray.study.space import Space
from tests.study import judged_stages, made_stages
from tests.study.test_inner_folds import end, finish, records

BOTH = ["joint", "sequential"]
SMALL = {"trials": 3, "objective_folds": 2, "lag": 2, "baselines": BOTH}


def wide(**study):
    """A space in which everything that can be searched is searched."""
    return Space(
        {
            "study": {"trials": 10, "baselines_searched": True, **study},
            "chain": {"head": "subtype"},
            "search": {
                "temperature": {"per_stage": [1.0, 4.0]},
                "alpha": [0.0, 0.5],
                "loss": ["kd", "dist"],
                "order": ["40>100>200>400", "400>200>100>40"],
                "student": ["micro", "tiny"],
                "teacher": ["micro", "tiny"],
                "warm_start": [True, False],
                "training": {"lr": [1e-3, 1e-4], "first": {"epochs": [5, 10]}, "later": {"weight_decay": [0.0, 0.05]}},
            },
        }
    )


def test_a_baseline_is_searched_over_what_decides_something_for_it():
    found = wide().searched_baselines()
    assert set(found["joint"].dimensions) == {"student", "training.lr"}
    assert set(found["sequential"].dimensions) == {
        "order",
        "student",
        "warm_start",
        "training.lr",
        "training.first.epochs",
        "training.later.weight_decay",
    }
    for name, space in found.items():
        for dimension, each in space.dimensions.items():
            keys = {space.plan({**next(space.points()), dimension: value})[-1].key for value in each.values}
            assert len(keys) == 2, f"{dimension} decides nothing for {name}"
    assert wide(baselines=["sequential"]).searched_baselines().keys() == {"sequential"}


def test_its_settings_are_stages_of_the_baseline_with_the_suggested_values():
    space = wide()
    (joint,) = space.searched_baselines()["joint"].plan({"student": "tiny", "training.lr": 1e-4})
    assert (joint.model.name, joint.magnifications, joint.training.lr) == ("tiny", (40, 100, 200, 400), 1e-4)
    values = {
        "order": "400>200>100>40",
        "student": "tiny",
        "training.first.epochs": 5,
        "training.later.weight_decay": 0,
    }
    stages = space.searched_baselines()["sequential"].plan({"order": "400>200>100>40", "student": "tiny", **values})
    assert [stage.magnifications for stage in stages] == [(400,), (200,), (100,), (40,)]
    assert [stage.training.epochs for stage in stages] == [5, 10, 10, 10]
    assert [stage.training.weight_decay for stage in stages] == [0.05, 0.0, 0.0, 0.0]
    assert {stage.model.name for stage in stages} == {"tiny"}
    assert all(stage.distillation is None for stage in stages)


def test_without_suggested_values_it_is_the_baseline_that_is_not_searched():
    fixed = wide(baselines_searched=False)
    assert fixed.searched_baselines() == {}
    assert not set(wide().baselines()) & set(BOTH)
    for name, space in wide().searched_baselines().items():
        assert space.plan({}) == fixed.baselines()[name]


def test_its_budget_is_that_of_the_search_or_all_of_its_settings():
    found = wide().searched_baselines()
    assert found["joint"].trials == 4, "two students, two learning rates"
    assert found["sequential"].trials == 10
    assert wide(sampler="grid", trials=3).searched_baselines()["joint"].trials == 3
    whole = Space(judged_stages.space(baselines=BOTH, baselines_searched=True).plain())
    # alpha and temperature are searched only for chains: with them the space has 1,920 settings
    assert {name: each.trials for name, each in whole.searched_baselines().items()} == {"joint": 2, "sequential": 12}


def test_what_it_would_cost_is_counted():
    made = [judged_stages.space(baselines=BOTH, baselines_searched=each) for each in (False, True)]
    (_, fixed), (asked, distinct) = map(stages_of, made)
    # 4 inner folds and a refit of one setting: chains of four stages, joint training of one
    assert len(asked) == 4 * (12 * 4 + 2 * 1 + 12 * 4) + 4 + 1 + 4
    assert len(fixed) < len(distinct) < len(asked)


def test_a_searched_baseline_without_a_trial_is_refused():
    with pytest.raises(UserError, match="baselines_searched is true and trials is 0"):
        wide(trials=0)


def test_a_study_from_before_searches_no_baseline_and_may_begin_to():
    plain = made_stages.space(baselines=BOTH).plain()
    del plain["study"]["baselines_searched"]
    assert Space({**plain, "versions": {}}).searched_baselines() == {}


# ---- studies


def open_ledger(place, **study):
    space = judged_stages.space(**{**SMALL, "baselines_searched": True, **study})
    return Ledger(StudyFolder(str(place)), space, magnifications=judged_stages.MAGNIFICATIONS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    ledger = open_ledger(tmp_path_factory.mktemp("plain"))
    finish(ledger)
    assert ledger.finished()
    return ledger


def of_kind(ledger, kind):
    found = records(ledger)
    return found[found["kind"] == kind]


def test_each_tries_as_many_settings_none_of_them_twice(plain):
    tried = of_kind(plain, "baseline_search")
    assert tried["trial"].map(baseline_of).value_counts().to_dict() == {"sequential": 3, "joint": 2}
    for name in BOTH:
        own = tried[tried["trial"].map(baseline_of) == name]
        assert sorted(own["number"]) == list(range(len(own)))
        assert own["params"].is_unique
    assert not len(of_kind(plain, "baseline"))
    counts = plain.counts()["baseline_search"]
    assert (counts.total, counts.ended, counts.running) == (5, 5, 0)
    assert plain.left == 0
    for record in tried.itertuples():
        assert record.alpha == ("[]" if record.trial.startswith("joint") else "[0.0, 0.0, 0.0]")
        assert record.student == json.loads(record.params)["student"]


def test_the_chosen_setting_of_each_is_refit(plain):
    tried = of_kind(plain, "baseline_search").query("state == 'complete'")
    best = tried.loc[tried.groupby(tried["trial"].map(baseline_of))["objective"].idxmax()]
    refits = {json.loads(each)["of"]: trial for each, trial in of_kind(plain, "refit")[["params", "trial"]].to_numpy()}
    assert {each for each in refits if baseline_of(each)} == set(best["trial"])
    record = records(plain).set_index("trial").loc[refits[best.iloc[0]["trial"]]]
    assert plain.store.record(record["stages"][-1]).spec["data"]["inner_folds"] == 1


def test_the_search_of_the_chains_is_what_it_was_without(plain, tmp_path):
    alone = open_ledger(tmp_path, baselines_searched=False)
    finish(alone)
    ours, theirs = (of_kind(each, "search").reset_index(drop=True) for each in (plain, alone))
    pd.testing.assert_frame_equal(ours, theirs)
    assert plain.best == alone.best
    # and the command goes on with the baselines' settings when they are asked for afterwards
    finish(again := open_ledger(tmp_path))
    assert again.finished()
    new = records(again)
    new = new[~new["trial"].isin(set(of_kind(alone, "baseline")["trial"]) | {f"{each}-refit" for each in BOTH})]
    new = new[~new["trial"].str.match(r"(joint|sequential)-i\d")].reset_index(drop=True)
    pd.testing.assert_frame_equal(new, records(plain))


def test_the_order_in_which_chains_end_changes_nothing(plain, tmp_path):
    for number, pick in enumerate((lambda asks: len(asks) - 1, lambda asks: len(asks) // 2)):
        ledger = open_ledger(tmp_path / str(number))
        finish(ledger, pick)
        assert ledger.finished()
        pd.testing.assert_frame_equal(records(ledger), records(plain))


def test_a_study_that_is_stopped_after_every_chain_is_the_one_that_was_never_stopped(plain, tmp_path):
    for _ in range(100):
        ledger = open_ledger(tmp_path)
        ask = ledger.next()
        if ask is None:
            break
        ledger.next()  # one more is under way when it is killed
        end(ledger, ask)
    assert ledger.finished()
    pd.testing.assert_frame_equal(records(ledger), records(plain))
    assert ledger.best == plain.best


@pytest.mark.parametrize(("complete", "chains"), [("t0000", 4), ("sequential-t0000", 4), ("joint-t0000", 2)])
def test_a_setting_races_against_those_of_its_own_baseline_alone(complete, chains):
    """Where there is none yet, it is on all inner folds at once; else on the first two."""
    space = judged_stages.space(baselines_searched=True, baselines=BOTH, lag=1)
    inner = InnerFolds(space, lambda key: pd.DataFrame(), judged_stages.MAGNIFICATIONS)
    inner.restore_complete(complete, 0, 0.9)
    inner.begin(searched(space.searched_baselines()["joint"], 1, {"student": "tiny"}))
    given = [inner.next() for _ in range(chains)]
    assert [each.trial for each in given] == [f"joint-t0001-i{number + 1}" for number in range(chains)]
    assert inner.next() is None


def test_with_one_validation_part_a_chosen_setting_has_its_own_stages(tmp_path):
    space = made_stages.space(trials=3, lag=2, baselines=BOTH, baselines_searched=True).with_data("none")
    ledger = Ledger(StudyFolder(str(tmp_path)), space)
    while (ask := ledger.next()) is not None:
        for spec in ask.stages:
            if not ledger.store.has(spec.key):
                ledger.store.save(made_stages.record(spec), {}, pa.table({"image": []}))
        ledger.ended(ask.trial, "complete", len(ask.stages))
    assert ledger.finished()
    tried = read_trials(ledger.folder).query("kind == 'baseline_search'")
    assert tried["stages"].map(len).tolist() == [1 if each.startswith("joint") else 4 for each in tried["trial"]]


def test_a_study_may_begin_to_search_its_baselines_when_it_is_started_again(tmp_path):
    folder = StudyFolder(str(tmp_path))
    write_study(folder, made_stages.bound(judged_stages.space(**SMALL)))
    write_study(folder, made_stages.bound(judged_stages.space(**SMALL, baselines_searched=True)))
