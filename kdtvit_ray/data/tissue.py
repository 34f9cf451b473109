"""Draws one synthetic H&E field of view: a scene in micrometres, then light through it, in stain density.

A scene does not know the magnification: glands, fibres and nuclei have sizes in micrometres, and the magnification
decides only how much of them a field shows (40X shows 10 times the width of 400X). Layout is computed on a coarse
grid, as signed distances that stay sharp when they are enlarged; nuclei are stamped at full resolution, all at once.
Colour is Beer and Lambert's law with the stain vectors of Ruifrok & Johnston (Anal Quant Cytol Histol 2001),
disturbed for each patient.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

FIELD_400 = 154.0
"""Width of the field at 400X, micrometres (0.22 a pixel at 700 pixels); at 40X it is ten times that."""
HEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)

IMAGE_SEVERITY = 0.3
"""Deviation of an image's severity around its patient's."""
COVER_SPREAD = 0.12
"""Deviation of the share of a field that shows the lesion."""

_COARSE = 176
"""Columns of the coarse grid, whatever the image's size: the scene is the same at every resolution."""
_FAR = 1e3
_LEVELS, _DENSEST = 256, 2.2
"""Steps of the table from stain concentrations to colour, and the concentration of its last step."""
_RADII = np.array([1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 28, 36, 46, 60, 80, 110, 160, 240])


@dataclass(frozen=True)
class Architecture:
    """How a subtype is laid out. Lengths are micrometres; `radius` is the minor one, as a share of `pitch`.

    `outside` is what surrounds the epithelium of a lesion: stroma, mucin, or the cavity that papillae grow into.
    `solid` shifts how readily lumina fill; `cover` is the share of lesion in its fields; `files` is the width of the
    single files of cells that replace glands.
    """

    pitch: float
    radius: float
    aspect: float
    wall: float
    warp: float
    presence: float
    cover: float
    cells: float = 1.0
    solid: float = 0.0
    outside: str = "stroma"
    files: float = 0.0


ARCHITECTURES = {
    "A": Architecture(pitch=58, radius=0.42, aspect=1.25, wall=13, warp=8, presence=0.95, cover=0.85),
    "F": Architecture(pitch=210, radius=0.14, aspect=4.2, wall=14, warp=45, presence=0.8, cover=0.85, cells=1.2),
    "PT": Architecture(pitch=400, radius=0.13, aspect=5.0, wall=16, warp=90, presence=0.9, cover=0.9, cells=1.9),
    "TA": Architecture(pitch=78, radius=0.47, aspect=1.1, wall=15, warp=5, presence=1.0, cover=0.8, cells=0.8),
    "DC": Architecture(pitch=120, radius=0.40, aspect=1.7, wall=24, warp=35, presence=0.8, cover=0.85, solid=0.6),
    "LC": Architecture(pitch=38, radius=0.0, aspect=1.0, wall=99, warp=20, presence=0.75, cover=0.8, files=9),
    "MC": Architecture(
        pitch=190, radius=0.24, aspect=1.5, wall=40, warp=22, presence=0.85, cover=0.85, solid=1.0, outside="mucin"
    ),
    "PC": Architecture(
        pitch=150, radius=0.28, aspect=2.6, wall=20, warp=32, presence=0.97, cover=0.8, outside="cavity"
    ),
}


@dataclass(frozen=True, eq=False)
class Look:
    """What the images of one patient share. `stains` (2, 3) is optical density of hematoxylin and eosin at
    concentration 1, `light` (3,) the unstained slide in 0..1, `blur` and `grain` are of the optics, and the rest,
    around 0 with deviation 1 or around 1, is of the tissue. `severity` decides how malignant the tissue looks."""

    stains: np.ndarray
    light: np.ndarray
    blur: float
    grain: float
    severity: float
    scale: float
    cellularity: float
    fibre: float
    inflammation: float
    fat: float


