"""Decode and resize a BreakHis source once, into one uncompressed file that every later run maps into memory.

A prepared set is a folder of three files: `images.npy` (uint8, (N, H, W, 3), C-order), `table.parquet` (row i describes
image i; sorted by magnification, then name) and `prepared.json`, which is written last: without it there is no set.
Work runs on threads: Pillow's decoding and resizing, and the hashing, all release the interpreter's lock.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL

from kdtvit_ray.data.breakhis import Found, Scan, census_differences, scan
from kdtvit_ray.data.decode import ASPECTS, Decoded, decode, pixel_digest, refuse_bad
from kdtvit_ray.errors import UserError, choose
from kdtvit_ray.paths import PREPARED_ABOUT, PREPARED_IMAGES, PREPARED_TABLE
from kdtvit_ray.recipe import MAGNIFICATIONS, SUBTYPES

VERSION = 1
SIZES = (16, 1024)
"""Smallest and largest side of a stored image, pixels."""
TABLE_ROW_BYTES = 1024
"""Generous share of the table and the about file in the space that a set needs."""

_LOCK = ".preparing"
_HALF = f"{PREPARED_ABOUT}.partial"
_FILES = (PREPARED_ABOUT, PREPARED_TABLE, PREPARED_IMAGES, _HALF)


@dataclass(frozen=True)
class Prepared:
    """A prepared set, open for reading.

    images: read-only memory map, uint8, (N, H, W, 3).
    table: N rows, in the order of `images`: name, subtype (index into SUBTYPES), malignant, magnification, slide
        (folder, `M_DC-14-10926`), id (`14-10926`), stem (`14-10926` without letters), sequence.
    fingerprint: 32 hex digits over pixels and table, the same wherever and from whatever archive it was prepared.
    about: size, aspect, source, images, counts, census_differences, notes, pillow.
    """

    path: Path
    images: np.memmap
    table: pd.DataFrame
    fingerprint: str
    about: dict[str, Any]


def prepare(
    source: Path,
    out: Path,
    *,
    size: int = 256,
    aspect: str = "crop",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Prepare `source` (see `breakhis.scan`) in the folder `out`, or open what is there already from the same source.

    `aspect` says how a 700x460 image becomes a square of `size` pixels: `crop` cuts the central square, `squash` keeps
    all tissue and its proportions not. `workers` are threads, 0 for one a core; `progress(done, total)` counts images.
    An interrupted run leaves nothing; a killed one leaves files that the next run starts over.

    Raises `UserError`: for a source without images, for bad images (all of them at once, by name), for a folder that
    holds something else, for a disk without room.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    choose("aspect", aspect, ASPECTS)
    if not SIZES[0] <= size <= SIZES[1]:
        raise UserError(f"Size {size} cannot be stored; allowed: {SIZES[0]} to {SIZES[1]} pixels")
    if source.is_file():  # a look at the archive's name and date is enough to find its prepared set again
        asked = {"signature": _archive_signature(source), "size": size, "aspect": aspect}
        found = None
    else:
        found = scan(source)
        asked = {"signature": _folder_signature(found), "size": size, "aspect": aspect}
    with _own(out):
        finished = _finished(out, source, asked)
        if finished:
            return finished
        found = found or scan(source)
        _clear(out)
        try:
            _check_space(out, len(found.images) * size * size * 3 + len(found.images) * TABLE_ROW_BYTES)
            _write(found, out, asked, workers or os.cpu_count() or 1, progress)
            return open_prepared(out)
        except OSError as error:
            _clear(out)
            raise UserError(_write_failure(out, error)) from None
        except BaseException:
            _clear(out)
            raise


def open_prepared(path: Path) -> Prepared:
    """Open a prepared set without reading its pixels. Raises `UserError` where there is none, or a damaged one."""
    path = Path(path).expanduser()
    if not (path / PREPARED_ABOUT).is_file():
        what = "holds no prepared set" if path.is_dir() else "does not exist"
        raise UserError(f"Folder '{path}' {what}; allowed: a folder that 'kdtvit-ray prepare SOURCE OUT' has finished")
    try:
        stored = json.loads((path / PREPARED_ABOUT).read_text())
        if stored["version"] != VERSION:
            raise ValueError(f"version {stored['version']}, this program reads version {VERSION}")
        images = np.load(path / PREPARED_IMAGES, mmap_mode="r")
        table = pd.read_parquet(path / PREPARED_TABLE)
        shape = (stored["about"]["images"], stored["about"]["size"], stored["about"]["size"], 3)
        if images.shape != shape or images.dtype != np.uint8 or len(table) != shape[0]:
            raise ValueError(f"{PREPARED_IMAGES} holds {images.shape}, {PREPARED_TABLE} {len(table)}, expected {shape}")
        return Prepared(path, images, table, stored["fingerprint"], stored["about"])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise UserError(f"Prepared set '{path}' is damaged ({reason}); delete it and prepare it again") from None


def fingerprint_of(prepared: Prepared) -> str:
    """The fingerprint of what a set really holds, every pixel read: to check a copy."""
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in prepared.images]
    return _fingerprint(prepared.table, prepared.images.shape[1:3], digests)


# ---- the set


def _work(position: int, read: Callable[[], bytes], file: int, start: int, size: int, aspect: str) -> Decoded:
    """Decode one image into its place in the open file; `start` is the first pixel's offset."""
    try:
        content = read()
    except OSError as error:
        return Decoded(position, f"cannot be read ({error.strerror})")
    try:
        stored, full = decode(content, size, aspect)
    except ValueError as error:
        return Decoded(position, str(error))
    pixels = stored.tobytes()
    _write_at(file, pixels, start + position * len(pixels))
    return Decoded(position, "", *full.size, pixel_digest(full), hashlib.blake2b(pixels, digest_size=16).digest())


