"""How well predictions agree with labels, over images and over patients, with intervals over patients."""

import numpy as np
import pandas as pd

from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.predict import Predictions
from kdtvit_ray.results.bootstrap import bootstrap, resample
from kdtvit_ray.results.statistics import Interval

METRICS = ("auc", "accuracy", "recall", "specificity")
REPLICATES = 2_000
ALL = 0
"""Stands for all magnifications together."""


def scores(predictions: Predictions, told: Description) -> pd.DataFrame:
    """One line for each group of images with labels: all, each magnification, and the patients by the mean probability
    of their images. Columns: what, images, patients, and each of `METRICS` with its 95 % interval over patients (an
    `Interval`); those that need a threshold at the model's. Images whose patient is not known count as patients of
    their own. Empty where no image has a label."""
    known = np.array([each is not None for each in predictions.positive], dtype=bool)
    if not known.any():
        return pd.DataFrame(columns=["what", "images", "patients", *METRICS])
    table = predictions.table[known].reset_index(drop=True)
    names = table["patient"] if "patient" in table else pd.Series([""] * len(table))
    alone = pd.Series([f"\0{each}" for each in range(len(table))])
    at = table["magnification"] if "magnification" in table else pd.Series([0] * len(table))
    frame = pd.DataFrame(
        {
            "magnification": at.to_numpy(),
            "malignant": np.array([each for each in predictions.positive if each is not None], dtype=bool),
            "probability": table["probability"].to_numpy(),
            "patient": names.where(names != "", alone).to_numpy(),
        }
    )
    groups = [("images", frame)]
    several = sorted(set(frame["magnification"]) - {0})
    groups += [(f"{each}X", frame[frame["magnification"] == each]) for each in several]
    lines = [_line(what, part, "image", told.threshold) for what, part in groups]
    if (names != "").any():
        lines.append(_line("patients", frame[(names != "").to_numpy()], "patient_vote", told.threshold))
    return pd.DataFrame(lines)


def _line(what: str, frame: pd.DataFrame, level: str, threshold: float) -> dict[str, object]:
    frame = frame.assign(magnification=ALL)
    drawn = resample(frame["patient"].to_numpy(), frame["malignant"].to_numpy(), REPLICATES)
    ranked = bootstrap(frame, drawn, [ALL])
    # metrics at 0.5 of these are metrics at the threshold
    moved = bootstrap(frame.assign(probability=_moved(frame["probability"].to_numpy(), threshold)), drawn, [ALL])
    if level == "patient_vote":  # the mean is taken first, then the threshold
        mean = frame.groupby("patient", as_index=False).agg(
            malignant=("malignant", "max"), score=("probability", "mean")
        )
        of_patient = mean.assign(magnification=ALL, probability=_moved(mean["score"].to_numpy(), threshold))
        moved, level_moved = bootstrap(of_patient, drawn, [ALL]), "image"
    else:
        level_moved = level
    found: dict[str, object] = {"what": what, "images": len(frame), "patients": len(drawn.patients)}
    for metric in METRICS:
        source, where = (ranked, level) if metric == "auc" else (moved, level_moved)
        found[metric] = source.interval((where, metric, ALL))
    return found


def _moved(score: np.ndarray, threshold: float) -> np.ndarray:
    return np.where(score >= threshold, 1.0, 0.0)


def text(value: Interval) -> str:
    """`0.93 (0.80-1.00)`, `0.93` without an interval, `-` where it is undefined."""
    if not np.isfinite(value.value):
        return "-"
    return f"{value.value:.2f} ({value.low:.2f}-{value.high:.2f})" if value.bounded else f"{value.value:.2f}"
