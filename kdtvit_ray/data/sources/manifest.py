"""A table of images: a .csv, .tsv or .parquet file with the columns path, label, magnification and patient, and where
there are such, slide, subtype and fold. Paths are relative to the table's folder, or absolute."""

import csv
import io
import posixpath
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from kdtvit_ray.data.findings import Finding, Wrong
from kdtvit_ray.data.sources.files import Scan, shortened
from kdtvit_ray.data.sources.labelled import (
    OPTIONAL,
    REQUIRED,
    Labelled,
    assemble,
    check_words,
    folds_of,
    magnification_of,
    whole,
)
from kdtvit_ray.errors import UserError, first_line

SUFFIXES = (".csv", ".tsv", ".parquet")
MISSING = frozenset({"NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None"})
"""What R, pandas, databases and spreadsheets write into a table where a value is missing."""
_ZIP = b"PK\x03\x04"
"""How an Excel file begins."""
_SEPARATOR = re.compile(r'"?sep=(.)"?[ ,;\t|]*\r?\n', re.IGNORECASE)
"""A first line by which Excel says what stands between the cells."""
_NOT_EMPTY = re.compile(r'[^\r\n]*[^\s,;|"][^\r\n]*')
"""The first line that has a cell with something in it."""
ALIKE = {"required": 0.5, "optional": 0.7}
"""How like a missing column's name another has to be to count as that name misspelt, and not as one of the user's."""


def scan(source: Path, positive: Sequence[str] = ()) -> Scan:
    """The images of a table. `positive` names the positive labels, where they are not known by themselves.

    Raises `UserError` for a table that cannot be read or lacks a column, and `Refused` with all bad lines at once.
    """
    head, lines = read(source)
    places, passed_over = columns(source, head)
    if not lines:
        raise UserError(f"Table '{source}' has no lines but its head; allowed: a line for each image")
    rows: list[Labelled] = []
    findings: list[Finding] = []
    seen: dict[str, str] = {}
    for number, cells in lines:
        where = f"line {number}"
        try:
            if len(cells) != len(head):
                raise Wrong(f"{len(cells)} cells, where the head has {len(head)}", "another number of cells")
            row = _row(source.parent, where, {name: cells[at].strip() for name, at in places.items()})
            path = posixpath.normpath(row.path)
            if path in seen:
                raise Wrong(f"the same file as {seen[path]} ({row.path})", "a file that was there before")
            seen[path] = where
            rows.append(row)
        except Wrong as error:
            findings.append(error.at(where))
    rows = _called_alike_everywhere(rows)
    made = assemble("manifest", source, source.parent, "line", rows, findings, len(lines), positive)
    if passed_over:
        made.notes.append(f"Columns of the table that were passed over: {shortened(passed_over, 10)}")
    return made


