"""AUPRC and Matthews' correlation against scikit-learn, with ties, weights and one class."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from kdtvit_ray.metrics import METRICS
from kdtvit_ray.results import extra_metrics
from kdtvit_ray.results.bootstrap import bootstrap, resample, sums_of
from kdtvit_ray.results.extra_metrics import average_precision, everything, matthews
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models import predictions_on_test
from kdtvit_ray.results.statistics import MEAN

PATIENTS = 4
image = st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, PATIENTS - 1))
draws = st.lists(st.integers(0, 3), min_size=PATIENTS, max_size=PATIENTS)


@settings(max_examples=200, deadline=None)
@given(st.lists(image, min_size=1, max_size=30), draws)
def test_every_draw_is_scikit_learns_weighted_metric(images, drawn):
    truth, score, owner = (np.array(each) for each in zip(*images, strict=True))
    score, weights = score / 6, np.array([drawn, [1] * PATIENTS], dtype=float)
    areas, correlations = (
        average_precision(truth, score, owner, weights),
        matthews(sums_of(truth, score, owner, PATIENTS), weights),
    )
    for weight, area, correlation in zip(weights, areas, correlations, strict=True):
        keep, called = weight[owner], score >= 0.5
        if not keep[truth].sum():
            assert math.isnan(area)
        else:
            assert area == pytest.approx(sk.average_precision_score(truth, score, sample_weight=keep), abs=1e-12)
        there = keep > 0
        if len(set(truth[there])) < 2 or len(set(called[there])) < 2:
            assert math.isnan(correlation)  # scikit-learn gives 0
        else:
            expected = sk.matthews_corrcoef(truth, called, sample_weight=keep)
            assert correlation == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    """Falling: + at 0.9, then + and - tied at 0.5, then + at 0.1: 1/3 x 1 + 1/3 x 2/3 + 1/3 x 3/4."""
    truth, score = np.array([True, False, True, True]), np.array([0.9, 0.5, 0.5, 0.1])
    found = average_precision(truth, score, np.arange(4), np.ones((1, 4)))
    assert found == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3])
    # hits 2, misses 1, false alarms 1, right rejections 0
    assert matthews(sums_of(truth, score, np.arange(4), 4), np.ones((1, 4))) == pytest.approx([-1 / 3])
    share = average_precision(truth, np.full(4, 0.3), np.arange(4), np.ones((1, 4)))
    assert share == pytest.approx([0.75]), "a constant answer has the share of positive images"


def test_how_much_is_worked_on_at_a_time_does_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    truth, score, owner = rng.random(300) < 0.4, np.round(rng.random(300), 2), rng.integers(0, 9, 300)
    weights = rng.integers(0, 3, (50, 9)).astype(float)
    whole = average_precision(truth, score, owner, weights)
    for size in (1, 700, 6_000):
        monkeypatch.setattr(extra_metrics, "TOGETHER", size)
        np.testing.assert_allclose(average_precision(truth, score, owner, weights), whole, rtol=1e-12)


def test_the_stored_metrics_are_what_they_were_and_the_others_stand_beside_them(small):
    model = Findings(small, 100).models[0]
    frame = predictions_on_test(small, model)
    drawn = resample(frame["patient"].to_numpy(), frame["malignant"].to_numpy(), 100)
    plain = bootstrap(frame, drawn, small.magnifications)
    more = bootstrap(frame, drawn, small.magnifications, everything)
    assert {cell: more.values[cell] for cell in plain.values} == plain.values
    assert {cell[1] for cell in plain.values} == set(METRICS)
    assert {cell[:2] for cell in set(more.values) - set(plain.values)} == {
        (level, metric) for level in ("image", "patient_vote") for metric in ("auprc", "mcc")
    }
    wide = Findings(small, 100).headline.wide("auprc")
    each = [
        sk.average_precision_score(part["malignant"], part["probability"]) for _, part in frame.groupby("magnification")
    ]
    assert wide.loc[model.label, MEAN] == pytest.approx(np.mean(each))
    assert wide.attrs["low"].loc[model.label, "40X"] <= wide.loc[model.label, "40X"]
    assert np.isfinite(wide.attrs["high"].loc[model.label, MEAN])
    one = frame[frame["magnification"] == 100]
    mcc = Findings(small, 100).headline.wide("mcc").loc[model.label, "100X"]
    assert mcc == pytest.approx(sk.matthews_corrcoef(one["malignant"], one["probability"] >= 0.5))
