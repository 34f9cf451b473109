"""One model on test images: ROC, reliability, confusion, operating points, what it gets most confidently wrong.

Every function takes predictions (what `Study.predictions` or `predictions_on_test` give) and uses their test images.
Their column `malignant` says whether an image is positive, `subtype` is its class's position in the dataset's classes.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.metrics import THRESHOLD

GOALS = (0.90, 0.95)


@dataclass(frozen=True)
class Roc:
    """Rates at falling thresholds, one point for each distinct probability, from (0, 0) at an infinite threshold to (1,
    1). `auc` is the area by trapezoids, which counts a tie as one half; it is NaN where there is one class only."""

    false_positive: np.ndarray
    true_positive: np.ndarray
    threshold: np.ndarray
    auc: float


@dataclass(frozen=True)
class Reliability:
    """`table` has one line for each bin of the probability of the positive side: low, high, n, confidence (mean
    probability), observed (share of positive images); NaN in empty bins. `error` is the expected calibration error, the
    sum over bins of n/N |observed - confidence| (Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3; they take
    the confidence in the called class, this takes the probability of the positive side)."""

    table: pd.DataFrame
    error: float


def roc(predictions: pd.DataFrame) -> Roc:
    test = _test(predictions)
    truth, score = test["malignant"].to_numpy(bool), test["probability"].to_numpy(np.float64)
    values, place = np.unique(score, return_inverse=True)
    hits = np.cumsum(np.bincount(place, truth, len(values))[::-1])
    alarms = np.cumsum(np.bincount(place, ~truth, len(values))[::-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        true_positive = np.concatenate([[0.0], hits / truth.sum()])
        false_positive = np.concatenate([[0.0], alarms / (~truth).sum()])
    area = float(np.trapezoid(true_positive, false_positive)) if len(test) else math.nan
    return Roc(false_positive, true_positive, np.concatenate([[math.inf], values[::-1]]), area)


def reliability(predictions: pd.DataFrame, bins: int = 10) -> Reliability:
    """Bins have equal width and are closed below; the last one is closed above as well."""
    test = _test(predictions)
    truth, score = test["malignant"].to_numpy(bool), test["probability"].to_numpy(np.float64)
    edges = np.arange(bins + 1) / bins  # 3 / 10 is 0.3, which linspace misses by its last bit
    place = np.clip(np.searchsorted(edges, score, "right") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        confidence = np.bincount(place, score, bins) / count
        observed = np.bincount(place, truth, bins) / count
    gaps = np.abs(observed - confidence)[count > 0]
    error = float((gaps * count[count > 0]).sum() / count.sum()) if len(test) else math.nan
    table = pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "n": count, "confidence": confidence, "observed": observed}
    )
    return Reliability(table, error)


def confusion(predictions: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Counts of the negative and the positive side at threshold 0.5: index truth, columns predicted."""
    test = _test(predictions)
    truth = test["malignant"].to_numpy(np.int64)
    called = (test["probability"].to_numpy() >= THRESHOLD).astype(np.int64)
    return _counts(truth, called, dataset.words)


def tells_classes(predictions: pd.DataFrame, dataset: Dataset) -> bool:
    """Whether the model has an output for each class of the dataset, and these are more than the two sides."""
    outputs = sum(re.fullmatch("p[0-9]+", str(column)) is not None for column in predictions)
    return outputs == len(dataset.classes) > 2


def class_confusion(predictions: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Counts of the dataset's classes, each image called its most probable one. The model must be one that
    `tells_classes`."""
    return _counts(*calls(_test(predictions), dataset), dataset.classes)


def calls(test: pd.DataFrame, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Each image's true and its most probable class, int64 (N,), as positions in the dataset's classes."""
    return test["subtype"].to_numpy(np.int64), _outputs(test, dataset).argmax(axis=1)


def _outputs(test: pd.DataFrame, dataset: Dataset) -> np.ndarray:
    """Probabilities (N, C) of the dataset's classes."""
    return test[[f"p{each}" for each in range(len(dataset.classes))]].to_numpy()


def _counts(truth: np.ndarray, called: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    size = len(names)
    counts = np.bincount(truth * size + called, minlength=size * size).reshape(size, size)
    return pd.DataFrame(counts, index=pd.Index(names, name="truth"), columns=pd.Index(names, name="predicted"))


def operating_points(predictions: pd.DataFrame) -> pd.DataFrame:
    """The best sensitivity at a specificity of at least 90 and 95 %, and the reverse: goal (in words), threshold,
    sensitivity, specificity. An image is called positive from the threshold on. The thresholds are read off the test
    images themselves, so the numbers are optimistic for new ones."""
    curve = roc(predictions)
    sensitivity, specificity = curve.true_positive, 1 - curve.false_positive
    lines = []
    for name, held, free in (("specificity", specificity, sensitivity), ("sensitivity", sensitivity, specificity)):
        for goal in GOALS:
            enough = np.flatnonzero(held >= goal - 1e-12)
            place = None
            if len(enough) and np.isfinite(free[enough]).all():
                place = enough[np.lexsort((-held[enough], -free[enough]))[0]]
            lines.append(
                (
                    f"{name} at least {goal:.0%}",
                    math.nan if place is None else float(curve.threshold[place]),
                    math.nan if place is None else float(sensitivity[place]),
                    math.nan if place is None else float(specificity[place]),
                )
            )
    return pd.DataFrame(lines, columns=["goal", "threshold", "sensitivity", "specificity"])


def wrong(predictions: pd.DataFrame, dataset: Dataset, count: int = 20) -> pd.DataFrame:
    """The `count` test images that are wrong with the most confidence: image, name, magnification, patient, class
    (its name), malignant (whether it is positive), probability, confidence (in the wrong answer, 0.5 to 1), called (the
    most probable class of the side that was called, or that side's word)."""
    return _most_confident(predictions, dataset, count, right=False)


def right(predictions: pd.DataFrame, dataset: Dataset, count: int = 20) -> pd.DataFrame:
    """The same for the test images that are right with the most confidence."""
    return _most_confident(predictions, dataset, count, right=True)


def _most_confident(predictions: pd.DataFrame, dataset: Dataset, count: int, *, right: bool) -> pd.DataFrame:
    test = _test(predictions)
    score = test["probability"].to_numpy(np.float64)
    called = score >= THRESHOLD
    frame = test.assign(confidence=np.where(called, score, 1 - score))
    if tells_classes(test, dataset):
        # of the side that was called, so that the word says what the error is
        within = np.where(called[:, None] == np.array(dataset.is_positive), _outputs(test, dataset), -1.0)
        frame["called"] = np.array(dataset.classes)[within.argmax(axis=1)]
    else:
        frame["called"] = np.array(dataset.words)[called.astype(np.int64)]
    frame["class"] = np.array(dataset.classes)[test["subtype"].to_numpy(np.int64)]
    frame = frame[(called == test["malignant"].to_numpy(bool)) == right]
    told = ["image", "name", "magnification", "patient", "class", "malignant", "probability", "confidence", "called"]
    return frame.sort_values(["confidence", "name"], ascending=[False, True])[told].head(count).reset_index(drop=True)


def _test(predictions: pd.DataFrame) -> pd.DataFrame:
    return predictions[predictions["split"] == "test"].reset_index(drop=True)
