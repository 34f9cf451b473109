"""What the coordinator, the worker groups, the trials and the driver say to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.study_status import GroupStatus


@dataclass(frozen=True)
class Work:
    """A stage for a worker group, and the stage before where it depends on one. A stage that is on storage already is
    run `again` where what lies there is damaged."""

    spec: StageSpec
    parent: StageSpec | None = None
    again: bool = False

    @property
    def key(self) -> str:
        return self.spec.key


WAIT = "wait"
"""There is nothing to run just now: ask again."""
STOP = "stop"
"""There is nothing to run any more: end."""


@dataclass(frozen=True)
class StageOutcome:
    """How a stage of a trial ended: `state` is done, failed, stopped (the study is stopping) or waiting (it has not
    ended: ask again). `objective` is there where it is done, `reason` where it failed."""

    state: str
    objective: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Snapshot:
    """What the coordinator knows: stages by state, how many were `trained`, the groups, the trials that it was told of,
    and why storage was given up, if it was."""

    stages: Mapping[str, int] = field(default_factory=dict)
    trained: int = 0
    groups: tuple[GroupStatus, ...] = ()
    trials: frozenset[str] = frozenset()
    lost_storage: str = ""
