"""How far the choice of a search can be trusted: which settings the data cannot tell from the best one, how optimistic
its objective is, and whether inner folds, halves of the patients and test patients agree on which settings are better.

For studies whose objective is over inner folds. Differences between settings are paired over development patients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from kdtvit_ray.metrics import gain
from kdtvit_ray.results.bootstrap import NO_SPREAD, Difference, difference
from kdtvit_ray.results.choice import ranked
from kdtvit_ray.results.out_of_fold import Judged, Part, judge, patients_of
from kdtvit_ray.results.statistics import SIGNIFICANCE, Interval, holm
from kdtvit_ray.results.study import Study

FEWEST_SETTINGS = 4
"""Below it no rank correlation is given."""


@dataclass(frozen=True)
class Rival:
    """The chosen setting minus another one, or a baseline, out of fold: `difference` with its 95 % interval, `p` of the
    paired bootstrap over patients, `p_holm` corrected over all that it was compared with. `taken_off`, in units of the
    metric, is what `unflattered` took off the difference."""

    trial: str
    difference: Interval
    p: float
    p_holm: float
    taken_off: float = 0.0

    @property
    def tested(self) -> bool:
        """Whether there are patients enough to tell whether the two differ."""
        return math.isfinite(self.p_holm)

    @property
    def tied(self) -> bool:
        """Whether the data cannot tell the two apart."""
        return not self.p_holm < SIGNIFICANCE


def against(
    judged: Mapping[str, Judged], chosen: str, others: Sequence[str], flattery: Mapping[str, float] | None = None
) -> list[Rival]:
    """The chosen setting minus each of the others that were judged, in the order given, `unflattered` by what
    `flattery` has for it, in units of the metric."""
    if chosen not in judged:
        return []
    ours, there = judged[chosen], [other for other in others if other in judged and other != chosen]
    much = {other: (flattery or {}).get(other, 0.0) for other in there}
    found = [
        unflattered(ours.value - its.value, ours.replicates - its.replicates, min(ours.patients, its.patients), off)
        for its, off in ((judged[other], much[other]) for other in there)
    ]
    return [replace(each, taken_off=much[each.trial]) for each in corrected(there, found)]


def unflattered(value: float, replicates: np.ndarray, patients: int, much: float) -> Difference:
    """A difference less `much`, by which the choice of either side is expected to flatter it.

    The interval reaches over the difference with and without that: what is taken off is an estimate, and too large
    where the best setting stands out, so a difference to one side is told only where it is there less the flattery, and
    to the other side only where it is there as measured. p is that of the one that counts; 1 where zero lies between.
    """
    measured = difference(value, replicates, patients)
    if not much or not measured.interval.bounded:
        return replace(measured, interval=replace(measured.interval, value=value - much))
    less = difference(value - much, replicates - much, patients)
    lower, upper = (less, measured) if much > 0 else (measured, less)
    p = lower.p if lower.interval.value > 0 else upper.p if upper.interval.value < 0 else 1.0
    return Difference(replace(less.interval, low=lower.interval.low, high=upper.interval.high), p)


def corrected(names: Sequence[str], differences: Sequence[Difference]) -> list[Rival]:
    """Rivals by name from their differences, with Holm's correction over all of them."""
    after = holm([each.p for each in differences])
    return [
        Rival(name, each.interval, each.p, float(p_holm))
        for name, each, p_holm in zip(names, differences, after, strict=True)
    ]


