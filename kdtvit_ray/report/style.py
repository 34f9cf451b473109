"""How figures look: one colour for each magnification's rank, readable in grey print, on light and on dark pages.

Inside the page a figure is an SVG whose ink is `currentColor`, so it follows the page's light or dark text; the same
figure lies in `report/figures/` as a stand-alone SVG and PNG with dark ink on white.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from kdtvit_ray.report.escaping import clean

# Okabe and Ito's palette (2008), told apart by all common kinds of colour blindness
BLUE, ORANGE, GREEN, VERMILION, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9"
PINK, GREY = "#cc79a7", "#8a8a8a"
WIDTH = 9.2
"""Inches: the width of the page's text column."""
DEPTHS = ("#4b3f8f", "#8479c2", "#b5aee0", "#dcd8f0")
"""Places in a chain, by lightness; no magnification's colour, since any magnification can be anywhere."""
SEQUENTIAL = "cividis"
"""A colour map that is even in lightness and safe for colour-blind readers (Nunez et al. 2018)."""

# in grey print the line and the marker tell what the colour cannot; together the three repeat after 60 magnifications
_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY)
_LINES: tuple[str, ...] = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")

MOST_TIPS = 1_000
MOST_NUMBERS = 14
"""Columns of a heat map that has its numbers written in it."""
PANELS = 4
"""Plots side by side at most."""
_TIP = "tip: "
_NO_GLYPH = re.compile(r"Glyph .* missing from|does not support .* natively")
"""What matplotlib warns of where its font has no form of a letter."""

INK = "#1b1f24"
FAINT = "#1b1f25"
"""Ink of grid lines: told apart from `INK` by its last digit, and drawn translucent."""

SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "text.parse_math": False,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Look:
    """How a magnification is drawn."""

    colour: str
    line: str
    marker: str


def looks(magnifications: Sequence[int]) -> dict[int, Look]:
    """How each of a dataset's magnifications is drawn, by its rank from the smallest one on."""
    return {
        each: Look(_COLOURS[rank % len(_COLOURS)], _LINES[rank % len(_LINES)], _MARKERS[rank % len(_MARKERS)])
        for rank, each in enumerate(sorted(magnifications))
    }


def depth_colours(count: int) -> list[str]:
    """Colours of the places in a chain of `count` stages, from the first one on."""
    if count <= len(DEPTHS):
        return list(DEPTHS[:count])
    ramp = LinearSegmentedColormap.from_list("depths", DEPTHS)
    return [to_hex(ramp(place / (count - 1))) for place in range(count)]


@dataclass(frozen=True)
class Figure:
    """A finished figure. `name` is its file name without an ending, `caption` says what it shows and how to read it;
    `inline` is the SVG for the page, `svg` and `png` the files."""

    name: str
    caption: str
    inline: str = field(repr=False)
    svg: bytes = field(repr=False)
    png: bytes = field(repr=False)

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.svg.decode()


def draw(name: str, caption: str, width: float, height: float, paint: Callable[[Canvas], None]) -> Figure:
    """Let `paint` draw on an empty canvas of `width` x `height` inches (the page's column is 9.2) and render it.

    The output depends on what is drawn alone: no dates, no random ids.
    """
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        canvas = Canvas(figsize=(width, height))
        paint(canvas)
        text, png = _rendered(canvas)
    lacking = [each for each in warned if _NO_GLYPH.search(str(each.message))]
    for each in warned:
        if each not in lacking:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if lacking:  # an SVG holds letters, which a reader's own fonts draw
        caption += " The font of the PNG file lacks some letters; the SVG file and the page show them."
    # what a pointer is told is a title in SVG, where matplotlib can only write an id
    text = re.sub(rf'<g id="{_TIP}([^"]*)">', r"<g><title>\1</title>", text)
    return Figure(name, caption, _inline(name, caption, text), _on_white(text), png)


def _rendered(canvas: Canvas) -> tuple[str, bytes]:
    """The SVG and the PNG of what is painted, laid out once for both."""
    vector, pixels = io.BytesIO(), io.BytesIO()
    canvas.set_dpi(72)
    if canvas.axes and (layout := canvas.get_layout_engine()) is not None:
        layout.execute(canvas)
    canvas.set_layout_engine("none")
    # `savefig` would draw each of them twice
    FigureCanvasSVG(canvas).print_svg(vector, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    canvas.set_dpi(150)
    canvas.set_facecolor("white")
    FigureCanvasAgg(canvas).print_png(pixels, metadata={"Software": None})
    return vector.getvalue().decode(), pixels.getvalue()


def axes_of(
    canvas: Canvas, rows: int = 1, columns: int = 1, *, sharex: bool = False, sharey: bool = False
) -> list[Axes]:
    """The axes of a grid of plots, row by row."""
    return list(canvas.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).flat)


def panels_of(
    canvas: Canvas, count: int, *, sharex: bool = False, sharey: bool = False
) -> tuple[list[Axes], list[Axes]]:
    """`count` plots of one width in rows of at most `PANELS`, and those of them that begin a row."""
    rows, columns = grid_of(count)
    every = axes_of(canvas, rows, columns, sharex=sharex, sharey=sharey)
    for unused in every[count:]:
        unused.set_visible(False)
    return every[:count], every[:count:columns]


