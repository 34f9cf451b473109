"""A second try, on less memory of the GPU, for a stage that has run out of it."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from kdtvit_ray.errors import OutOfMemory
from kdtvit_ray.learning.device_pixels import COPIES
from kdtvit_ray.learning.evaluate import batch_of
from kdtvit_ray.learning.numeric import device_name, empty_caches
from kdtvit_ray.learning.recorded import no_recordings
from kdtvit_ray.learning.team import ALONE, Team
from kdtvit_ray.recipe import StageSpec

_Asked = ParamSpec("_Asked")
_Found = TypeVar("_Found")

log = logging.getLogger(__name__)


def lacking(spec: StageSpec, device: torch.device, place: str, evaluated: bool) -> OutOfMemory:
    """What tells that memory was lacking at this place of a stage, and what needs less; when the stage is `evaluated`,
    neither its batch nor its workers make a difference."""
    model = spec.model
    batch = batch_of(device, model.image_size) if evaluated else spec.training.batch
    smaller = "image_size or model" if evaluated else "batch, image_size or model, or more workers"
    return OutOfMemory(
        f"Out of memory on {device_name(device)} {place} with batch {batch} of {model.name} at image_size "
        f"{model.image_size}; use a smaller {smaller}"
    )


def else_on_less(train: Callable[_Asked, _Found]) -> Callable[_Asked, _Found]:
    """Let `train`, which may raise `OutOfMemory`, try once more without pixels on the GPU and without recorded steps.
    What it returns does not depend on them."""

    @wraps(train)
    def trained(*arguments: _Asked.args, **named: _Asked.kwargs) -> _Found:
        try:
            return train(*arguments, **named)
        except OutOfMemory as error:
            team = named.get("team", ALONE)
            assert isinstance(team, Team)
            # others of a team wait for this one in a collective call
            if not (team.alone and (COPIES.clear() or torch.cuda.is_initialized())):
                raise
            log.warning("%s. Now once more, with the pixels in the host's memory and no recorded steps.", error)
        empty_caches(after_error=True)
        with COPIES.closed(), no_recordings():
            return train(*arguments, **named)

    return trained
