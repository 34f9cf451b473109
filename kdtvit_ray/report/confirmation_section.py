"""Chains that were trained again over folds and seeds: their means over the folds, and all test patients together."""

from collections.abc import Callable, Sequence

import pandas as pd

from kdtvit_ray.metrics import METRICS
from kdtvit_ray.report.document import Block, Picker, Text
from kdtvit_ray.report.tables import P_HOLM, Column, Estimate, P, Table, plain
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.nested import Nested
from kdtvit_ray.results.rivals import ALONE
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import LEVEL_NAMES, baseline_label, metric_name

MENUS = ("Level", "Metric")
PAIRED = (
    "Differences allow for other patients (paired bootstrap) and for chance in training (t over what is left of the "
    "folds' own values without the means of folds and chains, with Nadeau and Bengio's correction): the interval "
    "reaches over both, p is the larger one."
)
TOGETHER = (
    "Scores of different folds' models are ranked together, so a pooled AUC may lie below the mean of the folds' own."
)


def confirmations(findings: Findings) -> list[Block]:
    """Nothing without a confirmation; else tables for each level and metric, the study's own metric first."""
    study, found = findings.study, findings.confirmed
    if not len(found):
        return _nested(findings)
    told = findings.uneven
    blocks: list[Block] = [
        Text(
            "Chains trained again over folds and seeds. The seeds of a fold are averaged first; mean \u00b1 sd are "
            "over the folds. The interval of the mean, the difference of the first chain (the best on "
            f"{study.chosen_on}) from each other one, and p are those of Nadeau and Bengio's corrected resampled "
            "t-test, fold by fold; p also by Holm's correction over the chains. There is none of these over the seeds "
            "of one fold, which tell nothing of other patients (sd is then over the seeds), and none where all folds "
            "happen to give the same."
            f"{f' {told}' if told else ''}"
        ),
        Picker("confirmed", MENUS, _for_each(study, found, _means)),
    ]
    differences = _for_each(study, found, _differences)
    if differences:
        blocks.append(Picker("confirmed-differences", MENUS, differences))
    return blocks + _pooled(findings) + _nested(findings)


def _for_each(
    study: Study, found: pd.DataFrame, table: Callable[[Study, pd.DataFrame, str, str], Table]
) -> list[tuple[Sequence[str], Table]]:
    """A table for each level and metric that has lines, with what the menus call it."""
    made: list[tuple[Sequence[str], Table]] = []
    for level, level_name in LEVEL_NAMES.items():
        for metric in sorted(METRICS, key=lambda each: (each != study.metric, METRICS.index(each))):
            part = found[(found["level"] == level) & (found["metric"] == metric)]
            filled = table(study, part, level, metric) if len(part) else None
            if filled is not None and filled.rows:
                made.append(((level_name, metric_name(metric)), filled))
    return made


def _means(study: Study, part: pd.DataFrame, level: str, metric: str) -> Table:
    columns = [name for name in study.columns if name in set(part["column"])]
    table = Table(
        f"confirmations-{level}-{metric}".replace("_", "-"),
        f"Trained again: test {metric_name(metric)}, {LEVEL_NAMES[level]} level, mean \u00b1 sd over folds.",
        [Column("chain"), Column("runs", 0), Column("folds", 0), *(Column(name) for name in columns)],
    )
    for _, lines in part.groupby("chain", sort=False):
        by_column = {line.column: line for line in lines.itertuples()}
        found = [by_column.get(name) for name in columns]
        cells = [Estimate(line.mean, line.low, line.high, line.sd) if line else None for line in found]
        one = next(iter(by_column.values()))
        table.add(str(one.label), int(one.runs), int(one.folds), *cells)
    return table


