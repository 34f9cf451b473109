"""Whether nodes share the study's storage: what the driver writes is read on a node, and the other way round.

All of it lies in one folder of a random name in the study's folder, which is removed at the end.
"""

import uuid
from contextlib import suppress
from pathlib import Path

from kdtvit_ray.errors import first_line
from kdtvit_ray.paths import StudyFolder, without_secrets

DRIVER = "driver"


class CommonStorage:
    """The driver's side, as a context. `trouble` says why the driver itself cannot use the storage, empty where it can;
    `token` is the name of the folder. A study's folder that is not there is made, and removed again."""

    def __init__(self, location: str) -> None:
        self.folder = StudyFolder(location)
        self.token = f".doctor-{uuid.uuid4().hex}"
        self.trouble = ""
        self._made: list[Path] = []
        self._new = False

    def __enter__(self) -> "CommonStorage":
        try:
            if self.folder.local is None:
                self._new = not self.folder.exists()
            else:
                self._make(self.folder.local / self.token)
            self.folder.write(f"{self.token}/{DRIVER}", self.token.encode())
        except OSError as error:
            self.trouble = f"the driver cannot write to {self.folder.shown} ({_reason(error)})"
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.folder.delete(self.token)
            if self._new and "/" in self.folder.root and not self.folder.names():  # an object store keeps a mark of it
                self.folder.delete("")
        except OSError as failed:
            self.trouble = self.trouble or f"{self.folder.shown}/{self.token} cannot be removed ({_reason(failed)})"
        for path in self._made:
            with suppress(OSError):  # somebody else has put something there meanwhile
                path.rmdir()

    def answered(self, node: str) -> str:
        """Why the driver does not see what a node has written, empty where it does."""
        try:
            found = self.folder.read(f"{self.token}/{node}")
        except OSError as error:
            return f"the driver does not see what the node wrote to {self.folder.shown} ({_reason(error)})"
        return (
            "" if found == node.encode() else f"the driver reads other bytes than the node wrote to {self.folder.shown}"
        )

    def _make(self, path: Path) -> None:
        missing = [each for each in (path, *path.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir()
            self._made.insert(0, each)  # the deepest first


def answer(location: str, token: str, node: str) -> str:
    """The node's side: read what the driver has written, and write for the driver to read. Returns why that fails,
    empty where it works. Makes no folder: one that the driver has removed stays removed."""
    folder = StudyFolder(location)
    try:
        found = folder.read(f"{token}/{DRIVER}")
    except OSError as error:
        return f"it does not see what the driver wrote to {folder.shown} ({_reason(error)})"
    if found != token.encode():
        return f"it reads other bytes than the driver wrote to {folder.shown}"
    try:
        with folder.fs.open_output_stream(folder.path(f"{token}/{node}")) as file:
            file.write(node.encode())
    except OSError as error:
        return f"it cannot write to {folder.shown} ({_reason(error)})"
    return ""


def _reason(error: OSError) -> str:
    return without_secrets(error.strerror or first_line(error))
