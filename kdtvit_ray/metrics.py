"""Metrics of positive against negative (in BreakHis, malignant against benign), by image and by patient. numpy only.

The threshold is 0.5 (a probability of exactly 0.5 counts as positive), and what is undefined (AUC with one class,
precision without a positive prediction) is nan, never a made-up number.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

METRICS = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "auc", "brier", "log_loss")
LOWER_IS_BETTER = ("brier", "log_loss")
LEVELS = ("image", "patient_rate", "patient_vote")
THRESHOLD = 0.5


def smallest(metric: str) -> float:
    """The smallest value that a metric can have."""
    return -1.0 if metric == "mcc" else 0.0


def largest(metric: str) -> float:
    """The largest value that a metric can have."""
    return math.inf if metric == "log_loss" else 1.0


def gain(metric: str, value: Any) -> Any:
    """A value, or an array of values, of which the larger is the better: its negative for what is better lower."""
    return -value if metric in LOWER_IS_BETTER else value


def positive_share(probabilities: np.ndarray, first_positive: int) -> np.ndarray:
    """Probability (N,) float64 of a positive class from class probabilities (N, C): the sum of the columns from
    `first_positive` on (`Dataset.first_positive_output`)."""
    share = probabilities[:, first_positive:].sum(axis=1, dtype=np.float64)
    return np.minimum(share, 1.0)  # a sum may round to above 1


def measure(positive: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """All `METRICS` of probabilities (N,) in [0, 1] against truths (N,); nan where a metric is undefined."""
    truth = np.asarray(positive, dtype=bool)
    probability = np.asarray(probability, dtype=np.float64)
    called = probability >= THRESHOLD
    hits = int(np.count_nonzero(truth & called))
    positives, calls, count = int(np.count_nonzero(truth)), int(np.count_nonzero(called)), len(truth)
    rejections = count - positives - calls + hits
    recall = _ratio(hits, positives)
    specificity = _ratio(rejections, count - positives)
    return {
        "accuracy": _ratio(hits + rejections, count),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": _ratio(hits, calls),
        "recall": recall,
        "specificity": specificity,
        "f1": _ratio(2 * hits, positives + calls),
        "auc": auc(truth, probability),
        "brier": float(np.mean((probability - truth) ** 2)) if count else float("nan"),
        "log_loss": float(np.mean(log_losses(truth, probability))) if count else float("nan"),
    }


def log_losses(positive: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Each image's negative log-likelihood (N,) in nats, of probabilities that are `uncertain`."""
    probability = uncertain(probability)
    return -np.log(np.where(positive, probability, 1 - probability))


def uncertain(probability: np.ndarray) -> np.ndarray:
    """Probabilities (N,) that keep the smallest float64 step away from 0 and 1, as scikit-learn's do in its log loss,
    so that a single confident error does not make a mean infinite."""
    step = np.finfo(np.float64).eps
    return np.clip(probability, step, 1 - step)


def auc(positive: np.ndarray, probability: np.ndarray) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic on midranks, so a tie counts one half; nan for one class."""
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    _, group, sizes = np.unique(probability, return_inverse=True, return_counts=True)
    midranks = np.cumsum(sizes) - (sizes - 1) / 2
    ranks = midranks[group][np.asarray(positive, dtype=bool)].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def measure_levels(
    positive: np.ndarray, probability: np.ndarray, patients: Sequence[str] | np.ndarray
) -> dict[str, dict[str, float]]:
    """Metrics by level. `patients` (N,) names each image's patient.

    `image`: every image counts once. `patient_rate`: mean over patients of the share of their images that are right
    (Spanhol et al. 2016, "patient score"), accuracy only. `patient_vote`: one decision a patient, from the mean
    probability of its images; a patient with any positive image is positive.
    """
    truth = np.asarray(positive, dtype=bool)
    probability = np.asarray(probability, dtype=np.float64)
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    sizes = np.bincount(owner, minlength=len(names))
    right = np.bincount(owner, weights=(probability >= THRESHOLD) == truth, minlength=len(names))
    votes = np.bincount(owner, weights=probability, minlength=len(names)) / np.maximum(sizes, 1)
    sick = np.bincount(owner, weights=truth, minlength=len(names)) > 0
    return {
        "image": measure(truth, probability),
        "patient_rate": {"accuracy": float(np.mean(right / sizes)) if len(names) else float("nan")},
        "patient_vote": measure(sick, votes),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
