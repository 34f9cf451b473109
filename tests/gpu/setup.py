"""What checks and figures share: the device, models and sizes, the synthetic sets, processes of their own."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.synthetic import synthesise
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.numeric import has_bfloat16
from kdtvit_ray.learning.outcome import StageResult
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.teacher import Parent
from kdtvit_ray.recipe import DataSpec, Distillation, ModelSpec, Numeric, StageSpec, Training
from tests.gpu.outcomes import NeedsGpu, Skipped

ROOT = Path(__file__).parents[2]
MODEST_GIB = 20
"""Below so much memory a GPU gets smaller batches and fewer epochs."""
PATIENCE = 240.0
"""Most seconds that a process of its own may take; in a rehearsal, whose machine may be busy, four times as many."""
LATEST = 30.0
"""Seconds that must be left for a check or a figure to be begun."""
MAGNIFICATIONS = (40, 100, 200, 400)


@dataclass(frozen=True)
class Sizes:
    """How much of everything: patients and images of each at a magnification, of checks and figures and of the sweep;
    sides in pixels; epochs and batch of the stages that are timed; timed steps of a bare step; epochs and trials of the
    sweep; trials of our sweep in the comparison with the documented pattern."""

    patients: int
    images: int
    sweep_patients: int
    sweep_images: int
    small_side: int
    large_side: int
    epochs: int
    batch: int
    steps: int
    sweep_epochs: int
    sweep_trials: int
    pattern_trials: int


REHEARSAL = Sizes(
    patients=24,
    images=1,
    sweep_patients=24,
    sweep_images=1,
    small_side=16,
    large_side=16,
    epochs=3,
    batch=16,
    steps=2,
    sweep_epochs=2,
    sweep_trials=2,
    pattern_trials=2,
)
MODEST = Sizes(
    patients=48,
    images=6,
    sweep_patients=48,
    sweep_images=6,
    small_side=64,
    large_side=224,
    epochs=10,
    batch=64,
    steps=10,
    sweep_epochs=20,
    sweep_trials=2,
    pattern_trials=16,
)
FULL = replace(MODEST, images=8, epochs=36, batch=128, steps=20, sweep_patients=82, sweep_images=24, sweep_trials=3)
"""The sweep has as many patients as BreakHis and nearly as many images (7,872), and the epochs of the shipped space."""

TOY = ModelSpec("micro", (("depth", 2), ("embed_dim", 16), ("num_heads", 2), ("patch_size", 4)), image_size=16)


class Setup:
    """A run on one device, with a folder for all that it writes and `seconds` of time. What tells why something has
    failed is copied to the folder `evidence`, which is made then; the other one may be gone when it is read."""

    def __init__(self, folder: Path, *, rehearsal: bool, seconds: float = 600.0, evidence: Path | None = None) -> None:
        self.folder, self.rehearsal = folder, rehearsal
        self.evidence = evidence or folder / "failed"
        self.device = torch.device("cpu") if rehearsal else torch.device("cuda", 0)
        self._ends = time.monotonic() + seconds
        if rehearsal:
            self.sizes = REHEARSAL
        else:
            modest = torch.cuda.get_device_properties(self.device).total_memory < MODEST_GIB * 2**30
            self.sizes = MODEST if modest else FULL

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._ends - time.monotonic()

    def check_time(self) -> None:
        """Leave a check or a figure out that can hardly end in time."""
        if self.left < LATEST:
            raise Skipped("no time was left")

    def needs_gpu(self) -> None:
        """Leave a check or a figure out of a rehearsal."""
        if self.rehearsal:
            raise NeedsGpu("the CPU has nothing of the kind")

    @property
    def numeric(self) -> Numeric:
        """How stages that are timed compute: in bfloat16 where a GPU has it."""
        return Numeric("bfloat16" if not self.rehearsal and has_bfloat16(self.device) else "float32")

    # -- data and models -------------------------------------------------------------------------------------------

    @cached_property
    def small(self) -> StageData:
        """Small images, for checks."""
        return self._made("small", self.sizes.small_side, (140, 92))

    @cached_property
    def large(self) -> StageData:
        """Images of the size that studies have, for figures."""
        return self._made("large", self.sizes.large_side, (350, 230))

    @cached_property
    def studied(self) -> StageData:
        """Images of that size, as many as a study has."""
        sizes = self.sizes
        return self._made("studied", sizes.large_side, (350, 230), sizes.sweep_patients, sizes.sweep_images)

    def _made(self, name: str, side: int, size: tuple[int, int], patients: int = 0, each: int = 0) -> StageData:
        sizes, images = self.sizes, self.folder / f"{name}-images"
        workers, size = (1, (48, 32)) if self.rehearsal else (0, size)
        patients, each = patients or sizes.patients, each or sizes.images
        synthesise(images, patients=patients, per_magnification=each, size=size, workers=workers)
        prepare(images, self.folder / name, size=side, aspect="squash")
        return opened(self.folder / name)

    @property
    def models(self) -> tuple[ModelSpec, ModelSpec, ModelSpec]:
        """Three small architectures, unlike each other."""
        if self.rehearsal:
            wide = replace(TOY, args=(("depth", 1), ("embed_dim", 24), ("num_heads", 2), ("patch_size", 4)))
            return TOY, wide, replace(TOY, args=(*TOY.args[:3], ("patch_size", 8)))
        narrow = ModelSpec("micro", (("embed_dim", 48), ("num_heads", 2)))
        return ModelSpec("micro"), narrow, ModelSpec("tiny")

    def stage(self, number: int = 0, *, dtype: str = "float32", **changes: Any) -> StageSpec:
        """A stage of one of the three small models, by its number, without a teacher; `changes` are those of its
        training."""
        training = Training(**{"epochs": 3, "batch": 32, "drop_path": 0.1, "label_smoothing": 0.1, **changes})
        return StageSpec((40,), self.models[number], training, numeric=Numeric(dtype))

    def taught(self, number: int = 0, **changes: Any) -> StageSpec:
        """The stage after it, distilled from it."""
        first = self.stage(number, **changes)
        return replace(first, magnifications=(100,), distillation=Distillation(3.0, 0.7), parent=first.key)

    @property
    def timed(self) -> StageSpec:
        """The stage that is timed: a ViT-S/16 at 224 px, on the images of all magnifications."""
        model = ModelSpec("small", image_size=224) if not self.rehearsal else TOY
        training = Training(epochs=self.sizes.epochs, batch=self.sizes.batch)
        return StageSpec(MAGNIFICATIONS, model, training, numeric=self.numeric)

    def train(self, spec: StageSpec, **more: Any) -> StageResult:
        """Train a stage of the small set in this process."""
        result = train_stage(spec, self.small, parent_of(spec), device=self.device, **more)
        assert result is not None
        return result

    # -- processes of their own ------------------------------------------------------------------------------------

    def start(self, job: str, **given: Any) -> "Job":
        """Start a function of `tests.gpu.jobs` in a process of its own; `data` is the small set unless given."""
        given = {"data": str(self.small.prepared.path), "device": str(self.device), **given}
        return Job(job, given, self)

    def apart(self, job: str, **given: Any) -> dict[str, Any]:
        """What a function of `tests.gpu.jobs` answers in a process of its own."""
        return self.start(job, **given).answer()


class Job:
    """A process that runs one function of `tests.gpu.jobs`."""

    count = 0

    def __init__(self, job: str, given: dict[str, Any], setup: Setup) -> None:
        Job.count += 1
        self.name, self.setup, self.file = job, setup, setup.folder / f"job-{Job.count}.json"
        self.file.write_text(json.dumps(given))
        self.log = self.file.with_suffix(".log")
        command = [sys.executable, "-m", "tests.gpu.jobs", job, str(self.file)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(self.file.with_suffix("")),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def answer(self) -> dict[str, Any]:
        """Wait for the end; raises `AssertionError` with the last lines of the log where it was not a good one."""
        out = ended(self.process, self.setup, self.name, self.log)
        assert self.process.returncode == 0, (
            f"a process ({self.name}) ended with {self.process.returncode}: {last_lines(self.log)}"
        )
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def ended(process: subprocess.Popen[str], setup: Setup, name: str, log: Path, patience: float = PATIENCE) -> str:
    """Wait for a process; its stdout. Raises `AssertionError`, with the end of its log, where it hangs for `patience`
    seconds, in a rehearsal for four times as many, and `Skipped` where the time is over and was less than `PATIENCE`.
    """
    busy = 4 if setup.rehearsal else 1
    try:
        return process.communicate(timeout=max(min(patience * busy, setup.left), 1.0))[0]
    except subprocess.TimeoutExpired as error:
        process.terminate()  # Ray's driver takes its processes with it
        try:
            process.communicate(timeout=10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if error.timeout < PATIENCE * busy:
            raise Skipped("no time was left to end it") from None
        told = last_lines(log)
        raise AssertionError(f"a process ({name}) did not end within {error.timeout:.0f} s: {told}") from None


def last_lines(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").splitlines()[-3:])


def environment(cache: Path) -> dict[str, str]:
    """Variables of a process that runs this repository's code and finds nothing compiled but in the folder `cache`."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    # torch sets the second one of this process itself, which a child would inherit
    return variables | {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}


def opened(path: Path) -> StageData:
    """A prepared set as stages see it."""
    from kdtvit_ray.data.prepared import open_prepared

    return StageData(open_prepared(path), DataSpec(folds=3, validation=0.3))


def parent_of(spec: StageSpec) -> Parent | None:
    """A parent that was never trained, the same in every process, for a stage that has one."""
    if spec.parent is None:
        return None
    first = replace(spec, magnifications=(40,), distillation=None, parent=None, warm=False)
    assert first.key == spec.parent
    return Parent(first, build(first.model, 7).state_dict())
