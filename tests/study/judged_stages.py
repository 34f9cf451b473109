"""Stages whose predictions are a fixed function of their spec: settings have a true quality, patients differ, and each
inner fold judges its own patients. Studies of such stages need no training."""

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.metrics import measure
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.stage_record import Measure
from kdtvit_ray.study.binding import write_study
from kdtvit_ray.study.ledger import Ledger
from tests.study import made_stages

PATIENTS, TEST_PATIENTS = 40, 18
MAGNIFICATIONS = breakhis().magnifications


def space(fold=1, **study):
    settings = {"objective_folds": 4, "lag": 3, "seed": 1, "startup": 3, "trials": 12, "baselines": ["joint"], **study}
    made = made_stages.space(**settings).with_data("none")
    return made if fold == 1 else made.at_fold(fold)


def draw(*words):
    """A number in [0, 1) that depends on the words alone."""
    digest = hashlib.blake2b(" ".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def quality(spec: StageSpec) -> float:
    """How well the setting of a stage separates the classes: by its distillation and its size."""
    if spec.distillation is None:
        return 0.5
    return 3.0 * draw(spec.distillation.alpha, spec.distillation.temperature, spec.model.name)


@cache  # studies that are compared have the same stages
def predictions(spec: StageSpec) -> pd.DataFrame:
    """Two images of every patient that the stage's inner fold leaves out, at every magnification, and of the test
    patients, whose numbers follow those of the others; other outer folds have other test patients."""
    lines, outer = [], "" if spec.data.fold == 1 else f"-{spec.data.fold}"
    key, skill = spec.key, quality(spec)
    for patient in range(PATIENTS + TEST_PATIENTS):
        inner = patient < PATIENTS and spec.data.inner_folds > 1
        if patient < PATIENTS and not (inner and patient % spec.data.inner_folds == spec.data.inner - 1):
            continue
        for magnification in MAGNIFICATIONS:
            for image in range(2):
                malignant = patient % 3 > 0
                name = f"p{patient}" if inner else f"p{patient}{outer}"
                hard = 2.0 * draw("patient", name.removeprefix("p")) - 1.0
                noise = 2.0 * draw("image", patient, magnification, image, key) - 1.0
                score = skill * (1.0 if malignant else -1.0) + 2.5 * hard + noise
                lines.append(
                    (
                        magnification,
                        "validation" if inner else "test",
                        malignant,
                        name,
                        1 / (1 + np.exp(-score)),
                    )
                )
    frame = pd.DataFrame(lines, columns=["magnification", "split", "malignant", "patient", "probability"])
    frame["subtype"] = np.where(frame["malignant"], 4, 0)
    frame["name"] = [f"{each.patient}-{each.magnification}-{line}" for line, each in enumerate(frame.itertuples())]
    return frame.assign(image=range(len(frame)), **{f"p{each}": 0.0 for each in range(8)}).assign(
        p0=1 - frame["probability"], p4=frame["probability"]
    )


def finished(location, failing: str = "", **study) -> Path:
    """A finished study of such stages in a folder; the third chain of the setting `failing` fails after one stage."""
    folder = StudyFolder(str(location))
    bound = made_stages.bound(space(**study))
    write_study(folder, bound)
    ledger = Ledger(folder, bound.space, magnifications=MAGNIFICATIONS)
    while (ask := ledger.next()) is not None:
        for spec in ask.stages:
            save(ledger.store, spec)
        if ask.kind == "inner" and ask.trial == f"{failing}-i3":
            ledger.ended(ask.trial, "failed", 1, "the loss is not finite")
        else:
            ledger.ended(ask.trial, "complete", len(ask.stages))
    assert ledger.finished()
    return Path(folder.root)


@cache
def measures(spec: StageSpec) -> tuple[Measure, ...]:
    return tuple(
        Measure(m, split, "image", metric, value)
        for (m, split), part in predictions(spec).groupby(["magnification", "split"])
        for metric, value in measure(part["malignant"].to_numpy(), part["probability"].to_numpy()).items()
    )


def save(store, spec: StageSpec) -> None:
    """Put a stage into a store, as a worker group would."""
    if not store.has(spec.key):
        record = replace(made_stages.record(spec), measures=measures(spec))
        store.save(record, {}, pa.Table.from_pandas(predictions(spec)))
