"""Variants of training images: another stain or colour, another crop, made of a batch of bytes on its device.

An image has `Training.variants` of them, and variant 0 is the unchanged image. What the others look like is a function
of (seed, image, variant), so there is a finite set of views, each of which a teacher sees once:

- stain "hed" moves an image in the space of its stains. Light that passes a stained slide is weakened by a factor for
  each stain, so the optical density of a pixel, -log10 of its share of the light, is the sum of the stains'. It is
  unmixed into haematoxylin, eosin and DAB (Ruifrok and Johnston 2001, with the vectors of scikit-image), each amount c
  becomes alpha * c + beta, and the image is mixed again (Tellez et al. 2018, 2019). With strength s, alpha is uniform
  in 1 - s .. 1 + s and beta in -s .. s, in units of optical density (base 10). Amounts below 0 are kept as they are,
  so that nothing is lost on the way;
- stain "jitter" changes brightness, contrast and saturation by factors in 1 - s .. 1 + s, one after the other, and
  turns the hue by up to s / 4 of the circle, as torchvision does;
- zoom z shows a square of 1 - z .. 1 of the image's side at a place of its own, enlarged to the image's size with
  Pillow's bicubic filter. It is taken from the image as the square's view has turned it.

Shapes: B images of S x S pixels, b of them changed.
"""

import numpy as np
import torch
from torch import Tensor

from kdtvit_ray.data.batches import uniform
from kdtvit_ray.learning.upload import uploaded
from kdtvit_ray.recipe import Training

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB (rows) in red, green and blue (columns), as scikit-image has it."""
UNMIX = np.linalg.inv(STAINS)
GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in a grey value, as torchvision has them."""
HUE = 0.25
"""Turns of the hue at strength 1."""

_VARIANT = 4
_NUMBERS = 9
"""Random numbers of a variant: up to six for the stain, three for the crop."""