class _Scene:
    """The coarse grid over one field, with the noise that is drawn on it. `x`, `y` (h, w) are micrometres."""

    def __init__(self, rng: np.random.Generator, width: float, height: float):
        self.rng, self.width, self.height = rng, width, height
        self.shape = (max(8, round(_COARSE * height / width)), _COARSE)
        self.step = width / _COARSE
        rows, columns = self.shape
        self.y, self.x = np.meshgrid(
            (np.arange(rows, dtype=np.float32) + 0.5) * np.float32(height / rows),
            (np.arange(columns, dtype=np.float32) + 0.5) * np.float32(self.step),
            indexing="ij",
        )

    def noise(self, wavelength: float) -> np.ndarray:
        """(h, w) smooth noise of deviation about 1 with features of `wavelength` micrometres."""
        across, down = self.width / wavelength, self.height / wavelength
        knots = self.rng.standard_normal((int(down) + 5, int(across) + 5), dtype=np.float32)
        left, top = 1 + self.rng.random(2)
        image = Image.fromarray(knots * np.float32(1.3))
        box = (left, top, left + across, top + down)
        return np.asarray(image.resize(self.shape[::-1], Image.Resampling.BICUBIC, box))

    def glands(
        self, pitch: float, radius: float, aspect: float, wall: float, warp: float, presence: float, solid: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ellipses on a jittered lattice, bent by `warp`: signed distance inwards (h, w), and the wall there (h, w).

        Each ellipse has a wall of its own and, with probability `solid`, no lumen.
        """
        rng, n = self.rng, int(max(self.width, self.height) / pitch) + 6
        angle = rng.uniform(0, np.pi, n * n)
        minor = pitch * radius * np.exp(0.18 * rng.standard_normal(n * n))
        major = minor * (1 + (aspect - 1) * rng.uniform(0.4, 1.4, n * n))
        cosine, sine = np.cos(angle), np.sin(angle)
        thick = wall * np.exp(0.2 * rng.standard_normal(n * n)) + _FAR * (rng.random(n * n) < solid)
        absent = _FAR * (rng.random(n * n) > presence)
        jitter = rng.uniform(-0.22, 0.22, (2, n * n))
        table = np.stack(
            [*jitter, cosine / major, sine / major, -sine / minor, cosine / minor, minor, absent, thick]
        ).astype(np.float32)
        bend = (self.noise(max(2.2 * warp, 0.7 * pitch)), self.noise(max(2.2 * warp, 0.7 * pitch)))
        start = 2 + rng.random(2)
        u = (self.x + np.float32(warp) * bend[0]) / np.float32(pitch) + np.float32(start[0])
        v = (self.y + np.float32(warp) * bend[1]) / np.float32(pitch) + np.float32(start[1])
        column, row = np.floor(u - 0.5).astype(np.int32), np.floor(v - 0.5).astype(np.int32)
        best = np.full(self.shape, -_FAR, np.float32)
        walls = np.full(self.shape, np.float32(wall))
        for down in (0, 1):
            for across in (0, 1):
                i, j = column + across, row + down
                jx, jy, ax, ay, bx, by, b, missing, t = table.take(j % n * n + i % n, axis=1)
                dx, dy = (u - i - 0.5 - jx) * np.float32(pitch), (v - j - 0.5 - jy) * np.float32(pitch)
                inside = (1 - np.sqrt((dx * ax + dy * ay) ** 2 + (dx * bx + dy * by) ** 2)) * b - missing
                nearer = inside > best
                best = np.where(nearer, inside, best)
                walls = np.where(nearer, t, walls)
        return best, walls


@dataclass(frozen=True)
class _Layout:
    """Coarse fields (h, w): signed distances of epithelium and of empty space (positive inside, micrometres), of the
    lesion (positive inside), strength of eosin, and the phase across the fibres with its direction in radians."""

    epithelium: np.ndarray
    empty: np.ndarray
    lesion: np.ndarray
    eosin: np.ndarray
    phase: np.ndarray
    along: np.ndarray


def _layout(scene: _Scene, form: Architecture, look: Look, severity: float, cover: float) -> _Layout:
    rng = scene.rng
    # fibres: phase grows across them, so that its level lines are the fibres
    angle = rng.uniform(0, np.pi)
    wavy = 1 + 0.3 * look.fibre
    across = scene.x * np.float32(np.cos(angle)) + scene.y * np.float32(np.sin(angle))
    across = across + np.float32(55 * wavy) * scene.noise(190) + np.float32(9 * wavy) * scene.noise(42)
    down, right = np.gradient(across)
    along = np.arctan2(right, -down)

    # the lesion covers a part of the field; the rest is ordinary breast, the same whatever the diagnosis
    bias = 1.4 * np.log(cover / (1 - cover)) * 0.6
    lesion = np.float32(130) * (scene.noise(420) * np.float32(0.8) + np.float32(bias))
    filled = 1 / (1 + np.exp(-(1.1 * severity + form.solid)))
    pitch = form.pitch * look.scale
    warp = form.warp * (1 + 0.35 * np.tanh(severity))
    eosin = 1 + np.float32(0.16) * scene.noise(260)
    if form.files:
        stripe = np.abs((across / np.float32(pitch)) % 1 - np.float32(0.5)) * np.float32(2 * pitch)
        width = form.files * (1 + 0.35 * np.tanh(severity))
        gaps = np.float32(7) * (scene.noise(30) + np.float32(1.2 - 0.9 / form.presence))
        inside = np.minimum(np.float32(width) - stripe, gaps)
        wall: np.ndarray | np.float32 = np.float32(_FAR)
    else:
        # growth: glands crowd their stroma
        radius = form.radius * np.exp(0.12 * severity)
        inside, wall = scene.glands(pitch, radius, form.aspect, form.wall, warp, form.presence, filled)
    # lumina, or in papillae the cores of stroma, begin where the wall ends
    ring = np.minimum(inside, wall - inside)
    epithelium = np.minimum(ring, lesion)
    hollow = np.minimum(inside - wall, lesion)
    if form.outside == "cavity":
        empty = np.minimum(-inside - 2, lesion - 4)
    else:
        empty = hollow
    if form.outside == "mucin":
        lake = np.clip((lesion - 8) / 12, 0, 1) * np.clip(1 - inside / 6, 0, 1)
        eosin = eosin * (1 - np.float32(0.72) * lake)

    # ordinary ducts and fat outside the lesion
    normal = -lesion - 12
    duct, duct_wall = scene.glands(240, 0.17, 1.5, 13, 14, 0.5, 0.15)
    epithelium = np.maximum(epithelium, np.minimum(np.minimum(duct, duct_wall - duct), normal))
    empty = np.maximum(empty, np.minimum(duct - duct_wall, normal))
    if rng.random() < 0.35 + 0.2 * look.fat:
        fat, _ = scene.glands(68, 0.46, 1.1, 1, 3, 1.0, 0.0)
        where = np.float32(60) * (scene.noise(380) - np.float32(0.5))
        empty = np.maximum(empty, np.minimum(np.minimum(fat, where), normal))
        epithelium = np.minimum(epithelium, -np.minimum(where, normal))
    # tears between fibres
    empty = np.maximum(empty, np.float32(16) * (scene.noise(60) - np.float32(2.3 - 0.25 * look.fibre)))
    return _Layout(epithelium, empty, lesion, eosin, across, along)


def _lattice(scene: _Scene, pitch: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places on a jittered hexagonal lattice: x, y in micrometres, and the flat index of each on the coarse grid."""
    columns, rows = int(scene.width / pitch) + 3, int(scene.height / (0.87 * pitch)) + 3
    jitter = scene.rng.random((2, rows, columns), dtype=np.float32) * np.float32(0.75)
    x = (np.arange(columns, dtype=np.float32) - 1 + np.arange(rows)[:, None] % 2 * np.float32(0.5) + jitter[0]) * pitch
    y = (np.arange(rows, dtype=np.float32)[:, None] - 1 + jitter[1]) * (0.87 * pitch)
    x, y = x.ravel(), y.ravel()
    height, width = scene.shape
    i = np.clip(x * (width / scene.width), 0, width - 1).astype(np.int32)
    j = np.clip(y * (height / scene.height), 0, height - 1).astype(np.int32)
    return x, y, j * width + i


def _nuclei(scene: _Scene, layout: _Layout, form: Architecture, look: Look, severity: float) -> np.ndarray:
    """All nuclei of the field, (n, 7) float32: x, y, the two half axes (micrometres), angle, density, irregularity."""
    rng = scene.rng
    mean = max(7.8 + 1.25 * severity, 4.8)  # diameter, micrometres
    vary = 0.11 + 0.07 / (1 + np.exp(-1.3 * severity))
    x, y, at = _lattice(scene, 1.32 * max(mean, 6.4) / np.sqrt(look.cellularity))
    inside, diseased = layout.epithelium.ravel()[at], layout.lesion.ravel()[at] > 0
    kept = (inside > 1.0) & (layout.empty.ravel()[at] < -1) & (rng.random(len(at), dtype=np.float32) < 0.93)
    x, y, diseased = x[kept], y[kept], diseased[kept]
    n = len(x)
    diameter = np.where(diseased, mean, 6.6) * np.exp(np.where(diseased, vary, 0.1) * rng.standard_normal(n))
    long = 1 + 0.3 * rng.random(n)
    dark = np.where(diseased, 0.85 + 0.13 * severity, 0.9) * (1 + 0.16 * rng.standard_normal(n))
    rough = np.where(diseased, 0.11 + 0.05 * np.tanh(severity), 0.05) * np.clip(rng.standard_normal(n), -1.6, 1.6)
    epithelial = [x, y, diameter / 2 * long, diameter / 2 / long, rng.uniform(0, np.pi, n), dark, rough]

    cells = form.cells * look.cellularity * np.exp(0.16 * severity)
    x, y, at = _lattice(scene, 13.0)
    inflamed = (scene.noise(150).ravel()[at] > 2.1 - 0.5 * look.inflammation) & (layout.lesion.ravel()[at] < 60)
    eosin = layout.eosin.ravel()[at]
    chance = np.where(inflamed, 0.85, 0.34 * cells * np.clip(eosin - 0.25, 0.05, 1))
    kept = (layout.epithelium.ravel()[at] < -2) & (layout.empty.ravel()[at] < -1.5) & (rng.random(len(at)) < chance)
    x, y, at, inflamed = x[kept], y[kept], at[kept], inflamed[kept]
    n = len(x)
    half = np.where(inflamed, 2.9, 5.4 + 0.25 * severity) * np.exp(0.18 * rng.standard_normal(n))
    thin = np.where(inflamed, 2.7, 1.75 + 0.12 * severity) * np.exp(0.15 * rng.standard_normal(n))
    angle = layout.along.ravel()[at] + 0.25 * rng.standard_normal(n)
    dark = np.where(inflamed, 1.2, 0.85 + 0.08 * severity) * (1 + 0.15 * rng.standard_normal(n))
    stromal = [x, y, half, np.minimum(thin, half), angle, dark, 0.05 * rng.standard_normal(n)]
    return np.concatenate([np.stack(epithelial, 1), np.stack(stromal, 1)]).astype(np.float32)


def _stamp(nuclei: np.ndarray, pixels: float, width: int, height: int) -> np.ndarray:
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
    scene = _Scene(rng, field, field * height / width)
    severity = look.severity + IMAGE_SEVERITY * rng.standard_normal()
    cover = float(np.clip(form.cover + COVER_SPREAD * rng.standard_normal(), 0.05, 0.97))
    thickness = float(np.exp(0.08 * rng.standard_normal()))
    layout = _layout(scene, form, look, severity, cover)
    nuclei = _nuclei(scene, layout, form, look, severity)
    hematoxylin = _stamp(nuclei, pixels, width, height)

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
    eosin += np.float32(0.12) * texture
    eosin *= 1 - cells
    eosin += cells * np.float32(0.62)
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
