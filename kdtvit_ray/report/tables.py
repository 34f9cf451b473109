"""One table, four formats: CSV for analysis, LaTeX (booktabs) for papers, Markdown and HTML for reading.

A `Table` holds values, not text: the page and the paper round them, the CSV keeps every digit. Text cells come through
in every format whatever they hold (`_ % & < |`), since study, model and trial names are the user's own.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kdtvit_ray.report.escaping import LATEX, MISSING, clean, csv_text, escape_html, escape_latex, escape_markdown
from kdtvit_ray.results.statistics import Interval

EXACT = 12
"""Decimals to which numbers are compared and rounded: equal means may differ in the sixteenth, as their terms are added
up in different orders."""
WORDS, WIDTH = 28, 0.24
"""In LaTeX: a column with longer texts than this many characters breaks them within this share of the line."""


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval and, where it is a mean over folds, its standard deviation; NaN where there
    is none."""

    value: float
    low: float = math.nan
    high: float = math.nan
    sd: float = math.nan

    @staticmethod
    def of(interval: Interval) -> "Estimate":
        return Estimate(interval.value, interval.low, interval.high)

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


Value = str | int | float | Estimate | None


@dataclass(frozen=True)
class Column:
    """A column: `digits` behind the decimal point of its numbers, and whether the largest (`max`) or the smallest
    (`min`) number is the best one and set in bold. A number that is not zero and `small` enough to be rounded to zero
    is written `< 0.001`, as p-values are."""

    title: str
    digits: int = 3
    best: str = ""
    small: bool = False


P, P_HOLM = Column("p", small=True), Column("p, Holm", small=True)


@dataclass(frozen=True)
class Row:
    """Rows of kind `reported` are others' numbers and never compete for bold; measured rows have other kinds."""

    cells: tuple[Value, ...]
    kind: str = ""


