"""Compiled models: where it pays, and so that the code depends on the stage alone."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

COMPILE_CAPABILITY = (8, 0)
COMPILE_WORK = 1e11
"""Parameters times images from which compiling a model (tens of seconds) is repaid within one stage."""
COMPILED_SHAPES = 64
"""Most shapes that a model is compiled for in one stage. A stage has two batch sizes; more than this is a mistake."""
GRAPHS_KEPT = 64
"""Graphs that are kept for the stages to come, of all models together."""
BACKEND = "inductor"


def repaid(model: nn.Module, device: torch.device, images: int) -> bool:
    """Whether compiling a model for `images` training images costs less than it saves."""
    work = sum(each.numel() for each in model.parameters()) * images
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < COMPILE_CAPABILITY or work < COMPILE_WORK:
        return False
    return find_spec("triton") is not None


@dataclass
class _Compiled:
    """A compiled model that leads to its own graphs only, and how many it has."""

    model: nn.Module
    graphs: int = 0


class CompiledModels:
    """Compiled models of one process, whose code a later stage with the same model finds again.

    Left to itself, torch compiles a second shape with sizes left open, remembers that for other models, runs what was
    compiled for one model with another, and after eight shapes leaves the model uncompiled without a word: four ways
    to other bits. So sizes are never left open, kernels are not chosen by timing them, each model has graphs of its
    own, and too many shapes are an error. A torch that cannot keep models apart (before `isolate_recompiles`) compiles
    for each stage anew.
    """

    def __init__(self) -> None:
        self._kept: dict[nn.Module, _Compiled] = {}

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[nn.Module]:
        """The compiled model, for one stage. Raises torch's `FailOnRecompileLimitHit` for more than `COMPILED_SHAPES`
        shapes."""
        import torch._dynamo  # a second of import that only those pay who compile
        import torch._inductor.config

        dynamo: Any = torch._dynamo
        inductor: Any = torch._inductor.config
        apart = "isolate_recompiles" in inspect.signature(torch.compile).parameters
        if not apart or sum(each.graphs for each in self._kept.values()) >= GRAPHS_KEPT:
            self.clear()
        if model not in self._kept:
            self._kept[model] = _compile(model, **({"isolate_recompiles": True} if apart else {}))
        found, kept = self._kept[model], False
        limits = {
            "recompile_limit": COMPILED_SHAPES + found.graphs,
            "accumulated_recompile_limit": COMPILED_SHAPES + GRAPHS_KEPT,
            "fail_on_recompile_limit_hit": True,
        }
        try:
            with dynamo.config.patch(automatic_dynamic_shapes=False, **limits), inductor.patch(deterministic=True):
                yield found.model
            kept = apart
        finally:
            if not kept:  # a model whose stage has failed is not used again
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


def _compile(model: nn.Module, **options: Any) -> _Compiled:
    from torch._dynamo import lookup_backend

    backend: Callable[..., Any] = lookup_backend(BACKEND)

    def counted(graph: Any, inputs: Any) -> Any:
        found.graphs += 1
        return backend(graph, inputs)

    found = _Compiled(model)
    found.model = torch.compile(model, dynamic=False, backend=counted, **options)  # type: ignore[assignment]
    return found