def grid_of(count: int) -> tuple[int, int]:
    """Rows and columns for `count` plots: at most `PANELS` in a row, and rows as equally long as can be."""
    rows = max(math.ceil(count / PANELS), 1)
    return rows, math.ceil(count / rows)


def heat(
    axes: Axes,
    values: np.ndarray,
    rows: list[str],
    columns: list[str],
    *,
    low: float,
    high: float,
    digits: int = 3,
    colours: str = SEQUENTIAL,
) -> AxesImage:
    """A heat map. Its numbers are written in it as long as there is room for them; NaN cells hold a dash."""
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    small = 7.5 if len(columns) <= 8 else 6.5
    for y, line in enumerate(values if len(columns) <= MOST_NUMBERS else []):
        for x, value in enumerate(line):
            if value != value:
                axes.text(x, y, "\u2013", ha="center", va="center", fontsize=small)
                continue
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{value:.{digits}f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=small, color="#ffffff" if dark else "#000000")
    return image


def dots(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    labels: Sequence[str],
    *,
    size: float,
    color: str,
    edge: float = 0.0,
    alpha: float = 1.0,
    legend: str | None = None,
) -> None:
    """One dot per trial, which tells its label where a pointer rests on it; with more than `MOST_TIPS` dots none does.
    `edge` is the width of a black line around each dot, `legend` what the legend calls all of them."""
    places: list[tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray, str | None]]
    if len(labels) > MOST_TIPS:
        places = [(x, y, None)]
    else:
        places = [([one], [other], f"{_TIP}{clean(told)}") for one, other, told in zip(x, y, labels, strict=True)]
    for place, (across, up, tip) in enumerate(places):
        name = legend if place == 0 else None  # one line of the legend for all
        axes.plot(
            across,
            up,
            "o",
            gid=tip,
            ms=size,
            color=color,
            mec="black" if edge else color,
            mew=edge,
            alpha=alpha,
            label=name,
        )


LEVEL_LINES = (":", "--", "-.", (0, (1, 3)), (0, (6, 2)), (0, (3, 1, 1, 1)), (0, (8, 3)))


def level_lines(axes: Axes, values: Mapping[str, float]) -> None:
    """A grey level line for each named value, told apart by its dashes."""
    for place, (name, value) in enumerate(values.items()):
        axes.axhline(value, color=GREY, lw=1.1, ls=LEVEL_LINES[place % len(LEVEL_LINES)], label=short(name))


def over_trials(axes: Axes, label: str) -> None:
    """Finish a plot over trial numbers: its axes' labels, and the legend beside it."""
    axes.set_xlabel("trial")
    axes.set_ylabel(label)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    whole_numbers(axes)


def whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))


def short(text: str, most: int = 26) -> str:
    """A label that leaves room for the plot, cut behind `most` characters; tables never cut theirs."""
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def apart(names: Sequence[str], most: int = 26) -> list[str]:
    """Labels of different names, as `short` makes them, that stay different: of names that begin alike the end is kept
    too, and where that is not enough they are numbered."""
    tail, long = most // 3, [len(name) > most for name in names]
    cut = [short(name, most) for name in names]
    ends = [
        f"{name[: most - 1 - tail]}\u2026{name[-tail:]}" if cuts and cut.count(label) > 1 else label
        for name, label, cuts in zip(names, cut, long, strict=True)
    ]
    return [
        f"{place} {short(name, most - 3)}" if cuts and ends.count(label) > 1 else label
        for place, (name, label, cuts) in enumerate(zip(names, ends, long, strict=True), 1)
    ]


# -- from matplotlib's SVG to the page's -------------------------------------------------------------------------------


def _inline(name: str, caption: str, text: str) -> str:
    """The SVG element alone, with ids that are unique in the page, the page's own ink and font, and a name for screen
    readers."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # groups are numbered anew in each figure, and nothing refers to them
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = text.replace(FAINT, "currentColor").replace(INK, "currentColor")
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.S)  # page.css has it for all figures
    text = re.sub(r" font-family: [^;\"]*;", "", text).replace("xlink:href", "href")
    text = re.sub(r"\n\s*", "\n", text)
    # a hundredth of a point is below what a screen shows; numbers that are text stay as they are
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag.group()), text)
    width = re.search(r'<svg[^>]*? width="([\d.]+)pt"', text, flags=re.S)
    view = re.search(r'viewBox="[^"]+"', text)
    assert width is not None
    assert view is not None
    head = (
        f'<svg {view.group()} role="img" '
        f'style="max-width:{float(width.group(1)) * 96 / 72:.0f}px" aria-label={quoteattr(caption)}>'
    )
    return head + f"<title>{escape(caption)}</title>" + text[text.index(">") + 1 :]


def _on_white(text: str) -> bytes:
    """The stand-alone SVG with a white ground, so that it can be read anywhere."""
    start = text.index("<svg")
    after = text.index(">", start) + 1
    return (text[:after] + '\n <rect width="100%" height="100%" fill="#ffffff"/>' + text[after:]).encode()
