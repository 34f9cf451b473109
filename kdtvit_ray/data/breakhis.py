"""BreakHis as it is distributed: its file names, where its images are found, and its official census.

BreakHis: 7,909 images of 82 slides, Spanhol et al., IEEE TBME 2016, doi 10.1109/TBME.2015.2496264. A file is
`SOB_<B|M>_<subtype>-<yy>-<slide>-<magnification>-<sequence>.png`; directories of the official tree write the slide
with an underscore, `SOB_M_DC_14-10926/100X`. The name is the truth of an image; a directory that
contradicts it is an error.
"""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from isal import igzip, isal_zlib

from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import FIRST_MALIGNANT, MAGNIFICATIONS, SUBTYPES

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
OTHER_IMAGE_SUFFIXES = (".bmp", ".gif", ".webp", ".jp2", ".svs", ".ppm")
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")
GRAMMAR = "SOB_<B|M>_<A|F|PT|TA|DC|LC|MC|PC>-<year>-<slide>-<40|100|200|400>-<sequence>"
EXAMPLE = "SOB_M_DC-14-10926-100-001.png"

_NAME = re.compile(
    r"SOB_(?P<type>[BM])_(?P<subtype>[A-Z]+)-(?P<year>[0-9]{2})-(?P<slide>[0-9]+[A-Za-z]*)"
    r"-(?P<magnification>[0-9]+)-(?P<sequence>[0-9]{1,6})"
)
_SLIDE_DIRECTORY = re.compile(r"SOB_(?P<rest>[BM]_[A-Z]+)[_-](?P<id>[0-9]{2}-[0-9]+[A-Za-z]*)")
_MAGNIFICATION_DIRECTORY = re.compile(r"(?P<magnification>40|100|200|400)X", re.IGNORECASE)
_TYPE_DIRECTORY = {"benign": False, "malignant": True}
_BLOCK = 1 << 20


@dataclass(frozen=True, order=True)
class ImageName:
    """What one BreakHis file name says. `name` is the name without its extension, `year` the two digits of it."""

    name: str
    subtype: str
    malignant: bool
    year: str
    slide: str
    magnification: int
    sequence: int

    @property
    def folder(self) -> str:
        """The slide's folder, unique over the set: `M_DC-14-13412`."""
        return f"{'M' if self.malignant else 'B'}_{self.subtype}-{self.id}"

    @property
    def id(self) -> str:
        """Year and slide: `14-22549AB`. One id, 14-13412, is filed under two subtypes."""
        return f"{self.year}-{self.slide}"

    @property
    def stem(self) -> str:
        """Year and number of the slide without its letters: `14-22549`, the widest meaning of a patient."""
        return f"{self.year}-{re.match('[0-9]+', self.slide)[0]}"  # type: ignore[index]

    @staticmethod
    def parse(file_name: str) -> "ImageName":
        """Read a file name, with or without its extension. Raises `ValueError` with the reason, as half a sentence."""
        name = file_name
        for suffix in IMAGE_SUFFIXES:
            if file_name.lower().endswith(suffix):
                name = file_name[: -len(suffix)]
                break
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError("not a BreakHis name")
        subtype, magnification = found["subtype"], int(found["magnification"])
        if subtype not in SUBTYPES:
            raise ValueError(f"unknown subtype {subtype}")
        malignant = SUBTYPES.index(subtype) >= FIRST_MALIGNANT
        if malignant != (found["type"] == "M"):
            raise ValueError(
                f"{subtype} is {'malignant' if malignant else 'benign'}, but the name says {found['type']}"
            )
        if found["magnification"] not in map(str, MAGNIFICATIONS):
            raise ValueError(f"unknown magnification {found['magnification']}")
        return ImageName(name, subtype, malignant, found["year"], found["slide"], magnification, int(found["sequence"]))


@dataclass(frozen=True)
class Found:
    """One image of a source: `path` relative to the source, size in bytes and modification time (ns; 0 in archives)."""

    path: str
    name: ImageName
    bytes: int
    modified: int


