"""What `stage.json` says of a trained stage: its fields, how they are written and read, and the study's objective."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from kdtvit_ray.paths import PREDICTIONS, WEIGHTS
from kdtvit_ray.recipe import StageSpec

VERSION = 2
COSTS = (
    *("train_seconds", "evaluate_seconds", "teacher_seconds", "teacher_asked", "teacher_computed", "parameters"),
    *("device", "device_type", "latency_1_seconds", "images_per_second"),
)
"""What every stage tells of its cost."""
MAY_BE_UNKNOWN = ("latency_1_seconds", "images_per_second")
CURVES = ("epoch", "loss", "cross_entropy", "distillation", "lr", "agreement")
"""What every epoch tells, in numbers."""
WITH_TEACHER = ("distillation", "agreement")
"""What is None of these without a teacher."""


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
    `started` and `finished` when, in unix seconds, `study` in which study (its id); `files` holds size and hash of the
    files beside it.

    `preprocessing` and `classes` tell how to use the weights without the prepared set: how an image becomes an input,
    and what the outputs stand for; `weighting` holds the classes' weights in the loss and what is added to the logits.
    """

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
    workers: int = 1
    started: float = 0.0
    finished: float = 0.0
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
        return "cpu" if self.cost["device_type"] == "cpu" else self.device

    @property
    def train_seconds(self) -> float:
        return float(self.cost["train_seconds"])

    @property
    def evaluate_seconds(self) -> float:
        return float(self.cost["evaluate_seconds"])

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation."""
        return self.train_seconds + self.evaluate_seconds

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return int(self.cost["parameters"])

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
    def from_plain(cls, plain: Mapping[str, Any], measured: bool = True) -> "StageRecord":
        """The record that a `stage.json` holds, without its measures unless `measured`. Raises `NewerFormat` for one of
        a later format, and `KeyError`, `TypeError`, `ValueError` or `AttributeError` where it is damaged."""
        if plain["version"] > VERSION:
            raise NewerFormat(plain["version"])
        columns = [plain["measures"][each.name] for each in fields(Measure)]
        measures = tuple(Measure(*each) for each in zip(*columns, strict=True)) if measured else ()
        record = cls(**{**{each.name: plain[each.name] for each in fields(cls)}, "measures": measures})
        _check(record)
        return record


def _check(record: StageRecord) -> None:
    """Raise `KeyError`, `TypeError`, `ValueError` or `AttributeError` unless the record has what its readers rely
    on."""
    StageSpec.from_dict(dict(record.spec))
    for name in COSTS:
        if not name.startswith("device"):
            _number(record.cost[name], unknown=name in MAY_BE_UNKNOWN)
    record.cost["device"], record.cost["device_type"]
    for value in (record.workers, record.started, record.finished):
        _number(value)
    for epoch in record.curves:
        for name in CURVES:
            _number(epoch[name], unknown=name in WITH_TEACHER)
    if record.agreement is not None:
        for name in ("same_argmax", "kl"):
            _number(record.agreement[name])
    record.weighting["logit_offsets"], record.classes["names"], record.classes["positive"]
    for name in ("size", "aspect", "crop", "image_size", "interpolation", "mean", "std"):
        record.preprocessing[name]
    for name in (WEIGHTS, PREDICTIONS):
        record.files[name]["bytes"], record.files[name]["sha256"]


def _number(value: Any, unknown: bool = False) -> None:
    """Raise `TypeError` unless the value is a number; None is allowed as well where it may be `unknown`."""
    if isinstance(value, bool) or not (isinstance(value, int | float) or (unknown and value is None)):
        raise TypeError(f"{value!r} is no number")
