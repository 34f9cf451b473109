"""Uncertainty over patients: the stratified cluster bootstrap, its intervals and paired differences.

Images of one patient are alike, so an interval that resamples images is too narrow; here whole patients are drawn. What
a replicate needs of a patient is a handful of sums, so thousands of replicates are a few matrix products:

    weights (R, P)   how often replicate r drew patient p
    counts  (P, 4)   a patient's hits, misses, false alarms, right rejections      -> every threshold metric
    wins    (P, P)   positive images of p that score above negative images of q (a tie is one half)
                     -> AUC_r = w_r wins w_r' / (positive images drawn x negative images drawn), exact with ties

Letters: `R` replicates, `P` patients, `N` images. numpy and scipy only.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit

from kdtvit_ray.metrics import LEVELS, METRICS, THRESHOLD, largest, log_losses, smallest
from kdtvit_ray.results.statistics import CONFIDENCE, FEWEST_PATIENTS, MEAN, REPLICATES, SEED, Interval, Sides

Cell = tuple[str, str, Hashable]
"""(level, metric, magnification or "mean"): which number of a model is meant."""


@dataclass(frozen=True)
class Resampling:
    """Patients drawn with replacement: `weights` float64 (R, P), columns in the order of `patients` (sorted); `sides`
    counts those of each class."""

    patients: tuple[str, ...]
    weights: np.ndarray
    sides: Sides

    def owners(self, patients: Sequence[str] | np.ndarray) -> np.ndarray:
        """Column of each image's patient, int64 (N,). Raises `KeyError` for a patient that was not resampled."""
        place = {name: column for column, name in enumerate(self.patients)}
        names, inverse = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
        return np.array([place[name] for name in names], dtype=np.int64)[inverse]


def resample(
    patients: Sequence[str] | np.ndarray, positive: np.ndarray, replicates: int = REPLICATES, seed: int = SEED
) -> Resampling:
    """Draw patients with replacement within each class, as many as there are: the stratified cluster bootstrap (Davison
    & Hinkley 1997, Bootstrap Methods, sections 3.2 and 3.8; Field & Welsh 2007, JRSS B 69).

    `patients` and `positive` (N,) are those of the images. Patients with images of both classes are drawn as a third
    class. The ends of a 95 % interval need at least 2,000 replicates.
    """
    names, owner = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    truth = np.asarray(positive, dtype=bool)
    positive_here, negative_here = (np.bincount(owner, each, len(names)) > 0 for each in (truth, ~truth))
    stratum = 2 * positive_here + negative_here
    rng = np.random.default_rng(seed)
    weights = np.zeros((replicates, len(names)))
    for each in np.unique(stratum):
        columns = np.flatnonzero(stratum == each)
        weights[:, columns] = rng.multinomial(len(columns), np.full(len(columns), 1 / len(columns)), size=replicates)
    return Resampling(tuple(names.tolist()), weights, Sides.of(truth, owner))


@dataclass(frozen=True)
class Sums:
    """What every replicate needs to know of one model's outputs, by patient (P,): counts of images, sums of squared
    errors and of log losses, the share of images that are right, and `wins` (patients with positive images, patients
    with negative ones) as above."""

    hits: np.ndarray
    misses: np.ndarray
    false_alarms: np.ndarray
    rejections: np.ndarray
    squares: np.ndarray
    logs: np.ndarray
    right_share: np.ndarray
    wins: np.ndarray
    with_positive: np.ndarray
    with_negative: np.ndarray


