"""Statistics against independent implementations: scikit-learn with weights, scipy, statsmodels, pencil and paper."""

import math
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn import metrics as sk
from sklearn.metrics import roc_auc_score

from kdtvit_ray.metrics import METRICS, measure_levels
from kdtvit_ray.results.bootstrap import (
    Bootstrapped,
    bootstrap,
    measure_levels_weighted,
    measure_weighted,
    paired,
    percentile,
    resample,
    sums_of,
    votes_of,
)
from kdtvit_ray.results.statistics import (
    MEAN,
    Sides,
    auc_standard_error,
    corrected_t_test,
    group_test,
    holm,
    mean_interval,
)


def images(seed: int, n: int = 60, patients: int = 9, coarse: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, probability, patient; `coarse` rounds to that many steps, so that many scores tie."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, patients, n)
    owner[:patients] = np.arange(patients)
    truth = owner % 3 != 0
    score = np.clip(rng.normal(0.45 + 0.15 * truth, 0.25), 0, 1)
    if coarse:
        score = np.round(score * coarse) / coarse
    return truth, score, np.array([f"p{each:03d}" for each in owner])


def by_sklearn(truth: np.ndarray, score: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """All metrics by scikit-learn, sample weights and all; NaN where they are undefined."""
    called = score >= 0.5
    keep = {"sample_weight": weight}
    counts = sk.confusion_matrix(truth, called, labels=[False, True], **keep)
    recall = counts[1, 1] / counts[1].sum() if counts[1].sum() else math.nan
    specificity = counts[0, 0] / counts[0].sum() if counts[0].sum() else math.nan
    both = counts.sum(axis=1).all()
    drawn = weight > 0
    return {
        "accuracy": sk.accuracy_score(truth, called, **keep),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": sk.precision_score(truth, called, zero_division=np.nan, **keep),
        "recall": recall,
        "specificity": specificity,
        "f1": sk.f1_score(truth, called, zero_division=np.nan, **keep),
        "auc": sk.roc_auc_score(truth[drawn], score[drawn], sample_weight=weight[drawn]) if both else math.nan,
        "brier": float(np.average((score - truth) ** 2, weights=weight)),
        "log_loss": float(sk.log_loss(truth, score, labels=[0, 1], sample_weight=weight)),
    }


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), coarse=st.sampled_from([0, 3, 10]), patients=st.integers(4, 12))
def test_replicates_are_scikit_learns_weighted_metrics(seed: int, coarse: int, patients: int) -> None:
    truth, score, names = images(seed, patients=patients, coarse=coarse)
    drawn = resample(names, truth, 3, seed)
    owner = drawn.owners(names)
    found = measure_weighted(sums_of(truth, score, owner, len(drawn.patients)), drawn.weights)
    for replicate, weights in enumerate(drawn.weights):
        expected = by_sklearn(truth, score, weights[owner])
        for metric in METRICS:
            assert found[metric][replicate] == pytest.approx(expected[metric], abs=1e-10, nan_ok=True), metric


def test_a_patient_with_images_of_both_classes_counts_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    truth, score, owner = rng.random(40) < 0.5, np.round(rng.random(40), 1), rng.integers(0, 5, 40)
    weights = np.array([[2.0, 0, 1, 1, 1]])
    found = measure_weighted(sums_of(truth, score, owner, 5), weights)
    assert found["auc"][0] == pytest.approx(by_sklearn(truth, score, weights[0][owner])["auc"], abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), coarse=st.sampled_from([0, 4]))
def test_weights_of_one_are_the_plain_metrics(seed: int, coarse: int) -> None:
    truth, score, names = images(seed, coarse=coarse)
    drawn = resample(names, truth, 1)
    found = measure_levels_weighted(truth, score, drawn.owners(names), np.ones((1, len(drawn.patients))))
    for level, values in measure_levels(truth, score, names).items():
        for metric, value in values.items():
            assert found[level, metric][0] == pytest.approx(value, abs=1e-12, nan_ok=True), (level, metric)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_drawing_a_patient_twice_is_having_two_of_it(seed: int) -> None:
    truth, score, names = images(seed, coarse=10)
    drawn = resample(names, truth, 1, seed)
    owner, weights = drawn.owners(names), drawn.weights[0].astype(int)
    copies = [
        (np.flatnonzero(owner == patient), f"{patient}-{copy}")
        for patient, times in enumerate(weights)
        for copy in range(times)
    ]
    chosen = np.concatenate([places for places, _ in copies])
    renamed = np.concatenate([[name] * len(places) for places, name in copies])
    expected = measure_levels(truth[chosen], score[chosen], renamed)
    found = measure_levels_weighted(truth, score, owner, drawn.weights)
    for level, values in expected.items():
        for metric, value in values.items():
            assert found[level, metric][0] == pytest.approx(value, abs=1e-12, nan_ok=True), (level, metric)


