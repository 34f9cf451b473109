"""Figures on how far a search can be trusted: objectives with their errors, and the incumbent's value on test."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from kdtvit_ray.report.style import (
    BLUE,
    GREY,
    INK,
    PINK,
    VERMILION,
    WIDTH,
    Figure,
    axes_of,
    draw,
    level_lines,
    over_trials,
)


def objectives(table: pd.DataFrame, chosen: str, baselines: Mapping[str, float], objective: str) -> Figure:
    """The objective of each setting with one standard error, by trial number; settings that racing dropped, on the
    inner folds that they had, as crosses; baselines as level lines. `table` as in `trust.Search`."""

    def paint(canvas: Canvas) -> None:
        (axes,) = axes_of(canvas)
        complete = table["state"] == "complete"
        for name, of, colour in (
            ("setting, ± one standard error", complete & (table["trial"] != chosen), INK),
            ("chosen setting", table["trial"] == chosen, PINK),
        ):
            part = table[of]
            axes.errorbar(
                part["number"], part["objective"], part["error"], fmt="o", ms=4, lw=1, color=colour, label=name
            )
        dropped = table[~complete]
        if len(dropped):
            axes.plot(dropped["number"], dropped["objective"], "x", color=GREY, ms=5, label="dropped by racing")
        level_lines(axes, baselines)
        over_trials(axes, objective)

    caption = (
        "The objective of every setting with one standard error over development patients. The bars are not paired: "
        "the table below compares settings on the same patients. A dropped setting has the objective of the inner "
        "folds that it had."
    )
    return draw("trust-objectives", caption, WIDTH, 2.9, paint)


def incumbents(numbers: Sequence[int], objective: Sequence[float], test: Sequence[float], metric: str) -> Figure:
    """The objective and the test value of the best setting so far, after each trial."""

    def paint(canvas: Canvas) -> None:
        (axes,) = axes_of(canvas)
        axes.step(numbers, objective, where="post", color=BLUE, label="objective")
        axes.step(numbers, test, where="post", color=VERMILION, ls="--", label="test")
        over_trials(axes, metric)

    caption = (
        "Overtuning: the best setting so far, by its objective and by what its chains over inner folds reach on test. "
        "The search never saw test; where the dashed line gets worse while the other gets better, it follows "
        "chance."
    )
    return draw("trust-incumbents", caption, WIDTH, 2.5, paint)


def so_far(table: pd.DataFrame) -> tuple[list[int], list[float], list[float]]:
    """Trial numbers, and the incumbent's objective and test value after each of them."""
    numbers, objective, test = [], [], []
    best, tested = math.nan, math.nan
    for line in table.sort_values("number").itertuples():
        if line.incumbent:
            best, tested = float(line.objective), float(line.test)
        if np.isfinite(best):
            numbers.append(int(line.number))
            objective.append(best)
            test.append(tested)
    return numbers, objective, test
