"""Which models of a study are compared: the best chain, the best chain of each other student, and the baselines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.metrics import gain
from kdtvit_ray.recipe import WITHOUT_REHEARSAL
from kdtvit_ray.results.choice import ranked
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import BASELINE_NAMES, baseline_label, searched_training


@dataclass(frozen=True)
class Best:
    """The chain that was chosen by its `objective` from the `chosen_from` settings that were tried. `temperature` and
    `alpha` hold one value for each distilled stage. `chain` is the trial whose stages, `keys`, answer for it: its own,
    and with inner folds its refit. There are no keys before that has ended."""

    trial: str
    label: str
    chain: str
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
    training: str = ""
    """The training settings that were searched, in words."""


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
    """The best chain by the study's rule, or None while no searched trial is complete."""
    found = study.settings
    if not len(found):
        return None
    return _best_of(study, study.choose(found), "Best chain", len(found))


def best_by_student(study: Study) -> list[Best]:
    """The best chain of each student, the best objective first; the chosen chain stands for its own student."""
    first = best(study)
    made = []
    for student, part in study.settings.groupby("student", sort=True):
        own = first is not None and first.student == student
        row = part[part["trial"] == first.trial].iloc[0] if own and first else ranked(part, study.metric).iloc[0]
        made.append(_best_of(study, row, f"Best {student}", len(part)))
    return sorted(made, key=lambda each: -gain(study.metric, each.objective))


def _best_of(study: Study, row: pd.Series, label: str, chosen_from: int) -> Best:
    chain = study.refit(row["trial"]) if study.parts else row
    return Best(
        trial=row["trial"],
        label=label,
        chain="" if chain is None else chain["trial"],
        keys=() if chain is None else tuple(chain["stages"]),
        objective=float(row["objective"]),
        chosen_from=chosen_from,
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
        training=searched_training(json.loads(row["params"])),
    )


def models(study: Study) -> list[Model]:
    """All models that have been trained, in this order: the best chain, the best chains of the other students, the
    baselines, first of them the best chain without rehearsal where it rehearses. With inner folds they are the refits,
    and those that have not ended are left out."""
    made: list[Model] = []
    first = best(study)
    for each in best_by_student(study):
        if first is not None and each.keys and each.student == first.student:
            finals = everywhere(study, each.keys[-1])
            made.insert(0, Model("best", "Best chain", "best", finals, each.parameters))
        elif each.keys:
            finals = everywhere(study, each.keys[-1])
            made.append(Model(f"best-{each.student}", each.label, "student", finals, each.parameters))
    control = without_rehearsal(study, first)
    if control is not None:
        finals = everywhere(study, control["stages"][-1])
        label = baseline_label(WITHOUT_REHEARSAL)
        made.append(Model(WITHOUT_REHEARSAL, label, "baseline", finals, int(control["parameters"])))
    for name in BASELINE_NAMES:
        label, record = baseline_label(name), _baseline(study, name)
        if record is not None:
            finals = everywhere(study, record["stages"][-1])
            made.append(Model(name, label, "baseline", finals, int(record["parameters"])))
            continue
        single = {m: _baseline(study, f"{name}-{m}") for m in study.dataset.magnifications}
        there = {m: each for m, each in single.items() if each is not None}
        if there:
            finals = {m: each["stages"][-1] for m, each in there.items()}
            parameters = sum(int(each["parameters"]) for each in there.values())
            made.append(Model(name, label, "baseline", finals, parameters))
    return made


def same_stages(study: Study, models: Sequence[Model]) -> dict[str, str]:
    """By name of a model: the first one of `models` for which the same stages answer at every magnification, where that
    is another one. With one magnification all chains have one stage, and most baselines train the same."""
    first: dict[tuple[str | None, ...], str] = {}
    found = {}
    for model in models:
        earlier = first.setdefault(tuple(map(model.finals.get, study.magnifications)), model.name)
        if earlier != model.name:
            found[model.name] = earlier
    return found


def without_rehearsal(study: Study, chosen: Best | None) -> pd.Series | None:
    """The record of the best chain's twin without rehearsal; None where it does not rehearse, and before that has
    ended."""
    return study.refit(f"{chosen.trial}-{WITHOUT_REHEARSAL}") if chosen else None


def _baseline(study: Study, name: str) -> pd.Series | None:
    """The record of the chain that stands for a baseline in comparisons; None while there is none."""
    record = study.refit(name) if study.parts else study.trial(name)
    return record if record is not None and record["state"] == "complete" else None


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
