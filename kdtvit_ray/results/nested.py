"""Nested cross-validation: the whole search repeated inside other outer folds, each choice met with its own test
patients. What it says holds for a search with this space on new patients, since no search saw the patients that judge
its choice (Varma & Simon 2006, BMC Bioinformatics 7; Cawley & Talbot 2010, JMLR 11)."""

from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.errors import UserError
from kdtvit_ray.results.bootstrap import Cell, bootstrap, resample
from kdtvit_ray.results.effects import ratio_of_test_to_train
from kdtvit_ray.results.models import best, models, predictions_on_test
from kdtvit_ray.results.pooling import differences, measure_folds
from kdtvit_ray.results.statistics import MEAN, REPLICATES, Interval, Sides
from kdtvit_ray.results.study import Study, load
from kdtvit_ray.results.trust import Rival, corrected


@dataclass(frozen=True)
class Nested:
    """`folds` has one line for each outer fold: fold, trial (the chosen one), order, student, objective, test (its
    metric on the fold's test patients, mean over magnifications). `value` is that of all their test `patients`
    together, with an interval over patients for these choices as they were trained; `baselines` are the choices minus
    each baseline on these patients, over patients and trainings (`results.pooling`), corrected by Holm. `missing` outer
    folds have no result yet; `unpaired` baselines were not predicted on the same patients and are not compared."""

    folds: pd.DataFrame
    value: Interval
    baselines: tuple[Rival, ...]
    patients: Sides
    missing: int
    unpaired: tuple[str, ...] = ()


def nested(study: Study, replicates: int = REPLICATES) -> Nested | None:
    """None with fewer than two outer folds that have a choice, and where their test patients are not different ones."""
    found: dict[int, dict[str, pd.DataFrame]] = {}
    lines, missing = [], 0
    for fold, each in sorted(_studies(study).items()):
        chosen, of_model = best(each), {model.name: predictions_on_test(each, model) for model in models(each)}
        frames = {name: frame for name, frame in of_model.items() if frame is not None and len(frame)}
        if chosen is None or "best" not in frames or not each.finished:
            missing += 1
            continue
        found[fold] = frames
        alone = resample(frames["best"]["patient"].to_numpy(), frames["best"]["malignant"].to_numpy(), 1)
        value = bootstrap(frames["best"], alone, study.magnifications).values["image", study.metric, MEAN]
        lines.append((fold, chosen.trial, chosen.order, chosen.student, chosen.objective, value))
    if len(found) < 2 or study.leaks:
        return None
    patients = [set(frames["best"]["patient"]) for frames in found.values()]
    if sum(map(len, patients)) > len(set().union(*patients)):
        return None
    together = [frames["best"] for frames in found.values()]
    cell: Cell = ("image", study.metric, MEAN)
    names = [name for name in next(iter(found.values())) if not name.startswith("best")]
    names = [name for name in names if all(name in frames for frames in found.values())]
    common = [name for name in names if all(_same_patients(each[name], each["best"]) for each in found.values())]
    everyone = pd.concat(together)
    truth, owner = everyone["malignant"].to_numpy(), everyone["patient"].to_numpy()
    drawn = resample(owner, truth, replicates)
    ours, *theirs = (
        measure_folds([[each[name] for each in found.values()]], drawn, study.magnifications)
        for name in ("best", *common)
    )
    return Nested(
        folds=pd.DataFrame(lines, columns=["fold", "trial", "order", "student", "objective", "test"]),
        value=ours.pooled.interval(cell),
        baselines=tuple(corrected(common, differences([ours, *theirs], cell, ratio_of_test_to_train(study)))),
        patients=Sides.of(truth, owner),
        missing=missing,
        unpaired=tuple(name for name in names if name not in common),
    )


def _same_patients(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two models predicted images of the same patients, at each magnification."""
    return set(zip(one["magnification"], one["patient"], strict=True)) == set(
        zip(other["magnification"], other["patient"], strict=True)
    )


def _studies(study: Study) -> dict[int, Study]:
    """The study itself and its repetitions, by outer fold; {} without repetitions."""
    made: dict[int, Study] = {}
    for name in study.folder.names(study.folder.outer):
        try:
            each = load(study.folder.inside(f"{study.folder.outer}/{name}"))
        except UserError:
            continue  # begun and not a study yet
        made[int(each.plain["protocol"]["fold"])] = each
    return {int(study.plain["protocol"]["fold"]): study, **made} if made else {}
