"""Figures of the search: orders, forgetting, temperature and alpha, importance, history.

Each takes plain numbers and returns a `Figure`; what the numbers are is decided by `results/`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure as Canvas
from matplotlib.image import AxesImage

from kdtvit_ray.report.style import (
    GREY,
    INK,
    PINK,
    SEQUENTIAL,
    WIDTH,
    Figure,
    apart,
    axes_of,
    dots,
    draw,
    grid_of,
    heat,
    level_lines,
    over_trials,
    panels_of,
    short,
)
from kdtvit_ray.report.tables import Estimate

LEAST_SPAN = 0.1
"""Of the colours of a forgetting matrix: over less, they would make much of what is next to nothing."""
MOST_DOTS = 9
"""Dots that fit a cell of the map of temperature and alpha."""


@dataclass(frozen=True)
class Matrix:
    """A forgetting matrix: `values[i][j]` is the value at magnification `columns[j]` after stage `rows[i]`."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Trial:
    """A setting as a dot: one temperature and one alpha, and its objective."""

    temperature: float
    alpha: float
    objective: float
    label: str = ""


def orders(rows: Sequence[tuple[str, Estimate, int]], objective: str, over: str) -> Figure:
    """Orders from best to worst: (order, mean with interval, number of settings); `over` says which settings."""

    def paint(canvas: Canvas) -> None:
        (axes,) = axes_of(canvas)
        for place, (_, estimate, trials) in enumerate(rows):
            colour = PINK if place == 0 else INK
            if estimate.bounded:
                axes.plot([estimate.low, estimate.high], [place, place], color=colour, lw=1.4)
            axes.plot(estimate.value, place, "D" if place == 0 else "o", color=colour, ms=5.5)
            edge = estimate.high if estimate.bounded else estimate.value
            axes.annotate(
                f"n = {trials}", (edge, place), (6, 0), textcoords="offset points", va="center", fontsize=7.5, color=INK
            )
        axes.set_yticks(range(len(rows)), apart([name for name, _, _ in rows]))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.09)
        axes.set_xlabel(objective)
        axes.grid(axis="y", visible=False)

    caption = (
        f"Orders of magnifications, best first, over {over}: the mean of each order and its 95 % t interval over "
        "settings, all judged on the same patients (no bar where one setting leaves nothing to estimate it from); "
        "it does not tell what other patients would show."
    )
    return draw("orders", caption, WIDTH, 1.1 + 0.235 * max(len(rows), 2), paint)


