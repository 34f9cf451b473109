"""Stochastic depth whose masks are a function of (seed, epoch, image, layer): the same on any number of workers.

Huang et al. 2016; rates grow linearly with depth, as in timm. timm's own module draws from the global generator, so
it would give another result on two workers than on one, and after a resume.
"""

import numpy as np
import torch
from torch import Tensor, nn

from kdtvit_ray.data.batches import uniform
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.upload import uploaded

PLACES = ("drop_path", "drop_path1", "drop_path2")
"""Attributes under which timm's blocks keep the module that drops a path."""

_DROP = 3


class KeyedDropPath(nn.Module):
    """Multiplies a residual branch (B, ...) by `keep` (B,), which is 0 or 1 / (1 - rate), in train mode."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch
        assert self.keep is not None
        assert len(self.keep) == len(branch)
        return branch * self.keep.to(branch.dtype).view(-1, *(1,) * (branch.ndim - 1))


class DropPaths:
    """The drop-path modules of one model, put in place of timm's identities; without effect at rate 0, and in blocks
    that are frozen as a whole, whose outputs shall be those of the weights that they keep.

    Raises `UserError` for a model that has no place for them.
    """

    def __init__(self, model: nn.Module, rate: float, seed: int) -> None:
        self.seed = seed
        self.modules: list[KeyedDropPath] = []
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []
        if rate <= 0:
            return
        blocks = [
            [place for place in PLACES if isinstance(getattr(each, place, None), nn.Identity)]
            for each in model.modules()
        ]
        owners = [(each, places) for each, places in zip(model.modules(), blocks, strict=True) if places]
        if not owners:
            raise UserError(
                f"drop_path {rate} is set, but {type(model).__name__} has no blocks that can drop a path; allowed: 0"
            )
        for (block, places), own in zip(owners, np.linspace(0, rate, len(owners)), strict=True):
            trained = any(each.requires_grad for each in block.parameters())
            for place in places:
                if own > 0 and trained:
                    self._replaced.append((block, place, getattr(block, place)))
                    setattr(block, place, KeyedDropPath(float(own)))
                    self.modules.append(getattr(block, place))

    def remove(self) -> None:
        """Put timm's modules back."""
        for block, place, module in self._replaced:
            setattr(block, place, module)

    def masks(self, epoch: int, images: np.ndarray, device: torch.device) -> Tensor | None:
        """The masks (layers, B) of a step over `images` (B,), by their positions in the prepared set; None where no
        path is dropped."""
        if not self.modules:
            return None
        rates = np.array([each.rate for each in self.modules])[:, None]
        drawn = uniform(_DROP, self.seed, epoch, images, np.arange(len(rates))[:, None])
        return uploaded(((drawn >= rates) / (1 - rates)).astype(np.float32), device)

    def set(self, masks: Tensor | None) -> None:
        """Fix the masks of the next forward pass."""
        for module, mask in zip(self.modules, masks if masks is not None else (), strict=True):
            module.keep = mask
