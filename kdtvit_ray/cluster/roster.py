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
    last_fault: Fault | None = None
    """The first error that one of its workers has reported before it died."""

    def status(self) -> GroupStatus:
        return GroupStatus(**{each.name: getattr(self, each.name) for each in fields(GroupStatus)})

    def idle(self) -> None:
        """It runs no stage."""
        self.key, self.stage, self.last_fault = "", "", None

    def busy(self, key: str, label: str, epochs: int) -> None:
        """It runs a stage; `label` is empty where no trial has named the stage yet."""
        if self.key != key:
            self.key, self.stage, self.epoch = key, "", 0
        if label and not self.stage:
            self.stage, self.epochs = label, epochs


class Roster:
    """The groups by name. `lost` is called with each group that is no longer there."""

    def __init__(self, lost: Callable[[Group], None]) -> None:
        self.groups: dict[str, Group] = {}
        self._lost = lost
        self._retired: set[tuple[str, str]] = set()

    @property
    def places(self) -> set[str]:
        """Nodes on which groups run."""
        return {place for each in self.groups.values() for place in each.places.values()}

    def heard_from(
        self, name: str, incarnation: str, node: str = "", workers: int = 0, placement_group: str = ""
    ) -> Group | None:
        """The group that speaks; None where its processes have been replaced meanwhile."""
        if (name, incarnation) in self._retired:
            return None
        group = self.known(name, incarnation)
        if group is None:
            self.forget(name, retired=True)  # a restarted group has lost the stage that it ran
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

    def held_by_others(self, group: Group) -> set[str]:
        """Stages that other groups run or save, those too that no trial has asked for yet."""
        return {key for each in self.groups.values() if each is not group for key in (each.key, *each.saving)}

    def forget(self, name: str, retired: bool = False) -> None:
        """A group is no longer there. One that is not `retired` may speak again."""
        group = self.groups.pop(name, None)
        if group is None:
            return
        if retired:
            self._retired.add((name, group.incarnation))
        self._lost(group)

    def forget_silent(self, seconds: float) -> None:
        """Forget the groups that have said nothing for so long."""
        limit = time.monotonic() - seconds
        for name in [each.name for each in self.groups.values() if each.seen < limit]:
            self.forget(name)
