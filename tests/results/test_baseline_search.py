"""What the answer, the page, the tables and the terminal say of baselines that were searched."""

import io
import math
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from kdtvit_ray.report.build import write_report
from kdtvit_ray.report.terminal import print_headline
from kdtvit_ray.results import baseline_search
from kdtvit_ray.results.answer import answer
from kdtvit_ray.results.confirmation import label
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models_on_test import apart
from kdtvit_ray.results.study import load
from kdtvit_ray.results.trust import optimism
from kdtvit_ray.results.words import baseline_label
from kdtvit_ray.study.ledger import Ledger
from kdtvit_ray.study.replicates import replicates
from tests.study import judged_stages

pytestmark = pytest.mark.usefixtures("unrendered")

STUDY = {"trials": 3, "objective_folds": 2, "lag": 2, "baselines_searched": True}


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    place = tmp_path_factory.mktemp("searched")
    baselines = ["per_magnification", "joint", "sequential"]
    return Findings(load(str(judged_stages.finished(place, baselines=baselines, **STUDY))), 200)


def test_the_chosen_setting_stands_for_its_baseline_everywhere(findings):
    study = findings.study
    assert study.finished
    assert list(study.chosen_of) == ["joint", "sequential"]
    measured = {model.name: model for model in findings.models}
    for name, trial in study.chosen_of.items():
        own = study.settings_of(name)
        own = own[own["state"] == "complete"]
        assert trial == own.loc[own["objective"].idxmax(), "trial"]
        key = study.refit(trial)["stages"][-1]
        assert set(measured[name].finals.values()) == {key}
        long = findings.headline.long.query(f"model == '{name}' and level == 'image' and metric == 'auc'")
        rows = study.rows.query(f"key == '{key}' and metric == 'auc' and level == 'image' and split == 'test'")
        rows = rows.drop_duplicates("magnification").set_index("magnification")["value"]
        for line in long[long["magnification"] != "mean"].itertuples():
            assert line.value == pytest.approx(rows[int(line.magnification[:-1])], abs=1e-12)
        assert findings.judged[name].value == pytest.approx(own["objective"].max(), abs=1e-12)
    compared = [each.against.name for each in findings.comparisons if each.against.kind == "baseline"]
    assert sorted(compared) == ["joint", "per_magnification", "sequential"]
    assert {each.trial for each in findings.baselines_in_development} == set(compared)


def test_a_setting_without_an_objective_is_counted_apart(findings):
    study = load(findings.study.folder.root)
    settings = study.settings_of("sequential")
    gone = next(trial for trial in settings["trial"] if trial != findings.study.chosen_of["sequential"])
    study.trials.loc[study.trials["trial"] == gone, "objective"] = math.nan
    search = Findings(study, 200).baseline_searches["sequential"]
    assert (search.tried, search.complete, search.undefined, search.failed) == (3, 2, 1, 0)
    (told,) = (each for each in baseline_search.told(study, {"sequential": search}) if search.trial in each)
    assert "from 3 different settings (1 of which has no objective) it has" in told


def test_the_report_says_how_many_settings_each_tried_and_which_it_chose(findings):
    study, told = findings.study, answer(findings)
    for name, count in (("joint", 2), ("sequential", 3)):
        search = findings.baseline_searches[name]
        assert (search.tried, search.trial) == (count, study.chosen_of[name])
        (sentence,) = (each for each in told if each.startswith("The baseline") and search.trial in each)
        assert f"from {count} different settings" in sentence
        assert f"is {study.trial(name)['objective']:.3f}." in sentence
    assert "and 4 of 4 baseline trials, and 5 settings of searched baselines." in told[0]
    write_report(findings)
    table = pd.read_csv(study.folder.local / "report" / "tables" / "searched-baselines.csv")
    assert list(table["chosen"]) == list(study.chosen_of.values())
    assert list(table["settings judged"]) == [2, 3]
    page = (study.folder.local / "report" / "index.html").read_text()
    assert all(trial in page for trial in study.chosen_of.values())
    assert "5 settings of searched baselines complete" in page
    out = io.StringIO()
    print_headline(findings, Console(file=out, width=80))
    chosen = f"baseline  joint: {study.chosen_of['joint']}, chosen from 2 different settings: student"
    assert chosen in out.getvalue().replace("\n", " ").replace("  student", " student")


