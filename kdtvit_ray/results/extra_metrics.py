"""Metrics that are not stored with a study and that predictions give: AUPRC and Matthews' correlation, over drawn
patients like the others (`results.bootstrap`, whose letters these are).

AUPRC is average precision as scikit-learn defines it: the sum over falling distinct probabilities of the precision down
to there times the recall that is gained there, so images with the same probability come together. A constant answer has
the share of positive images. Matthews' correlation (1975) is that of truths and calls at the threshold 0.5; it is nan
where all images are called alike or are of one class.
"""

import numpy as np

from kdtvit_ray.metrics import METRICS
from kdtvit_ray.results.bootstrap import Sums, measure_levels_weighted, sums_of, votes_of

FURTHER = ("auprc", "mcc")
EVERY = (*METRICS, *FURTHER)
TOGETHER = 100_000
"""So many numbers, images times replicates, are worked on at a time: more would leave a processor's cache. Sums along a
line need no BLAS, whose threads wait for each other on a busy machine."""


def everything(
    positive: np.ndarray, probability: np.ndarray, owner: np.ndarray, weights: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """{(level, metric): (R,)}: what `measure_levels_weighted` gives, and `FURTHER` for images and patients' votes."""
    found = measure_levels_weighted(positive, probability, owner, weights)
    votes = votes_of(positive, probability, owner, weights.shape[1])
    for level, each in (("image", (positive, probability, owner)), ("patient_vote", votes)):
        found[level, "auprc"] = average_precision(*each, weights)
        found[level, "mcc"] = matthews(sums_of(*each, weights.shape[1]), weights)
    return found


def average_precision(
    positive: np.ndarray, probability: np.ndarray, owner: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Average precision (R,) where image i counts as often as `weights` (R, P) says of its patient; NaN where no
    positive image is drawn."""
    falling = np.argsort(-np.asarray(probability, dtype=np.float64), kind="stable")
    score, truth, column = probability[falling], np.asarray(positive, dtype=bool)[falling], owner[falling]
    hit = np.flatnonzero(truth)
    # the last image with the same probability as each positive one
    last = len(score) - 1 - np.searchsorted(score[::-1], score[hit], "left")
    area = np.full(len(weights), np.nan)
    if not len(hit):
        return area
    lines = max(1, TOGETHER // len(score))
    for first in range(0, len(weights), lines):
        drawn = weights[first : first + lines, column]
        called, hits = drawn.cumsum(axis=1), (drawn * truth).cumsum(axis=1)
        precision = hits[:, last] / np.maximum(called[:, last], 1e-300)  # nothing drawn so far: no hits either
        gained = np.einsum("rg,rg->r", drawn[:, hit], precision)
        area[first : first + lines] = gained / np.where(hits[:, -1] > 0, hits[:, -1], np.nan)
    return area


def matthews(sums: Sums, weights: np.ndarray) -> np.ndarray:
    """Matthews' correlation (R,) for every line of `weights` (R, P)."""
    counts = np.stack([sums.hits, sums.misses, sums.false_alarms, sums.rejections], axis=1)
    hits, misses, alarms, rejections = (weights @ counts).T
    margins = (hits + alarms) * (hits + misses) * (rejections + alarms) * (rejections + misses)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (hits * rejections - alarms * misses) / np.sqrt(np.where(margins > 0, margins, np.nan))
