"""What a search space may set: the keys of its tables with their defaults, and the words that are allowed.

`training` has the fields of `kdtvit_ray.recipe.Training`, and `numeric` those of `Numeric`.
"""

import math
from typing import Any

from kdtvit_ray.recipe import BASELINES, Numeric, field_names

SAMPLERS = ("tpe", "random", "grid", "nsga2")
PRUNERS = ("none", "asha")
METRICS = ("auc", "accuracy", "balanced_accuracy", "f1", "precision", "recall", "specificity", "brier", "log_loss")
CHOOSE = ("best", "simplest")
TRACKERS = ("mlflow", "wandb", "tensorboard")
AUTO = "auto"
"""The dtype of a space that leaves it to the devices. A study is given one of `Numeric.DTYPES` when it starts."""
DTYPES = (AUTO, *Numeric.DTYPES)
SEARCHED = ("temperature", "alpha", "order", "student", "teacher", "loss", "warm_start", "training")
PER_STAGE = ("temperature", "alpha")
PLACES = ("first", "later")
"""Stages that may have training settings of their own: the first one of a chain, and all after it."""
SAME_IN_ALL_STAGES = {
    "crop": "a teacher is asked about the field that its student sees",
    "class_weights": "both terms of a student's loss ask for the same probabilities",
}
"""Training settings that all stages of a chain share, and why."""
ONLY_LATER = ("rehearsal", "rehearsal_loss")
"""Training settings that a first stage cannot have: there is nothing before it to rehearse."""
ALL_ORDERS_UP_TO = 7
"""magnifications: they have 5,040 orders."""

SEEDS = (-(2**63), 2**63 - 100)
"""The lowest and the highest [study] seed: records hold it, and that of each repeat of the inner folds, in 64 bits."""

MOST_VALUES = 1_000_000
"""Values of a range with steps, which is a list in memory."""

IMAGE_SIZES = (8, 4096)
"""Smallest and largest side of the images that a model sees, pixels."""

CHAIN_BOUNDS = {"temperature": (0.05, 100.0), "alpha": (0.0, 1.0)}
TRAINING_BOUNDS: dict[str, tuple[float, float]] = {
    "epochs": (1, math.inf),
    "batch": (1, math.inf),
    "lr": (1e-12, 1e3),
    "weight_decay": (0, 1e3),
    "warmup_epochs": (0, math.inf),
    "min_lr_ratio": (0, 1),
    "label_smoothing": (0, 0.99),
    "drop_path": (0, 0.99),
    "stain_strength": (0.001, 1),
    "variants": (1, 1000),
    "zoom": (0, 0.9),
    "clip_grad": (0, math.inf),
    "layer_decay": (0.3, 1),
    "head_lr": (0.01, 1000),
    "ema": (0, 0.99999),
    "rehearsal": (0, 0.9),
    "lora_rank": (0, 1024),
    "mixup": (0, 100),
}
"""The lowest and the highest value of what is a number."""

STUDY_DEFAULTS: dict[str, Any] = {
    "name": "",
    "seed": 0,
    "trials": 20,
    "sampler": "tpe",
    "metric": "auc",
    "lag": 8,
    "reproducible": True,
    "pruner": "none",
    "startup": 10,
    "baselines": list(BASELINES),
    "baselines_searched": False,
    "objective_folds": 4,
    "objective_repeats": 1,
    "racing": True,
    "racing_folds": 2,
    "racing_confidence": 0.8,
    "choose": "best",
    "mix_devices": True,
    "track": [],
}
PROTOCOL_DEFAULTS: dict[str, Any] = {
    "name": "patient",
    "fold": 1,
    "folds": 3,
    "validation": 0.15,
    "group": "stem",
    "seed": 0,
}
CHAIN_DEFAULTS: dict[str, Any] = {
    "teacher": "micro",
    "student": "micro",
    "order": "40>100>200>400",
    "temperature": 4.0,
    "alpha": 0.5,
    "loss": "kd",
    "warm_start": True,
    "head": "subtype",
    "image_size": 64,
}
NUMERIC_DEFAULTS: dict[str, Any] = {**{name: getattr(Numeric(), name) for name in field_names(Numeric)}, "dtype": AUTO}
MODEL_DEFAULTS: dict[str, Any] = {"name": "", "args": {}, "image_size": 0, "weights": "none"}
