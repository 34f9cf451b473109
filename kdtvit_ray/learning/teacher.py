"""The frozen teacher, whose outputs are stored (`learning.outputs`)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.learning.outputs import FrozenOutputs, StoredOutputs
from kdtvit_ray.learning.team import ALONE, Team
from kdtvit_ray.learning.warm import WarmModels
from kdtvit_ray.recipe import StageSpec


@dataclass(frozen=True)
class Parent:
    """The stage before: its spec and its weights, tensors by name on the CPU."""

    spec: StageSpec
    state: Mapping[str, Tensor]


def frozen(parent: Parent, device: torch.device, models: WarmModels | None = None) -> nn.Module:
    """The parent's model in eval mode, without gradients, in memory of its own."""
    lender = models or WarmModels()
    return lender.lend(parent.spec.model, parent.spec.seed, device, parent.state).requires_grad_(False).eval()


class Teacher(FrozenOutputs):
    """A stage's teacher. Its model is made when outputs are missing, not before.

    Its logits are the model's own, never corrected for class weights (`losses.logit_offsets`).
    """

    name = "teacher"

    def __init__(
        self,
        parent: Parent,
        stage: StageSpec,
        data: StageData,
        outputs: StoredOutputs,
        device: torch.device,
        team: Team = ALONE,
        models: WarmModels | None = None,
    ) -> None:
        pixels = data.pixels(parent.spec.model.image_size, stage.training.crop)
        classes = stage.model.classes
        super().__init__(
            lambda: frozen(parent, device, models), parent.spec.key, classes, pixels, stage, data, outputs, device, team
        )
