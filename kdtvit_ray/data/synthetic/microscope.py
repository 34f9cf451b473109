"""The microscope of the synthetic set: a field of `tissue`, through its magnification, its stains and its optics.

Colour is Beer and Lambert's law with the stain vectors of Ruifrok & Johnston (Anal Quant Cytol Histol 2001), disturbed
for each patient. Nuclei are stamped at full resolution, all of a size at once; the rest is enlarged from the layout.
"""

from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from kdtvit_ray.data.synthetic.tissue import ARCHITECTURES, Look, Scene, lay_out, nuclei_of

FIELD_400 = 154.0
"""Width of the field at 400X, micrometres (0.22 a pixel at 700 pixels); at 40X it is ten times that."""
HEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)

IMAGE_SEVERITY = 0.3
"""Deviation of an image's severity around its patient's."""
COVER_SPREAD = 0.12
"""Deviation of the share of a field that shows the lesion."""

_LEVELS, _DENSEST = 256, 2.2
"""Steps of the table from stain concentrations to colour, and the concentration of its last step."""
_RADII = np.array([1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 28, 36, 46, 60, 80, 110, 160, 240])
"""Half sides of the patches that nuclei are drawn in, pixels: nuclei of one half side are drawn together."""


def stamp(nuclei: np.ndarray, pixels: float, width: int, height: int) -> np.ndarray:
    """Hematoxylin of all nuclei, (height, width) float32; `pixels` is pixels a micrometre.

    Nuclei of like size are drawn together, each as a small patch of an ellipse with a three-lobed outline and a darker
    rim, and summed where they overlap, as densities do.
    """
    x, y, a, b = nuclei[:, :4].T * np.float32(pixels)
    # below a pixel a nucleus keeps its amount of stain and not its outline
    a, b = np.maximum(a, np.float32(0.7)), np.maximum(b, np.float32(0.7))
    faint = np.minimum(nuclei[:, 2] * nuclei[:, 3] * np.float32(pixels**2) / (a * b), 1)
    group = np.searchsorted(_RADII, a + 0.5)
    edge = 0.8 * float(_RADII[group.max()]) if len(group) else 0.0
    pad = int(2.25 * edge) + 3
    stride = width + 2 * pad
    seen = (x > -edge) & (x < width + edge) & (y > -edge) & (y < height + edge)
    where, what = [], []
    for g in np.unique(group[seen]):
        chosen = np.flatnonzero(seen & (group == g))
        reach = int(_RADII[g])
        offset = np.arange(-reach, reach + 1, dtype=np.float32)
        column, row = np.rint(x[chosen]).astype(np.int64), np.rint(y[chosen]).astype(np.int64)
        dx = offset[None, None, :] - (x[chosen] - column.astype(np.float32))[:, None, None]
        dy = offset[None, :, None] - (y[chosen] - row.astype(np.float32))[:, None, None]
        cosine, sine = np.cos(nuclei[chosen, 4]), np.sin(nuclei[chosen, 4])
        short = b[chosen][:, None, None]
        u = (cosine / a[chosen])[:, None, None] * dx + (sine / a[chosen])[:, None, None] * dy
        v = (-sine / b[chosen])[:, None, None] * dx + (cosine / b[chosen])[:, None, None] * dy
        uu, vv = u * u, v * v
        q = uu + vv
        ink = (0.5 + 0.5 * short) - (0.5 * short) * q
        if reach > 4:
            vv *= 3
            uu -= vv
            uu *= u
            uu *= (-0.5 * nuclei[chosen, 6])[:, None, None] * short
            ink += uu
        np.clip(ink, 0, 1, out=ink)
        q *= 0.3
        q += 0.8
        np.minimum(q, 1.1, out=q)
        ink *= q
        ink *= (nuclei[chosen, 5] * faint[chosen])[:, None, None]
        flat = (row + pad)[:, None, None] * stride + (column + pad)[:, None, None]
        steps = np.arange(-reach, reach + 1)
        where.append((flat + (steps[:, None] * stride + steps)[None]).ravel())
        what.append(ink.ravel())
    total = (height + 2 * pad) * stride
    if not where:
        return np.zeros((height, width), np.float32)
    canvas = np.bincount(np.concatenate(where), np.concatenate(what), total)
    return canvas.reshape(height + 2 * pad, stride)[pad : pad + height, pad : pad + width].astype(np.float32)


