"""Features for a linear probe: what a frozen model yields before its head, computed once for each image and view.

Where the head alone is trained (`trainable_blocks = 0`), all that lies before it is a fixed function of the image. It
is computed in canonical blocks and stored (`learning.outputs`), so that an epoch costs the head alone. That is the only
way in which a probe is trained, so its numbers do not depend on what was stored.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.models import content_digest
from kdtvit_ray.learning.optimise import head_of
from kdtvit_ray.learning.outputs import FrozenOutputs, StoredOutputs
from kdtvit_ray.learning.team import ALONE, Team
from kdtvit_ray.recipe import ModelSpec, StageSpec, Training


class Features(FrozenOutputs):
    """Features (N, D) of a stage's images before the head of its student, of which all but the head is frozen.

    The student is used as it is, not copied. Stages share features where the frozen weights are equal, whatever the
    head: they are known by their content.
    """

    name = "features"

    def __init__(
        self,
        student: nn.Module,
        stage: StageSpec,
        data: StageData,
        outputs: StoredOutputs,
        device: torch.device,
        team: Team = ALONE,
    ) -> None:
        heads = set(head_of(student))
        state = {name: value.cpu() for name, value in student.state_dict().items() if name not in heads}
        before_the_head = replace(stage.model, head="", subtypes=0, weights="", digest="")
        content: Hashable = before_the_head, content_digest(state)
        pixels = data.pixels(stage.model.image_size, stage.training.crop)
        width = classifier(student).in_features
        super().__init__(student.eval, content, width, pixels, stage, data, outputs, device, team)

    @staticmethod
    def run(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return partial(features, model)


def features(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a timm model yields (B, D) before its classifier, for inputs (B, 3, S, S)."""
    timms: Any = model
    found: Tensor = timms.forward_head(timms.forward_features(inputs), pre_logits=True)
    return found


def classifier(model: nn.Module) -> nn.Linear:
    """The last layer of a model that `check_features` took."""
    found = model.get_submodule(head_of(model)[0].rpartition(".")[0])
    assert isinstance(found, nn.Linear)
    return found


@torch.no_grad()
def check_features(model: nn.Module, spec: ModelSpec, training: Training) -> None:
    """Raise a `UserError` for a linear probe of a model that is not a linear layer on its features."""
    if training.trainable_blocks != 0:
        return
    was_training = model.training
    model.eval()
    # an image that is not the same everywhere, so that another pooling would give another result
    device = next(model.parameters()).device
    image = torch.linspace(-1, 1, 3 * spec.image_size**2, device=device).view(1, 3, *(spec.image_size,) * 2)
    try:
        fits = torch.allclose(classifier(model)(features(model, image)), model(image), rtol=1e-3, atol=1e-5)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError):
        fits = False  # it has no such methods, or they yield something else
    model.train(was_training)
    if not fits:
        raise UserError(
            f"trainable_blocks is 0, but the head of model '{spec.name}' is not one linear layer on features that the "
            "model tells; allowed: trainable_blocks of 1 or more, or another model"
        )
