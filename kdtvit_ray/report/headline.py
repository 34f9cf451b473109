"""What every section asks of a study, computed once; the answer in words and the headline tables."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from kdtvit_ray.metrics import METRICS
from kdtvit_ray.report.document import Block, Items, Picker, Section, Text
from kdtvit_ray.report.tables import Column, Estimate, Table
from kdtvit_ray.results import summary
from kdtvit_ray.results.words import metric_name

COLUMNS = ("40X", "100X", "200X", "400X", "mean")
LEVELS = {"image": "image", "patient_rate": "patient rate", "patient_vote": "patient vote"}
NOTHING = "No searched trial is complete"


@dataclass
class Facts:
    """What several sections need of one study, computed once. `replicates` is the number of bootstrap samples."""

    study: Any
    replicates: int = 10_000

    @cached_property
    def best(self) -> Any:
        return summary.best(self.study)

    @cached_property
    def headline(self) -> Any:
        return summary.headline(self.study, replicates=self.replicates)

    @cached_property
    def effects(self) -> dict[str, Any]:
        return {effect.setting: effect for effect in summary.effects(self.study)}

    @cached_property
    def searched(self) -> Any:
        """Complete searched trials with an objective, in trial order."""
        return self.study.searched

    @property
    def objective(self) -> str:
        return f"mean validation {metric_name(self.study.metric)}"


def answer(facts: Facts) -> Section:
    section = Section("answer", "The answer")
    sentences = summary.answer(facts.study, facts.replicates)
    section.say(sentences[0])
    if len(sentences) > 1:
        section.say(sentences[1], "lead")
        section.add(Items(sentences[2:]))
    return section


def headline(facts: Facts) -> Section:
    section = Section("headline", "Headline")
    section.say(
        "All numbers are on test, at threshold 0.5, with malignant as the positive class; chains were chosen on "
        "validation. Brackets hold 95 % intervals that resample patients, not images. The best measured number of a "
        "column is bold; rows in italics are other people's numbers as they reported them."
    )
    tables = headline_tables(facts)
    if facts.best is None:
        section.missing(f"{NOTHING}, so there is nothing of this study's own to compare.")
    if tables:
        section.add(Picker("headline", ("Level", "Metric"), tables))
        section.say(
            "Patient rate is the mean over patients of the share of their images that are right; patient vote "
            "thresholds each patient's mean probability. Both are called patient-level accuracy in the literature.",
            "note",
        )
        section.add(Items(facts.headline.notes))
    section.add(_comparisons(facts), *_confirmations(facts), _references(), _sources())
    return section


def headline_tables(facts: Facts) -> list[tuple[tuple[str, str], Table]]:
    """One table for each level and metric that has values, the study's own metric at image level first."""
    long = facts.headline.long
    metrics = sorted(METRICS, key=lambda each: (each != facts.study.metric, METRICS.index(each)))
    made = []
    for level, level_name in LEVELS.items():
        for metric in metrics:
            part = long[(long["level"] == level) & (long["metric"] == metric)]
            if not len(part) or not np.isfinite(part["value"].astype(float)).any():
                continue
            best = "min" if metric == "brier" else "max"
            caption = f"Test {metric_name(metric)}, {level_name} level, by magnification and their mean."
            columns = [Column("chain"), *(Column(name, 3, best) for name in COLUMNS)]
            table = Table(f"headline-{level}-{metric}".replace("_", "-"), caption, columns)
            for label in dict.fromkeys(part["label"]):
                lines = part[part["label"] == label]
                found = {
                    str(line.magnification): Estimate(float(line.value), float(line.low), float(line.high))
                    for line in lines.itertuples()
                }
                kind = str(lines["kind"].iloc[0])
                name = row_name(str(label), kind, facts.study.leaks)
                table.add(name, *(found.get(column) for column in COLUMNS), kind=kind)
            made.append(((level_name, metric_name(metric)), table))
    return made


def row_name(label: str, kind: str, leaks: bool) -> str:
    """A chain's name in a table, with what a reader must know to compare it: others' protocol, our leak."""
    if kind != "reported":
        return f"{label} (image split, leaks)" if leaks else label
    protocol = next((each.protocol for each in summary.REFERENCES if each.label == label), "protocol unknown")
    if not protocol.startswith("reported"):
        protocol = protocol.split(",")[0]  # level and metric are the table's own
    return f"{label.removesuffix(' (reported)')} ({protocol})"


def _comparisons(facts: Facts) -> Table | None:
    found = summary.comparisons(facts.study, replicates=facts.replicates) if facts.best is not None else []
    if not found:
        return None
    table = Table(
        "comparisons",
        "A chain minus another on test, mean over magnifications, paired over patients; p of the paired bootstrap, and "
        "Holm's correction over these lines.",
        [Column("chain"), Column("minus"), Column("metric"), Column("difference"), Column("p", 4, small=True),
         Column("p, Holm", 4, small=True)],
    )  # fmt: skip
    for each in found:
        difference = Estimate(each.difference, each.low, each.high)
        chain = f"{each.trial}, alike but for distillation" if each.alike else "Best chain"
        table.add(chain, each.against.label, metric_name(each.metric), difference, each.p, each.p_holm)
    return table


def _references() -> Table:
    table = Table(
        "references",
        "Others' results on BreakHis as they reported them: compare only where protocol and level are the same.",
        [Column("work"), Column("protocol"), Column("level and metric"), *(Column(each) for each in COLUMNS)],
    )
    for each in summary.REFERENCES:
        what = f"{LEVELS[each.level]}, {metric_name(each.metric)}"
        values = [each.values.get(column) for column in COLUMNS]
        table.add(each.label.removesuffix(" (reported)"), each.protocol, what, *values, kind="reported")
    return table


