"""How far the choice of a search can be trusted: which settings the data cannot tell from the best one, how optimistic
its objective is, and whether inner folds, halves of the patients and test patients agree on which settings are better.

For studies whose objective is over inner folds. Differences between settings are paired over development patients.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from kdtvit_ray.metrics import gain
from kdtvit_ray.results.bootstrap import difference
from kdtvit_ray.results.out_of_fold import Judged, judge, patients_of
from kdtvit_ray.results.statistics import Interval, holm
from kdtvit_ray.results.study import Study

LEVEL = 0.05
FEWEST_SETTINGS = 4
"""Below it no rank correlation is given."""


@dataclass(frozen=True)
class Rival:
    """The chosen setting minus another one, or a baseline, out of fold: `difference` with its 95 % interval, `p` of the
    paired bootstrap over patients, `p_holm` corrected over all that it was compared with."""

    trial: str
    difference: Interval
    p: float
    p_holm: float

    @property
    def tied(self) -> bool:
        """Whether the data cannot tell the two apart."""
        return not self.p_holm < LEVEL


def against(judged: Mapping[str, Judged], chosen: str, others: list[str]) -> list[Rival]:
    """The chosen setting minus each of the others that were judged, in the order given."""
    if chosen not in judged:
        return []
    ours, there = judged[chosen], [other for other in others if other in judged and other != chosen]
    found = [
        difference(ours.value - judged[other].value, ours.replicates - judged[other].replicates, judged[other].patients)
        for other in there
    ]
    corrected = holm([each.p for each in found])
    return [
        Rival(other, each.interval, each.p, float(after))
        for other, each, after in zip(there, found, corrected, strict=True)
    ]


def optimism(judged: Mapping[str, Judged], settings: list[str], metric: str) -> float:
    """How much the best of several objectives is expected to be too good, because it was picked on the patients that it
    was measured on. In units of the metric, above zero where the objective flatters; NaN for no setting.

    In every bootstrap draw of patients the winner is found: by how much does the draw flatter it? The mean of that
    (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 17) would be too small if the settings differed
    as much as their objectives do, for a part of that spread is the same chance: so the objectives are first drawn
    together until their variance is what is left without it (Efron & Morris 1975, JASA 70).
    """
    there = [judged[each] for each in settings if each in judged]
    if not there:
        return math.nan
    value = gain(metric, np.array([each.value for each in there]))
    errors = gain(metric, np.stack([each.replicates for each in there], axis=1)) - value
    errors = errors[np.isfinite(errors).all(axis=1)]
    if not len(errors):
        return math.nan
    if len(there) > 1 and value.var(ddof=1) > 0:
        chance = (
            float((errors - errors.mean(axis=1, keepdims=True)).var(axis=0, ddof=0).mean())
            * len(there)
            / (len(there) - 1)
        )
        spread = float(value.var(ddof=1))
        value = value.mean() + (value - value.mean()) * math.sqrt(max(spread - chance, 0.0) / spread)
    winner = (value + errors).argmax(axis=1)
    return float(np.mean(errors[np.arange(len(errors)), winner]))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation over settings that have both values; NaN for fewer than `FEWEST_SETTINGS`, and where all values
    of one side are equal."""
    known = np.isfinite(first) & np.isfinite(second)
    first, second = first[known], second[known]
    if len(first) < FEWEST_SETTINGS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def fold_agreement(study: Study, settings: list[str]) -> float:
    """Mean rank correlation, over pairs of inner folds, of the settings' metric in one inner fold with that in the
    other; NaN where none is defined."""
    values = []
    for part in study.parts:
        column = []
        for setting in settings:
            record = study.chains(setting).get(part)
            column.append(math.nan if record is None else float(record["objective"]))
        values.append(np.array(column))
    found = [spearman(values[i], values[j]) for i in range(len(values)) for j in range(i)]
    known = [each for each in found if math.isfinite(each)]
    return float(np.mean(known)) if known else math.nan