def _differences(study: Study, part: pd.DataFrame, level: str, metric: str) -> Table:
    means = part[part["column"] == "mean"]
    first = means["chain"].iloc[0]
    table = Table(
        f"confirmed-differences-{level}-{metric}".replace("_", "-"),
        f"Trained again: {first} minus each other chain, test {metric_name(metric)}, {LEVEL_NAMES[level]} level, mean "
        "over magnifications, fold by fold.",
        [Column("minus"), Column("runs", 0), Column("difference"), P, P_HOLM],
    )
    for line in means.itertuples():
        if plain(getattr(line, "p", None)) is None:
            continue  # the first chain itself, and all of them over one fold
        difference = Estimate(line.difference, line.difference_low, line.difference_high)
        table.add(str(line.label), int(line.runs), difference, float(line.p), float(line.p_holm))
    return table


def _pooled(findings: Findings) -> list[Block]:
    """Confirmed chains over the test patients of all folds."""
    study, found = findings.study, findings.pooled
    if found is None:
        return []
    seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds"
    told = (
        f"The same chains over all {found.patients.patients} test patients of the {found.folds} folds "
        f"({found.patients.told(study.dataset.words)}): each patient is judged by the models of the fold that tests "
        f"it, which were not trained on it; the value is the mean over {seeds}. Brackets of values hold 95 % intervals "
        f"that resample patients{ALONE}. {PAIRED} {TOGETHER}"
    )
    return [Text(told), Picker("pooled", MENUS, _for_each(study, found.table, _pooled_table))]


def _pooled_table(study: Study, part: pd.DataFrame, level: str, metric: str) -> Table:
    columns = [name for name in study.columns if name in set(part["column"])]
    table = Table(
        f"pooled-{level}-{metric}".replace("_", "-"),
        f"Every test patient judged once: {metric_name(metric)}, {LEVEL_NAMES[level]} level.",
        [Column("chain"), *(Column(name) for name in columns), Column("first minus this"), P_HOLM],
    )
    for _, lines in part.groupby("chain", sort=False):
        by_column = {line.column: line for line in lines.itertuples()}
        mean = by_column["mean"]
        cells = [Estimate(line.value, line.low, line.high) for name in columns if (line := by_column.get(name))]
        difference, p = None, None
        if plain(getattr(mean, "p", None)) is not None:
            difference, p = Estimate(mean.difference, mean.difference_low, mean.difference_high), float(mean.p_holm)
        table.add(str(mean.label), *cells, difference, p)
    return table


def _nested(findings: Findings) -> list[Block]:
    """Nothing without outer folds; else what each search chose and what all choices reach together."""
    found, metric = findings.nested, metric_name(findings.study.metric)
    if found is None:
        return []
    missing = f" {found.missing} more have no choice yet." if found.missing else ""
    folds = Table(
        "outer-folds",
        f"The whole search in each outer fold: what it chose, its {findings.objective}, and {metric} on the fold's own "
        f"test patients, whom the search did not see.{missing}",
        [Column("fold", 0), Column("chosen"), Column("order"), Column("student"), Column("objective"), Column("test")],
    )
    for line in found.folds.itertuples():
        folds.add(int(line.fold), line.trial, line.order, line.student, float(line.objective), float(line.test))
    return [folds, together(findings, found)]


def together(findings: Findings, found: Nested) -> Table:
    """What the choices of all outer folds reach on all their test patients, and how far the baselines are from it."""
    metric = metric_name(findings.study.metric)
    ranked = f" {TOGETHER}" if findings.study.metric == "auc" else ""
    patients = found.patients.told(findings.study.dataset.words)
    table = Table(
        "outer-folds-together",
        f"All test patients of the outer folds together ({patients}): {metric} of the choices' predictions, pooled "
        f"over the folds, as mean over magnifications, with a 95 % interval that resamples patients{ALONE}; and the "
        f"choices minus each baseline, with Holm's correction. {PAIRED}{ranked}",
        [Column("chain"), Column(metric), Column("search minus it"), P, P_HOLM],
    )
    table.add("chosen by each search", Estimate.of(found.value), None, None, None)
    for each in found.baselines:
        table.add(baseline_label(each.trial), None, Estimate.of(each.difference), each.p, each.p_holm)
    return table