def test_resampling_keeps_the_number_of_patients_of_each_class() -> None:
    truth, _, names = images(1, patients=12)
    drawn = resample(names, truth, 500, 3)
    sick = np.array([truth[names == name].any() for name in drawn.patients])
    assert (drawn.weights[:, sick].sum(axis=1) == sick.sum()).all()
    assert (drawn.weights[:, ~sick].sum(axis=1) == (~sick).sum()).all()
    assert drawn.weights.mean(axis=0) == pytest.approx(np.ones(12), abs=0.15)
    np.testing.assert_array_equal(resample(names, truth, 500, 3).weights, drawn.weights)
    assert (resample(names, truth, 500, 4).weights != drawn.weights).any()


def test_votes_by_hand() -> None:
    truth, mean, column = votes_of(np.array([1, 0, 0]), np.array([0.2, 0.4, 0.9]), np.array([2, 2, 0]), 4)
    assert truth.tolist() == [False, True]
    assert mean.tolist() == pytest.approx([0.9, 0.3])
    assert column.tolist() == [0, 2]


def frame(seed: int, shift: float = 0.0) -> pd.DataFrame:
    parts = []
    for magnification in (40, 100):
        truth, score, names = images(seed + magnification, n=120, patients=24)
        score = np.clip(score + shift * np.where(truth, 1, -1), 0, 1)
        parts.append(
            pd.DataFrame({"magnification": magnification, "malignant": truth, "probability": score, "patient": names})
        )
    return pd.concat(parts, ignore_index=True)


def both(first: pd.DataFrame, second: pd.DataFrame, replicates: int = 2_000) -> tuple[Bootstrapped, Bootstrapped]:
    drawn = resample(first["patient"].to_numpy(), first["malignant"].to_numpy(), replicates)
    return bootstrap(first, drawn, (40, 100)), bootstrap(second, drawn, (40, 100))


def test_the_mean_over_magnifications_is_taken_in_every_replicate() -> None:
    found, _ = both(frame(0), frame(0))
    for metric in METRICS:
        cells = [found.replicates["image", metric, each] for each in (40, 100)]
        np.testing.assert_allclose(found.replicates["image", metric, MEAN], np.mean(cells, axis=0))
    interval = found.interval(("image", "auc", MEAN))
    n = found.patients(("image", "auc", MEAN))
    assert n == 8, "every third of 24 patients is negative"
    value, spread = interval.value, found.replicates["image", "auc", MEAN].std()
    half = stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)) * spread / (value * (1 - value))
    ends = [1 / (1 + (1 - value) / value * math.exp(each)) for each in (half, -half)]
    assert (interval.low, interval.high) == pytest.approx(ends)
    assert interval.low < interval.value < interval.high


def test_the_mean_is_undefined_while_a_magnification_is_missing() -> None:
    data = frame(0)
    drawn = resample(data["patient"].to_numpy(), data["malignant"].to_numpy(), 50)
    found = bootstrap(data[data["magnification"] == 40], drawn, (40, 100))
    assert math.isnan(found.values["image", "auc", MEAN])
    assert not found.interval(("image", "auc", MEAN)).bounded
    assert ("image", "auc", 100) not in found.values


def test_a_model_does_not_differ_from_itself() -> None:
    found = paired(*both(frame(0), frame(0)), ("image", "auc", MEAN))
    assert (found.interval.value, found.interval.low, found.interval.high, found.p) == (0, 0, 0, 1)
    assert found.interval.spans_zero


