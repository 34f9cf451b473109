"""From stored pixels to a model's input: gather them as bytes, on the device where they lie there, else on the host;
make variants and normalise on the device."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from kdtvit_ray.data.batches import Pixels
from kdtvit_ray.learning.augmentation import Variants
from kdtvit_ray.learning.device_pixels import COPIES, DevicePixels
from kdtvit_ray.learning.models import mean_std
from kdtvit_ray.learning.upload import Buffers


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


class HostPixels:
    """Pixels that the host gathers, in batches of at most `capacity`, and copies to the device. On a GPU gathering the
    next batch and copying it overlap with the step that runs."""

    def __init__(self, pixels: Pixels, capacity: int, device: torch.device) -> None:
        self.pixels, self.device = pixels, device
        self._buffers = Buffers((capacity, pixels.size, pixels.size, 3), device)

    def gather(self, rows: np.ndarray, views: np.ndarray | None) -> Tensor:
        """Images `rows` (B,) in their `views` (B,), or as stored: (B, S, S, 3) uint8, until the next call."""
        buffer = self._buffers.next()
        self.pixels.gather(rows, views, buffer.numpy())
        batch = buffer[: len(rows)].to(self.device, non_blocking=True)
        self._buffers.sent()
        return batch


class Feed:
    """Input batches for one model, normalised by its own mean and standard deviation.

    `capacity` is the largest batch; `variants` makes those of the training images. The pixels lie on the device where
    they fit (`learning.device_pixels`), which is decided with the first batch.
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
        self._capacity = capacity

    @cached_property
    def _stored(self) -> DevicePixels | HostPixels:
        return COPIES.of(self.pixels, self.device, self) or HostPixels(self.pixels, self._capacity, self.device)

    def __call__(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """Images `rows` (B,) in their `views` (B,), or as stored, as float32 (B, 3, S, S) in channels-last memory. With
        variants a view is one of the square's and a variant (`Variants.split`)."""
        variants = None
        if self.variants is not None and views is not None:
            views, variants = self.variants.split(views)
        batch = self._stored.gather(rows, views)
        if self.variants is not None and variants is not None:
            batch = self.variants(batch, rows, variants)
        return self._normalised(batch)
