"""What a session takes up of earlier ones: each setting is judged by chains of its own parameters, which it keeps."""

import json
import random

import pandas as pd
import pytest

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.out_of_fold import Part, judge
from kdtvit_ray.results.rows import ROWS, TrialRecord, read_trials, write_trial
from kdtvit_ray.results.study import load
from kdtvit_ray.study.asks import replicate
from kdtvit_ray.study.earlier import earlier
from kdtvit_ray.study.ledger import Ledger
from kdtvit_ray.study.retries import Retried
from kdtvit_ray.study.search import Outcome, Search
from kdtvit_ray.study.stage_reader import StageReader
from tests.results.measured import table_of
from tests.study import judged_stages, made_stages
from tests.study.test_inner_folds import end, finish, open_ledger, records

INFRASTRUCTURE = Retried(infrastructure=True)


def assert_judged_by_their_own(ledger):
    """Every objective is that of the setting's own parameters, computed from the stages that these give."""
    space, trials = ledger.space, read_trials(ledger.folder)
    chains = trials[trials["kind"] == "inner"]
    told = [json.loads(each) for each in chains["params"]]
    for setting in trials[trials["kind"] == "search"].itertuples():
        params, frames = json.loads(setting.params), {}
        for part in space.parts:
            of = [each for each in told if (each["of"], Part(each["repeat"], each["inner"])) == (setting.trial, part)]
            assert all(each["params"] == params for each in of), setting.trial
            if of:
                frame = judged_stages.predictions(space.inner_fold(part).plan(params)[-1])
                frames[part] = frame[frame["split"] == "validation"]
        expected = judge(frames, space.study["metric"], judged_stages.MAGNIFICATIONS).value
        assert setting.objective == expected, setting.trial
        assert setting.state == ("complete" if len(frames) == len(space.parts) else "pruned")


