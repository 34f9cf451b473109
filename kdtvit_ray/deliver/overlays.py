"""Maps laid over their image, and a slide's images with their maps as one PNG."""

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from kdtvit_ray.deliver.maps import Maps
from kdtvit_ray.report.escaping import clean
from kdtvit_ray.report.style import SETTINGS, short

ROLLOUT, GRADIENT = "viridis", "PuOr_r"
"""Colour maps, safe for colour-blind readers: from little to much, and from against to for."""
PROGRAM = "kdtvit-ray explain"
"""Stands in a PNG's metadata, so that it may be replaced by a new one."""
CAUTION = "Maps show where the output is sensitive, not why it is right."

PANEL, GAP, UNDER = 2.2, 0.16, (0.1, 0.24, 0.24)
"""Inches: the side of a square, between columns, and below the image and its two maps."""
LEFT, HEAD, TITLES, FOOT = 0.95, 0.62, 0.8, 1.05
"""Inches beside and above all, above an image, and below all."""
BAND = TITLES + 3 * PANEL + sum(UNDER) + 0.1
LETTERS = 15
"""Letters of the small type that surely fit in an inch."""
NEARLY_EVEN = 0.1
"""A rollout that departs from its mean by no more has colours that look like more than there is."""
DOTS = 110
"""Pixels an inch."""


@dataclass(frozen=True)
class Pane:
    """One image of a slide: its pixels uint8 (S, S, 3), its maps, what is written over it, its magnification (None
    where it is not known), and how many images the slide has there, shown or not."""

    name: str
    magnification: int | None
    told: str
    truth: str
    pixels: np.ndarray
    maps: Maps
    count: int = 1


