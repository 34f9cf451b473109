"""The headline on a terminal of 80 columns, and several studies side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from kdtvit_ray.errors import UserError
from kdtvit_ray.report.confirmation_section import together
from kdtvit_ray.report.document import Document, Section
from kdtvit_ray.report.escaping import clean
from kdtvit_ray.report.headline_section import row_name
from kdtvit_ray.report.html import page
from kdtvit_ray.report.tables import P_HOLM, Column, Estimate, Row, Table, plain
from kdtvit_ray.results.answer import failures
from kdtvit_ray.results.backward_transfer import BIASED
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.how_many import chosen_from
from kdtvit_ray.results.nested import Nested
from kdtvit_ray.results.study import Study, load
from kdtvit_ray.results.transfer import Transfer
from kdtvit_ray.results.undefined_objectives import nothing
from kdtvit_ray.results.words import LEVEL_NAMES, joined, listed, metric_name

ROOMY_COLUMNS, MOST_COLUMNS = 5, 8
"""How many columns of numbers leave room on a line of 80 characters for two columns of words, and for one."""


def print_headline(findings: Findings, console: Console) -> None:
    """Best trial, students, baselines and reported averages on test; what chains that were trained again and searches
    that were repeated reach; what the best chain gained and kept; what failed; where the report is."""
    study, best = findings.study, findings.best
    if best is None:
        yet = "" if study.finished else "; the study is not finished"
        console.print(_line(f"none in study {study.name}. {nothing(study)}{yet}.", "best"))
    else:
        temperature, alpha = listed(best.temperature) or "-", listed(best.alpha) or "-"
        told = f"{best.order}, teacher {best.teacher}, student {best.student}, T {temperature}, alpha {alpha}"
        told += f", {best.training}" * bool(best.training)
        chosen = f"{best.trial}, chosen on {study.chosen_on} from {chosen_from(study, best)}"
        console.print(_line(f"{chosen}: {told}", "best"))
    for name, each in findings.baseline_searches.items():
        console.print(_line(f"{name}: {each.trial}, chosen from {each.chosen_from}: {each.values}", "baseline"))
    for table in headline_tables(findings):
        _print(table, console)
    _print(means_table(study, findings.headline.long), console)
    if study.leaks:
        warning = "The split is by image: images of a patient are in train and in test, so these numbers leak."
        console.print(Text(warning, "bold"))
    if len(findings.confirmed):
        _print(_confirmation(study, findings.confirmed), console)
    if findings.nested is not None:
        _print(_nested(findings, findings.nested), console)
    kept = list(findings.transfer.values())
    if kept:
        if len(study.columns) <= MOST_COLUMNS:
            _print(_forgetting_table(kept[0]), console)
        _print(_transfer_table(kept), console)
        for note in dict.fromkeys(note for each in kept for note in each.notes):
            console.print(_line(note))
    for sentence in failures(study):
        console.print(_line(sentence, style="bold"))
    if study.folder.exists(f"{study.folder.report}/index.html"):
        console.print(Text(f"report    {study.folder.path(study.folder.report)}/index.html"), soft_wrap=True)


def _line(text: str, label: str = "", style: str = "") -> Text:
    """Text in which names that a user chose stay names, behind a label of its own width."""
    return Text(f"{label:<10}{clean(text)}" if label else clean(text), style)


def means_table(study: Study, long: pd.DataFrame) -> Table:
    """Means over magnifications of the metrics that papers quote, at image level and both patient levels.

    `long` is the headline's. Patient rate is an accuracy and nothing else, so its other cells are empty."""
    metrics = ("accuracy", "precision", "recall", "f1", "auc")
    names = [metric_name(each).replace("accuracy", "acc.") for each in metrics]
    columns = [Column("chain"), Column("level"), *(Column(name) for name in names)]
    found = Table("means", "Test, mean over magnifications", columns)
    means = long[(long["magnification"] == "mean") & long["metric"].isin(metrics)]
    for (label, level), lines in means.groupby(["label", "level"], sort=False, observed=True):
        values = {str(line.metric): float(line.value) for line in lines.itertuples()}
        if np.isfinite(list(values.values())).any():
            kind = str(lines["kind"].iloc[0])
            if kind == "reported" and level != "image":
                continue  # the patient-level literature stands in the report, with its sources
            name = row_name(study, str(label), kind, leaks=False) if level == "image" else "\u00a0"
            found.add(name, LEVEL_NAMES[str(level)], *(values.get(each) for each in metrics), kind=kind)
    return found


