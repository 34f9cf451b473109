"""What `stage.json` says of a trained stage: its fields, how they are written and read, and the study's objective.

Format 2 writes the measured values as columns by name. Format 1 had a list of [magnification, split, level, metric,
value] instead, and is still read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

VERSION = 2


class NewerFormat(Exception):
    """A newer version of this package wrote the stage, in format `version`."""

    def __init__(self, version: int) -> None:
        super().__init__(f"written in format {version} by a newer version of kdtvit-ray")
        self.version = version


@dataclass(frozen=True, slots=True)
class Measure:
    """One measured value: of images at `magnification` in `split`, at one of `kdtvit_ray.metrics.LEVELS`."""

    magnification: int
    split: str
    level: str
    metric: str
    value: float


@dataclass(frozen=True)
class StageSummary:
    """The part of a stage's record that decides: `objectives` by metric, the model's parameters, and the seconds that
    training took, alone and with the evaluation."""

    objectives: dict[str, float]
    parameters: int
    train_seconds: float
    seconds: float

    def objective(self, metric: str) -> float:
        """The objective in this metric; NaN where it was not measured."""
        return self.objectives.get(metric, math.nan)


@dataclass(frozen=True)
class StageRecord:
    """One trained stage. `spec` is `StageSpec.to_dict()`; `cost` holds seconds, counts and speeds, `curves` one mapping
    an epoch, `agreement` that with the teacher, where there is one. `group`, `host` and `workers` tell who trained it,
    `started` and `finished` when, in unix seconds, `study` in which study (its id; stages of earlier versions lack it);
    `files` holds size and hash of the files beside it.

    `preprocessing` and `classes` tell how to use the weights without the prepared set: how an image becomes an input,
    and what the outputs stand for; `weighting` holds the classes' weights in the loss and what is added to the logits.
    Stages of earlier versions have none of these three."""

    key: str
    spec: Mapping[str, Any]
    measures: tuple[Measure, ...]
    cost: Mapping[str, Any]
    curves: Sequence[Mapping[str, Any]]
    agreement: Mapping[str, float] | None = None
    weighting: Mapping[str, Sequence[float]] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    group: str = ""
    host: str = ""
    workers: int | None = None
    started: float | None = None
    finished: float | None = None
    study: str = ""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def parent(self) -> str | None:
        """Key of the stage before, as far as this one depends on it."""
        return self.spec["parent"]

    @property
    def trained(self) -> str:
        """The magnifications that the stage was trained at, such as `40` or `40+100+200+400`."""
        return "+".join(map(str, self.spec["magnifications"]))

    @property
    def device_kind(self) -> str:
        """What trained the stage: the model of the GPU, or "cpu"."""
        return "cpu" if self.cost.get("device_type", "cpu") == "cpu" else self.device

    @property
    def train_seconds(self) -> float:
        return float(self.cost["train_seconds"])

    @property
    def evaluate_seconds(self) -> float:
        return float(self.cost.get("evaluate_seconds", 0.0))

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation."""
        return self.train_seconds + self.evaluate_seconds

    @property
    def parameters(self) -> int:
        """Parameters of the model; 0 where they were not counted."""
        return int(self.cost.get("parameters", 0))

    def values(self, split: str, level: str, metric: str) -> dict[int, float]:
        """The measured values of one metric by magnification."""
        return {
            each.magnification: each.value
            for each in self.measures
            if each.metric == metric and each.split == split and each.level == level
        }

    def summary(self) -> StageSummary:
        """The objectives and the cost. A stage's objective in a metric is the mean over magnifications of its values on
        validation images; the test set plays no part."""
        by_metric: dict[str, list[float]] = {}
        for each in self.measures:
            if each.split == "validation" and each.level == "image":
                by_metric.setdefault(each.metric, []).append(each.value)
        objectives = {metric: sum(values) / len(values) for metric, values in by_metric.items()}
        return StageSummary(objectives, self.parameters, self.train_seconds, self.seconds)

    def to_plain(self) -> dict[str, Any]:
        """The content of `stage.json`."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        columns = {each.name: [getattr(one, each.name) for one in self.measures] for each in fields(Measure)}
        return {**plain, "measures": columns, "curves": list(self.curves), "parent": self.parent, "version": VERSION}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "StageRecord":
        """The record that a `stage.json` holds, of any format up to this one. Raises `NewerFormat` for a later one, and
        `KeyError`, `TypeError` or `ValueError` where it is damaged."""
        if plain["version"] > VERSION:
            raise NewerFormat(plain["version"])
        known = {each.name for each in fields(cls)}
        record = cls(**{**{k: v for k, v in plain.items() if k in known}, "measures": _measures(plain["measures"])})
        _check(record)
        return record


def _measures(plain: Any) -> tuple[Measure, ...]:
    if isinstance(plain, list):  # format 1
        return tuple(Measure(*each) for each in plain)
    return tuple(Measure(*each) for each in zip(*(plain[each.name] for each in fields(Measure)), strict=True))


def _check(record: StageRecord) -> None:
    """Raise `KeyError`, `TypeError` or `ValueError` unless the record has what its readers rely on."""
    for each in ("magnifications", "parent", "warm", "distillation", "seed", "data", "training", "numeric"):
        record.spec[each]
    record.spec["model"]["name"]
    float(record.cost["train_seconds"])
    for epoch in record.curves:
        epoch["epoch"], epoch["loss"]
