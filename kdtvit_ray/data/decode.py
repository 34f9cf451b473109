"""One image file to its stored pixels, and the judgement over all images of a source: which of them cannot be used."""

import hashlib
import io
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import ExifTags, Image

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.findings import Finding, Refused
from kdtvit_ray.data.sources.breakhis import SOURCE as BREAKHIS
from kdtvit_ray.data.sources.files import Found, Scan, shortened
from kdtvit_ray.errors import counted, first_line

ASPECTS = ("crop", "squash")
SIZE_TOLERANCE = 0.02
"""Sizes that differ by 2 % (2 pixels at least) are one size: some of BreakHis's 700x460 images are 700x456."""
SMALLEST_SIDE = 16
"""An image with a shorter side, in pixels, is taken for a broken one."""
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "L", "LA", "YCbCr", "CMYK")
NOT_READ = ("BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow knows and that are weather, measurements, films or drawings; it starts Ghostscript for EPS."""

# of a file between Pillow's two limits, which is read; for the whole process, since images are decoded on threads, for
# each of which Python's way to silence a warning for a while would undo that of the others
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# of metadata that make no sense, which say nothing of the pixels
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the orientation in its metadata."""
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""What begins a part of a JPEG file; not a 255 of the compressed pixels, which a zero follows, nor a mark to restart
at."""
_JPEG_BEGIN, _JPEG_END = b"\xd8", b"\xd9"
_TIFF_BITS = 258
"""TIFF's tag `BitsPerSample`."""
_JPEG2000_SIZE = b"\xff\x4f\xff\x51"
"""Where a JPEG 2000 code stream begins: with the segment that holds the number of channels and the bits of each."""


@dataclass(frozen=True)
class Decoded:
    """What is known of one image after decoding: a `problem` for a bad one, else its full size and three digests: of
    the full-size pixels, of the stored ones and of the file."""

    position: int
    problem: str = ""
    width: int = 0
    height: int = 0
    source_digest: bytes = b""
    stored_digest: bytes = b""
    file_digest: bytes = b""


@cache
def formats() -> tuple[str, ...]:
    """The formats of Pillow in which images are read, in the order in which it tries them."""
    Image.preinit()
    Image.init()
    return tuple(each for each in Image.ID if each not in NOT_READ)


def decode(content: bytes, size: int, aspect: str) -> tuple[np.ndarray, Image.Image]:
    """The stored form of an image file, uint8 (size, size, 3), and the decoded full-size RGB image.

    One antialiased bicubic step from the full-size pixels. The crop is that step's `box`, so no pixel is shifted by
    rounding; nothing is decoded at a reduced scale. What is transparent becomes white. Raises `ValueError` with a
    reason for a file that is no sound image.
    """
    if not content:
        raise ValueError("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=formats()) as checked:
            if checked.format == "PNG":
                checked.verify()  # checksums of all chunks; decoding alone does not look at them
            if checked.format in ("JPEG", "MPO") and not _has_end(content):
                raise ValueError("it has no end")  # zeros at the place of the rest decode as grey
        with Image.open(io.BytesIO(content), formats=formats()) as image:
            mode, bits = image.mode, _bits(image, content)
            # a camera's MPO begins with the photograph, after which come smaller copies or the other eye's view
            several = image.format != "MPO" and getattr(image, "is_animated", False)
            frames = getattr(image, "n_frames", 1) if several else 1
            turned = _upright(image)
            full = turned.convert("RGB")
            veiled = mode in COLOUR_MODES and turned.has_transparency_data
            alpha = turned.convert("RGBA").getchannel("A") if veiled else None
    except Image.DecompressionBombError as error:
        raise ValueError(f"too large ({first_line(error)})") from None
    except Exception as error:  # Pillow's readers raise what they like on damaged files
        if str(error).startswith("cannot identify image file"):  # it goes on with an address in memory
            raise ValueError("no image that can be decoded") from None
        raise ValueError(f"truncated or damaged ({first_line(error)})") from None
    if mode not in COLOUR_MODES:
        raise ValueError(f"not an 8-bit image in grey, RGB or CMYK (mode {mode})")
    if bits > 8:
        raise ValueError(f"not an 8-bit image in grey, RGB or CMYK ({bits} bits a channel)")
    if frames > 1:
        raise ValueError(f"several images in one file ({frames} frames or pages)")
    if alpha:
        full = _on_white(full, alpha)
    width, height = full.size
    side = min(width, height)
    if side < SMALLEST_SIDE:
        raise ValueError(f"too small ({width}x{height} pixels, allowed: {SMALLEST_SIDE} a side at least)")
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side) if aspect == "crop" else (0, 0, width, height)
    return np.asarray(full.resize((size, size), Image.Resampling.BICUBIC, box=box)), full


def _has_end(jpeg: bytes) -> bool:
    """Whether the first image of a JPEG file has its end. It is looked for from part to part, since a thumbnail in one
    of them has an end of its own, and so has what a camera stores behind the first image."""
    at = 2
    while part := _JPEG_MARKER.search(jpeg, at):
        if part[1] in (_JPEG_BEGIN, _JPEG_END):
            return part[1] == _JPEG_END
        at = part.end() + int.from_bytes(jpeg[part.end() : part.end() + 2], "big")
    return False


def _upright(image: Image.Image) -> Image.Image:
    """An image as its camera was held, which stores the way up beside the pixels. Metadata that cannot be read name no
    way."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's reader raises what it likes
        return image
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _on_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """An RGB image on white, as the ground of a stained slide is and as viewers show it: where a file is transparent it
    holds any colour, most often black. Opaque pixels stay as they are. Raises `ValueError` where none can be seen."""
    lowest, highest = alpha.getextrema()
    if highest == 0:
        raise ValueError("transparent all over, nothing of it can be seen")
    if lowest == 255:
        return image
    ground = Image.new("RGB", image.size, "white")
    ground.paste(image, mask=alpha)
    return ground


def _bits(image: Image.Image, content: bytes) -> int:
    """Bits a channel in the file itself. Pillow opens 16-bit colour as 8-bit images and drops the low byte silently."""
    if image.format == "PNG":
        return content[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_TIFF_BITS, (1,)))  # type: ignore[attr-defined]
    if image.format == "PPM":
        # arguments of the decoder: a raw mode, and the largest value with it where that is not 255
        arguments = image.tile[0][3]  # type: ignore[attr-defined]
        return int(arguments[1]).bit_length() if isinstance(arguments, tuple) else 8
    if image.format == "SGI":
        return 8 * content[3]
    if image.format == "JPEG2000":
        size = content.index(_JPEG2000_SIZE)
        channels = int.from_bytes(content[size + 40 : size + 42], "big")
        return max(1 + (each & 0x7F) for each in content[size + 42 : size + 42 + 3 * channels : 3])
    return 8  # no other format that Pillow reads in colour has more


def pixel_digest(image: Image.Image) -> bytes:
    """16 bytes that are equal where size and pixels are."""
    hashed = hashlib.blake2b(image.tobytes(), digest_size=16)
    hashed.update(str(image.size).encode())
    return hashed.digest()


def judge(found: Scan, decoded: Sequence[Decoded], size: int, complete: bool = False) -> list[str]:
    """Raise `Refused` with every bad image by name and reason; return notes on what is odd but kept.

    size: the side of the stored squares, pixels. complete: whether the source holds exactly the official census: what
    is odd about it is then BreakHis's own.
    """
    findings = list(found.findings)
    good = [each for each in decoded if not each.problem]
    findings += [Finding(found.images[each.position].path, each.problem) for each in decoded if each.problem]
    if found.dataset.source == BREAKHIS:
        twins, notes = _breakhis_twins(found, good, complete)
    else:
        twins, notes = _twins(found, good)
    findings += twins
    if findings:
        findings.sort(key=lambda each: (each.where, each.reason))
        total = len(found.images) + len(found.findings)
        raise Refused(findings, f"{len(findings)} of {total} images in '{found.source}' cannot be used")
    return [*found.notes, *_sizes(found.dataset, good, size), *notes]


def _sizes(dataset: Dataset, good: Sequence[Decoded], stored: int) -> list[str]:
    """Notes on images of several sizes, of another size than the originals, and smaller than they are stored."""
    left = Counter((each.width, each.height) for each in good)
    sizes: list[tuple[tuple[int, int], int]] = []
    while left:  # the commonest size takes those that differ from it by next to nothing
        common = max(left, key=lambda each: (left[each], each))
        near = [each for each in left if _alike(each, common)]
        sizes.append((common, sum(left.pop(each) for each in near)))
    notes = []
    originals = (dataset.census.width, dataset.census.height) if dataset.census else None
    resized = [(each, count) for each, count in sizes if originals and not _alike(each, originals)]
    if len(sizes) > 1:
        counts = shortened([f"{count} of {_pixels(each)}" for each, count in sizes], 10)
        notes.append(f"The images have several sizes: {counts} pixels")
    if resized and originals:
        count, which = sum(count for _, count in resized), shortened([_pixels(each) for each, _ in resized], 3)
        who = "The images" if count == len(good) else f"{count} of {len(good)} images"
        notes.append(f"{who} are {which} pixels, the originals {_pixels(originals)}: they were resized before")
    if enlarged := sum(min(each.width, each.height) < stored for each in good):
        who = "The images" if enlarged == len(good) else f"{enlarged} of {len(good)} images"
        notes.append(f"{who} have less than {stored} pixels on a side and were enlarged to {stored}x{stored}")
    return notes


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return all(abs(a - b) <= max(2, int(b * SIZE_TOLERANCE)) for a, b in zip(one, other, strict=True))


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# ---- images with the same pixels


def _equal(found: Scan, good: Sequence[Decoded]) -> list[list[Found]]:
    """The images that have the pixels of other ones, in groups."""
    positions_of: dict[bytes, list[int]] = defaultdict(list)
    for each in good:
        positions_of[each.source_digest].append(each.position)
    return [[found.images[at] for at in positions] for positions in positions_of.values() if len(positions) > 1]


def _twin(image: Found, partner: Found, why: str = "") -> Finding:
    return Finding(image.path, f"the same pixels as {partner.path}{why}", "with the pixels of another image")


def _twins(found: Scan, good: Sequence[Decoded]) -> tuple[list[Finding], list[str]]:
    """Equal pixels between two patients, two classes or two magnifications are a mistake: somebody would be on two
    sides of a split, or one image would be taught as two things. Within one patient they are kept, and said."""
    findings, kept, patients = [], 0, set()
    for images in _equal(found, good):
        first = images[0]
        for image in images[1:]:
            pairs = (
                ("patient", image.id, first.id),
                ("class", image.label, first.label),
                ("magnification", image.magnification, first.magnification),
            )
            if differs := [what for what, its, others in pairs if its != others]:
                findings.append(_twin(image, first, f", of another {' and '.join(differs)}"))
            else:
                kept += 1
                patients.add(image.id)
    if not kept:
        return findings, []
    who = f"{counted(kept, 'image')} of {counted(len(patients), 'patient')} {'has' if kept == 1 else 'have'}"
    return findings, [f"{who} the pixels of another image of the same patient"]


def _breakhis_twins(found: Scan, good: Sequence[Decoded], complete: bool) -> tuple[list[Finding], list[str]]:
    """Images with the pixels of another one, and notes on twins that are kept.

    BreakHis files slide 14-13412 under two subtypes, with as many images under the one as under the other at every
    magnification; so equal pixels under one slide id and two subtypes are the archive's own, and kept. In a complete
    official set so are equal pixels within one slide: refusing them would refuse BreakHis. Neither crosses a patient.
    """
    findings: list[Finding] = []
    kept: dict[tuple[str, str], int] = defaultdict(int)
    for images in _equal(found, good):
        for index, image in enumerate(images[1:], start=1):
            partner = next((other for other in images[:index] if not _filed_twice(other, image)), None)
            if partner is None:
                kept[image.id, "is filed under two subtypes"] += 1
            elif complete and all(other.id == image.id for other in images[:index]):
                kept[image.id, "is complete by the official census"] += 1
            else:
                findings.append(_twin(image, partner))
    notes = [
        f"Slide {slide} {why} and {count} of its images have the pixels of another one; all are kept"
        for (slide, why), count in sorted(kept.items())
    ]
    return findings, notes


def _filed_twice(one: Found, other: Found) -> bool:
    return one.id == other.id and one.slide != other.slide and one.magnification == other.magnification
