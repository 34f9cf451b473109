"""The headline table: the best chain and its rivals on test images, with intervals over patients, beside what others
have reported; and paired comparisons of the best chain with each rival."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.metrics import LEVELS, METRICS
from kdtvit_ray.recipe import MAGNIFICATIONS
from kdtvit_ray.results.statistics import (
    MEAN,
    REPLICATES,
    Bootstrapped,
    Difference,
    Interval,
    bootstrap,
    holm,
    paired,
    resample,
)
from kdtvit_ray.results.study import Model, Study, models, test_predictions

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


FEWEST_PATIENTS = 5
"""Of the smaller class, below which the patient bootstrap undercovers so much that nothing is called a difference."""


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
    """The best chain minus a rival, image level, test, on the same patients: `metric`'s mean over magnifications with
    its interval, two-sided p and p after Holm's correction over all rivals; `values` by column of the headline
    table."""

    against: Model
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    values: Mapping[str, Interval]
    patients: int = FEWEST_PATIENTS
    """Test patients of the smaller class."""

    @property
    def shown(self) -> bool:
        """Whether the data can show a difference: the interval leaves zero out, and rests on patients enough."""
        return not self.few and not Interval(self.difference, self.low, self.high).spans_zero

    @property
    def few(self) -> bool:
        """Whether there are too few patients for the interval to hold what it promises."""
        return self.patients < FEWEST_PATIENTS


def headline(study: Study, replicates: int = REPLICATES) -> Headline:
    """All models of the study on test with 95 % intervals over patients, then what others have reported."""
    measured, notes = _measured(study, replicates)
    by_name = {model.name: found for model, found in measured}
    lines: list[tuple[object, ...]] = []
    for model in models(study):
        # without predictions the rows still hold the values, though no intervals
        found = by_name.get(model.name)
        lines += _from_rows(study, model) if found is None else _from_bootstrap(study, model, found)
    for each in REFERENCES:
        note = f"{each.protocol}; {each.source}"
        values = dict(each.values)
        if MEAN not in values:
            values[MEAN] = math.fsum(values.values()) / len(values)
            note += "; mean computed here"
        for column, value in values.items():
            lines.append(
                (each.label, each.label, "reported", each.level, each.metric, column, value, math.nan, math.nan, note)
            )
    names = ["model", "label", "kind", "level", "metric", "magnification", "value", "low", "high", "note"]
    return Headline(pd.DataFrame(lines, columns=names), tuple(notes))


def comparisons(study: Study, replicates: int = REPLICATES, metric: str | None = None) -> list[Comparison]:
    """The best chain against every other student's best and every baseline whose predictions are there."""
    metric = metric or study.metric
    measured, _ = _measured(study, replicates)
    if not measured or measured[0][0].kind != "best":
        return []
    ours, rivals = measured[0][1], measured[1:]
    made = [(model, _pairs(ours, theirs, metric)) for model, theirs in rivals]
    corrected = holm([values[MEAN].p for _, values in made])
    patients = _smaller_class(study, measured[0][0])
    return [
        _comparison(model, metric, values, float(p_holm), patients)
        for (model, values), p_holm in zip(made, corrected, strict=True)
    ]


