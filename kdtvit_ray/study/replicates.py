"""Confirmation of a study's best trials: the same chains again over other folds and seeds, baselines beside them."""

from pathlib import Path

from rich.console import Console

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_trials
from kdtvit_ray.results.study import settings_of
from kdtvit_ray.study.ledger import Ask
from kdtvit_ray.study.options import Options
from kdtvit_ray.study.setup import bind
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.sweep import sweep


def confirm(options: Options, top: int, folds: list[int], seeds: int, console: Console) -> int:
    """Train the `top` best trials of the study at `options.out`, and all baselines, at each fold with seeds
    0 .. `seeds` - 1. Returns the exit code; raises `UserError` where there is no such study, trial or fold."""
    import json

    from kdtvit_ray.data.folds import split

    folder = StudyFolder(options.out)
    plain = settings_of(folder)
    space = Space(plain, source=folder.path(folder.study), base=Path("/"))
    searched = read_trials(folder).query("kind == 'search' and state == 'complete'")
    chosen = searched.sort_values(["objective", "number"], ascending=[False, True]).head(top)
    if not len(chosen):
        raise UserError(f"The study '{folder.shown}' has no complete trial to confirm; run its sweep first")
    bound = bind(space, options.data or plain["data"]["path"])
    allowed = 5 if space.data.protocol == "official" else space.data.folds
    for fold in folds:
        if not 1 <= fold <= allowed:
            raise UserError(f"Fold {fold} does not exist in this study; allowed: 1 to {allowed}")
        split(bound.prepared.table, bound.space.replicate(fold, 0).data)
    trials = [(record.trial, json.loads(record.params)) for record in chosen.itertuples()]
    trials += [(name, {}) for name in bound.space.baselines()]
    asks = [
        Ask(f"{of}-f{fold}-s{seed}", "confirm", {"of": of, "params": params, "fold": fold, "seed": seed})
        for fold in folds
        for seed in range(seeds)
        for of, params in trials
    ]
    return sweep(bound, options, console, confirm=asks)
