"""What only a forward pass tells of a model: whether it runs on the images, what it yields, whether it draws numbers.

`bind` asks once for each model, before anything starts, and a stage for itself.
"""

from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from kdtvit_ray.errors import UserError, first_line
from kdtvit_ray.learning.drop_path import DropPaths
from kdtvit_ray.learning.numeric import lacks_memory
from kdtvit_ray.recipe import ModelSpec, Training

IMAGES = 2

_passed: WeakKeyDictionary[nn.Module, set[tuple[bool, float]]] = WeakKeyDictionary()
"""The models that passed, each with the settings of training under which it did: the stages of a chain share a model,
and a large one takes a second on a CPU."""


def check_forward(model: nn.Module, spec: ModelSpec, training: Training) -> None:
    """Run a model once as it is trained. The model and the generators of random numbers stay as they were.

    Raises `UserError` for a model that fails on images of its size, or with dropped paths, that yields anything but
    logits (B, C), or that draws random numbers. On another device than the CPU, and where memory runs out, an error of
    the pass is raised as it is: a GPU fails for reasons that are not the model's.
    """
    trained = training.trainable_blocks != 0  # of a linear probe all that lies before the head is in eval mode
    settings = trained, training.drop_path
    if settings in _passed.setdefault(model, set()):
        return
    where = f"at image_size {spec.image_size} with arguments {dict(spec.args)}"
    was_training = model.training
    model.train(trained)
    try:
        logits, drew = _run(model, spec)
        if not isinstance(logits, Tensor) or logits.shape != (IMAGES, spec.classes):
            raise UserError(
                f"Model '{spec.name}' {where} yields {_described(logits)} for {IMAGES} images, which are no logits of "
                f"{spec.classes} classes; allowed: a model, and arguments, with one output a class"
            )
        if drew:
            raise UserError(
                f"Model '{spec.name}' {where} draws random numbers when it is trained, which cannot be reproduced on "
                "another number of workers or after an interruption; allowed: a model, and arguments, without dropout "
                "and random coordinates, and drop_path in the training settings"
            )
        if training.drop_path > 0:
            _run_with_dropped_paths(model, spec, training.drop_path)
    except UserError:
        raise
    except Exception as error:  # every model has kinds of its own
        if lacks_memory(error) or _device(model).type != "cpu":
            raise
        raise UserError(
            f"Model '{spec.name}' cannot be run {where}: {type(error).__name__}: {first_line(error)}; "
            "allowed: an image_size and arguments that fit the model"
        ) from error
    finally:
        model.train(was_training)
    _passed[model].add(settings)


def _run_with_dropped_paths(model: nn.Module, spec: ModelSpec, rate: float) -> None:
    paths = DropPaths(model, rate, seed=0)
    try:
        paths.set(paths.masks(0, np.arange(IMAGES), _device(model)))
        _run(model, spec)
    except AssertionError:
        raise UserError(
            f"drop_path is {rate:g}, but blocks of model '{spec.name}' run on parts of an image, of which no path can "
            "be dropped for the image as a whole; allowed: drop_path = 0, or another model"
        ) from None
    finally:
        paths.remove()


@torch.no_grad()
def _run(model: nn.Module, spec: ModelSpec) -> tuple[object, bool]:
    """What the model yields for a few images, and whether it drew random numbers for that."""
    device = _device(model)
    side = spec.image_size
    images = torch.linspace(-1, 1, IMAGES * 3 * side**2, device=device).view(IMAGES, 3, side, side)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        before = _generators(device)
        found = model(images)
        return found, not all(map(torch.equal, before, _generators(device)))


def _generators(device: torch.device) -> list[Tensor]:
    """The states of torch's generators that a model on this device draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _described(found: object) -> str:
    return f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
