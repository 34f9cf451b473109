"""Whether the values of a searched setting differ for patients that nobody has seen, from out-of-fold predictions.

All settings tried are judged on the same drawn development patients, those of the inner folds that every setting had,
also one that racing dropped: leaving out what was dropped for being worse would hide effects. Their objectives are
explained by additive main effects, one for each value of each searched name, by ordinary least squares; a contrast
between values is then a weighted sum w of the settings' objectives, which an adaptive search's uneven choice of
settings does not bias. Two kinds of chance decide how sure it is, and their variances add up:

    other trainings    s^2 w . w, s^2 the residual variance of the fit: settings that are alike in every effect still
                       differ, by what their training drew and by what the patients make of each of them
    other patients     the variance of w . objective over bootstrap draws of patients, less u^2 w . w, u^2 the residual
                       variance of the draws: that part, of each setting by itself, is in s^2 already

s^2 is at least u^2, so that what is claimed holds for other patients in any case. A t statistic with Welch and
Satterthwaite's degrees of freedom (Satterthwaite 1946, Biometrics Bulletin 2) gives p and interval; Holm's correction
is over all contrasts of all names.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from kdtvit_ray.results.effects import binned, settings_table
from kdtvit_ray.results.judged_settings import compared
from kdtvit_ray.results.out_of_fold import Judged
from kdtvit_ray.results.statistics import CONFIDENCE, FEWEST_PATIENTS, Interval, holm
from kdtvit_ray.results.study import Study

ALL_PAIRS_UP_TO = 4
"""values; beyond it each value is compared with the mean of the others, since Holm's correction counts every pair."""
MISSING = "none"
"""How a setting's missing value is called: the temperature of a chain that does not distil, for one."""


@dataclass(frozen=True)
class Contrast:
    """One value of a searched name minus another, all other names being equal; `low` is None where it is minus the mean
    of all other values. `difference` is in units of the objective."""

    high: object
    low: object | None
    difference: Interval
    p: float
    p_holm: float = math.nan


@dataclass(frozen=True)
class OverPatients:
    """What can be said of one searched name, over `settings` settings and `patients` (`Judged.patients`).
    `contrasts` are those that can be estimated, with the larger value first; none where there are too few of either."""

    name: str
    contrasts: tuple[Contrast, ...]
    settings: int
    patients: int

    @property
    def clearest(self) -> Contrast | None:
        """The contrast with the smallest p."""
        return min(self.contrasts, key=lambda each: each.p) if self.contrasts else None


def effects_over_patients(study: Study, judged: Mapping[str, Judged]) -> dict[str, OverPatients]:
    """By searched name that took two values or more, from `judged.judged_alike`; `first` and `last` follow from the
    order and are left out."""
    records = compared(study, judged)
    records = records[records["trial"].isin(judged.keys())]
    if not len(records):
        return {}
    table = settings_table(records).drop(columns=["first", "last"])
    columns = {name: binned(table[name]) for name in table.columns}
    columns = {name: values for name, values in columns.items() if values.nunique(dropna=False) > 1}
    found = [judged[trial] for trial in records["trial"]]
    return main_effects(
        columns,
        np.array([each.value for each in found]),
        np.stack([each.replicates for each in found], axis=1),
        min(each.patients for each in found),
    )


def main_effects(
    columns: Mapping[str, pd.Series], objective: np.ndarray, replicates: np.ndarray, patients: int
) -> dict[str, OverPatients]:
    """The effects from the settings' values by name, their objectives (S,) and the replicates (R, S). Settings that
    have no value of a name are one more level of it, `MISSING`."""
    words = {name: [MISSING if pd.isna(each) else str(each) for each in values] for name, values in columns.items()}
    levels = {name: sorted(set(of_name)) for name, of_name in words.items()}
    told = {  # the values as they are, for tables
        name: {word: MISSING if word == MISSING else value for word, value in zip(words[name], values, strict=True)}
        for name, values in columns.items()
    }
    place, width = {}, 1
    for name, its in levels.items():
        place[name] = width
        width += len(its)
    design = np.zeros((len(objective), width))
    design[:, 0] = 1
    for name, of_name in words.items():
        for offset, level in enumerate(levels[name]):
            design[:, place[name] + offset] = [word == level for word in of_name]
    inverse = np.linalg.pinv(design)
    freedom = len(objective) - int(np.linalg.matrix_rank(design))
    known = replicates[np.isfinite(replicates).all(axis=1)]
    enough = freedom > 0 and patients >= FEWEST_PATIENTS and len(known) > 1
    made: list[tuple[str, Contrast]] = []
    if enough:
        rest = np.eye(len(objective)) - design @ inverse  # takes the effects out
        by_setting = float(((known - known.mean(axis=0)) @ rest).var(axis=0).sum()) / freedom
        noise = max(float((rest @ objective) @ (rest @ objective)) / freedom, by_setting)
        for name in columns:
            for high, low, vector in _vectors(levels[name], place[name], width):
                if not np.allclose(vector @ inverse @ design, vector, atol=1e-8):
                    continue  # the settings tried cannot tell it from another name's effect
                weights = vector @ inverse
                long = float(weights @ weights)
                by_patients = max(float((known @ weights).var(ddof=1)) - by_setting * long, 0.0)
                by_patients, by_training = (each * patients / (patients - 1) for each in (by_patients, noise * long))
                contrast = _contrast(weights @ objective, by_patients, by_training, patients, freedom)
                pair = (told[name][high], None if low is None else told[name][low])
                made.append((name, _turned(pair, contrast)))
    corrected = holm([contrast.p for _, contrast in made])
    return {
        name: OverPatients(
            name,
            tuple(
                Contrast(each.high, each.low, each.difference, each.p, float(after))
                for (of, each), after in zip(made, corrected, strict=True)
                if of == name
            ),
            len(objective),
            patients,
        )
        for name in columns
    }


def _vectors(levels: list[str], first: int, width: int) -> list[tuple[str, str | None, np.ndarray]]:
    """The contrasts of one name as vectors over the design's columns."""
    unit = np.eye(width)
    if len(levels) <= ALL_PAIRS_UP_TO:
        return [
            (levels[i], levels[j], unit[first + i] - unit[first + j])
            for i, j in itertools.combinations(range(len(levels)), 2)
        ]
    mean = unit[first : first + len(levels)].sum(axis=0)
    share = 1 / (len(levels) - 1)
    return [(level, None, unit[first + i] - share * (mean - unit[first + i])) for i, level in enumerate(levels)]


def _contrast(
    value: float, by_patients: float, by_training: float, patients: int, freedom: int
) -> tuple[float, float, float]:
    """(value, half the 95 % interval, p)."""
    variance = by_patients + by_training
    if variance <= 0:
        return float(value), 0.0, 1.0 if value == 0 else 0.0
    together = by_patients**2 / (patients - 1) + by_training**2 / freedom
    degrees = variance**2 / together
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    return float(value), half, float(2 * stats.t.sf(abs(value) / error, degrees))


def _turned(pair: tuple[object, object | None], found: tuple[float, float, float]) -> Contrast:
    """With the larger value first, where two values are compared."""
    value, half, p = found
    high, low = pair
    if value < 0 and low is not None:
        high, low, value = low, high, -value
    return Contrast(high, low, Interval(value, value - half, value + half), p)
