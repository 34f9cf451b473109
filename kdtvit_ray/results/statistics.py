"""Intervals and tests: Student's t over folds and settings, Kruskal-Wallis, Holm's correction, the standard error of an
AUC. numpy and scipy only.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

REPLICATES = 10_000
"""Bootstrap draws behind an interval, in the report and wherever else the same number is told."""
SEED = 0
"""The bootstrap's seed: the same patients give the same intervals."""
CONFIDENCE = 0.95
"""Of intervals."""
SIGNIFICANCE = 0.05
"""A difference is said to be shown where its p, corrected for all that is compared with it, is below."""
MEAN = "mean"
SAME = 1e-9
"""Values with a standard error below this share of their mean differ by rounding only."""
FEWEST_PATIENTS = 5
"""Below it no interval is given: two, three or four patients do not tell how a number varies over patients."""
FEWEST_FOR_IMPORTANCE = 4
"""Settings; of fewer a sweep tells no importances."""


@dataclass(frozen=True)
class Interval:
    """A value with a confidence interval at `level`; NaN where there is none. `replicates` says how many bootstrap
    draws or values stand behind it."""

    value: float
    low: float = math.nan
    high: float = math.nan
    replicates: int = 0
    level: float = CONFIDENCE

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def flat(self) -> bool:
        """Whether the interval has no width: no draw of the patients gave another value."""
        return self.bounded and self.low == self.high

    @property
    def spans_zero(self) -> bool:
        """Whether zero lies in the interval; an unbounded interval can exclude nothing."""
        return not self.bounded or self.low <= 0.0 <= self.high

    def within(self, low: float, high: float) -> "Interval":
        """The interval with its ends cut to what the quantity can be: Student's t knows of no bounds, and cutting costs
        no coverage."""
        return replace(self, low=float(np.clip(self.low, low, high)), high=float(np.clip(self.high, low, high)))


@dataclass(frozen=True)
class Sides:
    """How many patients a number rests on: `negative` of them have negative images, `positive` have positive ones. A
    patient with both counts on either side, and once among the `patients`."""

    negative: int = 0
    positive: int = 0
    patients: int = 0

    @classmethod
    def of(cls, positive: np.ndarray, patients: Sequence[Hashable] | np.ndarray) -> "Sides":
        """From whether each image is positive (N,) and whose it is (N,)."""
        truth, owner = np.asarray(positive, dtype=bool), np.asarray(patients)
        return cls(*(len(set(of.tolist())) for of in (owner[~truth], owner[truth], owner)))

    @classmethod
    def fewest(cls, parts: Sequence["Sides"]) -> "Sides":
        """Those of a mean over several numbers: it says no more than the number with the fewest patients. None at all
        where there is no number."""
        if not parts:
            return cls()
        return cls(*(min(getattr(each, name) for each in parts) for name in ("negative", "positive", "patients")))

    def behind(self, metric: str) -> int:
        """How many patients a metric rests on: those of its class, or of the smaller class where it needs both."""
        of_class = {"recall": self.positive, "specificity": self.negative}.get(metric)
        return min(self.negative, self.positive) if of_class is None else of_class

    @property
    def enough(self) -> bool:
        """Whether a number that needs both classes has an interval."""
        return min(self.negative, self.positive) >= FEWEST_PATIENTS

    def told(self, words: tuple[str, str]) -> str:
        """`16 benign, 38 malignant`; where some patients have images of both, how many do."""
        (negative, positive), both = words, self.negative + self.positive - self.patients
        if not both:
            return f"{self.negative} {negative}, {self.positive} {positive}"
        return f"{self.negative} with {negative} images, {self.positive} with {positive} ones, {both} of them with both"


def auc_standard_error(auc: float, negative: int, positive: int) -> float:
    """Standard error of an AUC from independent units of both classes with normal scores of one variance: Bamber's
    formula (1975, Journal of Mathematical Psychology 12), where the chance that two units of one class both lie on
    the right side of one of the other is a bivariate normal probability with correlation one half.

    Counting patients, not images, makes it an upper bound for an AUC over images: it is reached where all images of a
    patient score alike; where they vary as much within patients as between them, simulations gave 0.5 to 0.7 of it.
    """
    apart = stats.norm.ppf(auc)
    both = float(stats.multivariate_normal.cdf([apart, apart], cov=[[1.0, 0.5], [0.5, 1.0]]))
    variance = auc * (1 - auc) + (positive + negative - 2) * (both - auc**2)
    return math.sqrt(variance / (negative * positive))


