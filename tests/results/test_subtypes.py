"""Numbers over the subtypes against scikit-learn and by hand, their intervals against a bootstrap that copies patients'
images, and what is said of the subtypes that are recognised worst."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.results.bootstrap import resample
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models import predictions_on_test
from kdtvit_ray.results.statistics import MEAN
from kdtvit_ray.results.subtypes import METRICS, absent, subtypes, told, weakest

CLASSES = ("a", "b", "c", "d")
DATASET = replace(breakhis(), classes=CLASSES, positives=CLASSES[2:])
PATIENTS = 5
image = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, PATIENTS - 1), st.sampled_from([40, 100]))


def frame(truth, called, patients, magnifications):
    """Predictions of the test images whose most probable class is `called`."""
    table = pd.DataFrame(
        {"subtype": truth, "patient": [f"p{each:03}" for each in patients], "magnification": magnifications}
    )
    for each in range(len(CLASSES)):
        table[f"p{each}"] = np.where(np.array(called) == each, 0.7, 0.1)
    return table.assign(split="test", malignant=table["subtype"] >= 2)


def measured(table, magnifications=(40, 100), replicates=200):
    drawn = resample(table["patient"].to_numpy(), table["malignant"].to_numpy(), replicates)
    return subtypes(table, DATASET, drawn, magnifications)


def scikit_learn(truth, called, weight):
    """Accuracy, macro F1, balanced accuracy and the recalls of images that count as often as `weight` says; a class
    without such images is left out of the means, and its recall is nan."""
    truth, called, weight = (np.asarray(each)[np.asarray(weight) > 0] for each in (truth, called, weight))
    there = sorted(set(truth))
    recalls = np.full(len(CLASSES), math.nan)
    if not there:
        return dict.fromkeys(METRICS, math.nan), recalls
    recalls[there] = sk.recall_score(truth, called, labels=there, average=None, sample_weight=weight, zero_division=0)
    f1 = sk.f1_score(truth, called, labels=there, average="macro", sample_weight=weight, zero_division=0)
    accuracy = sk.accuracy_score(truth, called, sample_weight=weight)
    balanced = recalls[there].mean()
    if len(there) > 1 and set(called) <= set(there):  # else it warns
        assert sk.balanced_accuracy_score(truth, called, sample_weight=weight) == pytest.approx(balanced)
    return {"accuracy": accuracy, "macro_f1": f1, "balanced_accuracy": balanced}, recalls


@settings(max_examples=30)
@given(st.lists(image, min_size=1, max_size=30))
def test_every_draw_is_scikit_learns_weighted_metric(images):
    truth, called, patients, at = (np.array(each) for each in zip(*images, strict=True))
    table = frame(truth, called, patients, at)
    drawn = resample(table["patient"].to_numpy(), table["malignant"].to_numpy(), 4)
    found = subtypes(table, DATASET, drawn, (40, 100))
    weights = np.vstack([np.ones(len(drawn.patients)), drawn.weights])
    for line, weight in enumerate(weights[:, drawn.owners(table["patient"].to_numpy())]):
        parts = [scikit_learn(truth[at == each], called[at == each], weight[at == each]) for each in (40, 100)]
        for place, (values, recalls) in zip((40, 100), parts, strict=True):
            np.testing.assert_allclose(found.recalls[place][line], recalls)
            for name in METRICS:
                np.testing.assert_allclose(found.metrics[name, place][line], values[name])
        np.testing.assert_allclose(found.recalls[MEAN][line], (parts[0][1] + parts[1][1]) / 2)
        for name in METRICS:
            np.testing.assert_allclose(found.metrics[name, MEAN][line], (parts[0][0][name] + parts[1][0][name]) / 2)


def test_by_hand():
    """a: 3 of 4 right, one called b; b: 1 of 2, one called d; c: its one image called b; no image is of d."""
    truth, called = [0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 3, 1]
    found = measured(frame(truth, called, [0, 0, 1, 1, 2, 2, 3], [40] * 7), (40,))
    # F1 of b, of two images, called three times, once rightly: 2 x 1 / (2 + 3)
    assert found.metric("macro_f1", 40).value == pytest.approx((6 / 7 + 2 / 5 + 0) / 3)
    assert found.metric("accuracy", 40).value == pytest.approx(4 / 7)
    assert found.metric("balanced_accuracy", MEAN).value == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert found.images.tolist() == [[4, 2, 1, 0]]
    assert found.everyone.tolist() == [2, 1, 1, 0]
    assert math.isnan(found.recall(40, 3).value)


def test_intervals_are_those_of_a_bootstrap_that_copies_the_images_of_drawn_patients():
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(24), 8)
    truth, at = patients % 4, np.tile([40, 40, 40, 40, 100, 100, 100, 100], 24)
    called = np.where(rng.random(len(truth)) < rng.random(24)[patients], truth, rng.integers(0, 4, len(truth)))
    table = frame(truth, called, patients, at)
    drawn = resample(table["patient"].to_numpy(), table["malignant"].to_numpy(), 120)
    found = subtypes(table, DATASET, drawn, (40, 100))
    f1, recall = [], []
    for line in drawn.weights:
        copied = np.concatenate(
            [
                np.tile(np.flatnonzero(table["patient"] == name), int(n))
                for name, n in zip(drawn.patients, line, strict=True)
            ]
        ).astype(int)
        parts = [copied[at[copied] == each] for each in (40, 100)]
        there = sorted(set(truth[copied]))
        f1.append(np.mean([sk.f1_score(truth[each], called[each], labels=there, average="macro") for each in parts]))
        right = [[(called[each] == 2)[truth[each] == 2].mean() for each in parts] if 2 in there else [math.nan]]
        recall.append(np.mean(right))
    for interval, values, n in (
        (found.metric("macro_f1", MEAN), np.array(f1), 12),  # patients of each side
        (found.recall(MEAN, 2), np.array(recall), 6),  # patients of the class
    ):
        value, spread = interval.value, np.nanstd(values)
        half = stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)) * spread / (value * (1 - value))
        assert interval.low == pytest.approx(1 / (1 + (1 - value) / value * math.exp(half)))
        assert interval.high == pytest.approx(1 / (1 + (1 - value) / value * math.exp(-half)))
        assert interval.low < interval.value < interval.high


def test_classes_that_test_does_not_have_are_left_out_and_named():
    truth, at = [0, 0, 1, 1, 2, 2], [40, 100, 40, 100, 40, 40]
    found = measured(frame(truth, truth, [0, 0, 1, 1, 2, 2], at))
    assert found.metric("macro_f1", MEAN).value == 1
    assert math.isnan(found.recall(100, 2).value)
    assert math.isnan(found.recall(MEAN, 2).value)
    everywhere, there = absent(found)
    assert "no images of d:" in everywhere
    assert "the other 3 classes" in everywhere
    assert "At 100X test has no images of c" in there


def test_fewer_than_five_patients_have_no_interval():
    """5 patients of a, 4 of c at 100X and 5 at 40X, and so of the positive side."""
    patients = np.repeat(np.arange(10), 2)
    truth = np.where(patients < 5, 0, 2)
    table = frame(truth, np.where(np.arange(20) % 3, truth, 1), patients, [40, 100] * 10)
    found = measured(table[~((table["patient"] == "p009") & (table["magnification"] == 100))])
    assert found.recall(40, 2).bounded
    assert not found.recall(100, 2).bounded
    assert not found.recall(MEAN, 2).bounded
    assert found.recall(MEAN, 0).bounded
    assert found.metric("accuracy", 40).bounded
    assert not found.metric("accuracy", 100).bounded, "four patients of the positive classes"
    assert not found.metric("accuracy", MEAN).bounded
    fewer = measured(table[table["patient"] < "p009"])
    assert not any(fewer.metric(name, MEAN).bounded for name in METRICS)


def several(rates, wrong, each=12, images=10):
    """So many patients of every class, whose images are called right with the class's rate, else what `wrong` gives."""
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(4 * each), 2 * images)
    truth, at = patients % 4, np.tile(np.repeat([40, 100], images), 4 * each)
    right = rng.random(len(truth)) < np.array(rates)[truth]
    mistaken = np.array([rng.choice(wrong[each]) for each in truth])
    return measured(frame(truth, np.where(right, truth, mistaken), patients, at), replicates=2_000)


