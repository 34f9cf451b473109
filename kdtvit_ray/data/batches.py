"""Batches straight from the memory map: which images, in which view, gathered into preallocated buffers. numpy only.

Every choice is a function of what it is for, never of a generator's state: the permutation of (seed, epoch), the view
of (seed, epoch, block of the image), a keyed random number of the keys given. So a resumed run, or one on another
number of workers, sees the same images in the same views.

The training images of a stage, in the order of the table, form blocks of `BLOCK`. A block's images share a view within
an epoch, so a teacher's outputs can be computed in the same batches whenever they are computed, and stored exactly.
"""

import json
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from kdtvit_ray.data import resized
from kdtvit_ray.data.cache import cache_folder
from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.folds import Split
from kdtvit_ray.data.folds import split as make_split
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import DataSpec, StageSpec

BLOCK = 32
INTERPOLATION = "bicubic"
"""How images are resized, here and where they are prepared."""
SPLITS = ("validation", "test")
"""The splits that a stage is evaluated on; their positions here are the codes in its predictions."""

_ORDER, _VIEW = 1, 2
_SHUFFLE, _BLOCK, _DRAW, _SPREAD = 11, 12, 13, 14

log = logging.getLogger(__name__)


def hashed(*keys: Any) -> np.ndarray:
    """Random 64-bit numbers as a function of integer keys, which broadcast (splitmix64's finaliser, key by key)."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(*keys: Any) -> np.ndarray:
    """Random numbers in [0, 1) as a function of integer keys, which broadcast."""
    return (hashed(*keys) >> np.uint64(11)) * 2.0**-53


def epoch_batches(images: int, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The epoch's permutation of range(`images`), cut into ceil(images / batch) nearly equal batches: no image is
    dropped and no batch is a small rest."""
    order = np.argsort(hashed(_ORDER, seed, epoch, np.arange(images)), kind="stable")
    return np.array_split(order, max(1, -(-images // batch)))


def shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    """Rows (P,) in an order that depends on the seed alone, so that a block of them is a random part of them."""
    return rows[np.argsort(hashed(_SHUFFLE, seed, rows), kind="stable")]


def rehearsed(pool: int, count: int, seed: int, epoch: int) -> np.ndarray:
    """Positions (count,) in range(`pool`) of the images that an epoch rehearses: whole passes over the pool, then a
    part of it without replacement.

    The part is made of whole blocks, save for the last one: a teacher has to compute no block but these.
    """
    passes, rest = divmod(count, pool)
    every = np.arange(pool)
    block = hashed(_BLOCK, seed, epoch, every // BLOCK)
    part = np.lexsort((hashed(_DRAW, seed, epoch, every), block))[:rest]
    drawn = np.concatenate((np.tile(every, passes), part))
    return drawn[np.argsort(hashed(_SPREAD, seed, epoch, np.arange(count)), kind="stable")]


def mixed_batches(images: int, pool: int, count: int, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """`epoch_batches` of a stage that rehearses: each of range(`images`) once, and `count` images of a pool, which have
    the positions `images` .. `images + pool - 1`. Every batch has the epoch's share of rehearsed images, as nearly as
    whole numbers allow, and the batches are nearly equal."""
    if not count:
        return epoch_batches(images, batch, seed, epoch)
    own = np.argsort(hashed(_ORDER, seed, epoch, np.arange(images)), kind="stable")
    batches = -(-(images + count) // batch)
    others = np.array_split(images + rehearsed(pool, count, seed, epoch), batches)[::-1]  # long ones come last
    return [np.concatenate(each) for each in zip(np.array_split(own, batches), others, strict=True)]


def share(batch: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The slice of a global batch that one of `world` workers computes; it may be empty."""
    return np.array_split(batch, world)[rank]


def block_views(blocks: int, views: int, seed: int, epoch: int) -> np.ndarray:
    """View (blocks,) of each block in an epoch: `views` epochs in a row show each block in every view once, in an
    order of its own."""
    orders = np.argsort(hashed(_VIEW, seed, np.arange(blocks)[:, None], np.arange(views)), axis=1, kind="stable")
    return orders[:, epoch % views]


def blocks_of(images: int) -> int:
    return -(-images // BLOCK)


def turned(pixels: np.ndarray, view: int) -> np.ndarray:
    """Squares (B, S, S, ...) in one of the 8 views of the square's symmetry: `view % 4` quarter turns anticlockwise,
    then, from view 4 on, mirrored left to right. A strided view, no copy."""
    pixels = np.rot90(pixels, view % 4, axes=(1, 2))
    return pixels[:, :, ::-1] if view >= 4 else pixels


class Pixels:
    """Pixels (S, S, 3) uint8 of prepared images at one size, indexed by position in the prepared set.

    Stored images of that size are taken as they are. Others are made once: for a set on disk, whose `fingerprint` is
    given, in a file that all processes of the node share (`resized.shared`); for a set in memory, or where that file
    cannot be written, in this object's memory, and of the images that are asked for only.
    Raises `UserError` for a size above the stored one.
    """

    def __init__(self, images: np.ndarray, size: int, crop: str = "none", fingerprint: str = "") -> None:
        height, width = images.shape[1:3]
        if size > min(height, width):
            raise UserError(
                f"image_size {size} is larger than the prepared images ({width} x {height} pixels); "
                "prepare them again with a larger size, or lower image_size"
            )
        self.size, self.crop, self._images = size, crop, images
        self._fingerprint = fingerprint if isinstance(images, np.memmap) else ""
        self._pixels: np.ndarray | None = images if (height, width) == (size, size) else None
        self.made = np.full(len(images), self._pixels is not None)
        """Which images (N,) can be gathered by now."""

    def make(self, rows: np.ndarray) -> None:
        """Resize (antialiased, bicubic) or crop those of `rows` that were not made yet."""
        if self._pixels is None and (shared := self._shared()) is not None:
            self._pixels = shared
            self.made[:] = True
        if self._pixels is None:
            self._pixels = np.empty((len(self._images), self.size, self.size, 3), np.uint8)  # pages come when written
        missing = np.unique(rows[~self.made[rows]])
        if not len(missing):
            return
        with ThreadPoolExecutor(resized.THREADS) as threads:  # Pillow resizes without the GIL
            list(threads.map(self._make, missing, chunksize=64))
        self.made[missing] = True

    def gather(self, rows: np.ndarray, views: np.ndarray | None, out: np.ndarray) -> np.ndarray:
        """Copy images `rows` (B,) in their `views` (B,) into `out` (at least B, S, S, 3); returns its first B.

        The images must have been made. Pixels are moved as three-byte units, which is several times faster than
        turning bytes one by one.
        """
        assert self._pixels is not None
        filled = out[: len(rows)]
        if views is None or not views.any():
            np.take(self._pixels, rows, axis=0, out=filled, mode="clip")  # mode "raise" would copy twice
            return filled
        source, target = (each.view("V3")[..., 0] for each in (self._pixels, filled))
        for view in np.unique(views):
            chosen = np.flatnonzero(views == view)
            target[chosen] = turned(source[rows[chosen]], int(view))
        return filled

    def _shared(self) -> np.ndarray | None:
        if not self._fingerprint:
            return None
        try:
            return resized.shared(self._images, self._fingerprint, self.size, self.crop)
        except OSError as error:
            log.warning(
                "Images of %d x %d pixels are kept in the memory of each worker, because the cache '%s' "
                "cannot be written (%s); KDTVIT_CACHE names another folder",
                *(self.size, self.size, cache_folder(), error),
            )
            return None

    def _make(self, row: int) -> None:
        assert self._pixels is not None
        self._pixels[row] = resized.resized(self._images[row], self.size, self.crop)


class StageData:
    """What stages of one `DataSpec` see: the prepared images, their split, their pixels at each size asked for.

    Made once and used for any number of stages in one process (not thread-safe). It shares its pixels with `others` of
    the same prepared set. Raises `UserError` for a spec made for another prepared set, and whatever `folds.split`
    raises.
    """

    def __init__(self, prepared: Any, spec: StageSpec | DataSpec, others: Iterable["StageData"] = ()) -> None:
        self.spec = spec.data if isinstance(spec, StageSpec) else spec
        if self.spec.fingerprint and self.spec.fingerprint != prepared.fingerprint:
            raise UserError(
                f"The prepared set '{prepared.path}' has fingerprint {prepared.fingerprint}, "
                f"but the study was made for {self.spec.fingerprint}; use the set that it was made for"
            )
        self.prepared, self.table = prepared, prepared.table
        self.dataset: Dataset = prepared.dataset
        self.split: Split = make_split(self.table, self.spec, self.dataset)
        self.magnification = self.table["magnification"].to_numpy()
        same = (each for each in others if each.prepared.fingerprint == prepared.fingerprint)
        self._pixels: dict[tuple[int, str], Pixels] = next((each._pixels for each in same), {})

    @property
    def identity(self) -> str:
        """Which images in which split: equal for equal data wherever it lies."""
        return json.dumps([self.prepared.fingerprint, asdict(self.spec)], sort_keys=True)

    def rows(self, split: str, magnifications: tuple[int, ...] | None = None) -> np.ndarray:
        """Sorted positions of a split's images ("train", "validation", "test"), at some magnifications or at all."""
        rows = np.asarray(getattr(self.split, split))
        return rows if magnifications is None else rows[np.isin(self.magnification[rows], magnifications)]

    def labels(self, head: str) -> np.ndarray:
        """Class (N,) int64 of every image of the set, for the head "subtype" or "binary"."""
        return self.table["subtype" if head == "subtype" else "malignant"].to_numpy().astype(np.int64)

    def pixels(self, size: int, crop: str) -> Pixels:
        if (size, crop) not in self._pixels:
            self._pixels[size, crop] = Pixels(self.prepared.images, size, crop, self.prepared.fingerprint)
        return self._pixels[size, crop]

    def evaluated(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (M,) and split codes (M,) of all images that a stage is evaluated on, at all magnifications."""
        rows = [self.rows(name) for name in SPLITS]
        codes = [np.full(len(each), code, np.int8) for code, each in enumerate(rows)]
        return np.concatenate(rows), np.concatenate(codes)