def test_pairing_is_antisymmetric_and_narrower_than_the_difference_of_two_resamplings() -> None:
    worse, better = frame(0), frame(0, 0.05)
    forward, back = (paired(*each, ("image", "auc", MEAN)) for each in (both(better, worse), both(worse, better)))
    assert forward.interval.value > 0
    assert forward.interval.value == pytest.approx(-back.interval.value)
    assert forward.interval.low == pytest.approx(-back.interval.high)
    assert forward.p == pytest.approx(back.p)
    drawn = [resample(worse["patient"].to_numpy(), worse["malignant"].to_numpy(), 2_000, seed) for seed in (1, 2)]
    apart = paired(
        bootstrap(better, drawn[0], (40, 100)), bootstrap(worse, drawn[1], (40, 100)), ("image", "auc", MEAN)
    )
    assert forward.interval.high - forward.interval.low < 0.6 * (apart.interval.high - apart.interval.low)


def test_the_bootstrap_p_by_hand() -> None:
    replicates = np.array([0.1] * 97 + [-0.1] * 2)
    cell = ("image", "auc", MEAN)

    def made(value: float, drawn: np.ndarray) -> Bootstrapped:
        return Bootstrapped({cell: value}, {cell: drawn}, {("image", MEAN): Sides(8, 20, 28)})

    found = paired(made(0.1, replicates), made(0.0, 0 * replicates), cell)
    distance = stats.norm.isf(3 / 100)
    assert found.p == pytest.approx(2 * stats.t.sf(distance * math.sqrt(7 / 8), 7))
    far = 5 + np.random.default_rng(0).normal(size=99)  # no replicate below zero: their sd says how far it is
    found = paired(made(5.0, far), made(0.0, 0 * far), cell)
    assert found.p == pytest.approx(2 * stats.t.sf(5 / far.std() * math.sqrt(7 / 8), 7))


def test_a_metric_rests_on_the_patients_of_its_class() -> None:
    found = Bootstrapped({}, {}, {("image", 40): Sides(4, 20, 24)})
    assert [found.patients(("image", each, 40)) for each in ("recall", "specificity", "auc")] == [20, 4, 4]
    assert found.patients(("image", "auc", 100)) == 0, "no image there"
    assert not percentile(0.5, np.linspace(0, 1, 1_000), patients=4).bounded
    widths = [percentile(0.5, np.linspace(0, 1, 10_001), patients=n) for n in (5, 20, 2_000)]
    assert [each.low for each in widths] == sorted(each.low for each in widths)
    assert widths[-1].low == pytest.approx(percentile(0.5, np.linspace(0, 1, 10_001)).low, abs=1e-3)


cells = st.tuples(st.sampled_from([40, 100]), st.integers(0, 7), st.booleans(), st.sampled_from([0.2, 0.5, 0.8]))


@settings(max_examples=60, deadline=None)
@given(st.lists(cells, min_size=1, max_size=60))
def test_a_number_rests_on_the_patients_of_its_level_and_magnification(images: list[tuple]) -> None:
    """Counted by pandas; a patient may have images of both classes, and none at some magnification."""
    data = pd.DataFrame(images, columns=["magnification", "patient", "malignant", "probability"])
    data["patient"] = "p" + data["patient"].astype(str)
    drawn = resample(data["patient"].to_numpy(), data["malignant"].to_numpy(), 50)
    found = bootstrap(data, drawn, (40, 100))
    counted: dict[tuple[str, bool], list[int]] = {}
    for magnification in (40, 100):
        part = data[data["magnification"] == magnification]
        voted = part.groupby("patient")["malignant"].any().reset_index()
        for side in (False, True):
            for level, units in (("image", part), ("patient_rate", part), ("patient_vote", voted)):
                count = units.loc[units["malignant"] == side, "patient"].nunique()
                counted.setdefault((level, side), []).append(count)
    for (level, metric, place), value in found.values.items():
        sides = {"recall": [True], "specificity": [False]}.get(metric, [False, True])
        at = [min(each) for each in zip(*(counted[level, side] for side in sides), strict=True)]
        count = min(at) if place == MEAN else at[(40, 100).index(place)]
        assert found.patients((level, metric, place)) == count
        interval, against_itself = found.interval((level, metric, place)), paired(found, found, (level, metric, place))
        assert interval.bounded == (count >= 5 and math.isfinite(value) and interval.replicates > 0)
        assert math.isfinite(against_itself.p) == interval.bounded