def sums_of(positive: np.ndarray, probability: np.ndarray, owner: np.ndarray, patients: int) -> Sums:
    """Sums by patient from the images' truths, probabilities of the positive side and patients' columns (N,)."""
    truth = np.asarray(positive, dtype=bool)
    score = np.asarray(probability, dtype=np.float64)
    called = score >= THRESHOLD

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=values, minlength=patients)

    images = np.bincount(owner, minlength=patients)
    positives, negatives = total(truth), total(~truth)
    with_positive, with_negative = np.flatnonzero(positives), np.flatnonzero(negatives)
    wins = np.zeros((patients, len(with_negative)))
    positive_score, positive_owner = score[truth], owner[truth]
    for column, patient in enumerate(with_negative):
        below = np.sort(score[~truth & (owner == patient)])
        beaten = np.searchsorted(below, positive_score, "left") + np.searchsorted(below, positive_score, "right")
        wins[:, column] = np.bincount(positive_owner, weights=beaten / 2, minlength=patients)
    return Sums(
        hits=total(truth & called),
        misses=total(truth & ~called),
        false_alarms=total(~truth & called),
        rejections=total(~truth & ~called),
        squares=total((score - truth) ** 2),
        logs=total(log_losses(truth, score)),
        right_share=total(called == truth) / np.maximum(images, 1),
        wins=wins[with_positive],
        with_positive=with_positive,
        with_negative=with_negative,
    )


