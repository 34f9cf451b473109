"""All chains of the transfer benchmark: every way to train, on every outer fold of each population, with one budget of
CPU seconds. Made once, kept in a folder, taken from there again.
"""

import functools
import multiprocessing
import os
import pickle
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdtvit_ray.study.space import Space

FOLDER = Path(os.environ.get("BENCH_TRANSFER", str(Path(tempfile.gettempdir()) / "kdtvit-transfer")))
WEIGHTS = os.environ.get("KDTVIT_WEIGHTS", "hub")
"""Of `vit_small_patch14_dinov2`: a file, or timm's hub."""
FOLDS = 3
MAGNIFICATIONS = (40, 100, 200, 400)
FULL_EPOCHS, MOST_EPOCHS = 5, 40
"""Epochs of full fine-tuning, whose CPU seconds are the budget of all others; the most that any other one gets."""
OF_SUBTYPE, OF_PATIENT = 6, 3
"""Synthetic patients of each subtype, and images of each patient at each magnification."""


@dataclass(frozen=True)
class Way:
    """A way to train: settings of [training], and of its tables, on top of `BASE`, at each of some learning rates."""

    name: str
    training: dict[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = (5e-5, 3e-4)


BASE: dict[str, Any] = {"batch": 32, "weight_decay": 0.05, "label_smoothing": 0.0, "warmup_epochs": 0.5}
WAYS = (
    Way("full fine-tuning"),
    Way("linear probe", {"trainable_blocks": 0}, (3e-4, 2e-3)),
    Way("last half", {"trainable_blocks": 6}),
    Way("layer decay 0.75", {"layer_decay": 0.75}),
    Way("stain views", {"stain": "hed", "variants": 4}),
    Way("EMA", {"ema": 0.99}),
    Way("LoRA, rank 8", {"lora_rank": 8}, (3e-4, 2e-3)),
    Way("rehearsal", {"later": {"rehearsal": 0.5}}, (5e-5,)),
    Way(
        "learning without forgetting",
        {"later": {"rehearsal": 0.5, "rehearsal_loss": "distillation"}},
        (5e-5,),
    ),
    Way("last half, rehearsal", {"trainable_blocks": 6, "later": {"rehearsal": 0.3}}, (5e-5,)),
    Way(
        "the same, all labels smoothed 0.1",
        {"trainable_blocks": 6, "label_smoothing": 0.1, "later": {"rehearsal": 0.3}},
        (5e-5,),
    ),
    Way(
        "the same, the first teacher's not",
        {
            "trainable_blocks": 6,
            "label_smoothing": 0.1,
            "first": {"label_smoothing": 0.0},
            "later": {"rehearsal": 0.3},
        },
        (5e-5,),
    ),
    Way(
        "the same, mixup 0.2 in the first stage",
        {"trainable_blocks": 6, "first": {"mixup": 0.2}, "later": {"rehearsal": 0.3}},
        (5e-5,),
    ),
)


@dataclass(frozen=True)
class Job:
    """One chain: a population, a way, its learning rate, an outer fold."""

    population: str
    way: Way
    lr: float
    fold: int

    @property
    def path(self) -> Path:
        words = f"{self.population}-{self.way.name}-{self.lr:g}-{self.fold}"
        return FOLDER / f"{words.replace(' ', '_').replace(',', '')}.pickle"


@dataclass(frozen=True)
class Trained:
    """Predictions on the fold's test patients after every stage (columns stage, magnification, malignant, probability,
    patient), CPU seconds of the chain, its epochs, and the most memory that its process held, in MB."""

    predictions: pd.DataFrame
    seconds: float
    epochs: int
    memory: float


def populations() -> tuple[str, ...]:
    """Those that BENCH_POPULATIONS names, with spaces between; without it `synthetic77`, whose number is the seed, and
    `real` where KDTVIT_BREAKHIS names a folder of BreakHis images at all four magnifications."""
    others = " real" if "KDTVIT_BREAKHIS" in os.environ else ""
    return tuple(os.environ.get("BENCH_POPULATIONS", f"synthetic77{others}").split())


def size_of(population: str) -> int:
    """Side of its images, pixels."""
    return 84 if population == "real" else 56


@functools.cache
def prepared(population: str) -> Any:
    from kdtvit_ray.data.prepare import prepare
    from kdtvit_ray.data.prepared import open_prepared
    from tests.benchmarks.class_weights import SUBTYPES, patients

    place = FOLDER / population
    if not (place / "prepared.json").is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        if population == "real":
            prepare(Path(os.environ["KDTVIT_BREAKHIS"]), place, size=size_of(population))
        else:
            seed = int(population.removeprefix("synthetic"))
            with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
                patients(Path(folder) / "made", dict.fromkeys(SUBTYPES, OF_SUBTYPE), OF_PATIENT, seed)
                (Path(folder) / "made" / "prepared").rename(place)
    return open_prepared(place)


def space(population: str, way: Way, lr: float, epochs: int, fold: int) -> Space:
    """The chain that the way trains, on all development patients of the fold."""
    training = {**BASE, **way.training, "lr": lr, "epochs": epochs}
    plain = {
        "study": {"name": "transfer", "baselines": []},
        "protocol": {"folds": FOLDS, "fold": fold},
        "chain": {"teacher": "dino", "student": "dino", "image_size": size_of(population), "alpha": 0.5},
        "models": {"dino": {"name": "vit_small_patch14_dinov2", "weights": WEIGHTS}},
        "training": training,
    }
    from kdtvit_ray.learning.models import resolve

    made = Space(plain).with_data(prepared(population).fingerprint).refit()
    return made.with_models({label: resolve(model)[0] for label, model in made.models.items()})


def train(job: Job) -> None:
    """Train a chain within the budget and keep what it yields. For a process of its own."""
    import torch

    from kdtvit_ray.data.batches import StageData
    from kdtvit_ray.learning.chain import run_chain
    from kdtvit_ray.study.stage_results import stage_results

    torch.set_num_threads(1)
    images, epochs = prepared(job.population), epochs_of(job)
    planned = space(job.population, job.way, job.lr, epochs, job.fold)
    stages, started = planned.plan({}), time.process_time()
    results = run_chain(stages, images, device="cpu")
    seconds, data, frames = time.process_time() - started, StageData(images, planned.data), []
    for number, (stage, result) in enumerate(zip(stages, results, strict=True), start=1):
        frame = stage_results(stage, result, data)[1].to_pandas()
        frame = frame[frame["split"] == "test"][["magnification", "malignant", "probability", "patient"]]
        frames.append(frame.assign(stage=number))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    _keep(job.path, Trained(pd.concat(frames), seconds, epochs, memory))


def epochs_of(job: Job) -> int:
    """How many epochs of a way last as long as `FULL_EPOCHS` of full fine-tuning: from the CPU seconds of chains over
    a few epochs of each, measured once a population."""
    if job.way == WAYS[0]:
        return FULL_EPOCHS
    full, ours = (seconds_of_an_epoch(job.population, way) for way in (WAYS[0], job.way))
    return int(np.clip(round(FULL_EPOCHS * full / ours), 2, MOST_EPOCHS))


def seconds_of_an_epoch(population: str, way: Way) -> float:
    path = FOLDER / f"{population}-{way.name.replace(' ', '_').replace(',', '')}-seconds.pickle"
    if not path.is_file():
        from kdtvit_ray.learning.chain import run_chain

        spent = []
        for epochs in (2, 4):
            stages = space(population, way, 1e-4, epochs, 1).plan({})[:2]
            started = time.process_time()
            run_chain(stages, prepared(population), device="cpu")
            spent.append(time.process_time() - started)
        _keep(path, (spent[1] - spent[0]) / 2)
    found: float = pickle.loads(path.read_bytes())
    return found


def _keep(path: Path, what: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(f".{os.getpid()}").write_bytes(pickle.dumps(what))
    path.with_suffix(f".{os.getpid()}").rename(path)


def features(population: str) -> np.ndarray:
    """What the frozen network yields before its head for every image, (N, D)."""
    path = FOLDER / f"{population}-features.npy"
    if not path.is_file():
        import torch

        from kdtvit_ray.data.batches import Pixels
        from kdtvit_ray.learning.feed import Feed
        from kdtvit_ray.learning.models import build

        model = build(space(population, WAYS[0], 1e-4, 2, 1).models["dino"], 0).eval()
        images = prepared(population)
        pixels, rows = Pixels(images.images, size_of(population)), np.arange(len(images.table))
        pixels.make(rows)
        feed, found = Feed(pixels, model, 32, torch.device("cpu")), []
        with torch.no_grad():
            for part in np.array_split(rows, -(-len(rows) // 32)):
                found.append(model.forward_head(model.forward_features(feed(part, None)), pre_logits=True).numpy())
        np.save(path, np.concatenate(found))
    return np.load(path)


def jobs() -> list[Job]:
    """All chains; with BENCH_WAYS, names of ways joined by semicolons, those of these ways."""
    names = os.environ.get("BENCH_WAYS", "").split(";") if "BENCH_WAYS" in os.environ else None
    return [
        Job(population, way, lr, fold)
        for fold in range(1, FOLDS + 1)
        for population in populations()
        for way in WAYS
        if names is None or way.name in names
        for lr in way.rates
    ]


def make_all(processes: int = 2) -> Iterator[Job]:
    """Train what is not there yet. Yields what is done."""
    for population in populations():
        features(population)
    missing = [job for job in jobs() if not job.path.is_file()]
    for population, way in {(job.population, job.way.name): (job.population, job.way) for job in missing}.values():
        seconds_of_an_epoch(population, way)
    context = multiprocessing.get_context("spawn")  # each chain in a process of its own tells its memory
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        for job, _ in zip(missing, pool.map(train, missing), strict=True):
            yield job