def with_few_at_100() -> pd.DataFrame:
    """Eight negative and sixteen positive patients; at 100X one negative and two positive ones have images."""
    data = frame(0)
    return data[(data["magnification"] == 40) | data["patient"].isin(["p000", "p001", "p002"])]


def test_few_patients_at_one_magnification_give_no_interval_and_no_p_there_and_in_the_mean() -> None:
    few = with_few_at_100()
    better = few.assign(probability=np.clip(few["probability"] + 0.1 * np.where(few["malignant"], 1, -1), 0, 1))
    ours, theirs = both(better, few)
    for place, there in ((40, True), (100, False), (MEAN, False)):
        found = paired(ours, theirs, ("image", "auc", place))
        assert math.isfinite(found.interval.value)
        assert (found.interval.bounded, math.isfinite(found.p)) == (there, there)
        assert ours.interval(("image", "auc", place)).bounded == there


def test_a_difference_rests_on_the_model_with_fewer_patients() -> None:
    found = paired(*both(frame(0), with_few_at_100()), ("image", "auc", MEAN))
    assert math.isfinite(found.interval.value)
    assert not found.interval.bounded
    assert math.isnan(found.p)


def test_patients_that_vote_are_counted_by_their_votes() -> None:
    """Eight patients with tumour and normal images and two without a tumour: ten have negative images, two vote so."""
    owner = np.repeat(np.arange(10), 6)
    truth = (np.arange(60) % 2 == 0) & (owner < 8)
    data = pd.DataFrame(
        {
            "magnification": 40,
            "malignant": truth,
            "probability": np.random.default_rng(0).random(60),
            "patient": np.char.mod("p%d", owner),
        }
    )
    drawn = resample(data["patient"].to_numpy(), truth, 200)
    found = bootstrap(data, drawn, (40,))
    assert found.interval(("image", "specificity", 40)).bounded
    assert not found.interval(("patient_vote", "specificity", 40)).bounded
    assert found.interval(("patient_vote", "recall", 40)).bounded
    assert drawn.sides == Sides(10, 8, 10)
    assert drawn.sides.told(("normal", "tumour")) == "10 with normal images, 8 with tumour ones, 8 of them with both"
    assert Sides(3, 4, 7).told(("normal", "tumour")) == "3 normal, 4 tumour"


def test_few_patients_cover_and_seldom_differ_from_themselves() -> None:
    """Five benign and eleven malignant patients, two models of one truth: the plain percentile interval of the AUC
    covers 88 % here and calls 11 % of such pairs different; 95 % and 5 % are promised."""
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(16), 12)
    truth, names, cell = owner >= 5, np.char.mod("%02d", owner), ("image", "auc", 40)

    def predicted(patients: np.ndarray, sign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hard = np.repeat(rng.normal(0, 0.8, len(patients)), 12) + rng.normal(0, 0.6, 12 * len(patients)) + 0.9 * sign
        noise = [np.repeat(rng.normal(0, 0.4, len(patients)), 12) + rng.normal(0, 0.5, len(hard)) for _ in range(2)]
        return 1 / (1 + np.exp(-hard - noise[0])), 1 / (1 + np.exp(-hard - noise[1]))

    many = np.repeat(np.arange(4_000) >= 2_000, 12)
    true = roc_auc_score(many, predicted(np.arange(4_000), np.where(many, 1, -1))[0])
    covered = differ = 0
    for seed in range(400):
        scores = predicted(np.arange(16), np.where(truth, 1, -1))
        drawn = resample(names, truth, 2_000, seed)
        frames = [
            pd.DataFrame({"magnification": 40, "malignant": truth, "probability": score, "patient": names})
            for score in scores
        ]
        first, second = (bootstrap(each, drawn, (40,)) for each in frames)
        interval = first.interval(cell)
        covered += interval.low <= true <= interval.high
        differ += paired(first, second, cell).p < 0.05
    assert covered / 400 >= 0.92
    assert differ / 400 <= 0.05


def test_the_interval_has_roughly_its_coverage() -> None:
    """With 40 patients of one image each the accuracy is a binomial share: a 90 % interval must cover about 90 %."""
    rng = np.random.default_rng(0)
    names = np.array([f"p{each}" for each in range(40)])
    truth = np.arange(40) % 2 == 0
    covered = 0
    for seed in range(200):
        right = rng.random(40) < 0.8
        score = np.where(right == truth, 0.9, 0.1)
        drawn = resample(names, truth, 400, seed)
        sums = sums_of(truth, score, drawn.owners(names), 40)
        interval = percentile(right.mean(), measure_weighted(sums, drawn.weights)["accuracy"], 0.9)
        covered += interval.low <= 0.8 <= interval.high
    assert 0.83 <= covered / 200 <= 0.97


def test_images_of_a_patient_are_not_taken_for_independent() -> None:
    """Ten copies of each image say nothing new: the interval must not shrink."""
    truth, score, names = images(5, n=30, patients=10)
    widths = []
    for copies in (1, 10):
        data = [np.repeat(each, copies) for each in (truth, score, names)]
        drawn = resample(data[2], data[0], 2_000)
        sums = sums_of(data[0], data[1], drawn.owners(data[2]), 10)
        interval = percentile(0.0, measure_weighted(sums, drawn.weights)["auc"])
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0])


