"""A whole sweep whose objective is over inner folds, with real training on a small set: equal to chains run here, to
itself however many groups run it, and to itself when it is stopped and started again."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_trials
from kdtvit_ray.results.study import load
from kdtvit_ray.results.study_status import Status
from kdtvit_ray.study.local import run_local
from kdtvit_ray.study.store import StageStore
from tests.cluster.real_sweeps import ROOT, family, same, table, until, wait_for_end
from tests.cluster.test_sweep import run, run_here
from tests.conftest import SPACE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

JUDGED = (
    SPACE.replace("trials = 5\nobjective_folds = 1\nlag = 2", "trials = 3\nobjective_folds = 2\nlag = 1")
    .replace('baselines = ["joint", "sequential"]', 'baselines = ["sequential"]')
    .replace("epochs = 2", "epochs = 1\nwarmup_epochs = 0.5\nrehearsal = 0.25")
)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("judged") / "judged.toml"
    path.write_text(JUDGED)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory, data, space):
    out = tmp_path_factory.mktemp("judged-study") / "study"
    # relative paths, as people type them: every process has a working folder of its own
    at = {name: os.path.relpath(path, ROOT) for name, path in (("space", space), ("data", data), ("out", out))}
    told = run("sweep", at["space"], "--data", at["data"], "--out", at["out"], "--groups", 2)
    assert "report    " in told
    assert "were prepared at 24 px and the models take 16 px" in " ".join(told.split())
    return out


@pytest.fixture
def mistaken(capsys):
    """What a command that is a user's mistake says."""
    return partial(run_here, capsys, code=2)


def test_the_objective_is_that_of_all_development_patients(study):
    found = load(str(study))
    assert len(found.settings)
    everyone = found.plain["data"]["splits"]["train"]["patients"]
    for setting in found.settings.itertuples():
        frames = pd.concat(found.out_of_fold(setting.trial).values())
        assert frames["patient"].nunique() == everyone
        chains = [found.predictions(chain["stages"][-1]) for chain in found.chains(setting.trial).values()]
        assert pd.concat([each[each["split"] == "validation"] for each in chains])["image"].is_unique
        by_magnification = [
            roc_auc_score(part["malignant"], part["probability"]) for _, part in frames.groupby("magnification")
        ]
        assert setting.objective == pytest.approx(np.mean(by_magnification), abs=1e-12)


def test_chains_of_the_sweep_and_the_same_chains_run_here_give_identical_numbers(study, data):
    folder = StudyFolder(str(study))
    records = read_trials(folder).set_index("trial")
    refit = next(trial for trial in records.index if re.fullmatch("t[0-9]+-refit", trial))
    twin = refit.replace("-refit", "-without_rehearsal-refit")
    for trial in ("t0000-i1", "t0000-i2", "sequential-i2", refit, twin):
        local = run_local(str(study), str(data), trial, {}, None, Console(file=io.StringIO()))
        for here, key in zip(local, records.loc[trial, "stages"], strict=True):
            stored = StageStore(folder).record(key)
            assert here.measures == stored.measures
            assert here.curves == stored.curves


def test_settings_are_judged_and_what_answers_on_test_is_refit(study, capsys):
    records = read_trials(StudyFolder(str(study)))
    kinds = records["kind"].value_counts()
    assert kinds["search"] == 3
    assert kinds["baseline"] == 1
    of = [json.loads(each)["of"] for each in records[records["kind"] == "refit"]["params"]]
    assert {"sequential"} < set(of)
    for record in records[records["kind"] == "refit"].itertuples():
        rows = table(study).query(f"trial == '{record.trial}'")
        assert set(rows["split"]) == {"test"}
    assert ": finished" in run_here(capsys, "status", study)


def test_the_log_repeats_no_complaint_of_ray_about_what_is_not_there(study):
    log = (study / "sweep.log").read_text()
    assert "Started training worker group" in log
    # of the dashboard, every second; of files of trials, for each
    assert "Failed to query" not in log
    assert "Could not fetch metrics" not in log


def test_each_distinct_stage_was_trained_once_and_fewer_than_were_asked_for(study):
    folder = StudyFolder(str(study))
    records = read_trials(folder)
    asked = [key for keys in records["stages"] for key in keys]
    assert set(folder.names("stages")) == set(asked)
    assert Status.read(folder).stages.trained == len(set(asked)) < len(asked)
    assert folder.names("checkpoints") == []


def test_a_trial_run_here_with_another_temperature_keeps_its_other_settings(study, data):
    folder = StudyFolder(str(study))
    keys = next(record.stages for record in read_trials(folder).itertuples() if record.trial == "t0000-i1")
    chosen = {"temperature": 2.0}
    local = run_local(str(study), str(data), "t0000-i1", chosen, None, Console(file=io.StringIO()))
    for here, key in zip(local[1:], keys[1:], strict=True):
        ours, stored = json.loads(json.dumps(here.spec)), StageStore(folder).record(key).spec
        assert ours["distillation"] == {**stored["distillation"], "temperature": 2.0}
        assert (ours["model"], ours["magnifications"]) == (stored["model"], stored["magnifications"])


