"""What a stage is shown: its own training images, and those of earlier magnifications that it rehearses.

The two are lists with blocks of their own, so a teacher's outputs for the first are the same whatever is rehearsed, and
of the second only the blocks that an epoch draws are computed.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kdtvit_ray.data.batches import BLOCK, StageData, block_views, blocks_of, mixed_batches, shuffled
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.outputs import FrozenOutputs
from kdtvit_ray.learning.preflight import check_steps
from kdtvit_ray.recipe import StageSpec


class Shown:
    """The images of one stage, positions `rows` (M,) in the prepared set: first its `own`, so many, then the `pool` to
    rehearse from, so many, in an order that depends on the seed. An epoch shows `per_epoch` images, `rehearsed` of them
    out of the pool.

    Raises `UserError` where there are no images at a magnification that is trained or rehearsed, and where the rate of
    the only step is 0.
    """

    def __init__(self, spec: StageSpec, data: StageData) -> None:
        self.spec = spec
        train = data.rows("train", spec.magnifications)
        if not len(train):
            raise UserError(f"There are no training images at {' or '.join(f'{m}X' for m in spec.magnifications)}")
        self.own = len(train)
        self.rehearsed = spec.training.rehearsed(self.own)
        pool = shuffled(data.rows("train", spec.earlier), spec.seed)
        if self.rehearsed and not len(pool):
            raise UserError(f"There are no training images at {' or '.join(f'{m}X' for m in spec.earlier)} to rehearse")
        self.pool = len(pool)
        self.rows = np.concatenate((train, pool))
        self.per_epoch = self.own + self.rehearsed
        check_steps(spec.magnifications, spec.training, self.own)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The epoch's batches, as positions in `rows`."""
        return mixed_batches(self.own, self.pool, self.rehearsed, self.spec.training.batch, self.spec.seed, epoch)

    def views(self, epoch: int) -> np.ndarray:
        """The epoch's view (M,) of all `rows`."""
        return np.concatenate([np.repeat(of_block, BLOCK)[: len(rows)] for _, rows, of_block in self._lists(epoch)])

    def outputs(self, batches: list[np.ndarray], source: FrozenOutputs | None, epoch: int) -> np.ndarray | None:
        """A frozen model's outputs (M, D) of those of `rows` that are in the epoch's batches, in its views."""
        if source is None:
            return None
        shown, found, start = np.zeros(len(self.rows), bool), [], 0
        shown[np.concatenate(batches)] = True
        for what, rows, of_block in self._lists(epoch):
            needed = np.logical_or.reduceat(shown[start : start + len(rows)], np.arange(0, len(rows), BLOCK))
            found.append(source.of(what, rows, of_block, needed))
            start += len(rows)
        return np.concatenate(found)

    def _lists(self, epoch: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Name, images and the epoch's view of each block, of the two lists that are not empty."""
        pool = f"rehearsal of {self.spec.earlier}, shuffled by {self.spec.seed}"
        for what, rows in (("train", self.rows[: self.own]), (pool, self.rows[self.own :])):
            if len(rows):
                views = self.spec.training.all_views
                yield what, rows, block_views(blocks_of(len(rows)), views, self.spec.seed, epoch)

    def labelled(self) -> Tensor | None:
        """1 for those of `rows` whose labels count in the loss, else 0, float32 (M,); None where all of them count."""
        if self.spec.training.rehearsal_loss == "full":
            return None
        return (torch.arange(len(self.rows)) < self.own).float()

    def times(self) -> Tensor:
        """How often (M,) an epoch shows each of `rows` with its label, on average, float64."""
        times = torch.ones(len(self.rows), dtype=torch.float64)
        by_label = self.spec.training.rehearsal_loss == "full"
        times[self.own :] = self.rehearsed / max(self.pool, 1) if by_label else 0.0
        return times
