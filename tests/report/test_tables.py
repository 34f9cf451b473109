"""Tables: every format shows what the table holds, whatever its text is."""

import csv
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kdtvit_ray.report.escaping import MISSING, clean, escape_latex, escape_markdown
from kdtvit_ray.report.tables import Column, Estimate, Table, number

NASTY = "50%_A&B <i>#1</i> $x^2$ ~{a}|b\\c \"q\" 'r' `s` [t] *u* -- ?` ,,"
words = st.text(max_size=30)
values = st.one_of(
    words,
    st.none(),
    st.floats(allow_infinity=False, width=32),
    st.integers(-(10**6), 10**6),
    st.builds(Estimate, st.floats(0, 1), st.floats(0, 0.5), st.floats(0.5, 1)),
)


def table_of(rows, columns=2):
    table = Table("some_table", "A caption.", [Column(f"column {i}") for i in range(columns)])
    for row in rows:
        table.add(*row)
    return table


class Cells(HTMLParser):
    """The text of each cell of the table's body, as a browser reads it."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        if tag == "td":
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def shown(table):
    return [
        [table.text(value, column) for value, column in zip(row.cells, table.columns, strict=True)]
        for row in table.rows
    ]


@given(st.lists(st.tuples(values, values), min_size=1, max_size=5))
def test_html_shows_every_cell(rows):
    table = table_of(rows)
    assert Cells(table.html()).rows[1:] == shown(table)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=5))
def test_markdown_shows_every_cell(rows):
    table = table_of(rows)
    tokens = MarkdownIt("commonmark").enable("table").parse(table.markdown())
    cells = [
        "".join(child.content for child in tokens[place + 1].children)
        for place, token in enumerate(tokens)
        if token.type == "td_open"
    ]
    # white space of any kind around a cell is not part of it
    assert [cell.strip() for cell in cells] == [text.strip() for row in shown(table) for text in row]


markup = st.text(st.sampled_from("[](){}<>*_`~#+-.!|&$\\\\/:;=,'\" \n019aZ\u00e9"), max_size=25)


hostile = st.sampled_from(["[a]: b", "[0.1, 0.2]: b", "![0.1, 0.2](x)", "<b>", "&lt;", "---", "1) a", "a_b_ _c", NASTY])


@given(st.one_of(words, markup, hostile))
@pytest.mark.parametrize("block", ["{}", "- {}", "> {}", "> **x {} x**", "## 1. {}", "![{}](figures/a.png)"])
def test_markdown_shows_every_text_as_it_is(block, text):
    assume(clean(text).strip())
    written = block.replace("{}", escape_markdown(text))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(written)
    parts = [part for token in tokens for part in token.children or ()]
    if block.startswith("!"):
        parts = parts[0].children
    assert {part.type for part in parts} - {"strong_open", "strong_close"} == {"text"}
    around = {"> **x {} x**": "x {} x", "## 1. {}": "1. {}"}.get(block, "{}")
    read = "".join(part.content for part in parts)
    assert read.strip() == around.replace("{}", clean(text)).strip()
    opened = [token.type for token in tokens if token.type.endswith("_open")]
    usual = {"-": ["bullet_list_open", "list_item_open"], ">": ["blockquote_open"]}.get(block[0], [])
    assert opened == (["heading_open"] if block.startswith("#") else [*usual, "paragraph_open"])


def test_markdown_can_be_read_without_being_rendered():
    for text in (
        "0.957 (95 % CI 0.846 to 1.000), [0.846, 1.000]",
        "5>10>20",
        "colon_slides, p < 0.001",
        "Wait! 2 + 3 & more; -0.2",
    ):
        assert escape_markdown(text) == text


def test_marks_of_direction_go_and_what_joins_letters_stays():
    """A name with an override would turn round the sentence that it stands in."""
    for mark in "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
        assert clean(f"a{mark}b") == "ab"
    joined = "\U0001f469\u200d\U0001f52c"
    assert clean(joined) == joined


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_csv_gives_every_text_back_and_no_formula(rows):
    read = list(csv.reader(io.StringIO(table_of(rows).csv())))
    assert [[cell.removeprefix("'") for cell in row] for row in read[1:]] == [
        [clean(cell).removeprefix("'") for cell in row] for row in rows
    ]
    assert not [cell for row in read for cell in row if cell.startswith(("=", "+", "-", "@")) and not numeric(cell)]


def numeric(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


@given(st.lists(st.tuples(words, st.floats(allow_infinity=False)), min_size=1, max_size=5))
def test_csv_keeps_every_digit(rows):
    read = list(csv.DictReader(io.StringIO(table_of(rows).csv())))
    for line, (_, value) in zip(read, rows, strict=True):
        text = line["column 1"]
        assert (text == "") if math.isnan(value) else (float(text) == value)


def unescape_latex(text):
    """What TeX would print, by reading the escapes one by one; fails on any other special character."""
    named = {
        "textbackslash": "\\",
        "textasciicircum": "^",
        "textasciitilde": "~",
        "textless": "<",
        "textgreater": ">",
        "textbar": "|",
        "char34": '"',
        "textasciigrave": "`",
        "textendash": MISSING,
        "ldots": "\u2026",
    }
    math_named = {
        r"\pm": "\u00b1",
        r"\times": "\u00d7",
        r"\cdot": "\u00b7",
        r"\alpha": "\u03b1",
        r"\geq": "\u2265",
        r"\leq": "\u2264",
        r"\rightarrow": "\u2192",
        r"\Delta": "\u0394",
        "-": "\u2212",
    }
    out, place = [], 0
    pattern = re.compile(
        r"\\([a-z]+\d*)\{\}|\\([{}$&#%_])|\$(\\[A-Za-z]+|-)\$|\{([\[\]*])\}|(\{\})|(\\,)|([^\\{}$&#%_^~<>|\"`\[\]*])"
    )
    while place < len(text):
        found = pattern.match(text, place)
        assert found, f"unescaped at {text[place:]!r}"
        name, char, maths, bracket, empty, thin, plain = found.groups()
        if name:
            out.append(named[name])
        elif maths:
            out.append(math_named[maths])
        elif thin:
            out.append("\u2009")
        elif not empty:
            out.append(char or bracket or plain)
        place = found.end()
    return "".join(out)


@given(words | st.text(alphabet="\\{}$&#%_^~<>|\"`[]*-',\u2009\u2013 ab", max_size=30))
def test_latex_escapes_can_be_read_back(text):
    assert unescape_latex(escape_latex(text)) == clean(text)


def test_latex_has_no_ligature_of_a_name():
    assert "--" not in escape_latex("a---b")


def wide_table():
    table = Table("wide", "A caption.", [Column("chain"), *(Column(name, 3, "max") for name in "abcde")])
    for name in ("Distillation from scratch, no warm start (image split, leaks)", "short", "a_b & c"):
        table.add(name, *(Estimate(0.912, 0.831, 1.0) for _ in range(5)))
    table.add("others", None, 0.5, None, 0.5, Estimate(0.5), kind="reported")
    return table


def very_wide_table():
    table = Table("very-wide", "A caption.", [Column(f"a long title {each}") for each in range(12)])
    table.add(*("words of a cell",) * 12)
    return table


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_and_fits_the_page(tmp_path):
    table = table_of([(NASTY, Estimate(0.9, 0.8, 0.95)), ("[first", None), ("*star", 12345)])
    text = "".join(each.latex() for each in (table, wide_table(), very_wide_table()))
    source = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,graphicx}\\begin{document}\n"
    (tmp_path / "t.tex").write_text(source + text + "\\end{document}\n")
    ran = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert "Overfull" not in ran.stdout


def test_many_intervals_stand_below_their_values():
    lines = wide_table().latex().splitlines()
    assert "short & \\textbf{0.912} & \\textbf{0.912} & \\textbf{0.912} & \\textbf{0.912} & \\textbf{0.912} \\\\" in [
        line.replace("{\\raggedright short\\par}", "short") for line in lines
    ]
    assert lines.count(" & " + " & ".join(["{\\scriptsize {[}0.831, 1.000{]}}"] * 5) + " \\\\") == 3


def test_latex_is_booktabs():
    text = table_of([("a_b", 0.5)]).latex()
    for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
        assert text.count(rule) == 1
    assert "a\\_b & 0.500 \\\\" in text
    assert "\\begin{tabular}{lr}" in text


def test_an_interval_takes_three_columns_of_csv():
    table = table_of([("a", Estimate(0.9, 0.8, 0.95)), ("b", Estimate(0.5))])
    assert table.csv().splitlines() == ["column 0,column 1,column 1 low,column 1 high", "a,0.9,0.8,0.95", "b,0.5,,"]


def test_equal_means_are_one_number_in_whichever_order_their_terms_were_added_up():
    third = 2 / 3
    means = [np.mean([0.75, third, third, third]), np.mean([third, third, third, 0.75])]
    assert means[0] != means[1]
    table = Table("t", "c", [Column("chain"), Column("mean", best="max")])
    table.add("a", means[0])
    table.add("b", means[1])
    assert table.bold() == {(0, 1), (1, 1)}
    assert [number(mean, 3) for mean in means] == ["0.688", "0.688"]


def test_the_best_measured_number_is_bold_and_reported_ones_never_are():
    table = Table("t", "c", [Column("name"), Column("up", best="max"), Column("down", 1, "min")])
    table.add("a", 0.8, 3.0)
    table.add("b", Estimate(0.9, 0.8, 1.0), 2.0)
    table.add("c", 0.99, 1.0, kind="reported")
    assert table.bold() == {(1, 1), (1, 2)}
    assert "**0.900 [0.800, 1.000]**" in table.markdown()


def test_one_number_alone_is_not_the_best():
    table = Table("t", "c", [Column("up", best="max")])
    table.add(0.8)
    assert table.bold() == set()


def test_numpy_numbers_are_plain_numbers():
    table = table_of([(np.float64(0.25), np.int64(3))])
    assert table.csv().splitlines()[1] == "0.25,3"
    assert 'data-v="0.25"' in table.html()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.12345, 3, "0.123"),
        (-0.0001, 3, "0.000"),
        (math.nan, 2, MISSING),
        (7909, 0, "7909"),
        (1234567, 0, "1\u2009234\u2009567"),
    ],
)
def test_numbers(value, digits, text):
    assert number(value, digits) == text
