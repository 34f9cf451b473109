"""What a temperature that was fitted on few patients does for others: mean log loss on 10,000 new patients, as change
from no temperature at all, for a model whose log odds are `true` times too large; drawn, not trained.

An image's score is that of its class, its patient and noise; the log odds are those of the score's distribution over
all patients, times `true`. The prior is that of `results.operating`; without one the smallest mean log loss decides.
"""

import math

import numpy as np
from scipy.special import expit

from kdtvit_ray.results.operating import SPREAD, fit_temperature

DEVELOPMENT = ((6, 14), (12, 24), (40, 100))
"""Negative and positive patients."""
TRUE = (0.7, 1.0, 1.5, 2.5)
IMAGES, DRAWS, CLASS, OF_PATIENT, OF_IMAGE = 24, 60, 1.2, 1.0, 1.0


def drawn(negative: int, positive: int, images: int, true: float, random: np.random.Generator) -> tuple:
    """Truths (N,) and log odds (N,) of so many images of each patient."""
    truth = np.repeat([False, True], [negative, positive])
    score = np.where(truth, CLASS, -CLASS) + random.normal(0, OF_PATIENT, len(truth))
    each = score[:, None] + random.normal(0, OF_IMAGE, (len(truth), images))
    odds = 2 * CLASS * each / (OF_PATIENT**2 + OF_IMAGE**2) + math.log(positive / negative)
    return np.repeat(truth, images), true * odds.ravel()


def loss(truth: np.ndarray, odds: np.ndarray, temperature: float) -> float:
    return float(np.logaddexp(0, -np.where(truth, 1, -1) * odds / temperature).mean())


def main() -> None:
    print(f"change of log loss on new patients: without a prior, with one of spread {SPREAD:g}, and at best")
    for negative, positive in DEVELOPMENT:
        for true in TRUE:
            random = np.random.default_rng(0)
            new = drawn(3_000, 3_000 * positive // negative, 4, true, random)
            before = loss(*new, 1.0)
            changes = []
            for _ in range(DRAWS):
                truth, odds = drawn(negative, positive, IMAGES, true, random)
                fitted = [
                    fit_temperature(truth, expit(odds), negative + positive, spread) for spread in (math.inf, SPREAD)
                ]
                changes.append([loss(*new, each) - before for each in fitted])
            free, held = np.mean(changes, axis=0)
            print(
                f"{negative:3} + {positive:3} patients, true {true:3}: {free:+.4f}  {held:+.4f}  "
                f"{loss(*new, true) - before:+.4f}"
            )


if __name__ == "__main__":
    main()
