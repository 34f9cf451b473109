"""The sessions of a study: each run of its sweep, with the versions that it had and the nodes that it set aside."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kdtvit_ray.paths import StudyFolder

DECISIVE = ("kdtvit-ray", "torch", "timm")
"""Packages that decide the last bits of a result. Ray sees to it itself that its nodes agree on Ray and Python."""


@dataclass(frozen=True)
class Session:
    """One run of a sweep. `name` tells when it began; `host` and `versions` are the driver's; `aside` has a sentence
    for each node that was set aside, `differences` one for each whose versions differ from the driver's."""

    name: str
    host: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    def write(self, folder: StudyFolder) -> None:
        folder.write_json(f"{folder.sessions}/{self.name}.json", asdict(self))


def read_sessions(folder: StudyFolder) -> tuple[Session, ...]:
    """All sessions of a study, the first one first. Those that cannot be read are left out: no result depends on
    them."""
    known = {each.name for each in fields(Session)}
    found = []
    for name in folder.names(folder.sessions):
        try:
            plain: dict[str, Any] = folder.read_json(f"{folder.sessions}/{name}")
            told: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
            }
            found.append(Session(**{key: told[key] for key in known}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return tuple(found)