def test_no_sentence_says_of_a_searched_baseline_that_it_was_not(findings):
    text = " ".join(answer(findings))
    assert "That baseline was not searched" not in text
    assert "That baseline was searched too and chose other values (" in text
    assert "less what their own choice flatters the searched joint training on all" in text
    assert "though it was chosen there" not in text


def test_a_baseline_s_own_choice_is_taken_off_less_its_optimism(findings):
    study, judged = findings.study, findings.judged
    taken = {each.trial: each.taken_off for each in findings.baselines_in_development}
    assert taken["per_magnification"] == findings.search.optimism
    for name, count in (("joint", 2), ("sequential", 3)):
        tried = [trial for trial in judged if trial.startswith(f"{name}-t")]
        assert len(tried) == count
        expected = findings.search.optimism - optimism(judged, tried, study.metric)
        assert taken[name] == pytest.approx(expected, abs=1e-12)
    brier = Findings(replace(study, plain={**study.plain, "study": {**study.plain["study"], "metric": "brier"}}), 50)
    assert brier.study.metric == "brier"
    assert brier.flattery["per_magnification"] == -brier.search.optimism, "less is better"


def test_what_sets_a_chain_apart_from_a_searched_baseline_are_the_values_that_it_chose(findings):
    trial = pd.Series({"order": "40>100", "student": "micro", "warm_start": True, "params": '{"training.lr": 0.1}'})
    record = trial.copy()
    record["params"] = '{"training.lr": 0.2}'
    assert apart(trial, record, {"lr": 0.3}) == [("training.lr", 0.1, 0.2)]
    record["params"] = "{}"
    assert apart(trial, record, {"lr": 0.3}) == [("training.lr", 0.1, 0.3)]


def test_a_study_that_was_not_finished_tells_of_the_choice_so_far(tmp_path):
    study = load(str(judged_stages.finished(tmp_path, baselines=["joint"], **STUDY)))
    first = study.trials["trial"].isin(["joint-t0000"])
    others = study.trials["kind"].isin(["baseline_search"]) & ~first
    study.trials = study.trials[~others]
    assert study.chosen_of == {"joint": "joint-t0000"}
    study = load(study.folder.location)
    study.trials = study.trials[study.trials["kind"] != "baseline_search"]
    assert study.chosen_of == {}
    assert not study.finished
    told = " ".join(answer(Findings(study, 50)))
    assert "No setting of the searched baseline joint training on all magnifications is complete" in told


def test_a_confirmation_trains_the_chosen_settings_again(findings, monkeypatch):
    study = findings.study
    monkeypatch.setattr("kdtvit_ray.study.replicates.bind", lambda space, data: _Bound(space.with_data("none")))
    monkeypatch.setattr("kdtvit_ray.study.replicates._check_fold", lambda bound, fold: None)
    monkeypatch.setattr("kdtvit_ray.data.folds.split", lambda *about: None)
    bound, asks = replicates(study.folder.location, "nowhere", 1, [2], 1)
    of = {ask.params["of"]: ask for ask in asks}
    assert set(study.chosen_of.values()) <= set(of)
    assert not {"joint", "sequential"} & set(of)
    (stage,) = of[study.chosen_of["joint"]].stages
    chosen = study.trial("joint")
    assert (bound.space.label(stage.model), stage.data.fold) == (chosen["student"], 2)
    assert label(study, study.chosen_of["joint"]) == (
        f"Joint training on all magnifications ({study.chosen_of['joint']})"
    )
    assert baseline_label("per_magnification-40") == "per_magnification-40"
    assert Ledger(study.folder, bound.space, asks).left == len(asks)


class _Bound:
    def __init__(self, space):
        self.space, self.prepared = space, _Prepared()


class _Prepared:
    table = dataset = None
