"""One model on test images: ROC, reliability, confusion, operating points, what it gets most confidently wrong.

Every function takes predictions (what `Study.predictions` or `test_predictions` give) and uses its test images.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdtvit_ray.errors import choose
from kdtvit_ray.metrics import THRESHOLD
from kdtvit_ray.recipe import FIRST_MALIGNANT, SUBTYPES

GOALS = (0.90, 0.95)
CLASSES = ("binary", "subtype")
BINARY = ("benign", "malignant")


@dataclass(frozen=True)
class Roc:
    """Rates at falling thresholds, from (0, 0) at an infinite one to (1, 1): one point for each distinct probability.
    `auc` is the area by trapezoids, which counts ties one half; NaN with one class only."""

    false_positive: np.ndarray
    true_positive: np.ndarray
    threshold: np.ndarray
    auc: float


@dataclass(frozen=True)
class Reliability:
    """`table`: a line a bin of the malignant probability: low, high, n, confidence (mean probability), observed (share
    of malignant images); NaN in empty bins. `error`: the expected calibration error, sum over bins of n/N |observed -
    confidence| (Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3, there for the confidence in the called
    class, here for the malignant probability)."""

    table: pd.DataFrame
    error: float
    bins: int


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
    """Bins of equal width, closed below, the last one closed above as well."""
    test = _test(predictions)
    truth, score = test["malignant"].to_numpy(bool), test["probability"].to_numpy(np.float64)
    edges = np.linspace(0, 1, bins + 1)
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
    return Reliability(table, error, bins)


def confusion(predictions: pd.DataFrame, classes: str = "binary") -> pd.DataFrame:
    """Counts, index truth, columns predicted. `binary`: benign and malignant at threshold 0.5; `subtype`: the eight, by
    the most probable class, for an 8-class head. Raises `UserError` for other words and for subtypes of a 2-class
    head."""
    test = _test(predictions)
    # a head without subtypes cannot tell them apart
    allowed = CLASSES if f"p{len(SUBTYPES) - 1}" in test else CLASSES[:1]
    if choose("kind of confusion matrix", classes, allowed) == "binary":
        names: tuple[str, ...] = BINARY
        truth = test["malignant"].to_numpy(np.int64)
        called = (test["probability"].to_numpy() >= THRESHOLD).astype(np.int64)
    else:
        names = SUBTYPES
        truth = test["subtype"].to_numpy(np.int64)
        called = test[[f"p{each}" for each in range(len(SUBTYPES))]].to_numpy().argmax(axis=1)
    size = len(names)
    counts = np.bincount(truth * size + called, minlength=size * size).reshape(size, size)
    return pd.DataFrame(counts, index=pd.Index(names, name="truth"), columns=pd.Index(names, name="predicted"))


def operating_points(predictions: pd.DataFrame) -> pd.DataFrame:
    """The best sensitivity at a specificity of at least 90 and 95 %, and the reverse: goal (in words), threshold (call
    malignant from this probability on), sensitivity, specificity. The thresholds are read off the test images
    themselves, so the figures are optimistic for new ones."""
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


def wrong(predictions: pd.DataFrame, count: int = 20) -> pd.DataFrame:
    """The `count` test images that are wrong with the most confidence: image, name, magnification, patient, subtype
    (word), malignant, probability, confidence (in the wrong answer, 0.5 to 1), called (most probable subtype, or
    malignant / benign)."""
    test = _test(predictions)
    score = test["probability"].to_numpy(np.float64)
    called = score >= THRESHOLD
    frame = test.assign(confidence=np.where(called, score, 1 - score))
    if f"p{len(SUBTYPES) - 1}" in test:
        probabilities = test[[f"p{each}" for each in range(len(SUBTYPES))]].to_numpy()
        # of the side that was called, so that the word says what the error is
        within = np.where(called[:, None] == (np.arange(len(SUBTYPES)) >= FIRST_MALIGNANT), probabilities, -1.0)
        frame["called"] = np.array(SUBTYPES)[within.argmax(axis=1)]
    else:
        frame["called"] = np.array(BINARY)[called.astype(np.int64)]
    frame["subtype"] = np.array(SUBTYPES)[test["subtype"].to_numpy(np.int64)]
    frame = frame[called != test["malignant"].to_numpy(bool)]
    columns = [
        "image",
        "name",
        "magnification",
        "patient",
        "subtype",
        "malignant",
        "probability",
        "confidence",
        "called",
    ]
    return (
        frame.sort_values(["confidence", "name"], ascending=[False, True])[columns].head(count).reset_index(drop=True)
    )


def _test(predictions: pd.DataFrame) -> pd.DataFrame:
    return predictions[predictions["split"] == "test"].reset_index(drop=True)
