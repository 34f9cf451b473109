"""Confirmed chains: means over folds and seeds on test, merged per-magnification models, the corrected t-test."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
import tomli_w
from scipy import stats
from sklearn.metrics import roc_auc_score

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.report import confirmation_section
from kdtvit_ray.results.confirmation import runs, uneven
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.rivals import trained_again
from kdtvit_ray.results.rows import TrialRecord, write_trial
from kdtvit_ray.results.statistics import Sides
from kdtvit_ray.results.study import load
from tests.results.fake_study import study_file
from tests.results.measured import table_of

pytestmark = pytest.mark.usefixtures("unrendered")

VALUES = {  # chain: AUC at 40X by run (fold, seed); 100X is 0.1 more
    "t0003": {(1, 0): 0.80, (1, 1): 0.84, (2, 0): 0.78, (2, 1): 0.90},
    "sequential": {(1, 0): 0.75, (1, 1): 0.80, (2, 0): 0.77, (2, 1): 0.80},
}


def confirmed(study):
    return Findings(study).confirmed


def pooled(study, replicates):
    return Findings(study, replicates).pooled


def write_study(folder, study, chain, train=100):
    """With `train` training images for 25 test images."""
    splits = {"test": {"images": 25, "patients": 5}, "train": {"images": train, "patients": 20}}
    plain = study_file(study={"baselines": [], **study}, chain=chain, data={"splits": splits})
    folder.write(folder.study, tomli_w.dumps(plain).encode())


@pytest.fixture
def study(tmp_path):
    folder = StudyFolder(str(tmp_path))
    write_study(folder, {"trials": 5}, {"order": "40>100"})

    def write(of, fold, seed, by_magnification, stages=2):
        trial = f"{of}-f{fold}-s{seed}"
        params = json.dumps({"of": of, "params": {}, "fold": fold, "seed": seed})
        keys = [f"k{trial}{index}" for index in range(stages)]
        record = TrialRecord(trial, kind="confirm", params=params, stages=keys, objective=0.5, seed=seed, fold=fold)
        rows = [
            {
                "study": "s",
                "trial": trial,
                "stage": stage,
                "key": keys[stage - 1],
                "trained": "40",
                "magnification": magnification,
                "split": split,
                "level": "image",
                "metric": "auc",
                "value": value if split == "test" and stage == stages else 0.123,
            }
            for stage in range(1, stages + 1)
            for split in ("validation", "test")
            for magnification, value in by_magnification.items()
        ]
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
        ("40X", 0.6),
        ("100X", 0.7),
        ("mean", 0.65),
    }


def test_only_a_chain_that_was_chosen_among_others_is_called_the_best(study, small):
    """The others that were trained again with t0003 are baselines."""
    assert next(trained_again(Findings(study, 50))).startswith("Trained again 4 times over 2 folds, t0003 reaches AUC")
    several = next(trained_again(Findings(small, 50)))
    assert re.search(r"over 2 folds, t000[01], the best of the 2 settings on validation, reaches AUC", several), several


def folds_of(chain):
    """Means over the seeds of each fold."""
    return np.array([np.mean([v for (f, _), v in VALUES[chain].items() if f == fold]) for fold in (1, 2)])


def test_mean_sd_and_the_corrected_interval_over_folds_against_scipy(study):
    table = confirmed(study).query("level == 'image'").set_index(["chain", "column"])
    line = table.loc[("t0003", "40X")]
    values = folds_of("t0003")
    assert (line["runs"], line["folds"]) == (4, 2)
    assert line["mean"] == pytest.approx(values.mean())
    assert line["sd"] == pytest.approx(values.std(ddof=1))
    error = np.sqrt((1 / 2 + 25 / 100) * values.var(ddof=1))
    low, high = stats.t.interval(0.95, 1, values.mean(), error)
    assert (line["low"], line["high"]) == (pytest.approx(max(low, 0)), pytest.approx(min(high, 1)))
    assert table.loc[("t0003", "mean")]["mean"] == pytest.approx(values.mean() + 0.05)


def test_chains_are_compared_fold_by_fold_and_corrected_by_holm(study):
    table = confirmed(study).query("level == 'image'").set_index(["chain", "column"])
    line = table.loc[("sequential", "40X")]
    differences = folds_of("t0003") - folds_of("sequential")
    t = differences.mean() / np.sqrt((1 / 2 + 25 / 100) * differences.var(ddof=1))
    assert line["difference"] == pytest.approx(differences.mean())
    assert line["p"] == pytest.approx(2 * stats.t.sf(abs(t), 1))
    others = table.xs("40X", level="column").dropna(subset="p")
    smallest = others["p"].idxmin()
    assert others.loc[smallest, "p_holm"] == pytest.approx(min(1.0, 2 * others.loc[smallest, "p"]))
    assert pd.isna(table.loc[("t0003", "40X"), "p"])


def without(study, chain, fold):
    """The study while the replicates of a chain at one fold have failed."""
    gone = study.trials["trial"].str.startswith(f"{chain}-f{fold}-")
    assert gone.any()
    study.trials.loc[gone, "state"] = "failed"
    return study


def test_a_chain_whose_replicates_of_a_fold_failed_has_one_fold_and_no_interval(study):
    table = confirmed(without(study, "t0003", 2)).query("level == 'image'").set_index(["chain", "column"])
    line = table.loc[("t0003", "40X")]
    assert (line["runs"], line["folds"], line["mean"]) == (2, 1, pytest.approx(0.82))
    assert line["sd"] == pytest.approx(np.std([0.80, 0.84], ddof=1)), "over the seeds"
    assert np.isnan([line["low"], line["high"]]).all()
    assert table.loc[("sequential", "40X"), "folds"] == 2
    assert np.isfinite(table.loc[("sequential", "40X"), "low"])
    assert "p" not in table, "no chain has two folds with the first one"
    findings = Findings(study, 50)
    sentences = list(trained_again(findings))
    assert sentences[0].startswith("Trained again with 2 seeds at one fold, t0003 reaches AUC 0.870")
    assert "Nadeau" not in " ".join(sentences)
    told = "Of the 2 folds t0003 has 1, since replicates failed, have not ended or have no mean: one over other"
    assert sentences[1].startswith(told)
    blocks = confirmation_section.confirmations(findings)
    assert told in blocks[0].text
    (_, means) = blocks[1].tables[0]
    assert [row.cells[1:3] for row in means.rows if row.cells[0].startswith("t0003")] == [(2, 1)]


def test_a_mean_without_an_interval_names_no_test(study):
    findings = Findings(study, 50)
    (told, *_) = trained_again(findings)
    assert "by Nadeau and Bengio's corrected t over the folds. Its settings were chosen" in told
    findings.confirmed = findings.confirmed.assign(low=np.nan, high=np.nan)
    (told, *_) = trained_again(findings)
    assert "over 2 folds, t0003 reaches AUC" in told
    assert "(sd) on test. Its settings were chosen" in told


def test_a_rival_without_a_fold_is_compared_over_the_folds_that_both_have(study):
    table = confirmed(without(study, "sequential", 2)).query("level == 'image'").set_index(["chain", "column"])
    assert table.loc[("t0003", "40X"), "folds"] == 2
    assert table.loc[("sequential", "40X"), "folds"] == 1
    assert np.isnan(table.loc[("sequential", "40X"), "difference"])
    assert np.isfinite(table.loc[("per_magnification", "40X"), "p"])


def test_chains_with_as_many_other_folds_are_told(study):
    assert Findings(study).uneven == ""
    apart = without(without(study, "t0003", 2), "sequential", 1)
    told = uneven(apart, runs(apart), confirmed(apart).query("chain != 'per_magnification'"))
    assert told.startswith("Of the 2 folds t0003 has 1 and sequential fine-tuning without distillation has 1, since")


@pytest.mark.parametrize("copies", [1, 3, 10])
def test_seeds_that_repeat_a_fold_add_no_evidence(tmp_path, copies):
    by_fold = {1: 0.04, 2: 0.01, 3: -0.01, 4: 0.05, 5: 0.02}
    folder = StudyFolder(str(tmp_path))
    write_study(folder, {"trials": 1}, {"order": "40"})
    for fold, difference in by_fold.items():
        for seed in range(copies):
            for of, value in (("t0000", 0.8 + difference), ("sequential", 0.8)):
                trial = f"{of}-f{fold}-s{seed}"
                params = json.dumps({"of": of, "params": {}, "fold": fold, "seed": seed})
                record = TrialRecord(trial, kind="confirm", params=params, stages=[f"k{trial}"], objective=0.5)
                row = {
                    "study": "s",
                    "trial": trial,
                    "stage": 1,
                    "key": f"k{trial}",
                    "trained": "40",
                    "magnification": 40,
                    "split": "test",
                    "level": "image",
                    "metric": "auc",
                    "value": value,
                }
                write_trial(folder, record, table_of([row]))
    write_trial(folder, TrialRecord("t0000", number=0, stages=["k"], objective=0.9), table_of([]))
    table = confirmed(load(str(tmp_path))).query("column == 'mean'").set_index("chain")
    assert table.loc["sequential", "runs"] == 5 * copies
    values = np.array(list(by_fold.values()))
    t = values.mean() / np.sqrt((1 / 5 + 1 / 4) * values.var(ddof=1))
    assert table.loc["sequential", "p"] == pytest.approx(2 * stats.t.sf(abs(t), 4))  # whatever the copies


def pooled_study(tmp_path, disjoint=True, seeds=2, patients=20, folds=3):
    """Chains `good` and `poor` over folds; predictions of each patient at 40X and 100X, by fold and seed."""
    rng = np.random.default_rng(0)
    folder = StudyFolder(str(tmp_path))
    write_study(folder, {"trials": 2}, {"order": "40>100"}, train=50)
    frames = {}
    for fold in range(folds):
        for seed in range(seeds):
            for chain, skill in (("t0000", 2.0), ("t0001", 0.3)):
                trial = f"{chain}-f{fold + 1}-s{seed}"
                first = fold * patients if disjoint else 0
                patient = np.repeat(np.arange(first, first + patients), 4)
                malignant = patient % 2 == 0
                score = 1 / (1 + np.exp(-(skill * (2 * malignant - 1) + rng.normal(0, 1.5, len(patient)))))
                frame = pd.DataFrame(
                    {
                        "image": np.arange(len(patient)),
                        "magnification": np.tile([40, 40, 100, 100], patients),
                        "split": "test",
                        "malignant": malignant,
                        "patient": [f"p{each:03d}" for each in patient],
                        "probability": score,
                    }
                )
                frames[chain, fold + 1, seed] = frame
                content = io.BytesIO()
                frame.to_parquet(content, index=False)
                folder.write(folder.predictions(f"k{trial}"), content.getvalue())
                params = json.dumps({"of": chain, "params": {}, "fold": fold + 1, "seed": seed})
                rows = [
                    {
                        "study": "s",
                        "trial": trial,
                        "stage": 1,
                        "key": f"k{trial}",
                        "trained": "40",
                        "magnification": magnification,
                        "split": "test",
                        "level": "image",
                        "metric": "auc",
                        "value": roc_auc_score(part["malignant"], part["probability"]),
                    }
                    for magnification, part in frame.groupby("magnification")
                ]
                write_trial(
                    folder, TrialRecord(trial, kind="confirm", params=params, stages=[f"k{trial}"]), table_of(rows)
                )
    for number, chain in enumerate(("t0000", "t0001")):
        write_trial(
            folder, TrialRecord(chain, number=number, stages=[chain], objective=0.9 - number / 10), table_of([])
        )
    return load(str(tmp_path)), frames


def test_pooled_folds_with_few_patients_at_a_magnification_have_no_interval_there(tmp_path):
    study, frames = pooled_study(tmp_path, seeds=1)
    for (chain, fold, seed), frame in frames.items():  # at 100X two patients a fold have images, one of each class
        content = io.BytesIO()
        kept = frame[(frame["magnification"] == 40) | frame["patient"].isin(frame["patient"].unique()[:2])]
        kept.to_parquet(content, index=False)
        study.folder.write(study.folder.predictions(f"k{chain}-f{fold}-s{seed}"), content.getvalue())
    table = pooled(load(study.folder.root), 500).table.query("level == 'image' and metric == 'auc'")
    table = table.set_index(["chain", "column"])
    for column, there in (("40X", True), ("100X", False), ("mean", False)):
        assert np.isfinite(table.loc[("t0000", column), "low"]) == there
        found = table.loc[("t0001", column), ["difference_low", "p", "p_holm"]].astype(float)
        assert np.isfinite(found).tolist() == [there] * 3


def test_pooled_folds_judge_every_patient_once_and_average_over_seeds(tmp_path):
    study, frames = pooled_study(tmp_path)
    found = pooled(study, 2_000)
    assert (found.folds, found.seeds, found.patients) == (3, 2, Sides(30, 30, 60))
    table = found.table.query("level == 'image' and metric == 'auc'").set_index(["chain", "column"])
    for chain in ("t0000", "t0001"):
        by_seed = []
        for seed in (0, 1):
            together = pd.concat([frames[chain, fold, seed] for fold in (1, 2, 3)])
            by_seed.append(
                [roc_auc_score(part["malignant"], part["probability"]) for _, part in together.groupby("magnification")]
            )
        expected = np.mean(by_seed, axis=0)
        assert table.loc[(chain, "40X"), "value"] == pytest.approx(expected[0])
        assert table.loc[(chain, "100X"), "value"] == pytest.approx(expected[1])
        assert table.loc[(chain, "mean"), "value"] == pytest.approx(expected.mean())
        assert table.loc[(chain, "mean"), "low"] < expected.mean() < table.loc[(chain, "mean"), "high"]
    worse = table.loc[("t0001", "mean")]
    assert worse["difference"] == pytest.approx(table.loc[("t0000", "mean"), "value"] - worse["value"])
    assert pd.isna(table.loc[("t0000", "mean"), "p"])
    by_fold = [
        np.mean([mean_auc(frames["t0000", fold, seed]) - mean_auc(frames["t0001", fold, seed]) for seed in (0, 1)])
        for fold in (1, 2, 3)
    ]
    error = np.sqrt(np.var(by_fold, ddof=1) * (1 / 3 + 1 / 2))  # two thirds of the patients train
    assert worse["p_holm"] == worse["p"] == pytest.approx(2 * stats.t.sf(worse["difference"] / error, 2))
    half = stats.t.isf(0.025, 2) * error
    assert worse["difference_low"] == pytest.approx(worse["difference"] - half)
    assert worse["difference_high"] == pytest.approx(worse["difference"] + half)
    said = " ".join(trained_again(Findings(study, 200)))
    assert "pooled, patients resampled; for these trained models: chance in training is not in it)." in said
    assert "differences allow for other patients and for chance in training, which is told from how far the" in said


def mean_auc(frame):
    return np.mean(
        [roc_auc_score(part["malignant"], part["probability"]) for _, part in frame.groupby("magnification")]
    )


def test_folds_that_test_a_patient_twice_are_not_pooled(tmp_path):
    study, _ = pooled_study(tmp_path, disjoint=False)
    assert pooled(study, 200) is None
    assert not confirmed(study).empty


def test_one_fold_is_not_pooled(tmp_path):
    study, _ = pooled_study(tmp_path, folds=1)
    assert pooled(study, 200) is None


def test_a_study_without_confirmation_has_an_empty_table(tmp_path):
    write_study(StudyFolder(str(tmp_path)), {}, {})
    assert confirmed(load(str(tmp_path))).empty
