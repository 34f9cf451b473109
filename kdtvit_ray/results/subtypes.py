"""What a model says about the dataset's classes (BreakHis's subtypes), each image called its most probable one:
accuracy, macro F1, balanced accuracy and each class's recall, over the same drawn patients as all other numbers.

Macro F1 is the mean over classes of each one's F1 (Opitz & Burst 2019, arXiv 1911.03347, their averaged F1), as
scikit-learn computes it; balanced accuracy is the mean over classes of recall. Both are over the classes that test
holds, in every draw over those that are drawn, so a class without test images changes neither. Letters: `R` replicates,
`P` patients, `N` images, `C` classes; line 0 of what has 1 + R lines is the sample itself.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.results.bootstrap import Difference, Resampling, difference, of_metric, percentile
from kdtvit_ray.results.images import calls
from kdtvit_ray.results.statistics import CONFIDENCE, FEWEST_PATIENTS, MEAN, SIGNIFICANCE, Interval, Sides, holm
from kdtvit_ray.results.words import joined, p_value, points

METRICS = {
    "accuracy": "accuracy over the classes",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy over the classes",
}
"""By name, in words."""
Place = Hashable
"""A magnification, or "mean"."""


@dataclass(frozen=True)
class Subtypes:
    """One model's numbers on test. `images` int (M, C) counts test images by magnification, `patients` int (M, C) the
    patients that they are of, `everyone` (C,) the patients at any magnification. `metrics` (1 + R,) is by metric and
    place, `recalls` (1 + R, C) by place, NaN where no image of a class is drawn. `confused` (P, C, C) counts a
    patient's images of all magnifications by true and called class. `sides`, by place, counts the
    patients of both sides."""

    classes: tuple[str, ...]
    magnifications: tuple[int, ...]
    images: np.ndarray
    patients: np.ndarray
    everyone: np.ndarray
    metrics: Mapping[tuple[str, Place], np.ndarray]
    recalls: Mapping[Place, np.ndarray]
    confused: np.ndarray
    weights: np.ndarray
    sides: Mapping[Place, Sides]

    def metric(self, name: str, place: Place) -> Interval:
        """One of `METRICS`. Like the page's other numbers on both sides it rests on the patients of the smaller one
        there, for the mean on those at the magnification with the fewest."""
        found = self.metrics[name, place]
        return of_metric(name, float(found[0]), found[1:], CONFIDENCE, self.sides[place].behind(name))

    def recall(self, place: Place, of: int) -> Interval:
        """Recall of the class at position `of`; NaN where test has no image of it, for the mean at any magnification.
        It rests on the class's patients there, for the mean on those at the magnification with the fewest."""
        found = self.recalls[place][:, of]
        return of_metric("recall", float(found[0]), found[1:], CONFIDENCE, self.behind(place, of))

    def behind(self, place: Place, of: int) -> int:
        """How many patients a class's recall rests on."""
        counts = self.patients[:, of]
        return int(counts.min() if place == MEAN else counts[list[Hashable](self.magnifications).index(place)])


