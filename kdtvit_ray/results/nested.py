"""Nested cross-validation: the whole search repeated inside other outer folds, each choice met with its own test
patients. What it says holds for a search with this space on new patients, since no search saw the patients that judge
its choice (Varma & Simon 2006, BMC Bioinformatics 7; Cawley & Talbot 2010, JMLR 11)."""

from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.errors import UserError
from kdtvit_ray.results.bootstrap import Bootstrapped, bootstrap, paired, resample
from kdtvit_ray.results.models import best, models, predictions_on_test
from kdtvit_ray.results.statistics import MEAN, REPLICATES, Interval, Sides
from kdtvit_ray.results.study import Study, load
from kdtvit_ray.results.trust import Rival, corrected


@dataclass(frozen=True)
class Nested:
    """`folds` has one line for each outer fold: fold, trial (the chosen one), order, student, objective, test (its
    metric on the fold's test patients, mean over magnifications). `value` is that of all their test `patients`
    together; `baselines` are the choices minus each baseline on these patients, corrected by Holm. `missing` outer
    folds have no result yet."""

    folds: pd.DataFrame
    value: Interval
    baselines: tuple[Rival, ...]
    patients: Sides
    missing: int


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
        value = _measure([frames["best"]], study, 0).values["image", study.metric, MEAN]
        lines.append((fold, chosen.trial, chosen.order, chosen.student, chosen.objective, value))
    if len(found) < 2 or study.leaks:
        return None
    patients = [set(frames["best"]["patient"]) for frames in found.values()]
    if sum(map(len, patients)) > len(set().union(*patients)):
        return None
    together = [frames["best"] for frames in found.values()]
    ours, cell = _measure(together, study, replicates), ("image", study.metric, MEAN)
    names = [name for name in next(iter(found.values())) if not name.startswith("best")]
    common = [name for name in names if all(name in frames for frames in found.values())]
    apart = [
        paired(ours, _measure([frames[name] for frames in found.values()], study, replicates), cell) for name in common
    ]
    rivals = corrected(common, apart)
    columns = ["fold", "trial", "order", "student", "objective", "test"]
    table = pd.DataFrame(lines, columns=columns)
    everyone = pd.concat(together)
    counted = Sides.of(everyone["malignant"].to_numpy(), everyone["patient"].to_numpy())
    return Nested(table, ours.interval(cell), tuple(rivals), counted, missing)


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


def _measure(frames: list[pd.DataFrame], study: Study, replicates: int) -> Bootstrapped:
    together = pd.concat(frames)
    drawn = resample(together["patient"].to_numpy(), together["malignant"].to_numpy(), max(replicates, 1))
    return bootstrap(together, drawn, study.magnifications)