def headline_tables(findings: Findings) -> list[Table]:
    """The study's metric at image level for every chain, and accuracy besides, the metric that others report: one table
    where there is room for a column with the metric's name, else one for each. Where there is no room for every
    magnification, the means alone."""
    study, long = findings.study, findings.headline.long
    shown = study.columns if len(study.columns) <= MOST_COLUMNS else ("mean",)
    together = len(shown) <= ROOMY_COLUMNS
    partial = "" if study.finished else " (partial)"
    made: list[Table] = []
    for metric in dict.fromkeys((study.metric, "accuracy")):
        if not made or not together:
            caption = f"Test, image level, study {study.name}{partial}"
            caption += "" if together else f", {metric_name(metric)}"
            names = ("chain", "metric", *shown) if together else ("chain", *shown)
            made.append(Table("headline", caption, [Column(each) for each in names]))
        part = long[(long["level"] == "image") & (long["metric"] == metric)]
        for label in dict.fromkeys(part["label"]):
            lines = part[part["label"] == label]
            values = {str(line.magnification): float(line.value) for line in lines.itertuples()}
            if np.isfinite(list(values.values())).any():
                kind = str(lines["kind"].iloc[0])
                # the leak is said once, below the table
                name = row_name(study, str(label), kind, leaks=False)
                told = (name, metric_name(metric)) if together else (name,)
                made[-1].add(*told, *(values.get(each) for each in shown), kind=kind)
    return made


def _confirmation(study: Study, again: pd.DataFrame) -> Table:
    """Chains trained again, the mean over magnifications alone: a line has no room for more."""
    found = again[(again["level"] == "image") & (again["metric"] == study.metric) & (again["column"] == "mean")]
    table = Table(
        "confirmation",
        f"Trained again, test {metric_name(study.metric)}: mean over magnifications, \u00b1 sd over folds",
        [Column("chain"), Column("runs", 0), Column("mean"), Column("first minus this"), P_HOLM],
    )
    for line in found.itertuples():
        p = plain(getattr(line, "p_holm", None))
        difference = None if p is None else Estimate(line.difference, line.difference_low, line.difference_high)
        table.add(line.label, int(line.runs), Estimate(line.mean, sd=line.sd), difference, p)
    return table


def _nested(findings: Findings, found: Nested) -> Table:
    """What the whole search reaches in other outer folds; the report tells how far each baseline varies."""
    whole = together(findings, found)
    folds, metric = len(found.folds), metric_name(findings.study.metric)
    patients = f"{found.patients.patients} test patients"
    caption = f"The whole search in {folds} outer folds, {metric} on all {patients}, mean over magnifications"
    table = Table(whole.name, caption, [whole.columns[each] for each in (0, 1, 2, 4)])
    table.rows = [Row((*row.cells[:3], row.cells[4]), row.kind) for row in whole.rows]
    return table


def _forgetting_table(kept: Transfer) -> Table:
    table = Table(
        "forgetting",
        f"Best chain, {metric_name(kept.metric)} on test after each stage",
        [Column("after stage"), *(Column(f"at {each}") for each in kept.matrix.columns)],
    )
    for name, line in kept.matrix.iterrows():
        table.add(str(name), *(float(each) for each in line))
    return table


def _transfer_table(kept: Sequence[Transfer]) -> Table:
    """What the best chain gained and kept, one line per metric, the study's own metric first."""
    columns = ("metric", "average", "backward", "forward", "forgetting")
    over = kept[0].over
    caption = (
        f"Best chain on test: average over {over} after the last stage, backward and forward transfer, forgetting "
        f"({BIASED})"
    )
    table = Table("transfer", caption, [Column(each) for each in columns])
    for each in kept:
        table.add(metric_name(each.metric), each.average, each.backward, each.forward, each.forgetting)
    return table