def half_agreement(study: Study, settings: list[str]) -> float:
    """Rank correlation of the settings' objectives on one half of the development patients with those on the other;
    where it is above zero, stepped up to all of them by Spearman and Brown's formula 2 r / (1 + r) (1910). The halves
    are every second patient of each class, by name. NaN where it is undefined."""
    halves: tuple[list[float], list[float]] = ([], [])
    for setting in settings:
        frames = study.out_of_fold(setting)
        if not frames:
            return math.nan
        together = pd.concat(frames.values())
        names = together.groupby("malignant")["patient"].unique()
        first = {patient for of_class in names for patient in sorted(of_class)[::2]}
        for half, inside in zip(halves, (True, False), strict=True):
            chosen = {part: frame[frame["patient"].isin(first) == inside] for part, frame in frames.items()}
            chosen = {part: frame for part, frame in chosen.items() if len(frame)}
            if not chosen:
                return math.nan
            drawn = patients_of(list(chosen.values()), replicates=1)
            half.append(judge(chosen, study.metric, study.magnifications, drawn).value)
    found = spearman(np.array(halves[0]), np.array(halves[1]))
    return 2 * found / (1 + found) if found > 0 else found


def test_values(study: Study, settings: list[str]) -> np.ndarray:
    """The metric on test of each setting (S,): the mean over its chains over inner folds, after their last stages, and
    over magnifications; NaN where rows are missing. For a look back when the search has ended."""
    rows = study.rows
    rows = rows[(rows["split"] == "test") & (rows["level"] == "image") & (rows["metric"] == study.metric)]
    last = rows.groupby("key", observed=True)["value"].mean()
    found = []
    for setting in settings:
        keys = [record["stages"][-1] for record in study.chains(setting).values()]
        values = [float(last.get(key, math.nan)) for key in keys]
        found.append(float(np.mean(values)) if values else math.nan)
    return np.array(found)


@dataclass(frozen=True)
class Search:
    """What the search did, one line for each setting in `table`: trial, number, state (complete, or pruned: dropped by
    racing), objective, error (its standard error; NaN for dropped ones), test, chains, incumbent (whether it was the
    best complete one so far). `chains` were run of the `possible` ones that all settings on all inner folds are.
    `optimism` is that of the best of all complete settings, `gap` how far the best is above the median in units of its
    standard error. Agreements are rank correlations; NaN where they are undefined."""

    table: pd.DataFrame
    chains: int
    possible: int
    optimism: float
    gap: float
    folds_agree: float
    halves_agree: float
    test_agrees: float


def search(study: Study, judged: Mapping[str, Judged]) -> Search | None:
    """How the search of a study went; None without inner folds, and while no setting is complete."""
    trials = study.trials[(study.trials["kind"] == "search") & study.trials["state"].isin(("complete", "pruned"))]
    if not study.parts or not (trials["state"] == "complete").any():
        return None
    table = pd.DataFrame(
        {
            "trial": trials["trial"].to_numpy(),
            "number": trials["number"].to_numpy(),
            "state": trials["state"].to_numpy(),
            "objective": trials["objective"].to_numpy(dtype=float),
            "error": [judged[each].standard_error if each in judged else math.nan for each in trials["trial"]],
            "test": test_values(study, list(trials["trial"])),
            "chains": [len(study.chains(each)) for each in trials["trial"]],
        }
    )
    complete = (table["state"] == "complete").to_numpy()
    gains = np.where(complete, gain(study.metric, table["objective"]), -math.inf)
    before = np.concatenate([[-math.inf], np.maximum.accumulate(gains)[:-1]])
    table["incumbent"] = gains > before
    whole = table[complete]
    settings, values = list(whole["trial"]), gain(study.metric, whole["objective"].to_numpy())
    error = float(whole["error"].iloc[int(values.argmax())])
    return Search(
        table=table,
        chains=int(table["chains"].sum()),
        possible=len(table) * len(study.parts),
        optimism=optimism(judged, settings, study.metric),
        gap=float(values.max() - np.median(values)) / error if error else math.nan,
        folds_agree=fold_agreement(study, settings),
        halves_agree=half_agreement(study, settings),
        test_agrees=spearman(whole["objective"].to_numpy(), whole["test"].to_numpy()),
    )
