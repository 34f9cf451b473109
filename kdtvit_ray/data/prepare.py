"""Decode and resize a source of images once, into one uncompressed file that every later run maps into memory.

What it writes is described in `prepared.py`. Work runs on threads: Pillow's decoding and resizing, and the hashing, all
release the interpreter's lock.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL

from kdtvit_ray.data import sources
from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.decode import ASPECTS, Decoded, decode, judge, pixel_digest
from kdtvit_ray.data.findings import Refused, delete_findings
from kdtvit_ray.data.prepared import VERSION, Prepared, fingerprint, open_prepared, table_digest
from kdtvit_ray.data.same_source import archive_signature, contents, file_digest, same_contents, signature
from kdtvit_ray.data.sources.breakhis import SOURCE as BREAKHIS
from kdtvit_ray.data.sources.breakhis import census_differences
from kdtvit_ray.data.sources.files import Found, Scan, is_archive
from kdtvit_ray.data.sources.labelled import parts
from kdtvit_ray.errors import UserError, choose, readable
from kdtvit_ray.paths import (
    PREPARED_ABOUT,
    PREPARED_IMAGES,
    PREPARED_TABLE,
    check_utf8,
    expanded,
    sync,
    without_secrets,
)

SIZES = (16, 1024)
"""Smallest and largest side of a stored image, pixels."""
TABLE_ROW_BYTES = 1024
"""Generous share of the table and the about file in the space that a set needs."""

_URI = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/+")
"""How a URI begins, also one from which a `Path` has taken slashes."""

_LOCK = ".preparing"
_HALF = f"{PREPARED_ABOUT}.partial"
_FILES = (PREPARED_ABOUT, PREPARED_TABLE, PREPARED_IMAGES, _HALF)


def prepare(
    source: Path | str,
    out: Path | str,
    *,
    size: int = 256,
    aspect: str = "crop",
    pattern: str = "",
    positive: str | Sequence[str] = (),
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Prepare `source` in the folder `out`, or open what is there already from the same source.

    `pattern` and `positive` (one text, or several) are for sources that are not BreakHis (see `sources.scan`). `aspect`
    says how an image becomes a square of `size` pixels: `crop` cuts the central square, `squash` keeps all tissue and
    its proportions not. `workers` are threads, 0 for one a core; `progress(done, total)` counts images. An interrupted
    run leaves nothing; a killed one leaves files that the next run starts over.

    `source` and `out` are local paths. Raises `UserError`: for a URI, for a source without images, for bad lines or
    images (all of them at once, the first by name; where there are many, all of them in `OUT-findings.txt` beside
    `out`, or in `OUT-findings-2.txt` where that is somebody's own), for a folder that holds something else, for a disk
    without room.
    """
    _check_local(str(source), str(out))
    source, out = expanded(source), expanded(out)
    check_utf8(out.resolve())
    choose("aspect", aspect, ASPECTS)
    if not isinstance(size, int) or not SIZES[0] <= size <= SIZES[1]:
        raise UserError(
            f"Size {size!r} cannot be stored; allowed: a whole number of pixels from {SIZES[0]} to {SIZES[1]}"
        )
    positive = [positive] if isinstance(positive, str) else positive
    positive = [each for each in positive if parts(each)]
    found: Scan | None = None

    def read() -> Scan:
        return found or sources.scan(source, pattern=pattern, positive=positive)

    try:
        if is_archive(source):  # a look at the archive's name and date is enough to find its prepared set again
            signed = archive_signature(source, pattern, positive)
        else:
            found = read()
            signed = signature(found)
        asked = {"size": size, "aspect": aspect, "signature": signed}
        made = _prepare(source, read, out, asked, workers or os.cpu_count() or 1, progress)
    except Refused as error:
        raise error.written_beside(out) from None
    delete_findings(out)
    return made


def _check_local(source: str, out: str) -> None:
    """Raise `UserError` for a URI."""
    for location, wrong, instead in (
        (source, "Images are not read from", "copy them to a disk first"),
        (out, "A set cannot be prepared in", "prepare it on a disk, then copy its folder there"),
    ):
        if _URI.match(location):
            uri = without_secrets(_URI.sub(r"\1://", location))
            raise UserError(f"{wrong} '{uri}'; allowed: a local path, so {instead}, such as by 'aws s3 cp --recursive'")


# ---- the set


