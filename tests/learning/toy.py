"""A small prepared set in memory, with a signal that can be learned, and small specs to train on it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd

from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.teacher import Parent
from kdtvit_ray.recipe import (
    DataSpec,
    Distillation,
    ModelSpec,
    Numeric,
    StageSpec,
    Training,
)

MODEL = ModelSpec("micro", (("depth", 2), ("embed_dim", 16), ("num_heads", 2), ("patch_size", 4)), image_size=16)
TEACHER = replace(MODEL, args=(("depth", 2), ("embed_dim", 24), ("num_heads", 2), ("patch_size", 4)))
DATA = DataSpec(folds=3, validation=0.3)
NUMERIC = Numeric()
TRAINING = Training(epochs=2, batch=24, lr=2e-3, drop_path=0.2, label_smoothing=0.1)


def prepared(images=4, patients=6, size=20, seed=0):
    """Like `data.prepare`'s result: `images` of each of `patients` a subtype at each magnification."""
    random = np.random.default_rng(seed)
    rows = []
    for magnification in breakhis().magnifications:
        for subtype, name in enumerate(breakhis().classes):
            malignant = subtype >= 4
            for patient in range(patients):
                stem = f"14-{1000 * subtype + patient}"
                slide = f"{'M' if malignant else 'B'}_{name}-{stem}"
                for sequence in range(images):
                    image = f"SOB_{slide}-{magnification}-{sequence:03d}"
                    rows.append((image, subtype, malignant, magnification, slide, stem, stem, sequence))
    columns = ["name", "subtype", "malignant", "magnification", "slide", "id", "stem", "sequence"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["magnification", "name"], ignore_index=True)
    table = table.astype({"subtype": np.int8, "malignant": bool, "magnification": np.int16})
    table.insert(0, "index", np.arange(len(table)))
    noise = random.integers(0, 120, (len(table), size, size, 3), dtype=np.uint8)
    subtype = table["subtype"].to_numpy().astype(int)
    noise[:, :, :, 0] += (subtype >= 4).astype(np.uint8)[:, None, None] * 100
    for column in range(2):  # the other bits of the subtype: brightness of a half, which turning moves about
        noise[:, : size // 2, :, 1 + column] += ((subtype >> column) & 1).astype(np.uint8)[:, None, None] * 80
    return SimpleNamespace(
        images=noise, table=table, fingerprint=f"toy{seed}", path="toy", about={"aspect": "squash"}, dataset=breakhis()
    )


def first(magnifications=(40,), *, model=TEACHER, training=TRAINING, data=DATA, numeric=NUMERIC, seed=0):
    return StageSpec(magnifications, model, training, seed=seed, data=data, numeric=numeric)


def second(parent, magnifications=(100,), *, loss="kd", alpha=0.7, temperature=3.0, warm=False, model=MODEL, **changes):
    taught = Distillation(temperature, alpha, loss)
    return replace(
        parent, magnifications=magnifications, model=model, distillation=taught, parent=parent.key, warm=warm, **changes
    )


def untrained(spec):
    """A parent that was never trained, for tests that need its outputs only."""
    return Parent(spec, build(spec.model, 7).state_dict())
