"""Models that a worker keeps between stages, so that a stage copies weights into a module instead of building one.

A module that was used before computes the same bits as a fresh one: all that a stage changes in it is put back, its
weights are overwritten, and a module that does not look as it was built, or whose stage has failed, is not used again.
"""

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kdtvit_ray.learning.compiling import CompiledModels, repaid
from kdtvit_ray.learning.models import build
from kdtvit_ray.recipe import ModelSpec

IDLE_BYTES = 1 << 30
"""Bytes of the weights of modules that wait for a stage, on the device that trains."""
INITIAL_BYTES = 1 << 29
"""Bytes of initial weights that are kept in memory. Those that were used last are kept, however large."""


@dataclass
class _Module:
    """What is known of a module, which it does not hold: its architecture and device, how it looked when built, and the
    bytes of its weights."""

    architecture: ModelSpec
    device: torch.device
    form: tuple[tuple[str, type], ...] = field(repr=False)
    nbytes: int


class WarmModels:
    """Modules of one process. Not thread-safe."""

    def __init__(self) -> None:
        self._idle: OrderedDict[nn.Module, _Module] = OrderedDict()
        self._lent: WeakKeyDictionary[nn.Module, _Module] = WeakKeyDictionary()
        self._initial: OrderedDict[tuple[ModelSpec, int], dict[str, Tensor]] = OrderedDict()
        self._compiled = CompiledModels()

    def lend(
        self, spec: ModelSpec, seed: int, device: torch.device, state: Mapping[str, Tensor] | None = None
    ) -> nn.Module:
        """A model on the device, in train mode, nothing frozen, with the weights `state`, or with those that `build`
        gives it. Raises what `build` raises."""
        architecture = replace(spec, weights="", digest="")
        model = next(
            (each for each, of in self._idle.items() if (of.architecture, of.device) == (architecture, device)), None
        )
        weights = state if state is not None else self._initial.get((spec, seed))
        if model is None or weights is None:
            model = build(spec, seed, initial=state is None)
            if state is None:
                self._remember(spec, seed, model)
            else:
                model.load_state_dict(dict(state))
            self._lent[model] = _Module(architecture, device, _form(model), _bytes(model.state_dict()))
            return model.to(device)
        if state is None:
            self._initial.move_to_end((spec, seed))
        self._lent[model] = self._idle.pop(model)
        model.load_state_dict(dict(weights))
        return model

    def take_back(self, model: nn.Module) -> None:
        """A stage is done with a model that was lent to it. It has undone what it changed, save for frozen weights,
        gradients and the mode."""
        known = self._lent.get(model)
        if known is None or _form(model) != known.form:
            self.forget(model)
            return
        del self._lent[model]
        model.train().requires_grad_(True).zero_grad(set_to_none=True)
        self._idle[model] = known
        while sum(each.nbytes for each in self._idle.values()) > IDLE_BYTES:
            self._compiled.forget(self._idle.popitem(last=False)[0])

    def forget(self, model: nn.Module) -> None:
        """A stage has failed on a model that was lent to it."""
        self._lent.pop(model, None)
        self._compiled.forget(model)

    def clear(self) -> None:
        """Keep no module and no compiled code any more, to have their memory back."""
        self._idle.clear()
        self._compiled.clear()

    def compiled(self, model: nn.Module, device: torch.device, images: int) -> AbstractContextManager[int]:
        """The model as one stage runs it: compiled meanwhile, where the device gains by it and `images` training
        images repay it. Gives the number of which its batches are to be multiples.

        The decision depends on the stage and the kind of device alone, so equal stages are compiled alike."""
        return self._compiled.of(model) if repaid(model, device, images) else nullcontext(1)

    def _remember(self, spec: ModelSpec, seed: int, model: nn.Module) -> None:
        self._initial[spec, seed] = {name: value.clone() for name, value in model.state_dict().items()}
        while len(self._initial) > 1 and sum(map(_bytes, self._initial.values())) > INITIAL_BYTES:
            self._initial.popitem(last=False)


def _bytes(state: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in state.values())


def _form(model: nn.Module) -> tuple[tuple[str, type], ...]:
    return tuple((name, type(each)) for name, each in model.named_modules())