OTHERS = {0: [1, 2, 3], 1: [0, 2, 3], 2: [0, 1, 3], 3: [0, 1, 2]}


def test_the_lowest_recall_is_named_with_what_the_class_is_taken_for():
    found = several([0.9, 0.9, 0.3, 0.9], OTHERS | {2: [0, 3, 3, 3]})
    (weak,), compared = weakest(found)
    assert (weak.name, weak.taken_for, compared) == ("c", "d", 4)
    others = np.mean([found.recall(MEAN, of).value for of in (0, 1, 3)])
    assert weak.apart.value == pytest.approx(found.recall(MEAN, 2).value - others)
    assert weak.share == pytest.approx(found.confused[:, 2, 3].sum() / found.confused[:, 2].sum())
    said = told(found)
    assert said.startswith(f"Lowest recall, as mean over magnifications: c {weak.recall:.3f}, ")
    assert f"most often taken for d ({100 * weak.share:.0f} % of its images)" in said
    assert "4 of 4 classes could be compared)" in said


def test_what_a_class_is_taken_for_is_not_named_where_two_classes_share_the_errors():
    found = several([0.9, 0.9, 0.3, 0.9], OTHERS)
    (weak,), _ = weakest(found)
    assert (weak.name, weak.taken_for) == ("c", "")
    assert "what it is most often taken for is not clear" in told(found)


def test_no_class_is_named_where_none_is_shown_to_be_worse():
    assert weakest(several([0.8] * 4, OTHERS)) == ([], 4)
    few = several([0.9, 0.9, 0.1, 0.9], OTHERS, each=4)
    assert weakest(few) == ([], 0)
    assert told(few) == (
        "Whether some class's recall is lower than the others' cannot be told: no class can be compared, for want of 5 "
        "test patients at every magnification."
    )


def test_every_chain_of_a_study_is_measured_on_the_same_draws(small):
    findings = Findings(small, 50)
    assert list(findings.subtypes) == list(findings.measured.by_model)
    assert findings.measured.resampling is not None
    for model in findings.models:
        test, found = predictions_on_test(small, model), findings.subtypes[model.name]
        assert test is not None
        called = test[[f"p{each}" for each in range(8)]].to_numpy().argmax(axis=1)
        each = [
            sk.accuracy_score(test["subtype"][test["magnification"] == at], called[test["magnification"] == at])
            for at in small.magnifications
        ]
        assert found.metric("accuracy", MEAN).value == pytest.approx(np.mean(each))
        np.testing.assert_array_equal(found.weights[1:], findings.measured.resampling.weights)
