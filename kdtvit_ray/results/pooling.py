"""Chains that are trained anew in every fold and judged on the test patients of all folds together.

Each patient is judged by the models of the fold that tests it. A difference between two such chains varies by chance in
two ways, and one that is told stands out from both:

    patients     the paired bootstrap over the patients of all folds
    trainings    2 s^2 (1 / J + n_test / n_train) is the variance of a difference over J folds, with Nadeau and Bengio's
                 correction for the training patients that folds share (`statistics.corrected_t_test`); s^2 is what is
                 left of the variance of the folds' own values, means over their seeds, once the mean of every fold and
                 of every chain is taken out, as in an analysis of variance of folds and C chains: t with (J - 1)(C - 1)
                 degrees of freedom

The interval reaches over those of both, p is the larger one. With two chains the second part is the corrected t-test.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from kdtvit_ray.results.bootstrap import Bootstrapped, Cell, Difference, Resampling, bootstrap, paired
from kdtvit_ray.results.statistics import CONFIDENCE, Interval


@dataclass(frozen=True)
class Folded:
    """A chain on the test patients of all folds: `pooled` values and draws, and by cell each fold's own value (J,)."""

    pooled: Bootstrapped
    by_fold: Mapping[Cell, np.ndarray]


def measure_folds(seeds: Sequence[Sequence[pd.DataFrame]], drawn: Resampling, magnifications: Sequence[int]) -> Folded:
    """From the predictions of each fold, for each seed: the mean over seeds of values and draws. `drawn` has the
    patients of all folds, each of whom is in one of them; chains that are compared have it in common."""
    folds = np.array([np.isin(drawn.patients, frame["patient"].astype(str)) for frame in seeds[0]], dtype=float)
    lines = replace(drawn, weights=np.concatenate([folds, drawn.weights]))
    made = [bootstrap(pd.concat(of_folds), lines, magnifications) for of_folds in seeds]
    cells = [cell for cell in made[0].values if all(cell in each.values for each in made)]
    whole = {cell: np.mean([each.replicates[cell] for each in made], axis=0) for cell in cells}
    values = {cell: math.fsum(each.values[cell] for each in made) / len(made) for cell in cells}
    pooled = replace(made[0], values=values, replicates={cell: whole[cell][len(folds) :] for cell in cells})
    return Folded(pooled, {cell: whole[cell][: len(folds)] for cell in cells})


def differences(chains: Sequence[Folded], cell: Cell, test_over_train: float) -> list[Difference]:
    """The first of the chains minus each other one, over patients and trainings; `test_over_train` is n_test / n_train.
    Neither interval nor p where there are too few patients (`bootstrap.paired`), and where fewer than two folds have a
    value for every chain."""
    first, others = chains[0].pooled, [each.pooled for each in chains[1:]]
    variance, freedom, folds = _left_over(np.stack([each.by_fold[cell] for each in chains]))
    error = math.sqrt(2 * variance * (1 / folds + test_over_train)) if freedom else math.nan
    return [_over_both(paired(first, each, cell), error, freedom) for each in others]


def _left_over(values: np.ndarray) -> tuple[float, int, int]:
    """(variance, its degrees of freedom, folds) of the values (C, J) without the means of chains and folds."""
    known = values[:, np.isfinite(values).all(axis=0)]
    chains, folds = known.shape
    freedom = (chains - 1) * (folds - 1)
    if freedom < 1:
        return math.nan, 0, folds
    left = known - known.mean(axis=0) - known.mean(axis=1, keepdims=True) + known.mean()
    return float((left**2).sum()) / freedom, freedom, folds


def _over_both(over_patients: Difference, error: float, freedom: int) -> Difference:
    """A difference over patients, with the standard error that it has over trainings."""
    interval = over_patients.interval
    if not interval.bounded or not freedom:
        return Difference(Interval(interval.value, replicates=interval.replicates), math.nan)
    value, half = interval.value, float(stats.t.isf((1 - CONFIDENCE) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(value) / error, freedom)) if error else float(value == 0)
    low, high = min(interval.low, value - half), max(interval.high, value + half)
    return Difference(replace(interval, low=low, high=high), max(over_patients.p, p))
