"""Where a study can be, and on what it trains: looked at before Ray starts."""

from pathlib import Path

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder, expanded
from kdtvit_ray.study.store import StageStore


def log_of(folder: StudyFolder, name: str) -> Path:
    """Where the output of Ray and the workers goes: beside a study that is no local folder there is no file to write
    to."""
    return folder.local / folder.log if folder.local else expanded(f"~/.cache/kdtvit_ray/{name}-{folder.log}")


def check_target(folder: StudyFolder) -> None:
    """Raise `UserError` for a folder that is no study's and holds something else than what a study writes before its
    `study.toml`, what is hidden, and what a new file system has."""
    if folder.exists(folder.study):
        return
    own = (folder.study, folder.lock, folder.log, ".", "lost+found")
    if any(not name.startswith(own) for name in folder.names()):
        raise UserError(f"Folder '{folder.shown}' holds other files; choose a new folder for the study")


def kept_device(store: StageStore) -> str:
    """The kind of device that a study keeps to which mixes none: that of its stages, empty where there is no stage yet.
    Raises `UserError` where it has stages of several."""
    found = store.devices()
    if len(found) > 1:
        told = " and ".join(f"{kind} ({count} stage{'s' if count > 1 else ''})" for kind, count in found.items())
        raise UserError(
            f"The study '{store.folder.shown}' has stages of several kinds of device, {told}, and [study] mix_devices "
            "is false; allowed: mix_devices = true, or a new folder with --out"
        )
    return next(iter(found), "")
