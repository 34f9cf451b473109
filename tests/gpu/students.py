"""Several small students on one GPU: one after another, as fractional groups, and fused into one (`torch.func`).

All are bare training steps without a teacher, their batch on the device, recorded on a GPU, uncompiled: a stage of a
student so small does not repay compiling.
"""

import copy
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.numeric import autocast, cap_memory, numeric_mode
from kdtvit_ray.learning.optimise import adamw
from kdtvit_ray.learning.recorded import Given, steps_on
from kdtvit_ray.recipe import StageSpec
from tests.gpu.figures import ROUNDS, Step, step_seconds, wait
from tests.gpu.jobs import wait_for_others
from tests.gpu.outcomes import Measured
from tests.gpu.setup import Setup, opened

STUDENTS = 4
STEPS = 50


class Fused:
    """Students of one architecture, each with weights of its own (seeds 0, 1, ...), trained in one step: parameters and
    gradients (K, ...), one vectorised forward pass, one optimiser. Each student's gradients are clipped by themselves.
    """

    def __init__(self, step: Step, count: int = STUDENTS) -> None:
        self.step, spec = step, step.spec
        models = [build(spec.model, seed).to(step.device) for seed in range(count)]
        self.parameters, self._buffers = stack_module_state(models)
        self._bare = copy.deepcopy(models[0]).to("meta")
        # on an H100 the fast kernels of attention do not bear a dimension more ("LSE is not correctly aligned"), and
        # torch's plain one does not bear autocast under `vmap` ("expected input and grad types to match")
        for module in self._bare.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        names = {each: name for name, each in models[0].named_parameters()}
        groups = adamw(models[0], spec.training).param_groups
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [self.parameters[names[each]] for each in group["params"]],
                    "weight_decay": group["weight_decay"],
                }
                for group in groups
            ],
            lr=spec.training.lr,
            fused=True,
            capturable=step.device.type == "cuda",
        )
        self._run = steps_on(self.launched, step.device)

    def logits(self, inputs: Tensor) -> Tensor:
        """Of all students (K, B, C) for a batch."""

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
            found: Tensor = functional_call(self._bare, (parameters, buffers), (inputs,))
            return found

        with autocast(self.step.spec.numeric, self.step.device):
            found: Tensor = vmap(one, in_dims=(0, 0, None))(self.parameters, self._buffers, inputs)
        return found.float()

    def __call__(self) -> Tensor:
        """Run one step; the losses (K,) before it."""
        return self._run({"inputs": self.step.inputs}, len(self.step.labels))

    def launched(self, given: Given, batch: int) -> Tensor:
        """Run one step, kernel by kernel."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.logits(given["inputs"])
        labels = self.step.labels.expand(len(logits), -1)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
        losses.sum().backward()
        gradients = [each.grad for each in self.parameters.values() if each.grad is not None]
        norms = torch.stack([each.flatten(1).norm(dim=1) for each in gradients]).norm(dim=0)
        factors = (self.step.spec.training.clip_grad / (norms + 1e-6)).clamp(max=1.0)
        for each in gradients:
            each.mul_(factors.view(-1, *[1] * (each.ndim - 1)))
        self.optimizer.step()
        return losses.detach()


def spec_of(setup: Setup) -> StageSpec:
    return StageSpec((40, 100, 200, 400), setup.models[0], setup.stage().training, numeric=setup.numeric)


@cache
def alone(setup: Setup) -> float:
    """Images/s of students that are trained one after another."""
    spec = spec_of(setup)
    with numeric_mode(spec.numeric, setup.device):
        step = Step(spec, setup.small, setup.device)
        return len(step.labels) / step_seconds(step, STEPS, setup.device)


def fused(setup: Setup) -> Measured:
    """Images/s of four fused students, over those of students one after another."""
    spec, theirs = spec_of(setup), alone(setup)
    with numeric_mode(spec.numeric, setup.device):
        step = Step(spec, setup.small, setup.device)
        ours = STUDENTS * len(step.labels) / step_seconds(Fused(step), STEPS, setup.device)
    return Measured(ours / theirs, {"fused images/s": ours, "one after another images/s": theirs})


def fractional(setup: Setup) -> Measured:
    """Images/s of four processes with a quarter of the GPU each, over those of students one after another."""
    meeting = setup.folder / "students"
    meeting.mkdir()
    spec, theirs = spec_of(setup), alone(setup)
    given = {"spec": spec.to_dict(), "meeting": str(meeting), "processes": STUDENTS}
    jobs = [setup.start("student", share=1 / STUDENTS, me=str(number), **given) for number in range(STUDENTS)]
    try:
        answers = [each.answer() for each in jobs]
    finally:
        for each in jobs:
            each.end()
    seconds = max(each["ended"] for each in answers) - min(each["started"] for each in answers)
    ours = sum(each["images"] for each in answers) / seconds
    return Measured(ours / theirs, {"fractional images/s": ours, "one after another images/s": theirs})


def beside_others(given: dict[str, Any]) -> dict[str, Any]:
    """One of the processes: its images, and when it began and ended, unix seconds."""
    spec, device = StageSpec.from_dict(given["spec"]), torch.device(given["device"])
    cap_memory(given["share"], device)
    with numeric_mode(spec.numeric, device):
        step = Step(spec, opened(Path(given["data"])), device)
        for _ in range(5):
            step()
        wait(device)
        wait_for_others(given)
        started = time.time()
        for _ in range(ROUNDS * STEPS):
            step()
        wait(device)
    return {"started": started, "ended": time.time(), "images": ROUNDS * STEPS * len(step.labels)}
