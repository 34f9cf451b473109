import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from kdtvit_ray.metrics import METRICS, auc, measure, measure_levels, positive_share

grades = st.sampled_from([0.0, 0.1, 0.25, 0.4999, 0.5, 0.51, 0.9, 1.0])
cases = st.lists(st.tuples(st.booleans(), grades, st.sampled_from("abcde")), min_size=1, max_size=60)


def reference(truth, probability):
    called = probability >= 0.5
    both = len(set(truth)) == 2
    return {
        "accuracy": sk.accuracy_score(truth, called),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, called) if both else math.nan,
        "precision": sk.precision_score(truth, called, zero_division=math.nan),
        "recall": sk.recall_score(truth, called, zero_division=math.nan),
        "specificity": sk.recall_score(~truth, ~called, zero_division=math.nan),
        "f1": sk.f1_score(truth, called, zero_division=math.nan),
        "auc": sk.roc_auc_score(truth, probability) if both else math.nan,
        "brier": float(np.mean((truth - probability) ** 2)),
        "log_loss": sk.log_loss(truth, np.stack([1 - probability, probability], axis=1), labels=[False, True]),
    }


@given(cases)
def test_every_metric_is_scikit_learns(case):
    truth = np.array([each[0] for each in case])
    probability = np.array([each[1] for each in case])
    found = measure(truth, probability)
    assert tuple(found) == METRICS
    assert found == pytest.approx(reference(truth, probability), nan_ok=True)


@given(cases)
def test_patient_levels_are_what_a_loop_over_patients_gives(case):
    owned = defaultdict(list)
    for truth, probability, patient in case:
        owned[patient].append((truth, probability))
    rates = [np.mean([truth == (p >= 0.5) for truth, p in images]) for images in owned.values()]
    sick = np.array([any(truth for truth, _ in images) for images in owned.values()])
    votes = np.array([np.mean([p for _, p in images]) for images in owned.values()])
    truth, probability, patients = (np.array(each) for each in zip(*case, strict=True))
    found = measure_levels(truth, probability, patients)
    assert found["image"] == pytest.approx(measure(truth, probability), nan_ok=True)
    assert found["patient_rate"] == {"accuracy": pytest.approx(np.mean(rates))}
    if not np.any(np.abs(votes - 0.5) < 1e-9):  # on the threshold the order of additions decides
        by_hand = measure(sick, votes)
        assert found["patient_vote"]["accuracy"] == pytest.approx(by_hand["accuracy"])
        assert found["patient_vote"]["brier"] == pytest.approx(by_hand["brier"])


def test_rate_and_vote_differ_as_their_names_say():
    truth = np.array([True] * 3 + [False])
    probability = np.array([0.4, 0.4, 0.9, 0.1])
    found = measure_levels(truth, probability, np.array(["p", "p", "p", "q"]))
    assert found["patient_rate"]["accuracy"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["patient_vote"]["accuracy"] == 1.0  # the mean of p is 0.567


def test_positive_is_malignant():
    found = measure(np.array([True, True, True, False]), np.array([0.9, 0.8, 0.1, 0.7]))
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["specificity"] == 0.0
    assert found["precision"] == pytest.approx(2 / 3)


def test_one_class_and_no_image_are_nan_and_not_a_number_made_up():
    only = measure(np.ones(3, bool), np.array([0.2, 0.3, 0.4]))
    assert math.isnan(only["auc"])
    assert math.isnan(only["specificity"])
    assert math.isnan(only["balanced_accuracy"])
    assert math.isnan(only["precision"])
    assert only["recall"] == 0.0
    assert all(math.isnan(value) for value in measure(np.zeros(0, bool), np.zeros(0)).values())
    assert math.isnan(measure_levels(np.zeros(0, bool), np.zeros(0), np.zeros(0, str))["patient_rate"]["accuracy"])


@given(st.lists(st.tuples(st.booleans(), grades), min_size=2, max_size=50))
def test_auc_is_the_share_of_pairs_in_the_right_order_with_ties_as_halves(case):
    sick = [p for truth, p in case if truth]
    well = [p for truth, p in case if not truth]
    if sick and well:
        pairs = np.mean([(a > b) + 0.5 * (a == b) for a in sick for b in well])
        found = auc(np.array([truth for truth, _ in case]), np.array([p for _, p in case]))
        assert found == pytest.approx(pairs)


def test_the_positive_share_is_the_sum_from_the_first_positive_class_on():
    eight = np.array([[0.05, 0.05, 0.1, 0.1, 0.4, 0.1, 0.1, 0.1]])
    assert positive_share(eight, 4) == pytest.approx([0.7])
    assert positive_share(eight, 7) == pytest.approx([0.1])
    assert positive_share(np.array([[0.2, 0.8]]), 1) == pytest.approx([0.8])
    single = np.array([[0.1, 0, 0, 0, 0.9 - 3e-9, 1e-9, 1e-9, 1e-9]], np.float32)
    assert positive_share(single, 4).tolist() == [single[0, 4:].astype(np.float64).sum()]  # added up in float64
    assert positive_share(np.full((1, 8), 0.25 + 1e-16), 4).tolist() == [1.0]
