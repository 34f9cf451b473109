"""What a study on a prepared set can show, told before anything is trained: how many patients of each class stand
behind the objective and behind the test figures, and how far those figures will vary by chance alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kdtvit_ray.data.sources.breakhis import SOURCE as BREAKHIS
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import DataSpec
from kdtvit_ray.results.statistics import FEWEST_PATIENTS, Sides, auc_standard_error

if TYPE_CHECKING:
    from kdtvit_ray.data.prepared import Prepared
    from kdtvit_ray.study.space import Space

PARTS = ("train", "validation", "test")
SHOWN_AUCS = (0.8, 0.9, 0.95)
CORRELATION = 0.8
"""Between the objectives of two settings over drawn patients: what is hard in one is hard in the other. Measured on
synthetic patients (docs/measurements.md)."""


@dataclass(frozen=True)
class Part:
    """Patients with negative and with positive images, and all images, of one part of a fold; `at` counts the patients
    by magnification."""

    negative: int
    positive: int
    images: int
    at: Mapping[int, Sides]

    @property
    def enough(self) -> bool:
        """Whether numbers from these patients, and so means over magnifications, have an interval."""
        return Sides.fewest(list(self.at.values())).enough

    def errors(self) -> str:
        """The standard error of an AUC from these patients, in words."""
        return ", ".join(
            f"{auc_standard_error(each, self.negative, self.positive):.2f} at AUC {each:.2f}" for each in SHOWN_AUCS
        )


def parts_of(prepared: "Prepared", spec: DataSpec) -> dict[str, Part]:
    """The parts of one fold. Raises `UserError` where the fold cannot be made."""
    from kdtvit_ray.data.folds import split

    made = split(prepared.table, spec, prepared.dataset)
    return {name: _part(prepared.table, made.groups, getattr(made, name)) for name in PARTS}


def _part(table: pd.DataFrame, groups: np.ndarray, rows: np.ndarray) -> Part:
    positive, of, where = (
        each[rows] for each in (table["malignant"].to_numpy(), groups, table["magnification"].to_numpy())
    )
    whole = Sides.of(positive, of)
    at = {int(each): Sides.of(positive[where == each], of[where == each]) for each in sorted(set(where))}
    return Part(whole.negative, whole.positive, len(rows), at)


def feasibility(space: "Space", prepared: "Prepared") -> list[str]:
    """Lines of at most 80 columns. Raises `UserError` where the space's fold cannot be made of this set."""
    spec = replace(space.data, fingerprint=prepared.fingerprint)
    judged = bool(space.parts)
    here = parts_of(prepared, spec.refit() if judged else spec)
    if judged:
        here = {"development": here["train"], "test": here["test"]}
    negative, positive = prepared.dataset.words
    lines = [
        f"fold      {spec.fold} of {_folds(prepared, spec)}, protocol {spec.protocol}, patients {_by(prepared, spec)}"
    ]
    for name, part in here.items():
        lines.append(
            f"          {name + ':':<12} {part.negative} {negative} + {part.positive} {positive} patients, "
            f"{part.images:,} images"
        )
    if judged:
        lines += _inner(space, prepared, here["development"])
    else:
        lines += ["objective measured on validation; standard error of an AUC by patients, at most:"]
        lines += [f"          {here['validation'].errors()}", *_apart(here["validation"])]
    if spec.protocol == "image":
        return [*lines, "test      shares its patients with train: nothing from it holds for new patients"]
    test = here["test"]
    if test.enough:
        return [*lines, "test      has intervals; standard error of an AUC, at most:", f"          {test.errors()}"]
    if min(test.negative, test.positive) < FEWEST_PATIENTS:
        lines.append(
            f"test      has no intervals and shows no differences: it needs {FEWEST_PATIENTS} patients of each class"
        )
    else:
        lines.append("test      has no intervals of means over magnifications and shows no differences:")
        few = [(place, each) for place, each in test.at.items() if not each.enough]
        lines += [
            f"          {place}X has {each.negative} {negative} + {each.positive} {positive} patients, "
            f"it needs {FEWEST_PATIENTS} of each"
            for place, each in few
        ]
    if spec.protocol == "patient":
        fewer = (each for each in range(spec.folds - 1, 1, -1) if _all_enough(prepared, replace(spec, folds=each)))
        most = next(fewer, None)
        advice = f"folds = {most} leaves enough in every fold" if most else "no number of folds leaves enough"
        lines.append(f"          {advice}; 'confirm --folds 1-{spec.folds}' judges every patient once")
    return lines


def _inner(space: "Space", prepared: "Prepared", development: Part) -> list[str]:
    """What an objective over inner folds rests on. Raises `UserError` where one cannot be made."""
    made = [
        parts_of(prepared, replace(space.inner_fold(part).data, fingerprint=prepared.fingerprint))
        for part in space.parts
    ]
    least = [min(getattr(each["validation"], side) for each in made) for side in ("negative", "positive")]
    negative, positive = prepared.dataset.words
    repeats = space.study["objective_repeats"]
    times = f", {repeats} times" if repeats > 1 else ""
    return [
        f"objective from {space.study['objective_folds']} inner folds{times}; "
        f"the smallest leaves out {least[0]} {negative} + {least[1]} {positive}",
        "          standard error of an AUC by development patients, at most:",
        f"          {development.errors()}",
        *_apart(development),
    ]


def _apart(part: Part) -> list[str]:
    """How far apart settings have to be, and how many of them can differ so much from one another."""
    two = 2 * math.sqrt(2 * (1 - CORRELATION)) * auc_standard_error(0.9, part.negative, part.positive)
    steps = int((SHOWN_AUCS[-1] - SHOWN_AUCS[0]) / two) + 1
    return [
        f"          settings can be told apart where they differ by {two:.2f} at AUC 0.90:",
        f"          about {steps} from one another between AUC {SHOWN_AUCS[0]:.2f} and {SHOWN_AUCS[-1]:.2f}",
    ]


def _by(prepared: "Prepared", spec: DataSpec) -> str:
    """Whose images are one patient's. `stem` and `id` tell BreakHis's names apart; any other set names its patients."""
    if prepared.dataset.source == BREAKHIS:
        return f"by {spec.group}"
    return "by slide" if spec.group == "folder" else "as the set names them"


def _folds(prepared: "Prepared", spec: DataSpec) -> int:
    return prepared.dataset.folds if spec.protocol == "official" else spec.folds


def _all_enough(prepared: "Prepared", spec: DataSpec) -> bool:
    """Whether the test parts of all folds have enough patients; a fold that cannot be made has not."""
    try:
        folds = range(1, _folds(prepared, spec) + 1)
        return all(parts_of(prepared, replace(spec, fold=fold))["test"].enough for fold in folds)
    except UserError:
        return False
