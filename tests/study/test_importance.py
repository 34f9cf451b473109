"""Importances: known effects are ranked, and many choices or trials do not make it endless."""

import itertools
import random

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from kdtvit_ray.study.importance import importances

ORDERS = [">".join(map(str, order)) for order in itertools.permutations((40, 100, 200, 400))]
SPACE = {
    "order": CategoricalDistribution(ORDERS),
    "temperature": CategoricalDistribution([1.0, 2.0, 4.0, 8.0]),
    "alpha": FloatDistribution(0.0, 1.0),
}


def trials(count: int) -> list[FrozenTrial]:
    """Trials whose value depends strongly on the order's first magnification, weakly on alpha, not on temperature."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        params = {
            "order": draw.choice(ORDERS),
            "temperature": draw.choice([1.0, 2.0, 4.0, 8.0]),
            "alpha": draw.random(),
        }
        value = 0.3 * params["order"].startswith("400") + 0.15 * params["alpha"] + draw.gauss(0, 0.01)
        found.append(create_trial(value=value, params=params, distributions=SPACE))
    return found


# 2^24 combinations of 24 orders, walked in each of 64 trees, would take days
@pytest.mark.parametrize(
    ("count", "fanova"),
    [(200, "fANOVA"), pytest.param(3_000, "fANOVA over 500 of 3000 trials", marks=pytest.mark.slow)],
)
def test_the_known_effects_are_ranked_also_with_all_orders_and_many_trials(count, fanova):
    found = importances(trials(count))
    assert set(found) == {"PED-ANOVA", fanova}
    for shares in found.values():  # PED-ANOVA asks what the best trials have in common, so order and alpha may swap
        assert min(shares, key=shares.get) == "temperature"
        assert sum(shares.values()) == pytest.approx(1.0)
    assert list(found[fanova]) == ["order", "alpha", "temperature"]
    # the variance of 0.3 on a quarter of the orders is 0.0169, that of 0.15 times a uniform value 0.0019
    assert found[fanova]["order"] == pytest.approx(0.9, abs=0.06)


def test_too_few_trials_or_equal_ones_have_none():
    assert importances(trials(3)) == {}
    same = create_trial(value=0.5, params={"temperature": 1.0}, distributions={"temperature": SPACE["temperature"]})
    assert importances([same] * 10) == {}
