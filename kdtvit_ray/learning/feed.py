"""From stored pixels to a model's input: gather, copy to the device as bytes, make variants and normalise there."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kdtvit_ray.data.batches import Pixels
from kdtvit_ray.learning.augmentation import Variants
from kdtvit_ray.learning.models import mean_std


class Normaliser:
    """Bytes of square images to a model's input, on its device. `mean` and `std` (3,) are those of the RGB channels, in
    units of [0, 1]; `size` is the images' side, pixels."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], size: int, device: torch.device) -> None:
        self.size = size
        of_channel, spread = (torch.tensor(each, dtype=torch.float32) for each in (mean, std))
        # One row of an image is a run of (R, G, B): tiled to its length, the arithmetic runs over whole vectors.
        self._scale = (1 / (255 * spread)).repeat(size).to(device)
        self._shift = (-of_channel / spread).repeat(size).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, S, S, 3), uint8 or float32 from 0 to 255, as float32 (B, 3, S, S) in channels-last memory. Those
        that are float32 already are overwritten."""
        size = self.size
        flat = images.view(len(images) * size, size * 3).to(torch.float32)
        return flat.mul_(self._scale).add_(self._shift).view(-1, size, size, 3).permute(0, 3, 1, 2)


class Feed:
    """Input batches for one model, normalised by its own mean and standard deviation.

    `capacity` is the largest batch; `variants` makes those of the training images. On a GPU two pinned buffers take
    turns, so that gathering the next batch and copying it overlap with the step that runs.
    """

    def __init__(
        self,
        pixels: Pixels,
        model: nn.Module,
        capacity: int,
        device: torch.device,
        variants: Variants | None = None,
    ) -> None:
        self.pixels, self.device, self.variants = pixels, device, variants
        self._normalised = Normaliser(*mean_std(model), pixels.size, device)
        pinned = device.type == "cuda"
        shape = (capacity, pixels.size, pixels.size, 3)
        self._buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(2 if pinned else 1)]
        self._copied = [torch.cuda.Event() for _ in self._buffers] if pinned else []
        self._turn = 0

    def __call__(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """Images `rows` (B,) in their `views` (B,), or as stored, as float32 (B, 3, S, S) in channels-last memory. With
        variants a view is one of the square's and a variant (`Variants.split`)."""
        variants = None
        if self.variants is not None and views is not None:
            views, variants = self.variants.split(views)
        self._turn = (self._turn + 1) % len(self._buffers)
        buffer = self._buffers[self._turn]
        if self._copied:
            self._copied[self._turn].synchronize()
        self.pixels.gather(rows, views, buffer.numpy())
        batch = buffer[: len(rows)].to(self.device, non_blocking=True)
        if self._copied:
            self._copied[self._turn].record()
        if self.variants is not None and variants is not None:
            batch = self.variants(batch, rows, variants)
        return self._normalised(batch)
