"""The headline on a terminal of 80 columns, and several studies side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from kdtvit_ray.errors import UserError
from kdtvit_ray.report import tables
from kdtvit_ray.report.headline import COLUMNS, metric_name
from kdtvit_ray.report.tables import Column, Estimate, Table
from kdtvit_ray.results import summary

QUICK = 1_000
"""Bootstrap samples for the terminal, where only middle values are shown."""


def print_headline(study: Any, console: Console) -> None:
    """Best trial, students, baselines and reported averages on test; the best chain's forgetting matrix; where the
    report is. `study` is what `summary.load` gives."""
    console.print(_grid(headline_table(study)))
    if study.leaks:
        console.print(
            Text("The split is by image: images of one patient are in train and in test, so this leaks.", "bold")
        )
    transfer = summary.forgetting(study)
    if transfer is not None:
        console.print(_grid(_forgetting_table(transfer)))
    if study.folder.exists(f"{study.folder.report}/index.html"):
        console.print(Text(f"report    {study.folder.path(study.folder.report)}/index.html"), soft_wrap=True)


def headline_table(study: Any) -> Table:
    """The study's metric at image level for every chain, and accuracy besides, the metric that others report."""
    long = summary.headline(study, replicates=QUICK).long
    metrics = list(dict.fromkeys((study.metric, "accuracy")))
    found = Table(
        "headline",
        f"Test, image level, study {study.name}" + ("" if study.finished else " (partial)"),
        [Column("chain"), Column("metric"), *(Column(each) for each in COLUMNS)],
    )
    for metric in metrics:
        part = long[(long["level"] == "image") & (long["metric"] == metric)]
        for label in dict.fromkeys(part["label"]):
            lines = part[part["label"] == label]
            values = {str(line.magnification): float(line.value) for line in lines.itertuples()}
            if np.isfinite(list(values.values())).any():
                name = str(label)
                if lines["kind"].iloc[0] == "reported" and "split unknown" not in name:
                    name += " (reported, split unknown)"
                found.add(
                    name, metric_name(metric), *(values.get(each) for each in COLUMNS), kind=lines["kind"].iloc[0]
                )
    return found


def _forgetting_table(transfer: Any) -> Table:
    columns = [str(each) for each in transfer.accuracy.columns]
    table = Table(
        "forgetting",
        f"Accuracy on test after each stage of the best chain: average {transfer.average:.3f}, "
        f"backward transfer {transfer.backward:+.3f}, forgetting {transfer.forgetting:.3f}",
        [Column("after stage"), *(Column(f"at {each}") for each in columns)],
    )
    for name, line in transfer.accuracy.iterrows():
        table.add(str(name), *(float(each) for each in line))
    return table


def _grid(table: Table) -> Grid:
    """A table for the terminal; the first column wraps, numbers never do."""
    grid = Grid(
        box=box.SIMPLE_HEAD, title=Text(table.caption), title_justify="left", title_style="bold", pad_edge=False
    )
    for index, column in enumerate(table.columns):
        numeric = table.numeric(index)
        grid.add_column(
            Text(column.title), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold", ratio=None
        )
    for row in table.rows:
        cells = [Text(table.text(value, column)) for value, column in zip(row.cells, table.columns, strict=True)]
        grid.add_row(*cells, style="dim" if row.kind == "reported" else "bold" if row.kind == "best" else "")
    return grid


def compare(locations: Sequence[str], console: Console, out: Path | None = None) -> Table:
    """The best chain of each study side by side, on test at image level, for each study's own metric and accuracy.

    Prints the table, and writes it where `out` says: a file ending in .csv, .tex, .md or .html. Raises `UserError` for
    a folder that is no study and for another ending.
    """
    formats = {".csv": Table.csv, ".tex": Table.latex, ".md": Table.markdown, ".html": _standalone}
    if out is not None and out.suffix not in formats:
        raise UserError(f"Cannot write the comparison to '{out}': its ending is not one of {', '.join(formats)}")
    studies = [summary.load(each) for each in locations]
    table = Table(
        "comparison",
        "Best chain of each study on test, image level. Compare only studies of the same protocol and data.",
        [
            Column("study"),
            Column("protocol"),
            Column("chain"),
            Column("metric"),
            *(Column(each, 3, "max") for each in COLUMNS),
        ],
    )
    metrics = list(dict.fromkeys([*(study.metric for study in studies), "accuracy"]))
    prints = {study.plain.get("data", {}).get("fingerprint") for study in studies}
    for metric in metrics:
        for study in studies:
            _study_row(table, study, metric)
    shown = Table(table.name, table.caption, [table.columns[0], *table.columns[2:]], [
        tables.Row((row.cells[0], *row.cells[2:4], *(tables.plain(each) for each in row.cells[4:])), row.kind)
        for row in table.rows
    ])  # fmt: skip
    console.print(_grid(shown))
    protocols = ", ".join(f"{study.name}: {study.protocol}{' (leaks)' if study.leaks else ''}" for study in studies)
    console.print(Text(f"Protocols: {protocols}."))
    if len(prints) > 1:
        console.print(Text("These studies used different data: their numbers are not comparable.", "bold"))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(formats[out.suffix](table), encoding="utf-8")
    return table


def _study_row(table: Table, study: Any, metric: str) -> None:
    best = summary.best(study)
    protocol = study.protocol + (" (leaks)" if study.leaks else "") + ("" if study.finished else ", partial")
    if best is None:
        table.add(study.name, protocol, "no finished trial", metric_name(metric), *(None for _ in COLUMNS))
        return
    long = summary.headline(study, replicates=QUICK).long
    part = long[(long["kind"] == "best") & (long["level"] == "image") & (long["metric"] == metric)]
    found = {str(x.magnification): Estimate(float(x.value), float(x.low), float(x.high)) for x in part.itertuples()}
    chain = f"{best.trial}: {best.order}, student {best.student}"
    table.add(study.name, protocol, chain, metric_name(metric), *(found.get(each) for each in COLUMNS))


def _standalone(table: Table) -> str:
    from kdtvit_ray.report.document import Document, Section
    from kdtvit_ray.report.html import page

    return page(Document("Studies side by side", "", [], [Section("comparison", "Comparison", [table])]))
