"""The headline table: the best chain and its rivals on test images, with intervals over patients, beside what others
have reported; and paired comparisons of the best chain with each rival."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdtvit_ray.metrics import LEVELS, METRICS
from kdtvit_ray.recipe import MAGNIFICATIONS
from kdtvit_ray.results.statistics import (
    FEWEST_PATIENTS,
    MEAN,
    REPLICATES,
    Bootstrapped,
    Difference,
    Interval,
    Resampling,
    bootstrap,
    holm,
    paired,
    resample,
)
from kdtvit_ray.results.study import Model, Study, best, models, test_predictions

COLUMNS = (*(f"{magnification}X" for magnification in MAGNIFICATIONS), MEAN)
SEED = 0
"""Of the bootstrap: the same study gives the same intervals."""


@dataclass(frozen=True)
class Reference:
    """A published result: `values` by column of the headline table, shares of one; `protocol` says on which split."""

    label: str
    level: str
    metric: str
    values: Mapping[str, float]
    protocol: str
    source: str


def _by_magnification(label: str, source: str, *percent: float) -> Reference:
    values = dict(zip(COLUMNS, (each / 100 for each in percent), strict=False))
    protocol = "patient-disjoint, patient-level rate accuracy"
    return Reference(label, "patient_rate", "accuracy", values, protocol, source)


_KDTVIT = "KDTViT, Scientific Reports 2026, doi 10.1038/s41598-026-49792-6"
REFERENCES = (
    *(
        Reference("KDTViT (reported)", "image", metric, {MEAN: value}, "reported, split unknown", _KDTVIT)
        for metric, value in {
            "accuracy": 0.9543, "precision": 0.9445, "recall": 0.9920, "f1": 0.9676, "auc": 0.9930,
        }.items()
    ),
    _by_magnification(
        "PFTAS features (Spanhol et al.)", "Spanhol et al., IEEE TBME 2016, doi 10.1109/TBME.2015.2496264",
        83.80, 82.10, 85.10, 82.30,
    ),
    _by_magnification(
        "Bayramoglu MI", "Bayramoglu et al., magnification-independent CNN, ICPR 2016", 83.08, 83.17, 84.63, 82.10
    ),
    _by_magnification(
        "ImageNet ResNet-50 (reported)", "as quoted by others, first source not traced", 91.46, 91.24, 90.72, 87.90
    ),
    _by_magnification(
        "MPCS EfficientNet-b2 (Chhipa et al.)", "Chhipa et al., WACV 2023, arXiv 2203.07707", 93.26, 93.57, 92.23, 89.57
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Headline:
    """`long`: one line a number (model, label, kind, level, metric, magnification "40X".."400X" or "mean", value, low,
    high, note); `notes`: what the intervals rest on, and what is left out."""

    long: pd.DataFrame
    notes: tuple[str, ...] = ()

    def wide(self, metric: str, level: str = "image") -> pd.DataFrame:
        """One line a model, columns 40X 100X 200X 400X mean. `attrs`: `low` and `high`, frames of the same shape;
        `kind` and `note`, a dict by label."""
        part = self.long[(self.long["metric"] == metric) & (self.long["level"] == level)]
        labels = list(dict.fromkeys(part["label"]))

        def pivot(column: str) -> pd.DataFrame:
            frame = part.pivot(index="label", columns="magnification", values=column)
            frame = frame.reindex(index=labels, columns=list(COLUMNS))
            return frame.rename_axis(index=None, columns=None)

        wide, low, high = (pivot(column) for column in ("value", "low", "high"))
        for column in ("kind", "note"):
            wide.attrs[column] = dict(zip(part["label"], part[column], strict=True))
        wide.attrs["low"], wide.attrs["high"] = low, high
        return wide


@dataclass(frozen=True)
class Comparison:
    """A chain minus a rival, image level, test, on the same patients: `metric`'s mean over magnifications with its
    interval, two-sided p and p after Holm's correction over all comparisons; `values` by column of the headline table.
    The chain, `trial`, is the best one unless `alike`: then it is the best trial that differs from the rival in
    nothing but distillation."""

    trial: str
    against: Model
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    values: Mapping[str, Interval]
    patients: int = FEWEST_PATIENTS
    """Test patients that the metric rests on, of the smaller class where it needs both."""
    alike: bool = False

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out."""
        return not Interval(self.difference, self.low, self.high).spans_zero

    @property
    def few(self) -> bool:
        """Whether there are too few patients for an interval."""
        return self.patients < FEWEST_PATIENTS


