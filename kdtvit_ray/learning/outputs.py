"""Outputs of frozen models, stored by (model, images, view) and so computed once: logits of a teacher, features of what
lies before a linear probe's head.

Outputs are computed in canonical batches only: blocks of `BLOCK` consecutive images that share a view. Whether a
block's outputs come from the store or are computed now, they are the same bits.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kdtvit_ray.data.batches import BLOCK, Pixels, StageData, blocks_of
from kdtvit_ray.learning.augmentation import Variants
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.recorded import frozen_on
from kdtvit_ray.learning.team import ALONE, Team
from kdtvit_ray.recipe import StageSpec, Training


@dataclass
class Stored:
    """Outputs (V, N, D) float32 of one model over one list of images, and which (V, blocks) of them are there."""

    values: np.ndarray
    filled: np.ndarray


class StoredOutputs:
    """Outputs in memory, shared by the stages of one process that have the same frozen model and images.

    Above `limit_bytes` the least recently used go first; those in use stay, however large. Not thread-safe.
    """

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self.limit_bytes = limit_bytes
        self._stored: OrderedDict[Hashable, Stored] = OrderedDict()

    def of(self, key: Hashable, images: int, width: int, variants: int = 1) -> Stored:
        """What is stored under `key`, made empty, with room for `width` numbers of each image in all views of the
        variants, where nothing is."""
        if key not in self._stored:
            views = Training.VIEWS["d4"] * variants
            self._stored[key] = Stored(
                np.zeros((views, images, width), np.float32), np.zeros((views, blocks_of(images)), bool)
            )
        self._stored.move_to_end(key)
        while len(self._stored) > 1 and self.bytes > self.limit_bytes:
            self._stored.popitem(last=False)
        return self._stored[key]

    @property
    def bytes(self) -> int:
        return sum(each.values.nbytes for each in self._stored.values())


class FrozenOutputs:
    """What a frozen model yields for images of a stage, `width` (D) numbers each.

    `make` gives the model, in eval mode, when outputs are missing, and is not called before; `content` is equal for
    models that yield the same; `pixels` are the images at the model's size. `name` is that of the counts in the costs.
    """

    name = "outputs"

    def __init__(
        self,
        make: Callable[[], nn.Module],
        content: Hashable,
        width: int,
        pixels: Pixels,
        stage: StageSpec,
        data: StageData,
        outputs: StoredOutputs,
        device: torch.device,
        team: Team = ALONE,
    ) -> None:
        self.stage, self.width, self.pixels, self.outputs = stage, width, pixels, outputs
        self.device, self.team = device, team
        self.seconds, self.asked, self.computed = 0.0, 0, 0
        self.model: nn.Module | None = None
        self._make = make
        self._feed: Feed | None = None
        self._forward: Callable[[Tensor], Tensor] | None = None
        self._variants = Variants(stage.training, stage.seed, device)
        self._key = (
            content,
            data.identity,
            stage.magnifications,
            stage.training.crop,
            stage.numeric,
            str(device),
            self._variants.identity,
        )
        self._held: dict[str, Stored] = {}  # so that of two things in use none pushes the other out of the store

    def of(self, what: str, rows: np.ndarray, views: np.ndarray, needed: np.ndarray | None = None) -> np.ndarray:
        """Outputs (len(rows), D) float32 of images `rows`, block b of them in view `views[b]`; `what` names the list.

        `needed` (blocks,) says for which blocks; the others' outputs mean nothing. All are needed unless it is given.
        With several workers each computes a part of what is missing, and all get all of it.
        """
        started = time.perf_counter()
        if what not in self._held:
            self._held[what] = self.outputs.of((self._key, what), len(rows), self.width, self.stage.training.variants)
        stored = self._held[what]
        blocks = np.arange(len(views))
        wanted = np.ones(len(views), bool) if needed is None else needed
        missing = wanted & ~stored.filled[views, blocks]
        if not self.team.alone:  # the workers' stores may differ after one of them was replaced
            agreed = torch.from_numpy(missing.astype(np.int32)).to(self.device)
            self.team.largest(agreed)
            missing = agreed.cpu().numpy() > 0
        if missing.any():
            self._fill(stored, rows, views, np.flatnonzero(missing))
        of_image = np.repeat(views, BLOCK)[: len(rows)]
        found = stored.values[of_image, np.arange(len(rows))]
        self.seconds += time.perf_counter() - started
        self.asked += int(wanted[np.arange(len(rows)) // BLOCK].sum())
        return found

    def tally(self) -> dict[str, float | int]:
        """Since the last call: seconds spent on outputs, images whose outputs were asked for, and computed."""
        found = {
            f"{self.name}_seconds": self.seconds,
            f"{self.name}_asked": self.asked,
            f"{self.name}_computed": self.computed,
        }
        self.seconds, self.asked, self.computed = 0.0, 0, 0
        return found

    @staticmethod
    def run(model: nn.Module) -> Callable[[Tensor], Tensor]:
        """What gives the model's outputs (B, D) for inputs (B, 3, S, S)."""
        return model

    def _fill(self, stored: Stored, rows: np.ndarray, views: np.ndarray, blocks: np.ndarray) -> None:
        if self.model is None:
            self.model = self._make()
            self._feed = Feed(self.pixels, self.model, BLOCK, self.device, self._variants)
            self._forward = frozen_on(self.run(self.model), self.stage.numeric, self.device)
        assert self._feed is not None
        assert self._forward is not None
        assert not self.model.training
        self.pixels.make(rows)
        fresh = torch.zeros(stored.values.shape[1:], device=self.device)  # (N, D)
        for block in blocks[self.team.rank :: self.team.size]:
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            fresh[part] = self._forward(self._feed(rows[part], np.full(len(rows[part]), views[block])))
        self.team.add_up(fresh)  # each block was computed by one worker; the others add exact zeros
        found = fresh.cpu().numpy()
        for block in blocks:
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            stored.values[views[block], part] = found[part]
            self.computed += len(rows[part])
        stored.filled[views[blocks], blocks] = True
