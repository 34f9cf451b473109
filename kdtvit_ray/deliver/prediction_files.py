"""The files that predictions go to: written whole, never over what is read or is of others, with none of another run
beside them."""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kdtvit_ray.data.findings import SHOWN, Finding
from kdtvit_ray.deliver.inputs import Images
from kdtvit_ray.deliver.predict import OF_PATIENTS
from kdtvit_ray.deliver.scores import HEAD
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import try_to_make
from kdtvit_ray.report.escaping import clean, no_formula

SUFFIXES = (".csv", ".parquet")
HEADS = {"patients": OF_PATIENTS, "metrics": HEAD}
"""What there are tables of beside that of the images, and their columns."""
_LIST = "{} could not be read:\n"
_LISTED = re.compile(_LIST.format("[0-9]+"))
"""The first line of the list of what could not be read."""


@dataclass(frozen=True)
class Target:
    """Where predictions go: the table of images to `path`, the others and the list of what cannot be read beside it."""

    path: Path

    @property
    def tables(self) -> dict[str, Path]:
        """The files of the tables, by what they are of."""
        return {"images": self.path, **{what: self.path.with_stem(f"{self.path.stem}-{what}") for what in HEADS}}

    @property
    def unreadable(self) -> Path:
        """Holds what cannot be read, where that is more than `SHOWN`."""
        return self.path.with_name(f"{self.path.stem}-unreadable.txt")

    @property
    def files(self) -> list[Path]:
        """All that may be written."""
        return [*self.tables.values(), self.unreadable]

    def check(self) -> None:
        """Raise `UserError` unless all files can be written; nothing is left there."""
        if self.path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"'{self.path}' is no kind of table that is written; allowed: a name that ends in .csv or .parquet"
            )
        for path in self.files:
            if path.is_dir():
                raise UserError(f"'{path}' is a folder; give the name of a file")
            if path.exists() and not path.is_file():  # the new file would take the place of a device
                raise UserError(f"'{path}' is a device or a pipe; give the name of a file")
            try:
                if path.is_file():
                    path.open("ab").close()
                try_to_make(path)
            except OSError as error:
                raise _cannot_write(path, error) from None
            if path != self.path and path.is_file() and not self._is_own(path):
                raise UserError(
                    f"--out '{self.path}' would replace or delete '{path}', which 'predict' has not written; choose "
                    "another name"
                )

    def _is_own(self, path: Path) -> bool:
        """Whether a file beside the table of images is what `write` puts there."""
        if path == self.unreadable:
            with path.open(encoding="utf-8", errors="replace") as file:
                return bool(_LISTED.fullmatch(file.readline()))
        what = next(name for name, place in self.tables.items() if place == path)
        return [each for each in _head(path) if each != "label"] == [each for each in HEADS[what] if each != "label"]

    def spare(self, images: Images) -> None:
        """Raise `UserError` where a file that may be written is one that is read."""
        for path in self.files:
            if images.reads(path):
                raise UserError(f"--out '{self.path}' would write over '{path}', which is read; choose another name")

    def write(self, tables: Mapping[str, pd.DataFrame], unreadable: Sequence[Finding]) -> list[Path]:
        """Write tables, by what they are of, without those that are empty, and the list of what cannot be read where it
        is long; the paths of the tables. Files of a run before that this one does not write are deleted. In a .csv no
        name can become a formula. Raises `UserError`, and leaves all files as they were, where one cannot be written.
        """
        places = self.tables
        contents = {places[what]: _content(table, self.path.suffix) for what, table in tables.items() if len(table)}
        written = list(contents)
        if len(unreadable) > SHOWN:
            lines = (f"{clean(each.where)}: {clean(each.reason)}\n" for each in unreadable)
            contents[self.unreadable] = "".join((_LIST.format(len(unreadable)), *lines)).encode()
        _write(contents)
        for path in self.files:
            if path not in contents:
                path.unlink(missing_ok=True)
        return written


def _head(path: Path) -> list[str]:
    """The names of a table's columns; none where the file is no table."""
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_schema(path).names
        return list(pd.read_csv(path, nrows=0))
    except (OSError, ValueError, pa.ArrowException):
        return []


def _content(table: pd.DataFrame, suffix: str) -> bytes:
    if suffix.lower() == ".parquet":
        made = io.BytesIO()
        table.to_parquet(made, index=False)
        return made.getvalue()
    texts = {
        name: table[name].map(lambda each: no_formula(each) if isinstance(each, str) else each)
        for name in table
        if table[name].dtype.kind not in "fiub"
    }
    # a carriage return, which ends a line for readers, is no reason for Python to quote a cell
    returns = any("\r" in str(each) for column in texts.values() for each in column)
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    return table.assign(**texts).to_csv(index=False, quoting=quoting).encode()


def _write(contents: Mapping[Path, bytes]) -> None:
    """Write all files, each under another name first: a full disk cuts none of them off."""
    partials: dict[Path, Path] = {}
    path = Path()
    try:
        for number, (path, content) in enumerate(contents.items()):
            real = Path(os.path.realpath(path))  # a link stays one
            real.parent.mkdir(parents=True, exist_ok=True)
            partial = real.with_name(f".{os.getpid()}-{number}.partial")
            partials[partial] = real
            partial.write_bytes(content)
        for partial, path in partials.items():
            partial.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"Cannot write '{path}': {error.strerror or error}")