def _write_at(file: int, content: bytes, offset: int) -> None:
    # pwrite and not the memory map: a full disk is then an OSError here, not a SIGBUS of the whole process
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _write(
    found: Scan, out: Path, asked: dict[str, Any], workers: int, progress: Callable[[int, int], None] | None
) -> None:
    size, aspect, count = asked["size"], asked["aspect"], len(found.images)
    header = _npy_header((count, size, size, 3))
    file = os.open(out / PREPARED_IMAGES, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _write_at(file, header, 0)
        decoded: list[Decoded] = []
        work = partial(_work, file=file, start=len(header), size=size, aspect=aspect)
        with closing(_bounded(work, found, workers)) as results:  # no thread may outlive the open file
            for each in results:
                decoded.append(each)
                if progress:
                    progress(len(decoded), count)
        decoded.sort(key=lambda each: each.position)
        table = _table(found.images)
        differences = census_differences(table)
        notes = refuse_bad(found, decoded, complete=not differences)
        os.fsync(file)
    finally:
        os.close(file)
    table.to_parquet(out / PREPARED_TABLE, index=False)
    about = {
        "size": size,
        "aspect": aspect,
        "source": found.source.name,
        "images": count,
        "counts": {str(each): int((table["magnification"] == each).sum()) for each in MAGNIFICATIONS},
        "census_differences": differences,
        "notes": notes,
        "pillow": PIL.__version__,
    }
    stored = {
        "version": VERSION,
        "fingerprint": _fingerprint(table, (size, size), [each.stored_digest for each in decoded]),
        "signature": asked["signature"],
        "about": about,
    }
    half = out / _HALF
    half.write_text(json.dumps(stored, indent=1) + "\n")
    half.replace(out / PREPARED_ABOUT)


def _bounded(work: Callable[..., Decoded], found: Scan, workers: int) -> Generator[Decoded, None, None]:
    """Results of `work` over the source's contents on threads, with a few images per worker in memory and no more."""
    waiting: deque[Future[Decoded]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
    try:
        for position, read in found.contents():
            waiting.append(pool.submit(work, position, read))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _table(images: Sequence[Found]) -> pd.DataFrame:
    names = [each.name for each in images]
    return pd.DataFrame(
        {
            "name": [each.name for each in names],
            "subtype": np.array([SUBTYPES.index(each.subtype) for each in names], np.int8),
            "malignant": np.array([each.malignant for each in names], bool),
            "magnification": np.array([each.magnification for each in names], np.int16),
            "slide": [each.folder for each in names],
            "id": [each.id for each in names],
            "stem": [each.stem for each in names],
            "sequence": np.array([each.sequence for each in names], np.int32),
        }
    )


def _fingerprint(table: pd.DataFrame, size: tuple[int, int], digests: Sequence[bytes]) -> str:
    hashed = hashlib.blake2b(f"{VERSION} {size}".encode(), digest_size=16)
    # the name decides every other column of the table
    for name, digest in zip(table["name"], digests, strict=True):
        hashed.update(f"\n{name} ".encode() + digest)
    return hashed.hexdigest()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


# ---- the folder


def _archive_signature(source: Path) -> str:
    """What tells, without reading it, whether an archive is the one from before."""
    status = source.stat()
    return f"archive of {status.st_size} bytes from {status.st_mtime_ns}"


def _folder_signature(found: Scan) -> str:
    """What tells, without decoding, whether a folder is the one from before: names, sizes and times of its files."""
    hashed = hashlib.blake2b(digest_size=16)
    for image in found.images:
        hashed.update(f"{image.path} {image.bytes} {image.modified}\n".encode())
    for path, reason in found.misnamed:
        hashed.update(f"{path} {reason}\n".encode())
    return f"files {hashed.hexdigest()}"


def _finished(out: Path, source: Path, asked: dict[str, Any]) -> Prepared | None:
    """The finished set in `out` if it is what is asked for; `None` where there is none; else a `UserError`."""
    if not (out / PREPARED_ABOUT).exists():
        if others := sorted(each.name for each in out.iterdir() if each.name not in (*_FILES, _LOCK)):
            raise UserError(f"Folder '{out}' holds other files ({others[0]}); choose a new folder for the prepared set")
        return None
    prepared = open_prepared(out)
    for key in ("size", "aspect"):
        if prepared.about[key] != asked[key]:
            raise UserError(
                f"Folder '{out}' holds a set prepared with {key} {prepared.about[key]}, not {asked[key]}; "
                "choose another folder, or delete this one first"
            )
    if json.loads((out / PREPARED_ABOUT).read_text())["signature"] != asked["signature"]:
        raise UserError(
            f"Folder '{out}' holds a set prepared from other files than '{source}' now has; "
            "choose another folder, or delete this one first"
        )
    return prepared


@contextmanager
def _own(out: Path) -> Iterator[None]:
    """Make `out` and hold it alone; afterwards remove the lock, and the folder if it was made here and is empty."""
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except FileExistsError:
        raise UserError(f"'{out}' is a file; choose a new folder for the prepared set") from None
    except OSError as error:
        raise UserError(_write_failure(out, error)) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            made = False
            raise UserError(f"Folder '{out}' is being prepared by another process; wait for it to end") from None
        except OSError:
            pass  # a file system without locks: two runs at once into one folder are then the user's to avoid
        try:
            yield
        finally:
            (out / _LOCK).unlink(missing_ok=True)
    finally:
        os.close(lock)
        if made and not any(out.iterdir()):
            out.rmdir()


def _clear(out: Path) -> None:
    for name in _FILES:  # the mark of a finished set goes first
        (out / name).unlink(missing_ok=True)


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed:
        raise UserError(
            f"Preparing in '{out}' needs {_gigabytes(needed)}, but {_gigabytes(free)} are free; "
            "free some space, choose another disk or a smaller size"
        )


def _write_failure(out: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"The disk of '{out}' is full ({error.strerror}); nothing was left there, free some space and start again"
        )
    return f"Cannot write the prepared set in '{out}': {error.strerror or error}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