def read(source: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """(head, (line number, cells) of each line) of a table, all as text. Raises `UserError`."""
    return _parquet(source) if source.suffix.lower() == ".parquet" else _text(source)


def without_missing(cells: Mapping[str, str]) -> dict[str, str]:
    """The cells of a line by column, empty where they say that a value is missing; a path may be called so."""
    return {name: "" if name != "path" and cell in MISSING else cell for name, cell in cells.items()}


def at_home(folder: Path, path: str) -> str:
    """A path of a table in `folder`, with its `~` made a home folder, unless there is a file that is called so."""
    if path.startswith("~") and not (folder / path).exists():
        with suppress(RuntimeError):  # this machine knows no such home
            return str(Path(path).expanduser())
    return path


def _row(root: Path, where: str, written: Mapping[str, str]) -> Labelled:
    """One line's image. Raises `Wrong`."""
    cells = without_missing(written)
    check_words(cells, written)
    cells["path"] = at_home(root, cells["path"])
    magnification = magnification_of(cells["magnification"])
    folds = folds_of(cells.get("fold", ""))
    path = root / cells["path"]
    try:
        status = path.stat()
    except FileNotFoundError:
        hint = "; allowed: / between folders, not \\" if "\\" in cells["path"] else ""
        raise Wrong(f"there is no file '{cells['path']}'{hint}", "no such file") from None
    except ValueError:
        raise Wrong(f"no file can have the name {cells['path']!r}", "no such file") from None
    except OSError as error:
        raise Wrong(f"cannot read ({error.strerror}) '{cells['path']}'", "no such file") from None
    if not path.is_file():
        raise Wrong(f"'{cells['path']}' is no file", "no such file")
    return Labelled(
        where,
        _below(root, cells["path"]),
        whole(cells["label"]),
        magnification,
        cells["patient"],
        cells.get("slide", ""),
        whole(cells.get("subtype", "")),
        folds,
        status.st_size,
        status.st_mtime_ns,
    )


def _below(root: Path, path: str) -> str:
    """A path relative to the table's folder where it is below that: names of images are made of it, and the fingerprint
    of those, which is not to depend on where a machine has the set."""
    absolute = PurePosixPath(path)
    if absolute.is_absolute() and ".." not in absolute.parts:
        for folder in (root.absolute(), root.resolve()):
            if absolute.is_relative_to(folder):
                return str(absolute.relative_to(folder))
    return path


def _called_alike_everywhere(rows: Sequence[Labelled]) -> list[Labelled]:
    """The rows with names below the folder that they have in common for the images elsewhere than below the table's
    folder, for the same reason."""
    absolute = [posixpath.normpath(row.path) for row in rows if posixpath.isabs(row.path)]
    common = posixpath.commonpath(map(posixpath.dirname, absolute)) if absolute else ""

    def called(path: str) -> str:
        return posixpath.relpath(path, common) if posixpath.isabs(path) else ""

    return [replace(row, called=called(row.path)) for row in rows]


def columns(
    source: Path, head: Sequence[str], required: Sequence[str] = REQUIRED, optional: Sequence[str] = OPTIONAL
) -> tuple[dict[str, int], list[str]]:
    """Position of each known column, and the names of those that are none of ours. Raises `UserError` for a column
    that is missing, misspelt or there twice."""
    names = [name.strip().lower() for name in head]
    known = {name: names.index(name) for name in (*required, *optional) if name in names}
    if twice := [name for name in known if names.count(name) > 1]:
        raise UserError(f"Table '{source}' has the column '{twice[0]}' twice; allowed: once")
    others = [name for name in names if name not in known]
    allowed = f"allowed: {', '.join(required)}, and if you have them {', '.join(optional)}"
    for kind, names_of_kind in (("required", required), ("optional", optional)):
        for absent in (name for name in names_of_kind if name not in known):
            if near := get_close_matches(absent, others, n=1, cutoff=ALIKE[kind]):
                raise UserError(f"Table '{source}': unknown column '{near[0]}' (did you mean '{absent}'?); {allowed}")
    if missing := [name for name in required if name not in known]:
        raise UserError(
            f"Table '{source}' has no column {' and no column '.join(map(repr, missing))}; "
            f"found: {shortened([name or 'one without a name' for name in names], 12) or 'nothing'}; {allowed}"
        )
    return known, [name for name in others if name]


def _text(source: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """(head, (line number, cells) of each line that is not empty) of a text table."""
    content = _content(source)
    if separator := _SEPARATOR.match(content):  # kept as an empty line, so that the others have their numbers
        content = "\n" + content[separator.end() :]
    delimiter = separator[1] if separator else _delimiter(content, source.suffix.lower() == ".tsv")
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise UserError(f"Cannot read the table '{source}': line {reader.line_num}: {error}") from None
    return (lines[0][1], lines[1:]) if lines else ([], [])


def _content(source: Path) -> str:
    """The text of a table. Raises `UserError` for a file that is none."""
    allowed = "allowed: UTF-8 text, which spreadsheets save as 'CSV UTF-8'"
    try:
        content = source.read_bytes()
        if content.startswith(_ZIP):
            raise UserError(f"Cannot read the table '{source}': it is an Excel file or an archive; {allowed}")
        text = content.decode("utf-8-sig")
        if "\0" in text.partition("\n")[0]:  # UTF-16, or no text at all
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "no text")
    except OSError as error:
        raise UserError(f"Cannot read the table '{source}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"Cannot read the table '{source}': it is not UTF-8 text; {allowed}") from None
    return text


def _delimiter(content: str, tabs: bool) -> str:
    """What stands between the cells of a text table: of commas, semicolons, tabs and bars what makes most cells of its
    head known columns. Where all are alike, tabs or commas."""
    head = _NOT_EMPTY.search(content)

    def found(delimiter: str) -> tuple[int, int]:
        try:
            cells = next(csv.reader([head[0].strip()], delimiter=delimiter), []) if head else []
        except csv.Error:  # reading all of it tells why
            cells = []
        names = {each.strip().lower() for each in cells}
        return len(names.intersection((*REQUIRED, *OPTIONAL))), len(cells)

    return max("\t,;|" if tabs else ",;\t|", key=found)


def _parquet(source: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    from pyarrow import parquet

    try:
        with source.open("rb") as file:  # pyarrow itself opens no name that is not UTF-8
            table = parquet.read_table(file)
        columns = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    except Exception as error:  # pyarrow has many kinds
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else first_line(error)
        raise UserError(f"Cannot read the table '{source}': {reason}") from None
    return table.column_names, [(number, list(cells)) for number, cells in enumerate(zip(*columns, strict=True), 1)]


def _cell(value: Any) -> str:
    return "" if value is None or value != value else str(value)