def headline(study: Study, replicates: int = REPLICATES) -> Headline:
    """All models of the study on test with 95 % intervals over patients, then what others have reported."""
    measured = _measured(study, replicates)
    by_name = {model.name: found for model, found in measured.models}
    lines: list[tuple[object, ...]] = []
    for model in models(study):
        # without predictions the rows still hold the values, though no intervals
        found = by_name.get(model.name)
        lines += _from_rows(study, model) if found is None else _from_bootstrap(study, model, found)
    for each in REFERENCES:
        note = f"{each.protocol}; {each.source}"
        values = dict(each.values)
        if MEAN not in values:  # over the magnifications that the study's own means are over
            parts = [values[column] for column in columns_of(study)]
            values[MEAN] = math.fsum(parts) / len(parts)
            note += "; mean computed here"
        for column, value in values.items():
            lines.append(
                (each.label, each.label, "reported", each.level, each.metric, column, value, math.nan, math.nan, note)
            )
    names = ["model", "label", "kind", "level", "metric", "magnification", "value", "low", "high", "note"]
    return Headline(pd.DataFrame(lines, columns=names), tuple(measured.notes))


def comparisons(study: Study, replicates: int = REPLICATES, metric: str | None = None) -> list[Comparison]:
    """The best chain against every other student's best and every baseline whose predictions are there; then, where
    the best chain differs from the baseline `sequential` in more than distillation, the trial that does not."""
    metric = metric or study.metric
    chosen, found = best(study), _measured(study, replicates)
    if chosen is None or not found.models or found.models[0][0].kind != "best":
        return []
    ours, rivals = found.models[0][1], found.models[1:]
    made = [(chosen.trial, model, _pairs(ours, theirs, metric)) for model, theirs in rivals]
    for model, theirs in rivals:
        trial = _alike(study) if model.name == "sequential" else None
        if trial is None or trial["trial"] == chosen.trial:
            continue
        alone = Model(trial["trial"], trial["trial"], "search", dict.fromkeys(MAGNIFICATIONS, trial["stages"][-1]), 0)
        predictions = test_predictions(study, alone)
        if predictions is not None and len(predictions) and found.resampling is not None:
            own = bootstrap(predictions, found.resampling, study.magnifications)
            made.append((alone.name, model, _pairs(own, theirs, metric)))
    corrected = holm([values[MEAN].p for _, _, values in made])
    patients = ours.patients(metric)
    return [
        _comparison(trial, model, metric, values, float(p_holm), patients, trial != chosen.trial)
        for (trial, model, values), p_holm in zip(made, corrected, strict=True)
    ]


def _alike(study: Study) -> pd.Series | None:
    """The best searched trial that distils and is like the baseline `sequential` in all else; None without one."""
    record = study.trial("sequential")
    if record is None:
        return None
    fixed = study.plain.get("training", {})
    found = study.searched
    found = found[(found["order"] == record["order"]) & (found["student"] == record["student"])]
    found = found[[_like(trial, record, fixed) for _, trial in found.iterrows()]]
    return found.sort_values(["objective", "number"], ascending=[False, True]).iloc[0] if len(found) else None


def _like(trial: pd.Series, record: pd.Series, fixed: Mapping[str, Any]) -> bool:
    """Whether a trial distils and has a baseline's settings otherwise; `fixed` is the study's [training]."""
    if not any(each > 0 for each in json.loads(trial["alpha"])):
        return False
    return not differences(trial, record, fixed)


