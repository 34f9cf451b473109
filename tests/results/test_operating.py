"""Temperature and thresholds against scikit-learn and against all thresholds that there are."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from kdtvit_ray.metrics import measure
from kdtvit_ray.results.operating import (
    balanced_threshold,
    calibrated,
    fit_temperature,
    fitted,
    log_odds,
    sensitive_threshold,
)


def drawn(seed=0, images=400, slope=0.4):
    """Truths and probabilities whose log odds are 1 / slope times too large."""
    random = np.random.default_rng(seed)
    odds = random.normal(0.3, 3.0, images)
    truth = random.random(images) < 1 / (1 + np.exp(-slope * odds))
    return truth, 1 / (1 + np.exp(-odds))


@pytest.mark.parametrize("slope", [0.2, 0.6, 1.0, 2.5])
def test_the_temperature_is_that_of_a_logistic_regression_without_intercept(slope):
    truth, probability = drawn(slope=slope)
    reference = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    reference.fit(log_odds(probability)[:, None], truth)
    expected = 1 / reference.coef_[0, 0]
    assert fit_temperature(truth, probability, 40, spread=math.inf) == pytest.approx(expected, rel=1e-4)
    # a prior draws it towards 1, the more the fewer patients there are
    few, many = (abs(math.log(fit_temperature(truth, probability, each))) for each in (5, 500_000))
    assert few <= many <= abs(math.log(expected)) + 1e-4
    assert many == pytest.approx(abs(math.log(expected)), abs=0.01)


def test_log_losses_are_scikit_learns_and_the_order_of_images_stays():
    truth, probability = drawn()
    frame = pd.DataFrame({"malignant": truth, "probability": probability, "patient": np.arange(len(truth)) // 10})
    found = fitted(frame, frame, "here")
    before, after = found.log_loss["development"]
    assert before == pytest.approx(log_loss(truth, probability))
    assert after == pytest.approx(log_loss(truth, calibrated(probability, found.temperature)))
    assert after < before
    assert (np.diff(calibrated(np.sort(probability), found.temperature)) >= 0).all()
    assert calibrated(0.5, 3.0) == 0.5


def test_certain_errors_cost_what_they_cost_in_the_metric_log_loss():
    """Models that are sure give probabilities of 0, of 1 and next to them: a page has one log loss for one model."""
    for sure in (np.array([0.0, 1.0]), np.array([1e-30, 1 - 1e-16])):
        truth, probability = np.tile([True, False, True, True, False, False], 20), np.tile(sure, 60)
        frame = pd.DataFrame({"malignant": truth, "probability": probability, "patient": np.arange(120) // 6})
        expected = measure(truth, probability)["log_loss"]
        found = fitted(frame, frame, "here", 50)
        assert [found.log_loss[each][0] for each in ("development", "test")] == pytest.approx([expected] * 2)
        # turned round, the same errors ask for the same temperature
        turned = fit_temperature(~truth, 1 - probability, 20)
        assert turned == pytest.approx(fit_temperature(truth, probability, 20))


scores = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 0.9, 1.0])), min_size=2).filter(
    lambda each: 0 < sum(truth for truth, _ in each) < len(each)
)


def rates(truth, probability, threshold):
    called = probability >= threshold
    return called[truth].mean(), (~called)[~truth].mean()


@given(scores)
def test_no_other_threshold_is_better(pairs):
    truth, probability = (np.array(each) for each in zip(*pairs, strict=True))
    every = np.concatenate([np.unique(probability), [0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.1]])
    best = max(sum(rates(truth, probability, each)) for each in every)
    balanced = balanced_threshold(truth, probability)
    assert 0 <= balanced <= 1
    # calling none positive is never chosen, and never better than calling all
    assert sum(rates(truth, probability, balanced)) == pytest.approx(max(best, 1.0))
    sensitive = sensitive_threshold(truth, probability)
    assert rates(truth, probability, sensitive)[0] >= 0.95
    higher = probability[probability > sensitive]
    if len(higher):
        assert rates(truth, probability, np.nextafter(higher.min(), 2))[0] < 0.95


def test_rates_are_those_at_each_threshold_and_without_development_there_is_only_half():
    truth, probability = drawn()
    frame = pd.DataFrame({"malignant": truth, "probability": probability, "patient": np.arange(len(truth)) // 10})
    found = fitted(frame.iloc[:300], frame.iloc[300:], "here")
    for point in found.points:
        for rates_here, part in ((point.development, frame.iloc[:300]), (point.test, frame.iloc[300:])):
            expected = rates(part["malignant"].to_numpy(), part["probability"].to_numpy(), point.threshold)
            assert rates_here is not None
            assert (rates_here.sensitivity.value, rates_here.specificity.value) == pytest.approx(expected)
    only = fitted(frame[frame["malignant"]], frame, "here")
    assert (only.temperature, only.thresholds, only.judged_on) == (1.0, {"half": 0.5}, "")
    assert fitted(None, None, "here").points[0].test is None


def test_an_image_at_the_threshold_is_called_positive():
    """A threshold that only the least probable positive image reaches is that image's probability."""
    truth = np.tile(np.r_[True, np.zeros(9, bool), np.ones(9, bool)], 2)
    probability = np.tile(np.r_[0.01, np.linspace(0.05, 0.45, 9), np.linspace(0.55, 0.95, 9)], 2)
    patient = [f"p{number}" for number in range(len(truth))]
    frame = pd.DataFrame({"malignant": truth, "probability": probability, "patient": patient})
    sensitive = fitted(frame, frame, "here", 200).points[2]
    assert (sensitive.name, sensitive.threshold) == ("sensitive", 0.01)
    assert sensitive.development.sensitivity.value == 1
    assert sensitive.test.sensitivity.value == 1


def test_of_thresholds_that_are_as_good_the_one_nearest_to_one_half_is_taken():
    truth, probability = np.array([False, True, False, True]), np.array([0.1, 0.2, 0.55, 0.6])
    assert balanced_threshold(truth, probability) == pytest.approx(0.575)
    assert balanced_threshold(truth, np.array([0.1, 0.85, 0.9, 0.95])) == pytest.approx(0.475)
