"""Predictions after a stage, the numbers made from them, agreement with the teacher, speed of the model."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from kdtvit_ray.data.batches import SPLITS
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.numeric import autocast
from kdtvit_ray.learning.team import ALONE, Team
from kdtvit_ray.metrics import malignant_share, measure_levels
from kdtvit_ray.recipe import Numeric

LATENCY_SECONDS = 0.5
"""Longest time that measuring a model's speed may take."""


def batch_of(device: torch.device) -> int:
    """Images per evaluation batch: on a CPU small batches stay in the cache."""
    return 256 if device.type == "cuda" else 32


@torch.no_grad()
def predict(
    model: nn.Module, feed: Feed, rows: np.ndarray, classes: int, numeric: Numeric, team: Team = ALONE
) -> np.ndarray:
    """Logits (len(rows), C) float32 of images `rows` as stored, in batches that do not depend on the workers."""
    was_training = model.training
    model.eval()
    size = batch_of(feed.device)
    logits = torch.zeros(len(rows), classes, device=feed.device)
    for start in range(team.rank * size, len(rows), size * team.size):
        with autocast(numeric, feed.device):
            logits[start : start + size] = model(feed(rows[start : start + size])).float()
    team.add_up(logits)  # one worker computed each batch; the others add exact zeros
    model.train(was_training)
    return logits.cpu().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (M, C) float32 from logits (M, C)."""
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def agreement(student: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    """How far a student follows its teacher, from logits (M, C) each: `same_argmax`, the share of images with the same
    most probable class, and `kl`, the mean of KL(teacher || student) at temperature 1, in nats."""
    ours, theirs = (torch.from_numpy(each).double().log_softmax(dim=1).numpy() for each in (student, teacher))
    return {
        "same_argmax": float(np.mean(student.argmax(axis=1) == teacher.argmax(axis=1))),
        "kl": float(np.mean((np.exp(theirs) * (theirs - ours)).sum(axis=1))),
    }


def evaluation(predictions: Mapping[str, np.ndarray], table: Any, split: Any) -> list[dict[str, Any]]:
    """All measures of a stage from its predictions: the one source of numbers for studies and for local chains.

    One dict a value: magnification (int), split, level, metric, value. `table` is the prepared set's, `split` the
    fold's, whose `groups` name the patients.
    """
    images = np.asarray(predictions["image"])
    codes = np.asarray(predictions["split"])
    probability = malignant_share(np.asarray(predictions["probabilities"], dtype=np.float64))
    malignant = table["malignant"].to_numpy()[images]
    magnification = table["magnification"].to_numpy()[images]
    patients = np.asarray(split.groups)[images]
    found = []
    for code, name in enumerate(SPLITS):
        for each in np.unique(magnification[codes == code]):
            chosen = (codes == code) & (magnification == each)
            levels = measure_levels(malignant[chosen], probability[chosen], patients[chosen])
            found += [
                {"magnification": int(each), "split": name, "level": level, "metric": metric, "value": value}
                for level, values in levels.items()
                for metric, value in values.items()
            ]
    return found


@torch.no_grad()
def latency(model: nn.Module, size: int, numeric: Numeric, device: torch.device) -> dict[str, float | None]:
    """Median seconds of a forward pass of 1 and of 32 images, and images/s at 32; None for what would take too long."""
    was_training = model.training
    model.eval()
    found: dict[str, float | None] = {"latency_1_seconds": None, "latency_32_seconds": None, "images_per_second": None}
    spent = one = 0.0
    for batch, name in ((1, "latency_1_seconds"), (32, "latency_32_seconds")):
        inputs = torch.zeros(batch, 3, size, size, device=device)
        if spent + 4 * batch * one > LATENCY_SECONDS:
            break
        times = []
        for _ in range(4):
            started = time.perf_counter()
            with autocast(numeric, device):
                model(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
            if 3 * times[0] > LATENCY_SECONDS:
                break
        one = min(times) / batch
        spent += sum(times)
        if len(times) == 4:
            found[name] = median(times[1:])  # the first one warms up
    if found["latency_32_seconds"]:
        found["images_per_second"] = 32 / found["latency_32_seconds"]
    model.train(was_training)
    return found
