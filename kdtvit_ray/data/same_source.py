"""Whether a source is the one that a set was prepared from.

Names, sizes and times of its files are enough to say yes, and are looked at in no time. Where they are others, as those
of a copy are, what the files hold decides.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from kdtvit_ray.data.sources.breakhis import SOURCE as BREAKHIS
from kdtvit_ray.data.sources.files import Scan, is_archive


def archive_signature(source: Path, pattern: str, positive: Sequence[str]) -> str:
    """What tells, without reading it, whether an archive is the one from before, read in the same way."""
    status = source.stat()
    how = f", read as {json.dumps([pattern, sorted(map(str.strip, positive))])}" if pattern or positive else ""
    return f"archive of {status.st_size} bytes from {status.st_mtime_ns}{how}"


def signature(found: Scan) -> str:
    """What tells, without decoding, whether a source is the one from before: names, sizes and times of its files, and
    what else than the names says what they are."""
    hashed = hashlib.blake2b(digest_size=16)
    for image in found.images:
        hashed.update(f"{image.path} {image.bytes} {image.modified}\n".encode())
        if found.dataset.source != BREAKHIS:
            hashed.update(json.dumps([image.label, image.magnification, image.slide, image.id]).encode())
    for finding in found.findings:
        hashed.update(f"{finding.where} {finding.reason}\n".encode())
    if found.dataset.source != BREAKHIS:
        hashed.update(json.dumps(found.dataset.to_plain(), sort_keys=True).encode())
    return f"files {hashed.hexdigest()}"


def contents(found: Scan, digests: Sequence[bytes] = ()) -> str:
    """What tells whether a source is the one from before where its dates, its place or the words of the command are
    others: its bytes, and what they were read as. `digests` are the `file_digest` of all images of a folder or table in
    order, if they are known; else the files are read."""
    if is_archive(found.source):
        with found.source.open("rb") as file:
            digest = hashlib.file_digest(file, hashlib.blake2b).hexdigest()[:32]
    else:
        digest = file_digest(b"".join(digests or _read(found))).hex()
    return f"{_size(found.source, found)} {digest}, {_read_as(found)}"


def same_contents(stored: str, source: Path, read: Callable[[], Scan]) -> bool:
    """Whether a source, as it is `read`, has the stored `contents`. Where its size is another, no file is read."""
    if is_archive(source):
        return stored.startswith(f"{_size(source)} ") and stored == contents(read())
    found = read()
    alike = stored.startswith(f"{_size(source, found)} ") and stored.endswith(_read_as(found))
    return alike and stored == contents(found)


def file_digest(content: bytes) -> bytes:
    """16 bytes that are equal where the bytes of a file are."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _read(found: Scan) -> list[bytes]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda read: file_digest(read()), [read for _, read in found.contents()]))


def _size(source: Path, found: Scan | None = None) -> str:
    if found is None or is_archive(source):
        return f"{source.stat().st_size} bytes"
    return f"{sum(image.bytes for image in found.images)} bytes in {len(found.images)} files"


def _read_as(found: Scan) -> str:
    """The signature without what a copy may have of its own: the source's name, and of files the place and the time."""
    images = found.images
    if not is_archive(found.source):
        images = [replace(image, path=image.name, modified=0) for image in images]
    return signature(replace(found, images=images, dataset=replace(found.dataset, name="")))
