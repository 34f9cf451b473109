"""Figures of one chain and of what the study cost: ROC, reliability, confusion, learning curves, timeline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure as Canvas

from kdtvit_ray.report.style import (
    BLUE,
    DEPTHS,
    GREY,
    PINK,
    WIDTH,
    Figure,
    Look,
    apart,
    axes_of,
    depth_colours,
    draw,
    grid_of,
    heat,
    panels_of,
    short,
    whole_numbers,
)
from kdtvit_ray.results.words import duration

LEGEND_COLUMNS = 7


@dataclass(frozen=True)
class Reliability:
    """Bins of predicted probability: mean prediction, share of positive images and number of images in each."""

    predicted: Sequence[float]
    observed: Sequence[float]
    counts: Sequence[int]
    error: float


@dataclass(frozen=True)
class Run:
    """One stage on one worker group, in seconds since the study's first stage started."""

    group: str
    depth: int
    started: float
    finished: float


def roc(
    curves: Mapping[int, tuple[np.ndarray, np.ndarray, float]],
    operating: Mapping[int, tuple[float, float]],
    drawn: Mapping[int, Look],
    positive: str,
) -> Figure:
    """ROC per magnification: {magnification: (false positive rate, true positive rate, AUC)}; `operating` marks the
    point (false positive rate, true positive rate) of the threshold 0.5; `positive` is the positive side's word."""

    def paint(canvas: Canvas) -> None:
        whole, corner = axes_of(canvas, 1, 2)
        for axes in (whole, corner):
            axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (2, 3)))
            for magnification, (false, true, area) in curves.items():
                look = drawn[magnification]
                axes.plot(false, true, color=look.colour, ls=look.line, label=f"{magnification}X, AUC {area:.3f}")
                if magnification in operating:
                    point = operating[magnification]
                    axes.plot(*point, look.marker, color=look.colour, ms=6.5, mec="white", mew=0.6)
            axes.set_aspect("equal")
            axes.set_xlabel("false positive rate (1 - specificity)")
        corner.set(xlim=(-0.01, 0.4), ylim=(0.6, 1.01))
        corner.set_title("upper left corner")
        whole.set_ylabel("true positive rate (recall)")
        whole.legend(loc="lower right")

    caption = (
        f"ROC on test, by magnification; positive is {positive}. Markers are the operating points at threshold 0.5."
    )
    return draw("roc", caption, WIDTH, 4.3, paint)


def reliability(found: Mapping[int, Reliability], drawn: Mapping[int, Look], positive: str) -> Figure:
    """Predicted against observed share of positive images, one panel per magnification; a dot's area tells how many
    images it stands for."""

    def paint(canvas: Canvas) -> None:
        panels, left = panels_of(canvas, len(found), sharex=True, sharey=True)
        for axes, (magnification, each) in zip(panels, found.items(), strict=True):
            look = drawn[magnification]
            axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (2, 3)))
            axes.plot(each.predicted, each.observed, color=look.colour, lw=1.1)
            area = 90 * np.asarray(each.counts, float) / max(max(each.counts, default=1), 1) + 6
            axes.scatter(each.predicted, each.observed, s=area, color=look.colour, marker=look.marker)
            axes.set_title(f"{magnification}X, ECE {each.error:.3f}")
            axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
            axes.set_xticks([0, 0.5, 1])
            axes.set_xlabel("predicted")
        for axes in left:
            axes.set_ylabel(f"share {short(positive, 16)}")

    caption = (
        f"Reliability on test: predicted probability of {positive} against the share of {positive} images, in bins of "
        "equal width. ECE is the expected calibration error."
    )
    return draw("reliability", caption, WIDTH, 2.75 * grid_of(len(found))[0], paint)


