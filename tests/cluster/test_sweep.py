"""Whole sweeps through the command line, with real training on a small set: equal to chains run here, equal to
themselves however many groups and workers run them. Their objective is of one validation part: `test_inner_folds.py`
has a sweep whose objective is over inner folds, and what a user may do wrong."""

import argparse
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from kdtvit_ray.argument_values import folds
from kdtvit_ray.cli import main
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_trials
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


@pytest.fixture(scope="module")
def study(tmp_path_factory, data, space):
    out = tmp_path_factory.mktemp("one-group") / "study"
    run("sweep", space, "--data", data, "--out", out, "--groups", 1)
    return out


@pytest.mark.slow
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


@pytest.mark.slow  # other tests end a study of two groups with one
def test_two_groups_give_the_same_study_as_one(study, data, space, tmp_path):
    out = tmp_path / "study"
    run("sweep", space, "--data", data, "--out", out, "--groups", 2)
    assert table(out).equals(table(study))


@pytest.mark.parametrize(("text", "expected"), [("1-3", [1, 2, 3]), ("2", [2]), ("1,3,1-2", [1, 3, 2])])
def test_folds_are_lists_of_ranges(text, expected):
    assert folds(text) == expected


@pytest.mark.parametrize("text", ["5-1", "0", "a", "1-", "", "1,,2"])
def test_other_folds_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="allowed"):
        folds(text)


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


def test_a_cluster_that_is_not_there_is_told_at_once(data, space, tmp_path):
    address = "127.0.0.1:1"
    output = run("sweep", space, "--data", data, "--out", tmp_path / "study", "--address", address, code=75)
    assert f"kdtvit-ray: Cannot reach the Ray cluster at '{address}': " in output
    assert "Connection refused" in output
