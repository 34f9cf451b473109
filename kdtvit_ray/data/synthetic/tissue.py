"""The synthetic set's tissue: glands, fibres, fat and nuclei of one field of view, laid out in micrometres.

A scene does not know the magnification: its structures have sizes in micrometres, and the magnification decides only
how much of them a field shows. Layout is computed on a coarse grid, as signed distances, which stay sharp when they
are enlarged; `microscope.draw` makes an image of it.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

_COARSE = 176
"""Columns of the coarse grid, whatever the image's size: the scene is the same at every resolution."""
_FAR = 1e3


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
    "LC": Architecture(
        pitch=33, radius=0.0, aspect=1.0, wall=99, warp=20, presence=0.85, cover=0.85, cells=1.3, files=12
    ),
    "MC": Architecture(
        pitch=190, radius=0.24, aspect=1.5, wall=40, warp=22, presence=0.85, cover=0.85, solid=1.0, outside="mucin"
    ),
    "PC": Architecture(
        pitch=150, radius=0.28, aspect=2.6, wall=20, warp=32, presence=0.97, cover=0.8, solid=0.5, outside="cavity"
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


class Scene:
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
        # of the ellipses on the lattice, the four nearest can reach a place
        column, row = np.floor(u - np.float32(0.5)), np.floor(v - np.float32(0.5))
        u, v = u - column - np.float32(0.5), v - row - np.float32(0.5)
        i, j = column.astype(np.int32), row.astype(np.int32)
        best = np.full(self.shape, -_FAR, np.float32)
        walls = np.full(self.shape, np.float32(wall))
        for down in (0, 1):
            for across in (0, 1):
                places = (j + down) % n * n + (i + across) % n
                jx, jy, ax, ay, bx, by, b, missing, t = table.take(places, axis=1)
                dx, dy = (u - across - jx) * np.float32(pitch), (v - down - jy) * np.float32(pitch)
                inside = (1 - np.sqrt((dx * ax + dy * ay) ** 2 + (dx * bx + dy * by) ** 2)) * b - missing
                nearer = inside > best
                best = np.where(nearer, inside, best)
                walls = np.where(nearer, t, walls)
        return best, walls


@dataclass(frozen=True)
class Layout:
    """Coarse fields (h, w): signed distances of epithelium and of empty space (positive inside, micrometres), of the
    lesion (positive inside), strength of eosin, and the phase across the fibres with its direction in radians."""

    epithelium: np.ndarray
    empty: np.ndarray
    lesion: np.ndarray
    eosin: np.ndarray
    phase: np.ndarray
    along: np.ndarray


def lay_out(scene: Scene, form: Architecture, look: Look, severity: float, cover: float) -> Layout:
    """The layout of one field; `cover` in 0..1 is about the share of it that is lesion."""
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
    filled = 1 / (1 + np.exp(-(1.3 * severity + form.solid)))
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
        radius = form.radius * np.exp(0.14 * severity)
        inside, wall = scene.glands(pitch, radius, form.aspect, form.wall, warp, form.presence, filled)
    # lumina, or in papillae the cores of stroma, begin where the wall ends
    ring = np.minimum(inside, wall - inside)
    epithelium = np.minimum(ring, lesion)
    hollow = np.minimum(inside - wall, lesion)
    empty = np.minimum(-inside - 2, lesion - 4) if form.outside == "cavity" else hollow
    if form.outside == "mucin":
        lake = np.clip((lesion - 8) / 12, 0, 1) * np.clip(1 - inside / 6, 0, 1)
        eosin = eosin * (1 - np.float32(0.72) * lake)

    normal = -lesion - 12
    if normal.max() > 0:
        epithelium, empty = _ordinary(scene, look, normal, epithelium, empty)
    # tears between fibres
    empty = np.maximum(empty, np.float32(16) * (scene.noise(60) - np.float32(2.3 - 0.25 * look.fibre)))
    return Layout(epithelium, empty, lesion, eosin, across, along)


def _ordinary(
    scene: Scene, look: Look, normal: np.ndarray, epithelium: np.ndarray, empty: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ducts and fat where `normal` is positive: epithelium and empty space with them."""
    duct, wall = scene.glands(240, 0.17, 1.5, 13, 14, 0.5, 0.15)
    epithelium = np.maximum(epithelium, np.minimum(np.minimum(duct, wall - duct), normal))
    empty = np.maximum(empty, np.minimum(duct - wall, normal))
    if scene.rng.random() < 0.35 + 0.2 * look.fat:
        fat, _ = scene.glands(68, 0.46, 1.1, 1, 3, 1.0, 0.0)
        where = np.float32(60) * (scene.noise(380) - np.float32(0.5))
        empty = np.maximum(empty, np.minimum(np.minimum(fat, where), normal))
        epithelium = np.minimum(epithelium, -np.minimum(where, normal))
    return epithelium, empty


def _lattice(scene: Scene, pitch: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def nuclei_of(scene: Scene, layout: Layout, form: Architecture, look: Look, severity: float) -> np.ndarray:
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