def rollout_over(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Image and rollout as uint8 (S, S, 3), coloured from the map's smallest value to its largest."""
    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return _blended(pixels, share, ROLLOUT, np.full(values.shape, 0.6))


def gradient_over(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Image and gradient map as uint8 (S, S, 3): colours are symmetric about 0, where the image shows through."""
    most = float(np.abs(values).max())
    share = values / most if most > 0 else np.zeros_like(values)
    return _blended(pixels, (share + 1) / 2, GRADIENT, 0.85 * np.abs(share) ** 0.75)


def slide_png(slide: str, model: str, words: Sequence[str], panes: Sequence[Pane]) -> bytes:
    """All images of a slide, a column for each magnification, with their maps below them. `words` are the names of the
    negative and the positive side, `model` is a line of text. The same input gives the same bytes."""
    columns = sorted({each.magnification for each in panes}, key=lambda each: (each is None, each or 0))
    stacks = [[each for each in panes if each.magnification == column] for column in columns]
    bands = max(map(len, stacks))
    width = LEFT + max(len(columns), 2) * (PANEL + GAP)
    height = HEAD + bands * BAND + FOOT
    with mpl.rc_context({**SETTINGS, "figure.constrained_layout.use": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name may be in any script
        canvas = Canvas(figsize=(width, height), dpi=DOTS, facecolor="white")
        whole = _axes(canvas, 0, 0, width, height)
        whole.set(xlim=(0, width), ylim=(height, 0))
        letters = int(width * LETTERS)
        whole.text(0.12, 0.3, short(clean(slide), int(width * 8)), fontsize=11, weight="bold")
        whole.text(0.12, 0.5, short(clean(model), letters), fontsize=7.5)
        for across, stack in enumerate(stacks):
            for down, pane in enumerate(stack):
                shown = f" ({len(stack)} of {pane.count})" if pane.count > len(stack) and not down else ""
                _pane(canvas, whole, pane, shown, LEFT + across * (PANEL + GAP), HEAD + down * BAND, first=across == 0)
        _legend(canvas, whole, words, height - FOOT, letters)
        out = io.BytesIO()
        FigureCanvasAgg(canvas).print_png(out, metadata={"Software": PROGRAM})
    return out.getvalue()


def strip_png(pixels: np.ndarray, found: Maps, side: int) -> bytes:
    """Image, rollout and gradient map side by side, each `side` pixels, without a word."""
    from PIL import Image

    squares = (pixels, rollout_over(pixels, found.rollout), gradient_over(pixels, found.gradient))
    strip = Image.new("RGB", (3 * side + 8, side), "white")
    for place, square in enumerate(squares):
        strip.paste(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC), (place * (side + 4), 0))
    out = io.BytesIO()
    strip.save(out, "PNG", optimize=True)
    return out.getvalue()


def file_name(name: str, taken: set[str]) -> str:
    """A PNG's name for a slide or an image of any name: letters, digits, `.`, `_` and `-`, and none that is `taken` on
    a file system that ignores case. It is added to `taken`."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:80] or "image"
    made, number = f"{safe}-maps.png", 1
    while made.lower() in taken:
        number += 1
        made = f"{safe}-{number}-maps.png"
    taken.add(made.lower())
    return made


def is_own(content: bytes) -> bool:
    """Whether a file is a PNG of `slide_png`."""
    return PROGRAM.encode() in content[:512]


def _blended(pixels: np.ndarray, share: np.ndarray, colours: str, opacity: np.ndarray) -> np.ndarray:
    """Colours (from 0 to 1 of the colour map) over the image in pale grey, so that its own stain is not taken for
    them."""
    grey = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    ground = np.repeat((0.75 * grey + 0.25 * 255)[:, :, None], 3, axis=2)
    colour = mpl.colormaps[colours](share)[:, :, :3] * 255
    strength = opacity[:, :, None]
    return np.clip(np.rint((1 - strength) * ground + strength * colour), 0, 255).astype(np.uint8)


def _pane(canvas: Canvas, whole: Axes, pane: Pane, shown: str, left: float, top: float, *, first: bool) -> None:
    at = f"{pane.magnification}X" if pane.magnification else "magnification unknown"
    whole.text(left, top + 0.2, f"{at}{shown}", fontsize=9, weight="bold")
    for place, line in enumerate((pane.name, pane.told, pane.truth)):
        whole.text(left, top + 0.37 + 0.16 * place, short(clean(line), 38), fontsize=7)
    reached, added = pane.maps.rollout, float(np.abs(pane.maps.gradient).max())
    even = ": nearly even" if np.abs(reached - 1).max() <= NEARLY_EVEN else ""
    rows = (
        ("image", pane.pixels, ""),
        (
            "attention\nrollout",
            rollout_over(pane.pixels, reached),
            f"{reached.min():.3g} to {reached.max():.3g} times the mean{even}",
        ),
        (
            "gradient \u00d7\nactivation",
            gradient_over(pane.pixels, pane.maps.gradient),
            f"up to \u00b1{added:.2g} log odds for each patch",
        ),
    )
    down = top + TITLES
    for (label, square, below), under in zip(rows, UNDER, strict=True):
        _axes(canvas, left, down, PANEL, PANEL).imshow(square, interpolation="bilinear", aspect="auto")
        whole.text(left, down + PANEL + 0.15, below, fontsize=6.5)
        if first:
            whole.text(LEFT - 0.12, down + PANEL / 2, label, fontsize=8, ha="right", va="center")
        down += PANEL + under


def _legend(canvas: Canvas, whole: Axes, words: Sequence[str], top: float, letters: int) -> None:
    """What the colours mean, and the caution."""
    negative, positive = (short(clean(each), 12) for each in words)
    for place, (colours, low, high) in enumerate(
        ((ROLLOUT, "least attention", "most"), (GRADIENT, f"towards {negative}", f"towards {positive}"))
    ):
        left = LEFT + place * (PANEL + GAP)
        axes = _axes(canvas, left, top + 0.12, PANEL, 0.1)
        axes.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto")
        whole.text(left, top + 0.36, low, fontsize=7)
        whole.text(left + PANEL, top + 0.36, high, fontsize=7, ha="right")
    scaled = "Each map has its own colour scale; its range stands below it."
    lines = textwrap.wrap(f"{CAUTION} {scaled}", letters)
    for place, line in enumerate(lines[:3]):
        whole.text(0.12, top + 0.58 + 0.15 * place, line, fontsize=7.5)


def _axes(canvas: Canvas, left: float, top: float, width: float, height: float) -> Axes:
    """Empty axes at a place in inches from the top left corner."""
    across, down = canvas.get_size_inches()
    axes = canvas.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set_axis_off()
    return axes
