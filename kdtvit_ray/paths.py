"""The one place that knows file names: the layout of a study's folder, on any pyarrow file system.

STUDY/
  study.toml                 the resolved study: space, data, protocol, versions
  lock.json  status.json     who runs it; the last snapshot of the running sweep
  sweep.log                  everything that Ray and the workers printed
  stages/<key>/              stage.json (written last: a stage without it does not exist),
                             weights.safetensors, predictions.parquet
  checkpoints/<key>/         epoch checkpoints of stages that are not finished
  rows/*.parquet             measured values; trials/*.parquet: one record a trial
  optuna/journal.log         the search as Optuna sees it
  outer/fold-<n>/            the whole search again in another outer fold: a study of its own
  sessions/*.json            versions and nodes set aside of each run of the sweep
  tune/                      Ray Tune's and Ray Train's own folder
  importance.json            how much each searched value decides
  report/                    index.html, report.md, tables/, figures/
  tensorboard/               what is published for TensorBoard; tracking.json: what W&B has
  explanations/              maps of some test images: *.png, and explanations.json (written last)

A folder of stages that several studies share has stages/ too, and claims/<key>.json of those that are being trained.
"""

import json
import os
import posixpath
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from kdtvit_ray.errors import RemoteFailed, StorageLost, UserError, readable

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0)
"""Seconds between attempts at storage that fails: storage may be away for half a minute."""

PREPARED_IMAGES = "images.npy"
PREPARED_TABLE = "table.parquet"
PREPARED_ABOUT = "prepared.json"

WEIGHTS = "weights.safetensors"
PREDICTIONS = "predictions.parquet"
STAGE = "stage.json"
STAGE_FILES = (WEIGHTS, PREDICTIONS, STAGE)
"""The files of a stage, in the order in which they are written."""


Returned = TypeVar("Returned")


_USER = re.compile(r"://[^/\s'\"]+@")
"""User and password before the first slash of a URI, up to the last @ there: a password may hold one."""

_SLASHED = re.compile(
    r"://(?!\*\*\*@|[^/@:?&\s'\"A-Z]+:\d{1,5}/)[^/@:?&\s'\"]+:[^@?&\s'\"]*/[^@?&\s'\"]*@(?:[^/@\s'\"]*@)*"
)
"""The same with a slash in the password, as AWS makes them. A number of up to five digits is a port and no password,
unless capitals before it say that they are a key and no host."""

_QUERY = re.compile(r"([?&][a-z_]*(?:key|secret|token|password)[a-z_]*=)[^&\s'\"]+", re.IGNORECASE)

_NAMED = re.compile(
    r"((?:aws[_-]?(?:secret|session|access)|secret[_-]?(?:access[_-]?)?key|session[_-]?token)\w*['\"]?\s*[=:]\s*['\"]?)"
    r"[^&,;\s'\"]+",
    re.IGNORECASE,
)
"""A secret beside its name outside of a query, as in environments and in what storage answers."""


_PLACED = re.compile(r"[?&](region|endpoint_override)=")
"""With either pyarrow asks nobody for the region of a bucket."""

_MISTAKEN = re.compile("^Bucket '.*' not found|^Unable to load ")
"""What pyarrow says of a bucket that does not exist, and of a file system without its libraries."""


def without_secrets(text: str) -> str:
    """The text with the credentials in it masked: `s3://KEY:SECRET@bucket` as `s3://***@bucket`, and values named like
    `aws_secret_access_key`."""
    for pattern in (_USER, _SLASHED):
        text = pattern.sub("://***@", text)
    for pattern in (_QUERY, _NAMED):
        text = pattern.sub(r"\1***", text)
    return text