@dataclass
class Scan:
    """What a source holds: the images, sorted by (magnification, name), and a (path, reason) for each misnamed file."""

    source: Path
    images: list[Found] = field(default_factory=list)
    misnamed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def archive(self) -> bool:
        return self.source.is_file()

    def contents(self) -> Iterator[tuple[int, Callable[[], bytes]]]:
        """(position in `images`, reader of the file's bytes) in the order in which the source is best read.

        A folder's readers read when they are called, on any thread; an archive's hold the bytes already, so the
        caller has to bound how many it keeps. Raises `UserError` for an archive that is damaged or has changed.
        """
        if not self.archive:
            for position, image in enumerate(self.images):
                yield position, (self.source / image.path).read_bytes
            return
        positions = {image.path: position for position, image in enumerate(self.images)}
        for path, _, content in _members(self.source, positions.keys()):
            if path in positions:
                yield positions.pop(path), partial(_same, content)
        if positions:
            raise UserError(f"Archive '{self.source}' changed while it was read; start again when it is at rest")


def scan(source: Path) -> Scan:
    """Find the images of a source: the official tree, any folder (its subfolders too), or a .tar.gz read in place.

    Hidden files and files that are no images are passed over. Raises `UserError` where there is no source, no image, or
    not one BreakHis name; single misnamed, misplaced or twice-filed images are listed in `Scan.misnamed`.
    """
    if not source.exists():
        raise UserError(f"There is no folder or archive '{source}'; allowed: {_allowed()}")
    if source.is_file() and not source.name.lower().endswith(ARCHIVE_SUFFIXES):
        raise UserError(f"'{source}' is a file, and no archive of images; allowed: {_allowed()}")
    result = Scan(source)
    named: dict[str, str] = {}
    for path, size, modified in sorted(_walk_archive(source) if source.is_file() else _walk_folder(source)):
        try:
            name = _parse_with_directories(path)
            if name.name in named:
                raise ValueError(f"the same name as {named[name.name]}")
            named[name.name] = path
        except ValueError as error:
            result.misnamed.append((path, str(error)))
        else:
            result.images.append(Found(path, name, size, modified))
    kind = "Archive" if result.archive else "Folder"
    if not result.images and not result.misnamed:
        raise UserError(f"{kind} '{source}' holds no images; allowed: {_allowed()}")
    if not result.images:
        raise UserError(
            f"{kind} '{source}' holds {len(result.misnamed)} images, but none with a BreakHis name such as {EXAMPLE}: "
            f"{shortened([f'{path} ({reason})' for path, reason in result.misnamed], 5)}"
        )
    result.images.sort(key=lambda each: (each.name.magnification, each.name.name))
    return result


@cache
def official_census() -> dict[str, Any]:
    """The official census: `total`, `images_per_subtype_and_magnification`, and `slides`, where each slide folder has
    its `images` by magnification (keys are strings) and the official folds in which it is test, `test_in_fold`."""
    return json.loads((Path(__file__).parent / "census.json").read_text())


def census(table: pd.DataFrame) -> dict[str, dict[int, int]]:
    """Images of each slide folder at each magnification, all four of them. `table` has `slide` and `magnification`."""
    counted = Counter(zip(table["slide"], table["magnification"], strict=True))
    return {
        slide: {magnification: counted[slide, magnification] for magnification in MAGNIFICATIONS}
        for slide in sorted(set(table["slide"]))
    }


def census_differences(table: pd.DataFrame) -> list[str]:
    """How a set differs from the official BreakHis, in plain sentences; none for the complete set."""
    official = {
        slide: {int(each): count for each, count in facts["images"].items()}
        for slide, facts in official_census()["slides"].items()
    }
    found = census(table)
    sentences = []
    for magnification in MAGNIFICATIONS:
        for malignant, word in ((False, "benign"), (True, "malignant")):
            here, there = (
                sum(counts[magnification] for slide, counts in each.items() if (slide[0] == "M") == malignant)
                for each in (found, official)
            )
            if here != there:
                sentences.append(f"{magnification}X has {here:,} {word} images, the official set {there:,}")
    if missing := sorted(set(official) - set(found)):
        sentences.append(f"slides absent: {len(missing)} of {len(official)} ({', '.join(missing)})")
    if foreign := sorted(set(found) - set(official)):
        sentences.append(f"slides that the official set has not: {len(foreign)} ({shortened(foreign, 100)})")
    if other := sorted(slide for slide in set(found) & set(official) if found[slide] != official[slide]):
        counts = [f"{slide} has {sum(found[slide].values())} of {sum(official[slide].values())}" for slide in other]
        sentences.append(f"slides with another number of images: {len(other)} ({', '.join(counts)})")
    return sentences


