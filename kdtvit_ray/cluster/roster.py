"""The worker groups that the coordinator knows: who speaks, where it runs, and what it runs.

A group keeps its name when its processes are restarted. A late word of processes that were replaced is not listened to.
Time is this process's monotonic clock only.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from kdtvit_ray.cluster.health import Fault
from kdtvit_ray.results.study_status import GroupStatus


@dataclass
class Group(GroupStatus):
    """A worker group. `incarnation` changes whenever its processes are restarted; `places` are Ray's ids of the nodes
    of its ranks."""

    incarnation: str = ""
    seen: float = 0.0
    places: dict[int, str] = field(default_factory=dict)
    saving: tuple[str, ...] = ()
    """Stages that it has trained and is putting on storage."""
    repairs: int = 0
    """How often the stage that its stage depends on had been repaired when it was handed out."""
    worked: bool = False
    """Whether these processes have had a stage."""
    last_fault: Fault | None = None
    """The first error that one of its workers has reported before it died."""
    silent: str = ""
    """For how long it has said nothing, in words, where that is too long."""
    missed: str | None = None
    """The stage in which it fell silent."""

    def status(self) -> GroupStatus:
        return GroupStatus(**{each.name: getattr(self, each.name) for each in fields(GroupStatus)})

    def idle(self) -> None:
        """It runs no stage."""
        self.key, self.stage, self.last_fault = "", "", None

    def busy(self, key: str, label: str, epochs: int) -> None:
        """It runs a stage; `label` is empty where no trial has named the stage yet."""
        self.worked = True
        if self.key != key:
            self.key, self.stage, self.epoch = key, "", 0
        if label and not self.stage:
            self.stage, self.epochs = label, epochs


class Roster:
    """The groups by name. `lost` is called with each group that is no longer there or has fallen silent, `back` with
    each that speaks again."""

    def __init__(self, lost: Callable[[Group], None], back: Callable[[Group], None]) -> None:
        self.groups: dict[str, Group] = {}
        self._lost, self._back = lost, back
        self._retired: set[tuple[str, str]] = set()
        self._silent: dict[str, Group] = {}

    @property
    def places(self) -> list[set[str]]:
        """The nodes of each group."""
        return [set(each.places.values()) for each in self.groups.values()]

    def heard_from(
        self, name: str, incarnation: str, node: str = "", workers: int = 0, placement_group: str = ""
    ) -> Group | None:
        """The group that speaks; None where its processes have been replaced meanwhile."""
        if (name, incarnation) in self._retired:
            return None
        group = self.known(name, incarnation)
        group = group or self._returned(name, incarnation)
        if group is None:
            self.forget(name)  # a restarted group has lost the stage that it ran
            group = self.groups[name] = Group(name, incarnation=incarnation)
        group.seen = time.monotonic()
        group.node, group.workers = node or group.node, workers or group.workers
        group.placement_group = placement_group or group.placement_group
        return group

    def known(self, name: str, incarnation: str) -> Group | None:
        """The group, if these are its processes of now."""
        group = self.groups.get(name)
        return group if group and group.incarnation == incarnation else None

    def beside(self, group: Group) -> list[Group]:
        """The other groups that have a worker on a node of this one."""
        places = set(group.places.values())
        return [each for each in self.groups.values() if each is not group and places & set(each.places.values())]

    def works(self, node: str) -> bool:
        """Whether a group with a worker on this node has had a stage."""
        return any(each.worked and node in each.places.values() for each in self.groups.values())

    def held_by_others(self, group: Group) -> set[str]:
        """Stages that other groups run or save, those too that no trial has asked for yet."""
        return {key for each in self.groups.values() if each is not group for key in (each.key, *each.saving)}

    def forget(self, name: str) -> None:
        """A group has ended. It is not listened to any more."""
        group, silent = self.groups.pop(name, None), self._silent.pop(name, None)
        self._retired |= {(name, each.incarnation) for each in (group, silent) if each}
        if group:
            self._lost(group)

    def forget_silent(self, seconds: float) -> None:
        """Forget the groups that have said nothing for so long, until they speak again."""
        limit = time.monotonic() - seconds
        for group in [each for each in self.groups.values() if each.seen < limit]:
            group.silent = f"no word for {seconds:.0f} s"
            self._silent[group.name] = self.groups.pop(group.name)
            self._lost(group)

    def _returned(self, name: str, incarnation: str) -> Group | None:
        """The group, if these are its processes of before it fell silent."""
        group = self._silent.get(name)
        if group is None or group.incarnation != incarnation:
            return None
        self.groups[name] = self._silent.pop(name)
        group.idle()
        self._back(group)
        group.silent, group.missed = "", None
        return group