def _print(table: Table, console: Console) -> None:
    """Print a table with its caption above it; words wrap, numbers never do."""
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(table.columns):
        numeric = table.numeric(index)
        grid.add_column(Text(column.title), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in table.rows:
        cells = [Text(table.text(value, column)) for value, column in zip(row.cells, table.columns, strict=True)]
        grid.add_row(*cells, style="dim" if row.kind == "reported" else "bold" if row.kind == "best" else "")
    console.print()
    console.print(_line(table.caption, style="bold"))
    console.print(grid)


# -- several studies ---------------------------------------------------------------------------------------------------


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
    found: dict[str, Findings] = {}
    errors: list[str] = []
    for each in dict.fromkeys(locations):
        try:
            found[each] = Findings(load(each))
        except UserError as error:
            errors.append(str(error))
    if not found:
        raise UserError(". ".join(errors))
    studies = [findings.study for findings in found.values()]
    twice = len({study.name for study in studies}) < len(studies)
    names = [f"{study.name} ({study.folder.shown})" if twice else study.name for study in studies]
    table = _side_by_side(names, list(found.values()))
    _print(_narrow(table), console)
    for name, findings in zip(names, found.values(), strict=True):
        console.print(_line(f"{name}: {_protocol(findings.study)}; {_chain(findings)}"))
    for differs in _differences(names, studies):
        console.print(_line(f"These studies {differs}: their numbers are not comparable.", style="bold"))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(formats[out.suffix](table), encoding="utf-8")
    return {location: findings.study.notes for location, findings in found.items()}, errors


def _side_by_side(names: Sequence[str], found: Sequence[Findings]) -> Table:
    """One row for each study and metric. Rows have several metrics and protocols, so no number of a column is best."""
    magnifications = sorted({each for findings in found for each in findings.study.dataset.magnifications})
    columns = [*(f"{each}X" for each in magnifications), "mean"]
    table = Table(
        "comparison",
        "Best chain of each study on test, image level. Compare only studies of the same protocol and data.",
        [Column(each) for each in ("study", "protocol", "chain", "metric", *columns)],
    )
    metrics = dict.fromkeys([*(findings.study.metric for findings in found), "accuracy"])
    for name, findings in zip(names, found, strict=True):
        long = findings.headline.long
        for metric in metrics:
            part = long[(long["kind"] == "best") & (long["level"] == "image") & (long["metric"] == metric)]
            cells = {
                str(x.magnification): Estimate(float(x.value), float(x.low), float(x.high)) for x in part.itertuples()
            }
            values = [cells.get(each) for each in columns]
            table.add(name, _protocol(findings.study), _chain(findings), metric_name(metric), *values)
    return table


def _narrow(table: Table) -> Table:
    """What has room on 80 columns: values without intervals, and the mean alone where there are many magnifications."""
    numbers = range(4, len(table.columns))
    if len(numbers) > ROOMY_COLUMNS:
        numbers = range(len(table.columns) - 1, len(table.columns))
    found = Table(table.name, table.caption, [table.columns[each] for each in (0, 3, *numbers)])
    found.rows = [
        Row((row.cells[0], row.cells[3], *(plain(row.cells[each]) for each in numbers)), row.kind) for row in table.rows
    ]
    return found


def _protocol(study: Study) -> str:
    return study.protocol + (" (leaks)" if study.leaks else "") + ("" if study.finished else ", partial")


def _differences(names: Sequence[str], studies: Sequence[Study]) -> Iterator[str]:
    """What makes the numbers of studies not comparable, and which study has what: the data, the protocol, or what cuts
    the test images of one protocol in different ways."""

    def which(values: Sequence[object]) -> str:
        of: dict[str, list[str]] = {}
        for name, value in zip(names, values, strict=True):
            of.setdefault(str(value), []).append(name)
        return ", ".join(f"{value} of {joined(those)}" for value, those in of.items()) if len(of) > 1 else ""

    data = [study.plain["data"]["fingerprint"] for study in studies]
    if told := which([each[:12] for each in data]):
        yield f"used different data (fingerprint {told})"
    if told := which([study.protocol for study in studies]):
        yield f"used different protocols ({told})"
        return
    cuts = ("fold",) if studies[0].protocol == "official" else ("fold", "folds", "seed", "group")
    found = {cut: which([study.plain["protocol"][cut] for study in studies]) for cut in cuts}
    if told := "; ".join(f"[protocol] {cut} {values}" for cut, values in found.items() if values):
        yield f"have different test images ({told})"


def _chain(findings: Findings) -> str:
    best = findings.best
    if best is None:
        why = nothing(findings.study)
        return f"{why[0].lower()}{why[1:]}"
    return f"{best.trial}: {best.order}, student {best.student}"


def _standalone(table: Table) -> str:
    return page(Document("Studies side by side", "", [], [Section("comparison", "Comparison", [table])]))