def shortened(words: Iterable[str], most: int) -> str:
    """Words joined by commas, cut after `most` of them with the number of the rest."""
    words = list(words)
    rest = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + rest


def _allowed() -> str:
    return f"the folder of BreakHis, a folder of {EXAMPLE} and the like, or an archive ({', '.join(ARCHIVE_SUFFIXES)})"


def _is_image(name: str) -> bool:
    """Whether a file claims to be an image: by its suffix, or by a BreakHis beginning whatever its suffix is."""
    lower = name.lower()
    return not _hidden(name) and (lower.endswith(IMAGE_SUFFIXES + OTHER_IMAGE_SUFFIXES) or lower.startswith("sob_"))


def _parse_with_directories(path: str) -> ImageName:
    """The name of a file, held against the directories above it. Raises `ValueError` with the reason."""
    *directories, file = PurePosixPath(path).parts
    if not file.lower().endswith(IMAGE_SUFFIXES):
        raise ValueError(f"not one of {', '.join(IMAGE_SUFFIXES)}")
    name = ImageName.parse(file)
    for directory in directories:
        slide = _SLIDE_DIRECTORY.fullmatch(directory)
        magnification = _MAGNIFICATION_DIRECTORY.fullmatch(directory)
        contradicts = (
            (slide and f"{slide['rest']}-{slide['id']}" != name.folder)
            or (magnification and int(magnification["magnification"]) != name.magnification)
            or _TYPE_DIRECTORY.get(directory.lower(), name.malignant) != name.malignant
        )
        if contradicts:
            raise ValueError(f"the name contradicts its folder {directory}")
    return name


def _walk_folder(source: Path) -> Iterator[tuple[str, int, int]]:
    """(relative path, bytes, modification time) of all image files below a folder; links are followed once."""
    seen = set()
    try:
        for root, directories, files in os.walk(source, followlinks=True, onerror=_raise):
            real = os.path.realpath(root)
            if real in seen:
                directories.clear()
                continue
            seen.add(real)
            directories[:] = sorted(each for each in directories if not _hidden(each))
            for file in filter(_is_image, files):
                path = Path(root) / file
                if path.is_file():
                    status = path.stat()
                    yield path.relative_to(source).as_posix(), status.st_size, status.st_mtime_ns
                elif path.is_symlink():
                    raise UserError(
                        f"Image '{path}' is a link to a file that is not there; remove it or restore the file"
                    )
    except OSError as error:
        raise UserError(f"Cannot read folder '{error.filename}': {error.strerror}") from None


def _raise(error: OSError) -> None:
    raise error


def _same(content: bytes) -> bytes:
    return content


def _walk_archive(source: Path) -> Iterator[tuple[str, int, int]]:
    for path, size, _ in _members(source, frozenset()):
        yield path, size, 0


def _members(source: Path, wanted: Set[str]) -> Iterator[tuple[str, int, bytes]]:
    """(path, bytes, content) of the image files of an archive, in one forward pass that never unpacks it. Only the
    wanted files have their content read."""
    count = 0
    compressed = source.name.lower().endswith("gz")
    try:
        # a gzip reader, and not tarfile's, because it is the one that tells a cut-off stream from the end of one;
        # ISA-L's, because it is the quicker one, and the archive is inflated twice
        with igzip.open(source) if compressed else source.open("rb") as file:
            with tarfile.open(fileobj=file, mode="r|", bufsize=_BLOCK) as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    if not member.isfile() or not _is_image(path.name) or any(map(_hidden, path.parts)):
                        continue
                    data = tar.extractfile(member) if path.as_posix() in wanted else None
                    content = data.read() if data else b""
                    count += 1
                    yield path.as_posix(), member.size, content
            while file.read(_BLOCK):  # to the end of the stream, where its checksum is
                pass
    except (tarfile.TarError, EOFError, isal_zlib.IsalError, OSError) as error:  # type: ignore[misc]
        reason = str(error) or type(error).__name__
        raise UserError(
            f"Archive '{source}' is truncated or damaged after {count} images ({reason}); fetch it again"
        ) from None


def _hidden(name: str) -> bool:
    return name.startswith(".")
