"""The headline on a terminal of 80 columns, and several studies side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from kdtvit_ray.errors import UserError
from kdtvit_ray.report.document import Document, Section
from kdtvit_ray.report.headline import COLUMNS, LEVELS, metric_name, row_name
from kdtvit_ray.report.html import page
from kdtvit_ray.report.tables import Column, Estimate, Row, Table, plain
from kdtvit_ray.results import summary

QUICK = 1_000
"""Bootstrap samples for the terminal, where only middle values are shown."""
REPLICATES = 10_000


def print_headline(study: Any, console: Console) -> None:
    """Best trial, students, baselines and reported averages on test; the best chain's forgetting matrix; where the
    report is. `study` is what `summary.load` gives."""
    best = summary.best(study)
    if best is None:
        console.print(Text(f"best      no searched trial of {study.name} is complete yet"))
    else:
        temperature, alpha = summary.listed(best.temperature) or "-", summary.listed(best.alpha) or "-"
        told = f"{best.order}, teacher {best.teacher}, student {best.student}, T {temperature}, alpha {alpha}"
        console.print(Text(f"best      {best.trial}, chosen on validation from {best.chosen_from}: {told}"))
    long = summary.headline(study, replicates=QUICK).long
    _print(headline_table(study, long), console)
    _print(means_table(long), console)
    if study.leaks:
        warning = "The split is by image: images of a patient are in train and in test, so these numbers leak."
        console.print(Text(warning, "bold"))
    again = summary.confirmed(study)
    if len(again):
        _print(_confirmation(study, again), console)
    kept = [summary.forgetting(study, metric=metric) for metric in summary.transfer_metrics(study)]
    found = [each for each in kept if each is not None]
    if found:
        _print(_forgetting_table(found[0]), console)
        _print(_transfer_table(found), console)
        for note in dict.fromkeys(note for each in found for note in each.notes):
            console.print(Text(note))
    if study.folder.exists(f"{study.folder.report}/index.html"):
        console.print(Text(f"report    {study.folder.path(study.folder.report)}/index.html"), soft_wrap=True)


def means_table(long: pd.DataFrame) -> Table:
    """Means over magnifications of the metrics that papers quote, at image level and both patient levels.

    `long` is the headline's. Patient rate is an accuracy and nothing else, so its other cells are empty."""
    metrics = ("accuracy", "precision", "recall", "f1", "auc")
    found = Table(
        "means",
        "Test, mean over magnifications",
        [
            Column("chain"),
            Column("level"),
            *(Column(metric_name(each).replace("accuracy", "acc.")) for each in metrics),
        ],
    )
    means = long[(long["magnification"] == "mean") & long["metric"].isin(metrics)]
    for (label, level), lines in means.groupby(["label", "level"], sort=False, observed=True):
        values = {str(line.metric): float(line.value) for line in lines.itertuples()}
        if np.isfinite(list(values.values())).any():
            kind = str(lines["kind"].iloc[0])
            if kind == "reported" and level != "image":
                continue  # the patient-level literature stands in the report, with its sources
            name = row_name(str(label), kind, leaks=False) if level == "image" else "\u00a0"
            found.add(name, LEVELS[str(level)], *(values.get(each) for each in metrics), kind=kind)
    return found


def headline_table(study: Any, long: pd.DataFrame) -> Table:
    """The study's metric at image level for every chain, and accuracy besides, the metric that others report."""
    found = Table(
        "headline",
        f"Test, image level, study {study.name}" + ("" if study.finished else " (partial)"),
        [Column("chain"), Column("metric"), *(Column(each) for each in COLUMNS)],
    )
    for metric in dict.fromkeys((study.metric, "accuracy")):
        part = long[(long["level"] == "image") & (long["metric"] == metric)]
        for label in dict.fromkeys(part["label"]):
            lines = part[part["label"] == label]
            values = {str(line.magnification): float(line.value) for line in lines.itertuples()}
            if np.isfinite(list(values.values())).any():
                kind = str(lines["kind"].iloc[0])
                # the leak is said once, below the table
                name = row_name(str(label), kind, leaks=False)
                found.add(name, metric_name(metric), *(values.get(each) for each in COLUMNS), kind=kind)
    return found


def _confirmation(study: Any, again: pd.DataFrame) -> Table:
    """Chains trained again, the mean over magnifications alone: a line has no room for more."""
    found = again[(again["level"] == "image") & (again["metric"] == study.metric) & (again["column"] == "mean")]
    table = Table(
        "confirmation",
        f"Trained again, test {metric_name(study.metric)}: mean over magnifications, \u00b1 sd over folds",
        [
            Column("chain"),
            Column("runs", 0),
            Column("mean"),
            Column("first minus this"),
            Column("p, Holm", 4, small=True),
        ],
    )
    for line in found.itertuples():
        p = getattr(line, "p_holm", np.nan)
        difference = Estimate(line.difference, line.difference_low, line.difference_high) if np.isfinite(p) else None
        mean = Estimate(line.mean, sd=line.sd)
        table.add(line.label, int(line.runs), mean, difference, float(p) if np.isfinite(p) else None)
    return table


