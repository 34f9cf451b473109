"""Confirmation of a study's best trials: the same chains again over other folds and seeds, baselines beside them."""

import json
from pathlib import Path

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results import models
from kdtvit_ray.results.study import load, ranked, settings_of
from kdtvit_ray.study.asks import Ask, replicate
from kdtvit_ray.study.binding import Bound, bind
from kdtvit_ray.study.space import Space


def replicates(study: str, data: str, top: int, folds: list[int], seeds: int) -> tuple[Bound, list[Ask]]:
    """The study bound to `data` (where that is empty, to the set that it was begun with), and its `top` best settings
    and all baselines at each fold with seeds 0 .. `seeds` - 1. A setting that was tried twice counts once. Raises
    `UserError` where there is no such study, trial or fold."""
    from kdtvit_ray.data.folds import split

    folder = StudyFolder(study)
    plain = settings_of(folder)
    space = Space(plain, source=folder.path(folder.study), base=Path("/"))
    found = load(study)
    settings = ranked(found.settings, found.metric)
    best = models.best(found)
    if best is None:
        raise UserError(f"The study '{folder.shown}' has no complete trial to confirm; run its sweep first")
    # the chosen one first, which need not have the best objective
    chosen = settings.assign(_other=settings["trial"] != best.trial).sort_values("_other", kind="stable").head(top)
    bound = bind(space, data or plain["data"]["path"])
    allowed = bound.prepared.dataset.folds if space.data.protocol == "official" else space.data.folds
    for fold in folds:
        if not 1 <= fold <= allowed:
            raise UserError(f"Fold {fold} does not exist in this study; allowed: 1 to {allowed}")
        split(bound.prepared.table, bound.space.replicate(fold, 0).data, bound.prepared.dataset)
    trials = [(record.trial, json.loads(record.params)) for record in chosen.itertuples()]
    trials += [(name, {}) for name in bound.space.baselines()]
    asks = [
        replicate(bound.space, of, params, fold, seed)
        for fold in folds
        for seed in range(seeds)
        for of, params in trials
    ]
    return bound, asks
