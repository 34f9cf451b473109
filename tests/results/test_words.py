"""One wording for each thing, wherever a reader meets it."""

import math

import pytest

from kdtvit_ray.recipe import BASELINES
from kdtvit_ray.results.words import (
    BASELINE_NAMES,
    amount,
    baseline_label,
    baseline_name,
    duration,
    joined,
    listed,
    metric_name,
    p_value,
    points,
    searched_training,
)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (75, "1 min 15 s"), (3_599, "59 min 59 s"), (3_661, "1 h 01 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("p", "words"), [(0.5337, "p = 0.534"), (0.0123, "p = 0.012"), (0.001, "p = 0.001"), (1e-5, "p < 0.001")]
)
def test_p_values(p, words):
    assert p_value(p) == words


def test_every_baseline_has_a_name_and_other_chains_keep_theirs():
    assert tuple(BASELINE_NAMES) == BASELINES
    assert baseline_label("sequential") == "Sequential fine-tuning without distillation"
    assert baseline_name("t0007") == baseline_label("t0007") == "t0007"


def test_metrics_points_and_lists():
    assert [metric_name(each) for each in ("auc", "balanced_accuracy", "recall")] == [
        "AUC",
        "balanced accuracy",
        "recall",
    ]
    assert [points(each) for each in (0.0123, 0.0001, 0.0, -0.0)] == ["1.2", "0.01", "0.0", "0.0"]
    assert points(math.nan) == "nan"
    nats = [amount(each, "log_loss") for each in (4.963, 0.0513, -0.0001)]
    assert nats == ["4.963 nats", "0.051 nats", "0.000 nats"], "log loss is no share of one"
    assert amount(0.0123, "brier") == "1.2 points"
    assert listed([4.0, 4.0, 4.0]) == "4"
    assert listed([4.0, 2.0], "/") == "4/2"
    assert listed([]) == ""
    assert [joined(each) for each in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_searched_training_settings_are_told_as_a_space_names_them():
    given = {"order": "40>100", "training.lr": 0.001, "training.later.trainable_blocks": 2, "training.stain": "hed"}
    told = "training.lr 0.001, training.later.trainable_blocks 2, training.stain hed"
    assert searched_training(given) == told
    assert searched_training({"temperature": 4.0}) == ""