def test_undefined_replicates_are_left_out() -> None:
    assert percentile(0.5, np.array([math.nan] * 50)).bounded is False
    found = percentile(0.5, np.array([math.nan, *np.linspace(0, 1, 41)]))
    assert (found.replicates, found.low, found.high) == (41, pytest.approx(0.025), pytest.approx(0.975))


def test_ten_thousand_replicates_take_seconds() -> None:
    truth, score, names = images(0, n=1_600, patients=82)
    started = time.process_time()  # of this process alone, whatever else the machine does
    drawn = resample(names, truth, 10_000)
    found = measure_levels_weighted(truth, score, drawn.owners(names), drawn.weights)
    assert time.process_time() - started < 10
    assert found["image", "auc"].shape == (10_000,)


# -- over folds and trials ---------------------------------------------------------------------------------------------

values = st.lists(st.floats(-1, 1).map(lambda each: round(each, 6)), min_size=2, max_size=12)


@given(values)
def test_without_overlap_the_corrected_t_test_is_students(differences: list[float]) -> None:
    found = corrected_t_test(differences, 0.0)
    if np.std(differences) > 1e-4:
        expected = stats.ttest_1samp(differences, 0.0)
        assert found.p == pytest.approx(expected.pvalue, abs=1e-9)
        assert found.t == pytest.approx(expected.statistic, rel=1e-6, abs=1e-9)
        interval = expected.confidence_interval()
        assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_nadeau_and_bengio_by_hand() -> None:
    found = corrected_t_test([1.0, 2.0, 3.0, 4.0, 5.0], 1 / 4)
    assert found.t == pytest.approx(3 / math.sqrt((1 / 5 + 1 / 4) * 2.5))
    assert found.p == pytest.approx(2 * stats.t.sf(found.t, 4))
    half = stats.t.ppf(0.975, 4) * math.sqrt(0.45 * 2.5)
    assert (found.interval.low, found.interval.high) == pytest.approx((3 - half, 3 + half))


@pytest.mark.parametrize("value", [0.1, -0.3, 1.0])
def test_values_that_are_the_same_by_chance_prove_nothing(value: float) -> None:
    """Two folds with 9 of 12 benign images right each: a variance of zero would make p 0."""
    for count in (2, 3, 7):
        found = corrected_t_test([value] * count, 1 / 2)
        assert found.interval.value == pytest.approx(value)
        assert not found.interval.bounded
        assert math.isnan(found.p)
    nothing = corrected_t_test([0.0, 0.0], 1 / 2)
    assert (nothing.p, nothing.interval.low, nothing.interval.high) == (1.0, 0.0, 0.0)


def test_one_value_has_a_mean_and_no_interval() -> None:
    assert mean_interval([0.5]).value == 0.5
    assert not mean_interval([0.5]).bounded
    assert math.isnan(mean_interval([]).value)
    assert mean_interval([1.0, math.nan, 3.0]).value == 2.0


def test_an_interval_is_cut_to_what_a_metric_can_be() -> None:
    found = mean_interval([0.9, 0.99, 1.0])
    assert found.high > 1
    cut = found.within(0, 1)
    assert (cut.value, cut.low, cut.high) == (found.value, found.low, 1.0)
    assert not mean_interval([0.5]).within(0, 1).bounded