def votes_of(
    positive: np.ndarray, probability: np.ndarray, owner: np.ndarray, patients: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each patient that has images: truth (whether any image is positive), mean probability, column."""
    images = np.bincount(owner, minlength=patients)
    present = np.flatnonzero(images)
    truth = np.bincount(owner, weights=np.asarray(positive, dtype=bool), minlength=patients)[present] > 0
    mean = np.bincount(owner, weights=np.asarray(probability, dtype=np.float64), minlength=patients)[present]
    return truth, mean / images[present], present


def measure_weighted(sums: Sums, weights: np.ndarray) -> dict[str, np.ndarray]:
    """All `METRICS` (R,) where image i counts as often as `weights` (R, P) says of its patient; NaN where undefined."""
    columns = (sums.hits, sums.misses, sums.false_alarms, sums.rejections, sums.squares, sums.logs)
    hits, misses, false_alarms, rejections, squares, logs = (weights @ np.stack(columns, axis=1)).T
    positives, negatives = hits + misses, false_alarms + rejections
    above = np.einsum("rq,rq->r", weights[:, sums.with_positive] @ sums.wins, weights[:, sums.with_negative])
    with np.errstate(divide="ignore", invalid="ignore"):
        recall, specificity = hits / positives, rejections / negatives
        return {
            "accuracy": (hits + rejections) / (positives + negatives),
            "balanced_accuracy": (recall + specificity) / 2,
            "precision": hits / (hits + false_alarms),
            "recall": recall,
            "specificity": specificity,
            "f1": 2 * hits / (2 * hits + misses + false_alarms),
            "auc": above / (positives * negatives),
            "brier": squares / (positives + negatives),
            "log_loss": logs / (positives + negatives),
        }


def measure_levels_weighted(
    positive: np.ndarray, probability: np.ndarray, owner: np.ndarray, weights: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """{(level, metric): (R,)}: `kdtvit_ray.metrics.measure_levels` for every line of `weights` (R, P)."""
    patients = weights.shape[1]
    image = sums_of(positive, probability, owner, patients)
    vote = sums_of(*votes_of(positive, probability, owner, patients), patients)
    found = {("image", metric): values for metric, values in measure_weighted(image, weights).items()}
    present = weights[:, np.bincount(owner, minlength=patients) > 0].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found["patient_rate", "accuracy"] = weights @ image.right_share / present
    found |= {("patient_vote", metric): values for metric, values in measure_weighted(vote, weights).items()}
    return found


@dataclass(frozen=True)
class Bootstrapped:
    """A model's numbers and their replicates (R,), by (level, metric, magnification or "mean"); `sides`, by (level,
    magnification or "mean"), counts the patients behind them."""

    values: Mapping[Cell, float]
    replicates: Mapping[Cell, np.ndarray]
    sides: Mapping[tuple[str, Hashable], Sides]

    def patients(self, cell: Cell) -> int:
        """How many patients a number rests on: those of the metric's class, or of the smaller class where it needs
        both, at its level and magnification; for the mean at the magnification with the fewest."""
        level, metric, place = cell
        return self.sides.get((level, place), Sides()).behind(metric)

    def interval(self, cell: Cell, level: float = CONFIDENCE) -> Interval:
        return of_metric(cell[1], self.values[cell], self.replicates[cell], level, self.patients(cell))


def bootstrap(
    predictions: pd.DataFrame,
    resampling: Resampling,
    magnifications: Sequence[int],
    measure: Callable[..., dict[tuple[str, str], np.ndarray]] = measure_levels_weighted,
) -> Bootstrapped:
    """All metrics at all levels, by magnification and as mean over `magnifications`; `measure` gives them
    (`results.extra_metrics.everything` gives more than those that are stored).

    `predictions` has magnification, malignant (whether the image is positive), probability, patient for the images of
    one split. The mean needs every magnification: NaN where one is missing. Models measured with one `resampling` can
    be compared with `paired`.
    """
    ones = np.ones((1, len(resampling.patients)))
    weights = np.concatenate([ones, resampling.weights])  # line 0 is the sample itself
    found: dict[Cell, np.ndarray] = {}
    sides: dict[tuple[str, Hashable], Sides] = {}
    owner = resampling.owners(predictions["patient"].to_numpy())
    of_image = predictions["magnification"].to_numpy()
    truth, score = predictions["malignant"].to_numpy(), predictions["probability"].to_numpy()
    for magnification in magnifications:
        at = of_image == magnification
        if at.any():
            levels = measure(truth[at], score[at], owner[at], weights)
            found |= {(level, metric, magnification): values for (level, metric), values in levels.items()}
            voted, _, of_vote = votes_of(truth[at], score[at], owner[at], len(resampling.patients))
            sides["image", magnification] = sides["patient_rate", magnification] = Sides.of(truth[at], owner[at])
            sides["patient_vote", magnification] = Sides.of(voted, of_vote)
    for level in LEVELS:
        sides[level, MEAN] = Sides.fewest([sides.get((level, each), Sides()) for each in magnifications])
    stored = [(level, metric) for level in LEVELS for metric in (METRICS if level != "patient_rate" else METRICS[:1])]
    for level, metric in dict.fromkeys([*stored, *(cell[:2] for cell in found)]):
        parts = [found[cell] for m in magnifications if (cell := (level, metric, m)) in found]
        complete = len(parts) == len(magnifications) > 0
        found[level, metric, MEAN] = np.mean(parts, axis=0) if complete else np.full(len(weights), math.nan)
    return Bootstrapped(
        {cell: float(values[0]) for cell, values in found.items()},
        {cell: values[1:] for cell, values in found.items()},
        sides,
    )


NO_SPREAD = 1e-12
"""A standard deviation below it is rounding: every draw gave the same value."""


def of_metric(
    metric: str, value: float, replicates: np.ndarray, level: float = CONFIDENCE, patients: int | None = None
) -> Interval:
    """Interval of a metric's `value`: on the logit scale where the metric lies between two limits, else `percentile`.

    With u the value's place between the limits and s the standard deviation there of the replicates (R,), the ends are
    at logit u -+ t sqrt(n / (n - 1)) s / (u (1 - u)), t the quantile of Student's t with n - 1 degrees of freedom, n =
    `patients` (for an AUC: Pepe 2003, The Statistical Evaluation of Medical Tests for Classification and Prediction,
    section 5.2; for shares in clusters: Dean & Pagano 2015, Journal of Survey Statistics and Methodology 3). Near a
    limit quantiles of the draws are too near to it: few patients have the errors that a draw can repeat, and other
    patients have more (docs/measurements.md has the coverage of both).

    The interval holds the value and stays within the limits. It has no width where no draw gave another value. None
    for fewer than `FEWEST_PATIENTS`; replicates in which the metric is undefined are left out.
    """
    bottom, top = smallest(metric), largest(metric)
    known = replicates[np.isfinite(replicates)]
    few = patients is not None and patients < FEWEST_PATIENTS
    if few or not len(known) or not bottom < value < top < math.inf:
        return percentile(value, replicates, level, patients)
    spread = float(known.std())
    if spread < NO_SPREAD:
        return Interval(value, value, value, len(known), level)
    tail = (1 - level) / 2
    reach = stats.norm.isf(tail)
    if patients is not None:
        reach = stats.t.isf(tail, patients - 1) * math.sqrt(patients / (patients - 1))
    width = top - bottom
    place = (value - bottom) / width
    half = reach * spread / width / (place * (1 - place))
    odds = math.log(place / (1 - place))
    low, high = (bottom + width * float(expit(odds + each)) for each in (-half, half))
    return Interval(value, min(low, value), max(high, value), len(known), level)  # rounding moves no end past the value


def percentile(
    value: float, replicates: np.ndarray, level: float = CONFIDENCE, patients: int | None = None
) -> Interval:
    """Percentile interval (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13) around `value`: for
    differences, and for what has no upper limit.

    With `patients`, the number n of independent units that were drawn, it is the expanded one (Hesterberg 2015, The
    American Statistician 69, 371-386): its ends are the quantiles at Phi(-sqrt(n / (n - 1)) t), t the quantile of
    Student's t with n - 1 degrees of freedom, since resamples of few units spread too little and have no long tails.
    None for fewer than `FEWEST_PATIENTS`. Replicates in which the metric is undefined are left out; with none left
    there is no interval.
    """
    known = replicates[np.isfinite(replicates)]
    if not len(known) or not math.isfinite(value) or (patients is not None and patients < FEWEST_PATIENTS):
        return Interval(value, replicates=len(known), level=level)
    tail = (1 - level) / 2
    if patients is not None:
        tail = float(stats.norm.sf(stats.t.isf(tail, patients - 1) * math.sqrt(patients / (patients - 1))))
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(value, float(low), float(high), len(known), level)


@dataclass(frozen=True)
class Difference:
    """One model minus another on the same patients, with a two-sided bootstrap p-value."""

    interval: Interval
    p: float


def paired(first: Bootstrapped, second: Bootstrapped, cell: Cell, level: float = CONFIDENCE) -> Difference:
    """First minus second, both measured with the same `Resampling`, so that what is hard about a drawn patient is hard
    for both (Efron & Tibshirani 1993, chapters 8 and 13).

    The p-value inverts the expanded percentile interval: with q = (min(#(d* <= 0), #(d* >= 0)) + 1) / (R + 1), the
    share of replicates on the other side of zero (Davison & Hinkley 1997, section 4.2), it is twice the tail of
    Student's t with n - 1 degrees of freedom beyond Phi^-1(1 - q) sqrt((n - 1) / n), at most 1. Where no replicate lies
    there, R alone would bound it: the normal approximation |d| / sd(d*) stands for Phi^-1(1 - q) if it is larger.
    """
    value, replicates = first.values[cell] - second.values[cell], first.replicates[cell] - second.replicates[cell]
    return difference(value, replicates, min(first.patients(cell), second.patients(cell)), level)


def difference(value: float, replicates: np.ndarray, patients: int, level: float = CONFIDENCE) -> Difference:
    """A difference with its interval and p-value, as `paired` has them, from its replicates (R,) over `patients`."""
    interval = percentile(value, replicates, level, patients)
    if not interval.bounded:
        return Difference(interval, math.nan)
    known = replicates[np.isfinite(replicates)]
    beyond = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0))
    distance, spread = stats.norm.isf((beyond + 1) / (len(known) + 1)), float(known.std())
    if not beyond and spread > 0:
        distance = max(distance, abs(value) / spread)
    p = 2 * stats.t.sf(distance * math.sqrt((patients - 1) / patients), patients - 1)
    return Difference(interval, float(min(1.0, p)))