class Variants:
    """Makes the variants of a stage's training images; `seed` is the stage's."""

    def __init__(self, training: Training, seed: int, device: torch.device) -> None:
        self.stain, self.strength, self.zoom = training.stain, training.stain_strength, training.zoom
        self.of_square = Training.VIEWS[training.views]
        self.seed, self.device = seed, device
        settings = (self.stain, self.strength, self.zoom, training.variants, training.views, seed)
        self.identity: tuple[object, ...] = settings if training.variants > 1 else ()
        """What decides a variant; empty where there is only the unchanged image."""

    def split(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """View of the square (B,) and variant (B,) of each of `Training.all_views`."""
        return views % self.of_square, views // self.of_square

    def __call__(self, images: Tensor, rows: np.ndarray, variants: np.ndarray) -> Tensor:
        """Images uint8 (B, S, S, 3), which are the set's `rows` (B,), as their `variants` (B,): float32 (B, S, S, 3)
        from 0 to 255, not rounded. A batch of variants 0 is returned as it is."""
        changed = np.flatnonzero(variants)
        if not len(changed):
            return images
        drawn = uniform(_VARIANT, self.seed, rows[changed, None], variants[changed, None], np.arange(_NUMBERS))
        numbers = np.concatenate((self._colours(drawn), boxes(drawn[:, 6:], self.zoom)), axis=1)
        on_device = uploaded(numbers.astype(np.float32), self.device)  # one copy for all
        colours, box = on_device[:, :-3], on_device[:, -3:]
        some = len(changed) < len(images)
        chosen = uploaded(changed, self.device) if some else slice(None)
        planes = images[chosen].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        if self.zoom > 0:
            planes = zoomed(planes, box)
        if self.stain == "hed":
            planes = restained(planes, colours)
        elif self.stain == "jitter":
            planes = jittered(planes, colours)
        pixels = planes.permute(0, 2, 3, 1)
        if not some:
            return pixels.contiguous()
        made = images.to(torch.float32)
        made[chosen] = pixels
        return made

    def _colours(self, drawn: np.ndarray) -> np.ndarray:
        if self.stain == "hed":
            return mixing(drawn[:, :6], self.strength)
        if self.stain == "jitter":
            return factors(drawn[:, :4], self.strength)
        return drawn[:, :0]


def mixing(drawn: np.ndarray, strength: float) -> np.ndarray:
    """Numbers (b, 6) in [0, 1), three for alpha and three for beta, as maps (b, 12) of the logarithms of a pixel's
    three bytes: for each channel of the result, its three weights, then the three constants.

    Unmixing, moving and mixing are one affine map of optical densities, D -> D U diag(alpha) M + beta M for rows D;
    ln(byte) = ln 255 - ln(10) D makes it one of the bytes' logarithms.
    """
    alpha, beta = 1 + strength * (2 * drawn[:, :3] - 1), strength * (2 * drawn[:, 3:] - 1)
    weights = np.einsum("ik,bk,kj->bji", UNMIX, alpha, STAINS)  # (b, to, from)
    constants = np.log(255) * (1 - weights.sum(axis=2)) - np.log(10) * beta @ STAINS
    return np.concatenate((weights.reshape(-1, 9), constants), axis=1)


def restained(planes: Tensor, maps: Tensor) -> Tensor:
    """Planes (b, 3, S, S) after the `maps` (b, 12) of `mixing`. A byte of 0 counts as 1: darkness has no logarithm."""
    logarithms = planes.clamp(min=1).log_().flatten(2)
    moved = torch.baddbmm(maps[:, 9:, None], maps[:, :9].view(-1, 3, 3), logarithms)
    return moved.exp_().clamp_(max=255).view(planes.shape)


def factors(drawn: np.ndarray, strength: float) -> np.ndarray:
    """Numbers (b, 4) in [0, 1) as factors of brightness, contrast and saturation, and turns of the hue (b, 4)."""
    moved = strength * (2 * drawn - 1)
    return np.concatenate((1 + moved[:, :3], HUE * moved[:, 3:]), axis=1)


def jittered(planes: Tensor, changes: Tensor) -> Tensor:
    """Planes (b, 3, S, S) after the `changes` (b, 4) of `factors`."""
    brightness, contrast, saturation, hue = changes[:, :, None, None, None].unbind(1)  # each (b, 1, 1, 1)
    planes = (planes * brightness).clamp_(0, 255)
    planes = _blended(planes, _grey(planes).mean(dim=(1, 2, 3), keepdim=True), contrast)
    planes = _blended(planes, _grey(planes), saturation)
    return _turned_hue(planes, hue)


def _grey(planes: Tensor) -> Tensor:
    red, green, blue = planes.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def _blended(planes: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(other, planes, share).clamp_(0, 255)


def _turned_hue(planes: Tensor, turns: Tensor) -> Tensor:
    """The hue moved by `turns` of the circle, saturation and value kept (HSV).

    A channel lies below the largest by the chroma times 0 to 1, as far as the hue, in sixths of the circle, is from the
    channel's own: k = hue + 5, 3, 1 for red, green, blue, and min(k, 4 - k) clamped.
    """
    red, green, blue = planes.split(1, dim=1)
    value, largest = planes.max(dim=1, keepdim=True)
    chroma = value - planes.amin(dim=1, keepdim=True)
    ahead = torch.where(largest == 0, green - blue, torch.where(largest == 1, blue - red, red - green))
    sixths = ahead.div_(chroma.clamp(min=1e-6)).add_(2 * largest).add_(6 * turns)
    own = torch.arange(5.0, 0.0, -2.0, device=planes.device).view(1, 3, 1, 1)  # made there: a copy would be waited for
    k = torch.remainder(sixths + own, 6)
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def boxes(drawn: np.ndarray, zoom: float) -> np.ndarray:
    """Numbers (b, 3) in [0, 1) as the side, left and top (b, 3) of a square, as shares of the image's side."""
    side = 1 - zoom * drawn[:, :1]
    return np.concatenate((side, (1 - side) * drawn[:, 1:]), axis=1)


def zoomed(planes: Tensor, box: Tensor) -> Tensor:
    """The squares `box` (b, 3) of planes (b, 3, S, S), enlarged to S x S: one matrix product along each axis."""
    size = planes.shape[-1]
    at = torch.arange(size, device=planes.device) + 0.5
    centres = box[:, 1:, None] * size + box[:, :1, None] * at  # (b, 2, S): along x and y, pixels of the image
    distance = (centres[..., None] - at).abs_().clamp_(max=2)  # (b, 2, S, S): from each to each pixel of the image
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, far)
    weights /= weights.sum(dim=-1, keepdim=True)  # at the border the filter reaches beyond the image
    across = torch.bmm(planes.flatten(1, 2), weights[:, 0].mT).view(planes.shape)
    return torch.matmul(weights[:, 1, None], across).clamp_(0, 255)
