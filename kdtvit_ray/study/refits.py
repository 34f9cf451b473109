"""What follows when all settings have been judged: with inner folds the chosen ones are trained once more, on all
development patients; with or without, the chosen one is trained without rehearsal, where it rehearses."""

import json
import math
from collections.abc import Callable, Iterator

import pandas as pd

from kdtvit_ray.results.choice import chosen, ranked
from kdtvit_ray.results.rows import baseline_of
from kdtvit_ray.study.asks import Ask, refit, without_rehearsal
from kdtvit_ray.study.space import Space


def that_follow(space: Space, trials: pd.DataFrame, standard_error: Callable[[str], float]) -> Iterator[Ask]:
    """The refits of the chosen setting, of the best one of each other student, of the baselines, and of a searched
    baseline's chosen setting; and the chosen setting's chain without rehearsal. `standard_error` gives that of a
    trial's objective over inner folds."""
    metric, rule, refitted = space.study["metric"], space.study["choose"], bool(space.parts)
    error = standard_error if refitted else (lambda trial: math.nan)
    complete = trials[trials["state"] == "complete"]
    judged = complete[complete["objective"].notna()]  # some metrics are undefined for some predictions
    settings = judged[judged["kind"] == "search"]
    if len(settings):
        first = chosen(settings, metric, rule, error)
        rest = settings[settings["student"] != first["student"]]
        others = [ranked(part, metric).iloc[0] for _, part in rest.groupby("student", sort=True)]
        if refitted:
            yield from (refit(space, each["trial"], json.loads(each["params"])) for each in (first, *others))
        if alone := without_rehearsal(space, first["trial"], json.loads(first["params"])):
            yield alone
    if not refitted:
        return
    there = set(complete.loc[complete["kind"] == "baseline", "trial"])
    yield from (refit(space, name, {}) for name in space.baselines() if name in there)
    tried = judged[judged["kind"] == "baseline_search"]
    for name in space.searched_baselines():
        settings = tried[tried["trial"].map(baseline_of) == name]
        if len(settings):
            first = chosen(settings, metric, rule, error)
            yield refit(space, first["trial"], json.loads(first["params"]))