def optimism(judged: Mapping[str, Judged], settings: Sequence[str], metric: str) -> float:
    """How much the best of several objectives is expected to be too good, because it was picked on the patients that it
    was measured on: in every bootstrap draw of patients a winner is found, and the mean over draws of the luck that the
    winner had (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 17; Tibshirani & Tibshirani 2009,
    Annals of Applied Statistics 3).

    A setting in a draw is its true objective and its luck there, which is the draw's objective minus the mean over
    draws. Measured objectives are no stand-in for the true ones: they spread by luck too, so that a draw would count
    luck twice and find too little optimism, by a factor of root two where settings are equal. So they are shrunk to
    their mean until their variance is what is left without that of luck (Louis 1984, JASA 79). Luck is that of
    patients; that of training is not in it. Where true objectives differ much and the best is close to one, the best
    has less luck than others, and the estimate is too large (docs/measurements.md).

    In units of the metric, above zero where the objective flatters; zero for one setting, NaN for none.
    """
    there = [judged[each] for each in settings if each in judged]
    drawn = gain(metric, np.stack([each.replicates for each in there], axis=1)) if there else np.empty((0, 0))
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    if not len(drawn):
        return math.nan
    if len(there) == 1:
        return 0.0
    whole, luck = gain(metric, np.array([each.value for each in there])), drawn - drawn.mean(axis=0)
    # what all settings share, such as easy patients, picks no winner: variances are those between settings
    spread, of_luck = float(whole.var(ddof=1)), float(luck.var(axis=1, ddof=1).mean())
    kept = math.sqrt(max(0.0, 1.0 - of_luck / spread)) if spread else 0.0
    winner = (kept * (whole - whole.mean()) + luck).argmax(axis=1)
    return float(np.mean(luck[np.arange(len(luck)), winner]))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation over settings that have both values; NaN for fewer than `FEWEST_SETTINGS`, and where all values
    of one side are equal."""
    known = np.isfinite(first) & np.isfinite(second)
    first, second = first[known], second[known]
    if len(first) < FEWEST_SETTINGS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def fold_agreement(study: Study, settings: Sequence[str]) -> float:
    """Mean rank correlation, over pairs of inner folds, of the settings' metric in one inner fold with that in the
    other. Pairs are of one repeat, since folds of two repeats have patients in common. NaN where none is defined."""
    values: dict[Part, np.ndarray] = {}
    for part in study.parts:
        records = [study.chains(setting).get(part) for setting in settings]
        values[part] = np.array([math.nan if each is None else float(each["objective"]) for each in records])
    pairs = [(one, other) for one, other in combinations(values, 2) if one.repeat == other.repeat]
    known = [found for one, other in pairs if math.isfinite(found := spearman(values[one], values[other]))]
    return float(np.mean(known)) if known else math.nan


def half_agreement(study: Study, settings: Sequence[str]) -> float:
    """Rank correlation of the settings' objectives on one half of the development patients with those on the other. The
    halves are every second patient of each class, by name. Settings without predictions are left out; NaN where it is
    undefined. `stepped_up` tells what it is for all patients."""
    halves: tuple[list[float], list[float]] = ([], [])
    for setting in settings:
        frames = study.out_of_fold(setting)
        if not frames:
            continue
        names = pd.concat(frames.values()).groupby("malignant")["patient"].unique()
        first = {patient for of_class in names for patient in sorted(of_class)[::2]}
        for half, inside in zip(halves, (True, False), strict=True):
            chosen = {part: frame[frame["patient"].isin(first) == inside] for part, frame in frames.items()}
            chosen = {part: frame for part, frame in chosen.items() if len(frame)}
            if chosen:
                drawn = patients_of(list(chosen.values()), replicates=1)
                half.append(judge(chosen, study.metric, study.magnifications, drawn).value)
            else:
                half.append(math.nan)
    return spearman(np.array(halves[0]), np.array(halves[1]))


def stepped_up(halves: float) -> float:
    """The agreement of twice as many patients from that of halves, by Spearman and Brown's formula 2 r / (1 + r)
    (1910); NaN below zero, where the formula means nothing."""
    return 2 * halves / (1 + halves) if halves >= 0 else math.nan


def test_values(study: Study, settings: Sequence[str]) -> np.ndarray:
    """The metric on test of each setting (S,): the mean over its chains over inner folds, after their last stages, and
    over magnifications; NaN where a row is missing or undefined, since means over fewer do not compare. For a look back
    when the search has ended."""
    rows = study.rows
    rows = rows[(rows["split"] == "test") & (rows["level"] == "image") & (rows["metric"] == study.metric)]
    rows = rows.drop_duplicates(["key", "magnification"])  # a stage that trials share has rows in each of them
    by_magnification = rows.pivot(index="key", columns="magnification", values="value")
    last = by_magnification.reindex(columns=list(study.magnifications)).mean(axis=1, skipna=False)
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
    `optimism` is that of the best of all complete settings, `gap` how far the best is better than the median in units
    of the standard error of that difference. Agreements are rank correlations, that of halves not stepped up.
    `overtuning` is how much worse on test the last incumbent is than the best earlier one (Schneider et al. 2025,
    Overtuning in hyperparameter optimization), zero where none was better. NaN where they are undefined."""

    table: pd.DataFrame
    chains: int
    possible: int
    optimism: float
    gap: float
    folds_agree: float
    halves_agree: float
    test_agrees: float
    overtuning: float


def ahead(judged: Mapping[str, Judged], settings: Sequence[str], metric: str) -> float:
    """How far the best of settings, which are given from the best to the worst, is better than their median, in units
    of the standard deviation of that difference over drawn patients: what is hard about a patient is hard for both.
    Of an even number the median is the mean of the two in the middle. NaN for fewer than two settings, where one of
    them was not judged, and where no draw gives another difference."""
    middle = [settings[(len(settings) - 1) // 2], settings[len(settings) // 2]] if len(settings) > 1 else []
    if not middle or any(each not in judged for each in (settings[0], *middle)):
        return math.nan
    best, (one, other) = judged[settings[0]], (judged[each] for each in middle)
    value = gain(metric, best.value - (one.value + other.value) / 2)
    drawn = best.replicates - (one.replicates + other.replicates) / 2
    drawn = drawn[np.isfinite(drawn)]
    spread = float(drawn.std(ddof=1)) if len(drawn) > 1 else 0.0
    return float(value) / spread if spread > NO_SPREAD else math.nan


def overtuned(test: np.ndarray, metric: str) -> float:
    """How much worse the last of the incumbents' test values (I,) is than the best one; NaN where one is undefined."""
    values = gain(metric, test)
    return float(values.max() - values[-1]) if len(values) else math.nan


def search(study: Study, judged: Mapping[str, Judged]) -> Search | None:
    """How the search of a study went; None without inner folds, and while no setting is complete."""
    settings = list(study.settings["trial"])
    if not study.parts or not settings:
        return None
    trials = study.judged_settings
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
    return Search(
        table=table,
        chains=int(table["chains"].sum()),
        possible=len(table) * len(study.parts),
        optimism=optimism(judged, settings, study.metric),
        gap=ahead(judged, ranked(whole, study.metric)["trial"].tolist(), study.metric),
        folds_agree=fold_agreement(study, settings),
        halves_agree=half_agreement(study, settings),
        test_agrees=spearman(whole["objective"].to_numpy(), whole["test"].to_numpy()),
        overtuning=overtuned(table.loc[table["incumbent"], "test"].to_numpy(), study.metric),
    )
