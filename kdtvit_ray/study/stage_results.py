"""Makes what is stored of a trained stage: its record, its predictions, and the rows of the trials that use it."""

import json
import math
import platform
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kdtvit_ray.data.batches import SPLITS
from kdtvit_ray.metrics import positive_share
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.rows import ROWS, TrialRecord
from kdtvit_ray.results.stage_record import Measure, StageRecord

if TYPE_CHECKING:
    from kdtvit_ray.study.asks import Ask

PACKAGES = ("kdtvit-ray", "torch", "timm", "ray", "optuna", "numpy", "pyarrow")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def stage_results(spec: StageSpec, result: Any, data: Any) -> tuple[StageRecord, pa.Table]:
    """The record and the predictions of a `StageResult`; `data` is the `StageData` that it was trained on.

    Predictions hold one line per validation and test image of every magnification: position in the prepared table,
    name, magnification, split, subtype, patient, positive probability, class probabilities (float64 both).
    `preprocessing`, `classes` and `weighting` in `stage.json` say how to use the weights without the prepared set.
    """
    from kdtvit_ray.learning.evaluate import evaluation

    table, split = data.prepared.table, data.split
    first = data.dataset.first_positive_output(spec.model.head)
    record = StageRecord(
        key=spec.key,
        spec=spec.to_dict(),
        measures=tuple(
            Measure(int(each["magnification"]), each["split"], each["level"], each["metric"], float(each["value"]))
            for each in evaluation(result.predictions, data, spec.model.head)
        ),
        cost={name: _plain(value) for name, value in result.cost.items()},
        curves=[{name: _plain(value) for name, value in each.items()} for each in result.curves],
        agreement={name: _plain(value) for name, value in result.agreement.items()} if result.agreement else None,
        weighting={name: list(values) for name, values in result.weighting.items()},
        **result.usage,
        versions=versions(),
        device=result.cost["device"],
    )
    images = np.asarray(result.predictions["image"])
    probabilities = np.asarray(result.predictions["probabilities"], dtype=np.float64)
    of_image = table.iloc[images]
    columns: dict[str, Any] = {
        "image": images.astype(np.int32),
        "name": of_image["name"].to_numpy(),
        "magnification": of_image["magnification"].to_numpy().astype(np.int16),
        "split": np.array(SPLITS)[np.asarray(result.predictions["split"])],
        "subtype": of_image["subtype"].to_numpy().astype(np.int8),
        "malignant": of_image["malignant"].to_numpy().astype(bool),
        "patient": np.asarray(split.groups)[images].astype(str),
        "probability": positive_share(probabilities, first),
    }
    for column in range(probabilities.shape[1]):
        columns[f"p{column}"] = probabilities[:, column]
    return record, pa.table(columns)


def trial_rows(study: str, trial: str, stages: Sequence[StageRecord]) -> pa.Table:
    """The rows of a trial, one measured value each, from its stages in order."""
    measured = attrgetter(*ROWS.names[-5:])  # which are named as in `Measure`
    rows = [
        (study, trial, number, stage.key, stage.trained, *measured(each))
        for number, stage in enumerate(stages, start=1)
        for each in stage.measures
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(ROWS)
    # column by column: from a mapping a row it takes seven times as long
    return pa.table([pa.array(values, each.type) for values, each in zip(columns, ROWS, strict=True)], schema=ROWS)


def trial_record(
    ask: "Ask",
    stages: Sequence[StageRecord],
    state: str,
    failure: tuple[str, str],
    metric: str,
    times: tuple[float, float],
) -> TrialRecord:
    """The record of a trial that has ended after these stages; `failure` is the reason and the fault of a failed one,
    `times` are when it began and ended (unix seconds). The objective is in the study's `metric`."""
    last = stages[-1] if stages else None
    told = {name: json.dumps(ask.words[name]) for name in ("temperature", "alpha")}
    return TrialRecord(
        trial=ask.trial,
        number=ask.number,
        kind=ask.kind,
        state=state,
        reason=failure[0],
        fault=failure[1],
        seed=ask.stages[0].seed,
        fold=ask.stages[0].data.fold,
        parameters=last.parameters if last else 0,
        params=json.dumps(ask.params, sort_keys=True),
        objective=last.summary().objective(metric) if last and state != "failed" else math.nan,
        stages=[stage.key for stage in stages],
        cost_seconds=sum(stage.seconds for stage in stages),
        started=times[0],
        finished=times[1],
        **{**ask.words, **told},
    )


def _plain(value: Any) -> Any:
    """numpy and torch scalars as Python's own; anything else as it is."""
    return value.item() if hasattr(value, "item") else value