def _forgetting_table(transfer: Any) -> Table:
    columns = [str(each) for each in transfer.matrix.columns]
    table = Table(
        "forgetting",
        f"Best chain, {metric_name(transfer.metric)} on test after each stage",
        [Column("after stage"), *(Column(f"at {each}") for each in columns)],
    )
    for name, line in transfer.matrix.iterrows():
        table.add(str(name), *(float(each) for each in line))
    return table


def _transfer_table(found: Sequence[Any]) -> Table:
    """What the best chain kept, one line a metric, the study's own first."""
    columns = ("average", "backward transfer", "forward transfer", "forgetting")
    table = Table(
        "transfer", "Best chain, gained and kept on test", [Column("metric"), *(Column(each) for each in columns)]
    )
    for each in found:
        table.add(metric_name(each.metric), each.average, each.backward, each.forward, each.forgetting)
    return table


def _print(table: Table, console: Console) -> None:
    """A table on the terminal, its caption above; words wrap, numbers never do."""
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(table.columns):
        numeric = table.numeric(index)
        grid.add_column(Text(column.title), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in table.rows:
        cells = [Text(table.text(value, column)) for value, column in zip(row.cells, table.columns, strict=True)]
        grid.add_row(*cells, style="dim" if row.kind == "reported" else "bold" if row.kind == "best" else "")
    console.print()
    console.print(Text(table.caption, "bold"))
    console.print(grid)


def compare(
    locations: Sequence[str], console: Console, out: Path | None = None
) -> tuple[dict[str, list[str]], list[str]]:
    """The best chain of each study side by side, on test at image level, for each study's own metric and accuracy.

    Prints the table, and writes it where `out` says: a file ending in .csv, .tex, .md or .html. Raises `UserError`
    where no folder is a study, and for another ending. Returns, by location, the notes on what could not be read, and
    a sentence for each folder that is no study.
    """
    formats = {".csv": Table.csv, ".tex": Table.latex, ".md": Table.markdown, ".html": _standalone}
    if out is not None and out.suffix not in formats:
        raise UserError(f"Cannot write the comparison to '{out}': its ending must be one of {', '.join(formats)}")
    found: dict[str, Any] = {}
    errors: list[str] = []
    for each in dict.fromkeys(locations):
        try:
            found[each] = summary.load(each)
        except UserError as error:
            errors.append(str(error))
    if not found:
        raise UserError(" ".join(errors))
    studies = list(found.values())
    twice = len({study.name for study in studies}) < len(studies)
    names = [f"{study.name} ({study.folder.shown})" if twice else study.name for study in studies]
    table = Table(
        "comparison",
        "Best chain of each study on test, image level. Compare only studies of the same protocol and data.",
        [
            Column("study"),
            Column("protocol"),
            Column("chain"),
            Column("metric"),
            *(Column(each, 3) for each in COLUMNS),  # rows of several metrics and protocols: no best of a column
        ],
    )
    metrics = list(dict.fromkeys([*(study.metric for study in studies), "accuracy"]))
    headlines = [summary.headline(study, replicates=REPLICATES).long for study in studies]
    for name, study, long in zip(names, studies, headlines, strict=True):
        for metric in metrics:
            _study_row(table, name, study, long, metric)
    # on 80 columns there is room for middle values only
    narrow = Table(table.name, table.caption, [table.columns[0], table.columns[3], *table.columns[4:]])
    narrow.rows = [Row((row.cells[0], row.cells[3], *map(plain, row.cells[4:])), row.kind) for row in table.rows]
    _print(narrow, console)
    for name, study in zip(names, studies, strict=True):
        console.print(Text(f"{name}: {_protocol(study)}; {_chain(summary.best(study))}"))
    if len({study.plain.get("data", {}).get("fingerprint") for study in studies}) > 1:
        console.print(Text("These studies used different data: their numbers are not comparable.", "bold"))
    if len({study.protocol for study in studies}) > 1:
        console.print(Text("These studies used different protocols: their numbers are not comparable.", "bold"))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(formats[out.suffix](table), encoding="utf-8")
    return {location: study.notes for location, study in found.items()}, errors


def _protocol(study: Any) -> str:
    return study.protocol + (" (leaks)" if study.leaks else "") + ("" if study.finished else ", partial")


def _chain(best: Any) -> str:
    return "no finished trial" if best is None else f"{best.trial}: {best.order}, student {best.student}"


def _study_row(table: Table, name: str, study: Any, long: Any, metric: str) -> None:
    part = long[(long["kind"] == "best") & (long["level"] == "image") & (long["metric"] == metric)]
    found = {str(x.magnification): Estimate(float(x.value), float(x.low), float(x.high)) for x in part.itertuples()}
    values = [found.get(each) for each in COLUMNS]
    table.add(name, _protocol(study), _chain(summary.best(study)), metric_name(metric), *values)


def _standalone(table: Table) -> str:
    return page(Document("Studies side by side", "", [], [Section("comparison", "Comparison", [table])]))
