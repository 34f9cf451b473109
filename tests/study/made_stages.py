"""Stages whose results are a fixed function of their spec, and a space of them: studies of such stages need no data and
no training, and can be compared exactly."""

import hashlib
from typing import Any

from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.stage_record import Measure, StageRecord
from kdtvit_ray.study.binding import Bound
from kdtvit_ray.study.space import Space
from tests.results.fake_study import PREPROCESSING, study_file

METRICS = ("accuracy", "auc")
COST = {
    **dict.fromkeys(("train_seconds", "evaluate_seconds", "teacher_seconds"), 0.0),
    **dict.fromkeys(("teacher_asked", "teacher_computed"), 0),
    "parameters": 1_000,
    "device": "cpu",
    "device_type": "cpu",
    "latency_1_seconds": None,
    "images_per_second": None,
}
DATA = {
    **study_file()["data"],
    "path": "/nowhere",
    "fingerprint": "none",
    "splits": {"train": {"images": 2, "patients": 2}, "test": {"images": 1, "patients": 1}},
}
"""What a study says of data that nothing reads."""


def measures(spec: StageSpec) -> tuple[Measure, ...]:
    found = []
    for magnification in breakhis().magnifications:
        for split in ("validation", "test"):
            for metric in METRICS:
                digest = hashlib.blake2b(f"{spec.key}{magnification}{split}{metric}".encode(), digest_size=4).digest()
                value = int.from_bytes(digest, "big") / 2**32
                found.append(Measure(magnification, split, "image", metric, value))
    return tuple(found)


def record(spec: StageSpec) -> StageRecord:
    outputs = breakhis().outputs(spec.model.head)
    return StageRecord(
        spec.key,
        spec.to_dict(),
        measures(spec),
        COST,
        [],
        weighting={"logit_offsets": [0.0] * len(outputs)},
        preprocessing=PREPROCESSING,
        classes={
            "names": list(outputs),
            "positive": list(outputs[breakhis().first_positive_output(spec.model.head) :]),
        },
        device="cpu",
    )


def bound(space: Space) -> Bound:
    return Bound(space.with_data("none"), None, {}, DATA)  # type: ignore[arg-type]


def space(training: dict[str, Any] | None = None, **study: Any) -> Space:
    return Space(
        {
            "study": {"name": "noop", "objective_folds": 1, **study},
            "training": {"epochs": 3, **(training or {})},
            "search": {
                "temperature": [1.0, 2.0, 4.0, 8.0],
                "alpha": [0.1, 0.3, 0.5, 0.7, 0.9],
                "order": "all",
                "student": ["micro", "tiny"],
            },
        }
    )
