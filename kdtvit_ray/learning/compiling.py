"""Compiled models: where it pays, and so that the code depends on the stage alone."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

COMPILE_CAPABILITY = (8, 0)
COMPILE_WORK = 1e11
"""Parameters times images from which compiling a model (tens of seconds) is repaid within one stage."""
COMPILED_SHAPES = 64
"""Most shapes that a model is compiled for in one stage. A stage has two batch sizes; more than this is a mistake."""


def compiled(model: nn.Module, device: torch.device, images: int) -> AbstractContextManager[nn.Module]:
    """The model as one stage runs it: compiled where the device gains by it and `images` training images repay it.

    The decision depends on the stage and the kind of device alone, so equal stages are compiled alike.
    """
    return afresh(model) if repaid(model, device, images) else nullcontext(model)


def repaid(model: nn.Module, device: torch.device, images: int) -> bool:
    """Whether compiling a model for `images` training images costs less than it saves."""
    work = sum(each.numel() for each in model.parameters()) * images
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < COMPILE_CAPABILITY or work < COMPILE_WORK:
        return False
    return find_spec("triton") is not None


@contextmanager
def afresh(model: nn.Module, backend: str = "inductor") -> Iterator[nn.Module]:
    """`torch.compile` of a model for one stage: the same code whatever this process has compiled before.

    Left to itself, torch compiles a second shape with sizes left open, remembers that for other models, runs what was
    compiled for one model with another, and after eight shapes leaves the model uncompiled without a word: four ways
    to other bits. Kernels are not chosen by timing them either.
    """
    import torch._dynamo  # a second of import that only those pay who compile
    import torch._inductor.config

    dynamo: Any = torch._dynamo
    inductor: Any = torch._inductor.config
    shapes = {"recompile_limit": COMPILED_SHAPES, "fail_on_recompile_limit_hit": True}
    dynamo.reset()
    try:
        with dynamo.config.patch(automatic_dynamic_shapes=False, **shapes), inductor.patch(deterministic=True):
            yield torch.compile(model, dynamic=False, backend=backend)  # type: ignore[misc]
    finally:
        dynamo.reset()  # the compiled code holds memory of the device
