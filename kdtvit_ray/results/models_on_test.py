"""A study's models on its test images: the headline table with intervals over patients, what others have reported, and
comparisons of the best chain with each rival on the same patients."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdtvit_ray.metrics import LEVELS, METRICS
from kdtvit_ray.results.bootstrap import Bootstrapped, Cell, Resampling, bootstrap, paired, resample
from kdtvit_ray.results.choice import ranked
from kdtvit_ray.results.extra_metrics import EVERY, everything
from kdtvit_ray.results.models import Best, Model, everywhere, predictions_on_test, same_stages
from kdtvit_ray.results.statistics import FEWEST_PATIENTS, MEAN, REPLICATES, Interval, holm
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import joined

# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The models that have predictions, all measured on the same drawn test patients: `by_model` by the model's name.
    `notes` say what the intervals rest on and which predictions are missing. `resampling` is None where no model has
    predictions."""

    by_model: Mapping[str, Bootstrapped]
    notes: tuple[str, ...]
    resampling: Resampling | None


def measure_models(study: Study, models: Sequence[Model], replicates: int = REPLICATES) -> Measured:
    """Bootstrap the test patients once and measure every model on the same draws."""
    found = [(model, predictions_on_test(study, model)) for model in models]
    frames = {model.name: frame for model, frame in found if frame is not None and len(frame)}
    notes = [f"{model.label}: predictions are missing, so no intervals" for model, frame in found if frame is None]
    drawn, by_model = None, {}
    if frames:
        everyone = pd.concat([frame[["patient", "malignant"]] for frame in frames.values()]).drop_duplicates()
        drawn = resample(everyone["patient"].to_numpy(), everyone["malignant"].to_numpy(), replicates)
        by_model = {name: bootstrap(frame, drawn, study.magnifications, everything) for name, frame in frames.items()}
        notes.append(
            f"Intervals are 95 % intervals from {replicates:,} bootstrap draws of the {len(drawn.patients)} test "
            f"patients ({drawn.sides.told(study.dataset.words)}), within each class: Student's t times the standard "
            "deviation over draws, on the logit scale; for log loss, which has no upper limit, and for differences "
            "expanded percentile intervals (Hesterberg 2015). They are wider the fewer patients there are of the "
            "class, or of the smaller one. One without width is no certainty: no draw of these patients gives another "
            "value, but other patients may"
        )
        notes += _few(study, drawn, by_model)
    if len(study.magnifications) < len(study.dataset.magnifications):
        notes.append(f"Means are over {joined(study.tested_columns)}: test has no images of other magnifications")
    return Measured(by_model, tuple(notes), drawn)


def _few(study: Study, drawn: Resampling, by_model: Mapping[str, Bootstrapped]) -> list[str]:
    """Which numbers have no interval for want of patients; [] where all have one."""
    # a model that lacks a magnification has no mean, for want of a number and not of patients
    cells = [(cell, each) for found in by_model.values() for cell, each in found.sides.items() if each.patients]
    if all(each.enough for _, each in cells):
        return []
    told = (
        f"Numbers that rest on fewer than {FEWEST_PATIENTS} patients of a class have no interval: so few do not tell "
        "how much a number varies"
    )
    few = {place: each for (level, place), each in cells if level == "image" and place != MEAN and not each.enough}
    if few and drawn.sides.enough:
        at = joined([f"{place}X ({each.told(study.dataset.words)})" for place, each in few.items()])
        told += f". So few are at {at}, and a mean over magnifications rests on the fewest"
    return [told]


