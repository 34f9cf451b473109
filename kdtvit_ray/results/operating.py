"""A temperature and decision thresholds for one model, fitted on development patients, and how far they hold on test.

The temperature divides the log odds of the positive side (Platt scaling with a slope alone; temperature scaling of Guo
et al., ICML 2017, for two classes), so it changes no order of images and no AUC. Thresholds are on the probability as
the model gives it, before the temperature: the threshold 0.5 is the same before and after.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit

from kdtvit_ray.metrics import THRESHOLD, uncertain
from kdtvit_ray.results.bootstrap import Bootstrapped, Resampling, bootstrap, resample
from kdtvit_ray.results.statistics import REPLICATES, Interval
from kdtvit_ray.results.study import Study

TEMPERATURES = (0.05, 20.0)
"""Smallest and largest temperature that is fitted."""
SPREAD = 0.5
"""Standard deviation of the prior of log temperature: before any patient is seen, most models have one between 0.4 and
2.7. Few development patients would else move it by what is special about them."""
SENSITIVITY = 0.95
ALL = 0
"""Stands for all magnifications together."""


@dataclass(frozen=True)
class Rates:
    """Sensitivity and specificity over images of all magnifications, with 95 % intervals over patients."""

    sensitivity: Interval
    specificity: Interval


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold: an image is called positive from it on. `why` says how it was chosen."""

    name: str
    threshold: float
    why: str
    development: Rates | None
    test: Rates | None


@dataclass(frozen=True)
class Operating:
    """Everything about one model's decisions. `log_loss` holds the mean log loss before and after the temperature, by
    set of patients ("development", "test"). `judged_on` says in words what they were fitted on; "" where nothing was,
    for want of development predictions or of one of the two classes there: then the temperature is 1 and the only
    threshold is 0.5."""

    temperature: float
    points: tuple[OperatingPoint, ...]
    log_loss: dict[str, tuple[float, float]]
    judged_on: str = ""

    @property
    def thresholds(self) -> dict[str, float]:
        """Thresholds by name."""
        return {each.name: each.threshold for each in self.points}


def operating(study: Study, trial: str, key: str, replicates: int = REPLICATES) -> Operating:
    """For the model of stage `key`, which stands for `trial`. With inner folds, what is fitted is fitted on the trial's
    out-of-fold predictions of the development patients, else on the stage's predictions of validation images."""
    development, judged_on = _development(study, trial, key)
    own = study.predictions(key)
    test = None if own is None else own[own["split"] == "test"].reset_index(drop=True)
    return fitted(development, test, judged_on, replicates)


def decisions(study: Study, trial: str, key: str) -> tuple[float, dict[str, float]]:
    """The temperature and the thresholds of `operating` alone, without how far they hold, which takes draws."""
    temperature, chosen = _fitted(_development(study, trial, key)[0])
    return temperature, {name: threshold for name, threshold, _ in chosen}


def _development(study: Study, trial: str, key: str) -> tuple[pd.DataFrame | None, str]:
    """The predictions of development patients that a model's decisions are fitted on, and in words what they are."""
    frames = study.out_of_fold(trial) if study.parts else None
    if frames:
        # racing ends a setting before all inner folds have judged it
        few = f" of the {len(frames)} of {len(study.parts)} inner folds that judged it"
        words = f"out-of-fold predictions{few if len(frames) < len(study.parts) else ''}"
        return pd.concat(frames.values(), ignore_index=True), words
    own = study.predictions(key)
    part = None if own is None else own[own["split"] == "validation"].reset_index(drop=True)
    return part, "predictions of validation images"


def fitted(
    development: pd.DataFrame | None, test: pd.DataFrame | None, judged_on: str, replicates: int = REPLICATES
) -> Operating:
    """Both frames are predictions: malignant (whether an image is positive), probability, patient."""
    temperature, chosen = _fitted(development)
    drawn = {name: _drawn(frame, replicates) for name, frame in (("development", development), ("test", test))}
    points = tuple(
        OperatingPoint(
            name,
            threshold,
            why,
            development=_rates(development, drawn["development"], threshold),
            test=_rates(test, drawn["test"], threshold),
        )
        for name, threshold, why in chosen
    )
    losses = {
        name: (_log_loss(frame, 1.0), _log_loss(frame, temperature))
        for name, frame in (("development", development), ("test", test))
        if frame is not None and len(frame)
    }
    return Operating(temperature, points, losses, judged_on if len(chosen) > 1 else "")


