"""Steps of several workers, each of which computes gradients over its share of the batch: they add these up, and each
moves its weights by the sum."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdtvit_ray.learning.recorded import Given, Step, steps_on
from kdtvit_ray.learning.team import Team


class SharedSteps:
    """The steps of one worker of a `team`: `backward` makes gradients of the `parameters` that are the worker's share
    of a sum, and `update` moves the weights by them; `buffers` are those of `RecordedSteps`.

    Both are recorded on a GPU where `recordable`; the sum between them is not, so all workers make the same calls,
    whatever each has recorded. The gradients travel as one tensor when all are there, for a ViT-S 88 MB.
    """

    def __init__(
        self,
        backward: Step,
        update: Step,
        parameters: Sequence[nn.Parameter],
        team: Team,
        device: torch.device,
        *,
        buffers: Sequence[Tensor],
        recordable: bool,
    ) -> None:
        self._team, self._gradients = team, _Gradients(backward, update, parameters)
        self._compute: Step = self._gradients.compute
        self._move: Step = self._gradients.move
        if recordable:
            self._compute, self._move = steps_on(self._compute, device, buffers), steps_on(self._move, device)

    def __call__(self, given: Given, batch: int) -> Tensor:
        """Run one step of a global batch of so many images; what `backward` answers."""
        found = self._compute(given, batch)
        self._team.add_up(self._gradients.flat)
        self._move({"rates": given["rates"]}, 0)
        return found


class _Gradients:
    """Gradients of `parameters` as one tensor `flat`, which lies in one place for the whole stage, so that a recording
    finds it there."""

    def __init__(self, backward: Step, update: Step, parameters: Sequence[nn.Parameter]) -> None:
        self._backward, self._update, self._parameters = backward, update, parameters
        self._moved: list[nn.Parameter] = []
        self.flat = torch.empty(0)

    def compute(self, given: Given, batch: int) -> Tensor:
        found = self._backward(given, batch)
        if not self._moved:
            self._moved = [each for each in self._parameters if each.grad is not None]
            self.flat = torch.empty(sum(each.numel() for each in self._moved), device=found.device)
        torch.cat([each.grad.flatten() for each in self._moved if each.grad is not None], out=self.flat)
        return found

    def move(self, given: Given, batch: int) -> Tensor:
        pieces = self.flat.split([each.numel() for each in self._moved])
        for each, piece in zip(self._moved, pieces, strict=True):
            each.grad = piece.view_as(each)
        return self._update(given, batch)