# -- over folds and over trials ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TTest:
    """A mean with its t interval; `p` is two-sided against zero. Neither is there for fewer than two values, and where
    all are the same and not zero."""

    interval: Interval
    t: float
    p: float


def mean_interval(values: Sequence[float] | np.ndarray, level: float = CONFIDENCE) -> Interval:
    """Mean with Student's t interval over independent values; no interval for fewer than two, or where
    all are the same and not zero."""
    return _t_test(values, lambda n: 1 / n, level).interval


def corrected_t_test(
    differences: Sequence[float] | np.ndarray, test_over_train: float, level: float = CONFIDENCE
) -> TTest:
    """Nadeau & Bengio (2003, Machine Learning 52, "Inference for the generalization error"): over J overlapping
    resamplings of one data set the variance of the mean is (1/J + n_test/n_train) s^2, not s^2/J; t has J - 1 degrees
    of freedom. `differences` (J,) holds one number for each fold, `test_over_train` = n_test / n_train is 1 / (folds -
    1) in cross-validation."""
    return _t_test(differences, lambda n: 1 / n + test_over_train, level)


def _t_test(values: Sequence[float] | np.ndarray, factor: object, level: float) -> TTest:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    n = len(known)
    mean = float(known.mean()) if n else math.nan
    if n < 2:
        return TTest(Interval(mean, replicates=n, level=level), math.nan, math.nan)
    error = math.sqrt(factor(n) * float(known.var(ddof=1)))  # type: ignore[operator]
    if mean and error <= SAME * abs(mean):
        # values that happen to be the same say nothing of how far others would lie from them
        return TTest(Interval(mean, replicates=n, level=level), math.nan, math.nan)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    t = mean / error if error else 0.0
    return TTest(Interval(mean, mean - half, mean + half, n, level), t, float(2 * stats.t.sf(abs(t), n - 1)))


def group_test(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable], permutations: int = 4_999, seed: int = 0
) -> float:
    """Whether groups of settings differ: p of the Kruskal-Wallis statistic (1952, JASA 47) under random relabelling, (1
    + #(H* >= H)) / (1 + permutations); it is exact for groups of one too. Beyond 1,000 values the chi-squared limit is
    used. NaN for fewer than two groups or fewer than three values."""
    known = np.asarray(values, dtype=np.float64)
    names = pd.factorize(pd.Series(list(groups), dtype=object))[0]
    names, known = names[np.isfinite(known)], known[np.isfinite(known)]
    names = np.unique(names, return_inverse=True)[1]
    n, count = len(known), int(names.max(initial=-1)) + 1
    if count < 2 or n < 3 or count == n:  # where every group is one value, every relabelling is as good
        return math.nan
    if np.ptp(known) == 0:
        return 1.0
    if n > 1_000:
        return float(stats.kruskal(*(known[names == each] for each in range(count))).pvalue)
    ranks = stats.rankdata(known)
    member = np.eye(count)[names]
    sizes = member.sum(axis=0)
    # H is a rising function of this sum, ties or not, since relabelling changes neither
    observed = float(((ranks @ member) ** 2 / sizes).sum())
    rng = np.random.default_rng(seed)
    reached = 0
    for first in range(0, permutations, 500):
        lines = min(500, permutations - first)
        shuffled = rng.permuted(np.broadcast_to(ranks, (lines, n)), axis=1)
        reached += int(np.count_nonzero(((shuffled @ member) ** 2 / sizes).sum(axis=1) >= observed * (1 - 1e-12)))
    return (1 + reached) / (1 + permutations)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (1979, Scandinavian Journal of Statistics 6), in the order given; NaN stays
    NaN and does not count as a test."""
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, math.nan)
    known = np.flatnonzero(np.isfinite(given))
    order = known[np.argsort(given[known], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted
