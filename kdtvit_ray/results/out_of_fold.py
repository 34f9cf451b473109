"""The objective over inner folds: every development patient is judged by chains that were not trained on it.

A setting's chain is trained once for each inner fold, on the other inner folds. Its predictions of the patients left
out are put together, and the objective is the metric of these out-of-fold predictions, as mean over magnifications.
With several repeats, each of which cuts the patients in another way and has a training seed of its own, it is the mean
over repeats. Uncertainty is over patients (`results.bootstrap`): two settings that are judged on the same drawn
patients can be compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdtvit_ray.metrics import gain
from kdtvit_ray.results.bootstrap import Cell, Resampling, bootstrap, measure_weighted, resample, sums_of
from kdtvit_ray.results.statistics import MEAN

REPLICATES = 1000
"""Bootstrap draws behind a standard error and behind a decision of racing."""
JUDGED_COLUMNS = ("magnification", "malignant", "probability", "patient")
"""What of a stage's predictions a setting is judged by."""


@dataclass(frozen=True, order=True)
class Part:
    """One inner fold of one repeat, both counted from 1: what one chain of a setting leaves out."""

    repeat: int
    inner: int

    @property
    def name(self) -> str:
        """`i2`, and `r2-i1` from the second repeat on."""
        return f"i{self.inner}" if self.repeat == 1 else f"r{self.repeat}-i{self.inner}"


def parts_of(study: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts that a setting is judged on, in the order in which it gets them, from [study]. () where the objective
    is measured on one validation part."""
    folds, repeats = study["objective_folds"], study["objective_repeats"]
    if folds < 2:
        return ()
    return tuple(Part(repeat, inner) for repeat in range(1, repeats + 1) for inner in range(1, folds + 1))


@dataclass(frozen=True)
class Judged:
    """A setting's objective, `value`, which is the mean of those `by_magnification`, and its bootstrap replicates (R,)
    over the development patients; `patients` counts those that it rests on (`Bootstrapped.patients`), in the repeat
    with the fewest."""

    value: float
    by_magnification: Mapping[int, float]
    replicates: np.ndarray
    patients: int = 0

    @property
    def standard_error(self) -> float:
        """The standard deviation of the objective over drawn patients; NaN where no replicate is defined."""
        known = self.replicates[np.isfinite(self.replicates)]
        return float(known.std(ddof=1)) if len(known) > 1 else math.nan


def patients_of(frames: Sequence[pd.DataFrame], replicates: int = REPLICATES) -> Resampling:
    """Draws of all patients in these predictions. The same patients give the same draws."""
    everyone = pd.concat([frame[["patient", "malignant"]] for frame in frames]).drop_duplicates()
    return resample(everyone["patient"].to_numpy(), everyone["malignant"].to_numpy(), replicates)


def judge(
    frames: Mapping[Part, pd.DataFrame],
    metric: str,
    magnifications: Sequence[int],
    resampling: Resampling | None = None,
) -> Judged:
    """The objective from the predictions of each part's validation images: `JUDGED_COLUMNS`. Predictions of one repeat
    are put together; repeats are averaged. Patients are drawn anew unless a `resampling` is given, which settings that
    are compared have in common."""
    resampling = resampling or patients_of(list(frames.values()))
    cell: Cell = ("image", metric, MEAN)
    made = []
    for repeat in sorted({part.repeat for part in frames}):
        together = pd.concat([frame for part, frame in sorted(frames.items()) if part.repeat == repeat])
        made.append(bootstrap(together, resampling, magnifications, _of_images))

    def mean(cell: Cell) -> float:
        return math.fsum(each.values[cell] for each in made) / len(made)

    by_magnification = {each: mean(("image", metric, each)) for each in magnifications}
    replicates = np.mean([each.replicates[cell] for each in made], axis=0)
    return Judged(mean(cell), by_magnification, replicates, min(each.patients(cell) for each in made))


def share_worse(setting: Judged, best: Judged, metric: str) -> float:
    """The share of bootstrap draws in which a setting is worse than the best one, both judged with one `Resampling` on
    the same parts: the confidence that it is behind. A draw in which a metric is undefined, or both are equal, does not
    count as worse."""
    return float(np.mean(gain(metric, setting.replicates - best.replicates) < 0))


def _of_images(
    positive: np.ndarray, probability: np.ndarray, owner: np.ndarray, weights: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """What `bootstrap` measures at the level of the objective."""
    sums = sums_of(positive, probability, owner, weights.shape[1])
    return {("image", metric): values for metric, values in measure_weighted(sums, weights).items()}