def differences(trial: pd.Series, record: pd.Series, fixed: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(setting, the trial's, the baseline's) for all that sets a searched trial apart from a baseline but for
    distillation: teacher, temperature, alpha, form of the loss. The baseline has `fixed`, the study's [training]."""
    pairs = [(name, trial[name], record[name]) for name in ("order", "student", "warm_start")]
    params = json.loads(trial["params"])
    names = [name for name in params if name.startswith("training.")]
    pairs += [(name, params[name], fixed.get(name.removeprefix("training."))) for name in names]
    return [(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]


def columns_of(study: Study) -> list[str]:
    """Columns of the headline table that the study's means are over."""
    return [f"{magnification}X" for magnification in study.magnifications]


def _pairs(ours: Bootstrapped, theirs: Bootstrapped, metric: str) -> dict[str, Difference]:
    cells = {column: ("image", metric, MEAN if column == MEAN else int(column[:-1])) for column in COLUMNS}
    return {
        column: paired(ours, theirs, cell)
        for column, cell in cells.items()
        if cell in ours.values and cell in theirs.values
    }


def _comparison(
    trial: str, model: Model, metric: str, values: Mapping[str, Difference], p_holm: float, patients: int, alike: bool
) -> Comparison:
    mean = values[MEAN]
    by_column = {column: each.interval for column, each in values.items()}
    low, high = mean.interval.low, mean.interval.high
    return Comparison(trial, model, metric, mean.interval.value, low, high, mean.p, p_holm, by_column, patients, alike)


@dataclass(frozen=True)
class _Measured:
    """Models with predictions, all measured on one resampling of the test patients."""

    models: list[tuple[Model, Bootstrapped]]
    notes: list[str]
    resampling: Resampling | None


def _measured(study: Study, replicates: int) -> _Measured:
    known = getattr(study, "_measured", None)  # the same numbers serve table, comparisons and sentences
    if known and known[0] == replicates:
        return known[1]
    found = [(model, test_predictions(study, model)) for model in models(study)]
    frames = [(model, frame) for model, frame in found if frame is not None and len(frame)]
    notes = [f"{model.label}: predictions are missing, so no intervals" for model, frame in found if frame is None]
    measured = _Measured([], notes, None)
    if frames:
        everyone = pd.concat([frame[["patient", "malignant"]] for _, frame in frames]).drop_duplicates()
        drawn = resample(everyone["patient"].to_numpy(), everyone["malignant"].to_numpy(), replicates, SEED)
        made = [(model, bootstrap(frame, drawn, study.magnifications)) for model, frame in frames]
        measured = _Measured(made, notes, drawn)
        notes.append(
            f"Intervals are 95 % expanded percentile intervals (Hesterberg 2015) from {replicates:,} bootstrap draws "
            f"of the {len(drawn.patients)} test patients ({drawn.benign} benign, {drawn.malignant} malignant), within "
            "each class; they are wider the fewer patients there are of the class, or of the smaller one. One without "
            "width is no certainty: where no image is wrong, drawing patients again shows no error"
        )
        if min(drawn.benign, drawn.malignant) < FEWEST_PATIENTS:
            notes.append(
                f"Numbers that rest on fewer than {FEWEST_PATIENTS} patients of a class have no interval: so few do "
                "not tell how much a number varies"
            )
    if len(study.magnifications) < len(MAGNIFICATIONS):
        notes.append(f"Means are over {' and '.join(columns_of(study))}: test has no images of other magnifications")
    study._measured = (replicates, measured)  # type: ignore[attr-defined]
    return measured


def _cells() -> list[tuple[str, str, str]]:
    return [
        (level, metric, column)
        for level in LEVELS
        for metric in (METRICS if level != "patient_rate" else METRICS[:1])
        for column in COLUMNS
    ]


def _small_print(study: Study) -> str:
    return "image-level split: images of a patient are in train and test" if study.leaks else ""


def _from_bootstrap(study: Study, model: Model, found: Bootstrapped) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = []
    for level, metric, column in _cells():
        cell = (level, metric, MEAN if column == MEAN else int(column[:-1]))
        if cell in found.values:
            each = found.interval(cell)
            lines.append(
                (model.name, model.label, model.kind, level, metric, column, each.value, each.low, each.high,
                 _small_print(study))
            )  # fmt: skip
    return lines


def _from_rows(study: Study, model: Model) -> list[tuple[object, ...]]:
    """A model's values from the rows alone, without intervals."""
    keys = set(model.finals.values())
    rows = study.rows
    rows = rows[rows["key"].isin(keys) & (rows["split"] == "test")]
    rows = rows.drop_duplicates(["key", "magnification", "level", "metric"])
    values = {
        (level, metric, f"{magnification}X"): value
        for key, magnification, level, metric, value in rows[
            ["key", "magnification", "level", "metric", "value"]
        ].itertuples(index=False)
        if model.finals.get(int(magnification)) == key
    }
    lines: list[tuple[object, ...]] = []
    for level, metric, column in _cells():
        parts = [values.get((level, metric, each), math.nan) for each in columns_of(study)]
        value = math.fsum(parts) / len(parts) if column == MEAN else values.get((level, metric, column), math.nan)
        lines.append(
            (model.name, model.label, model.kind, level, metric, column, value, math.nan, math.nan, _small_print(study))
        )
    return lines