# -- the headline table ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """`long` has one line for each number: model, label, kind, level, metric, magnification ("40X" .., "mean"), value,
    low, high, note. `columns` are the magnifications in order, then "mean". `notes` say what the intervals rest on and
    what is left out."""

    long: pd.DataFrame
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def wide(self, metric: str, level: str = "image") -> pd.DataFrame:
        """One line a model, one column for each of `columns`. `attrs`: `low` and `high`, frames of the same shape;
        `kind` and `note`, a dict by label."""
        part = self.long[(self.long["metric"] == metric) & (self.long["level"] == level)]
        labels = list(dict.fromkeys(part["label"]))

        def pivot(column: str) -> pd.DataFrame:
            frame = part.pivot(index="label", columns="magnification", values=column)
            return frame.reindex(index=labels, columns=list(self.columns)).rename_axis(index=None, columns=None)

        wide, low, high = (pivot(column) for column in ("value", "low", "high"))
        for column in ("kind", "note"):
            wide.attrs[column] = dict(zip(part["label"], part[column], strict=True))
        wide.attrs["low"], wide.attrs["high"] = low, high
        return wide


def headline(study: Study, models: Sequence[Model], measured: Measured) -> Headline:
    """All models on test with 95 % intervals over patients, then what others have reported."""
    names = ["model", "label", "kind", "level", "metric", "magnification", "value", "low", "high", "note"]
    note = "image-level split: images of a patient are in train and test" if study.leaks else ""
    lines: list[tuple[object, ...]] = []
    for model in models:
        # without predictions the rows still hold the values, though no intervals
        found = measured.by_model.get(model.name)
        cells = _from_rows(study, model) if found is None else _from_bootstrap(study, found)
        for (level, metric, place), each in cells.items():
            column = _column(place)
            lines.append(
                (model.name, model.label, model.kind, level, metric, column, each.value, each.low, each.high, note)
            )
    for work in study.dataset.references:
        values, note = dict(work.values), f"{work.protocol}; {work.source}"
        # over the magnifications that the study's own means are over
        if MEAN not in values and all(column in values for column in study.tested_columns):
            parts = [values[column] for column in study.tested_columns]
            values[MEAN] = math.fsum(parts) / len(parts)
            note += "; mean computed here"
        for column, value in values.items():
            cell = (work.level, work.metric, column, value, math.nan, math.nan, note)
            lines.append((work.label, work.label, "reported", *cell))
    return Headline(pd.DataFrame(lines, columns=names), study.columns, measured.notes)


def _column(place: object) -> str:
    return MEAN if place == MEAN else f"{place}X"


def metrics_of(level: str) -> tuple[str, ...]:
    """The metrics that a model has at a level: patient rate is an accuracy and nothing else."""
    return EVERY if level != "patient_rate" else METRICS[:1]


def _cells(study: Study) -> list[Cell]:
    """Which numbers a model has."""
    return [
        (level, metric, place)
        for level in LEVELS
        for metric in metrics_of(level)
        for place in (*study.dataset.magnifications, MEAN)
    ]


def _from_bootstrap(study: Study, found: Bootstrapped) -> dict[Cell, Interval]:
    return {cell: found.interval(cell) for cell in _cells(study) if cell in found.values}


def _from_rows(study: Study, model: Model) -> dict[Cell, Interval]:
    """A model's values from the rows alone, without intervals."""
    rows = study.rows
    rows = rows[rows["key"].isin(set(model.finals.values())) & (rows["split"] == "test")]
    rows = rows.drop_duplicates(["key", "magnification", "level", "metric"])
    values: dict[Cell, float] = {
        (level, metric, int(magnification)): value
        for key, magnification, level, metric, value in rows[
            ["key", "magnification", "level", "metric", "value"]
        ].itertuples(index=False)
        if model.finals.get(int(magnification)) == key
    }
    made = {}
    for level, metric, place in _cells(study):
        parts = [values.get((level, metric, each), math.nan) for each in study.magnifications]
        mean = math.fsum(parts) / len(parts)
        made[level, metric, place] = Interval(mean if place == MEAN else values.get((level, metric, place), math.nan))
    return made