def distillation_alone(study: Study, replicates: int = REPLICATES) -> tuple[str, Comparison] | None:
    """The best searched trial with the order and the student of the baseline `sequential` (its name) minus that
    baseline: what distillation itself adds. None where there is no such trial, or no predictions. Its p stands for
    itself."""
    rival = next((model for model in models(study) if model.name == "sequential"), None)
    record = study.trial("sequential")
    if rival is None or record is None:
        return None
    found = study.searched
    found = found[(found["order"] == record["order"]) & (found["student"] == record["student"])]
    found = found[found["alpha"].map(lambda text: any(each > 0 for each in json.loads(text))).astype(bool)]
    if not len(found):
        return None
    row = found.sort_values(["objective", "number"], ascending=[False, True]).iloc[0]
    model = Model(row["trial"], row["trial"], "search", dict.fromkeys(MAGNIFICATIONS, row["stages"][-1]), 0)
    frames = [test_predictions(study, each) for each in (model, rival)]
    if any(frame is None or not len(frame) for frame in frames):
        return None
    everyone = pd.concat([frame[["patient", "malignant"]] for frame in frames if frame is not None]).drop_duplicates()
    resampling = resample(everyone["patient"].to_numpy(), everyone["malignant"].to_numpy(), replicates, SEED)
    ours, theirs = (bootstrap(frame, resampling, MAGNIFICATIONS) for frame in frames if frame is not None)
    values = _pairs(ours, theirs, study.metric)
    return row["trial"], _comparison(rival, study.metric, values, values[MEAN].p, _smaller_class(study, model))


def _pairs(ours: Bootstrapped, theirs: Bootstrapped, metric: str) -> dict[str, Difference]:
    cells = {column: ("image", metric, MEAN if column == MEAN else int(column[:-1])) for column in COLUMNS}
    return {
        column: paired(ours, theirs, cell)
        for column, cell in cells.items()
        if cell in ours.values and cell in theirs.values
    }


def _smaller_class(study: Study, model: Model) -> int:
    """How many test patients the class with fewer of them has."""
    found = test_predictions(study, model)
    if found is None or not len(found):
        return 0
    counts = found.drop_duplicates("patient")["malignant"].value_counts()
    return int(counts.min()) if len(counts) == 2 else 0


def _comparison(
    model: Model, metric: str, values: Mapping[str, Difference], p_holm: float, patients: int
) -> Comparison:
    mean = values[MEAN]
    by_column = {column: each.interval for column, each in values.items()}
    low, high = mean.interval.low, mean.interval.high
    return Comparison(model, metric, mean.interval.value, low, high, mean.p, p_holm, by_column, patients)


def _measured(study: Study, replicates: int) -> tuple[list[tuple[Model, Bootstrapped]], list[str]]:
    """Models with predictions, all measured on one resampling of the test patients."""
    known = getattr(study, "_measured", None)  # the same numbers serve table, comparisons and sentences
    if known and known[0] == replicates:
        return known[1]
    found = [(model, test_predictions(study, model)) for model in models(study)]
    frames = [(model, frame) for model, frame in found if frame is not None and len(frame)]
    notes = [f"{model.label}: predictions are missing, so no intervals" for model, frame in found if frame is None]
    measured: list[tuple[Model, Bootstrapped]] = []
    if frames:
        everyone = pd.concat([frame[["patient", "malignant"]] for _, frame in frames]).drop_duplicates()
        resampling = resample(everyone["patient"].to_numpy(), everyone["malignant"].to_numpy(), replicates, SEED)
        measured = [(model, bootstrap(frame, resampling, MAGNIFICATIONS)) for model, frame in frames]
        of_patient = everyone.groupby("patient")["malignant"].any()
        benign, malignant = int((~of_patient).sum()), int(of_patient.sum())
        notes.append(
            f"Intervals are 95 % percentile intervals from {replicates:,} bootstrap draws of the {len(of_patient)} "
            f"test patients ({benign} benign, {malignant} malignant), within each class"
        )
        if min(benign, malignant) < 10:
            notes.append(
                f"With {min(benign, malignant)} patients in the smaller class the intervals are too narrow rather than "
                "too wide: percentile bootstrap intervals undercover in small samples"
            )
    study._measured = (replicates, (measured, notes))  # type: ignore[attr-defined]
    return measured, notes


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
        parts = [values.get((level, metric, each), math.nan) for each in COLUMNS[:-1]]
        value = math.fsum(parts) / len(parts) if column == MEAN else values.get((level, metric, column), math.nan)
        lines.append(
            (model.name, model.label, model.kind, level, metric, column, value, math.nan, math.nan, _small_print(study))
        )
    return lines
