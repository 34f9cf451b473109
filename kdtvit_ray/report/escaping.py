"""Text as CSV, LaTeX, Markdown and HTML show it: a reader sees what it holds, whatever that is."""

import html
import re
import unicodedata

MISSING = "\u2013"
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Marks without a form that turn the direction of what stands after them: a name must not turn a sentence round."""


def clean(text: str) -> str:
    """Text on one line: control characters and runs of spaces become one space, marks of direction go."""
    text = _DIRECTIONS.sub("", text)
    kept = "".join(" " if unicodedata.category(each) in ("Cc", "Cs", "Cn", "Zl", "Zp") else each for each in text)
    return re.sub(" +", " ", kept).strip(" ")


def escape_html(text: str) -> str:
    return html.escape(clean(text), quote=True)


_MARKUP = re.compile(
    r"(?P<interval>\[-?[0-9.]+, -?[0-9.]+\](?![\[(:]))"  # what makes a link of brackets stands behind them
    r"|(?P<entity>[&<](?![ 0-9]))"  # neither an entity nor a tag begins with a space or a digit
    r"|[\\`*{}\[\]#|~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # inside a word it is no emphasis
    r"|^(?:>|[-+](?=[ -]|$)|[0-9]{1,9}[.)](?= |$))"  # a quotation, a rule or a list begins a block
)


def escape_markdown(text: str) -> str:
    """Text for a block or a table's cell in Markdown (CommonMark with pipe tables): shown as it is, whatever it holds.
    Only what would be markup where it stands is escaped, so that the file can be read without being rendered."""

    def escaped(found: re.Match[str]) -> str:
        what = found.group()
        if found["interval"]:
            return what
        return html.escape(what) if found["entity"] else f"{what[:-1]}\\{what[-1]}"

    return _MARKUP.sub(escaped, clean(text))


LATEX = {
    **{each: f"\\{each}" for each in "{}$&#%_"},
    **{each: f"{{{each}}}" for each in "[]*"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "`": r"\textasciigrave{}",
    MISSING: r"\textendash{}",
    "\u2009": r"\,",
    "\u00b1": r"$\pm$",
    "\u00d7": r"$\times$",
    "\u00b7": r"$\cdot$",
    "\u03b1": r"$\alpha$",
    "\u2265": r"$\geq$",
    "\u2264": r"$\leq$",
    "\u2192": r"$\rightarrow$",
    "\u2026": r"\ldots{}",
    "\u2212": "$-$",
    "\u0394": r"$\Delta$",
}
"""A bracket or a star behind a line's end would be an argument of it, hence the braces."""


def escape_latex(text: str) -> str:
    """Text for LaTeX. Letters outside Latin-1 stay as they are: they need XeLaTeX or LuaLaTeX."""
    escaped = "".join(LATEX.get(each, each) for each in clean(text))
    for twin in ("--", "''", ",,"):  # ligatures: a name's two hyphens or quotes must stay two
        while twin in escaped:
            escaped = escaped.replace(twin, f"{twin[0]}{{}}{twin[1]}")
    return escaped


def csv_text(text: str) -> str:
    """Text for a cell of a CSV file that people read: on one line, and no formula."""
    return no_formula(clean(text))


def no_formula(text: str) -> str:
    """Text for a cell of a CSV file. What a spreadsheet would run as a formula begins with an apostrophe, which makes
    it text there (OWASP, CSV injection); numbers stay numbers, and any other text stays as it is."""
    if not clean(text).startswith(("=", "+", "-", "@")):  # a spreadsheet may pass over blanks before a formula
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
