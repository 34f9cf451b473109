"""How well predictions agree with labels, over images and over patients, with intervals over patients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.predict import Predictions
from kdtvit_ray.results.bootstrap import bootstrap, resample
from kdtvit_ray.results.operating import ALL, called_at
from kdtvit_ray.results.patients import votes
from kdtvit_ray.results.statistics import Interval

METRICS = ("auc", "accuracy", "recall", "specificity")
_ENDS = {"": "value", "_low": "low", "_high": "high"}
HEAD = (
    *("what", "images", "patients"),
    *(f"{metric}{end}" for metric in METRICS for end in _ENDS),
    *("threshold_name", "threshold", "development_images"),
)
"""The columns of a file of metrics."""


def scores(predictions: Predictions, told: Description, development: frozenset[bytes] | None = None) -> pd.DataFrame:
    """One line for each group of images with labels: all, each magnification, and the patients of whom an image has a
    label, by the mean probability of all their images. Columns: what, images, patients, each of `METRICS` with its 95 %
    interval over patients (an `Interval`), those that need a threshold at the model's, and development_images: how many
    images have checksums that are in `development`, NaN where that is None. Images whose patient is not known count as
    patients of their own. Empty where no image has a label."""
    table = predictions.table
    if not any(each is not None for each in predictions.positive):
        return pd.DataFrame(columns=["what", "images", "patients", *METRICS, "development_images"])
    names = table["patient"] if "patient" in table else pd.Series([""] * len(table))
    alone = pd.Series([f"\0{each}" for each in range(len(table))])
    at = table["magnification"] if "magnification" in table else pd.Series([0] * len(table))
    every = pd.DataFrame(
        {
            "magnification": at.to_numpy(),
            "malignant": predictions.positive,
            "probability": table["probability"].to_numpy(),
            "patient": names.where(names != "", alone).to_numpy(),
            "development": [np.nan if development is None else each in development for each in predictions.checksums],
        }
    )
    frame = every.dropna(subset="malignant").astype({"malignant": bool})
    groups = [("images", frame)]
    several = sorted(set(frame["magnification"]) - {0})
    groups += [(f"{each}X", frame[frame["magnification"] == each]) for each in several]
    lines = [_line(what, part, told.threshold, of=lambda images: images) for what, part in groups]
    truth = frame[(names != "").loc[frame.index]].groupby("patient")["malignant"].max()
    if len(truth):
        # as in the table of patients, their images without a label count as well
        whole = every[every["patient"].isin(truth.index)]
        whole = whole.assign(malignant=whole["patient"].map(truth).astype(bool))
        lines.append(_line("patients", whole, told.threshold, of=votes))
    return pd.DataFrame(lines)


def _line(
    what: str, frame: pd.DataFrame, threshold: float, of: Callable[[pd.DataFrame], pd.DataFrame]
) -> dict[str, Any]:
    """The metrics of what `of` makes of the images: themselves, or one line a patient."""
    drawn = resample(frame["patient"].to_numpy(), frame["malignant"].to_numpy())
    judged = of(frame).assign(magnification=ALL)
    ranked, called = bootstrap(judged, drawn, [ALL]), called_at(judged, threshold, drawn)
    found: dict[str, Any] = {"what": what, "images": len(frame), "patients": len(drawn.patients)}
    for metric in METRICS:
        found[metric] = (ranked if metric == "auc" else called).interval(("image", metric, ALL))
    found["development_images"] = frame["development"].sum(skipna=False)
    return found


def numbers(measured: pd.DataFrame, told: Description) -> pd.DataFrame:
    """The same for a file, with the columns `HEAD`: three for each interval, and the threshold by name and value."""
    ends = {
        f"{metric}{end}": [getattr(each, name) for each in measured[metric]]
        for metric in METRICS
        for end, name in _ENDS.items()
    }
    return measured.assign(**ends, threshold_name=told.decision, threshold=told.threshold)[list(HEAD)]


def text(value: Interval) -> str:
    """`0.93 (0.80-1.00)`, `0.93` without an interval, `-` where it is undefined."""
    if not np.isfinite(value.value):
        return "-"
    return f"{value.value:.2f} ({value.low:.2f}-{value.high:.2f})" if value.bounded else f"{value.value:.2f}"
