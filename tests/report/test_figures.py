"""What the figures decide by themselves: fronts, and which idle times the timeline leaves out."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure as Canvas

from kdtvit_ray.report import curves, figures, style, trust_figures
from kdtvit_ray.report.curves import Run, timeline, without_idle
from kdtvit_ray.report.size_figure import Size, pareto, sizes
from kdtvit_ray.report.tables import Estimate


def size(name, objective, parameters, milliseconds, rate, test=0.7):
    return Size(name, objective, Estimate(test), parameters, milliseconds, rate)


STUDENTS = [
    size("micro", 0.80, 1e6, 9.0, 100.0),
    size("tiny", 0.85, 5e6, 2.0, 900.0),
    size("small", 0.90, 2e7, 5.0, 300.0),
    size("worse", 0.79, 2e7, 6.0, 50.0),
    size("twin", 0.90, 2e7, 5.0, 300.0),
    size("unmeasured", math.nan, 1e3, 0.1, 1e6),
]


def test_each_front_is_that_of_its_own_cost():
    assert pareto(STUDENTS, lambda each: each.parameters) == ["micro", "tiny", "small", "twin"]
    assert pareto(STUDENTS, lambda each: each.milliseconds) == ["tiny", "small", "twin"]
    assert pareto(STUDENTS, lambda each: -each.rate) == ["tiny", "small", "twin"]


def test_the_front_is_chosen_on_validation_whatever_test_says():
    students = [size("small", 0.9, 1e6, 1.0, 1.0, test=0.6), size("large", 0.8, 2e6, 2.0, 2.0, test=0.95)]
    assert pareto(students, lambda each: each.parameters) == ["small"]
    caption = sizes(students, "auc", "mean validation AUC").caption
    assert "Dots are the mean validation AUC" in caption
    assert "take no part in the front" in caption


def test_the_figure_has_a_panel_for_each_measured_cost():
    drawn = sizes(STUDENTS[:3], "auc", "mean validation AUC")
    for label in ("parameters (millions)", "latency at batch 1", "throughput at batch 32"):
        assert label in drawn.inline
    assert "throughput" not in sizes([size("micro", 0.8, 1e6, 9.0, math.nan)], "auc", "mean validation AUC").inline


def painted(monkeypatch, module, make):
    """The axes of a figure as matplotlib has them, before it is rendered."""
    kept = []

    def keep(name, caption, width, height, paint):
        kept.append(Canvas(figsize=(width, height)))
        paint(kept[0])

    monkeypatch.setattr(module, "draw", keep)
    make()
    return kept[0].axes


def test_intervals_of_orders_reach_as_far_as_the_metric_does(monkeypatch):
    rows = [("40>100", Estimate(1.2, 1.1, 1.3), 3), ("100>40", Estimate(1.6, 1.4, 1.8), 2)]
    (axes,) = painted(monkeypatch, figures, lambda: figures.orders(rows, "mean validation log loss", "2 settings"))
    bars = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert bars == [[1.1, 1.3], [1.4, 1.8]]
    assert [text.xy[0] for text in axes.texts] == [1.3, 1.8], "n = stands at the end of the bar"


def test_labels_that_are_cut_stay_different(monkeypatch):
    names = [f"class of tissue number {place:02d} of the atlas" for place in range(3)]
    counts, words = np.eye(3, dtype=int), ("negative side", "negative part")
    (axes,) = painted(monkeypatch, curves, lambda: curves.classes(names, counts, 1, words))
    for shown in (axes.get_xticklabels(), axes.get_yticklabels()):
        labels = [each.get_text() for each in shown]
        assert labels == ["1 class of t\u2026", "2 class of t\u2026", "3 class of t\u2026"], (
            "neither end tells them apart"
        )
    # bars of one label would be one bar
    shares = {f"training.first_stage.weight_decay_{name}": 0.4 for name in ("head", "body")}
    (axes,) = painted(monkeypatch, figures, lambda: figures.importance("fANOVA", shares, "2 settings"))
    labels = [each.get_text() for each in axes.get_yticklabels()]
    assert len(set(labels)) == len(axes.patches) == 2
    assert [label.endswith(name) for label, name in zip(labels, ("head", "body"), strict=True)] == [True, True]
    assert style.apart(["40>100", "a" * 40]) == ["40>100", "a" * 25 + "\u2026"]


@pytest.mark.parametrize("metric", ["AUC", "Brier score"])
def test_overtuning_is_told_in_words_for_metrics_of_either_direction(metric):
    caption = trust_figures.incumbents([0, 1], [0.2, 0.1], [0.2, 0.3], f"mean {metric}").caption
    assert "where the dashed line gets worse while the other gets better, it follows chance" in caption


def test_letters_that_the_font_lacks_are_told_in_the_caption_and_not_on_the_terminal():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = ("\u60aa\u6027", "malignant")
        drawn, plain = (
            figures.orders([(each, Estimate(0.8, 0.7, 0.9), 3)], f"{each} AUC", "2 settings") for each in names
        )
    assert "The font of the PNG file lacks some letters" in drawn.caption
    assert "\u60aa\u6027" in drawn.svg.decode()
    assert "lacks some letters" not in plain.caption


def test_other_warnings_of_a_figure_are_passed_on():
    with pytest.warns(UserWarning, match="mine"):
        style.draw("name", "caption", 2, 1, lambda canvas: warnings.warn("mine", stacklevel=1))


DAY = 86_400.0


def test_days_without_work_are_cut_out_and_told():
    runs = [Run("a", 1, 0, 600), Run("b", 2, 300, 900), Run("a", 3, 2 * DAY, 2 * DAY + 300)]
    moved, cuts = without_idle(runs)
    assert moved[:2] == runs[:2]
    ((where, seconds),) = cuts
    assert 900 < where < moved[2].started < 930
    assert moved[2].finished - moved[2].started == 300
    assert seconds == runs[2].started - moved[2].started
    assert "47 h 44 min idle" in timeline(runs).inline


def test_short_waits_stay():
    runs = [Run("a", 1, 0, 600), Run("a", 2, 650, 900), Run("b", 3, 1_000, 1_500)]
    assert without_idle(runs) == (runs, [])


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.990, 1.000], (0.9, 1.0)),  # no colour for a value above 1
        ([0.50, 0.52], (0.46, 0.56)),
        ([0.0, 0.02], (0.0, 0.1)),
        ([1.30, 1.32], (1.26, 1.36)),  # a log loss may lie above 1
        ([0.7, 0.7], (0.65, 0.75)),
        ([0.6, 0.9], (0.6, 0.9)),
        ([math.nan, 0.98], (0.9, 1.0)),
    ],
)
def test_a_small_difference_is_no_large_one_in_colours(monkeypatch, values, scale):
    matrix = figures.Matrix("best chain", ["1: 40X"], ["40X", "100X"], [values])
    first = painted(monkeypatch, figures, lambda: figures.forgetting([matrix], "test AUC"))[0]
    assert first.images[0].get_clim() == pytest.approx(scale)


@given(st.lists(st.floats(0, 3), min_size=1, max_size=9), st.sampled_from([0.0, figures.LEAST_SPAN]))
def test_a_scale_holds_all_values_and_is_long_enough(values, least):
    low, high = figures._scale(np.array(values), least)
    slack = 1e-9
    assert low - slack <= min(values) <= max(values) <= high + slack
    assert high > low
    assert high - low >= least - slack
    assert low >= min(0.0, *values)
    assert high <= max(1.0, max(values) + figures.LEAST_SPAN) + slack


def test_a_figure_is_shown_by_its_name_and_caption():
    drawn = figures.orders([("40>100", Estimate(0.8, 0.7, 0.9), 3)], "AUC", "2 settings")
    assert repr(drawn) == f"Figure(name='orders', caption={drawn.caption!r})"


def test_where_lower_is_better_the_front_is_that_of_the_lowest():
    cheap, good, bad = (
        size("cheap", 0.3, 1e6, 1.0, 1.0),
        size("good", 0.1, 2e6, 1.0, 1.0),
        size("bad", 0.4, 3e6, 1.0, 1.0),
    )
    assert pareto([cheap, good, bad], lambda each: each.parameters, "brier") == ["cheap", "good"]
    assert pareto([cheap, good, bad], lambda each: each.parameters, "auc") == ["cheap", "bad"]
