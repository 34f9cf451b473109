"""Whole sweeps through the command line, with real training on a small set: equal to chains run here, equal to
themselves however many groups and workers run them. `test_inner_folds.py` has one of two groups."""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from kdtvit_ray.argument_values import folds
from kdtvit_ray.cli import main
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_trials
from kdtvit_ray.results.study_status import Status
from kdtvit_ray.study.local import run_local
from kdtvit_ray.study.store import StageStore
from tests.cluster.real_sweeps import ROOT, table

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def run(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "kdtvit_ray", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr if code in (2, 75) else done.stdout + done.stderr


def run_here(capsys, *arguments, code=0):
    """What a command that starts no Ray says. It runs in this process, which has imported what it needs."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == code
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err
    return told.err if code == 2 else told.out + told.err


@pytest.fixture
def mistaken(capsys):
    """What a command that is a user's mistake says."""
    return partial(run_here, capsys, code=2)


@pytest.fixture(scope="module")
def study(tmp_path_factory, data, space):
    out = tmp_path_factory.mktemp("one-group") / "study"
    # relative paths, as people type them: every process has a working folder of its own
    told = run(
        "sweep",
        os.path.relpath(space, ROOT),
        "--data",
        os.path.relpath(data, ROOT),
        "--out",
        os.path.relpath(out, ROOT),
        "--groups",
        1,
    )
    assert "report    " in told
    assert "were prepared at 24 px and the models take 16 px" in " ".join(told.split())
    return out


def test_the_log_repeats_no_complaint_of_ray_about_what_is_not_there(study):
    log = (study / "sweep.log").read_text()
    assert "Started training worker group" in log
    # of the dashboard, every second; of files of trials, for each
    assert "Failed to query" not in log
    assert "Could not fetch metrics" not in log


def test_a_trial_of_the_sweep_and_the_same_chain_run_here_give_identical_numbers(study, data):
    folder = StudyFolder(str(study))
    records = {record.trial: record for record in read_trials(folder).itertuples()}
    for trial in ("t0003", "joint", "sequential"):
        local = run_local(str(study), str(data), trial, {}, None, Console(file=io.StringIO()))
        assert len(local) == len(records[trial].stages)
        for here, key in zip(local, records[trial].stages, strict=True):
            stored = StageStore(folder).record(key)
            assert here.measures == stored.measures
            assert here.curves == stored.curves


def test_each_distinct_stage_was_trained_once_and_fewer_than_were_asked_for(study):
    folder = StudyFolder(str(study))
    records = read_trials(folder)
    asked = [key for keys in records["stages"] for key in keys]
    assert set(folder.names("stages")) == set(asked)
    assert Status.read(folder).stages.trained == len(set(asked)) < len(asked)
    assert folder.names("checkpoints") == []


@pytest.mark.slow  # other tests end a study of two groups with one
def test_two_groups_give_the_same_study_as_one(study, data, space, tmp_path):
    out = tmp_path / "study"
    run("sweep", space, "--data", data, "--out", out, "--groups", 2)
    assert table(out).equals(table(study))


def test_a_trial_run_here_with_another_temperature_keeps_its_other_settings(study, data):
    folder = StudyFolder(str(study))
    keys = next(record.stages for record in read_trials(folder).itertuples() if record.trial == "t0003")
    chosen = {"temperature": 2.0}
    local = run_local(str(study), str(data), "t0003", chosen, None, Console(file=io.StringIO()))
    for here, key in zip(local[1:], keys[1:], strict=True):
        ours, stored = json.loads(json.dumps(here.spec)), StageStore(folder).record(key).spec
        assert ours["distillation"] == {**stored["distillation"], "temperature": 2.0}
        assert (ours["model"], ours["magnifications"]) == (stored["model"], stored["magnifications"])


@pytest.mark.parametrize(("text", "expected"), [("1-3", [1, 2, 3]), ("2", [2]), ("1,3,1-2", [1, 3, 2])])
def test_folds_are_lists_of_ranges(text, expected):
    assert folds(text) == expected


@pytest.mark.parametrize("text", ["5-1", "0", "a", "1-", "", "1,,2"])
def test_other_folds_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="allowed"):
        folds(text)


