"""The figures of one stage: its training loop, its step, its teacher, its set-up. Each is a ratio to a named peer."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.learning import compiling, losses
from kdtvit_ray.learning.compiling import COMPILED_STEP, in_multiples, repaid
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.numeric import autocast, numeric_mode
from kdtvit_ray.learning.optimise import adamw, rates_of, set_rates
from kdtvit_ray.learning.outcome import Progress
from kdtvit_ray.learning.recorded import Given, no_recordings, steps_on
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.stage_images import Shown
from kdtvit_ray.learning.warm import WarmModels
from kdtvit_ray.recipe import Distillation, ModelSpec, StageSpec
from tests.gpu.machine import peak_tflops
from tests.gpu.outcomes import Measured, Skipped
from tests.gpu.setup import Setup, opened

ROUNDS = 3
"""A step is timed so many times; the median counts."""


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_seconds(step: Callable[[], None], steps: int, device: torch.device) -> float:
    """Seconds of one step, after steps that compile and warm up."""
    for _ in range(3):
        step()
    found = []
    for _ in range(ROUNDS):
        wait(device)
        started = time.perf_counter()
        for _ in range(steps):
            step()
        wait(device)
        found.append((time.perf_counter() - started) / steps)
    return median(found)


class Step:
    """A stage's training step with its first batch on the device, as the stage itself would run it: compiled where that
    is repaid, and recorded on a GPU."""

    def __init__(self, spec: StageSpec, data: StageData, device: torch.device) -> None:
        self.spec, self.device = spec, device
        shown = Shown(spec, data)
        batch = shown.batches(0)[0]
        pixels = data.pixels(spec.model.image_size, spec.training.crop)
        pixels.make(shown.rows)
        self.model = build(spec.model, spec.seed).to(device).train()
        self.images = shown.per_epoch * spec.training.epochs
        seen = in_multiples(batch, COMPILED_STEP if self.is_compiled else 1)
        self.inputs: Tensor = Feed(pixels, self.model, len(seen), device)(shown.rows[seen]).clone()
        self.labels = torch.from_numpy(data.labels(spec.model.head)[shown.rows[batch]]).to(device)
        weights = torch.ones(spec.model.classes, device=device)
        self.objective = losses.Objective(spec.distillation, weights, spec.training.label_smoothing)
        self.optimizer = adamw(self.model, spec.training)
        self.given = {
            "inputs": self.inputs,
            "labels": self.labels,
            "rates": rates_of(self.optimizer, spec.training.lr, device),
        }
        self._run = steps_on(self.launched, device)

    @property
    def is_compiled(self) -> bool:
        return repaid(self.model, self.device, self.images)

    def compiled(self) -> AbstractContextManager[int]:
        """The model is compiled meanwhile, where the stage would do so."""
        return WarmModels().compiled(self.model, self.device, self.images)

    def __call__(self, theirs: Tensor | None = None) -> None:
        """Run one step; `theirs` (B, C) are the teacher's outputs."""
        self._run(self.given if theirs is None else {**self.given, "targets": theirs}, len(self.labels))

    def launched(self, given: Given, batch: int) -> Tensor:
        """Run one step, kernel by kernel."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.spec.numeric, self.device):
            logits = self.model(given["inputs"])[: len(given["labels"])]
        loss = self.objective(logits.float(), given.get("targets"), given["labels"], batch)[0]
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.training.clip_grad, foreach=True)
        set_rates(self.optimizer, given["rates"])
        self.optimizer.step()
        return loss.detach()


@dataclass(frozen=True)
class Pace:
    images_per_second: float
    batch: int
    compiled: bool


@cache
def bare_step(setup: Setup) -> Pace:
    """The training step alone: the same batch each time, on the device and normalised; nothing is gathered."""
    spec, device = setup.timed, setup.device
    with numeric_mode(spec.numeric, device):
        step = Step(spec, setup.large, device)
        with step.compiled():
            seconds = step_seconds(step, setup.sizes.steps, device)
    return Pace(len(step.labels) / seconds, len(step.labels), step.is_compiled)


def recorded(setup: Setup) -> Measured:
    """A step of a small student launched kernel by kernel over the same recorded; and of the stage that is timed."""
    small = StageSpec(setup.timed.magnifications, setup.models[0], setup.stage().training, numeric=setup.numeric)
    parts = {}
    for name, spec, data in ((small.model.name, small, setup.small), ("timed", setup.timed, setup.large)):
        for how, recording in (("launched", no_recordings), ("recorded", nullcontext)):
            with numeric_mode(spec.numeric, setup.device), recording():
                step = Step(spec, data, setup.device)
                parts[f"{name} {how} ms"] = 1e3 * step_seconds(step, setup.sizes.steps, setup.device)
    value = parts[f"{small.model.name} launched ms"] / parts[f"{small.model.name} recorded ms"]
    return Measured(value, parts, "not compiled")


def compiled(setup: Setup) -> Measured:
    """A recorded step of the stage that is timed over the same compiled, and the images that repay compiling."""
    spec, parts = setup.timed, {}
    for how, work in (("plain", math.inf), ("compiled", 0.0)):
        with numeric_mode(spec.numeric, setup.device), patch.object(compiling, "COMPILE_WORK", work):
            step = Step(spec, setup.large, setup.device)
            with step.compiled():
                started = time.perf_counter()
                step()
                wait(setup.device)
                parts[f"{how} first step s"] = time.perf_counter() - started
                parts[f"{how} ms"] = 1e3 * step_seconds(step, setup.sizes.steps, setup.device)
    gained = (parts["plain ms"] - parts["compiled ms"]) / 1e3 / len(step.labels)
    lost = parts["compiled first step s"] - parts["plain first step s"]
    note = f"compiling is repaid after {lost / gained:.0f} images" if gained > 0 else "compiling is never repaid"
    return Measured(parts["plain ms"] / parts["compiled ms"], parts, note)


def epoch_ends(spec: StageSpec, data: StageData, models: WarmModels, device: str | torch.device) -> list[float]:
    """When a stage began, and when each of its epochs ended, in seconds of one clock."""
    ends = [time.perf_counter()]

    def told(progress: Progress) -> bool:
        ends.append(time.perf_counter())
        return True

    train_stage(spec, data, None, device=device, on_epoch=told, models=models)
    return ends


def throughput(setup: Setup) -> Measured:
    """Images/s of a stage's training loop over those of the bare step; the first epoch, which compiles, is left out."""
    spec, bare = setup.timed, bare_step(setup)
    ends = epoch_ends(spec, setup.large, WarmModels(), setup.device)
    images = Shown(spec, setup.large).per_epoch * (spec.training.epochs - 1)
    ours = images / (ends[-1] - ends[1])
    parts = {"stage images/s": ours, "bare step images/s": bare.images_per_second, "batch": bare.batch}
    return Measured(ours / bare.images_per_second, parts, "compiled" if bare.compiled else "not compiled")