def expanded(path: str | Path) -> Path:
    """The path with its `~` or `~name` made a home folder. Raises `UserError` where this machine knows no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # so pathlib says it
        home = Path(path).parts[0]
        raise UserError(
            f"'{path}' begins with '{home}', and this machine knows no such home folder; "
            "allowed: '~name' of a user of this machine, or a whole path without '~'"
        ) from None


def try_to_make(path: Path) -> None:
    """Raise `OSError` where a file or folder cannot be made at `path` with the folders that it lacks; leave nothing."""
    places = Path(os.path.realpath(path)).parents
    TemporaryFile(dir=next(each for each in places if each.exists())).close()


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on disk, so that nothing that is written afterwards is found
    without them when the machine loses its power. Raises `OSError` where a file's content cannot be kept."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError:
        if not path.is_dir():  # some network file systems know it of files only
            raise
    finally:
        os.close(opened)


def check_utf8(name: str | Path) -> None:
    """Raise `UserError` for a path that is not UTF-8: pyarrow and the files of weights cannot open one."""
    if readable(str(name)) != str(name):
        raise UserError(f"The name '{name}' is not UTF-8; allowed: a name in UTF-8")


class Folder:
    """A folder on a pyarrow file system, addressed by a path or a URI (`/data/x`, `s3://bucket/x?...`).

    Paths given to its methods are relative to it. Writing is atomic: a reader sees the old file or the new one.
    Storage that fails is tried again after each of `pauses`, in seconds, and then raises `StorageLost`; without pauses
    the first failure raises `RemoteFailed`, or of a local disk its own `OSError`. This holds for opening the folder as
    well: pyarrow asks S3 for the region of a bucket. A file that is not there is an answer, not a failure.
    Raises `UserError` for a URI that pyarrow cannot open or a bucket that does not exist, a path that is not UTF-8,
    and an unknown `~name`.
    """

    def __init__(self, location: str, pauses: tuple[float, ...] = ()) -> None:
        from pyarrow import fs

        self.location = str(location)
        """The folder for other processes, which have other working folders, and need not ask for an S3 region."""
        self.shown = without_secrets(self.location)
        """The location as messages name it: credentials in a URI are masked."""
        self.pauses = pauses
        self.local: Path | None = None
        if "://" in self.location:
            self.fs, root = self.patiently(f"Opening '{self.shown}'", self._opened)
            if self.fs.type_name == "s3" and not _PLACED.search(self.location):
                self.location += f"{'&' if '?' in self.location else '?'}region={self.fs.region}"
        else:
            self.fs, root = fs.LocalFileSystem(), str(expanded(self.location).resolve())
            self.location, self.shown = root, without_secrets(root)
        check_utf8(self.shown)
        self.root = root.rstrip("/")
        if isinstance(self.fs, fs.LocalFileSystem):
            self.local = Path(self.root)

    def _opened(self) -> Any:
        from pyarrow import fs

        try:
            return fs.FileSystem.from_uri(self.location)
        except (OSError, ValueError) as error:
            told = without_secrets(str(error))
            if isinstance(error, OSError) and not _MISTAKEN.search(told):
                raise OSError(told) from None
            raise UserError(f"Cannot open storage '{self.shown}': {told}") from None

    def make(self, what: str) -> None:
        """Make the folder if it is a local one and not there yet. Raises `UserError`, in which `what` names it."""
        if self.local is None:
            return
        try:
            self.local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            file = next((each for each in (self.local, *self.local.parents) if each.is_file()), None)
            reason = f"'{file}' is a file; choose a folder" if file else error.strerror
            raise UserError(f"Cannot make {what} '{self.shown}': {reason}") from None

    def path(self, name: str) -> str:
        return posixpath.join(self.root, name) if name else self.root

    def inside(self, name: str) -> str:
        """The location of a folder in this one, as a path or URI: before the query of a URI, which holds options of the
        file system."""
        if "://" not in self.location:
            return self.path(name)
        head, mark, query = self.location.partition("?")
        return f"{head.rstrip('/')}/{name}{mark}{query}"

    def patiently(self, what: str, action: Callable[[], Returned]) -> Returned:
        """The result of `action`, which uses this folder's storage and may be repeated; `what` names it in the message
        of a `StorageLost`."""
        for pause in (*self.pauses, None):
            try:
                return action()
            except (FileNotFoundError, StorageLost):
                raise
            except OSError as error:
                if not self.pauses:
                    if self.local is None:
                        raise RemoteFailed(f"{what} failed: {error}") from error
                    raise
                if pause is None:
                    attempts = len(self.pauses) + 1
                    raise StorageLost(f"{what} failed {attempts} times, last with: {error}") from error
            time.sleep(pause)
        raise AssertionError

    def exists(self, name: str = "") -> bool:
        from pyarrow import fs

        info = self.patiently(f"Looking for {name} in {self.shown}", lambda: self.fs.get_file_info(self.path(name)))
        return info.type != fs.FileType.NotFound

    def size(self, name: str) -> int:
        """Bytes of a file; 0 where there is none."""
        info = self.patiently(f"Looking for {name} in {self.shown}", lambda: self.fs.get_file_info(self.path(name)))
        return int(info.size or 0)

    def names(self, name: str = "") -> list[str]:
        """Sorted base names inside a folder; empty where it does not exist."""
        from pyarrow import fs

        selector = fs.FileSelector(self.path(name), allow_not_found=True)
        found = self.patiently(f"Listing {name} of {self.shown}", lambda: self.fs.get_file_info(selector))
        return sorted(info.base_name for info in found if info.base_name)

    def files(self, name: str = "") -> list[str]:
        """Sorted paths, relative to the folder `name`, of the files in it and in its subfolders."""
        from pyarrow import fs

        selector = fs.FileSelector(self.path(name), allow_not_found=True, recursive=True)
        found = self.patiently(f"Listing {name} of {self.shown}", lambda: self.fs.get_file_info(selector))
        return sorted(posixpath.relpath(one.path, self.path(name)) for one in found if one.type == fs.FileType.File)

    def read(self, name: str) -> bytes:
        def read() -> bytes:
            with self.fs.open_input_file(self.path(name)) as file:
                return file.read()

        return self.patiently(f"Reading {name} of {self.shown}", read)

    def write(self, name: str, content: bytes, before_others: bool = False) -> None:
        """Write a file whole or not at all. Files that are written after one that is `before_others` are not found
        without its content, also after the machine has lost its power."""
        self.patiently(f"Saving {name} to {self.shown}", lambda: self._write(self.path(name), content, before_others))

    def read_json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1, sort_keys=True).encode())

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all that it holds; nothing happens where there is none."""
        from pyarrow import fs

        def delete() -> None:
            kind = self.fs.get_file_info(self.path(name)).type
            if kind == fs.FileType.Directory:
                self.fs.delete_dir(self.path(name))
            elif kind != fs.FileType.NotFound:
                self.fs.delete_file(self.path(name))

        self.patiently(f"Deleting {name} of {self.shown}", delete)

    def _write(self, target: str, content: bytes, before_others: bool) -> None:
        self.fs.create_dir(posixpath.dirname(target), recursive=True)
        if self.local is None:  # object stores publish a file when it is closed
            with self.fs.open_output_stream(target) as file:
                file.write(content)
            return
        partial = Path(f"{target}.{_unique()}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                if before_others:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


class StudyFolder(Folder):
    """A study's folder: names of everything in it."""

    study = "study.toml"
    lock = "lock.json"
    status = "status.json"
    log = "sweep.log"
    stages = "stages"
    checkpoints = "checkpoints"
    rows = "rows"
    trials = "trials"
    data = "data"
    journal = "optuna/journal.log"
    outer = "outer"
    tune = "tune"
    report = "report"
    sessions = "sessions"
    tensorboard = "tensorboard"
    tracking = "tracking.json"
    explanations = "explanations"
    importance = "importance.json"
    explanations_about = "explanations/explanations.json"

    @staticmethod
    def stage(key: str) -> str:
        return f"stages/{key}/{STAGE}"

    @staticmethod
    def weights(key: str) -> str:
        return f"stages/{key}/{WEIGHTS}"

    @staticmethod
    def predictions(key: str) -> str:
        return f"stages/{key}/{PREDICTIONS}"

    @staticmethod
    def claim(key: str) -> str:
        return f"claims/{key}.json"

    @staticmethod
    def checkpoint(key: str) -> str:
        return f"checkpoints/{key}/epoch.pt"


def _unique() -> str:
    return f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