def _prepare(
    source: Path,
    read: Callable[[], Scan],
    out: Path,
    asked: dict[str, Any],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> Prepared:
    size = asked["size"]
    if finished := _finished(out, source, read, asked):
        return finished  # without the lock: a finished set may lie where nobody can write
    with _own(out):
        if finished := _finished(out, source, read, asked):  # by another process, meanwhile
            return finished
        found = read()
        _clear(out)
        try:
            _check_space(out, len(found.images) * size * size * 3 + len(found.images) * TABLE_ROW_BYTES)
            _write(found, out, asked, workers, progress)
            return open_prepared(out)
        except OSError as error:
            _clear(out)
            raise UserError(_write_failure(out, error)) from None
        except BaseException:
            _clear(out)
            raise


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
    stored_digest = hashlib.blake2b(pixels, digest_size=16).digest()
    return Decoded(position, "", *full.size, pixel_digest(full), stored_digest, file_digest(content))


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
        table = _table(found.images, found.dataset)
        differences = census_differences(table) if found.dataset.source == BREAKHIS else []
        notes = judge(found, decoded, size, complete=not differences)
        os.fsync(file)
    finally:
        os.close(file)
    table.to_parquet(out / PREPARED_TABLE, index=False)
    sync(out / PREPARED_TABLE)
    about = {
        "size": size,
        "aspect": aspect,
        "source": readable(found.source.name),
        "images": count,
        "counts": {str(each): int((table["magnification"] == each).sum()) for each in found.dataset.magnifications},
        "census_differences": differences,
        "notes": notes,
        "pillow": PIL.__version__,
        "dataset": found.dataset.to_plain(),
    }
    stored = {
        "version": VERSION,
        "fingerprint": fingerprint(table, (size, size), [each.stored_digest for each in decoded], found.dataset),
        "table": table_digest(table),
        "signature": asked["signature"],
        "contents": contents(found, [each.file_digest for each in decoded]),
        "about": about,
    }
    half = out / _HALF
    half.write_text(json.dumps(stored, indent=1) + "\n")
    sync(half)
    half.replace(out / PREPARED_ABOUT)
    sync(out)


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


def _table(images: Sequence[Found], dataset: Dataset) -> pd.DataFrame:
    subtype = np.array([dataset.classes.index(each.label) for each in images], np.int8)
    return pd.DataFrame(
        {
            "name": [each.name for each in images],
            "subtype": subtype,
            "malignant": subtype >= dataset.first_positive,
            "magnification": np.array([each.magnification for each in images], np.int16),
            "slide": [each.slide for each in images],
            "id": [each.id for each in images],
            "stem": [each.stem for each in images],
            "sequence": np.array([each.sequence for each in images], np.int32),
        }
    )


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


# ---- the folder


def _finished(out: Path, source: Path, read: Callable[[], Scan], asked: dict[str, Any]) -> Prepared | None:
    """The finished set in `out` if it is what is asked for; `None` where there is none; else a `UserError`."""
    if not (out / PREPARED_ABOUT).exists():
        return None
    prepared = open_prepared(out)
    for key in ("size", "aspect"):
        if prepared.about[key] != asked[key]:
            raise UserError(
                f"Folder '{out}' holds a set prepared with {key} {prepared.about[key]}, not {asked[key]}; "
                "choose another folder, or delete this one first"
            )
    stored = json.loads((out / PREPARED_ABOUT).read_text())
    held = stored.get("contents", "")  # sets of folders that were prepared before have none
    if stored["signature"] != asked["signature"] and not (held and same_contents(held, source, read)):
        by = "" if held else ", by their names, sizes and times"
        raise UserError(
            f"Folder '{out}' holds a set prepared from other files than '{source}' now has{by}; "
            "choose another folder, or delete this one first"
        )
    return prepared


@contextmanager
def _own(out: Path) -> Iterator[None]:
    """Make `out` and hold it alone; afterwards remove the lock, and the folder if it was made here and is empty. Raises
    `UserError` where it cannot be made, holds other files or is held by another process."""
    made = not out.exists()
    try:
        lock = _locked(out)
    except FileExistsError:
        what = "a link to nowhere" if out.is_symlink() else "a file"
        raise UserError(f"'{out}' is {what}; choose a new folder for the prepared set") from None
    except OSError as error:
        raise UserError(_write_failure(out, error)) from None
    try:
        try:
            yield
        finally:
            (out / _LOCK).unlink(missing_ok=True)
    finally:
        os.close(lock)
        if made and not any(out.iterdir()):
            out.rmdir()


def _locked(out: Path) -> int:
    """Make `out` and take its lock. Raises `UserError` where others have it, `OSError` where it cannot be made."""
    while True:
        out.mkdir(parents=True, exist_ok=True)
        _check_unused(out)
        lock = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"Folder '{out}' is being prepared by another process; wait for it to end") from None
        except OSError:
            return lock  # a file system without locks: two runs at once into one folder are then the user's to avoid
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (out / _LOCK).stat()):
                return lock
        os.close(lock)  # its owner has removed it since it was opened, so that the next process would make another one


def _check_unused(out: Path) -> None:
    """Raise `UserError` for a folder with files that are not those of a run, killed or still going: such a run has its
    lock there. Without one, files of the same names are somebody else's."""
    ours = (*_FILES, _LOCK) if (out / _LOCK).exists() else ()
    others = sorted(each.name for each in out.iterdir() if each.name not in ours)
    if others and not (out / PREPARED_ABOUT).exists():
        raise UserError(f"Folder '{out}' holds other files ({others[0]}); choose a new folder for the prepared set")


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
