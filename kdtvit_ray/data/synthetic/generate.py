"""A synthetic four-magnification set under official BreakHis names: for trying the whole way, and for its tests.

    kdtvit-ray synth data/synthetic --patients 40
    kdtvit-ray synth data/census --census          all 7,909 official names, with the official counts of every slide

No accuracy on it says anything about tissue. It is made so that the questions of a study can be asked of it: benign and
malignant overlap, what tells them apart differs with the magnification, and a patient's stain is plain enough to see
that a random split of images flatters a model (as it does on BreakHis). Every image follows from (seed, name) alone.
An image of 700x460 takes about 28 ms of one core to draw and 20 ms to encode.
"""

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from kdtvit_ray.data.sources.breakhis import ImageName, breakhis
from kdtvit_ray.data.synthetic.microscope import EOSIN, HEMATOXYLIN, draw
from kdtvit_ray.data.synthetic.tissue import Look
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import expanded

VERSION = 1
"""Raised whenever the same (seed, name) draws other pixels."""
ABOUT = "synthetic.json"
SIZES = (32, 2048)
"""Smallest and largest side of an image, pixels."""

SEVERITY = 1.6
"""Half the distance between the mean severities of benign and malignant patients, in deviations of a patient."""

_CHUNK = 16
_END = b"IEND\xaeB`\x82"


