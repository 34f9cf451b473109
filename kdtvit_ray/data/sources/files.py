"""What a source holds, as its reader found it, and the files behind it: a folder walked, an archive read in place."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.findings import Finding, Refused, Wrong
from kdtvit_ray.data.sources import archives
from kdtvit_ray.errors import UserError, readable

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
OTHER_IMAGE_SUFFIXES = (".bmp", ".gif", ".webp", ".jp2", ".svs", ".ppm")
NOT_UTF8 = "a name that is not UTF-8"
TWICE = "twice in the archive (pack it anew: appending to it keeps the old file)"


@dataclass(frozen=True)
class Found:
    """One image of a source.

    path: relative to the source's root. name: unique within the set. label: one of the dataset's classes. slide, id,
    stem: what may be called a patient, from narrow to wide (`DataSpec.group`); where a source knows patients, `id` and
    `stem` are the patient. sequence: a number within the slide. bytes, modified: size and modification time (ns; 0 in
    archives) of the file.
    """

    path: str
    name: str
    label: str
    magnification: int
    slide: str
    id: str
    stem: str
    sequence: int
    bytes: int
    modified: int


@dataclass
class Scan:
    """What a source holds: its dataset, the images sorted by (magnification, name), what is wrong with other files,
    and notes on what is odd but kept. Paths are relative to `root`, a folder or an archive, and there to `inside`, the
    folders around the whole set: "" or such as "set/"."""

    source: Path
    root: Path
    dataset: Dataset
    images: list[Found] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    inside: str = ""

    def __post_init__(self) -> None:
        self.images.sort(key=lambda each: (each.magnification, each.name))

    def contents(self) -> Iterator[tuple[int, Callable[[], bytes]]]:
        """(position in `images`, reader of the file's bytes) in the order in which the source is best read.

        A folder's readers read when they are called, on any thread; an archive's hold the bytes already, so the
        caller has to bound how many it keeps. Raises `UserError` for an archive that is damaged or has changed.
        """
        if not self.root.is_file():
            for position, image in enumerate(self.images):
                yield position, (self.root / self.inside / image.path).read_bytes
            return
        positions = {self.inside + image.path: position for position, image in enumerate(self.images)}
        names = {PurePosixPath(path).name for path in positions}
        for path, _, content in members(self.root, names.__contains__, positions.__contains__):
            if path in positions:
                yield positions.pop(path), partial(_same, content)
        if positions:
            raise UserError(f"Archive '{self.root}' changed while it was read; start again when it is at rest")


def check_name(path: str) -> None:
    """Raise `Wrong` for a path that is not UTF-8: no table of a prepared set can hold it."""
    if readable(path) != path:
        raise Wrong("its name is not UTF-8; rename it", NOT_UTF8)


def is_archive(source: Path) -> bool:
    return source.is_file() and source.name.lower().endswith(archives.SUFFIXES)


def has_suffix(name: str, suffixes: Collection[str]) -> bool:
    return name.lower().endswith(tuple(suffixes))


def files(
    source: Path,
    wanted: Callable[[str], bool],
    broken: Callable[[str], None] | None = None,
    hidden: Callable[[str], None] = lambda path: None,
    others: Callable[[str], None] = lambda path: None,
) -> Iterator[tuple[str, int, int]]:
    """(relative path, bytes, modification time) of the files of a folder, its subfolders too, or of an archive, whose
    names are `wanted`; `others` is told of the paths of all others. Hidden files and folders are passed over, and
    `hidden` is told of the paths of such files and, in a folder, of such folders. Links to folders are followed, so
    that a folder may be there under several paths; only one to a folder above itself is not, which would have no end.

    Raises `UserError` for what cannot be read: a folder without permission, a damaged archive or one with links, and a
    link to nowhere unless `broken` is there to be told of its path.
    """
    if source.is_file():
        yield from (
            (path, size, 0) for path, size, _ in members(source, wanted, frozenset().__contains__, hidden, others)
        )
        return
    trails: dict[Path, frozenset[str]] = {}  # of each folder: its own real path and those of the folders above it
    try:
        for root, directories, names in os.walk(source, followlinks=True, onerror=_raise):
            real, above = os.path.realpath(root), trails.get(Path(root).parent, frozenset())
            if real in above:
                directories.clear()
                continue
            trails[Path(root)] = above | {real}
            place = Path(root).relative_to(source)
            for name in (*filter(_hidden, sorted(directories)), *(each for each in names if _hidden(each))):
                if not _shadow(name) and (name in directories or wanted(name)):
                    hidden((place / name).as_posix())
            directories[:] = sorted(each for each in directories if not _hidden(each))
            for name in names:
                path = Path(root) / name
                if _hidden(name):
                    continue
                if not wanted(name):
                    others((place / name).as_posix())
                    continue
                if path.is_file():
                    status = path.stat()
                    yield path.relative_to(source).as_posix(), status.st_size, status.st_mtime_ns
                elif path.is_symlink() and broken:
                    broken(path.relative_to(source).as_posix())
                elif path.is_symlink():
                    raise UserError(
                        f"Image '{path}' is a link to a file that is not there; remove it or restore the file"
                    )
    except OSError as error:
        raise UserError(f"Cannot read folder '{error.filename}': {error.strerror}") from None


def shortened(words: Iterable[str], most: int) -> str:
    """Words joined by commas, cut after `most` of them with the number of the rest."""
    words = list(words)
    rest = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + rest


def members(
    source: Path,
    wanted: Callable[[str], bool],
    read: Callable[[str], bool] = lambda path: True,
    hidden: Callable[[str], None] = lambda path: None,
    others: Callable[[str], None] = lambda path: None,
) -> Iterator[tuple[str, int, bytes]]:
    """(path, bytes, content) of the files of an archive whose names are `wanted`, in one forward pass that never
    unpacks it; `others` is told of the paths of all others. Only files whose paths are to be `read` have their content.
    Those that are hidden, or in a hidden folder, are passed over, and `hidden` is told of them.

    Raises `UserError` for a damaged archive, and in the end `Refused` for files with `wanted` names that lead out of
    the archive, and for links: what they stand for lies elsewhere in the archive, or is not in it.
    """
    from isal import isal_zlib

    count = 0
    links: list[Finding] = []
    outside: list[Finding] = []
    try:
        for name, size, link, content in archives.entries(source):
            path = PurePosixPath(name)
            if not wanted(path.name):
                if not any(map(_hidden, path.parts)):
                    others(path.as_posix())
                continue
            if path.is_absolute() or ".." in path.parts:
                outside.append(Finding(name, "its path leads out of the archive"))
                continue
            if any(map(_hidden, path.parts)):
                if not any(map(_shadow, path.parts)):
                    hidden(path.as_posix())
                continue
            if link:
                links.append(Finding(path.as_posix(), f"a link to {link}", "links"))
                continue
            found = content() if read(path.as_posix()) else b""
            count += 1
            yield path.as_posix(), size, found
    except (*archives.DAMAGE, isal_zlib.IsalError) as error:  # type: ignore[misc]
        raise archives.why_unread(source, error, count) from None
    except NotImplementedError as error:  # a zip's way to compress
        raise UserError(f"Archive '{source}': {error}; unpack it and name its folder") from None
    if outside:
        raise Refused(
            outside,
            f"{len(outside)} images in the archive '{source}' have paths that begin with / or have .. in them (pack it "
            "again from inside the folder of the images)",
        )
    if links:
        how = "'zip -r', without -y" if archives.is_zip(source) else "'tar --dereference --hard-dereference'"
        raise Refused(
            links,
            f"{len(links)} images in the archive '{source}' are links, which cannot be followed there (pack it again "
            f"with {how})",
        )


def _hidden(name: str) -> bool:
    return name.startswith(".") or _shadow(name)


def _shadow(name: str) -> bool:
    """Whether a name is of what a Mac puts beside the files that it packs or copies."""
    return name == "__MACOSX" or name.startswith("._")


def _raise(error: OSError) -> None:
    raise error


def _same(content: bytes) -> bytes:
    return content
