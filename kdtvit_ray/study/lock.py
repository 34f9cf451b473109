"""The lock of a study: one driver runs it at a time.

`lock.json` names host, boot, PID namespace, process and the start of that process, and a thread of the driver counts
`beat` up in it. Another driver sees by the growing count that the holder is alive. It never compares clocks.
"""

import os
import platform
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdtvit_ray.errors import UserError, no_permission
from kdtvit_ray.paths import StudyFolder

BEAT_SECONDS = 5.0

BOOT = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = Path("/proc/self/ns/pid")


class StudyLock:
    """Held from `acquire` to `release`. `lost` is set when another driver has taken the study over."""

    def __init__(self, folder: StudyFolder, beat_seconds: float = BEAT_SECONDS) -> None:
        self.folder, self.beat_seconds = folder, beat_seconds
        self.token = uuid.uuid4().hex
        self.lost = threading.Event()
        self._closed = threading.Event()
        self._beat = 0
        self._since = datetime.now(UTC).isoformat(timespec="seconds")

    def acquire(self, takeover: bool = False) -> None:
        """Take the study, or raise `UserError` naming who has it, or that its folder may not be written."""
        found = self.read(self.folder)
        if found is not None:
            self._must_be_dead(found, takeover)
        try:
            self._write()
        except OSError as error:
            if not no_permission(error):
                raise
            raise UserError(
                f"The study's folder '{self.folder.shown}' cannot be written: {os.strerror(error.errno or 0)}; choose "
                "another folder, or copy the study to one of your own"
            ) from None
        time.sleep(0.2)  # if two drivers start at once, the one that writes last has the lock
        now = self.read(self.folder)
        if now is None or now["token"] != self.token:
            raise UserError(_taken(self.folder, now or {}))
        threading.Thread(target=self._keep, daemon=True).start()

    def release(self) -> None:
        """Release the study. If storage is away the lock file stays; the next driver finds out that its holder is
        dead."""
        self._closed.set()
        try:
            found = self.read(self.folder)
            if found is not None and found["token"] == self.token:
                self.folder.delete(self.folder.lock)
        except OSError:
            return

    @staticmethod
    def read(folder: StudyFolder) -> dict[str, Any] | None:
        """The lock's content, or None where nobody holds it. A damaged lock names nobody."""
        try:
            found = folder.read_json(folder.lock)
        except (FileNotFoundError, ValueError):
            return None
        texts = ("host", "boot", "pid_namespace", "started", "since", "token")
        kinds = {**dict.fromkeys(texts, str), "pid": int, "beat": int}
        whole = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
        return found if whole else None

    @staticmethod
    def alive_here(found: dict[str, Any]) -> bool | None:
        """Whether the holder is alive. None where that cannot be told: it runs on another host, in another PID
        namespace (another container, whose host name may be the same), or is of another boot (this host was started
        again, or two machines have one name). Where there is no /proc, the host alone counts."""
        here = _here()
        if not _may_be_here(found, here) or _differs(found, here, "boot"):
            return None
        return _started(found["pid"]) == found["started"]

    def _must_be_dead(self, found: dict[str, Any], takeover: bool) -> None:
        alive = self.alive_here(found)
        if alive is False:
            return
        # a host that was started again takes over by itself
        if alive is None and (takeover or _may_be_here(found, _here())):
            time.sleep(3 * self.beat_seconds)
            later = self.read(self.folder)
            if later is None or (later["token"], later["beat"]) == (found["token"], found["beat"]):
                return
        raise UserError(_taken(self.folder, found))

    def _write(self) -> None:
        self.folder.write_json(
            self.folder.lock,
            {
                **_here(),
                "pid": os.getpid(),
                "started": _started(os.getpid()),
                "since": self._since,
                "beat": self._beat,
                "token": self.token,
            },
        )

    def _keep(self) -> None:
        while not self._closed.wait(self.beat_seconds):
            self._beat += 1
            try:
                found = self.read(self.folder)
                if found is not None and found["token"] != self.token:
                    self.lost.set()
                    return
                if not self._closed.is_set():
                    self._write()
            except OSError:
                continue  # storage is away, which the study itself reports


def _here() -> dict[str, str]:
    """Where a process id means something: host, boot, PID namespace; the last two are empty where there is no /proc."""
    try:
        boot = BOOT.read_text().strip()
    except OSError:
        boot = ""
    try:
        namespace = str(PID_NAMESPACE.stat().st_ino)
    except OSError:
        namespace = ""
    return {"host": platform.node(), "boot": boot, "pid_namespace": namespace}


def _may_be_here(found: dict[str, Any], here: dict[str, str]) -> bool:
    """Whether the holder runs on a host and in a PID namespace of this name. The first namespace of every machine has
    the same."""
    return found["host"] == here["host"] and not _differs(found, here, "pid_namespace")


def _differs(found: dict[str, Any], here: dict[str, str], name: str) -> bool:
    """Whether both sides know `name`, and it is not the same."""
    return bool(found[name]) and bool(here[name]) and found[name] != here[name]


def _started(pid: int) -> str:
    """The start of a process, which tells it from a later one with the same id; empty when the process is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        return _alive_without_proc(pid)
    return "" if fields[0] == "Z" else fields[19]


def _alive_without_proc(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return str(pid)
    return str(pid)


def _taken(folder: StudyFolder, found: dict[str, Any]) -> str:
    return (
        f"The study '{folder.shown}' is being run by process {found['pid']} on host {found['host']} since "
        f"{found['since']}; wait for it, stop it, or start with --takeover if it is dead"
    )
