"""What searched settings did to the objective, by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kdtvit_ray.results.effects import effects, ratio_of_test_to_train, settings_table
from kdtvit_ray.results.statistics import group_test, holm


def tried(temperature, objective, metric="auc", order="40>100>200"):
    """A study whose settings have these temperatures by stage, and two students in turn."""
    count = len(objective)
    settings = pd.DataFrame(
        {
            "order": order if isinstance(order, list) else [order] * count,
            "student": ["micro", "tiny"] * (count // 2),
            "teacher": "tiny",
            "temperature": [json.dumps(each) for each in temperature],
            "alpha": json.dumps([0.5, 0.5]),
            "loss": "kd",
            "warm_start": True,
            "params": "{}",
            "objective": objective,
        }
    )
    return SimpleNamespace(settings=settings, metric=metric)


def test_each_stage_has_the_value_of_its_place():
    """Stage 1 does not distil: the first value is stage 2's."""
    study = tried([[1.0, 2.0], [4.0, 8.0], [2.0], []], [0.7, 0.8, 0.8, 0.9])
    table = settings_table(study.settings)
    np.testing.assert_array_equal(table["temperature.2"], [1.0, 4.0, 2.0, np.nan])
    np.testing.assert_array_equal(table["temperature.3"], [2.0, 8.0, np.nan, np.nan])
    assert "temperature.4" not in table


@pytest.mark.parametrize(("metric", "best"), [("auc", max), ("brier", min)])
def test_an_effect_by_hand(metric, best):
    objective = [0.10, 0.62, 0.15, 0.63, 0.30, 0.64, 0.25, 0.65]
    orders = ["40>100>200", "100>40>200"] * 2 + ["200>40>100", "40>200>100"] * 2
    study = tried([[1.0, 1.0]] * 4 + [[4.0, 4.0]] * 4, objective, metric, orders)
    found = {each.setting: each for each in effects(study.settings, study.metric)}
    line = found["temperature"].table.set_index("value").loc[4.0]
    assert (line["n"], line["mean"]) == (4, pytest.approx(np.mean(objective[4:])))
    assert line["best"] == best(objective[4:])
    groups = {
        "order": orders,
        "student": ["micro", "tiny"] * 4,
        "temperature": [1] * 4 + [4] * 4,
    }
    raw = {name: group_test(objective, values) for name, values in groups.items()}
    assert {name: found[name].p for name in raw} == pytest.approx(raw)
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    assert {name: found[name].p_holm for name in raw} == pytest.approx(corrected), "first and last are no settings"
    assert corrected["student"] > raw["student"] > 0
    assert found["first"].p_holm == found["first"].p


def test_test_over_train_is_in_images():
    splits = {"test": {"images": 20}, "train": {"images": 80}}
    assert ratio_of_test_to_train(SimpleNamespace(plain={"data": {"splits": splits}})) == 0.25
