"""What the doctor looks at on a node, in a task that runs there."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from kdtvit_ray.cluster.common_storage import answer
from kdtvit_ray.cluster.probe import Probe, probe
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import PREPARED_ABOUT, StudyFolder
from kdtvit_ray.recipe import StageSpec

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Request:
    """What is to be looked at: `spec` is the stage whose key is computed; the set at `data` has `fingerprint`; `token`
    lies in the study's folder at `location`. Empty is what was not asked for."""

    spec: StageSpec
    data: str = ""
    fingerprint: str = ""
    location: str = ""
    token: str = ""


@dataclass(frozen=True)
class Sight:
    """What was found on a node; sizes are bytes, None where they do not exist.

    `storage` says why the study's storage is not the driver's, `data` why the set at the data's path cannot be read;
    both are empty where all is well. `fingerprint` is that set's, empty where none lies there; `cached` says whether
    the cache holds a copy of the set that was asked for.
    """

    probe: Probe
    cache: str
    cache_free: int | None = None
    shared_memory: int | None = None
    storage: str = ""
    storage_free: int | None = None
    data: str = ""
    fingerprint: str = ""
    cached: bool = False


def examine(node: str, asked: Request) -> Sight:
    """Look around on the node of this id of Ray's. Leaves nothing but its answer in the token's folder."""
    from kdtvit_ray.data.cache import cache_folder

    found = probe(node, asked.spec, asked.data)
    storage, free = "", None
    if asked.token:
        storage = answer(asked.location, asked.token, node)
        local = StudyFolder(asked.location).local
        free = _free(local) if local is not None and not storage else None
    data, fingerprint = _set_at(asked.data)
    cache = cache_folder()
    cached = bool(asked.fingerprint) and (cache / asked.fingerprint / PREPARED_ABOUT).is_file()
    shared = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None
    return Sight(found, str(cache), _free(cache), shared, storage, free, data, fingerprint, cached)


def _set_at(location: str) -> tuple[str, str]:
    """Why the set at a path cannot be read, and its fingerprint; both empty where there is none."""
    from kdtvit_ray.data.prepared import open_prepared

    if not location or not (Path(location) / PREPARED_ABOUT).is_file():
        return "", ""
    try:
        return "", open_prepared(Path(location)).fingerprint
    except UserError as error:
        return str(error), ""


def _free(folder: Path) -> int | None:
    """Free bytes where a folder lies, or will lie; None where that cannot be told."""
    there = next((each for each in (folder, *folder.parents) if each.exists()), None)
    try:
        return shutil.disk_usage(there).free if there else None
    except OSError:
        return None
