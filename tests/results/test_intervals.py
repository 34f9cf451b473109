"""Intervals of metrics on the logit scale: by hand, within their limits, and how often they hold the truth."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit

from kdtvit_ray.results.bootstrap import bootstrap, of_metric, percentile, resample
from kdtvit_ray.results.extra_metrics import EVERY


def test_an_interval_by_hand() -> None:
    """Seven patients, t with six degrees of freedom 2.4469: 0.9 has the log odds 2.1972, and a standard deviation of
    0.02 there is one of 0.02 / 0.09 = 0.2222 in log odds; half the interval is 2.4469 sqrt(7 / 6) 0.2222 = 0.5873."""
    found = of_metric("auc", 0.9, np.array([0.88, 0.92] * 50), patients=7)
    assert found.low == pytest.approx(1 / (1 + math.exp(-2.1972 + 0.5873)), abs=1e-4)
    assert found.high == pytest.approx(1 / (1 + math.exp(-2.1972 - 0.5873)), abs=1e-4)
    assert (found.value, found.replicates, found.level) == (0.9, 100, 0.95)
    without = of_metric("auc", 0.9, np.array([0.88, 0.92] * 50))  # as of endless patients
    assert without.low == pytest.approx(expit(logit(0.9) - stats.norm.ppf(0.975) * 0.02 / 0.09))


def test_matthews_correlation_lies_between_minus_one_and_one() -> None:
    """Half of one more than it lies between 0 and 1 and has half the spread."""
    replicates = np.random.default_rng(0).normal(0.6, 0.1, 200)
    found = of_metric("mcc", 0.6, replicates, patients=9)
    half = of_metric("auc", 0.8, (replicates + 1) / 2, patients=9)
    assert (found.low, found.high) == pytest.approx((2 * half.low - 1, 2 * half.high - 1))
    assert of_metric("mcc", -0.3, np.array([-0.4, -0.2] * 9), patients=9).low < -0.4


def test_what_has_no_upper_limit_keeps_the_percentile_interval() -> None:
    replicates = np.random.default_rng(0).gamma(2.0, 0.2, 500)
    assert of_metric("log_loss", 0.4, replicates, patients=8) == percentile(0.4, replicates, patients=8)


@given(
    metric=st.sampled_from(EVERY),
    place=st.integers(0, 1_000).map(lambda each: each / 1_000),
    replicates=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    patients=st.integers(5, 60),
)
def test_an_interval_holds_its_value_within_the_limits(
    metric: str, place: float, replicates: list[float], patients: int
) -> None:
    bottom = -1.0 if metric == "mcc" else 0.0
    value, drawn = bottom + (1 - bottom) * place, bottom + (1 - bottom) * np.array(replicates)
    found = of_metric(metric, value, drawn, patients=patients)
    assert found.bounded
    assert bottom <= found.low <= found.high <= 1
    if metric != "log_loss" and bottom < value < 1:
        assert found.low <= value <= found.high
        # what is good turned round: 1 - value has the mirrored interval
        turned = of_metric(metric, bottom + 1 - value, bottom + 1 - drawn, patients=patients)
        assert (bottom + 1 - turned.high, bottom + 1 - turned.low) == pytest.approx((found.low, found.high), abs=1e-6)


def test_the_degenerate_cases() -> None:
    assert of_metric("auc", 1.0, np.ones(50), patients=8).flat
    assert of_metric("recall", 0.0, np.zeros(50), patients=8).flat
    equal = of_metric("accuracy", 0.9, np.array([0.9, 0.9 + 1e-16] * 20), patients=8)
    assert equal.flat, "rounding is no width"
    assert equal.low == 0.9
    assert not of_metric("auc", 0.9, np.linspace(0.8, 1, 50), patients=4).bounded
    assert not of_metric("auc", math.nan, np.linspace(0.8, 1, 50), patients=9).bounded
    assert not of_metric("precision", 0.9, np.full(50, math.nan), patients=9).bounded
    some = of_metric("precision", 0.9, np.array([math.nan, 0.88, 0.92]), patients=9)
    assert some == of_metric("precision", 0.9, np.array([0.88, 0.92]), patients=9)


def test_the_intervals_of_a_good_model_hold_the_truth() -> None:
    """Six benign and eighteen malignant patients with four images each, log odds with variances 1 and 1 around -+2.
    The AUC of all patients is that of two normal distributions. Expanded percentile intervals end too near to 1."""
    rng, sick, cell = np.random.default_rng(1), np.arange(24) >= 6, ("image", "auc", 40)
    owner, true = np.repeat(np.arange(24), 4), stats.norm.cdf(4 / 2)
    ours = before = 0
    for seed in range(250):
        score = np.where(sick, 2, -2)[owner] + rng.normal(0, 1, 24)[owner] + rng.normal(0, 1, 96)
        columns = {"magnification": 40, "malignant": sick[owner], "probability": expit(score)}
        data = pd.DataFrame({"patient": np.char.mod("%02d", owner), **columns})
        found = bootstrap(data, resample(data["patient"].to_numpy(), sick[owner], 500, seed), (40,))
        interval, quantiles = found.interval(cell), percentile(found.values[cell], found.replicates[cell], patients=6)
        ours += interval.low <= true <= interval.high
        before += quantiles.low <= true <= quantiles.high
    assert ours / 250 >= 0.92
    assert before / 250 <= 0.88
