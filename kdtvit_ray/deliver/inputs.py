"""The images that somebody wants predicted: files, folders, patterns, archives, a table. What their names or the table
tell of class, patient, slide and magnification is kept; none of it is needed."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from kdtvit_ray.data import sources
from kdtvit_ray.data.findings import Finding, Wrong
from kdtvit_ray.data.sources import breakhis, manifest
from kdtvit_ray.data.sources.files import files, is_archive, members, shortened
from kdtvit_ray.data.sources.labelled import magnification_of, whole
from kdtvit_ray.errors import UserError, first_line, readable
from kdtvit_ray.paths import expanded

NEEDED = ("path",)
READ = ("label", "subtype", "patient", "slide", "magnification")
"""Columns of a table that are read where they are there."""
SPREADSHEETS = (".xlsx", ".xls", ".ods")
TOLD = frozenset({"labels", "patient", "slide", "magnification"})
"""What may be told of an image."""


@dataclass(frozen=True)
class Image:
    """One image: `name` as it is shown, `readable`; `read` gives the file's bytes. labels: words for its class, the
    narrowest first, () where nothing tells it. patient and slide are "" and magnification is 0 where nothing tells
    them. by_name are those of these four that a BreakHis name tells."""

    name: str
    read: Callable[[], bytes]
    labels: tuple[str, ...] = ()
    patient: str = ""
    slide: str = ""
    magnification: int = 0
    by_name: frozenset[str] = frozenset()


@dataclass
class Images:
    """The images of some sources, in order, to be gone through once. `total` is their number, None where an archive is
    among them, which is read in one pass. `of_tables` are those that tables name. A file that several sources lead to
    is one image, as the first of them tells it; `repeated` counts how often others do. `notes` are sentences on what
    was named and is not used. `findings` grows by what cannot be read while they are gone through. Raises `UserError`
    for a source that is not there or holds no images, and a table that cannot be read."""

    sources: Sequence[str]
    findings: list[Finding] = field(default_factory=list)
    total: int | None = None
    of_tables: list[Image] = field(default_factory=list)
    repeated: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen: set[str] = set()
        self._parts: list[Callable[[], Iterator[Image]]] = []
        counts: list[int | None] = []
        for source in self.sources:
            for path in _paths(source):
                part, count = self._part(path)
                self._parts.append(part)
                counts.append(count)
        known = [each for each in counts if each is not None]
        if self.repeated:
            self.notes.append(f"Files that were named again, and count once: {self.repeated:,}")
        self.total = sum(known) if len(known) == len(counts) else None

    def __iter__(self) -> Iterator[Image]:
        for part in self._parts:
            yield from part()

    def reads(self, path: Path) -> bool:
        """Whether a file is one of the images, or a table or an archive of them."""
        return os.path.realpath(path) in self._seen

    def _is_new(self, path: Path) -> bool:
        """Whether no source has led to the file yet, under whatever name."""
        try:
            real = os.path.realpath(path)
        except ValueError:  # a name that no file can have
            real = str(path)
        new = real not in self._seen
        self._seen.add(real)
        self.repeated += not new
        return new

    def _part(self, path: Path) -> tuple[Callable[[], Iterator[Image]], int | None]:
        """What goes through one source, and how many images it has."""
        if path.is_dir():
            found = [path / each for each, _, _ in files(path, sources.is_image, self._broken(path))]
            if not found and not self.findings:
                raise UserError(f"Folder '{path}' holds no images")
            found = [each for each in sorted(found) if self._is_new(each)]
            return (lambda: map(_file, found)), len(found)
        if not self._is_new(path):
            return (lambda: iter(())), 0
        if is_archive(path):
            return (lambda: self._archive(path)), None
        if path.suffix.lower() in manifest.SUFFIXES:
            rows = list(self._table(path))
            if not rows and not self.findings and not self.repeated:
                raise UserError(f"Table '{path}' has no lines but its head; allowed: a line for each image")
            self.of_tables += rows
            return (lambda: iter(rows)), len(rows)
        if path.suffix.lower() in SPREADSHEETS:
            raise UserError(f"'{path}' is a spreadsheet; allowed: a table that is saved as .csv, .tsv or .parquet")
        return (lambda: iter([_file(path)])), 1

    def _broken(self, folder: Path) -> Callable[[str], None]:
        return lambda path: self.findings.append(Finding(str(folder / path), "a link to a file that is not there"))

    def _archive(self, path: Path) -> Iterator[Image]:
        count = 0
        try:
            for name, _, content in members(path, sources.is_image):
                count += 1
                yield _named(f"{path}/{name}", partial(_same, content))
        except UserError as error:  # cut off in the middle: what came before it is sound
            self.findings.append(Finding(str(path), str(error)))
            return
        if not count:
            self.findings.append(Finding(str(path), "holds no images"))

    def _table(self, path: Path) -> Iterator[Image]:
        head, lines = manifest.read(path)
        place, others = manifest.columns(path, head, NEEDED, READ)
        if others:
            self.notes.append(f"Columns of '{readable(str(path))}' that were passed over: {shortened(others, 10)}")
        first: dict[str, int] = {}
        for number, cells in lines:
            try:
                if len(cells) != len(head):
                    raise Wrong(f"{len(cells)} cells, where the head has {len(head)}")
                told = manifest.without_missing({name: cells[at].strip() for name, at in place.items()})
                if not told["path"]:
                    raise Wrong("path is empty")
                told["path"] = manifest.at_home(path.parent, told["path"])
                normal = os.path.normpath(told["path"])
                if normal in first:
                    raise Wrong(f"the same file as line {first[normal]} ({told['path']})")
                first[normal] = number
                image = _of_line(path.parent, told)
            except Wrong as error:
                self.findings.append(error.at(f"{path}, line {number}"))
                continue
            if self._is_new(path.parent / told["path"]):
                yield image


def _of_line(folder: Path, told: dict[str, str]) -> Image:
    """The image of a table's line, by column. What the table has no column for is told by a BreakHis name. Raises
    `Wrong`."""
    cells: dict[str, Any] = {name: whole(told[name]) for name in ("patient", "slide") if name in told}
    if "label" in told or "subtype" in told:
        cells["labels"] = tuple(whole(told[name]) for name in ("subtype", "label") if told.get(name))
    if "magnification" in told:
        cells["magnification"] = magnification_of(told["magnification"]) if told["magnification"] else 0
    named = _named(told["path"], _reader(folder / told["path"]))
    return replace(named, **cells, by_name=named.by_name - cells.keys())


def _paths(source: str) -> list[Path]:
    """The files and folders that one argument means. Raises `UserError` where there are none."""
    path = expanded(source)
    if os.path.lexists(path):  # pathlib raises an OSError for a name that is too long
        return [path]
    found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - a pattern that may be absolute has no folder
    if not found:
        what = "fits no file" if glob.has_magic(source) else "does not exist"
        raise UserError(
            f"'{source}' {what}; allowed: images, folders of images, patterns such as 'images/*.png', archives "
            "(.zip, .tar.gz), or a table (.csv, .tsv, .parquet) with a column path"
        )
    return [Path(each) for each in found]


def _file(path: Path) -> Image:
    return _named(str(path), _reader(path))


def _reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            if not path.is_file():  # a pipe would be waited for
                raise ValueError("no such file" if not path.exists() else "no file")
            return path.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read ({error.strerror or first_line(error)})") from None

    return read


def _same(content: bytes) -> bytes:
    return content


def _named(name: str, read: Callable[[], bytes]) -> Image:
    """An image with what a BreakHis name tells of it; any other name tells nothing."""
    name = readable(name)
    try:
        told = breakhis.ImageName.parse(PurePosixPath(name).name)
    except ValueError:
        return Image(name, read)
    word = breakhis.breakhis().words[told.malignant]
    return Image(name, read, (told.subtype, word), told.stem, told.folder, told.magnification, TOLD)
