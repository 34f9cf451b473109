"""Which models of a study are compared: the best chain, the best chain of each other student, and the baselines."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.results.study import Study, ranked
from kdtvit_ray.results.words import BASELINE_NAMES, baseline_label


@dataclass(frozen=True)
class Best:
    """The chain that was chosen on validation: it has the largest `objective` of the `chosen_from` settings that were
    tried. `temperature` and `alpha` hold one value for each distilled stage; `keys` are the stages'."""

    trial: str
    label: str
    keys: tuple[str, ...]
    objective: float
    chosen_from: int
    order: str
    teacher: str
    student: str
    temperature: tuple[float, ...]
    alpha: tuple[float, ...]
    loss: str
    warm_start: bool
    parameters: int
    seed: int
    cost_seconds: float


@dataclass(frozen=True)
class Model:
    """One line of the headline table. `kind` is `best`, `student`, `baseline`, `search` or `confirm`. `finals` says
    which stage answers for which magnification: one stage for all of them in a chain, a stage for each of them in the
    baseline `per_magnification`."""

    name: str
    label: str
    kind: str
    finals: Mapping[int, str]
    parameters: int


def best(study: Study) -> Best | None:
    """The best chain, or None while no searched trial is complete."""
    found = study.settings
    return _best_of(found, "Best chain") if len(found) else None


def best_by_student(study: Study) -> list[Best]:
    """The best chain of each student, the largest objective first."""
    made = [_best_of(part, f"Best {student}") for student, part in study.settings.groupby("student", sort=True)]
    return sorted(made, key=lambda each: -each.objective)


def _best_of(trials: pd.DataFrame, label: str) -> Best:
    row = ranked(trials).iloc[0]
    return Best(
        trial=row["trial"],
        label=label,
        keys=tuple(row["stages"]),
        objective=float(row["objective"]),
        chosen_from=len(trials),
        order=row["order"],
        teacher=row["teacher"],
        student=row["student"],
        temperature=tuple(json.loads(row["temperature"])),
        alpha=tuple(json.loads(row["alpha"])),
        loss=row["loss"],
        warm_start=bool(row["warm_start"]),
        parameters=int(row["parameters"]),
        seed=int(row["seed"]),
        cost_seconds=float(row["cost_seconds"]),
    )


def models(study: Study) -> list[Model]:
    """All models that have been trained, in this order: the best chain, the best chains of the other students, the
    baselines."""
    made: list[Model] = []
    chosen = best(study)
    if chosen:
        made.append(Model("best", "Best chain", "best", everywhere(study, chosen.keys[-1]), chosen.parameters))
        for other in best_by_student(study):
            if other.student != chosen.student:
                finals = everywhere(study, other.keys[-1])
                made.append(Model(f"best-{other.student}", other.label, "student", finals, other.parameters))
    ended = study.trials[study.trials["state"] == "complete"].set_index("trial")
    for name in BASELINE_NAMES:
        label = baseline_label(name)
        if name in ended.index:
            record = ended.loc[name]
            made.append(
                Model(name, label, "baseline", everywhere(study, record["stages"][-1]), int(record["parameters"]))
            )
            continue
        single = {m: f"{name}-{m}" for m in study.dataset.magnifications if f"{name}-{m}" in ended.index}
        if single:
            finals = {m: ended.loc[trial, "stages"][-1] for m, trial in single.items()}
            parameters = sum(int(ended.loc[trial, "parameters"]) for trial in single.values())
            made.append(Model(name, label, "baseline", finals, parameters))
    return made


def everywhere(study: Study, key: str) -> dict[int, str]:
    """One stage that answers for every magnification."""
    return dict.fromkeys(study.dataset.magnifications, key)


def predictions_on_test(study: Study, model: Model) -> pd.DataFrame | None:
    """The test images of all magnifications that `model` answers for, each predicted by the stage that answers for its
    magnification. None where predictions are missing."""
    parts = []
    for magnification, key in model.finals.items():
        found = study.predictions(key)
        if found is None:
            return None
        parts.append(found[(found["split"] == "test") & (found["magnification"] == magnification)])
    return pd.concat(parts, ignore_index=True) if parts else None