@dataclass
class Table:
    """A table; `name` is its file name without an ending, `caption` one sentence that can stand alone."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: list[Row] = field(default_factory=list)

    def add(self, *cells: Value, kind: str = "") -> None:
        assert len(cells) == len(self.columns), (self.name, cells)
        # numpy's scalars print as `np.float64(...)`: plain ones only from here on
        self.rows.append(Row(tuple(each.item() if isinstance(each, np.generic) else each for each in cells), kind))

    def text(self, value: Value, column: Column) -> str:
        """A cell as a reader sees it: rounded, with its interval, `–` where there is nothing."""
        if isinstance(value, Estimate):
            middle = number(value.value, column.digits)
            if math.isfinite(value.sd):
                middle += f" \u00b1 {number(value.sd, column.digits)}"
            if not value.bounded or middle == MISSING:
                return middle
            return f"{middle} [{number(value.low, column.digits)}, {number(value.high, column.digits)}]"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int | float):
            least = 10**-column.digits
            return f"< {least:.{column.digits}f}" if column.small and value < least else number(value, column.digits)
        return clean(value) if value else MISSING

    def numeric(self, index: int) -> bool:
        """Whether a column holds numbers (and missing values) only."""
        values = [row.cells[index] for row in self.rows]
        return any(isinstance(each, int | float | Estimate) for each in values) and not any(
            isinstance(each, bool) or (isinstance(each, str) and each) for each in values
        )

    def bold(self) -> set[tuple[int, int]]:
        """(row, column) of the best measured numbers, equal ones included; a column with fewer than two has none."""
        chosen: set[tuple[int, int]] = set()
        for index, column in enumerate(self.columns):
            if not column.best:
                continue
            found = {place: plain(row.cells[index]) for place, row in enumerate(self.rows) if row.kind != "reported"}
            known = {place: each for place, each in found.items() if each is not None}
            if len(known) > 1:
                known = {place: round(each, EXACT) for place, each in known.items()}
                best = max(known.values()) if column.best == "max" else min(known.values())
                chosen |= {(place, index) for place, each in known.items() if each == best}
        return chosen

    # -- formats ---------------------------------------------------------------------------------------------------

    def csv(self) -> str:
        """Every digit. An interval takes two more columns, a standard deviation one; a missing value is an empty
        field."""
        ends = [self._ends(index) for index in range(len(self.columns))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        head: list[str] = []
        for column, more in zip(self.columns, ends, strict=True):
            title = csv_text(column.title)
            head += [title, *(f"{title} {end}" for end in more)]
        writer.writerow(head)
        for row in self.rows:
            line: list[str] = []
            for value, more in zip(row.cells, ends, strict=True):
                if isinstance(value, Estimate):
                    line += [_field(value.value), *(_field(getattr(value, end)) for end in more)]
                else:
                    line += [_field(value), *("" for _ in more)]
            writer.writerow(line)
        return out.getvalue()

    def _ends(self, index: int) -> tuple[str, ...]:
        """What the cells of a column hold besides their values."""
        found = [row.cells[index] for row in self.rows]
        estimates = [each for each in found if isinstance(each, Estimate)]
        sd = ("sd",) if any(math.isfinite(each.sd) for each in estimates) else ()
        return (*sd, "low", "high") if estimates else ()

    def markdown(self) -> str:
        bold = self.bold()
        titles = [escape_markdown(column.title) for column in self.columns]
        ruler = ["---:" if self.numeric(index) else ":---" for index in range(len(self.columns))]
        lines = [f"| {' | '.join(titles)} |", f"| {' | '.join(ruler)} |"]
        for place, row in enumerate(self.rows):
            cells = []
            for index, (value, column) in enumerate(zip(row.cells, self.columns, strict=True)):
                text = escape_markdown(self.text(value, column))
                cells.append(f"**{text}**" if (place, index) in bold else text)
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A `table` environment; needs the packages booktabs, graphicx and, before TeX Live 2020, textcomp.

        Made for a page's width: many intervals go below their values, long texts break into lines, and what is wider
        still is scaled down to the line."""
        bold, stacked = self.bold(), self._stacked()
        wide = [any(len(text) > WORDS for text in self._texts(index)) for index in range(len(self.columns))]
        align = "".join(
            "r" if self.numeric(index) else f"p{{{WIDTH}\\linewidth}}" if wide[index] else "l"
            for index in range(len(self.columns))
        )
        lines = [
            "% needs \\usepackage{booktabs,graphicx}",
            "\\begin{table}",
            "\\centering\\footnotesize",
            f"\\caption{{{escape_latex(self.caption)}}}",
            f"\\label{{tab:{re.sub('[^A-Za-z0-9-]+', '-', self.name)}}}",
            "\\sbox0{%",
            f"\\begin{{tabular}}{{{align}}}",
            "\\toprule",
            " & ".join(escape_latex(column.title) for column in self.columns) + " \\\\",
            "\\midrule",
        ]
        for place, row in enumerate(self.rows):
            cells, below = [], []
            for index, (value, column) in enumerate(zip(row.cells, self.columns, strict=True)):
                text, under = self.text(value, column), ""
                if stacked and _bounded(value) and " [" in text:
                    text, under = text.split(" [", 1)
                    under = f"{{\\scriptsize {escape_latex(f'[{under}')}}}"
                text = escape_latex(text)
                if wide[index] and not self.numeric(index):  # an order of many magnifications may break as well
                    text = text.replace(LATEX[">"], LATEX[">"] + "\\allowbreak{}")
                    text = f"{{\\raggedright {text}\\par}}"
                cells.append(f"\\textbf{{{text}}}" if (place, index) in bold else text)
                below.append(under)
            lines.append(" & ".join(cells) + " \\\\")
            if any(below):
                lines.append(" & ".join(below) + " \\\\")
        fits = "\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}%\n\\else\\usebox0\\fi"
        lines += ["\\bottomrule", "\\end{tabular}}%", fits, "\\end{table}"]
        return "\n".join(lines) + "\n"

    def _stacked(self) -> bool:
        """Whether intervals go below their values: many in a line would not fit a page."""
        return sum(any(_bounded(row.cells[index]) for row in self.rows) for index in range(len(self.columns))) > 2

    def _texts(self, index: int) -> list[str]:
        return [self.text(row.cells[index], self.columns[index]) for row in self.rows]

    def html(self, attributes: str = "") -> str:
        """A table whose columns sort on a click: numbers carry their full value in `data-v`."""
        bold = self.bold()
        css = "sortable stacked" if self._stacked() else "sortable"
        out = [f'<div class="scroll"{attributes}><table class="{css}" data-name="{escape_html(self.name)}">']
        out.append(f"<caption>{escape_html(self.caption)}</caption><thead><tr>")
        for index, column in enumerate(self.columns):
            css = ' class="n"' if self.numeric(index) else ""
            out.append(f'<th{css} scope="col"><button type="button">{escape_html(column.title)}</button></th>')
        out.append("</tr></thead><tbody>")
        for place, row in enumerate(self.rows):
            out.append(f'<tr class="{escape_html(row.kind)}">' if row.kind else "<tr>")
            for index, (value, column) in enumerate(zip(row.cells, self.columns, strict=True)):
                known = plain(value)
                data = f' data-v="{known!r}"' if known is not None else ""
                css = ' class="n"' if self.numeric(index) else ""
                text = _html_cell(self, value, column)
                out.append(f"<td{css}{data}>{f'<b>{text}</b>' if (place, index) in bold else text}</td>")
            out.append("</tr>")
        out.append("</tbody></table></div>")
        return "".join(out)


def _html_cell(table: Table, value: Value, column: Column) -> str:
    text = escape_html(table.text(value, column))
    if isinstance(value, Estimate) and " [" in text:
        middle, interval = text.split(" [", 1)
        return f'{middle} <span class="ci">[{interval}</span>'
    return text


def _bounded(value: Value) -> bool:
    return isinstance(value, Estimate) and value.bounded


def plain(value: Value) -> float | None:
    """The number in a cell, None where there is none."""
    if isinstance(value, Estimate):
        value = value.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def number(value: float, digits: int) -> str:
    """A number as text: integers with thin thousands, others with `digits` decimals, `–` for NaN."""
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009") if abs(value) >= 10_000 else str(value)
    if not math.isfinite(value):
        return MISSING
    text = f"{round(value, EXACT):.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _field(value: str | int | float | None) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return csv_text(value) if isinstance(value, str) else repr(value)
