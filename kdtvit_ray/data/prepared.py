"""A prepared set: what `prepare` has written, open for reading.

It is a folder of three files: `images.npy` (uint8, (N, H, W, 3), C-order), `table.parquet` (row i describes image i;
sorted by magnification, then name) and `prepared.json`, which is written last: without it there is no set. It has the
fingerprint of the set, which stage keys are made of, and a digest of the table, which tells at every opening whether
labels or patients were changed since.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.sources.breakhis import SOURCE as BREAKHIS
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import PREPARED_ABOUT, PREPARED_IMAGES, PREPARED_TABLE, check_utf8, expanded

VERSION = 1
ABOUT = ("size", "aspect", "source", "images", "counts", "census_differences", "notes", "pillow", "dataset")
"""What a set tells of itself."""


@dataclass(frozen=True)
class Prepared:
    """A prepared set, open for reading.

    images: read-only memory map, uint8, (N, H, W, 3).
    table: N rows, in the order of `images`: name, subtype (position in `dataset.classes`), malignant (whether that
        class is positive), magnification, slide (BreakHis's folder, `M_DC-14-10926`), id (`14-10926`), stem (`14-10926`
        without letters), sequence. In other sets than BreakHis `id` and `stem` are the patient.
    fingerprint: 32 hex digits over pixels, table and dataset, the same wherever and from whatever archive it was
        prepared.
    about: what `ABOUT` lists.
    """

    path: Path
    images: np.memmap
    table: pd.DataFrame
    fingerprint: str
    about: dict[str, Any]
    dataset: Dataset


def open_prepared(path: Path) -> Prepared:
    """Open a prepared set without reading its pixels. Raises `UserError` where there is none, a damaged one, or one
    with a table that was changed."""
    path = expanded(path)
    check_utf8(path.resolve())
    if not (path / PREPARED_ABOUT).is_file():
        what = "holds no prepared set" if path.is_dir() else "does not exist"
        raise UserError(f"Folder '{path}' {what}; allowed: a folder that 'kdtvit-ray prepare SOURCE OUT' has finished")
    try:
        stored = json.loads((path / PREPARED_ABOUT).read_text())
        if stored["version"] != VERSION:
            raise ValueError(f"version {stored['version']}, this program reads version {VERSION}")
        images = np.load(path / PREPARED_IMAGES, mmap_mode="r")
        table = pd.read_parquet(path / PREPARED_TABLE)
        about = {name: stored["about"][name] for name in ABOUT}
        shape = (about["images"], about["size"], about["size"], 3)
        if images.shape != shape or images.dtype != np.uint8 or len(table) != shape[0]:
            raise ValueError(f"{PREPARED_IMAGES} holds {images.shape}, {PREPARED_TABLE} {len(table)}, expected {shape}")
        if stored["table"] != table_digest(table):
            raise UserError(
                f"Table '{path / PREPARED_TABLE}' is not what 'kdtvit-ray prepare' wrote: it was changed by hand or is "
                "damaged; change labels and patients in the source, delete this set and prepare it again"
            )
        stored["signature"]  # by which `prepare` knows whether it is what is asked for
        return Prepared(path, images, table, stored["fingerprint"], about, Dataset.from_plain(about["dataset"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise UserError(f"Prepared set '{path}' is damaged ({reason}); delete it and prepare it again") from None


def table_digest(table: pd.DataFrame) -> str:
    """32 hex digits over all columns of a table, whatever wrote its file."""
    plain = json.dumps({name: table[name].tolist() for name in table.columns}, sort_keys=True)
    return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()


def fingerprint_of(prepared: Prepared) -> str:
    """The fingerprint of what a set really holds, every pixel read: to check a copy."""
    digests = [hashlib.blake2b(image, digest_size=16).digest() for image in prepared.images]
    return fingerprint(prepared.table, prepared.images.shape[1:3], digests, prepared.dataset)


def fingerprint(table: pd.DataFrame, size: tuple[int, int], digests: Sequence[bytes], dataset: Dataset) -> str:
    """32 hex digits over the rows of a table, the digests of their stored pixels, and what else decides a result."""
    hashed = hashlib.blake2b(f"{VERSION} {size}".encode(), digest_size=16)
    if dataset.source == BREAKHIS:  # the name decides every other column of the table, and the official folds
        rows: Iterable[str] = table["name"]
    else:
        plain = dataset.to_plain()
        decisive = {name: plain.get(name) for name in ("magnifications", "classes", "positives", "test_in_fold")}
        hashed.update(json.dumps(decisive, sort_keys=True).encode())
        columns = ("name", "subtype", "magnification", "slide", "id")
        rows = (json.dumps(row) for row in zip(*(table[column].tolist() for column in columns), strict=True))
    for row, digest in zip(rows, digests, strict=True):
        hashed.update(f"\n{row} ".encode() + digest)
    return hashed.hexdigest()
