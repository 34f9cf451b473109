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
  tune/                      Ray Tune's and Ray Train's own folder
  report/                    index.html, report.md, tables/, figures/
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from kdtvit_ray.errors import UserError

PREPARED_IMAGES = "images.npy"
PREPARED_TABLE = "table.parquet"
PREPARED_ABOUT = "prepared.json"


def without_secrets(text: str) -> str:
    """The text with the credentials of the URIs in it masked: `s3://KEY:SECRET@bucket` as `s3://***@bucket`."""
    text = re.sub(r"://[^/@\s'\"]+@", "://***@", text)
    return re.sub(r"([?&][a-z_]*(?:key|secret|token|password)[a-z_]*=)[^&\s'\"]+", r"\1***", text)


class Folder:
    """A folder on a pyarrow file system, addressed by a path or a URI (`/data/x`, `s3://bucket/x?...`).

    Paths given to its methods are relative to it. Writing is atomic: a reader sees the old file or the new one.
    Raises `UserError` for a URI that pyarrow cannot open.
    """

    def __init__(self, location: str) -> None:
        from pyarrow import fs

        self.location = str(location)
        if "://" in self.location:
            try:
                self.fs, root = fs.FileSystem.from_uri(self.location)
            except (OSError, ValueError) as error:
                raise UserError(without_secrets(f"Cannot open storage '{self.location}': {error}")) from None
        else:
            self.fs, root = fs.LocalFileSystem(), str(Path(self.location).expanduser().resolve())
            self.location = root  # other processes have other working folders
        self.root = root.rstrip("/")
        self.local = Path(self.root) if isinstance(self.fs, fs.LocalFileSystem) else None

    @property
    def shown(self) -> str:
        """The location as messages name it: credentials in a URI are masked."""
        return without_secrets(self.location)

    def path(self, name: str) -> str:
        return posixpath.join(self.root, name) if name else self.root

    def exists(self, name: str = "") -> bool:
        from pyarrow import fs

        return self.fs.get_file_info(self.path(name)).type != fs.FileType.NotFound

    def names(self, name: str = "") -> list[str]:
        """Sorted base names inside a folder; empty where it does not exist."""
        from pyarrow import fs

        selector = fs.FileSelector(self.path(name), allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector) if info.base_name)

    def read(self, name: str) -> bytes:
        with self.fs.open_input_file(self.path(name)) as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        target = self.path(name)
        self.fs.create_dir(posixpath.dirname(target), recursive=True)
        if self.local is None:  # object stores publish a file when it is closed
            with self.fs.open_output_stream(target) as file:
                file.write(content)
            return
        partial = Path(f"{target}.{_unique()}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def read_json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1, sort_keys=True).encode())

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all that it holds; nothing happens where there is none."""
        from pyarrow import fs

        kind = self.fs.get_file_info(self.path(name)).type
        if kind == fs.FileType.Directory:
            self.fs.delete_dir(self.path(name))
        elif kind != fs.FileType.NotFound:
            self.fs.delete_file(self.path(name))


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
    tune = "tune"
    report = "report"

    @staticmethod
    def stage(key: str) -> str:
        return f"stages/{key}/stage.json"

    @staticmethod
    def weights(key: str) -> str:
        return f"stages/{key}/weights.safetensors"

    @staticmethod
    def predictions(key: str) -> str:
        return f"stages/{key}/predictions.parquet"

    @staticmethod
    def checkpoint(key: str) -> str:
        return f"checkpoints/{key}/epoch.pt"


def _unique() -> str:
    import os
    import uuid

    return f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
