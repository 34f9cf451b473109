"""Curves and tables of one model's test images, against scikit-learn and by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.results.images import (
    class_confusion,
    confusion,
    operating_points,
    reliability,
    roc,
    tells_classes,
    wrong,
)
from kdtvit_ray.results.models import models, predictions_on_test
from kdtvit_ray.results.study import Study
from tests.results.datasets import SLIDES, TWO


def table(truth: list[bool], score: list[float]) -> pd.DataFrame:
    n = len(truth)
    return pd.DataFrame(
        {
            "image": np.arange(n),
            "name": [f"n{each:03d}" for each in range(n)],
            "magnification": 40,
            "split": "test",
            "subtype": [4 if each else 0 for each in truth],
            "malignant": np.array(truth, dtype=bool),
            "patient": [f"p{each % 5}" for each in range(n)],
            "probability": np.array(score, dtype=np.float64),
        }
    )


cases = st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=2, max_size=60).filter(
    lambda pairs: len({each for each, _ in pairs}) == 2
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_roc_is_scikit_learns(pairs: list[tuple[bool, int]]) -> None:
    truth, score = [each for each, _ in pairs], [each / 10 for _, each in pairs]
    found = roc(table(truth, score))
    rates = sk.roc_curve(truth, score, drop_intermediate=False)
    np.testing.assert_allclose(found.false_positive, rates[0])
    np.testing.assert_allclose(found.true_positive, rates[1])
    np.testing.assert_allclose(found.threshold[1:], rates[2][1:])
    assert found.auc == pytest.approx(sk.roc_auc_score(truth, score))


@settings(max_examples=60, deadline=None)
@given(cases)
def test_operating_points_hold_what_they_promise(pairs: list[tuple[bool, int]]) -> None:
    truth = np.array([each for each, _ in pairs])
    score = np.array([each / 10 for _, each in pairs])
    for line in operating_points(table(truth.tolist(), score.tolist())).itertuples():
        called = score >= line.threshold
        assert line.sensitivity == pytest.approx(called[truth].mean())
        assert line.specificity == pytest.approx(1 - called[~truth].mean())
        held, goal = line.goal.split(" at least ")
        goal = float(goal.rstrip("%")) / 100
        assert getattr(line, held) >= goal - 1e-9
        other = "specificity" if held == "sensitivity" else "sensitivity"
        for threshold in [*np.unique(score), math.inf]:  # nothing allowed is better
            calls = score >= threshold
            rates = {"sensitivity": calls[truth].mean(), "specificity": 1 - calls[~truth].mean()}
            assert rates[held] < goal - 1e-9 or rates[other] <= getattr(line, other) + 1e-9


def test_a_probability_on_an_edge_counts_above_it() -> None:
    scores = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert reliability(table([True] * 10, scores), bins=10).table["n"].tolist() == [1] * 10


def test_reliability_by_hand() -> None:
    found = reliability(table([False, True, True, False, True], [0.0, 0.1, 0.55, 0.58, 1.0]), bins=10)
    assert found.table["n"].tolist() == [1, 1, 0, 0, 0, 2, 0, 0, 0, 1]
    assert found.table.loc[5, ["confidence", "observed"]].tolist() == pytest.approx([0.565, 0.5])
    assert math.isnan(found.table.loc[2, "observed"])
    assert found.error == pytest.approx((1 * 0.0 + 1 * 0.9 + 2 * 0.065 + 1 * 0.0) / 5)


def test_confusion_is_scikit_learns(small: Study) -> None:
    predictions = predictions_on_test(small, models(small)[0])
    binary = confusion(predictions, small.dataset)
    expected = sk.confusion_matrix(predictions["malignant"], predictions["probability"] >= 0.5)
    np.testing.assert_array_equal(binary.to_numpy(), expected)
    assert list(binary.index) == ["benign", "malignant"]
    subtype = class_confusion(predictions, small.dataset)
    called = predictions[[f"p{each}" for each in range(8)]].to_numpy().argmax(axis=1)
    expected = sk.confusion_matrix(predictions["subtype"], called, labels=range(8))
    np.testing.assert_array_equal(subtype.to_numpy(), expected)
    assert list(subtype.index) == ["A", "F", "PT", "TA", "DC", "LC", "MC", "PC"]


def test_only_a_head_with_an_output_for_each_class_tells_classes() -> None:
    def outputs(count: int) -> pd.DataFrame:
        return table([True, False], [0.7, 0.2]).assign(**{f"p{each}": 0.5 for each in range(count)})

    assert tells_classes(outputs(8), breakhis())
    assert not tells_classes(outputs(2), breakhis())
    assert tells_classes(outputs(3), SLIDES)
    assert not tells_classes(outputs(2), SLIDES)
    assert not tells_classes(outputs(2), TWO), "two classes are the two sides"


def test_the_wrong_class_is_one_of_the_side_that_was_called() -> None:
    """Classes normal, adenoma | carcinoma: an adenoma that is called positive is taken for a carcinoma, and a carcinoma
    that is called negative for the likelier one of the other two."""
    data = table([False, True], [0.8, 0.3]).assign(subtype=[1, 2], p0=[0.1, 0.2], p1=[0.1, 0.5], p2=[0.8, 0.3])
    found = wrong(data, SLIDES)
    assert found["class"].tolist() == ["adenoma", "carcinoma"]
    assert found["called"].tolist() == ["carcinoma", "adenoma"]


def test_only_test_images_count() -> None:
    data = table([True, False, True], [0.9, 0.1, 0.1])
    data.loc[2, "split"] = "validation"
    assert confusion(data, breakhis()).to_numpy().tolist() == [[1, 0], [0, 1]]
    assert roc(data).auc == 1
    assert wrong(data, breakhis()).empty


def test_the_most_confidently_wrong_come_first() -> None:
    data = table([True, False, True, False, True], [0.3, 0.8, 0.05, 0.2, 0.9])
    found = wrong(data, breakhis(), 2)
    assert found["name"].tolist() == ["n002", "n001"]
    assert found["confidence"].tolist() == pytest.approx([0.95, 0.8])
    assert found["called"].tolist() == ["benign", "malignant"]
    assert found["class"].tolist() == ["DC", "A"]


def test_one_class_only_leaves_rates_undefined() -> None:
    data = table([True, True], [0.3, 0.8])
    assert math.isnan(roc(data).auc)
    assert operating_points(data)["threshold"].isna().sum() >= 2
