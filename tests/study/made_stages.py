"""Stages whose results are a fixed function of their spec, and a space of them: studies of such stages need no data and
no training, and can be compared exactly."""

import hashlib
from typing import Any

from kdtvit_ray.recipe import MAGNIFICATIONS, StageSpec
from kdtvit_ray.study.binding import Bound
from kdtvit_ray.study.space import Space

METRICS = ("accuracy", "auc")


def measures(spec: StageSpec) -> list[list[Any]]:
    found = []
    for magnification in MAGNIFICATIONS:
        for split in ("validation", "test"):
            for metric in METRICS:
                digest = hashlib.blake2b(f"{spec.key}{magnification}{split}{metric}".encode(), digest_size=4).digest()
                found.append([magnification, split, "image", metric, int.from_bytes(digest, "big") / 2**32])
    return found


def about_of(spec: StageSpec) -> dict[str, Any]:
    return {
        "spec": spec.to_dict(),
        "parent": spec.parent,
        "measures": measures(spec),
        "cost": {"train_seconds": 0.0, "evaluate_seconds": 0.0, "parameters": 1_000},
        "curves": [],
        "agreement": None,
        "versions": {},
        "device": "cpu",
        "group": "",
        "host": "",
        "started": 0.0,
        "finished": 0.0,
    }


def bound(space: Space) -> Bound:
    data = {"path": "/nowhere", "fingerprint": "none", "images": 0, "patients": 0, "leaks": False, "notes": [],
            "splits": {}, "census": []}  # fmt: skip
    return Bound(space.with_data("none"), None, {}, data)  # type: ignore[arg-type]


def space(**study: Any) -> Space:
    return Space(
        {
            "study": {"name": "noop", **study},
            "training": {"epochs": 3},
            "search": {
                "temperature": [1.0, 2.0, 4.0, 8.0],
                "alpha": [0.1, 0.3, 0.5, 0.7, 0.9],
                "order": "all",
                "student": ["micro", "tiny"],
            },
        }
    )
