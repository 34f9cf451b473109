"""What the figures decide by themselves: fronts, and which idle times the timeline leaves out."""

import math

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


def test_where_lower_is_better_the_front_is_that_of_the_lowest():
    cheap, good, bad = (
        size("cheap", 0.3, 1e6, 1.0, 1.0),
        size("good", 0.1, 2e6, 1.0, 1.0),
        size("bad", 0.4, 3e6, 1.0, 1.0),
    )
    assert pareto([cheap, good, bad], lambda each: each.parameters, "brier") == ["cheap", "good"]
    assert pareto([cheap, good, bad], lambda each: each.parameters, "auc") == ["cheap", "bad"]
