"""The figure of student sizes: what the best chain of each size reaches, what it costs, and which sizes are on the
front of both."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas

from kdtvit_ray.metrics import gain
from kdtvit_ray.report.style import GREY, INK, PINK, WIDTH, Figure, axes_of, draw, short
from kdtvit_ray.report.tables import Estimate
from kdtvit_ray.results.words import metric_name


@dataclass(frozen=True)
class Size:
    """The best chain of one student: its objective, its value on test, its parameters,
    milliseconds per image at batch 1 and images per second at batch 32 (NaN where not measured)."""

    name: str
    objective: float
    test: Estimate
    parameters: float
    milliseconds: float
    rate: float


def pareto(students: Sequence[Size], cost: Callable[[Size], float], metric: str = "auc") -> list[str]:
    """Names on the front of the objective, in a metric, and `cost`: no other student is at least as good at no more
    cost and better in one of the two. Test plays no part: what is chosen on test looks too good on it."""
    known = [each for each in students if math.isfinite(each.objective) and math.isfinite(cost(each))]
    value = {each.name: (gain(metric, each.objective), -cost(each)) for each in known}

    def beaten(name: str) -> bool:
        mine = value[name]
        return any(theirs != mine and theirs[0] >= mine[0] and theirs[1] >= mine[1] for theirs in value.values())

    return [name for name in value if not beaten(name)]


def sizes(students: Sequence[Size], metric: str, objective: str) -> Figure:
    """Objective and test against parameters, latency and throughput, each with the objective's Pareto front."""
    every: list[tuple[str, Callable[[Size], float], Callable[[Size], float]]] = [
        ("parameters (millions)", lambda each: each.parameters / 1e6, lambda each: each.parameters),
        ("latency at batch 1 (ms)", lambda each: each.milliseconds, lambda each: each.milliseconds),
        ("throughput at batch 32 (images/s)", lambda each: each.rate, lambda each: -each.rate),  # more is better
    ]
    measured = [(*plot, [each for each in students if math.isfinite(plot[1](each))]) for plot in every]
    plots = [(label, across, shown, pareto(shown, cost, metric)) for label, across, cost, shown in measured if shown]

    def paint(canvas: Canvas) -> None:
        panels = axes_of(canvas, 1, len(plots), sharey=True)
        for axes, (label, across, shown, front) in zip(panels, plots, strict=True):
            marked = sorted((across(each), each.objective) for each in shown if each.name in front)
            axes.plot([x for x, _ in marked], [y for _, y in marked], color=PINK, ls="--", lw=1, zorder=1)
            for each in shown:
                if each.test.bounded:
                    axes.plot([across(each)] * 2, [each.test.low, each.test.high], color=GREY, lw=1.2, zorder=2)
                axes.plot(across(each), each.test.value, "_", color=GREY, ms=11, mew=1.6, zorder=2)
                fill = INK if each.name in front else "none"
                axes.plot(across(each), each.objective, "o", color=INK, mfc=fill, ms=6.5)
                axes.annotate(
                    short(each.name),
                    (across(each), each.objective),
                    (8, 5),
                    textcoords="offset points",
                    fontsize=8,
                    color=INK,
                )
            axes.set_xlabel(label)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
            values = [across(each) for each in shown]
            ticks: list[float] = []
            for value in sorted({float(f"{value:.3g}") for value in values}):
                # a label beside one that is nearly the same would lie on it
                if not ticks or math.log(value / ticks[-1]) > 0.12 * math.log(max(values) / min(values)):
                    ticks.append(value)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.margins(x=0.3 if len(panels) > 2 else 0.18, y=0.15)
        panels[0].set_ylabel(f"mean {metric_name(metric)}")

    caption = (
        f"The best chain of each student size against size and measured speed. Dots are the {objective}, "
        "which chose the chain; filled ones on the dashed line are on its Pareto front. Grey bars are the same chains "
        f"on test, mean {metric_name(metric)} with its 95 % interval: they take no part in the front, since what is "
        "chosen on test looks too good on it."
    )
    return draw("sizes", caption, WIDTH if len(plots) > 1 else WIDTH / 2, 3.1, paint)
