"""Mixup (Zhang et al. 2018): each image of a step is blended with another one of it, and so are their labels.

The weight and the pairs are functions of (seed, epoch, step), and the pairs are of the whole batch, so a worker makes
its share of a step by reading its images' partners too: the same on any number of workers.
"""

import numpy as np
from scipy.special import betaincinv

from kdtvit_ray.data.batches import uniform

_MIX = 7


def weight_of(strength: float, seed: int, epoch: int, step: int) -> float:
    """Weight of a step's own images, drawn from Beta(strength, strength); their partners have the rest."""
    return float(betaincinv(strength, strength, uniform(_MIX, seed, epoch, step)))


def partners(batch: np.ndarray) -> np.ndarray:
    """For each image of a global batch (B,) the one that it is blended with: the one before it, so that none is its own
    partner unless it is alone.

    A batch is in random order, but for one of a stage that rehearses: there the stage's own images come first
    (`batches.mixed_batches`). So own images are blended with own ones and rehearsed with rehearsed ones, save one of
    each in a step. Other pairs would be other numbers under the keys of stages that there are.
    """
    return np.roll(batch, 1)