def confusion(tables: Mapping[int, Sequence[Sequence[int]]], words: Sequence[str]) -> Figure:
    """Two by two counts per magnification, rows true, columns predicted, the negative side before the positive one;
    `words` names the two."""

    def paint(canvas: Canvas) -> None:
        panels, left = panels_of(canvas, len(tables), sharey=True)
        names = apart(words, 12)
        for axes, (magnification, counts) in zip(panels, tables.items(), strict=True):
            values = np.asarray(counts, float)
            shares = values / np.maximum(values.sum(1, keepdims=True), 1)
            heat(axes, shares, names, names, low=0, high=1, colours="Greys", digits=2)
            for text, count in zip(list(axes.texts), values.ravel(), strict=True):
                text.set_text(f"{count:.0f}\n{text.get_text()}")
            axes.set_title(f"{magnification}X")
            axes.set_xlabel("predicted")
        for axes in left:
            axes.set_ylabel("true")

    caption = "Confusion on test at threshold 0.5: counts, and shares of each row."
    return draw("confusion", caption, WIDTH, 2.35 * grid_of(len(tables))[0], paint)


def classes(names: Sequence[str], counts: Sequence[Sequence[int]], first_positive: int, words: Sequence[str]) -> Figure:
    """Classes against each other, all magnifications together, as shares of each row; from `first_positive` on they are
    positive, and `words` names the negative and the positive side."""

    def paint(canvas: Canvas) -> None:
        (axes,) = axes_of(canvas)
        values = np.asarray(counts, float)
        total = values.sum(1, keepdims=True)
        shares = np.where(total > 0, values / np.maximum(total, 1), math.nan)
        shown = apart(names, 14)
        heat(axes, shares, shown, shown, low=0, high=1, colours="Greys", digits=2)
        if max(map(len, shown)) > 4:
            axes.tick_params(axis="x", rotation=45)
        axes.axhline(first_positive - 0.5, color=PINK, lw=1)
        axes.axvline(first_positive - 0.5, color=PINK, lw=1)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")

    caption = (
        f"Classes on test, all magnifications together, as shares of each row. The lines part {words[0]} classes "
        f"(first) from {words[1]} ones."
    )
    width = min(max(2.8 + 0.3 * len(names), 4.2), WIDTH)
    return draw("classes", caption, width, 0.77 * width, paint)


def learning(
    stages: Sequence[tuple[str, int, Sequence[float], Sequence[float], Sequence[float]]], drawn: Mapping[int, Look]
) -> Figure:
    """Loss per epoch, one panel per stage: (title, magnification or 0, total, cross-entropy, distillation)."""

    def paint(canvas: Canvas) -> None:
        panels, left = panels_of(canvas, len(stages), sharey=True)
        for axes, (title, magnification, total, cross, distilled) in zip(panels, stages, strict=True):
            epochs = np.arange(1, len(total) + 1)
            colour = drawn[magnification].colour if magnification in drawn else BLUE
            axes.plot(epochs, total, color=colour, label="total", marker="o", ms=3)
            if len(distilled) and np.isfinite(distilled).any() and np.nanmax(np.abs(distilled)) > 0:
                axes.plot(epochs, cross, color=GREY, ls="--", lw=1.1, label="cross-entropy")
                axes.plot(epochs, distilled, color=GREY, ls=":", lw=1.3, label="distillation")
            axes.set_title(title)
            axes.set_xlabel("epoch")
            whole_numbers(axes)
        for axes in left:
            axes.set_ylabel("training loss")
        handles = max((axes.get_legend_handles_labels() for axes in panels), key=lambda each: len(each[0]))
        panels[-1].legend(*handles, loc="best")

    caption = (
        "Learning curves of the best chain: mean training loss per epoch, and its two parts where a teacher teaches."
    )
    return draw("learning", caption, WIDTH, 2.6 * grid_of(len(stages))[0], paint)


def agreement(stages: Sequence[tuple[str, int, Sequence[float]]], drawn: Mapping[int, Look]) -> Figure:
    """Share of images on which student and teacher name the same class, per epoch, one line per stage: (title,
    magnification, shares)."""

    def paint(canvas: Canvas) -> None:
        (axes,) = axes_of(canvas)
        for title, magnification, shares in stages:
            look, epochs = drawn[magnification], np.arange(1, len(shares) + 1)
            axes.plot(epochs, shares, label=title, ms=3.5, color=look.colour, marker=look.marker, ls=look.line)
        axes.set_xlabel("epoch")
        axes.set_ylabel("same class as the teacher")
        whole_numbers(axes)
        axes.legend()

    caption = (
        "Teacher-student agreement of the best chain as each stage trains: share of training images with the same top "
        "class."
    )
    return draw("agreement", caption, 5.6, 2.7, paint)


