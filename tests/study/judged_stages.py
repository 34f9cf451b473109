"""Stages whose predictions are a fixed function of their spec: settings have a true quality, patients differ, and each
inner fold judges its own patients. Studies of such stages need no training."""

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa

from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.recipe import StageSpec
from tests.study import made_stages

PATIENTS = 40
MAGNIFICATIONS = breakhis().magnifications


def space(**study):
    settings = {"objective_folds": 4, "lag": 3, "seed": 1, "startup": 3, "trials": 12, "baselines": ["joint"], **study}
    return made_stages.space(**settings).with_data("none")


def draw(*words):
    """A number in [0, 1) that depends on the words alone."""
    digest = hashlib.blake2b(" ".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def quality(spec: StageSpec) -> float:
    """How well the setting of a stage separates the classes: by its distillation and its size."""
    if spec.distillation is None:
        return 0.5
    return 3.0 * draw(spec.distillation.alpha, spec.distillation.temperature, spec.model.name)


def predictions(spec: StageSpec) -> pd.DataFrame:
    """Two images of every patient that the stage's inner fold leaves out, at every magnification; and one of a test
    patient."""
    lines = []
    for patient in range(PATIENTS):
        left_out = spec.data.inner_folds > 1 and patient % spec.data.inner_folds == spec.data.inner - 1
        for magnification in MAGNIFICATIONS:
            for image in range(2 if left_out else 0):
                malignant = patient % 3 > 0
                hard = 2.0 * draw("patient", patient) - 1.0
                noise = 2.0 * draw("image", patient, magnification, image, spec.key) - 1.0
                score = quality(spec) * (1.0 if malignant else -1.0) + 2.5 * hard + noise
                lines.append((magnification, "validation", malignant, f"p{patient}", 1 / (1 + np.exp(-score))))
    lines.append((40, "test", True, "q0", 0.5))
    return pd.DataFrame(lines, columns=["magnification", "split", "malignant", "patient", "probability"])


def save(store, spec: StageSpec) -> None:
    """Put a stage into a store, as a worker group would."""
    if not store.has(spec.key):
        store.save(made_stages.record(spec), {}, pa.Table.from_pandas(predictions(spec)))
