"""What a process finds where it runs: versions, the key that it computes, its device, its cache; and whether a study
may run there.

A stage is filed under its key, so a process that computes another key for the same stage must not file any.
"""

import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdtvit_ray.errors import NodeFault
from kdtvit_ray.paths import PREPARED_ABOUT
from kdtvit_ray.recipe import RECIPE_VERSION, StageSpec
from kdtvit_ray.results.sessions import DECISIVE


@dataclass(frozen=True)
class Probe:
    """What a process found. `node` is Ray's id of the node; `key` is what it computes for the spec that it was given;
    `device` is the kind of device that would train, empty where that was not asked; `trouble` says why nothing can run
    here, empty where something can."""

    node: str
    host: str
    versions: Mapping[str, str] = field(default_factory=dict)
    recipe: int = 0
    key: str = ""
    device: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class Expected:
    """What the driver has itself, which every process of its study has to have too. A study that does not `mix` kinds
    of devices keeps to `device`, or where that is empty to the first that trains."""

    spec: StageSpec
    key: str
    recipe: int
    versions: Mapping[str, str]
    mix: bool = True
    device: str = ""


def expected(spec: StageSpec, mix: bool = True, device: str = "") -> Expected:
    """What this process, the driver's, expects of the others."""
    from kdtvit_ray.study.stage_results import versions

    return Expected(spec, spec.key, RECIPE_VERSION, versions(), mix, device)


def probe(node: str, spec: StageSpec, data: str, *, gpus: float = 0.0, train: bool = False) -> Probe:
    """Look around in this process, which runs on a node with this id of Ray's and will need the prepared set `data`.
    With `train`, for which torch is imported, also at the device that trains; `gpus` is the share of a GPU that was
    reserved for this process."""
    from kdtvit_ray.study.stage_results import versions

    # where the set itself lies the cache is not needed
    trouble, device = "" if (Path(data) / PREPARED_ABOUT).is_file() else _cache_trouble(), ""
    if train:
        from kdtvit_ray.learning.numeric import device_name, reserved_device

        try:
            device = device_name(reserved_device(gpus))
        except NodeFault as error:
            trouble = str(error)
    return Probe(node, platform.node(), versions(), RECIPE_VERSION, spec.key, device, trouble)


def mismatch(wanted: Expected, found: Probe) -> str:
    """Why no stage of the study may run there, in one sentence; empty where stages may."""
    if found.recipe != wanted.recipe:
        return f"its kdtvit-ray has training recipe {found.recipe}, the driver's {wanted.recipe}"
    if found.key != wanted.key:
        return (
            f"its kdtvit-ray {found.versions.get('kdtvit-ray', '?')} computes another stage key than the driver's "
            f"{wanted.versions.get('kdtvit-ray', '?')}"
        )
    if not wanted.mix and wanted.device and found.device and found.device != wanted.device:
        return f"its device is {found.device}, and the study keeps to {wanted.device} ([study] mix_devices = false)"
    return found.trouble


def differences(wanted: Expected, found: Probe) -> str:
    """Versions that differ from the driver's and may move the last bits of a result; empty where none does."""
    told = [
        f"{name} {found.versions.get(name, 'missing')} (the driver's: {wanted.versions.get(name, 'missing')})"
        for name in DECISIVE
        if found.versions.get(name) != wanted.versions.get(name)
    ]
    return ", ".join(told)


def _cache_trouble() -> str:
    """Why this node's cache cannot be used; empty where it can."""
    from kdtvit_ray.data.cache import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"probe")
            file.flush()
    except OSError as error:
        return f"its cache {folder} cannot be written ({error.strerror}); set KDTVIT_CACHE to a folder that can"
    return ""