def depth(seconds: Mapping[int, tuple[float, float]]) -> Figure:
    """Mean seconds of a stage by its depth in the chain: {depth: (train, evaluate)}."""

    def paint(canvas: Canvas) -> None:
        (axes,) = axes_of(canvas)
        places = list(seconds)
        train = [seconds[place][0] for place in places]
        axes.barh(places, train, color=DEPTHS[0], height=0.6, label="train")
        rest = [seconds[place][1] for place in places]
        axes.barh(
            places, rest, left=train, color=DEPTHS[2], height=0.6, label="evaluate", hatch="///", ec="white", lw=0
        )
        axes.set_yticks(places, [f"stage {place}" for place in places])
        axes.invert_yaxis()
        axes.set_xlabel("mean seconds per stage")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    caption = "What a stage costs by its place in the chain: training, and evaluation at every magnification."
    return draw("depth", caption, 6.2, 0.9 + 0.36 * max(len(seconds), 2), paint)


def without_idle(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[float, float]]]:
    """The runs, moved together where no group had work for long, and (where, seconds cut) for each such time. Without
    this a study that went on days later would be two lines at the ends of the axis."""
    ends, busy = -math.inf, 0.0
    idle: list[tuple[float, float]] = []
    for run in sorted(runs, key=lambda each: each.started):
        if run.started > ends > -math.inf:
            idle.append((ends, run.started))
        busy += max(run.finished - max(run.started, ends), 0.0)
        ends = max(ends, run.finished)
    long = [(start, end) for start, end in idle if end - start > max(0.25 * busy, 60.0)]
    kept = 0.02 * busy
    moved = [
        Run(each.group, each.depth, each.started - less, each.finished - less)
        for each in runs
        for less in [sum(end - start - kept for start, end in long if end <= each.started)]
    ]
    cuts = []
    for place, (start, end) in enumerate(long):
        before = sum(one - other - kept for other, one in long[:place])
        cuts.append((start - before + kept / 2, end - start - kept))
    return moved, cuts


def timeline(every: Sequence[Run]) -> Figure:
    """What each worker group did when: one bar per stage, coloured by its place in the chain; long times without work
    are cut out."""
    runs, cuts = without_idle(every)
    groups = sorted({run.group for run in runs})
    scale, unit = (1 / 3600, "hours") if max(run.finished for run in runs) > 7200 else (1 / 60, "minutes")
    if max(run.finished for run in runs) < 180:
        scale, unit = 1.0, "seconds"
    depths = sorted({run.depth for run in runs})
    colours = depth_colours(max(depths))

    def paint(canvas: Canvas) -> None:
        (axes,) = axes_of(canvas)
        for place in depths:
            bars = [run for run in runs if run.depth == place]
            colour = colours[place - 1]
            axes.barh(
                [groups.index(run.group) for run in bars],
                [(run.finished - run.started) * scale for run in bars],
                left=[run.started * scale for run in bars],
                height=0.62,
                color=colour,
                label=f"stage {place}",
                edgecolor="white",
                linewidth=0.3,
            )
        for where, seconds in cuts:
            axes.axvline(where * scale, color=PINK, lw=1.2, ls=(0, (3, 2)))
            axes.annotate(
                f"{duration(seconds)} idle",
                (where * scale, 1.0),
                (3, 2),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
                fontsize=7.5,
            )
        axes.set_yticks(range(len(groups)), apart(groups))
        axes.invert_yaxis()
        axes.set_xlabel(f"{unit} since the first stage started" + (", idle times cut out" if cuts else ""))
        axes.grid(axis="y", visible=False)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.32 if len(groups) < 4 else -0.16), ncols=min(len(depths), 7)
        )

    caption = "Worker groups over time: one bar per stage, coloured by its place in the chain; gaps are waiting." + (
        " Where no group worked for long, the time is cut out at a dashed line that tells how long it was."
        if cuts
        else ""
    )
    legend_rows = math.ceil(len(depths) / LEGEND_COLUMNS)
    return draw("timeline", caption, WIDTH, 1.13 + 0.22 * legend_rows + 0.3 * max(len(groups), 2), paint)
