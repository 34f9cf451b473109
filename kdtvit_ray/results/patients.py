"""One decision a patient, from the mean probability over its test images of all magnifications together: how good it
is, and what each magnification adds to it. That is what one model for all magnifications is for.

A patient is positive where any of its images is. Intervals and differences are over drawn patients
(`results.bootstrap`), and every difference is between decisions on the same patients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from kdtvit_ray.results.bootstrap import Bootstrapped, Cell, Difference, Resampling, bootstrap, paired, resample
from kdtvit_ray.results.models import Model, predictions_on_test
from kdtvit_ray.results.statistics import REPLICATES, SIGNIFICANCE, Interval, holm
from kdtvit_ray.results.study import Study

SHOWN = ("auc", "accuracy", "recall", "specificity", "brier")
ALL = 0
"""Stands for all magnifications together."""


@dataclass(frozen=True)
class Subset:
    """The decision from the images at `magnifications`, with its metrics. `gain` is the decision from all of them
    minus this one, None for all of them; `p_holm` is corrected over all subsets."""

    name: str
    magnifications: tuple[int, ...]
    values: Mapping[str, Interval]
    gain: Difference | None = None
    p_holm: float = math.nan

    @property
    def shown(self) -> bool:
        """Whether the data show that all magnifications together decide otherwise, better or worse."""
        return self.gain is not None and not self.gain.interval.spans_zero and self.p_holm < SIGNIFICANCE


@dataclass(frozen=True)
class Added:
    """One model's decisions from all magnifications, the first of `subsets`, then from each alone, then from all
    without one, compared in `metric`. They are on the `negative` and `positive` patients that have images at every
    magnification; `left` counts the others."""

    metric: str
    subsets: tuple[Subset, ...]
    negative: int
    positive: int
    left: int


@dataclass(frozen=True)
class Decided:
    """A model's decisions over all magnifications: its metrics on test patients."""

    model: Model
    values: Mapping[str, Interval]


@dataclass(frozen=True)
class Patients:
    """Every model's decisions, the chosen model's first, on `negative` and `positive` test patients; `added` is None
    where the chosen model has no predictions. `left_out` names models without predictions at every magnification."""

    models: tuple[Decided, ...]
    added: Added | None
    negative: int
    positive: int
    left_out: tuple[str, ...]


def metrics_of(metric: str) -> tuple[str, ...]:
    """The metrics in which decisions are told: the study's own first where it is not one of them."""
    return SHOWN if metric in SHOWN else (metric, *SHOWN)


def votes(predictions: pd.DataFrame) -> pd.DataFrame:
    """One line for each patient: patient, malignant (whether any image is positive), probability (mean over its
    images)."""
    exact = predictions.astype({"probability": "float64"})
    patients = exact.groupby("patient", sort=True, observed=True)
    return patients.agg(malignant=("malignant", "any"), probability=("probability", "mean")).reset_index()


def patients(study: Study, models: Sequence[Model], replicates: int = REPLICATES) -> Patients | None:
    """All models on the same drawn test patients; None where no model has predictions."""
    found = [(model, predictions_on_test(study, model)) for model in models]
    frames = {
        model.name: (model, frame)
        for model, frame in found
        if frame is not None and set(study.magnifications) <= set(frame["magnification"])
    }
    left_out = tuple(model.label for model in models if model.name not in frames)
    if not frames:
        return None
    of_model = {name: votes(frame) for name, (_, frame) in frames.items()}
    drawn = _drawn(pd.concat(of_model.values()).drop_duplicates("patient"), replicates)
    metrics = metrics_of(study.metric)
    decided = [Decided(frames[name][0], _values(_measure(each, drawn), metrics)) for name, each in of_model.items()]
    chosen = next((frame for model, frame in frames.values() if model.kind == "best"), None)
    own = None if chosen is None else added(chosen, study.magnifications, study.metric, replicates)
    return Patients(tuple(decided), own, drawn.sides.negative, drawn.sides.positive, left_out)


def added(
    predictions: pd.DataFrame, magnifications: Sequence[int], metric: str, replicates: int = REPLICATES
) -> Added | None:
    """What each of `magnifications` adds to the decisions of one model, from its predictions of test images. None where
    no patient has images at all of them."""
    wanted = predictions[predictions["magnification"].isin(list(magnifications))]
    at = wanted.groupby("patient", observed=True)["magnification"].nunique()
    complete = wanted[wanted["patient"].isin(at.index[at == len(magnifications)])]
    if not len(complete):
        return None
    drawn = _drawn(votes(complete), replicates)
    metrics, cell = metrics_of(metric), _cell(metric)
    whole = _measure(votes(complete), drawn)
    subsets = [Subset("all magnifications", tuple(magnifications), _values(whole, metrics))]
    for name, kept in _parts(magnifications):
        part = _measure(votes(complete[complete["magnification"].isin(kept)]), drawn)
        subsets.append(Subset(name, kept, _values(part, metrics), paired(whole, part, cell)))
    p_values = holm([math.nan if each.gain is None else each.gain.p for each in subsets])
    subsets = [replace(each, p_holm=float(p)) for each, p in zip(subsets, p_values, strict=True)]
    left = len(at) - complete["patient"].nunique()
    return Added(metric, tuple(subsets), drawn.sides.negative, drawn.sides.positive, left)


def _parts(magnifications: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    """Each magnification alone, then all without one, which of two magnifications is the other one alone."""
    if len(magnifications) < 2:
        return []
    parts: list[tuple[str, tuple[int, ...]]] = [(f"{each}X alone", (each,)) for each in magnifications]
    if len(magnifications) > 2:
        parts += [
            (f"all without {each}X", tuple(other for other in magnifications if other != each))
            for each in magnifications
        ]
    return parts


def _drawn(of_patients: pd.DataFrame, replicates: int) -> Resampling:
    return resample(of_patients["patient"].to_numpy(), of_patients["malignant"].to_numpy(), replicates)


def _measure(of_patients: pd.DataFrame, drawn: Resampling) -> Bootstrapped:
    """With one line a patient, the metrics of images are those of patients."""
    return bootstrap(of_patients.assign(magnification=ALL), drawn, [ALL])


def _cell(metric: str) -> Cell:
    return "image", metric, ALL


def _values(found: Bootstrapped, metrics: Sequence[str]) -> dict[str, Interval]:
    return {metric: found.interval(_cell(metric)) for metric in metrics}
