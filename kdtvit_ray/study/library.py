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
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.stage_record import StageRecord
from kdtvit_ray.study.store import DamagedStage, StageStore

BEAT_SECONDS = 10.0
"""Seconds between two beats of a claim."""
AWAY_SECONDS = 60.0
"""Seconds at least for which a shared store that has failed is left alone."""
MOST_PAUSES = 2
"""How often the shared store is tried again at once, of the times that a study's own is: a study can do without it."""
log = logging.getLogger(__name__)
Returned = TypeVar("Returned")


@dataclass(frozen=True)
class Claim:
    """Who trains a stage: a token of its own for each time that a stage is begun, and how often it has beaten."""

    token: str
    beat: int


class _Access:
    """One way to use the shared store, as `what` says. After an error it is left alone for a while, so that a store
    that is away does not delay each stage. Only the first of several errors in a row is told."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._until = 0.0
        self._told = False

    @property
    def away(self) -> bool:
        """Whether it has failed lately."""
        return time.monotonic() < self._until

    def gives(self, action: Callable[[], Returned], otherwise: Returned) -> Returned:
        """What `action` returns; `otherwise` where the store fails, or has failed lately."""
        return otherwise if self.away else self._tried(action, otherwise)

    def does(self, action: Callable[[], object], again: bool = False) -> bool:
        """Whether `action` was done. With `again` it is tried also where the store has failed lately."""

        def done() -> bool:
            action()
            return True

        return self._tried(done, False) if again else self.gives(done, False)

    def _tried(self, action: Callable[[], Returned], otherwise: Returned) -> Returned:
        began = time.monotonic()
        try:
            found = action()
        except OSError as error:
            now = time.monotonic()
            self._until = now + max(AWAY_SECONDS, 9 * (now - began))  # one that fails slowly takes a tenth of the time
            if not self._told:
                self._told = True
                log.warning("%s fails; the study goes on without it and tries again later: %s", self.what, error)
            return otherwise
        self._until, self._told = 0.0, False
        return found


class StageLibrary:
    """The store at `location`, a folder or a URI, for the stages of `own`. A study needs its own store and not this
    one: an error of this one is told in the log, and raised by nothing here."""

    def __init__(self, location: str, own: StageStore) -> None:
        self.own = own
        self.shared = StageStore(StudyFolder(location, own.folder.pauses[:MOST_PAUSES]))
        self.folder = self.shared.folder
        where = f"the store that studies share, {self.folder.shown},"
        self._reading = _Access(f"Reading from {where}")
        self._offering = _Access(f"Putting stages into {where}")
        self._claiming = _Access(f"Claiming stages in {where}")
        self._refused: set[str] = set()
        """Stages here of which it was told that they cannot be used."""
        self._owed: dict[str, None] = {}
        """Stages that are to be put here, in the order in which they are tried."""
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        """Held while a thread makes, beats or releases a claim: a beat must not bring a released one back."""

    # -- stages --------------------------------------------------------------------------------------------------------

    def take_over(self, key: str, device: str = "") -> StageRecord | None:
        """Put a stage that another study has trained into the study's own store. None where there is none, where it is
        damaged or of a newer format, and where `device` is given and another kind of device has trained it. Raises
        `OSError` where the study's own store fails."""
        found = self._reading.gives(lambda: self._fit(key, device), None)
        if found is None:
            return None
        record, contents = found
        _carry(self.shared, self.own, contents)
        return record

    def _fit(self, key: str, device: str) -> tuple[StageRecord, dict[str, bytes]] | None:
        if not self.shared.has(key):
            return None
        try:
            record = self.shared.record(key)
            if device and record.device_kind != device:
                return None
            return record, self.shared.contents(key)
        except (DamagedStage, UserError) as error:
            if key not in self._refused:
                self._refused.add(key)
                log.warning("A stage is trained although %s has it: %s", self.folder.shown, error)
            return None

    def offer(self, key: str) -> None:
        """Put a stage of the study's own store here, if it is not here or damaged. One of a newer format stays. What is
        not taken now is offered again beside a later stage."""
        self._owed = {key: None, **self._owed}  # the store may never take one of the others
        self.offer_owed()

    def offer_owed(self) -> None:
        """Offer what was not taken before."""
        for key in list(self._owed):
            wanted = None if self._offering.away else self._reading.gives(partial(self._lacks, key), None)
            if wanted is None:
                return
            del self._owed[key]
            if wanted and not self._put(key):
                self._owed[key] = None  # the last one from now on
                return

    def _lacks(self, key: str) -> bool:
        """Whether a stage is to be put here."""
        try:
            self.shared.contents(key)
        except UserError:
            return False  # it is of use to those who wrote it
        except DamagedStage:
            return True  # or it is not there
        return False

    def _put(self, key: str) -> bool:
        """Returns whether there is no need to try it again."""
        try:
            contents = self.own.contents(key)
        except (OSError, UserError) as error:
            log.warning("A stage is not put into the store that studies share: %s", error)
            return True
        return self._offering.does(lambda: _carry(self.own, self.shared, contents))

    # -- claims --------------------------------------------------------------------------------------------------------

    def claim(self, key: str, seize: Claim | None = None) -> Claim | None:
        """Claim a stage. Returns the claim of another that stands in the way. None where there is none, and where the
        store fails: then the stage is trained without a claim. `seize` is a claim whose holder is dead unless it has
        beaten since."""
        if self._reading.away:  # a beat that fails may hold the lock for long
            return None
        with self._lock:
            found = self._reading.gives(lambda: self._read(key), None)
            if found is not None and found != seize:
                return found
            claim = Claim(uuid.uuid4().hex, 0)
            if not self._reading.away and self._claiming.does(lambda: self._write(key, claim)):
                self._held[key] = claim
        return None

    def beat(self) -> None:
        """Say that the claimed stages are still being trained. Tried however lately it failed: a claim without a beat
        is soon another's."""
        with self._lock:
            for key, claim in list(self._held.items()):
                beaten = Claim(claim.token, claim.beat + 1)
                if not self._claiming.does(partial(self._write, key, beaten), again=True):
                    return
                self._held[key] = beaten

    def release(self, key: str) -> None:
        """Give up the claim on a stage, if it is held. Where the store fails, the claim stays there without a beat,
        which tells others as much."""
        with self._lock:
            claim = self._held.pop(key, None)
            if claim:
                self._claiming.does(lambda: self._withdraw(key, claim.token))

    def _read(self, key: str) -> Claim | None:
        try:
            plain: Any = self.folder.read_json(self.folder.claim(key))
            return Claim(str(plain["token"]), int(plain["beat"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):  # a damaged claim names nobody
            return None

    def _write(self, key: str, claim: Claim) -> None:
        self.folder.write_json(self.folder.claim(key), {"token": claim.token, "beat": claim.beat})

    def _withdraw(self, key: str, token: str) -> None:
        found = self._read(key)
        if found and found.token == token:
            self.folder.delete(self.folder.claim(key))


def unreachable(location: str, studies: Iterable[str]) -> dict[str, int]:
    """Bytes of each stage of a shared store that none of the studies has or needs, outer folds included, by key: a
    study that has lost a stage of its own takes it over from there again. Raises `UserError` for a folder that is no
    study or no such store, and for a study whose records do not tell what it needs."""
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
        wanted |= _needed(folder)
        for fold in folder.names(folder.outer):
            wanted |= _needed(StudyFolder(folder.inside(f"{folder.outer}/{fold}")))
    return {key: store.total_bytes(key) for key in sorted(store.keys() - wanted)}


def _needed(study: StudyFolder) -> set[str]:
    """Keys of the stages of which a study has anything, or which a trial of it has used."""
    from kdtvit_ray.results.rows import read_trials  # with pandas, which each trial's actor would have in its memory

    damaged: list[str] = []
    trials = read_trials(study, damaged)
    if damaged:
        raise UserError(f"What the study '{study.shown}' needs of the stages cannot be told: {damaged[0]}")
    return {*study.names(study.stages), *(key for keys in trials["stages"] for key in keys)}


def remove(location: str, keys: Iterable[str]) -> None:
    """Remove stages from a shared store: first what makes each one visible."""
    folder = StudyFolder(location)
    for key in keys:
        folder.delete(folder.stage(key))
        folder.delete(f"{folder.stages}/{key}")


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
