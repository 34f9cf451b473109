"""Chains trained again over folds and seeds, judged in two ways.

By fold: the seeds of a fold are averaged first, since they share training and test images and differ by training noise
alone. Folds share most of their training images too, so their spread understates how a result would vary on new data;
Nadeau and Bengio's corrected resampled t-test, with J the number of folds, widens it accordingly.

By patient: where the folds test every patient at most once, the predictions of all folds are pooled, so that each
patient is judged by models that never saw it. One bootstrap over all these patients gives the interval of a value, for
the models as they were trained; differences allow for chance in training as well (`results.pooling`).
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.metrics import LEVELS, METRICS, gain, largest
from kdtvit_ray.results.bootstrap import Cell, resample
from kdtvit_ray.results.choice import ranked
from kdtvit_ray.results.effects import ratio_of_test_to_train
from kdtvit_ray.results.models import Model, predictions_on_test
from kdtvit_ray.results.pooling import differences, measure_folds
from kdtvit_ray.results.rows import baseline_of
from kdtvit_ray.results.statistics import MEAN, REPLICATES, Interval, Sides, corrected_t_test, holm
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import baseline_label, baseline_name, joined, listed

PER_MAGNIFICATION = "per_magnification"


def runs(study: Study) -> pd.DataFrame:
    """The values on test of every confirmation run, one line for each: chain, fold, seed, level, metric, column ("40X"
    ... "mean"), value.

    For the chain `per_magnification` the value at each magnification is that of the model that was trained at it. A run
    that lacks a magnification, because a trial failed, has no mean.
    """
    lines = [
        {
            "trial": each.trial,
            "chain": each.chain,
            "own": each.magnification,
            "fold": each.fold,
            "seed": each.seed,
            "last": each.stages,
        }
        for each in _replicates(study)
    ]
    columns = ["chain", "fold", "seed", "level", "metric", "column", "value"]
    if not lines:
        return pd.DataFrame(columns=columns)
    rows = study.rows
    rows = rows[rows["trial"].isin([line["trial"] for line in lines]) & (rows["split"] == "test")]
    rows = rows.assign(**{name: rows[name].astype(str) for name in ("trial", "level", "metric")})
    found = rows.merge(pd.DataFrame(lines), on="trial")
    found = found[found["stage"] == found["last"]]
    own = (found["own"] == "") | (found["own"] == found["magnification"].astype(str))
    found = found.assign(column=found["magnification"].astype(str) + "X")[own][columns]
    by = ["chain", "fold", "seed", "level", "metric"]
    means = found.groupby(by, as_index=False, sort=False).agg(value=("value", "mean"), n=("value", "count"))
    everywhere = found["column"].nunique()
    means = means[means["n"] == everywhere].drop(columns="n").assign(column=MEAN)
    return pd.concat([found, means[columns]], ignore_index=True)


def confirmed(study: Study, every: pd.DataFrame) -> pd.DataFrame:
    """What the `runs` of each chain say together, one line for each chain, level, metric and column.

    The columns are label (the chain in words), runs, folds (the chain's own: replicates may have failed or go on);
    mean over the folds of the mean over a fold's seeds; sd over the folds (over the seeds where there is one fold); low
    and high, the 95 % interval by the corrected variance over folds; difference, difference_low, difference_high and p
    of the first chain minus this one, fold by fold; and p_holm, p after Holm's correction over the chains. The last
    five are missing where no chain has two folds in common with the first one. Values, or differences, that happen to
    be the same in all folds have neither interval nor p.

    Searched chains come first, ordered by their validation objective in the study, so that test does not choose the
    chain with which the others are compared. Over the seeds of a single fold there is no interval and no p: they would
    speak of training noise alone, not of other patients. The table is empty where nothing was confirmed.
    """
    if not len(every):
        return pd.DataFrame()
    ratio = ratio_of_test_to_train(study)
    chains = _ordered(study, every)
    labels = {chain: label(study, chain) for chain in chains}
    lines = []
    parts = dict(list(every.groupby(["level", "metric", "column"], sort=False)))
    for level, metric in itertools.product(LEVELS, METRICS):
        for column in dict.fromkeys(every["column"]):
            part = parts.get((level, metric, column))
            if part is None:
                continue
            wide = part.pivot_table(index=["fold", "seed"], columns="chain", values="value")
            for chain in chains:
                if chain not in wide:
                    continue
                values = wide[chain].dropna()
                by_fold = _by_fold(values)
                interval = corrected_t_test(by_fold.to_numpy(), ratio).interval.within(0, largest(metric))
                line = {
                    "chain": chain,
                    "label": labels[chain],
                    "level": level,
                    "metric": metric,
                    "column": column,
                    "runs": len(values),
                    "folds": len(by_fold),
                    "mean": interval.value,
                    "sd": float((by_fold if len(by_fold) > 1 else values).std(ddof=1)),
                    "low": interval.low,
                    "high": interval.high,
                }
                if chain != chains[0] and chains[0] in wide:
                    apart = _by_fold((wide[chains[0]] - wide[chain]).dropna())  # over the folds that both have
                    if len(apart) > 1:
                        both = corrected_t_test(apart.to_numpy(), ratio)
                        line |= _difference(both.interval.within(-largest(metric), largest(metric)), both.p)
                lines.append(line)
    return _with_holm(pd.DataFrame(lines))


def uneven(study: Study, every: pd.DataFrame, table: pd.DataFrame) -> str:
    """From all `runs`: that some chains of `confirmed` lack folds that others have; "" where all have the same."""
    found = table[(table["level"] == "image") & (table["metric"] == study.metric) & (table["column"] == MEAN)]
    most = every["fold"].nunique()
    if (found["folds"] == most).all():
        return ""
    fewer = [f"{baseline_name(line.chain)} has {line.folds}" for line in found.itertuples() if line.folds < most]
    return (
        f"Of the {most} folds {joined(fewer)}, since replicates failed, have not ended or have no mean: one over "
        "other folds is over other patients, and differences are over the folds that both chains have."
    )


@dataclass(frozen=True)
class Pooled:
    """Chains judged on the test patients of all folds together. `table` has one line for each chain, level, metric and
    column ("40X" ... "mean"): label, value, low, high (95 % over patients, for these trained models), and the first
    chain minus this one on the same patients, over patients and trainings: difference, difference_low, difference_high,
    p, p_holm. `folds` and `seeds` say how many models stand
    behind each value; `patients` counts the test patients."""

    table: pd.DataFrame
    folds: int
    seeds: int
    patients: Sides


def pooled(study: Study, every: pd.DataFrame, replicates: int = REPLICATES) -> Pooled | None:
    """Out-of-fold results of confirmed chains, from their `runs`: every test patient of every fold is judged by models
    that were not trained on it.

    The value of a chain is the mean over its seeds; each seed is measured on the pooled predictions of all folds.
    Patients are drawn once for all seeds and chains, so that chains are compared on the same patients. The result is
    None with fewer than two folds, where folds test a patient twice (official lists may do so), and for a split that
    leaks. A chain is left out if it lacks a fold, a seed or predictions that another chain has.
    """
    by_run: dict[tuple[str, int, int], list[_Replicate]] = {}
    for each in _replicates(study):
        by_run.setdefault((each.chain, each.fold, each.seed), []).append(each)
    folds = sorted({fold for _, fold, _ in by_run})
    seeds = sorted({seed for _, _, seed in by_run})
    if len(folds) < 2 or study.leaks:
        return None

    def predictions(chain: str, seed: int) -> list[pd.DataFrame] | None:
        """Of all folds; None as soon as one fold lacks some."""
        found = []
        for fold in folds:
            frame = _predictions(study, by_run.get((chain, fold, seed), []))
            if frame is None:
                return None
            found.append(frame)
        return found

    frames: dict[str, list[list[pd.DataFrame]]] = {}
    for chain in _ordered(study, every):
        for seed in seeds:
            of_folds = predictions(chain, seed)
            if of_folds is None:
                frames.pop(chain, None)
                break
            patients = [set(each["patient"]) for each in of_folds]
            if sum(map(len, patients)) > len(set().union(*patients)):
                return None
            frames.setdefault(chain, []).append(of_folds)
    if not frames:
        return None
    chains = list(frames)
    everyone = pd.concat(frames[chains[0]][0])
    drawn = resample(everyone["patient"].to_numpy(), everyone["malignant"].to_numpy(), replicates)
    measured = {chain: measure_folds(of_seeds, drawn, study.magnifications) for chain, of_seeds in frames.items()}
    lines, ratio = [], ratio_of_test_to_train(study)
    for level, metric in itertools.product(LEVELS, METRICS):
        for place in (*study.magnifications, MEAN):
            cell: Cell = (level, metric, place)
            there = [chain for chain in chains if cell in measured[chain].pooled.values]
            apart = differences([measured[chain] for chain in there], cell, ratio) if chains[0] in there else []
            found = dict(zip(there[1:], apart, strict=False))
            for chain in there:
                interval = measured[chain].pooled.interval(cell)
                line = {
                    "chain": chain,
                    "label": label(study, chain),
                    "level": level,
                    "metric": metric,
                    "column": place if place == MEAN else f"{place}X",
                    "value": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                }
                if chain in found:
                    line |= _difference(found[chain].interval, found[chain].p)
                lines.append(line)
    return Pooled(_with_holm(pd.DataFrame(lines)), len(folds), len(seeds), drawn.sides)


@dataclass(frozen=True)
class _Replicate:
    """One trial of a confirmation. `magnification` is "" for a chain; for a model of `per_magnification` it is the one
    that the model was trained at."""

    trial: str
    chain: str
    magnification: str
    fold: int
    seed: int
    stages: int
    last: str


def _replicates(study: Study) -> list[_Replicate]:
    wanted = study.trials[(study.trials["kind"] == "confirm") & (study.trials["state"] == "complete")]
    made = []
    for record in wanted.itertuples(index=False):
        told = json.loads(record.params)
        chain, _, own = told["of"].partition("-") if told["of"].startswith(PER_MAGNIFICATION) else (told["of"], "", "")
        keys = list(record.stages)
        made.append(_Replicate(record.trial, chain, own, told["fold"], told["seed"], len(keys), keys[-1]))
    return made


def _predictions(study: Study, of: Sequence[_Replicate]) -> pd.DataFrame | None:
    """Test predictions of one chain at one fold and seed; None where some magnification has none."""
    finals: Mapping[int, str] = {
        magnification: each.last
        for each in of
        for magnification in ([int(each.magnification)] if each.magnification else study.magnifications)
    }
    if set(finals) != set(study.magnifications):
        return None
    return predictions_on_test(study, Model(of[0].chain, of[0].chain, "confirm", finals, 0))


def _by_fold(values: pd.Series) -> pd.Series:
    """Means over the seeds of each fold, from values by (fold, seed)."""
    return values.groupby(level="fold").mean()


def _difference(interval: Interval, p: float) -> dict[str, float]:
    return {"difference": interval.value, "difference_low": interval.low, "difference_high": interval.high, "p": p}


def _with_holm(table: pd.DataFrame) -> pd.DataFrame:
    if "p" in table:
        together = table.groupby(["level", "metric", "column"], sort=False)["p"]
        table["p_holm"] = together.transform(lambda p: holm(p.to_numpy()))
    return table


def _ordered(study: Study, every: pd.DataFrame) -> list[str]:
    """Searched chains by their validation objective in the study, then baselines by their mean on test."""
    mean = every[(every["level"] == "image") & (every["metric"] == study.metric) & (every["column"] == MEAN)]
    order = mean.groupby("chain")["value"].mean()
    searched = [chain for chain in ranked(study.searched, study.metric)["trial"] if chain in order.index]
    return searched + sorted(
        (chain for chain in order.index if chain not in searched), key=lambda c: -gain(study.metric, order[c])
    )


def label(study: Study, chain: str) -> str:
    """A confirmed chain in words: a baseline's label, or the settings of a searched trial."""
    record = study.trial(chain)
    if baseline_of(chain) or record is None:
        return baseline_label(chain)
    distilled = [
        f"{name} {listed(json.loads(record[column]), '/')}"
        for name, column in (("T", "temperature"), ("alpha", "alpha"))
        if json.loads(record[column])
    ]
    return f"{chain} ({', '.join([record['order'], *distilled, record['student']])})"


def replicates_left(study: Study) -> tuple[int, int]:
    """(ended, planned) replicates of a confirmation that still runs or was stopped; (0, 0) without one."""
    counts = study.status.replicates
    return (counts.ended, counts.total) if counts.ended < counts.total else (0, 0)