def _sources() -> Items:
    sources: dict[str, list[str]] = {}
    for each in summary.REFERENCES:
        sources.setdefault(each.source, []).append(each.label.removesuffix(" (reported)"))
    return Items([f"{', '.join(dict.fromkeys(works))}: {source}." for source, works in sources.items()])


def _confirmations(facts: Facts) -> list[Block]:
    """One table for each level and metric of chains that were trained again, the study's own metric first."""
    found = summary.confirmed(facts.study)
    if not len(found):
        return []
    metrics = sorted(METRICS, key=lambda each: (each != facts.study.metric, METRICS.index(each)))
    means, differences = [], []
    for level, level_name in LEVELS.items():
        for metric in metrics:
            part = found[(found["level"] == level) & (found["metric"] == metric)]
            if len(part):
                picks = (level_name, metric_name(metric))
                means.append((picks, _means(part, level, metric)))
                if "p" in part and part["p"].notna().any():
                    differences.append((picks, _differences(part, level, metric)))
    blocks: list[Block] = [
        Text(
            "Chains trained again over folds and seeds. The seeds of a fold are averaged first; mean \u00b1 sd are "
            "over the folds. The interval of the mean, the difference of the first chain (the best on validation) from "
            "each other one, and p are those of Nadeau and Bengio's corrected resampled t-test, fold by fold; p also "
            "by Holm's correction over the chains. There is none of these over the seeds of one fold, which tell "
            "nothing of other patients: sd is then over the seeds."
        ),
        Picker("confirmed", ("Level", "Metric"), means),
    ]
    if differences:
        blocks.append(Picker("confirmed-differences", ("Level", "Metric"), differences))
    return blocks + _pooled(facts)


def _pooled(facts: Facts) -> list[Block]:
    """Confirmed chains over the test patients of all folds, one table for each level and metric."""
    found = summary.pooled(facts.study, facts.replicates)
    if found is None:
        return []
    metrics = sorted(METRICS, key=lambda each: (each != facts.study.metric, METRICS.index(each)))
    tables = []
    for level, level_name in LEVELS.items():
        for metric in metrics:
            part = found.table[(found.table["level"] == level) & (found.table["metric"] == metric)]
            if len(part):
                tables.append(((level_name, metric_name(metric)), _pooled_table(part, level, metric)))
    seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds"
    told = (
        f"The same chains over all {found.benign + found.malignant} test patients of the {found.folds} folds "
        f"({found.benign} benign, {found.malignant} malignant): each patient is judged by the models of the fold that "
        f"tests it, which were not trained on it; the value is the mean over {seeds}. Brackets hold 95 % intervals "
        "that resample patients; differences are paired over patients. Scores of different folds' models are ranked "
        "together, so a pooled AUC may lie below the mean of the folds' own."
    )
    return [Text(told), Picker("pooled", ("Level", "Metric"), tables)]


def _pooled_table(part: pd.DataFrame, level: str, metric: str) -> Table:
    """`part` is what `summary.pooled` says of one level and metric."""
    columns = [name for name in COLUMNS if name in set(part["column"])]
    table = Table(
        f"pooled-{level}-{metric}".replace("_", "-"),
        f"Every test patient judged once: {metric_name(metric)}, {LEVELS[level]} level.",
        [
            Column("chain"),
            *(Column(name) for name in columns),
            Column("first minus this"),
            Column("p, Holm", 4, small=True),
        ],
    )
    for _, lines in part.groupby("chain", sort=False):
        by_column = {line.column: line for line in lines.itertuples()}
        mean = by_column["mean"]
        cells = [Estimate(line.value, line.low, line.high) for name in columns if (line := by_column.get(name))]
        difference, p = None, None
        if np.isfinite(getattr(mean, "p", np.nan)):
            difference, p = Estimate(mean.difference, mean.difference_low, mean.difference_high), float(mean.p_holm)
        table.add(str(mean.label), *cells, difference, p)
    return table


def _means(part: Any, level: str, metric: str) -> Table:
    """`part` is what `summary.confirmed` says of one level and metric."""
    columns = [name for name in COLUMNS if name.removesuffix("X") in set(part["column"])]
    table = Table(
        f"confirmations-{level}-{metric}".replace("_", "-"),
        f"Trained again: test {metric_name(metric)}, {LEVELS[level]} level, mean \u00b1 sd over folds.",
        [Column("chain"), Column("runs", 0), *(Column(name) for name in columns)],
    )
    for _, lines in part.groupby("chain", sort=False):
        by_column = {line.column: line for line in lines.itertuples()}
        found = [by_column.get(name.removesuffix("X")) for name in columns]
        one = next(iter(by_column.values()))
        cells = [Estimate(line.mean, line.low, line.high, line.sd) if line else None for line in found]
        table.add(str(one.label), int(one.runs), *cells)
    return table


def _differences(part: Any, level: str, metric: str) -> Table:
    found = part[part["column"] == "mean"]
    first, others = found.iloc[0], found[found["p"].notna()]
    table = Table(
        f"confirmed-differences-{level}-{metric}".replace("_", "-"),
        f"Trained again: {first['chain']} minus each other chain, test {metric_name(metric)}, {LEVELS[level]} level, "
        "mean over magnifications, fold by fold.",
        [Column("minus"), Column("runs", 0), Column("difference"), Column("p", 4, small=True),
         Column("p, Holm", 4, small=True)],
    )  # fmt: skip
    for line in others.itertuples():
        difference = Estimate(line.difference, line.difference_low, line.difference_high)
        table.add(str(line.label), int(line.runs), difference, float(line.p), float(line.p_holm))
    return table