def forgetting(matrices: Sequence[Matrix], metric: str) -> Figure:
    """Forgetting matrices on one colour scale, side by side as far as there is room."""
    found = np.concatenate([np.ravel(np.asarray(each.values, float)) for each in matrices])
    low, high = _scale(found, LEAST_SPAN)
    cells = max(len(each.columns) for each in matrices)
    columns = min(len(matrices), max(15 // cells, 1))
    rows = math.ceil(len(matrices) / columns)

    def paint(canvas: Canvas) -> None:
        panels = axes_of(canvas, rows, columns)
        for axes, each in zip(panels, matrices, strict=False):
            image = heat(axes, np.asarray(each.values, float), list(each.rows), list(each.columns), low=low, high=high)
            axes.set_title(each.title)
            axes.set_xlabel("evaluated at")
            axes.tick_params(labelsize=7.5)
        for axes in panels[len(matrices) :]:
            axes.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel("after stage")
        canvas.colorbar(image, ax=panels, shrink=0.85, pad=0.02).outline.set_visible(False)

    caption = (
        f"Forgetting matrix: {metric} at each magnification after each stage. Reading down a column shows what a "
        "magnification gained by its own stage and kept or lost after it. By stage: columns stand for whatever was "
        "trained at that stage. By magnification: rows stand for the magnification trained last."
    )
    height = max(2.9, 1.3 + 0.4 * max(len(each.rows) for each in matrices))
    return draw("forgetting", caption, min(WIDTH, 1.6 + 0.975 * cells * columns), height * rows, paint)


def temperature_alpha(students: Mapping[str, Sequence[Trial]], objective: str, over: str, by_stage: bool) -> Figure:
    """Objective over temperature and alpha, one panel per student. Where both come from a grid, cells show means and
    dots show settings; where either is continuous or stages have their own values, dots are coloured by their
    objective."""
    low, high = _scale(np.array([each.objective for trials in students.values() for each in trials]))
    temperatures = sorted({each.temperature for trials in students.values() for each in trials})
    alphas = sorted({each.alpha for trials in students.values() for each in trials})
    columns = min(len(students), 3)
    grid = not by_stage and len(temperatures) * columns <= 18 and len(temperatures) <= 8 and len(alphas) <= 12
    means = {name: _means(trials, temperatures, alphas) for name, trials in students.items()}
    if grid:  # the cells set the scale, so that one bad trial does not take all of it
        low, high = _scale(np.concatenate([each.ravel() for each in means.values()]))
    rows = math.ceil(len(students) / columns)

    def paint(canvas: Canvas) -> None:
        panels = axes_of(canvas, rows, columns, sharex=True, sharey=True)
        image: ScalarMappable
        for axes, (name, trials) in zip(panels, students.items(), strict=False):
            if grid:
                image = _cells(axes, trials, means[name], temperatures, alphas, low, high)
            else:
                image = axes.scatter(
                    [each.temperature for each in trials],
                    [each.alpha for each in trials],
                    c=[each.objective for each in trials],
                    cmap=SEQUENTIAL,
                    vmin=low,
                    vmax=high,
                    s=34,
                    edgecolors=INK,
                    linewidths=0.4,
                )
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter("{x:g}")
            axes.set_title(f"student {short(name)}")
            axes.set_xlabel("temperature T")
        for axes in panels[len(students) :]:
            axes.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel("alpha (weight of distillation)")
        bar = canvas.colorbar(image, ax=panels, shrink=0.85, pad=0.02, label=objective)
        bar.outline.set_visible(False)

    shape = (
        f"cell means with one dot per setting, {MOST_DOTS} at most"
        if grid
        else "one dot per setting, coloured by its objective"
    )
    caption = (
        f"Objective over temperature and alpha of {over}: {shape}."
        + " Chains are placed at the geometric mean of their stages' T and their mean alpha." * by_stage
    )
    width = min(WIDTH, 2.2 + 3.3 * columns)
    return draw("temperature-alpha", caption, width, rows * (1.5 + (0.32 * len(alphas) if grid else 1.7)), paint)


def _means(trials: Sequence[Trial], temperatures: list[float], alphas: list[float]) -> np.ndarray:
    """Mean objective of each cell, (alphas, temperatures); NaN where no trial fell."""
    values = np.full((len(alphas), len(temperatures)), np.nan)
    for y, alpha in enumerate(alphas):
        for x, temperature in enumerate(temperatures):
            here = [each.objective for each in trials if (each.alpha, each.temperature) == (alpha, temperature)]
            if here:
                values[y, x] = np.mean(here)
    return values


def _cells(
    axes: Axes,
    trials: Sequence[Trial],
    values: np.ndarray,
    temperatures: Sequence[float],
    alphas: Sequence[float],
    low: float,
    high: float,
) -> AxesImage:
    for y, alpha in enumerate(alphas):
        for x, temperature in enumerate(temperatures):
            here = [each for each in trials if (each.alpha, each.temperature) == (alpha, temperature)][:MOST_DOTS]
            offsets = (np.arange(len(here)) - (len(here) - 1) / 2) * 0.09
            labels = [each.label for each in here]
            dots(axes, x + offsets, np.full(len(here), y + 0.33), labels, size=2.9, color="white", edge=0.4)
    image = heat(axes, values, [f"{a:g}" for a in alphas], [f"{t:g}" for t in temperatures], low=low, high=high)
    axes.invert_yaxis()
    return image


def per_stage(name: str, stages: Mapping[int, Sequence[tuple[float, float]]], objective: str, over: str) -> Figure:
    """Objective against a value that is chosen for each stage: {stage: [(value, objective)]}."""

    def paint(canvas: Canvas) -> None:
        panels, left = panels_of(canvas, len(stages), sharey=True)
        for axes, (stage, found) in zip(panels, stages.items(), strict=True):
            values = sorted({value for value, _ in found})
            axes.plot([v for v, _ in found], [o for _, o in found], "o", color=INK, alpha=0.35, ms=4, mew=0)
            if len(values) <= 8:
                means = [np.mean([o for v, o in found if v == value]) for value in values]
                axes.plot(values, means, "D-", color=PINK, ms=5)
            if name == "temperature" and min(values) > 0:
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter("{x:g}")
            axes.set_title(f"stage {stage}")
            axes.set_xlabel(name)
        for axes in left:
            axes.set_ylabel(objective)

    caption = (
        f"The {name} of each stage against the objective of {over}: one dot per setting, diamonds are means over equal "
        "values."
    )
    return draw(f"per-stage-{name}", caption, WIDTH, 2.7 * grid_of(len(stages))[0], paint)


def importance(evaluator: str, shares: Mapping[str, float], over: str) -> Figure:
    """How much each searched value explains of the objective, in one evaluator's measure."""
    ranked = sorted(shares.items(), key=lambda pair: pair[1])

    def paint(canvas: Canvas) -> None:
        (axes,) = axes_of(canvas)
        axes.barh(apart([name for name, _ in ranked]), [value for _, value in ranked], color=GREY, height=0.62)
        for place, (_, value) in enumerate(ranked):
            axes.annotate(f"{value:.2f}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_xlabel("importance")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.1)

    caption = (
        f"Importance of the searched values for the objective by {evaluator}, over {over}: what is worth searching at "
        "all."
    )
    return draw(f"importance-{evaluator.split()[0]}", caption, 6.6, 0.9 + 0.3 * max(len(ranked), 2), paint)


def history(
    numbers: Sequence[int],
    values: Sequence[float],
    labels: Sequence[str],
    baselines: Mapping[str, float],
    objective: str,
    over: str,
    lower_is_better: bool = False,
) -> Figure:
    """The objective of each trial in trial order, the best so far, and the baselines as level lines; a dot
    tells its trial's label."""

    def paint(canvas: Canvas) -> None:
        (axes,) = axes_of(canvas)
        best_of = np.minimum if lower_is_better else np.maximum
        dots(axes, numbers, values, labels, size=4, color=INK, alpha=0.55, legend="trial")
        axes.step(numbers, best_of.accumulate(values), where="post", color=PINK, label="best so far")
        level_lines(axes, baselines)
        over_trials(axes, objective)

    caption = (
        f"Optimisation history: the objectives of {over}, and what the baselines reach. Point at a dot in the page to "
        "read its trial."
    )
    return draw("history", caption, WIDTH, 2.9, paint)


def _scale(values: np.ndarray, least: float = 0.0) -> tuple[float, float]:
    """Ends of a colour scale over the finite values; never empty, never a single point, and not shorter than `least`.
    What is added does not reach below 0, nor above 1 where no value does."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    if high - low >= max(least, np.finfo(np.float64).tiny):
        return low, high
    span, most = least or LEAST_SPAN, 1.0 if high <= 1 else math.inf
    low = min(max((low + high - span) / 2, 0.0), most - span)
    return low, low + span
