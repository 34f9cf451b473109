"""What `status.json` says: the state of a sweep, as its driver saw it last. Its fields, and how they are written and
read."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from kdtvit_ray.paths import StudyFolder

VERSION = 1
COUNTS = ("trials", "baselines", "baseline_settings", "chains", "refits", "replicates")
"""Fields of a status that count trials."""


@dataclass(frozen=True)
class TrialCounts:
    """How many trials of one kind there are to be, and how many are in which state. Of those that failed,
    `infrastructure` did so for reasons of machines, not of their own."""

    total: int = 0
    complete: int = 0
    failed: int = 0
    infrastructure: int = 0
    pruned: int = 0
    running: int = 0

    @property
    def ended(self) -> int:
        return self.complete + self.failed + self.pruned


@dataclass(frozen=True)
class StageCounts:
    """How many stages of the stage tree are in which state (`elsewhere`: ready, but another study trains the same), how
    many were `trained` in this session and how many `taken_over` from other studies, and how often a trial took one
    that was there already (`shared`)."""

    waiting: int = 0
    ready: int = 0
    elsewhere: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    trained: int = 0
    taken_over: int = 0
    shared: int = 0


@dataclass(frozen=True)
class BestTrial:
    """The best complete searched trial so far: its objective, the metric by magnification on validation, and its
    settings by name."""

    trial: str = ""
    objective: float = -1.0
    by_magnification: Mapping[int, float] = field(default_factory=dict)
    words: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class GroupStatus:
    """A worker group. `key` and `stage` name the stage that it runs, empty where it runs none; `placement_group` is the
    id of the one that holds its resources."""

    name: str
    node: str = ""
    workers: int = 1
    key: str = ""
    stage: str = ""
    epoch: int = 0
    epochs: int = 0
    placement_group: str = ""


@dataclass(frozen=True)
class Status:
    """`state` is running, finished or stopped, and empty where no sweep has written any. `elapsed` and `seconds_left`
    are seconds; `dtype` is what the study computes in; `baseline_settings` are those that
    searched baselines try; `chains` are those of settings and baselines over inner folds; `groups_wanted` groups are to
    run, each of which needs `group_needs`, and `idle_note` says where most of a cluster would idle; `aside` has a
    sentence for each node that is set aside, `dying` one for each group that could not be started again and again;
    `fatal` is why the study had to stop, empty where it had not to."""

    state: str = ""
    name: str = ""
    metric: str = ""
    judged_on: str = "on validation"
    dtype: str = ""
    host: str = ""
    pid: int = 0
    elapsed: float = 0.0
    seconds_left: float | None = None
    trials: TrialCounts = TrialCounts()
    baselines: TrialCounts = TrialCounts()
    baseline_settings: TrialCounts = TrialCounts()
    chains: TrialCounts = TrialCounts()
    refits: TrialCounts = TrialCounts()
    replicates: TrialCounts = TrialCounts()
    best: BestTrial = BestTrial()
    stages: StageCounts = StageCounts()
    groups: tuple[GroupStatus, ...] = ()
    groups_wanted: int = 0
    group_needs: str = ""
    idle_note: str = ""
    aside: tuple[str, ...] = ()
    dying: tuple[str, ...] = ()
    log: str = ""
    fatal: str = ""

    def without_running(self) -> "Status":
        """The same of a sweep that does not run any more."""
        fields: dict[str, Any] = {name: replace(getattr(self, name), running=0) for name in (*COUNTS, "stages")}
        return replace(self, **fields)

    def write(self, folder: StudyFolder) -> None:
        folder.write(folder.status, json.dumps({**asdict(self), "version": VERSION}).encode())

    @classmethod
    def read(cls, folder: StudyFolder) -> "Status":
        """The last status of a study. Raises `FileNotFoundError` where there is none, `ValueError` where it is
        damaged."""
        return cls.from_plain(folder.read_json(folder.status))

    @classmethod
    def from_plain(cls, plain: Any) -> "Status":
        """The status that a `status.json` holds; unknown fields are passed over. Raises `ValueError` for anything else
        than that."""
        try:
            found = _known(cls, plain)
            if not all(math.isfinite(found[name] or 0.0) for name in ("elapsed", "seconds_left")):
                raise ValueError("it is no status: its time is not finite")
            for name in COUNTS:
                found[name] = TrialCounts(**_known(TrialCounts, found[name]))
            best = _known(BestTrial, found["best"])
            by_magnification = {int(each): float(value) for each, value in best["by_magnification"].items()}
            found["best"] = BestTrial(**{**best, "by_magnification": by_magnification})
            found["stages"] = StageCounts(**_known(StageCounts, found["stages"]))
            found["groups"] = tuple(GroupStatus(**_known(GroupStatus, each)) for each in found["groups"])
            found |= {name: tuple(found[name]) for name in ("aside", "dying")}
            return cls(**found)
        except KeyError as error:
            raise ValueError(f"it is no status: no {error} in it") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(f"it is no status: {error}") from None


def _known(kind: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(plain, Mapping):
        raise TypeError(f"{plain!r} is no table of {kind.__name__}")
    found = {each.name: plain[each.name] for each in fields(kind)}
    for each in fields(kind):
        if not _fits(each.type, found[each.name]):
            raise TypeError(f"{each.name} is {found[each.name]!r}")
    return found


def _fits(kind: Any, value: Any) -> bool:
    """Whether a plain value is of the kind of a field; those that are tables of their own are looked at elsewhere."""
    if kind == float | None and value is None:
        return True
    if kind in (int, float, float | None):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in (str, tuple[str, ...]):
        texts = [value] if kind is str else value
        return isinstance(texts, list) and all(isinstance(each, str) for each in texts)
    return True