def test_the_standard_error_of_an_auc_by_hand() -> None:
    """Of scores N(0, 1) and N(shift, 1): the chance that two of one class are right of one of the other is an integral
    over that one's score, and pairs with one unit in common, of which there are n + m - 2 a pair, share their luck."""
    shift = math.sqrt(2) * stats.norm.ppf(0.9)
    both, _ = integrate.quad(lambda z: stats.norm.pdf(z) * stats.norm.sf(z - shift) ** 2, -9, 9)
    by_hand = math.sqrt((0.9 * 0.1 + (11 + 36 - 2) * (both - 0.9**2)) / (11 * 36))
    assert auc_standard_error(0.9, 11, 36) == pytest.approx(by_hand, rel=1e-4)
    assert by_hand == pytest.approx(0.0527, abs=1e-4)
    assert auc_standard_error(0.9, 1, 1) == pytest.approx(0.3), "one pair, which is right with probability 0.9"


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(p_values)
def test_holm_is_its_definition(given_p: list[float]) -> None:
    """The smallest level at which each hypothesis is rejected, found by running the step-down test at every level."""
    for index, adjusted in enumerate(holm(given_p)):
        for level, rejected in ((adjusted * (1 + 1e-9) + 1e-12, True), (adjusted * (1 - 1e-9) - 1e-12, False)):
            left = sorted(range(len(given_p)), key=lambda each: given_p[each])
            while left and given_p[left[0]] <= level / len(left):
                left.pop(0)
            assert (index not in left) is rejected or adjusted == 1


@pytest.mark.slow
@given(p_values)
def test_holm_is_statsmodels(given_p: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    np.testing.assert_allclose(holm(given_p), multitest.multipletests(given_p, method="holm")[1], atol=1e-12)


@given(p_values)
def test_holm_never_lowers_a_p_and_keeps_their_order(given_p: list[float]) -> None:
    found = holm(given_p)
    assert (found >= np.array(given_p) - 1e-12).all()
    assert (found <= 1).all()
    assert (np.diff(found[np.argsort(given_p, kind="stable")]) >= 0).all()


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    found = holm([0.02, math.nan, 0.01])
    assert found[[0, 2]].tolist() == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])
    assert len(holm([])) == 0


def test_the_group_test_agrees_with_scipys_permutations() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], [6, 7, 8])
    numbers = np.round(rng.normal(0.35 * groups), 1)

    def statistic(*parts: np.ndarray) -> float:
        return stats.kruskal(*parts).statistic

    expected = stats.permutation_test(
        [numbers[groups == each] for each in range(3)],
        statistic,
        permutation_type="independent",
        n_resamples=2_000,
        alternative="greater",
        rng=rng,
    )
    assert group_test(numbers, groups) == pytest.approx(expected.pvalue, abs=0.03)


@pytest.mark.parametrize(("each", "p"), [(2, 2 / 6), (3, 2 / 20)])
def test_a_relabelling_that_is_as_good_as_the_groups_counts_however_it_is_rounded(each: int, p: float) -> None:
    """Two groups that are apart: of all ways to label the values, these two are as good."""
    numbers = 0.9 - 0.1 * np.arange(2 * each)
    assert group_test(numbers, ["a"] * each + ["b"] * each) == pytest.approx(p, rel=0.1)


def test_the_group_test_of_many_values_is_kruskal_and_wallis() -> None:
    rng = np.random.default_rng(1)
    groups = np.arange(1_200) % 4
    numbers = rng.normal(0.05 * groups)
    assert group_test(numbers, groups) == stats.kruskal(*(numbers[groups == each] for each in range(4))).pvalue


def test_the_group_test_knows_when_it_cannot_tell() -> None:
    assert math.isnan(group_test([1.0, 2.0, 3.0], ["a", "b", "c"]))
    assert math.isnan(group_test([1.0, 2.0, 3.0], ["a", "a", "a"]))
    assert math.isnan(group_test([], []))
    assert group_test([1.0, 1.0, 1.0, 1.0], ["a", "a", "b", "b"]) == 1.0
    assert group_test(np.arange(20.0), ["a"] * 10 + ["b"] * 10) < 0.01