# -- comparisons -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A chain minus a rival at image level on test, on the same patients. `difference` is that of the metric's mean
    over magnifications, with its interval. `p` is two-sided, `p_holm` is corrected by Holm over all comparisons. The
    chain, `trial`, is the best one; where `matched` is true it is the matched control instead, the best trial that
    differs from the rival in nothing but distillation. `patients` counts the test patients that the difference rests on
    (`Bootstrapped.patients`)."""

    trial: str
    against: Model
    metric: str
    difference: Interval
    p: float
    p_holm: float
    patients: int = FEWEST_PATIENTS
    matched: bool = False

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out."""
        return not self.difference.spans_zero

    @property
    def few(self) -> bool:
        """Whether there are too few patients for an interval."""
        return self.patients < FEWEST_PATIENTS


def comparisons(study: Study, best: Best, models: Sequence[Model], measured: Measured) -> list[Comparison]:
    """The best chain against the best chain of every other student and against every baseline that has predictions, in
    the study's metric; those that trained the same stages are compared once. Where the best chain differs from the
    baseline `sequential` in more than distillation, the matched control is compared with that baseline too."""
    metric, chosen = study.metric, best.trial
    same = same_stages(study, models)
    there = [model for model in models if model.name in measured.by_model and model.name not in same]
    if not there or there[0].kind != "best" or measured.resampling is None:
        return []
    ours = measured.by_model["best"]
    pairs = [(chosen, ours, model) for model in there[1:]]
    control = matched_control(study) if "sequential" in measured.by_model else None
    if control is not None and control["trial"] != chosen:
        chain = study.chain_of(control["trial"])
        assert chain is not None
        alone = Model(control["trial"], control["trial"], "search", everywhere(study, chain["stages"][-1]), 0)
        predictions = predictions_on_test(study, alone)
        if predictions is not None and len(predictions):
            own = bootstrap(predictions, measured.resampling, study.magnifications)
            (sequential,) = [model for model in models if model.name == "sequential"]
            pairs.append((alone.name, own, sequential))
    cell: Cell = ("image", metric, MEAN)
    made = [paired(first, measured.by_model[model.name], cell) for _, first, model in pairs]
    corrected = holm([difference.p for difference in made])
    return [
        Comparison(
            trial=trial,
            against=model,
            metric=metric,
            difference=difference.interval,
            p=difference.p,
            p_holm=float(p_holm),
            patients=min(found.patients(cell) for found in (first, measured.by_model[model.name])),
            matched=trial != chosen,
        )
        for (trial, first, model), difference, p_holm in zip(pairs, made, corrected, strict=True)
    ]


def matched_control(study: Study) -> pd.Series | None:
    """The best searched trial that distils and equals the baseline `sequential` in everything else, so that the two
    differ by distillation alone; None without one."""
    record = study.trial("sequential")
    if record is None:
        return None
    fixed = study.plain["training"]
    found = study.searched
    if study.parts:  # settings that were not refit cannot be compared on test
        found = found[[study.refit(trial) is not None for trial in found["trial"]]]
    found = found[(found["order"] == record["order"]) & (found["student"] == record["student"])]
    found = found[[_distils(trial) and not apart(trial, record, fixed) for _, trial in found.iterrows()]]
    return ranked(found, study.metric).iloc[0] if len(found) else None


def _distils(trial: pd.Series) -> bool:
    return any(each > 0 for each in json.loads(trial["alpha"]))


def apart(trial: pd.Series, record: pd.Series, fixed: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(setting, the trial's, the baseline's) for everything that sets a searched trial apart from a baseline, except
    distillation: teacher, temperature, alpha, form of the loss. The baseline has `fixed`, the study's [training], and
    the values that were chosen for it where it was searched."""
    pairs = [(name, trial[name], record[name]) for name in ("order", "student", "warm_start")]
    params, chosen = json.loads(trial["params"]), json.loads(record["params"])
    names = [name for name in params if name.startswith("training.")]
    for name in names:
        place, _, key = name.removeprefix("training.").rpartition(".")  # "first.lr": [training.first], else [training]
        pairs.append((name, params[name], chosen.get(name, fixed.get(place, {}).get(key, fixed[key]))))
    return [(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]