def synthesise(
    out: Path | str,
    *,
    patients: int = 40,
    per_magnification: int = 6,
    size: tuple[int, int] = (700, 460),
    seed: int = 0,
    census: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the set as PNG files in the folder `out` and return the number of its images.

    `patients` times four magnifications times `per_magnification` images, the eight subtypes in turn; with `census` the
    official names and counts instead. `size` is (width, height) in pixels: another size shows the same field coarser or
    finer. `workers` are processes, 0 for one a core; `progress(done, total)` counts images. Images that are there
    already, complete, are kept: an interrupted run goes on, and a set can grow in patients and in images.

    Raises `UserError`: for a size or count that is not allowed, for a folder with other images or with another seed or
    size, for a folder that cannot be written.
    """
    out = expanded(out)
    if not (len(size) == 2 and all(SIZES[0] <= side <= SIZES[1] for side in size)):
        raise UserError(f"Size {'x'.join(map(str, size))} is not allowed; allowed: {SIZES[0]} to {SIZES[1]} a side")
    if min(patients, per_magnification) < 1 or workers < 0:
        raise UserError(
            f"A set of {patients} patients with {per_magnification} images each on {workers} processes cannot be; "
            "allowed: 1 or more patients and images, 0 or more processes"
        )
    names = list(census_names() if census else synthetic_names(patients, per_magnification))
    missing = _claim(out, names, {"seed": seed, "size": list(size), "version": VERSION})
    total, done = len(names), len(names) - len(missing)
    if progress:
        progress(done, total)
    chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
    # a process takes a second to start, as long as 30 images
    workers = min(workers or os.cpu_count() or 1, len(missing) // 32)
    try:
        for count in (
            _in_processes(out, chunks, size, seed, workers) if workers > 1 else _here(out, missing, size, seed)
        ):
            done += count
            if progress:
                progress(done, total)
    except OSError as error:
        raise UserError(f"Cannot write folder '{out}': {error.strerror or error}; {done} of {total} are done") from None
    except BrokenProcessPool:
        raise UserError(
            f"A process that draws images for '{out}' was killed, perhaps for want of memory; start again with fewer"
        ) from None
    return total


def render(name: str, *, size: tuple[int, int] = (700, 460), seed: int = 0) -> np.ndarray:
    """The image of one name, with or without extension: uint8 (height, width, 3). Raises `ValueError` for no name."""
    image = ImageName.parse(name)
    return draw(_generator(seed, image.name), image.subtype, image.magnification, patient_look(seed, image), size)


def synthetic_names(patients: int, per_magnification: int) -> Iterator[str]:
    """Names without extension; patient i is the same whatever their number, and benign and malignant take turns."""
    known = breakhis()
    turns = [known.classes[each // 2 + known.first_positive * (each % 2)] for each in range(len(known.classes))]
    for patient in range(patients):
        subtype = turns[patient % len(turns)]
        yield from _slide_names(
            f"{_type(subtype)}_{subtype}-14-{90001 + patient}", dict.fromkeys(known.magnifications, per_magnification)
        )


def census_names() -> Iterator[str]:
    """The 7,909 names of the official set, as its census counts them: sequence numbers from 1 for every slide."""
    official = breakhis().census
    assert official is not None
    for slide, counts in official.images.items():
        yield from _slide_names(slide, counts)


def patient_look(seed: int, image: ImageName) -> Look:
    """The look of a patient's images. Slides that share a stem, possibly of one woman, look much alike."""
    return _look(seed, image.stem, image.folder, image.malignant)


@lru_cache(maxsize=256)
def _look(seed: int, stem: str, folder: str, malignant: bool) -> Look:
    shared, own = _generator(seed, f"stem {stem}"), _generator(seed, f"slide {folder}")
    normal = np.sqrt(0.85) * shared.standard_normal(24) + np.sqrt(0.15) * own.standard_normal(24)
    stains = np.array([HEMATOXYLIN, EOSIN]) + 0.11 * normal[:6].reshape(2, 3)
    stains = np.clip(stains, 0.03, None)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    stains *= np.array([[1.0], [0.5]]) * np.exp(0.29 * normal[6:8])[:, None]
    tint = 0.03 * normal[8:11]
    return Look(
        stains=stains,
        light=np.clip(0.91 + 0.03 * normal[11] + tint, 0.75, 1.0),
        blur=float(0.6 * np.exp(0.4 * normal[12])),
        grain=float(np.clip(0.22 + 0.06 * normal[13], 0.05, 0.4)),
        severity=float((SEVERITY if malignant else -SEVERITY) + normal[14]),
        scale=float(np.exp(0.14 * normal[15])),
        cellularity=float(np.exp(0.22 * normal[16])),
        fibre=float(normal[17]),
        inflammation=float(normal[18]),
        fat=float(normal[19]),
    )


def _generator(seed: int, what: str) -> np.random.Generator:
    """A generator keyed by (seed, what): independent of order, processes and Python's own hashing."""
    digest = hashlib.blake2b(f"{seed}/{what}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest)))


def _type(subtype: str) -> str:
    return "M" if subtype in breakhis().positives else "B"


def _slide_names(folder: str, counts: Mapping[int, int]) -> Iterator[str]:
    for magnification, count in counts.items():
        for sequence in range(1, count + 1):
            yield f"SOB_{folder}-{magnification}-{sequence:03d}"


def _claim(out: Path, names: Sequence[str], about: dict[str, object]) -> list[str]:
    """Make the folder ours, or find that it is, and return the names that are still to be drawn."""
    wanted = set(names)
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = {each.stem: each for each in out.glob("SOB_*")}
        file = out / ABOUT
        before = json.loads(file.read_text()) if file.exists() else None
        if before is None and there:
            raise UserError(f"Folder '{out}' holds images that were not generated; give a new folder")
        if before is not None and before != about:
            raise UserError(f"Folder '{out}' was generated with {before}, and now asked is {about}; give a new folder")
        if foreign := sorted(set(there) - wanted):
            raise UserError(
                f"Folder '{out}' holds {len(foreign)} images that were not asked for, such as {foreign[0]}; "
                "ask for at least as many, or give a new folder"
            )
        if before is None:
            _write(file, json.dumps(about).encode())
        return [name for name in names if name not in there or not _complete(there[name])]
    except OSError as error:
        raise UserError(f"Cannot write folder '{out}': {error.strerror or error}") from None
    except json.JSONDecodeError:
        raise UserError(f"File '{out / ABOUT}' is damaged; give a new folder") from None


def _complete(path: Path) -> bool:
    """Whether a PNG has its end, which a disk that filled up or lost power may not have kept."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_END)))
        return file.read() == _END


def _write(path: Path, content: bytes) -> None:
    half = path.with_name(f".{path.name}.part")
    half.write_bytes(content)
    half.replace(path)


def _draw_chunk(out: Path, names: Sequence[str], size: tuple[int, int], seed: int) -> int:
    for name in names:
        path = out / f"{name}.png"
        half = path.with_name(f".{path.name}.part")
        Image.fromarray(render(name, size=size, seed=seed)).save(half, format="PNG", compress_level=1)
        half.replace(path)
    return len(names)


def _here(out: Path, names: Sequence[str], size: tuple[int, int], seed: int) -> Iterator[int]:
    for name in names:
        yield _draw_chunk(out, [name], size, seed)


def _in_processes(
    out: Path, chunks: Sequence[Sequence[str]], size: tuple[int, int], seed: int, workers: int
) -> Iterator[int]:
    # spawned, not forked: the caller may have threads, a progress display for one
    context = multiprocessing.get_context("spawn")
    # an interrupt ends the caller, which then lets every process finish the images in its hands
    ignore = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=signal.signal, initargs=ignore)
    try:
        for future in as_completed([pool.submit(_draw_chunk, out, chunk, size, seed) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
