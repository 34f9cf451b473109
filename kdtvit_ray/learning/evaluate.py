"""Predictions after a stage, the numbers made from them, agreement with the teacher, speed of the model."""

import time
from collections.abc import Hashable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdtvit_ray.data.batches import INTERPOLATION, SPLITS, StageData
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.models import mean_std
from kdtvit_ray.learning.numeric import autocast
from kdtvit_ray.learning.recorded import frozen_on
from kdtvit_ray.learning.team import ALONE, Team
from kdtvit_ray.metrics import measure_levels, positive_share
from kdtvit_ray.recipe import ModelSpec, Numeric, StageSpec

GPU_BATCH, USUAL_SIZE = 256, 224
LATENCY_SECONDS = 0.5
"""Longest time that measuring a model's speed may take."""
_LATENCIES: dict[Hashable, dict[str, float | None]] = {}


def batch_of(device: torch.device, size: int) -> int:
    """Images of `size` pixels a side per evaluation batch: on a CPU few, which stay in the cache; on a GPU many, but of
    large images no more than take the memory of `GPU_BATCH` of the usual ones, since whoever trains large images does
    so in small batches."""
    if device.type != "cuda":
        return 32
    return min(GPU_BATCH, max(GPU_BATCH * USUAL_SIZE**2 // size**2, 1))


@torch.no_grad()
def predict(
    model: nn.Module, feed: Feed, rows: np.ndarray, classes: int, numeric: Numeric, team: Team = ALONE
) -> np.ndarray:
    """Logits (len(rows), C) float32 of images `rows` as stored, in batches that do not depend on the workers.

    All batches have the same size, the last one too, which repeats some of its images: so an image's logits have the
    same bits whatever images come with it."""
    was_training = model.training
    model.eval()
    size = batch_of(feed.device, feed.pixels.size)
    logits = torch.zeros(len(rows), classes, device=feed.device)
    starts = range(team.rank * size, len(rows), size * team.size)
    forward = frozen_on(model, numeric, feed.device, len(starts))
    for start in starts:
        batch = rows[start : start + size]
        logits[start : start + size] = forward(feed(np.resize(batch, size)))[: len(batch)]
    team.add_up(logits)  # one worker computed each batch; the others add exact zeros
    model.train(was_training)
    return logits.cpu().numpy()


def softmax(logits: np.ndarray, offsets: Tensor | float = 0.0) -> np.ndarray:
    """Probabilities (M, C) float64 from logits (M, C) and what is added to them (C,): in float32 those of a confident
    model tie at 1."""
    return (torch.from_numpy(logits).double() + offsets).softmax(dim=1).numpy()


def agreement(student: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    """How far a student follows its teacher, from logits (M, C) each: `same_argmax`, the share of images with the same
    most probable class, and `kl`, the mean of KL(teacher || student) at temperature 1, in nats."""
    ours, theirs = (torch.from_numpy(each).double().log_softmax(dim=1).numpy() for each in (student, teacher))
    return {
        "same_argmax": float(np.mean(student.argmax(axis=1) == teacher.argmax(axis=1))),
        "kl": float(np.mean((np.exp(theirs) * (theirs - ours)).sum(axis=1))),
    }


def evaluation(predictions: Mapping[str, np.ndarray], data: StageData, head: str) -> list[dict[str, Any]]:
    """All measures of a stage from its predictions: the one source of numbers for studies and for local chains.

    One dict a value: magnification (int), split, level, metric, value. `data` is what the stage was trained on, `head`
    what its model predicts (`ModelSpec.head`).
    """
    table, first = data.table, data.dataset.first_positive_output(head)
    images = np.asarray(predictions["image"])
    codes = np.asarray(predictions["split"])
    probability = positive_share(np.asarray(predictions["probabilities"], dtype=np.float64), first)
    positive = table["malignant"].to_numpy()[images]
    magnification = table["magnification"].to_numpy()[images]
    patients = np.asarray(data.split.groups)[images]
    found = []
    for code, name in enumerate(SPLITS):
        for each in np.unique(magnification[codes == code]):
            chosen = (codes == code) & (magnification == each)
            levels = measure_levels(positive[chosen], probability[chosen], patients[chosen])
            found += [
                {"magnification": int(each), "split": name, "level": level, "metric": metric, "value": value}
                for level, values in levels.items()
                for metric, value in values.items()
            ]
    return found


def usage(model: nn.Module, spec: StageSpec, data: StageData) -> dict[str, Any]:
    """What one needs beside the weights to use a model on images that were never prepared.

    preprocessing: an image becomes a square of `size` pixels by `aspect` ("crop": its central square, "squash": all of
    it), then of `image_size` pixels (by `crop` = "centre" cut out of the square, else resized), then normalised by
    `mean` and `std`, in units of [0, 1]; both times it is resized by `interpolation`, antialiased. classes: what the
    outputs stand for, in order, and which of them are positive.
    """
    mean, std = mean_std(model)
    names, first = data.dataset.outputs(spec.model.head), data.dataset.first_positive_output(spec.model.head)
    return {
        "preprocessing": {
            "size": int(data.prepared.images.shape[1]),
            "aspect": data.prepared.about["aspect"],
            "crop": spec.training.crop,
            "image_size": spec.model.image_size,
            "interpolation": INTERPOLATION,
            "mean": list(mean),
            "std": list(std),
        },
        "classes": {"names": list(names), "positive": list(names[first:])},
    }


def latency(model: nn.Module, spec: ModelSpec, numeric: Numeric, device: torch.device) -> dict[str, float | None]:
    """Median seconds of a forward pass of 1 and of 32 images, and images/s at 32; None for what would take too long.

    Measured once a process for each architecture, image size, numeric mode and device: weights do not change it.
    """
    known = (replace(spec, weights="", digest=""), numeric, str(device))
    if known not in _LATENCIES:
        _LATENCIES[known] = _measured(model, spec.image_size, numeric, device)
    return dict(_LATENCIES[known])


@torch.no_grad()
def _measured(model: nn.Module, size: int, numeric: Numeric, device: torch.device) -> dict[str, float | None]:
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
