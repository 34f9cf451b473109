"""Chains that are trained anew in every fold: by hand, and on studies whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from kdtvit_ray.results.bootstrap import bootstrap, paired, resample
from kdtvit_ray.results.pooling import differences, measure_folds
from tests.benchmarks import training_chance

CELL = ("image", "auc", "mean")


def frames(rng, skill, folds=4, patients=12):
    """Predictions of one seed: of each fold, two images of each patient at 40X and 100X."""
    made = []
    for fold in range(folds):
        patient = np.repeat(np.arange(patients) + fold * patients, 4)
        malignant = patient % 2 == 0
        score = skill * malignant + rng.normal(0, 1, len(patient)) + rng.normal(0, 0.3)
        columns = {"malignant": malignant, "probability": 1 / (1 + np.exp(-score))}
        place = {"patient": np.char.mod("p%02d", patient), "magnification": np.tile([40, 40, 100, 100], patients)}
        made.append(pd.DataFrame({**place, **columns}))
    return made


def auc(frame):
    return np.mean(
        [roc_auc_score(part["malignant"], part["probability"]) for _, part in frame.groupby("magnification")]
    )


@pytest.fixture(scope="module")
def chains():
    """Three chains of two seeds: predictions, and what is measured."""
    rng = np.random.default_rng(0)
    made = [[frames(rng, skill), frames(rng, skill)] for skill in (1.5, 1.2, 0.2)]
    everyone = pd.concat(made[0][0])
    drawn = resample(everyone["patient"].to_numpy(), everyone["malignant"].to_numpy(), 1_000)
    return made, [measure_folds(seeds, drawn, (40, 100)) for seeds in made], drawn


def test_values_are_those_of_all_folds_together_and_of_each_alone(chains):
    made, measured, drawn = chains
    for seeds, found in zip(made, measured, strict=True):
        assert found.pooled.values[CELL] == pytest.approx(np.mean([auc(pd.concat(folds)) for folds in seeds]))
        by_fold = [np.mean([auc(folds[fold]) for folds in seeds]) for fold in range(4)]
        assert found.by_fold[CELL] == pytest.approx(by_fold)
        alone = [bootstrap(pd.concat(folds), drawn, (40, 100)).replicates[CELL] for folds in seeds]
        assert found.pooled.replicates[CELL] == pytest.approx(np.mean(alone, axis=0))


def test_a_difference_is_as_sure_as_patients_and_folds_both_make_it(chains):
    made, measured, _ = chains
    values = np.array([[np.mean([auc(folds[fold]) for folds in seeds]) for fold in range(4)] for seeds in made])
    chain, fold = (each.ravel() for each in np.indices(values.shape))
    design = np.concatenate([np.eye(3)[chain], np.eye(4)[fold][:, 1:]], axis=1)
    left = values.ravel() - design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
    error = np.sqrt(2 * (left @ left) / (12 - 6) * (1 / 4 + 1 / 3))
    half = stats.t.isf(0.025, 6) * error
    for other, found in zip(measured[1:], differences(measured, CELL, 1 / 3), strict=True):
        over_patients = paired(measured[0].pooled, other.pooled, CELL)
        value = measured[0].pooled.values[CELL] - other.pooled.values[CELL]
        assert found.interval.value == pytest.approx(value)
        assert found.interval.low == pytest.approx(min(over_patients.interval.low, value - half))
        assert found.interval.high == pytest.approx(max(over_patients.interval.high, value + half))
        assert found.p == pytest.approx(max(over_patients.p, 2 * stats.t.sf(abs(value) / error, 6)))
    assert differences(measured[:1], CELL, 1 / 3) == []


def test_a_fold_without_one_class_counts_for_patients_alone(chains):
    made, _, drawn = chains

    def without(folds, gone):
        """With no image of a malignant patient in some folds."""
        return [each[~each["malignant"]] if place in gone else each for place, each in enumerate(folds)]

    for gone, there in (({0}, True), ({0, 1, 2}, False)):
        measured = [measure_folds([without(seeds[0], gone)], drawn, (40, 100)) for seeds in made]
        assert np.isfinite(measured[0].by_fold[CELL]).tolist() == [place not in gone for place in range(4)]
        found = differences(measured, CELL, 1 / 3)
        assert [each.interval.bounded for each in found] == [np.isfinite(each.p) for each in found] == [there] * 2
        assert all(np.isfinite(each.interval.value) for each in found)


def test_chance_in_training_is_seldom_taken_for_a_difference():
    """Chains that are equal but for it, over two folds; what looks at patients alone often takes it for one."""
    found = training_chance.claims(2, 2, 1, studies=60, skill=0.12, offset=0.4)[:, :, 0]
    metrics, ways = training_chance.METRICS, training_chance.WAYS
    assert found[metrics.index("recall"), ways.index("patients alone")] > 0.3
    assert found[:, ways.index("ours")].max() <= 0.05