@cache
def _grain(radius: float) -> np.ndarray:
    """(1024, 1024) float32 noise of deviation 1 with grains of `radius` pixels, the same in every process."""
    noise = np.random.default_rng(20160).standard_normal((1024, 1024), dtype=np.float32)
    if radius > 0.3:
        noise = gaussian_filter(noise, radius, mode="wrap")
    return noise / noise.std()


@lru_cache(maxsize=128)
def _colours(look: Look) -> np.ndarray:
    """Colour of each (hematoxylin, eosin) step, (steps * steps,) uint32 of bytes R, G, B, 0: Beer and Lambert's law."""
    steps = np.linspace(0, _DENSEST, _LEVELS)[:, None]
    h, e = np.exp(-steps * look.stains[0]), np.exp(-steps * look.stains[1])
    rgb = (h[:, None] * e[None, :] * (255 * look.light) + 0.5).astype(np.uint8)
    colours = np.zeros((_LEVELS, _LEVELS, 4), np.uint8)
    colours[..., :3] = rgb
    return colours.view(np.uint32).ravel()


def draw(rng: np.random.Generator, subtype: str, magnification: int, look: Look, size: tuple[int, int]) -> np.ndarray:
    """One field of view, uint8 (height, width, 3); `size` is (width, height) in pixels.

    The field's width in micrometres follows from the magnification alone, so the same generator state draws the same
    scene at every size of the same proportions.
    """
    width, height = size
    field = FIELD_400 * 400 / magnification
    pixels = width / field
    form = ARCHITECTURES[subtype]
    scene = Scene(rng, field, field * height / width)
    severity = look.severity + IMAGE_SEVERITY * rng.standard_normal()
    cover = float(np.clip(form.cover + COVER_SPREAD * rng.standard_normal(), 0.05, 0.97))
    thickness = float(np.exp(0.08 * rng.standard_normal()))
    layout = lay_out(scene, form, look, severity, cover)
    nuclei = nuclei_of(scene, layout, form, look, severity)
    hematoxylin = stamp(nuclei, pixels, width, height)

    def enlarge(coarse: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(coarse, np.float32))
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

    grain = _grain(round(0.55 * pixels, 1))
    top, left = rng.integers(0, 1024, 2)
    rows, columns = (top + np.arange(height)) % 1024, (left + np.arange(width)) % 1024
    texture = grain[rows][:, columns]
    # fibres: a random profile along the phase that runs across them
    period = 6.5
    profile = gaussian_filter(rng.standard_normal(4096).astype(np.float32), 10, mode="wrap")
    profile = np.clip(0.88 + profile / profile.std() * np.float32(0.2 * np.exp(0.2 * look.fibre)), 0.1, 1.5)
    phase = enlarge(layout.phase * np.float32(32 / period)).astype(np.int32) & 4095
    sharp = np.float32(pixels * 0.8)
    cells = np.clip(enlarge(layout.epithelium) * sharp + np.float32(0.5), 0, 1)
    tissue = np.clip(np.float32(0.5) - enlarge(layout.empty) * sharp, 0, 1)
    eosin = profile[phase]
    eosin *= 1 - cells
    eosin += cells * np.float32(0.62)
    eosin += np.float32(0.1) * texture
    eosin *= tissue
    eosin *= enlarge(layout.eosin)
    hematoxylin *= 1 + np.float32(look.grain) * texture
    hematoxylin += (np.float32(0.10) + np.float32(np.clip(0.14 + 0.06 * severity, 0.02, 0.4)) * cells) * tissue
    scale = np.float32((_LEVELS - 1) / _DENSEST * thickness)
    index = np.clip(hematoxylin * scale, 0, _LEVELS - 1).astype(np.int32) * _LEVELS
    index += np.clip(eosin * scale, 0, _LEVELS - 1).astype(np.int32)
    rgb = _colours(look)[index].view(np.uint8).reshape(height, width, 4)
    image = Image.fromarray(np.ascontiguousarray(rgb[..., :3]))
    blur = look.blur * width / 700
    if blur > 0.2:
        # a box of this half width has the deviation of the blur, at a third of a Gaussian's time
        image = image.filter(ImageFilter.BoxBlur(float(np.sqrt(3 * blur**2 + 0.25)) - 0.5))
    return np.asarray(image)