def _fitted(development: pd.DataFrame | None) -> tuple[float, list[tuple[str, float, str]]]:
    """The temperature, and each threshold with its name and what it was chosen for; 1 and 0.5 alone where there are not
    both classes."""
    half = ("half", THRESHOLD, "the more probable side")
    if development is None or development["malignant"].nunique() != 2:
        return 1.0, [half]
    truth, score = _truth_and_score(development)
    return fit_temperature(truth, score, development["patient"].nunique()), [
        half,
        ("balanced", balanced_threshold(truth, score), "sensitivity + specificity"),
        ("sensitive", sensitive_threshold(truth, score), f"sensitivity {100 * SENSITIVITY:.0f} %"),
    ]


def calibrated(probability: np.ndarray | float, temperature: float) -> np.ndarray:
    """Probabilities (N,) whose log odds are divided by the temperature."""
    return expit(log_odds(np.asarray(probability, dtype=np.float64)) / temperature)


def log_odds(probability: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) (N,) of probabilities that are `uncertain`, as the metric log loss takes them: finite, and an
    error on either side costs the same."""
    p = uncertain(probability)
    return np.log(p) - np.log1p(-p)


def fit_temperature(truth: np.ndarray, probability: np.ndarray, patients: int, spread: float = SPREAD) -> float:
    """The most probable temperature, from images with `truth` (N,) and `probability` (N,) of so many patients: each
    patient counts as one observation of her images' mean log loss, and log temperature has a normal prior around 0 with
    the standard deviation `spread`; without end (`math.inf`) it is the temperature with the smallest mean log loss."""
    odds = log_odds(probability)

    def loss(log_temperature: float) -> float:
        prior = log_temperature**2 / (2 * spread**2 * patients)
        return _mean_loss(truth, odds, math.exp(log_temperature)) + prior

    low, high = (math.log(each) for each in TEMPERATURES)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)


def balanced_threshold(truth: np.ndarray, probability: np.ndarray) -> float:
    """The threshold with the largest mean of sensitivity and specificity (Youden 1950, Cancer 3), in the middle between
    the two probabilities that it parts; of several, the one nearest to 0.5."""
    cuts, sensitivity, specificity = _curve(truth, probability)
    gain = sensitivity + specificity
    best = cuts[gain >= gain.max() - 1e-12]
    return float(best[np.abs(best - THRESHOLD).argmin()])


def sensitive_threshold(truth: np.ndarray, probability: np.ndarray, goal: float = SENSITIVITY) -> float:
    """The largest threshold whose sensitivity is at least `goal`."""
    cuts, sensitivity, _ = _curve(truth, probability)
    return float(cuts[sensitivity >= goal - 1e-12].max())


def _curve(truth: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds that call differently, between distinct probabilities, with their sensitivity and specificity. The
    first one calls all images positive; the one that calls none is left out."""
    values, place = np.unique(probability, return_inverse=True)
    cuts = np.concatenate([values[:1], (values[:-1] + values[1:]) / 2])
    cuts[1:] = np.where(cuts[1:] > values[:-1], cuts[1:], values[1:])  # neighbours have no number between them
    missed = np.concatenate([[0], np.cumsum(np.bincount(place, truth, len(values)))[:-1]])
    rejected = np.concatenate([[0], np.cumsum(np.bincount(place, ~truth, len(values)))[:-1]])
    return cuts, 1 - missed / truth.sum(), rejected / (~truth).sum()


def _truth_and_score(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return frame["malignant"].to_numpy(bool), frame["probability"].to_numpy(np.float64)


def _drawn(frame: pd.DataFrame | None, replicates: int) -> Resampling | None:
    if frame is None or not len(frame):
        return None
    return resample(frame["patient"].to_numpy(), frame["malignant"].to_numpy(), replicates)


def called_at(frame: pd.DataFrame, threshold: float, drawn: Resampling) -> Bootstrapped:
    """The metrics at `threshold` of all images together, at the place `ALL`: probabilities become 0 and 1, so metrics
    at 0.5 are those at the threshold. What ranks (AUC), Brier score and log loss are those of the calls alone."""
    called = (frame["probability"] >= threshold).astype(float)
    return bootstrap(frame.assign(magnification=ALL, probability=called), drawn, [ALL])


def _rates(frame: pd.DataFrame | None, drawn: Resampling | None, threshold: float) -> Rates | None:
    if frame is None or drawn is None:
        return None
    found = called_at(frame, threshold, drawn)
    return Rates(found.interval(("image", "recall", ALL)), found.interval(("image", "specificity", ALL)))


def _log_loss(frame: pd.DataFrame, temperature: float) -> float:
    truth, score = _truth_and_score(frame)
    return _mean_loss(truth, log_odds(score), temperature)


def _mean_loss(truth: np.ndarray, odds: np.ndarray, temperature: float) -> float:
    """Mean log loss of images with `truth` (N,) and log odds (N,)."""
    return float(np.logaddexp(0.0, -np.where(truth, 1.0, -1.0) * odds / temperature).mean())
