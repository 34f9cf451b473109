"""The images of a prepared set at another size: one file a node, made once and mapped by all folds and workers.

All images are made at once. A chain meets them all anyway, since each of its stages is evaluated at every
magnification; and a file that grew row by row would need a record of its rows that is never ahead of them, also after a
loss of power. The price is a wait before the first stage. A file is renamed to its name when it is complete and on
disk, so whoever is killed meanwhile leaves none. It ends with a digest of its pixels, which each process compares once
before it uses them (1 s for 1.1 GB); a file that is not what it was is made again.
"""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from kdtvit_ray.data.cache import cache_folder, reserved
from kdtvit_ray.paths import sync

ROWS = 256
"""Images that are made and written at once."""
DIGEST = 16
"""Bytes of the digest at the end of a file."""
THREADS = min(8, os.cpu_count() or 1)

log = logging.getLogger(__name__)


def resized(image: np.ndarray, size: int, crop: str) -> np.ndarray:
    """An image (H, W, 3) uint8 as (size, size, 3): its middle for the crop "centre", else all of it, resized with
    antialiasing (bicubic)."""
    if crop == "centre":
        top, left = ((side - size) // 2 for side in image.shape[:2])
        return image[top : top + size, left : left + size]
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def shared(images: np.ndarray, fingerprint: str, size: int, crop: str) -> np.ndarray:
    """All `images` (N, H, W, 3) of the set `fingerprint` as (N, size, size, 3), a read-only map of a file in this
    node's cache. Of several processes that need it at once, one makes it and the others wait.

    Raises `OSError` where the cache cannot be written.
    """
    # another Pillow may resize to other bits
    name = f"{fingerprint}-{size}-{crop}-pillow-{PIL.__version__}.npy"
    shape = (len(images), size, size, 3)
    found = _opened(cache_folder() / name, shape)
    if found is None:
        with reserved(name) as path:
            found = _opened(path, shape)
            if found is None:
                log.info("Making %d images of %d x %d pixels, once on this node: %s", len(images), size, size, path)
                _make(images, path, shape, crop)
                found = np.load(path, mmap_mode="r")
    return found


def _opened(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The file's images, or None where there is no file, or one that is not what it was when it was made."""
    try:
        found = np.load(path, mmap_mode="r")
        with path.open("rb") as file:
            file.seek(-DIGEST, os.SEEK_END)
            digest = file.read()
    except (OSError, ValueError, EOFError):
        return None
    if (found.shape, found.dtype) != (shape, np.uint8):
        return None
    return found if hashlib.blake2b(found, digest_size=DIGEST).digest() == digest else None


def _make(images: np.ndarray, path: Path, shape: tuple[int, ...], crop: str) -> None:
    # written, not mapped: on a full disk a write raises an error, a store into a map kills the process
    unfinished = path.with_name(f"{path.name}.partial")
    make = partial(resized, size=shape[1], crop=crop)
    try:
        with unfinished.open("wb") as file, ThreadPoolExecutor(THREADS) as threads:  # Pillow resizes without the GIL
            about = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, about)
            digest = hashlib.blake2b(digest_size=DIGEST)
            for start in range(0, len(images), ROWS):
                made = np.stack(list(threads.map(make, images[start : start + ROWS]))).data
                digest.update(made)
                file.write(made)
            file.write(digest.digest())  # after the array, where readers of such files do not look
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)
