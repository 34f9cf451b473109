"""The workers that train one stage together, as each of them sees it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class Team:
    """`size` workers, of which this one is number `rank`, counted from 0. With more than one worker the caller has
    initialised `torch.distributed`, and all of them make the same calls in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this worker speaks for the team."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def agree(self, value: Value) -> Value:
        """Rank 0's value on every worker."""
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def none(self, value: bool) -> bool:
        """Whether the value is false on every worker."""
        if self.alone:
            return not value
        found = [value] * self.size
        dist.all_gather_object(found, value)
        return not any(found)

    def add_up(self, values: Tensor) -> None:
        """Replace a tensor by its sum over the workers, on each of them."""
        if not self.alone:
            dist.all_reduce(values)

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by rank 0's."""
        if self.alone:
            return
        for each in tensors:
            values = each.detach().contiguous()
            dist.broadcast(values, src=0)
            each.detach().copy_(values)

    def largest(self, values: Tensor) -> None:
        """Replace a tensor by its element-wise maximum over the workers, on each of them."""
        if not self.alone:
            dist.all_reduce(values, dist.ReduceOp.MAX)


ALONE = Team()
"""One worker by itself."""
