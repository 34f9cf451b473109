"""The frozen teacher and its outputs, stored by (teacher, images, view) and so computed once.

Outputs are computed in canonical batches only: blocks of `BLOCK` consecutive images that share a view. Whether a
block's logits come from the store or are computed now, they are the same bits.
"""

import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kdtvit_ray.data.batches import BLOCK, StageData, blocks_of
from kdtvit_ray.learning.augmentation import Variants
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.numeric import autocast
from kdtvit_ray.learning.team import ALONE, Team
from kdtvit_ray.recipe import StageSpec, Training


@dataclass(frozen=True)
class Parent:
    """The stage before: its spec and its weights, tensors by name on the CPU."""

    spec: StageSpec
    state: Mapping[str, Tensor]


@dataclass
class Stored:
    """Logits (V, N, C) float32 of one teacher over one list of images, and which (V, blocks) of them are there."""

    logits: np.ndarray
    filled: np.ndarray


class TeacherOutputs:
    """Teachers' logits in memory, shared by the stages of one process that have the same teacher and images.

    Above `limit_bytes` the least recently used go first; those in use stay, however large. Not thread-safe.
    """

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self.limit_bytes = limit_bytes
        self._stored: OrderedDict[Hashable, Stored] = OrderedDict()

    def of(self, key: Hashable, images: int, classes: int, variants: int = 1) -> Stored:
        """What is stored under `key`, made empty, with room for all views of the variants, where nothing is."""
        if key not in self._stored:
            views = Training.VIEWS["d4"] * variants
            self._stored[key] = Stored(
                np.zeros((views, images, classes), np.float32), np.zeros((views, blocks_of(images)), bool)
            )
        self._stored.move_to_end(key)
        while len(self._stored) > 1 and self.bytes > self.limit_bytes:
            self._stored.popitem(last=False)
        return self._stored[key]

    @property
    def bytes(self) -> int:
        return sum(each.logits.nbytes for each in self._stored.values())


def frozen(parent: Parent, device: torch.device) -> nn.Module:
    """The parent's model in eval mode, without gradients, in memory of its own."""
    model = build(parent.spec.model, parent.spec.seed, initial=False)
    model.load_state_dict(dict(parent.state))
    return model.requires_grad_(False).eval().to(device)


class Teacher:
    """A stage's teacher. Its model is made when outputs are missing, not before.

    Its logits are the model's own, never corrected for class weights (`losses.logit_offsets`).
    """

    def __init__(
        self,
        parent: Parent,
        stage: StageSpec,
        data: StageData,
        outputs: TeacherOutputs,
        device: torch.device,
        team: Team = ALONE,
    ) -> None:
        self.parent, self.stage, self.outputs = parent, stage, outputs
        self.pixels = data.pixels(parent.spec.model.image_size, stage.training.crop)
        self.device, self.team = device, team
        self.seconds, self.asked, self.computed = 0.0, 0, 0
        self.model: nn.Module | None = None
        self._feed: Feed | None = None
        self._variants = Variants(stage.training, stage.seed, device)
        self._key = (
            parent.spec.key,
            data.identity,
            stage.magnifications,
            stage.training.crop,
            stage.numeric,
            str(device),
            self._variants.identity,
        )

    def logits(self, what: str, rows: np.ndarray, views: np.ndarray, needed: np.ndarray | None = None) -> np.ndarray:
        """Logits (len(rows), C) float32 of images `rows`, block b of them in view `views[b]`; `what` names the list.

        `needed` (blocks,) says for which blocks; the others' logits mean nothing. All are needed unless it is given.
        With several workers each computes a part of what is missing, and all get all of it.
        """
        started = time.perf_counter()
        stored = self.outputs.of((self._key, what), len(rows), self.stage.model.classes, self.stage.training.variants)
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
        found = stored.logits[of_image, np.arange(len(rows))]
        self.seconds += time.perf_counter() - started
        self.asked += int(wanted[np.arange(len(rows)) // BLOCK].sum())
        return found

    def tally(self) -> dict[str, float | int]:
        """Since the last call: seconds spent on outputs, images whose outputs were asked for, and computed."""
        found = {"teacher_seconds": self.seconds, "teacher_asked": self.asked, "teacher_computed": self.computed}
        self.seconds, self.asked, self.computed = 0.0, 0, 0
        return found

    @torch.no_grad()
    def _fill(self, stored: Stored, rows: np.ndarray, views: np.ndarray, blocks: np.ndarray) -> None:
        if self.model is None:
            self.model = frozen(self.parent, self.device)
            self._feed = Feed(self.pixels, self.model, BLOCK, self.device, self._variants)
        assert self._feed is not None
        assert not self.model.training
        self.pixels.make(rows)
        fresh = torch.zeros(stored.logits.shape[1:], device=self.device)  # (N, C)
        for block in blocks[self.team.rank :: self.team.size]:
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            inputs = self._feed(rows[part], np.full(len(rows[part]), views[block]))
            with autocast(self.stage.numeric, self.device):
                fresh[part] = self.model(inputs).float()
        self.team.add_up(fresh)  # each block was computed by one worker; the others add exact zeros
        found = fresh.cpu().numpy()
        for block in blocks:
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            stored.logits[views[block], part] = found[part]
            self.computed += len(rows[part])
        stored.filled[views[blocks], blocks] = True
