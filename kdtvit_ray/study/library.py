"""A stage store that several studies share: what one study has trained, another takes over.

A stage's key is a hash of all that decides it, so whose study trained it plays no part. A study still keeps all of its
stages in its own folder, so it can be moved and read alone: where both folders lie on one disk the files are linked,
else copied. What is taken over is verified, byte by byte.

    STAGES/stages/<key>/        as in a study
    STAGES/claims/<key>.json    a study is training this stage: another does something else meanwhile

A claim is advisory. Its holder counts up a beat in it; who waits sees by a beat that stands still that the holder is
dead. Clocks of different machines are never compared. Two studies that train a stage at once write the same.
"""

import logging
import os
import threading
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.stage_record import StageRecord
from kdtvit_ray.study.store import DamagedStage, StageStore

BEAT_SECONDS = 10.0
"""Seconds between two beats of a claim."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """Who trains a stage: a token of its own for each time that a stage is begun, and how often it has beaten."""

    token: str
    beat: int


class StageLibrary:
    """The store at `location`, a folder or a URI, for the stages of `own`."""

    def __init__(self, location: str, own: StageStore) -> None:
        self.own = own
        self.shared = StageStore(StudyFolder(location, own.folder.pauses))
        self.folder = self.shared.folder
        self._refused: set[str] = set()
        """Stages here of which it was told that they cannot be used."""
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        """Held while a thread makes, beats or releases a claim: a beat must not bring a released one back."""

    # -- stages --------------------------------------------------------------------------------------------------------

    def take_over(self, key: str, device: str = "") -> StageRecord | None:
        """Put a stage that another study has trained into the study's own store. None where there is none, where it is
        damaged or of a newer format, and where `device` is given and another kind of device has trained it. Raises
        `OSError`."""
        if not self.shared.has(key):
            return None
        try:
            record = self.shared.record(key)
            if device and record.device_kind != device:
                return None
            contents = self.shared.contents(key)
        except (DamagedStage, UserError) as error:
            if key not in self._refused:
                self._refused.add(key)
                log.warning("A stage is trained although %s has it: %s", self.folder.shown, error)
            return None
        _carry(self.shared, self.own, contents)
        return record

    def offer(self, key: str) -> None:
        """Put a stage of the study's own store here, if it is not here or damaged. One of a newer format stays. Raises
        `OSError`."""
        try:
            self.shared.contents(key)
            return
        except UserError:
            return  # it is of use to those who wrote it
        except DamagedStage:
            pass  # it is written, or written anew
        _carry(self.own, self.shared, self.own.contents(key))

    # -- claims --------------------------------------------------------------------------------------------------------

    def claim(self, key: str, seize: Claim | None = None) -> Claim | None:
        """Claim a stage. Returns the claim of another that stands in the way, and None where there is none. `seize` is
        a claim whose holder is dead unless it has beaten since. Raises `OSError`."""
        with self._lock:
            found = self._read(key)
            if found is not None and found != seize:
                return found
            self._held[key] = Claim(uuid.uuid4().hex, 0)
            self._write(key)
        return None

    def beat(self) -> None:
        """Say that the claimed stages are still being trained."""
        with self._lock:
            for key, claim in list(self._held.items()):
                self._held[key] = Claim(claim.token, claim.beat + 1)
                self._write(key)

    def release(self, key: str) -> None:
        """Give up the claim on a stage, if it is held. Where the store fails, the claim stays there without a beat,
        which tells others as much."""
        with self._lock:
            claim = self._held.pop(key, None)
            try:
                found = self._read(key) if claim else None
                if claim and found and found.token == claim.token:
                    self.folder.delete(_claim(key))
            except OSError as error:
                log.warning("The claim on stage %s stays in the store that studies share: %s", key, error)

    def _read(self, key: str) -> Claim | None:
        try:
            plain: Any = self.folder.read_json(_claim(key))
            return Claim(str(plain["token"]), int(plain["beat"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):  # a damaged claim names nobody
            return None

    def _write(self, key: str) -> None:
        claim = self._held.get(key)
        if claim:
            self.folder.write_json(_claim(key), {"token": claim.token, "beat": claim.beat})


def unreachable(location: str, studies: Iterable[str]) -> dict[str, int]:
    """Bytes of each stage of a shared store that none of the studies has, by key. Raises `UserError` for a folder that
    is no study or no such store."""
    store = StageStore(StudyFolder(location))
    if not store.folder.exists(store.folder.stages):
        raise UserError(f"'{store.folder.shown}' is no store of stages: it has no folder {store.folder.stages}")
    if store.folder.exists(store.folder.study):
        raise UserError(f"'{store.folder.shown}' is a study, whose stages are its own; allowed: what --stages names")
    wanted: set[str] = set()
    for each in studies:
        folder = StudyFolder(each)
        if not folder.exists(folder.study):
            raise UserError(f"'{folder.shown}' is not a study: it has no {folder.study}")
        wanted |= StageStore(folder).keys()
    return {key: store.total_bytes(key) for key in sorted(store.keys() - wanted)}


def remove(location: str, keys: Iterable[str]) -> None:
    """Remove stages from a shared store: first what makes each one visible."""
    folder = StudyFolder(location)
    for key in keys:
        folder.delete(folder.stage(key))
        folder.delete(f"{folder.stages}/{key}")


def _claim(key: str) -> str:
    return f"claims/{key}.json"


def _carry(source: StageStore, target: StageStore, contents: Mapping[str, bytes]) -> None:
    """Put a stage's files into another store: linked where both are on one disk, else written. It does not matter
    whether the source still has them, and what fails is the target."""
    for name, content in contents.items():
        if not _linked(source, target, name):
            target.folder.write(name, content, before_others=True)


def _linked(source: StageStore, target: StageStore, name: str) -> bool:
    """Link a file. Files of stages are replaced, never changed, so that either store may replace its own."""
    if source.folder.local is None or target.folder.local is None:
        return False
    path = target.folder.local / name
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(source.folder.local / name, partial)
        partial.replace(path)
    except OSError:
        return False
    finally:
        with suppress(OSError):  # on a disk that cannot be written nothing was linked
            partial.unlink(missing_ok=True)
    return True
