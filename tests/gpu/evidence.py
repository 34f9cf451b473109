"""What is kept of a search that has failed: its own logs, its study's status, the logs of its Ray."""

import shutil
from collections.abc import Iterable
from pathlib import Path

FILE_BYTES = 1 << 18
"""Of a longer file the end is kept."""
ALL_BYTES = 1 << 25
ENDINGS = {".err", ".out", ".log"}


def keep(into: Path, files: Iterable[Path], ray_logs: Path | None) -> None:
    """Copy these files, as far as they exist, and what is in a folder of Ray's logs, the last written first, into a
    folder that is made for it: at most `ALL_BYTES` in all."""
    shutil.rmtree(into, ignore_errors=True)
    left = _copied(files, into, ALL_BYTES)
    if ray_logs and ray_logs.is_dir():
        logs = [each for each in ray_logs.rglob("*") if each.suffix in ENDINGS and each.is_file()]
        _copied(sorted(logs, key=lambda each: -each.stat().st_mtime), into / "ray", left)


def _copied(files: Iterable[Path], into: Path, left: int) -> int:
    """Copy the ends of files that are not empty; how many of the bytes `left` are left then."""
    for each in files:
        size = min(each.stat().st_size, FILE_BYTES) if each.is_file() else 0
        if not 0 < size <= left:
            continue
        into.mkdir(parents=True, exist_ok=True)
        with each.open("rb") as source:
            source.seek(-size, 2)
            (into / each.name).write_bytes(source.read(size))
        left -= size
    return left


def ray_logs_of(pid: int) -> Path | None:
    """The logs of the Ray that a process has started; None where there is none."""
    from ray._common.utils import get_ray_temp_dir

    found = sorted(Path(get_ray_temp_dir()).glob(f"session_*_{pid}"))
    return found[-1] / "logs" if found else None
