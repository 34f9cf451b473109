"""What a session takes up where records or stages of a finished study are lost, damaged or of no use any more."""

import json
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from kdtvit_ray.errors import UserError
from kdtvit_ray.results.out_of_fold import Part, judge
from kdtvit_ray.results.rows import compact, read_trials
from kdtvit_ray.results.study import load
from kdtvit_ray.study.asks import replicate
from kdtvit_ray.study.earlier import earlier
from kdtvit_ray.study.retries import Retried
from tests.study import judged_stages, test_ledger
from tests.study.test_inner_folds import end, finish, open_ledger, records

STUDY = {"trials": 4, "racing": False, "baselines": ["joint"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished study."""
    place = tmp_path_factory.mktemp("whole") / "study"
    finish(open_ledger(place, **STUDY))
    return place


@pytest.fixture
def study(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "study")


def runs(ledger):
    """Run what is left; returns which chains that were."""
    ran = []
    finish(ledger, pick=lambda asks: ran.append(asks[0].trial) or 0)
    assert ledger.finished()
    return ran


def last_stage(ledger, trial):
    return read_trials(ledger.folder).set_index("trial").loc[trial, "stages"][-1]


def test_a_damaged_model_is_trained_again(study):
    ledger = open_ledger(study, **STUDY)
    assert ledger.finished()
    before, trials = records(ledger), (f"{ledger.best.trial}-refit", "joint-refit")
    emptied, changed = (study / "stages" / last_stage(ledger, trial) for trial in trials)
    (emptied / "weights.safetensors").write_bytes(b"")
    (emptied / "stage.json").write_bytes(b"")
    content = (changed / "weights.safetensors").read_bytes()
    (changed / "weights.safetensors").write_bytes(b"x" * len(content))
    again = open_ledger(study, **STUDY)
    assert not again.finished()
    assert set(runs(again)) == set(trials)
    assert (changed / "weights.safetensors").read_bytes() == content
    assert records(again).equals(before)
    assert open_ledger(study, **STUDY).finished()


def test_without_inner_folds_too(tmp_path):
    ledger = test_ledger.open_ledger(tmp_path)
    test_ledger.finish(ledger)
    trials = (ledger.best.trial, "joint")
    for trial in trials:
        (tmp_path / "stages" / last_stage(ledger, trial) / "weights.safetensors").write_bytes(b"")
    before = records(ledger)
    again = test_ledger.open_ledger(tmp_path)
    asks = [again.next(), again.next()]
    assert {ask.trial for ask in asks} == set(trials)
    assert again.next() is None
    for ask in asks:
        again.ended(ask.trial, "complete", test_ledger.train(again, ask))
    assert again.finished()
    assert records(again).equals(before)
    assert again.best.trial == ledger.best.trial
    assert test_ledger.open_ledger(tmp_path).finished()


def test_an_outdated_failure_that_is_found_again_fails_nothing(tmp_path):
    """A setting failed, its records were merged, it was run again and complete; then its later records are lost."""
    study = {**STUDY, "trials": 3, "baselines": []}
    ledger = open_ledger(tmp_path, **study)
    finish(ledger, failing=("t0001-i2",))
    ledger.compact()
    ledger = open_ledger(tmp_path, Retried(infrastructure=True), **study)
    finish(ledger)
    complete = records(ledger)
    for lost, expected in (("t0001-i2", ["t0001-i2"]), ("t0001", [])):
        (tmp_path / "trials" / f"{lost}.parquet").write_bytes(b"")
        again = open_ledger(tmp_path, **study)
        assert runs(again) == expected
        assert records(again).equals(complete)


def test_a_setting_that_racing_dropped_with_a_gap_in_its_chains_is_judged_once(tmp_path):
    """As results that are told as they come leave it where a study is stopped."""
    study = {**STUDY, "baselines": [], "racing": True, "reproducible": False, "lag": 2, "seed": 5}
    ledger = open_ledger(tmp_path, **study)
    asks = []
    while (ask := ledger.next()) is not None:
        asks.append(ask)
    ended = [ask for ask in asks if ask.params["of"] == "t0000" or ask.trial in ("t0001-i1", "t0001-i2", "t0001-i4")]
    for ask in ended:
        end(ledger, ask)
    # of the last one the predictions are lost: the setting has a record of the chain, and is judged on it
    ledger.folder.delete(f"stages/{ended[-1].stages[-1].key}")
    assert ended[-1].trial == "t0001-i4"
    ledger = open_ledger(tmp_path, **study)
    assert "t0001-i4" in runs(ledger)
    settings = records(ledger).set_index("trial")
    assert settings.loc["t0001", "state"] == "pruned"
    assert "t0001-i3" not in settings.index
    again = open_ledger(tmp_path, **study)
    assert again.finished()
    assert records(again).set_index("trial").equals(settings)


def test_what_racing_dropped_has_a_gap_only_where_results_count_as_they_come():
    settings = pd.DataFrame({"trial": ["t0000", "t0001"], "state": "pruned", "number": [0, 1], "params": "{}"})
    chains = [("t0000", 1), ("t0000", 2), ("t0000", 4), ("t0001", 2), ("t0001", 3)]
    told = [json.dumps({"of": of, "params": {}, "repeat": 1, "inner": inner}) for of, inner in chains]
    found = pd.concat(
        [
            settings.assign(kind="search", stages=[[]] * 2, objective=0.5),
            pd.DataFrame({"trial": [f"{of}-i{inner}" for of, inner in chains], "params": told, "number": 0}).assign(
                kind="inner", state="complete", stages=[["key"]] * len(chains)
            ),
        ],
        ignore_index=True,
    ).assign(finished=0.0)
    parts = [Part(1, inner) for inner in range(1, 6)]
    for gaps, again in ((True, {"t0001"}), (False, {"t0000", "t0001"})):
        assert earlier(found, Retried(), parts, least=2, gaps=gaps).drawn.keys() == again


def test_a_confirmation_goes_on_where_chains_of_the_best_setting_are_lost(study):
    ledger = open_ledger(study, **STUDY)
    best = ledger.best
    params = json.loads(read_trials(ledger.folder).set_index("trial").loc[best.trial, "params"])
    asks = [replicate(ledger.space, best.trial, params, fold=1, seed=0)]
    for lost in (range(3, 5), range(1, 5)):
        for inner in lost:
            (study / "trials" / f"{best.trial}-i{inner}.parquet").write_bytes(b"")
        confirming = open_ledger(study, None, asks, **STUDY)
        assert confirming.best.objective == best.objective
        assert confirming.best.by_magnification == {}, "of fewer patients than the objective beside it"


def test_what_fails_of_its_own_is_not_run_again_for_the_machines_that_failed_beside_it(study):
    folder = open_ledger(study, **STUDY).folder
    for chain in ("t0001", "t0001-i1", "t0001-i2"):
        folder.delete(f"trials/{chain}.parquet")
    ledger = open_ledger(study, **STUDY)
    for ask in [ledger.next(), ledger.next()]:
        fault = "stage" if ask.trial == "t0001-i2" else "infrastructure"
        ledger.ended(ask.trial, "failed", 0, f"of the {fault}", fault)
    finish(ledger)
    failed = records(ledger).set_index("trial").loc["t0001"]
    assert (failed["state"], failed["reason"]) == ("failed", "of the stage")
    counts = ledger.counts()["search"]
    assert (counts.failed, counts.infrastructure) == (1, 0), "--retry-failed is no help"
    assert open_ledger(study, Retried(infrastructure=True), **STUDY).finished()
    for named in ("t0001", "t0001-i1"):
        again = open_ledger(study, Retried(named=frozenset({named})), **STUDY)
        assert {again.next().trial, again.next().trial} == {"t0001-i1", "t0001-i2"}


def test_chains_of_a_baseline_that_is_not_wanted_any_more_do_not_count(study):
    ledger = open_ledger(study, **STUDY)
    ledger.folder.delete("trials/joint.parquet")
    ledger.folder.delete("trials/joint-i2.parquet")
    ledger = open_ledger(study, **STUDY)
    ledger.ended(ledger.next().trial, "failed", 0, "its worker died", "infrastructure")
    assert ledger.counts()["inner"].failed == 1
    for wanted in ({"baselines": []}, {"baselines": ["joint"], "baselines_searched": True}):
        counts = open_ledger(study, **{**STUDY, **wanted}).counts()
        assert (counts["inner"].failed, counts["inner"].complete) == (0, 4 * STUDY["trials"])


def test_a_setting_beyond_the_trials_that_are_asked_for_now_is_judged_again_where_it_has_lost_a_chain(study):
    before = records(open_ledger(study, **STUDY))
    fewer = {**STUDY, "trials": 2}
    assert open_ledger(study, **fewer).finished()
    (study / "trials" / "t0003-i4.parquet").write_bytes(b"")
    again = open_ledger(study, **fewer)
    assert runs(again) == ["t0003-i4"]
    assert records(again).equals(before)


def test_of_equal_settings_the_earlier_is_the_best_whichever_ends_first(tmp_path, monkeypatch):
    study = {**STUDY, "trials": 3, "baselines": []}
    monkeypatch.setattr("kdtvit_ray.study.inner_folds.judge", lambda *of: replace(judge(*of), value=1.0))
    ledger = open_ledger(tmp_path, **study)
    finish(ledger, pick=lambda asks: len(asks) - 1)
    assert set(records(ledger).query("kind == 'search'")["objective"]) == {1.0}
    assert ledger.best.trial == "t0000"


def test_records_are_merged_on_disk_before_the_single_ones_are_deleted(study, monkeypatch):
    folder, done = open_ledger(study, **STUDY).folder, []
    write, delete = folder.write, folder.delete
    monkeypatch.setattr(folder, "write", lambda *of, **how: (done.append((of[0], how)), write(*of, **how)))
    monkeypatch.setattr(folder, "delete", lambda name: (done.append((name, "delete")), delete(name)))
    compact(folder)
    for place in ("rows", "trials"):
        first = next(each for each in done if each[0].startswith(place))
        assert first == (f"{place}/part-000001.parquet", {"before_others": True})


@pytest.mark.parametrize("change", ["objective_folds = 0", "objective_folds = 1", "objective_repeats = 0"])
def test_a_study_file_that_names_no_inner_folds_is_none_of_trials_that_were_judged_on_them(tmp_path, change):
    study = judged_stages.finished(tmp_path, trials=1, baselines=[])
    text, name = (study / "study.toml").read_text(), change.split()[0]
    (study / "study.toml").write_text(re.sub(rf"^{name} = \d+$", change, text, flags=re.MULTILINE))
    with pytest.raises(
        UserError, match=r"study\.toml' is damaged: \[study\] objective_folds and objective_repeats name"
    ):
        load(str(study))
