"""Which settings are trained once more, on all development patients, when all have been judged over inner folds."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from kdtvit_ray.results.choice import chosen, ranked
from kdtvit_ray.results.rows import baseline_of
from kdtvit_ray.study.space import Space


def to_refit(
    space: Space, trials: pd.DataFrame, standard_error: Callable[[str], float]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and parameters of each: the chosen setting, the best one of each other student, the baselines, and of a
    searched baseline the chosen setting. `standard_error` gives that of a trial's objective."""
    metric, rule = space.study["metric"], space.study["choose"]
    complete = trials[trials["state"] == "complete"]
    settings = complete[complete["kind"] == "search"]
    if len(settings):
        first = chosen(settings, metric, rule, standard_error)
        rest = settings[settings["student"] != first["student"]]
        others = [ranked(part, metric).iloc[0] for _, part in rest.groupby("student", sort=True)]
        yield from ((each["trial"], json.loads(each["params"])) for each in (first, *others))
    there = set(complete.loc[complete["kind"] == "baseline", "trial"])
    yield from ((name, {}) for name in space.baselines() if name in there)
    tried = complete[complete["kind"] == "baseline_search"]
    for name in space.searched_baselines():
        settings = tried[tried["trial"].map(baseline_of) == name]
        if len(settings):
            first = chosen(settings, metric, rule, standard_error)
            yield first["trial"], json.loads(first["params"])