def test_a_finished_study_is_not_run_again_and_its_report_is_rebuilt(study, data, space, capsys):
    (study / "report" / "index.html").unlink()
    told = run_here(capsys, "sweep", space, "--data", data, "--out", study)
    assert "is finished: 3 trials, 1 baseline." in " ".join(told.split())
    assert (study / "report" / "index.html").exists()
    told = run_here(capsys, "status", study)
    assert "trials    3 of 3 ended: " in told
    assert max(map(len, told.splitlines())) <= max(80, len(str(study)) + 40)


def test_what_cannot_be_confirmed_is_one_sentence_with_exit_code_two(study, tmp_path, mistaken):
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(study / "study.toml", empty)
    for arguments, told in (
        (("confirm", study, "--folds", "9"), "Fold 9 does not exist in this study; allowed: 1 to 3"),
        (("confirm", empty), "has no complete trial to confirm; run its sweep first"),
        (("confirm", tmp_path / "none"), "is not a study"),
    ):
        output = mistaken(*arguments)
        assert output.startswith("kdtvit-ray: ")
        assert told in output
        assert output.count("\n") == 1


def test_mistakes_are_one_sentence_with_exit_code_two(study, data, space, tmp_path, mistaken):
    for arguments, told in (
        (("sweep", "dmo", "--data", data, "--out", tmp_path / "x"), "did you mean 'demo'"),
        (("sweep", space, "--data", tmp_path / "none", "--out", tmp_path / "x"), "none"),
        (("sweep", space, "--data", data, "--out", study, "--seed", 8), "[study] seed was 7, is 8"),
        (("sweep", space, "--data", data, "--out", data), "holds other files; choose a new folder for the study"),
        (("sweep", space, "--data", data, "--out", study, "--stages", space), "is a file; choose a folder"),
        (("status", tmp_path), "is not a study"),
        (("report", tmp_path / "none"), "none"),
        (("chain", space, "--data", data, "--order", "40>40"), "not a sequence of different magnifications"),
        (
            ("chain", space, "--data", data, "--order", "40>50"),
            "at 50X, which the set 'BreakHis names, other images' does not have",
        ),
        (
            ("chain", study, "--data", data, "--trial", "99"),
            "'t0099' (did you mean 't0002'?); allowed: t0000, t0001, t0002, sequential",
        ),
        (
            ("chain", space, "--data", data, "--trial", "3"),
            "is a space, and only a study has a trial 3; allowed: a stu",
        ),
    ):
        *notes, mistake = mistaken(*arguments).splitlines()
        assert told in mistake
        assert mistake.startswith("kdtvit-ray: ")
        assert not any(each.startswith("kdtvit-ray: ") for each in notes)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_study_that_lost_its_last_records_ends_as_it_had_ended_with_one_group(study, data, space, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study, out)
    folder = StudyFolder(str(out))
    records = read_trials(folder)
    for path in (out / "trials").glob("part-*"):  # as if it had been stopped early: few records, no refits
        path.unlink()
    kept = records[records["trial"].isin(["t0000-i1", "t0000-i2", "t0001-i1", "sequential-i1"])]
    kept.to_parquet(out / "trials" / "part-000001.parquet")
    shutil.rmtree(out / "stages" / records.iloc[-1]["stages"][-1])
    run("sweep", space, "--data", data, "--out", out, "--groups", 1)
    again = read_trials(folder)
    drop = ["started", "finished", "cost_seconds"]
    pd.testing.assert_frame_equal(again.drop(columns=drop), records.drop(columns=drop))


@pytest.mark.slow
def test_confirm_trains_on_all_development_patients_of_other_folds(study, data, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study, out)
    run("confirm", out, "--top", 1, "--folds", "2", "--seeds", 1, "--groups", 2)
    again = read_trials(StudyFolder(str(out))).query("kind == 'confirm'")
    assert (again["state"] == "complete").all()
    store = StageStore(StudyFolder(str(out)))
    for keys in again["stages"]:
        spec = store.record(keys[-1]).spec["data"]
        assert (spec["fold"], spec["inner_folds"]) == (2, 1)


def test_inner_folds_that_cannot_be_made_are_one_sentence(data, space, tmp_path, capsys):
    other = tmp_path / "many.toml"
    other.write_text(JUDGED.replace("objective_folds = 2", "objective_folds = 60"))
    told = run_here(capsys, "sweep", other, "--data", data, "--out", tmp_path / "x", code=2)
    assert "60 inner folds" in told
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_whole_search_is_repeated_in_other_outer_folds(study, data, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study, out)
    run("confirm", out, "--search", "--folds", "1-3", "--groups", 2)
    for fold in (2, 3):
        other = load(str(out / "outer" / f"fold-{fold}"))
        assert other.finished
        assert other.plain["protocol"]["fold"] == fold
        assert len(other.settings)
    assert "With the whole search repeated in 3 outer folds" in (out / "report" / "report.md").read_text()


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_ends_as_the_undisturbed_one(study, data, space, tmp_path):
    out = tmp_path / "study"
    asked = ("sweep", str(space), "--data", str(data), "--out", str(out))
    for stages in (2, 9, 16):  # finished ones, more each time
        command = [sys.executable, "-m", "kdtvit_ray", *asked, "--groups", "2"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        sweep = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **silent)
        until(lambda stages=stages: len(list(out.glob("stages/*/stage.json"))) >= stages)
        others = family(sweep.pid)
        sweep.kill()
        sweep.wait()
        wait_for_end(others, agents=False)
    run(*asked, "--groups", 1)
    same(out, study)
