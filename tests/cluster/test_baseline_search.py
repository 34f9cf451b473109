"""A whole sweep whose baselines are searched too, with real training on a small set: equal to chains run here, told by
the command line, in the page and in its tables."""

import io
import json
import subprocess
import sys

import pandas as pd
import pytest
from rich.console import Console

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import baseline_of, read_trials
from kdtvit_ray.results.study import load
from kdtvit_ray.study.local import run_local
from kdtvit_ray.study.store import StageStore
from tests.cluster.real_sweeps import ROOT, family, same, until, wait_for_end
from tests.cluster.test_sweep import run, run_here
from tests.conftest import SPACE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SEARCHED = (
    SPACE.partition("[search]")[0]
    .replace("trials = 5\nobjective_folds = 1", "trials = 2\nobjective_folds = 2\nbaselines_searched = true")
    .replace('[chain]\nteacher = "big"', '[chain]\norder = "40>100"\nteacher = "big"')
    .replace("epochs = 2", "epochs = 1\nwarmup_epochs = 0.5")
    + '[search]\nalpha = [0.3, 0.9]\nstudent = ["small", "big"]\n'
)


@pytest.fixture(scope="module")
def study(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("searched-baselines")
    space = place / "searched.toml"
    space.write_text(SEARCHED)
    told = run("sweep", space, "--data", data, "--out", place / "study", "--groups", 1)
    assert "baselines 4 of 4 settings ended: " in told
    assert "baseline  joint: joint-t000" in told
    return place / "study"


def test_settings_of_baselines_and_the_same_chains_run_here_give_identical_numbers(study, data):
    folder, found = StudyFolder(str(study)), load(str(study))
    records = read_trials(folder).set_index("trial")
    refits = {name: f"{trial}-refit" for name, trial in found.chosen_of.items()}
    for asked, trial in (("sequential-t0001-i2", "sequential-t0001-i2"), ("joint", refits["joint"])):
        local = run_local(str(study), str(data), asked, {}, None, Console(file=io.StringIO()))
        assert len(local) == len(records.loc[trial, "stages"])
        for here, key in zip(local, records.loc[trial, "stages"], strict=True):
            stored = StageStore(folder).record(key)
            assert here.measures == stored.measures
            assert here.curves == stored.curves


def test_each_searched_baseline_tried_its_settings_and_the_best_one_answers_on_test(study, capsys):
    found = load(str(study))
    tried = found.trials[found.trials["kind"] == "baseline_search"]
    assert tried["trial"].map(baseline_of).value_counts().to_dict() == {"joint": 2, "sequential": 2}
    table = pd.read_csv(study / "report" / "tables" / "searched-baselines.csv")
    assert list(table["chosen"]) == [found.chosen_of["joint"], found.chosen_of["sequential"]]
    for name, trial in found.chosen_of.items():
        own = tried[(tried["trial"].map(baseline_of) == name) & (tried["state"] == "complete")]
        assert trial == own.loc[own["objective"].idxmax(), "trial"]
        assert found.refit(name)["stages"] == found.refit(trial)["stages"]
    asked = [key for keys in found.trials["stages"] for key in keys]
    assert set(StudyFolder(str(study)).names("stages")) == set(asked), "every stage was trained once"
    told = run_here(capsys, "status", study)
    assert ": finished" in told
    assert "baselines 4 of 4 settings ended: " in told
    page = (study / "report" / "index.html").read_text()
    assert found.chosen_of["joint"] in page
    assert "not searched" not in page.replace("The order was not searched in this study", "")


def test_the_space_says_what_it_costs(study, tmp_path, capsys):
    space = tmp_path / "searched.toml"
    space.write_text(SEARCHED)
    told = run_here(capsys, "check", space, "--seconds", 1)
    assert "trials    2 searched + 0 baselines" in told
    assert "+ 4 settings of searched baselines: 2 of joint, 2 of sequential" in told
    params = [json.loads(each) for each in load(str(study)).trials.query("kind == 'baseline_search'")["params"]]
    assert all(set(each) == {"student"} for each in params)


@pytest.mark.parametrize("stages", [3, 9])
def test_killed_while_settings_of_baselines_are_judged_it_ends_with_the_same_rows(study, data, tmp_path, stages):
    out, space = tmp_path / "study", study.parent / "searched.toml"
    command = (sys.executable, "-m", "kdtvit_ray", "sweep", space, "--data", data, "--out", out, "--groups", "1")
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(list(out.glob("stages/*/stage.json"))) >= stages or process.poll() is not None)
    assert process.poll() is None, "it has ended before it could be killed"
    others = family(process.pid)
    process.kill()
    process.wait()
    wait_for_end(others, agents=False)
    run("sweep", space, "--data", data, "--out", out, "--groups", 1)
    same(out, study)
