"""Chains trained again over folds and seeds: mean and standard deviation on test, and tests that respect the overlap.

Runs over folds and seeds share most of their training images, so their spread understates how a result would vary on
new data; Nadeau and Bengio's corrected resampled t-test widens it accordingly.
"""

import itertools
import json
from typing import Any

import pandas as pd

from kdtvit_ray.metrics import LEVELS, METRICS
from kdtvit_ray.results.effects import test_over_train
from kdtvit_ray.results.statistics import MEAN, Interval, corrected_t_test, holm
from kdtvit_ray.results.study import BASELINE_LABELS, Study, listed

PER_MAGNIFICATION = "per_magnification"


def runs(study: Study) -> pd.DataFrame:
    """One line a value on test: chain, fold, seed, level, metric, column ("40" ... "mean"), value.

    The chain `per_magnification` is, at each magnification, the model that was trained at it. A run that lacks a
    magnification (a failed trial) has no mean.
    """
    wanted = study.trials[(study.trials["kind"] == "confirm") & (study.trials["state"] == "complete")]
    lines: list[dict[str, Any]] = []
    for record in wanted.itertuples(index=False):
        told = json.loads(record.params)
        chain, _, own = told["of"].partition("-") if told["of"].startswith(PER_MAGNIFICATION) else (told["of"], "", "")
        lines.append(
            {"trial": record.trial, "chain": chain, "own": own, "fold": told["fold"], "seed": told["seed"],
             "last": len(record.stages)}
        )  # fmt: skip
    columns = ["chain", "fold", "seed", "level", "metric", "column", "value"]
    if not lines:
        return pd.DataFrame(columns=columns)
    rows = study.rows
    rows = rows[rows["trial"].isin([line["trial"] for line in lines]) & (rows["split"] == "test")]
    rows = rows.assign(**{name: rows[name].astype(str) for name in ("trial", "level", "metric")})
    found = rows.merge(pd.DataFrame(lines), on="trial")
    found = found[found["stage"] == found["last"]]
    found = found.assign(column=found["magnification"].astype(str))
    found = found[(found["own"] == "") | (found["own"] == found["column"])][columns]
    by = ["chain", "fold", "seed", "level", "metric"]
    means = found.groupby(by, as_index=False, sort=False).agg(value=("value", "mean"), n=("value", "count"))
    everywhere = found["column"].nunique()
    means = means[means["n"] == everywhere].drop(columns="n").assign(column=MEAN)
    return pd.concat([found, means[columns]], ignore_index=True)


def confirmed(study: Study) -> pd.DataFrame:
    """One line a chain, level, metric and column: label (the chain in words), runs, folds, mean, sd, low, high (95 %
    interval by the corrected variance), and the first chain minus this one, run by run: difference, its low and high,
    p, and p by Holm's correction over the chains. Searched chains come first, in the order of their validation
    objective in the study: which one the others are compared with is not chosen on test. Over the seeds of a single
    fold there is no interval and no p: they would speak of training noise alone, not of other patients. Empty where
    none was confirmed."""
    every = runs(study)
    if not len(every):
        return pd.DataFrame()
    ratio, folds = test_over_train(study), int(every["fold"].nunique())
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
                interval = corrected_t_test(values.to_numpy(), ratio).interval.within(0, 1)
                if folds < 2:
                    interval = Interval(interval.value)
                line = {
                    "chain": chain, "label": labels[chain], "level": level, "metric": metric, "column": column,
                    "runs": len(values), "folds": folds, "mean": interval.value, "sd": float(values.std(ddof=1)),
                    "low": interval.low, "high": interval.high,
                }  # fmt: skip
                if chain != chains[0] and chains[0] in wide and folds > 1:
                    both = corrected_t_test((wide[chains[0]] - wide[chain]).dropna().to_numpy(), ratio)
                    between = both.interval.within(-1, 1)
                    line |= {"difference": between.value, "difference_low": between.low,
                             "difference_high": between.high, "p": both.p}  # fmt: skip
                lines.append(line)
    table = pd.DataFrame(lines)
    if "p" in table:
        together = table.groupby(["level", "metric", "column"], sort=False)["p"]
        table["p_holm"] = together.transform(lambda p: holm(p.to_numpy()))
    return table


def _ordered(study: Study, every: pd.DataFrame) -> list[str]:
    """Searched chains by their validation objective in the study, then baselines by their mean on test."""
    mean = every[(every["level"] == "image") & (every["metric"] == study.metric) & (every["column"] == MEAN)]
    order = mean.groupby("chain")["value"].mean()
    objective = study.searched.set_index("trial")["objective"]
    searched = [chain for chain in objective.sort_values(ascending=False, kind="stable").index if chain in order.index]
    return searched + sorted((chain for chain in order.index if chain not in searched), key=lambda c: -order[c])


def label(study: Study, chain: str) -> str:
    """A confirmed chain in words: a baseline's label, or what a searched trial's settings are."""
    record = study.trial(chain)
    if chain in BASELINE_LABELS or record is None:
        return BASELINE_LABELS.get(chain, chain)
    distilled = [
        f"{name} {listed(json.loads(record[column]), '/')}"
        for name, column in (("T", "temperature"), ("alpha", "alpha"))
        if json.loads(record[column])
    ]
    return f"{chain} ({', '.join([record['order'], *distilled, record['student']])})"


def replicates_left(study: Study) -> tuple[int, int]:
    """(ended, planned) replicates of a confirmation that has not ended; (0, 0) where there is none to wait for."""
    counts = study.status.get("replicates", {})
    total = int(counts.get("total", 0))
    ended = sum(int(counts.get(each, 0)) for each in ("complete", "failed", "pruned"))
    return (ended, total) if ended < total else (0, 0)
