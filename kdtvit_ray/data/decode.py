"""One image file to its stored pixels, and the judgement over all images of a source: which of them cannot be used."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kdtvit_ray.data.breakhis import Found, Scan
from kdtvit_ray.errors import UserError, first_line

ASPECTS = ("crop", "squash")
BREAKHIS_ASPECT = 700 / 460
ASPECT_TOLERANCE = 0.05
SIZE_TOLERANCE = 0.02
"""Images may differ by 2 % (2 pixels at least) from the set's commonest size: some of BreakHis's are 700x456."""
SMALLEST_SIDE = 16
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "L", "YCbCr", "CMYK")


@dataclass(frozen=True)
class Decoded:
    """What is known of one image after decoding: a `problem` for a bad one, else its full size and two digests."""

    position: int
    problem: str = ""
    width: int = 0
    height: int = 0
    source_digest: bytes = b""
    stored_digest: bytes = b""


def decode(content: bytes, size: int, aspect: str) -> tuple[np.ndarray, Image.Image]:
    """The stored form of an image file, uint8 (size, size, 3), and the decoded full-size RGB image.

    One antialiased bicubic step from the full-size pixels. The crop is that step's `box`, so no pixel is shifted by
    rounding; nothing is decoded at a reduced scale. Raises `ValueError` with a reason for a file that
    is no sound image.
    """
    if not content:
        raise ValueError("empty file")
    try:
        with Image.open(io.BytesIO(content)) as checked:
            if checked.format == "PNG":
                checked.verify()  # checksums of all chunks; decoding alone does not look at them
        with Image.open(io.BytesIO(content)) as image:
            mode = image.mode
            full = image.convert("RGB")
    except Exception as error:  # Pillow's readers raise what they like on damaged files
        if str(error).startswith("cannot identify image file"):  # it goes on with an address in memory
            raise ValueError("no image that can be decoded") from None
        raise ValueError(f"truncated or damaged ({first_line(error)})") from None
    if mode not in COLOUR_MODES:
        raise ValueError(f"not an 8-bit image (mode {mode})")
    width, height = full.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side) if aspect == "crop" else (0, 0, width, height)
    return np.asarray(full.resize((size, size), Image.Resampling.BICUBIC, box=box)), full


def pixel_digest(image: Image.Image) -> bytes:
    """16 bytes that are equal where size and pixels are."""
    hashed = hashlib.blake2b(image.tobytes(), digest_size=16)
    hashed.update(str(image.size).encode())
    return hashed.digest()


def refuse_bad(found: Scan, decoded: Sequence[Decoded], complete: bool) -> list[str]:
    """Raise one `UserError` that lists every bad image by name with its reason; return notes on what is odd but kept.

    `complete` says that the source holds exactly the official census: what is odd about it is then BreakHis's own.
    """
    problems = dict(found.misnamed)
    for each in decoded:
        if each.problem:
            problems[found.images[each.position].path] = each.problem
    good = [each for each in decoded if not each.problem]
    problems.update(_missized(found, good))
    twins, notes = _twins(found, good, complete)
    problems.update(twins)
    if problems:
        listed = "; ".join(f"{path}: {reason}" for path, reason in sorted(problems.items()))
        total = len(found.images) + len(found.misnamed)
        raise UserError(f"{len(problems)} of {total} images in '{found.source}' cannot be used: {listed}")
    return notes


def _missized(found: Scan, good: Sequence[Decoded]) -> dict[str, str]:
    """Problems by path of images far from the commonest size of BreakHis's shape."""
    sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for each in good:
        sizes[each.width, each.height].append(each.position)
    if not sizes:
        return {}
    shaped = [
        (width, height)
        for width, height in sizes
        if min(width, height) >= SMALLEST_SIDE and abs(width / height / BREAKHIS_ASPECT - 1) <= ASPECT_TOLERANCE
    ]
    if not shaped:
        width, height = max(sizes, key=lambda each: (len(sizes[each]), each))
        raise UserError(
            f"Most images in '{found.source}' are {width}x{height} pixels; allowed: BreakHis's 700x460, or another "
            f"size of the same shape (within {ASPECT_TOLERANCE:.0%}, sides of {SMALLEST_SIDE} pixels at least)"
        )
    common = max(shaped, key=lambda each: (len(sizes[each]), each))
    wide, high = (max(2, int(side * SIZE_TOLERANCE)) for side in common)
    problems = {}
    for (width, height), positions in sizes.items():
        if abs(width - common[0]) > wide or abs(height - common[1]) > high:
            for position in positions:
                problems[found.images[position].path] = (
                    f"{width}x{height} pixels, where {common[0]}x{common[1]} give or take {wide}x{high} are allowed"
                )
    return problems


def _twins(found: Scan, good: Sequence[Decoded], complete: bool) -> tuple[dict[str, str], list[str]]:
    """Problems by path of images with the pixels of another one, and notes on twins that are kept.

    BreakHis files slide 14-13412 under two subtypes, with as many images under the one as under the other at every
    magnification; so equal pixels under one slide id and two subtypes are the archive's own, and kept. In a complete
    official set so are equal pixels within one slide: refusing them would refuse BreakHis. Neither crosses a patient.
    """
    positions_of: dict[bytes, list[int]] = defaultdict(list)
    for each in good:
        positions_of[each.source_digest].append(each.position)
    problems: dict[str, str] = {}
    kept: dict[tuple[str, str], int] = defaultdict(int)
    for positions in positions_of.values():
        images = [found.images[position] for position in positions]
        for index, image in enumerate(images[1:], start=1):
            partner = next((other for other in images[:index] if not _filed_twice(other, image)), None)
            if partner is None:
                kept[image.name.id, "is filed under two subtypes"] += 1
            elif complete and all(other.name.id == image.name.id for other in images[:index]):
                kept[image.name.id, "is complete by the official census"] += 1
            else:
                problems[image.path] = f"the same pixels as {partner.path}"
    notes = [
        f"Slide {slide} {why} and {count} of its images have the pixels of another one; all are kept"
        for (slide, why), count in sorted(kept.items())
    ]
    return problems, notes


def _filed_twice(one: Found, other: Found) -> bool:
    a, b = one.name, other.name
    return a.id == b.id and a.folder != b.folder and a.magnification == b.magnification
