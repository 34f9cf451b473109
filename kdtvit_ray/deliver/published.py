"""What of a study is published to a tracker: runs with parameters, metrics and curves, made from its folder alone.

    study           one run for the whole study; the report is its artifact
    trial/t0007     one for each trial that has ended
    stage/<key>     one for each finished stage, with a value for each epoch

The report, and test figures of the models that it shows on test, are not published before the study has finished: who
watches a search on a tracker does not see test.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from kdtvit_ray.metrics import LOWER_IS_BETTER, METRICS
from kdtvit_ray.paths import StudyFolder, without_secrets
from kdtvit_ray.results.models import models
from kdtvit_ray.results.stage_record import StageRecord
from kdtvit_ray.results.study import Study

STUDY = "study"
CURVES = ("loss", "cross_entropy", "distillation", "lr", "agreement")
LONGEST = 1_000
"""characters of a text: trackers refuse longer ones."""


@dataclass(frozen=True)
class Run:
    """`name` is the same whenever the study is published. `metrics` hold finite values, `curves` (epoch, value) pairs;
    `started` and `finished` are in unix seconds, 0 where they are not known; `progress` counts what the metrics are of,
    where they change while the study goes on."""

    name: str
    label: str
    kind: str
    tags: Mapping[str, str]
    params: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    started: float = 0.0
    finished: float = 0.0
    progress: int = 0

    @property
    def failed(self) -> bool:
        return self.tags.get("state") == "failed"

    @property
    def digest(self) -> str:
        """Differs where anything of the run does."""
        return _digest(json.dumps(asdict(self), sort_keys=True))


@dataclass(frozen=True)
class Publication:
    """`study_id` tells the study from all others. `runs` has the study's own first. `report` holds the digest of the
    report's files by their names in the study's folder; empty until the study has finished and has one."""

    study_id: str
    name: str
    folder: StudyFolder
    runs: Sequence[Run]
    report: Mapping[str, str]

    @property
    def report_digest(self) -> str:
        return _digest(json.dumps(self.report, sort_keys=True)) if self.report else ""


def publication(study: Study) -> Publication:
    """All that is there to publish now."""
    runs = [_study_run(study), *_trial_runs(study), *(_stage_run(key, each) for key, each in study.stages.items())]
    folder = study.folder
    # the report of a sweep that was stopped has test figures as well
    names = [f"{folder.report}/{name}" for name in folder.files(folder.report)] if study.finished else []
    report = {name: hashlib.blake2b(folder.read(name), digest_size=16).hexdigest() for name in names}
    return Publication(study.plain["id"], study.name, folder, runs, report)


def _study_run(study: Study) -> Run:
    plain = study.plain
    fixed = {
        **{name: plain["study"][name] for name in ("metric", "sampler", "seed", "pruner")},
        "protocol": study.protocol,
        "fold": plain["protocol"]["fold"],
        "inner_folds": len(study.parts),
        "dataset": study.dataset.name,
        "prepared_set": plain["data"]["fingerprint"],
        **{f"chain.{name}": value for name, value in plain["chain"].items()},
        **_flat("training", plain["training"]),
    }
    ended = study.trials
    metrics: dict[str, float] = {
        "trials_ended": len(ended),
        "trials_failed": len(study.failed),
        "stages": len(study.stages),
        "cost_seconds": sum(each.seconds for each in study.stages.values()),
    }
    if len(study.searched):
        lowest = study.metric in LOWER_IS_BETTER
        objectives = study.searched["objective"]
        metrics["best_objective"] = float(objectives.min() if lowest else objectives.max())
    tags = {"state": study.status.state, "folder": study.folder.shown, "leaks": str(study.leaks).lower()}
    started, finished = (ended["started"].min(), ended["finished"].max()) if len(ended) else (0.0, 0.0)
    return Run(
        STUDY,
        study.name,
        STUDY,
        tags,
        _params(fixed),
        _finite(metrics),
        started=float(started),
        finished=float(finished),
        progress=len(ended),
    )


def _trial_runs(study: Study) -> Iterator[Run]:
    on_test = _on_test(study) if study.finished else {}
    for trial in study.trials.to_dict("records"):
        params: dict[str, Any] = {
            name: trial[name] for name in ("order", "teacher", "student", "loss", "warm_start", "seed", "fold")
        }
        for name in ("temperature", "alpha"):
            values = json.loads(trial[name])  # one for each distilled stage
            same = len(set(values)) == 1
            params |= {name: values[0]} if same else {f"{name}.{n}": value for n, value in enumerate(values, 2)}
        params |= {name: value for name, value in json.loads(trial["params"]).items() if name.startswith("training.")}
        metrics = {name: trial[name] for name in ("objective", "parameters", "cost_seconds")}
        tags = {name: str(trial[name]) for name in ("kind", "state", "reason", "fault") if trial[name]}
        tags["stages"] = " ".join(trial["stages"])
        yield Run(
            f"trial/{trial['trial']}",
            trial["trial"],
            trial["kind"],
            {name: _text(value) for name, value in tags.items()},
            _params(params),
            _finite({**metrics, **on_test.get(trial["trial"], {})}),
            started=float(trial["started"]),
            finished=float(trial["finished"]),
        )


def _on_test(study: Study) -> dict[str, dict[str, float]]:
    """{trial: {metric: value}} at image level for the trials whose last stage the report shows on test: those of its
    headline table, at the magnifications that they answer for, and the replicates of `confirm`."""
    answers: dict[str, set[int]] = {}
    for model in models(study):
        for magnification, key in model.finals.items():
            answers.setdefault(key, set()).add(magnification)
    complete = study.trials[(study.trials["state"] == "complete") & study.trials["stages"].map(bool)]
    rows = study.rows[(study.rows["split"] == "test") & (study.rows["level"] == "image")]
    found: dict[str, dict[str, float]] = {}
    for trial, kind, stages in zip(complete["trial"], complete["kind"], complete["stages"], strict=True):
        everywhere = set(study.magnifications) if kind == "confirm" else set()
        shown = answers.get(stages[-1], everywhere)
        if shown and kind != "inner":
            found[trial] = _test_figures(rows[(rows["trial"] == trial) & (rows["key"] == stages[-1])], shown)
    return found


def _test_figures(rows: pd.DataFrame, magnifications: set[int]) -> dict[str, float]:
    rows = rows[rows["magnification"].isin(magnifications) & rows["metric"].isin(METRICS)]
    named = zip(rows["metric"], rows["magnification"], rows["value"], strict=True)
    return {f"test/{metric}_{magnification}X": float(value) for metric, magnification, value in named}


def _stage_run(key: str, stage: StageRecord) -> Run:
    distillation = stage.spec["distillation"] or {}
    params = {
        "trained_at": stage.trained,
        "model": stage.spec["model"]["name"],
        "seed": stage.spec["seed"],
        "warm_start": stage.spec["warm"],
        **{name: distillation.get(name) for name in ("temperature", "alpha", "loss")},
        **{f"training.{name}": value for name, value in stage.spec["training"].items()},
    }
    curves = {
        name: [(int(epoch["epoch"]), float(epoch[name])) for epoch in stage.curves if _is_finite(epoch[name])]
        for name in CURVES
    }
    return Run(
        f"stage/{key}",
        f"{stage.trained}X {key[:8]}",
        "stage",
        {"key": key, "parent": stage.parent or "", "device": stage.device, "host": stage.host},
        _params(params),
        _finite({"train_seconds": stage.train_seconds, "parameters": stage.parameters, **(stage.agreement or {})}),
        {name: values for name, values in curves.items() if values},
        stage.started,
        stage.finished,
    )


def _params(values: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Without those that are not set; what is no number becomes text."""
    plain = {name: getattr(value, "item", lambda value=value: value)() for name, value in values.items()}
    return {
        name: value if isinstance(value, bool | int | float) else _text(str(value))
        for name, value in plain.items()
        if value is not None
    }


def _flat(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a table and of the tables in it, each by its whole name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(f"{table}.{name}", value) if isinstance(value, Mapping) else {f"{table}.{name}": value}
    return flat


def _text(text: str) -> str:
    return without_secrets(text)[:LONGEST]


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if _is_finite(value)}


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
