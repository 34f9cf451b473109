"""Predictions of new images: decoded on threads, given to a model in batches, put into one table."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from kdtvit_ray.data.findings import Finding
from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.deliver.checksums import checksum
from kdtvit_ray.deliver.description import Description, views_of
from kdtvit_ray.deliver.inputs import Image
from kdtvit_ray.deliver.model import Model
from kdtvit_ray.errors import UserError, first_line
from kdtvit_ray.recipe import Training
from kdtvit_ray.results.operating import calibrated

OF_PATIENTS = ("patient", "images", "label", "probability", "decision")
"""The columns of a table of patients, which lacks `label` where none is known."""


@dataclass(frozen=True)
class Predictions:
    """One line in `table` for each image that could be read, in the order given: name, and where it is known of any
    image slide, patient, magnification, label; probability (of the positive side, before the temperature), calibrated
    (after it), class (the most probable one), decision (the word of the side), and p_CLASS of each class. `positive`
    says of each line whether the image is truly positive: a boolean, or None where nothing tells; `checksums` are those
    of each line's pixels. `unreadable` are the images that are not in the table, with reasons."""

    table: pd.DataFrame
    positive: list[bool | None]
    checksums: list[bytes]
    unreadable: list[Finding]
    seconds: float

    @property
    def notes(self) -> list[str]:
        """Sentences on images that count several times."""
        again = len(self.checksums) - len(set(self.checksums))
        told = "Images with the pixels of an image before them, each of which counts as one of its own"
        return [f"{told}: {again:,} of {len(self.checksums):,}"] if again else []


