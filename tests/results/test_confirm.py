"""Confirmed chains: means over folds and seeds on test, merged per-magnification models, the corrected t-test."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.confirm import confirmed, runs
from kdtvit_ray.results.rows import TrialRecord, table_of, write_trial
from kdtvit_ray.results.study import load

VALUES = {  # chain: AUC at 40X by run (fold, seed); 100X is 0.1 more
    "t0003": {(1, 0): 0.80, (1, 1): 0.84, (2, 0): 0.78, (2, 1): 0.90},
    "sequential": {(1, 0): 0.75, (1, 1): 0.80, (2, 0): 0.77, (2, 1): 0.80},
}


@pytest.fixture
def study(tmp_path):
    folder = StudyFolder(str(tmp_path))
    splits = {"test": {"images": 25}, "train": {"images": 100}}
    folder.write(
        folder.study,
        b"version = 1\n[study]\nname = 's'\ntrials = 5\nmetric = 'auc'\nbaselines = []\n[protocol]\nname = 'patient'\n"
        b"[chain]\norder = '40>100'\n"
        + f"[data]\nleaks = false\n[data.splits]\ntest = {{images = {splits['test']['images']}}}\n"
        f"train = {{images = {splits['train']['images']}}}\n".encode(),
    )

    def write(of, fold, seed, by_magnification, stages=2):
        trial = f"{of}-f{fold}-s{seed}"
        params = json.dumps({"of": of, "params": {}, "fold": fold, "seed": seed})
        keys = [f"k{trial}{index}" for index in range(stages)]
        record = TrialRecord(trial, kind="confirm", params=params, stages=keys, objective=0.5, seed=seed, fold=fold)
        rows = [
            {"study": "s", "trial": trial, "stage": stage, "key": keys[stage - 1], "trained": "40",
             "magnification": magnification, "split": split, "level": "image", "metric": "auc",
             "value": value if split == "test" and stage == stages else 0.123}
            for stage in range(1, stages + 1)
            for split in ("validation", "test")
            for magnification, value in by_magnification.items()
        ]  # fmt: skip
        write_trial(folder, record, table_of(rows))

    for of, values in VALUES.items():
        for (fold, seed), value in values.items():
            write(of, fold, seed, {40: value, 100: value + 0.1})
    for fold, seed in VALUES["t0003"]:
        write("per_magnification-40", fold, seed, {40: 0.6, 100: 0.0}, stages=1)
        write("per_magnification-100", fold, seed, {40: 0.0, 100: 0.7}, stages=1)
    return load(str(tmp_path))


def test_only_the_last_stage_on_test_counts_and_per_magnification_models_are_one_chain(study):
    every = runs(study)
    assert set(every["chain"]) == {"t0003", "sequential", "per_magnification"}
    merged = every[every["chain"] == "per_magnification"]
    assert set(zip(merged["column"], merged["value"].round(6), strict=True)) == {
        ("40", 0.6), ("100", 0.7), ("mean", 0.65)
    }  # fmt: skip


def test_mean_sd_and_the_corrected_interval_against_scipy(study):
    table = confirmed(study).query("level == 'image'").set_index(["chain", "column"])
    line = table.loc[("t0003", "40")]
    values = np.array(list(VALUES["t0003"].values()))
    assert line["runs"] == 4
    assert line["mean"] == pytest.approx(values.mean())
    assert line["sd"] == pytest.approx(values.std(ddof=1))
    error = np.sqrt((1 / 4 + 25 / 100) * values.var(ddof=1))
    low, high = stats.t.interval(0.95, 3, values.mean(), error)
    assert (line["low"], line["high"]) == (pytest.approx(low), pytest.approx(high))
    assert table.loc[("t0003", "mean")]["mean"] == pytest.approx(values.mean() + 0.05)


def test_chains_are_compared_run_by_run_and_corrected_by_holm(study):
    table = confirmed(study).query("level == 'image'").set_index(["chain", "column"])
    ours, theirs = (np.array(list(VALUES[chain].values())) for chain in ("t0003", "sequential"))
    line = table.loc[("sequential", "40")]
    differences = ours - theirs
    t = differences.mean() / np.sqrt((1 / 4 + 25 / 100) * differences.var(ddof=1))
    assert line["difference"] == pytest.approx(differences.mean())
    assert line["p"] == pytest.approx(2 * stats.t.sf(abs(t), 3))
    others = table.xs("40", level="column").dropna(subset="p")
    smallest = others["p"].idxmin()
    assert others.loc[smallest, "p_holm"] == pytest.approx(min(1.0, 2 * others.loc[smallest, "p"]))
    assert pd.isna(table.loc[("t0003", "40"), "p"])


def test_a_study_without_confirmation_has_an_empty_table(tmp_path):
    (tmp_path / "study.toml").write_text("version = 1\n[study]\nname = 's'\n[protocol]\n")
    assert confirmed(load(str(tmp_path))).empty