@pytest.mark.parametrize("racing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_settings_that_are_run_again_keep_their_parameters_and_chains(tmp_path, racing):
    study = {"trials": 16, "racing": racing}
    failing = ("t0001-i2", "t0008-i2", "t0012-i1")
    finish(open_ledger(tmp_path, **study), failing=failing)
    before = read_trials(StudyFolder(str(tmp_path))).set_index("trial")["params"]
    again = open_ledger(tmp_path, INFRASTRUCTURE, **study)
    ran = []
    finish(again, pick=lambda asks: ran.append(asks[0].trial) or 0)
    assert again.finished()
    assert_judged_by_their_own(again)
    after = read_trials(again.folder).set_index("trial")["params"]
    searched = [f"t{number:04d}" for number in range(16)]
    assert dict(after.loc[searched]) == dict(before.loc[searched])
    assert not {"t0001-i1", "t0008-i1"} & set(ran), "chains that ended well are kept"
    assert open_ledger(tmp_path, **study).finished()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_in_a_study_that_is_not_reproducible_settings_under_way_keep_their_parameters(tmp_path, seed):
    study = {"trials": 12, "reproducible": False, "racing": False}
    rng = random.Random(seed)
    for most in (11, 17, 10_000):
        ledger = open_ledger(tmp_path, **study)
        finish(ledger, most=most, pick=lambda asks: rng.randrange(len(asks)))
    assert ledger.finished()
    assert_judged_by_their_own(ledger)
    settings = {ledger.space.setting(json.loads(each)) for each in records(ledger).query("kind == 'search'")["params"]}
    assert len(settings) == 12, "none is tried twice"


def test_without_inner_folds_a_failed_trial_is_run_again_with_its_own_parameters(tmp_path):
    space = made_stages.space(trials=16, lag=3, seed=1, startup=3, baselines=[]).with_data("none")
    found = []
    for retried in (None, INFRASTRUCTURE):
        ledger = Ledger(StudyFolder(str(tmp_path)), space, retried=retried)
        while (ask := ledger.next()) is not None:
            for spec in ask.stages:
                judged_stages.save(ledger.store, spec)
            if retried is None and ask.trial in ("t0001", "t0006", "t0015"):
                ledger.ended(ask.trial, "failed", 0, "its worker died", "infrastructure")
            else:
                ledger.ended(ask.trial, "complete", len(ask.stages))
        found.append(dict(read_trials(ledger.folder).set_index("trial")["params"]))
    assert found[0] == found[1]
    assert ledger.finished()


def test_a_setting_that_was_judged_by_foreign_chains_is_judged_again_by_its_own(tmp_path):
    study = {"trials": 8, "racing": False, "baselines": []}
    first = open_ledger(tmp_path, **study)
    finish(first)
    plain = records(first).set_index("trial")
    trials = read_trials(first.folder).set_index("trial", drop=False)
    for chain in ("t0003-i2", "t0003-i4"):  # as another session left them, from which this one took over
        other = trials.loc[chain.replace("t0003", "t0005")]
        told = {**json.loads(other["params"]), "of": "t0003"}
        foreign = {**other, "trial": chain, "number": 3, "params": json.dumps(told)}
        write_trial(first.folder, TrialRecord(**foreign), made_rows())
    again = open_ledger(tmp_path, **study)
    ran = []
    finish(again, pick=lambda asks: ran.append(asks[0].trial) or 0)
    assert ran == ["t0003-i2", "t0003-i4"]
    assert_judged_by_their_own(again)
    pd.testing.assert_frame_equal(records(again).set_index("trial").loc[plain.index], plain)


def test_a_chain_of_other_parameters_that_is_left_is_nobodys(tmp_path):
    """A setting that racing drops before the chain is never judged on that part."""
    first = judged_stages.finished(tmp_path)
    folder = StudyFolder(str(first))
    trials = read_trials(folder).set_index("trial", drop=False)
    dropped = trials.index[trials["state"] == "pruned"][0]
    other = trials.loc["t0000-i4"]
    foreign = {**other, "trial": f"{dropped}-i4", "number": trials.loc[dropped, "number"]}
    told = {**json.loads(other["params"]), "of": dropped}
    write_trial(folder, TrialRecord(**{**foreign, "params": json.dumps(told)}), made_rows())
    journal = (first / folder.journal).read_bytes()
    again = open_ledger(first)
    assert again.finished()
    assert (first / folder.journal).read_bytes().startswith(journal), "it is not written anew: nothing is judged again"
    assert {part.inner for part in load(str(first)).chains(dropped)} == {
        each for each in (1, 2, 3) if f"{dropped}-i{each}" in trials.index
    }


def made_rows():
    return pd.DataFrame({name: [] for name in ROWS.names}).pipe(table_of)


@pytest.mark.parametrize("racing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_setting_whose_chain_has_lost_its_record_is_judged_again(tmp_path, racing):
    plain = open_ledger(tmp_path, racing=racing, trials=8)
    finish(plain)
    expected = records(plain)
    states = expected.set_index("trial")["state"]
    dropped = list(states.index[states == "pruned"])
    assert bool(dropped) == racing
    for chain in ("t0000-i4", "joint-i2", *(f"{trial}-i1" for trial in dropped[:1])):
        (tmp_path / "trials" / f"{chain}.parquet").write_bytes(b"")
        again = open_ledger(tmp_path, racing=racing, trials=8)
        ran = []
        finish(again, pick=lambda asks, ran=ran: ran.append(asks[0].trial) or 0)
        assert ran == [chain]
        assert again.finished()
        pd.testing.assert_frame_equal(records(again), expected)


def test_a_chain_that_has_failed_counts_no_more_where_its_setting_stands_without_it(tmp_path):
    ledger = open_ledger(tmp_path)
    finish(ledger)
    trials = read_trials(ledger.folder).set_index("trial", drop=False)
    dropped = trials.index[trials["state"] == "pruned"][0]
    chain = f"{dropped}-i4"
    assert chain not in trials.index
    told = {**json.loads(trials.loc[f"{dropped}-i1", "params"]), "inner": 4}
    left = {**trials.loc[f"{dropped}-i1"], "trial": chain, "params": json.dumps(told), "state": "failed", "stages": ()}
    write_trial(ledger.folder, TrialRecord(**{**left, "fault": "infrastructure"}), made_rows())
    again = open_ledger(tmp_path)
    assert again.finished()
    counts = again.counts()
    assert {kind: (each.failed, each.infrastructure) for kind, each in counts.items()} == dict.fromkeys(counts, (0, 0))


@pytest.mark.parametrize("study", [{}, pytest.param({"racing": False, "choose": "simplest"}, marks=pytest.mark.slow)])
def test_the_best_setting_whose_predictions_are_gone_is_judged_again(tmp_path, study):
    plain = open_ledger(tmp_path / "plain", **study)
    finish(plain)
    first = open_ledger(tmp_path / "torn", **study)
    for _ in range(400):
        ask = first.next()
        if ask.kind == "refit":
            break
        end(first, ask)
        best = first.best.trial
        if study == {} and best and len(first.records) > 25:
            break
    lost = read_trials(first.folder).set_index("trial").loc[f"{best}-i1", "stages"][-1]
    first.folder.delete(first.folder.predictions(lost))
    first.folder.delete(f"stages/{lost}")
    again = open_ledger(tmp_path / "torn", **study)
    assert again.best.trial != best
    ran = []
    finish(again, pick=lambda asks: ran.append(asks[0].trial) or 0)
    assert again.finished()
    assert f"{best}-i1" in ran
    assert f"{best}-i2" not in ran
    pd.testing.assert_frame_equal(records(again), records(plain))


def test_an_objective_that_is_undefined_is_never_the_best(tmp_path, monkeypatch):
    first = open_ledger(tmp_path / "probe", trials=1, baselines=[]).next().params["params"]

    def nothing_positive(spec):
        frame = judged_stages.predictions(spec)
        of_first = spec.distillation and (spec.distillation.alpha, spec.distillation.temperature) == (
            first["alpha"],
            first["temperature"],
        )
        return frame.assign(probability=0.25) if of_first else frame

    monkeypatch.setattr(StageReader, "validation", lambda self, key: validation[key])
    validation, study = {}, {"trials": 8, "metric": "precision"}
    for _ in range(2):
        ledger = open_ledger(tmp_path / "study", **study)
        for _ in range(24):
            ask = ledger.next()
            if ask is None:
                break
            frame = nothing_positive(ask.stages[-1])
            validation[ask.stages[-1].key] = frame[frame["split"] == "validation"]
            end(ledger, ask)
    trials = records(ledger).query("kind == 'search'").set_index("trial")
    assert pd.isna(trials.loc["t0000", "objective"])
    assert ledger.best.trial == trials["objective"].idxmax()
    assert {each.best for each in ledger.inner._open.values()} <= {"", *trials.index[trials["objective"].notna()]}


def test_settings_without_an_objective_are_not_refit(tmp_path, monkeypatch):
    def nothing_positive(self, key):
        return validation[key].assign(probability=0.25)

    monkeypatch.setattr(StageReader, "validation", nothing_positive)
    ledger, validation = open_ledger(tmp_path, trials=3, metric="precision"), {}
    while (ask := ledger.next()) is not None:
        frame = judged_stages.predictions(ask.stages[-1])
        validation[ask.stages[-1].key] = frame[frame["split"] == "validation"]
        end(ledger, ask)
    assert ledger.finished()
    assert list(records(ledger).query("kind == 'refit'")["trial"]) == ["joint-refit"]


def test_a_confirmation_that_is_run_again_leaves_the_journal_of_the_search(tmp_path):
    ledger = open_ledger(tmp_path, trials=3, racing=False)
    finish(ledger)
    setting = read_trials(ledger.folder).query("kind == 'search'").iloc[0]
    params = json.loads(setting["params"])
    again = [replicate(ledger.space, setting["trial"], params, fold=1, seed=seed) for seed in (0, 1)]
    confirming = open_ledger(tmp_path, None, again, trials=3, racing=False)
    confirming.ended(confirming.next().trial, "failed", 0, "its worker died", "infrastructure")
    assert confirming.best == ledger.best, "with its values by magnification, for the status"
    journal = tmp_path / ledger.folder.journal
    text = journal.read_text()
    assert open_ledger(tmp_path, INFRASTRUCTURE, again, trials=3, racing=False).left == 2
    assert journal.read_text() == text


def test_what_is_known_of_later_trials_is_not_drawn_for_earlier_ones():
    space = judged_stages.space(sampler="random", trials=40, lag=40)
    drawn = [Search(space).suggest() for _ in range(1)]
    for _ in range(2):
        search = Search(space)
        search.restore(7, drawn[0][1])  # what the first would be
        search.restore(9, {**drawn[0][1], "alpha": 0.9, "temperature": 8.0}, Outcome("complete", (0.5,)))
        found = [search.suggest() for _ in range(39)]
        assert [number for number, _ in found] == [number for number in range(40) if number != 9]
        settings = [space.setting(params) for _, params in found]
        assert len(set(settings)) == 39
        assert found[7][1] == drawn[0][1]


def test_nothing_is_left_of_an_empty_study():
    found = earlier(read_trials(StudyFolder("/nowhere/at/all")), Retried())
    assert len(found.records) == 0
    assert found.drawn == {}
    assert not found.again