def predict(
    model: Model,
    images: Iterable[Image],
    *,
    tta: bool = False,
    workers: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Predictions:
    """Predict `images`. `tta` averages the probabilities of the square's eight views; `workers` threads decode, 0: one
    for each core; `progress` is told how many images are done, those that cannot be read too."""
    started = time.perf_counter()
    told = model.description
    good: list[Image] = []
    unreadable: list[Finding] = []
    probabilities: list[np.ndarray] = []
    checksums: list[bytes] = []
    waiting: list[tuple[Image, np.ndarray]] = []

    def ask() -> None:
        stacked = np.stack([pixels for _, pixels in waiting])
        probabilities.append(_probabilities(model, stacked, Training.VIEWS["d4"] if tta else 1))
        good.extend(image for image, _ in waiting)
        checksums.extend(checksum(pixels) for _, pixels in waiting)
        waiting.clear()

    for done, (image, found) in enumerate(_decoded(images, told, workers or os.cpu_count() or 1), start=1):
        if isinstance(found, str):
            unreadable.append(Finding(image.name, found))
        else:
            waiting.append((replace(image, read=_gone), found))  # of an archive it holds the whole file
            if len(waiting) == model.batch:
                ask()
        progress(done)
    if waiting:
        ask()
    whole = np.concatenate(probabilities) if probabilities else np.zeros((0, len(told.classes)))
    truths = [truth_of(image, told) for image in good]
    return Predictions(_table(good, whole, told), truths, checksums, unreadable, time.perf_counter() - started)


def _gone() -> bytes:
    raise ValueError("has been read already")


def truth_of(image: Image, told: Description) -> bool | None:
    """Whether an image is positive by its labels: class names of the model, or the words of the two sides. None
    where it has none, or where its name alone tells a class that the model does not know."""
    return next(iter(_sides_of(image, told).values()), None)


def _sides_of(image: Image, told: Description) -> dict[str, bool]:
    """Which of an image's labels mean something to the model, the narrowest first, and whether each is positive."""
    labels = image.labels
    if "labels" in image.by_name:  # its words are BreakHis's: F is fibroadenoma there, and may be anything elsewhere
        if tuple(told.words) != breakhis().words:
            return {}
        if tuple(told.classes) != breakhis().classes:
            labels = labels[-1:]
    positive = {each.casefold(): True for each in told.positive}
    known = {each.casefold(): False for each in told.classes} | positive
    known |= {told.words[0].casefold(): False, told.words[1].casefold(): True}
    return {each: known[each.casefold()] for each in labels if each.casefold() in known}


def check_labels(images: Iterable[Image], told: Description) -> None:
    """Raise `UserError` for an image with labels that all mean nothing to the model, or that contradict each other.
    What a BreakHis name tells may mean nothing to it."""
    for image in images:
        sides = _sides_of(image, told)
        if image.labels and not sides and "labels" not in image.by_name:
            allowed = ", ".join(dict.fromkeys((*told.classes, *told.words)))
            raise UserError(
                f"Image '{image.name}' has the label '{image.labels[-1]}', which the model does not know; allowed: "
                f"{allowed}, or no label"
            )
        if len(set(sides.values())) > 1:
            found = " and ".join(f"'{each}' ({told.words[side]})" for each, side in sides.items())
            raise UserError(f"Image '{image.name}' has the labels {found}; allowed: a subtype of its label")


def patients_of(predictions: Predictions, told: Description) -> pd.DataFrame:
    """One line for each patient that is known: patient, images, probability (the mean over her images), decision at
    the model's threshold, and label where it is known. Empty where no patient is known."""
    table = predictions.table
    if "patient" not in table or not (table["patient"] != "").any():
        return pd.DataFrame(columns=[each for each in OF_PATIENTS if each != "label"])
    known = table.assign(positive=predictions.positive)[table["patient"] != ""]
    grouped = known.groupby("patient", sort=True)
    made = pd.DataFrame({"images": grouped.size(), "probability": grouped["probability"].mean()}).reset_index()
    made["decision"] = [told.decides(each) for each in made["probability"]]
    if known["positive"].notna().any():
        truth = known.dropna(subset="positive").groupby("patient")["positive"].max()
        words = [told.words[bool(truth[each])] if each in truth.index else "" for each in made["patient"]]
        made["label"] = words
    return made[[each for each in OF_PATIENTS if each in made]]


def _probabilities(model: Model, images: np.ndarray, views: int) -> np.ndarray:
    """Class probabilities (B, C), the mean over the first `views` of the eight views."""
    if views == 1:
        return model.probabilities(images)
    return np.mean([model.probabilities(each) for each in views_of(images, views)], axis=0)


def pixels_of(image: Image, told: Description) -> np.ndarray | str:
    """An image as its model takes it, uint8 (S, S, 3), or the reason why it cannot be read."""
    try:
        return told.pixels(image.read())
    except ValueError as error:
        return str(error)
    except MemoryError:
        return "too large for this machine's memory"
    except Exception as error:  # whatever a hostile file makes a reader do
        return f"cannot be read ({first_line(error)})"


def _decoded(images: Iterable[Image], told: Description, workers: int) -> Iterator[tuple[Image, np.ndarray | str]]:
    """Each image with its pixels, or with the reason why it has none, in order; a few per worker are in memory."""

    waiting: deque[tuple[Image, Future[Any]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for image in images:
            waiting.append((image, pool.submit(pixels_of, image, told)))
            if len(waiting) >= 4 * workers + 32:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _table(images: list[Image], probabilities: np.ndarray, told: Description) -> pd.DataFrame:
    score = told.positive_probability(probabilities)
    columns: dict[str, Any] = {"name": [each.name for each in images]}
    for name in ("slide", "patient"):
        if any(getattr(each, name) for each in images):
            columns[name] = [getattr(each, name) for each in images]
    if any(each.magnification for each in images):
        columns["magnification"] = [each.magnification for each in images]
    if any(each.labels for each in images):
        columns["label"] = [each.labels[0] if each.labels else "" for each in images]
    columns["probability"] = score
    columns["calibrated"] = calibrated(score, told.temperature)
    columns["class"] = [told.classes[each] for each in probabilities.argmax(axis=1)] if len(images) else []
    columns["decision"] = [told.decides(each) for each in score]
    for column, name in enumerate(told.classes):
        columns[f"p_{name}"] = probabilities[:, column]
    return pd.DataFrame(columns)
