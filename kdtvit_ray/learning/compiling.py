"""Compiled models: where it pays, and so that the code depends on the stage alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

COMPILE_CAPABILITY = (8, 0)
COMPILE_WORK = 2e11
"""Parameters times images of a stage from which its model is compiled. The code is kept for a worker's later stages, so
a study repays it: a ViT-S/16 at 224 px takes 11 s to compile on an H100 and saves 0.06 ms an image, so that the 9,200
images of a stage at this limit repay it after 19 stages."""
COMPILED_STEP = 8
"""A compiled model is run on batches of a multiple of so many images. Folds and magnifications of a study have many
sizes of batches, since those of an epoch are equal but for one image; so they share one code or two."""
COMPILED_SHAPES = 64
"""Most shapes that a model is compiled for in one stage. A stage has two batch sizes; more than this is a mistake."""
GRAPHS_KEPT = 256
"""Graphs that are kept for the stages to come, of all models together."""
BACKEND = "inductor"

_Form = tuple[tuple[Any, ...], ...]


def repaid(model: nn.Module, device: torch.device, images: int) -> bool:
    """Whether compiling a model for `images` training images costs less than it saves."""
    work = sum(each.numel() for each in model.parameters()) * images
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < COMPILE_CAPABILITY or work < COMPILE_WORK:
        return False
    return find_spec("triton") is not None


def in_multiples(images: np.ndarray, multiple: int) -> np.ndarray:
    """The images of a batch (B,) as a model sees them whose batches are multiples of a number: the first ones again at
    the end, whose outputs count for nothing. A batch that would grow by a quarter is left as it is."""
    size = -(-len(images) // multiple) * multiple
    return np.resize(images, size) if size < 1.25 * len(images) else images


@dataclass
class _Compiled:
    """A compiled function that runs layers of one form, and how many graphs it has."""

    run: Callable[..., Any]
    graphs: int = 0


class CompiledModels:
    """Compiled models of one process, whose code a later stage with the same model finds again.

    The layers that a model repeats are compiled, once for all of them: that takes a fraction of the time that the whole
    model takes, and what lies between them is little.

    Left to itself, torch compiles a second shape with sizes left open, remembers that for other models, runs what was
    compiled for one model with another, and after eight shapes leaves the model uncompiled without a word: four ways
    to other bits. So sizes are never left open, kernels are not chosen by timing them, too many shapes are an error,
    and each model has graphs of its own: torch keeps what it compiles by function, and each model has its functions,
    one for each form of layer. What is trained is part of the form, since torch 2.11 does not see that a parameter is
    frozen no more, and computes no gradient for it. A function that torch compiles in pieces, whose inner pieces are
    other models' too, is compiled for each stage anew.
    """

    def __init__(self) -> None:
        self._kept: dict[nn.Module, dict[_Form, _Compiled]] = {}

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[int]:
        """The model is compiled meanwhile, for one stage, and best run on a multiple of so many images. Raises torch's
        `FailOnRecompileLimitHit` for more than `COMPILED_SHAPES` shapes."""
        import torch._dynamo  # a second of import that only those pay who compile
        import torch._inductor.config

        dynamo: Any = torch._dynamo
        inductor: Any = torch._inductor.config
        if sum(each.graphs for forms in self._kept.values() for each in forms.values()) >= GRAPHS_KEPT:
            self.clear()
        forms, layers = self._kept.setdefault(model, {}), repeated(model)
        for layer in layers:
            form = _form(layer)
            if form not in forms:
                forms[form] = _compile()
            layer.forward = partial(forms[form].run, layer)
        limits = {
            "recompile_limit": COMPILED_SHAPES + max(each.graphs for each in forms.values()),
            "accumulated_recompile_limit": COMPILED_SHAPES + GRAPHS_KEPT,
            "fail_on_recompile_limit_hit": True,
        }
        kept, breaks = False, _graph_breaks()
        try:
            with dynamo.config.patch(automatic_dynamic_shapes=False, **limits), inductor.patch(deterministic=True):
                yield COMPILED_STEP
            kept = _graph_breaks() == breaks
        finally:
            for layer in layers:
                del layer.forward
            if not kept:  # as after a stage that failed, whose model is not used again
                self.clear()

    def forget(self, model: nn.Module) -> None:
        """The model is used no more. Torch can only give up all graphs together."""
        if model in self._kept:
            self.clear()

    def clear(self) -> None:
        """Give up all graphs, and the memory that their code holds."""
        self._kept.clear()
        dynamo: Any = sys.modules.get("torch._dynamo")
        if dynamo:  # else nothing was ever compiled here
            dynamo.reset()


def repeated(model: nn.Module) -> list[nn.Module]:
    """The layers that a model repeats: those in its outermost lists of two and more of one class; the model itself
    where it has none."""

    def inside(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            layers = list(child.children()) if isinstance(child, nn.Sequential | nn.ModuleList) else []
            if len(layers) > 1 and len({type(each) for each in layers}) == 1:
                yield from layers
            else:
                yield from inside(child)

    return list(inside(model)) or [model]


def _compile() -> _Compiled:
    """A function that runs a layer, compiled, with a code object of its own, by which torch keeps what it compiles."""
    from torch._dynamo import lookup_backend

    backend: Callable[..., Any] = lookup_backend(BACKEND)

    def counted(graph: Any, inputs: Any) -> Any:
        found.graphs += 1
        return backend(graph, inputs)

    def run(layer: nn.Module, *inputs: Any, **named: Any) -> Any:
        return type(layer).forward(layer, *inputs, **named)

    found = _Compiled(FunctionType(run.__code__.replace(), run.__globals__))
    found.run = torch.compile(found.run, dynamic=False, backend=counted)
    return found


def _form(layer: nn.Module) -> _Form:
    """What of a layer may differ between those of a model, and between its stages: its parts, the shapes of its
    parameters, and which of them are trained."""
    parts = ((name, type(each)) for name, each in layer.named_modules())
    return (*parts, *((name, each.shape, each.requires_grad) for name, each in layer.named_parameters()))


def _graph_breaks() -> int:
    """How often torch could not compile a function whole, in this process."""
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())