def training_flops(spec: ModelSpec) -> int:
    """Floating point operations of the forward and the backward pass for one image, as torch counts them."""
    model = build(spec, 0).to("meta")
    image = torch.empty(1, 3, spec.image_size, spec.image_size, device="meta")
    # this kernel of attention is made of products that the counter knows on every device
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image).sum().backward()
    return counter.get_total_flops()


def roofline(setup: Setup) -> Measured:
    """Model FLOPs of the bare step over the peak of the GPU."""
    spec = setup.timed
    flops = training_flops(spec.model)
    setup.needs_gpu()
    if spec.numeric.dtype != "bfloat16":
        raise Skipped("this GPU has no bfloat16")
    reached = flops * bare_step(setup).images_per_second / 1e12
    name = torch.cuda.get_device_name(setup.device)
    peak = peak_tflops(name)
    if peak is None:
        raise Skipped(f"the bfloat16 peak of {name} is unknown; the step does {reached:.1f} TFLOP/s")
    return Measured(reached / peak, {"TFLOP/s": reached, "peak TFLOP/s": peak, "GFLOP an image": flops / 1e9})


def teacher(setup: Setup) -> Measured:
    """A distilled step with the teacher's forward pass in it over the same with stored outputs."""
    first, device = setup.timed, setup.device
    spec = replace(first, distillation=Distillation(4.0, 0.5), parent=first.key)
    seconds = {}
    with numeric_mode(spec.numeric, device):
        step = Step(spec, setup.large, device)
        master = build(first.model, 7).requires_grad_(False).eval().to(device)
        stored = torch.randn(10 * len(step.labels), spec.model.classes, device=device)
        chosen = torch.arange(len(step.labels), device=device)

        @torch.no_grad()
        def forward(given: Given, batch: int) -> Tensor:
            with autocast(spec.numeric, device):
                found: Tensor = master(given["inputs"])
            return found[:batch].float()

        asked = steps_on(forward, device)  # the peer's teacher is recorded as well, and compiled where the student is
        with step.compiled(), WarmModels().compiled(master, device, step.images):
            seconds["stored"] = step_seconds(lambda: step(stored[chosen]), setup.sizes.steps, device)
            seconds["live"] = step_seconds(
                lambda: step(asked({"inputs": step.inputs}, len(chosen))), setup.sizes.steps, device
            )
    parts = {f"{name} ms a step": 1e3 * each for name, each in seconds.items()}
    return Measured(seconds["live"] / seconds["stored"], parts)


def set_up(setup: Setup) -> Measured:
    """Seconds that a stage takes before it trains at its pace: the first of its kind over a warm one."""
    spec = setup.timed
    found = setup.apart("set_ups", spec=spec.to_dict(), data=str(setup.large.prepared.path))
    parts = {f"{name} s": each for name, each in found.items()}
    note = "cold: a process's first; anew: model built again, compiled code from torch's cache on disk; warm: kept"
    return Measured(found["cold"] / found["warm"], parts, note)


def set_up_seconds(given: dict[str, Any]) -> dict[str, float]:
    """In a fresh process: what three equal stages take from their start to the end of the first epoch, less what an
    epoch takes when all is there."""
    spec, data = StageSpec.from_dict(given["spec"]), opened(Path(given["data"]))
    found, kept = {}, WarmModels()
    for name, models in (("cold", WarmModels()), ("anew", kept), ("warm", kept)):
        ends = epoch_ends(spec, data, models, given["device"])
        epochs = np.diff(ends)
        found[name] = max(float(epochs[0] - np.median(epochs[1:])), 1e-3)
    return found
