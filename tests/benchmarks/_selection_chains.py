"""All chains of the selection benchmark: every setting of a small space, on every way to divide the patients of several
synthetic studies, and the truth of every setting on new patients. Made once, kept in a folder, taken from there again.
"""

import os
import pickle
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from kdtvit_ray.results.out_of_fold import Part
from kdtvit_ray.study.space import Space

STUDIES = int(os.environ.get("BENCH_TRIALS", "4"))
FOLDER = Path(os.environ.get("BENCH_SELECTION", str(Path(tempfile.gettempdir()) / "kdtvit-selection")))
FOLDS = 4
EACH, IMAGES = 20, 4
"""New patients of each subtype, and images of each of them at each magnification."""
OF_SUBTYPE, OF_PATIENT = 6, 4
"""Patients of each subtype in a study, and images of each patient at each magnification."""

SPACE: dict[str, Any] = {
    "study": {"name": "selection", "objective_folds": FOLDS, "baselines": [], "trials": 24, "lag": 2, "startup": 6},
    "protocol": {"folds": 4, "validation": 0.2},
    "chain": {"teacher": "pico", "student": "pico", "image_size": 64},
    # a small model keeps a chain at a few seconds, and the learning rate sets its settings apart
    "models": {"pico": {"name": "micro", "args": {"patch_size": 16, "embed_dim": 48, "num_heads": 2, "depth": 2}}},
    "training": {"epochs": 6, "batch": 32, "label_smoothing": 0.05},
    "search": {
        "temperature": [1, 4],
        "alpha": [0.3, 0.9],
        "warm_start": [True, False],
        "training": {"lr": [3e-4, 1e-3, 3e-3]},
    },
}


@dataclass(frozen=True)
class Trained:
    """One setting's chain on one division: keys of its stages, the predictions of its validation images, and measures
    on new patients where it was a refit."""

    keys: tuple[str, ...]
    predictions: pd.DataFrame
    truth: dict[str, float]


def divisions() -> tuple[str, ...]:
    """One validation part, the inner folds, a refit, and a refit with another training seed."""
    return ("single", *(Part(1, inner).name for inner in range(1, FOLDS + 1)), "refit", "again")


def settings() -> list[dict[str, Any]]:
    return list(Space(SPACE).points())


def divided(space: Space, division: str) -> Space:
    if division == "single":
        return space
    if division in ("refit", "again"):
        other = space.refit()
        other.study = {**space.study, "seed": int(division == "again")}
        return other
    return space.inner_fold(Part(1, int(division[1:])))


def table(study: int, division: str) -> list[Trained]:
    """What every setting's chain yields, in the order of `settings`."""
    path = FOLDER / f"study{study}-{division}.pickle"
    if not path.is_file():
        made = _train(study, division)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_bytes(pickle.dumps(made))
        path.with_suffix(".part").rename(path)
    found: list[Trained] = pickle.loads(path.read_bytes())
    return found


def _prepared(name: str, of_subtype: int, images: int, seed: int) -> Any:
    from kdtvit_ray.data.prepared import open_prepared
    from tests.benchmarks.class_weights import SUBTYPES, patients

    place = FOLDER / name
    if not (place / "prepared" / "prepared.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            patients(Path(folder) / "made", dict.fromkeys(SUBTYPES, of_subtype), images, seed)
            (Path(folder) / "made" / "prepared").rename(place / "prepared")
    return open_prepared(place / "prepared")


def _train(study: int, division: str) -> list[Trained]:
    import torch

    from kdtvit_ray.data.batches import StageData
    from kdtvit_ray.learning.chain import run_chain
    from kdtvit_ray.metrics import measure
    from kdtvit_ray.study.stage_results import stage_results
    from tests.benchmarks.class_weights import NEW_PATIENTS_SEED, probabilities

    torch.set_num_threads(1)
    prepared = _prepared(f"study{study}", OF_SUBTYPE, OF_PATIENT, study)
    new = _prepared("new", EACH, IMAGES, NEW_PATIENTS_SEED) if division in ("refit", "again") else None
    space = divided(Space(SPACE).with_data(prepared.fingerprint), division)
    chains = [space.plan(params) for params in settings()]
    results = iter(run_chain([stage for chain in chains for stage in chain], prepared))
    data, made = StageData(prepared, space.data), []
    for chain in chains:
        last = [next(results) for _ in chain][-1]
        frame = stage_results(chain[-1], last, data)[1].to_pandas()
        frame = frame[frame["split"] == "validation"][["magnification", "malignant", "probability", "patient"]]
        truth: dict[str, float] = {}
        if new is not None:
            malignant, of_image = (new.table[name].to_numpy() for name in ("malignant", "magnification"))
            score = probabilities(last, new)
            each = [measure(malignant[of_image == m], score[of_image == m]) for m in sorted(set(of_image))]
            truth = {name: sum(found[name] for found in each) / len(each) for name in each[0]}
        made.append(Trained(tuple(stage.key for stage in chain), frame, truth))
    return made


@cache
def seconds_of_a_stage() -> float:
    """Wall clock of one stage on one thread, its evaluation included. All stages are of this size."""
    import torch

    from kdtvit_ray.learning.chain import run_chain

    torch.set_num_threads(1)
    prepared = _prepared("study0", OF_SUBTYPE, OF_PATIENT, 0)
    space = divided(Space(SPACE).with_data(prepared.fingerprint), "i1")
    stages = space.plan(settings()[0])
    run_chain(stages[:1], prepared)  # the first one warms up
    started = time.perf_counter()
    run_chain(stages, prepared)
    return (time.perf_counter() - started) / len(stages)


def _job(job: tuple[int, str]) -> tuple[int, str]:
    table(*job)
    return job


def make_all(processes: int = 2) -> Iterator[tuple[int, str]]:
    """Train what is not there yet. Yields what is done."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    # how much training noise moves the truth is measured on two studies
    jobs = [(study, each) for study in range(STUDIES) for each in divisions() if study < 2 or each != "again"]
    for study in range(STUDIES):
        _prepared(f"study{study}", OF_SUBTYPE, OF_PATIENT, study)
    from tests.benchmarks.class_weights import NEW_PATIENTS_SEED

    _prepared("new", EACH, IMAGES, NEW_PATIENTS_SEED)
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(_job, jobs)


if __name__ == "__main__":
    for done in make_all():
        print(*done, flush=True)