def test_a_finished_study_is_not_run_again_and_its_report_is_rebuilt(study, data, space, capsys):
    (study / "report" / "index.html").unlink()
    told = run_here(capsys, "sweep", space, "--data", data, "--out", study)
    assert "is finished: 5 trials, 2 baselines." in " ".join(told.split())
    assert (study / "report" / "index.html").exists()
    told = run_here(capsys, "status", study)
    assert "trials    5 of 5 ended: 5 complete" in told
    assert max(map(len, told.splitlines())) <= max(80, len(str(study)) + 40)


@pytest.fixture(scope="module")
def confirmed(study, tmp_path_factory):
    """(folder, command, what it said) of a copy of the study that a group of two workers confirms."""
    out = tmp_path_factory.mktemp("confirmed") / "study"
    shutil.copytree(study, out)
    asked = ("confirm", out, "--top", 1, "--folds", "2", "--seeds", 1, "--groups", 1, "--workers", 2)
    return out, asked, run(*asked)


@pytest.mark.slow
def test_two_workers_agree_with_one_within_floating_point_noise(confirmed, data):
    out, _, _ = confirmed
    folder = StudyFolder(str(out))
    records = read_trials(folder).query("kind == 'confirm'").set_index("trial")
    trial = next(name for name in records.index if name.startswith("t"))
    alone = run_local(str(out), str(data), trial, {}, None, Console(file=io.StringIO()))
    assert len(alone) == len(records.loc[trial, "stages"]) == 4
    for here, key in zip(alone, records.loc[trial, "stages"], strict=True):
        stored = StageStore(folder).record(key)
        assert (here.key, here.cost["workers"], stored.cost["workers"]) == (key, 1, 2)
        ours, theirs = ([each for each in record.measures if each.metric == "brier"] for record in (here, stored))
        assert len(ours) > 0
        assert [replace(each, value=0.0) for each in ours] == [replace(each, value=0.0) for each in theirs]
        np.testing.assert_allclose([each.value for each in ours], [each.value for each in theirs], atol=2e-4)


@pytest.mark.slow
def test_confirm_trains_the_best_trial_and_the_baselines_again_and_tells_of_them(confirmed, capsys):
    out, asked, told = confirmed
    folder = StudyFolder(str(out))
    records = read_trials(folder)
    best = records[records["kind"] == "search"].sort_values(["objective", "number"], ascending=[False, True]).iloc[0]
    again = records[records["kind"] == "confirm"]
    assert set(again["trial"]) == {f"{of}-f2-s0" for of in (best["trial"], "joint", "sequential")}
    assert (again["state"] == "complete").all()
    assert not set(again["stages"].explode()) & set(records[records["kind"] != "confirm"]["stages"].explode())
    assert json.loads(again.set_index("trial").loc[f"{best['trial']}-f2-s0", "params"])["params"] == json.loads(
        best["params"]
    )
    assert "report    " in told
    assert "confirm   3 of 3 replicates done" in run_here(capsys, "status", out)
    assert "is finished" in run_here(capsys, *asked)
    assert "onfirm" in (out / "report" / "report.md").read_text()


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
            "'t0099' (did you mean 't0004'?); allowed: t0000, t0001, t0002, t0003, t0004, joint, sequential",
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


@pytest.mark.parametrize(
    ("address", "code", "reason"),
    [("127.0.0.1:1", 75, "Connection refused"), ("ray://here:10001", 2, "it is not of the form HOST:PORT")],
)
def test_a_cluster_that_is_not_there_is_told_at_once(data, space, tmp_path, address, code, reason):
    output = run("sweep", space, "--data", data, "--out", tmp_path / "study", "--address", address, code=code)
    assert f"kdtvit-ray: Cannot reach the Ray cluster at '{address}': " in output
    assert reason in output
