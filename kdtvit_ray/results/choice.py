"""Which setting of a search is chosen, by the study's rule."""

import json
import math
from collections.abc import Callable

import pandas as pd

from kdtvit_ray.metrics import LOWER_IS_BETTER, gain


def ranked(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Trials from the best to the worst objective in this metric, the earlier trial first among equal ones."""
    return trials.sort_values(["objective", "number"], ascending=[metric in LOWER_IS_BETTER, True])


def with_objective(settings: pd.DataFrame) -> pd.DataFrame:
    """The complete settings that have an objective, from which one is chosen."""
    return settings[(settings["state"] == "complete") & settings["objective"].map(math.isfinite)]


def chosen(settings: pd.DataFrame, metric: str, rule: str, standard_error: Callable[[str], float]) -> pd.Series:
    """The chosen one of the complete settings, records of which there is at least one.

    `best`: the best objective. `simplest`: of the settings whose objective is within one standard error of the best
    one's (Breiman et al. 1984, Classification and Regression Trees, section 3.4.3), the one with the fewest parameters,
    of these the one with the fewest distilled stages, each of which needs a teacher, of these the best.
    `standard_error` gives that of a trial's objective.
    """
    order = ranked(settings, metric)
    best = order.iloc[0]
    if rule == "best":
        return best
    within = order[gain(metric, best["objective"] - order["objective"]) <= standard_error(best["trial"])]
    if not len(within):  # no standard error: nothing can be told apart from the best but itself
        return best
    distilled = [sum(alpha > 0 for alpha in json.loads(each)) for each in within["alpha"]]
    simple = within.assign(_distilled=distilled, _rank=range(len(within)))
    return within.loc[simple.sort_values(["parameters", "_distilled", "_rank"]).index[0]]


def different_settings(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials without those that ended in the same stage as an earlier one: these have the same settings."""
    last = [keys[-1] if len(keys) else trial for trial, keys in zip(trials["trial"], trials["stages"], strict=True)]
    return trials[~pd.Series(last, index=trials.index, dtype=object).duplicated()]