def subtypes(
    predictions: pd.DataFrame, dataset: Dataset, resampling: Resampling, magnifications: Sequence[int]
) -> Subtypes:
    """Measure one model on its test images. `predictions` has split, magnification, patient, subtype and a probability
    for each class, `p0` ..; the model must be one that `results.images.tells_classes`."""
    test = predictions[predictions["split"] == "test"].reset_index(drop=True)
    truth, called = calls(test, dataset)
    owner, of_image = resampling.owners(test["patient"].to_numpy()), test["magnification"].to_numpy()
    weights = np.concatenate([np.ones((1, len(resampling.patients))), resampling.weights])
    shape = (len(resampling.patients), len(dataset.classes))

    def count(classes: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Images (P, C) by patient and class."""
        cells = owner[where] * shape[1] + classes[where]
        return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)

    metrics: dict[tuple[str, Place], np.ndarray] = {}
    recalls: dict[Place, np.ndarray] = {}
    sides: dict[Place, Sides] = {}
    positive, held = test["malignant"].to_numpy(), []
    for magnification in magnifications:
        at = of_image == magnification
        sides[magnification] = Sides.of(positive[at], owner[at])
        held.append(count(truth, at))
        there, hits, named = (
            weights @ each for each in (held[-1], count(truth, at & (truth == called)), count(called, at))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            recalls[magnification] = hits / there
            f1 = np.where(there > 0, 2 * hits / (there + named), math.nan)
            metrics["accuracy", magnification] = hits.sum(axis=1) / there.sum(axis=1)
        metrics["macro_f1", magnification] = _over_classes(f1)
        metrics["balanced_accuracy", magnification] = _over_classes(recalls[magnification])
    for name in METRICS:
        metrics[name, MEAN] = np.mean([metrics[name, each] for each in magnifications], axis=0)
    recalls[MEAN] = np.mean([recalls[each] for each in magnifications], axis=0)
    pairs = np.bincount((owner * shape[1] + truth) * shape[1] + called, minlength=shape[0] * shape[1] ** 2)
    return Subtypes(
        classes=dataset.classes,
        magnifications=tuple(magnifications),
        images=np.stack([each.sum(axis=0) for each in held]),
        patients=np.stack([(each > 0).sum(axis=0) for each in held]),
        everyone=(np.sum(held, axis=0) > 0).sum(axis=0),
        metrics=metrics,
        recalls=recalls,
        confused=pairs.reshape(*shape, shape[1]),
        weights=weights,
        sides={**sides, MEAN: Sides.fewest(list(sides.values()))},
    )


def _over_classes(values: np.ndarray) -> np.ndarray:
    """Mean (1 + R,) over the classes of (1 + R, C) that have a value; NaN where none has."""
    known = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1)


# -- the classes that a model recognises worst -------------------------------------------------------------------------


@dataclass(frozen=True)
class Weak:
    """A class whose recall is lower than the mean recall of the other classes: `apart` is the difference, mean over
    magnifications, `p_holm` is corrected over all classes that could be compared. `taken_for` is the wrong class that
    its images are called most often, with that `share` of them; "" where the patients do not tell which one it is."""

    name: str
    recall: float
    apart: Interval
    p_holm: float
    taken_for: str
    share: float


def weakest(found: Subtypes) -> tuple[list[Weak], int]:
    """The classes whose recall is shown to be lower than that of the others, lowest first, and how many classes have
    patients enough to be compared."""
    compared: dict[int, Difference] = {}
    for of in range(len(found.classes)):
        ours, others = found.recalls[MEAN][:, of], _others(found, of)
        fewest = min(found.behind(MEAN, of), found.sides[MEAN].behind("balanced_accuracy"))
        made = difference(float(ours[0] - others[0]), ours[1:] - others[1:], fewest)
        if made.interval.bounded:
            compared[of] = made
    corrected = holm([each.p for each in compared.values()])
    weak = []
    for (of, made), p_holm in zip(compared.items(), corrected, strict=True):
        if made.interval.high < 0 and p_holm < SIGNIFICANCE:
            recall = float(found.recalls[MEAN][0, of])
            weak.append(Weak(found.classes[of], recall, made.interval, float(p_holm), *_taken_for(found, of)))
    return sorted(weak, key=lambda each: each.recall), len(compared)


def _others(found: Subtypes, of: int) -> np.ndarray:
    """Mean recall (1 + R,) of all classes but one, mean over magnifications."""
    parts = [_over_classes(np.delete(found.recalls[each], of, axis=1)) for each in found.magnifications]
    return np.mean(parts, axis=0)


def _taken_for(found: Subtypes, of: int) -> tuple[str, float]:
    """The class that images of a class are called most often when they are called wrongly, and its share of all of
    them; ("", nan) where the patients do not tell it from the second one."""
    called = found.weights @ found.confused[:, of]
    images = called.sum(axis=1)
    called[:, of] = -1.0  # right answers come last
    first, second = np.argsort(-called[0], kind="stable")[:2]
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = (called[:, first] - called[:, second]) / images
    interval = percentile(float(ahead[0]), ahead[1:], CONFIDENCE, int(found.everyone[of]))
    if not interval.bounded or interval.low <= 0:
        return "", math.nan
    return found.classes[first], float(called[0, first] / images[0])


# -- sentences ---------------------------------------------------------------------------------------------------------


def absent(found: Subtypes) -> list[str]:
    """What the means over classes leave out."""
    said = []
    nowhere = [name for name, count in zip(found.classes, found.everyone, strict=True) if not count]
    if nowhere:
        said.append(
            f"Test has no images of {joined(nowhere)}: macro F1 and balanced accuracy are means over the other "
            f"{len(found.classes) - len(nowhere)} classes."
        )
    for magnification, images in zip(found.magnifications, found.images, strict=True):
        names = [name for name, n in zip(found.classes, images, strict=True) if not n and name not in nowhere]
        if names:
            said.append(f"At {magnification}X test has no images of {joined(names)}, so the means there leave it out.")
    return said


def told(found: Subtypes) -> str:
    """Which classes are recognised worst and what they are taken for, as far as the patients tell."""
    weak, compared = weakest(found)
    if not compared:
        return (
            "Whether some class's recall is lower than the others' cannot be told: no class can be compared, for want "
            f"of {FEWEST_PATIENTS} test patients at every magnification."
        )
    which = f"{compared} of {len(found.classes)} classes could be compared"
    if compared < len(found.classes):
        which += f": the others have fewer than {FEWEST_PATIENTS} test patients at some magnification"
    if not weak:
        return f"No class's recall is shown to be lower than the mean of the others' ({which})."
    lines = []
    for each in weak:
        low, high = sorted((-each.apart.low, -each.apart.high))
        taken = "and what it is most often taken for is not clear"
        if each.taken_for:
            taken = f"most often taken for {each.taken_for} ({100 * each.share:.0f} % of its images)"
        lines.append(
            f"{each.name} {each.recall:.3f}, {points(-each.apart.value)} points below the mean of the others "
            f"(95 % CI {points(low)} to {points(high)}, {p_value(each.p_holm)}), {taken}"
        )
    which = f"p-values have Holm's correction; {which}"
    return f"Lowest recall, as mean over magnifications: {'; '.join(lines)} ({which})."
