"""What a stage is shown: its own training images, and those of earlier magnifications that it rehearses.

The two are lists with blocks of their own, so a teacher's outputs for the first are the same whatever is rehearsed, and
of the second only the blocks that an epoch draws are computed.
"""

import numpy as np
import torch
from torch import Tensor

from kdtvit_ray.data.batches import BLOCK, StageData, block_views, mixed_batches, shuffled
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.teacher import Teacher
from kdtvit_ray.recipe import StageSpec


class Shown:
    """The images of one stage, positions `rows` (M,) in the prepared set: first its `own`, so many, then the `pool` to
    rehearse from, so many, in an order that depends on the seed. An epoch shows `per_epoch` images, `rehearsed` of them
    out of the pool.

    Raises `UserError` where there are no images at a magnification that is trained or rehearsed.
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

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The epoch's batches, as positions in `rows`."""
        return mixed_batches(self.own, self.pool, self.rehearsed, self.spec.training.batch, self.spec.seed, epoch)

    def views_and_outputs(
        self, batches: list[np.ndarray], teacher: Teacher | None, epoch: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The epoch's view (M,) of all `rows`, and the teacher's logits (M, C) of those that are in its batches."""
        views, outputs = [], []
        shown = np.zeros(len(self.rows), bool)
        shown[np.concatenate(batches)] = True
        pool = f"rehearsal of {self.spec.earlier}, shuffled by {self.spec.seed}"
        for what, part in (("train", slice(0, self.own)), (pool, slice(self.own, None))):
            rows = self.rows[part]
            if not len(rows):
                continue
            starts = np.arange(0, len(rows), BLOCK)
            of_block = block_views(len(starts), self.spec.training.all_views, self.spec.seed, epoch)
            views.append(np.repeat(of_block, BLOCK)[: len(rows)])
            if teacher:
                outputs.append(teacher.logits(what, rows, of_block, np.logical_or.reduceat(shown[part], starts)))
        return np.concatenate(views), np.concatenate(outputs) if outputs else None

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
