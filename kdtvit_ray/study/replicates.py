"""Confirmation of a study: its best trials and the baselines again over other folds and seeds, or the whole search
again in other outer folds."""

import json
from pathlib import Path

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results import models
from kdtvit_ray.results.choice import ranked
from kdtvit_ray.results.study import load
from kdtvit_ray.results.study_file import settings_of
from kdtvit_ray.study.asks import Ask, replicate
from kdtvit_ray.study.binding import Bound, bind
from kdtvit_ray.study.space import Space


def replicates(study: str, data: str, top: int, folds: list[int], seeds: int) -> tuple[Bound, list[Ask]]:
    """The study bound to `data` (where that is empty, to the set that it was begun with), and its `top` best settings
    and all baselines at each fold with seeds 0 .. `seeds` - 1. A setting that was tried twice counts once. Raises
    `UserError` where there is no such study, trial or fold."""
    from kdtvit_ray.data.folds import split

    folder, space, data = _begun(study, data)
    found = load(study)
    settings = ranked(found.settings, found.metric)
    best = models.best(found)
    if best is None:
        raise UserError(f"The study '{folder.shown}' has no complete trial to confirm; run its sweep first")
    # the chosen one first, which need not have the best objective
    chosen = settings.assign(_other=settings["trial"] != best.trial).sort_values("_other", kind="stable").head(top)
    bound = bind(space, data)
    for fold in folds:
        _check_fold(bound, fold)
        split(bound.prepared.table, bound.space.replicate(fold, 0).data, bound.prepared.dataset)
    trials = [(record.trial, json.loads(record.params)) for record in chosen.itertuples()]
    trials += [(name, {}) for name in bound.space.baselines()]
    for of_baseline in found.chosen_of.values():
        record_of = found.trial(of_baseline)
        assert record_of is not None
        trials.append((of_baseline, json.loads(record_of["params"])))
    asks = [
        replicate(bound.space, of, params, fold, seed)
        for fold in folds
        for seed in range(seeds)
        for of, params in trials
    ]
    return bound, asks


def searches(study: str, data: str, folds: list[int]) -> list[tuple[Bound, str]]:
    """The study's space bound at each of these outer folds but its own, and the location of the study of each. Raises
    `UserError` where there is no such study or fold, and for a fold that cannot be made."""
    folder, space, data = _begun(study, data)
    made = []
    for fold in folds:
        bound = bind(space.at_fold(fold), data) if fold != space.data.fold else None
        if bound is not None:
            _check_fold(bound, fold)
            made.append((bound, folder.inside(f"{folder.outer}/fold-{fold}")))
    return made


def _begun(study: str, data: str) -> tuple[StudyFolder, Space, str]:
    """A study's folder, its space, and `data`, by default the set that it was begun with."""
    folder = StudyFolder(study)
    plain = settings_of(folder)
    return folder, Space(plain, source=folder.path(folder.study), base=Path("/")), data or plain["data"]["path"]


def _check_fold(bound: Bound, fold: int) -> None:
    spec = bound.space.data
    allowed = bound.prepared.dataset.folds if spec.protocol == "official" else spec.folds
    if not 1 <= fold <= allowed:
        raise UserError(f"Fold {fold} does not exist in this study; allowed: 1 to {allowed}")
