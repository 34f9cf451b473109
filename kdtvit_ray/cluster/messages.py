"""What the coordinator, the worker groups, the trials and the driver say to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.study_status import GroupStatus
from kdtvit_ray.study.library import Claim


@dataclass(frozen=True)
class Work:
    """A stage for a worker group to run. `parent` is the stage before, where the stage depends on one. `again` says
    that the stage is on storage already but damaged there, so that it has to be trained again. `seize` is
    another study's claim on it, which is dead if it has not beaten since."""

    spec: StageSpec
    parent: StageSpec | None = None
    again: bool = False
    seize: Claim | None = None

    @property
    def key(self) -> str:
        return self.spec.key


Keys = tuple[str, ...]
"""Keys of stages."""
WAIT = "wait"
"""There is nothing to run just now: ask again."""
STOP = "stop"
"""There is nothing to run any more, or not on this node: end."""
GREET = "greet"
"""The coordinator does not know the group, because it was restarted: greet it, then ask again."""


@dataclass(frozen=True)
class StageOutcome:
    """How a stage of a trial ended. `state` is done (with its `objective`), failed (with the `reason` and whether the
    stage or the infrastructure is at `fault`), stopped (the study is stopping) or waiting (the stage has not ended: ask
    again)."""

    state: str
    objective: float | None = None
    reason: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Snapshot:
    """What the coordinator knows at one moment: how many stages are in which state and how many were `trained` or taken
    over from other studies, the worker groups, the names of the trials that have joined, why storage was given up
    (empty if it was not), the nodes that are set aside with their reasons, by Ray's id, sentences on nodes whose
    versions differ from the driver's, whether a group runs a stage or puts one on storage, and sentences on groups
    whose workers keep dying before they have a stage."""

    stages: Mapping[str, int] = field(default_factory=dict)
    trained: int = 0
    taken_over: int = 0
    groups: tuple[GroupStatus, ...] = ()
    trials: frozenset[str] = frozenset()
    lost_storage: str = ""
    aside: Mapping[str, str] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    in_flight: bool = False
    dying: tuple[str, ...] = ()
