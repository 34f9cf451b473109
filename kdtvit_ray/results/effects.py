"""What the searched settings did to the objective, over the settings that are compared (`judged.compared`).

A setting that was tried again counts once: its second trial repeats the first one's numbers, and taking it for another
observation would make chance look like a difference. Means over an adaptive search describe what was tried; they are
not a designed experiment, and a value that the sampler liked has more and better settings.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdtvit_ray.metrics import LOWER_IS_BETTER, largest
from kdtvit_ray.results.statistics import group_test, holm, mean_interval
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import value_name

CONTINUOUS = 12
"""A number with more distinct values than this is cut into quarters of equal count."""


@dataclass(frozen=True)
class Effect:
    """What one searched name did. `table` has one line for each value, in order of value, with the columns value, n,
    mean, low, high (t interval over settings), best. `p` is that of Kruskal-Wallis by permutation over the `tried`
    different settings, `p_holm` is corrected over all searched names; both are NaN where there are too few settings."""

    setting: str
    table: pd.DataFrame
    tried: int
    p: float
    p_holm: float

    @property
    def spread(self) -> float:
        """Largest minus smallest mean of the values with at least two settings; NaN where fewer than two values have
        them."""
        means = self.table.loc[self.table["n"] >= 2, "mean"]
        return float(means.max() - means.min()) if len(means) > 1 else float("nan")


def effects(settings: pd.DataFrame, metric: str) -> list[Effect]:
    """The effect of each name that took two values or more in these settings, records of trials: order, first and last
    (the magnification that comes first, last), student, teacher, temperature, alpha, loss, warm_start, and every
    searched training setting. Where temperature or alpha is searched by stage, each stage is a name of its own, such as
    `temperature.2`."""
    table = settings_table(settings)
    objective = settings["objective"].to_numpy()
    made = []
    for name in table.columns:
        values = binned(table[name])
        if values.nunique() < 2:
            continue
        made.append((name, _table(values, objective, metric), group_test(objective, list(values))))
    # first and last follow from the order, so they are not tested as settings of their own
    asked = [p if name not in ("first", "last") else np.nan for name, _, p in made]
    corrected = np.where(np.isnan(asked), [p for _, _, p in made], holm(asked))
    return [
        Effect(name, lines, len(objective), float(p), float(after))
        for (name, lines, p), after in zip(made, corrected, strict=True)
    ]


def settings_table(trials: pd.DataFrame) -> pd.DataFrame:
    """The settings of searched trials, one line for each in their order, with one column for each name, constant ones
    too."""
    order = trials["order"].str.split(">")
    made: dict[str, Any] = {
        "order": trials["order"].to_numpy(),
        "first": [int(each[0].split("+")[0]) for each in order],
        "last": [int(each[-1].split("+")[-1]) for each in order],
        "student": trials["student"].to_numpy(),
        "teacher": trials["teacher"].to_numpy(),
    }
    for name in ("temperature", "alpha"):
        lists = [json.loads(each) for each in trials[name]]
        if all(len(set(each)) <= 1 for each in lists):  # one value for the whole chain
            made[name] = [each[0] if each else None for each in lists]
        else:
            for stage in range(2, max(map(len, lists)) + 2):
                made[f"{name}.{stage}"] = [each[stage - 2] if len(each) > stage - 2 else None for each in lists]
    made["loss"] = trials["loss"].to_numpy()
    made["warm_start"] = trials["warm_start"].to_numpy()
    params = [json.loads(each) for each in trials["params"]]
    for name in sorted({name for each in params for name in each if name.startswith("training.")}):
        made[name] = [each.get(name) for each in params]
    return pd.DataFrame(made, index=trials.index)


def ratio_of_test_to_train(study: Study) -> float:
    """n_test / n_train in images, from study.toml."""
    splits = study.plain["data"]["splits"]
    return splits["test"]["images"] / splits["train"]["images"]


def binned(values: pd.Series) -> pd.Series:
    """The values, or quarters of equal count of a number with many."""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numeric and values.nunique() > CONTINUOUS:
        return pd.qcut(values, 4, duplicates="drop")
    return values


def _table(values: pd.Series, objective: np.ndarray, metric: str) -> pd.DataFrame:
    lines = []
    for value, part in pd.Series(objective).groupby(values.to_numpy(), observed=True, sort=True):
        interval = mean_interval(part.to_numpy()).within(0, largest(metric))
        shown = value_name(value) if isinstance(value, pd.Interval) else value
        best = float(part.min() if metric in LOWER_IS_BETTER else part.max())
        lines.append((shown, len(part), interval.value, interval.low, interval.high, best))
    return pd.DataFrame(lines, columns=["value", "n", "mean", "low", "high", "best"])
