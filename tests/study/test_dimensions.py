"""What is searched as values: counted, listed and drawn; and how much work a space makes of it."""

import random
from collections import Counter

import pytest

from kdtvit_ray.study.dimensions import Range
from kdtvit_ray.study.search import Outcome, Search
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.space_notes import ALPHA_NOTE, ASHA_NOTE, notes, trials_told


def space(trials, sampler="tpe", **search):
    return Space({"study": {"sampler": sampler, "trials": trials, "lag": 1, "startup": 2}, "search": search})


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "nsga2"])
def test_a_range_of_whole_numbers_is_searched_to_its_last_value(sampler, log):
    made = space(20, sampler, training={"epochs": {"low": 2, "high": 9, "log": log}})
    assert made.trials == 8
    assert "8 different settings, fewer than the 20 trials asked for" in notes(made)[0]
    search, tried = Search(made), []
    while (found := search.suggest()) is not None:
        tried.append(found[1]["training.epochs"])
        search.end(found[0], Outcome("complete", (0.5, 1.0)[: 1 + made.two_objectives]))
    assert sorted(tried) == list(range(2, 10))
    assert all(type(each) is int for each in tried)


def test_nearly_all_of_many_whole_numbers_are_tried():
    """The last ones are hardly found by chance."""
    made = space(300, "random", training={"batch": {"low": 1, "high": 300}})
    search = Search(made)
    for number in range(299):
        search.restore(number, {"training.batch": number + 1}, Outcome("complete", (0.5,)))
    assert search.suggest() == (299, {"training.batch": 300})


def test_a_range_of_real_numbers_or_of_too_many_whole_ones_is_not_counted():
    assert Range(0.1, 0.3).count is None
    assert Range(1, 10_000_000, integer=True).count is None
    assert space(20, training={"lr": {"low": 1e-4, "high": 1e-2}}).trials == 20


@pytest.mark.parametrize(
    "within", [Range(0.1, 0.75, step=0.1), Range(2, 30, step=7, integer=True), Range(1.0, 2.0, step=1e-5)]
)
def test_a_draw_is_one_of_the_listed_values(within):
    values, one, other = within.grid(), random.Random(7), random.Random(7)
    assert [within.draw(one) for _ in range(50)] == [other.choice(values) for _ in range(50)]


def test_settings_are_told_apart_once_in_a_space(monkeypatch):
    told = Counter()

    def setting(self, params, known=Space.setting):
        told[self.baseline] += 1
        return known(self, params)

    monkeypatch.setattr(Space, "setting", setting)
    made = space(10, "grid", temperature=[1, 2, 4], alpha=[0.3, 0.6])
    assert (made.trials, notes(made) != [], len(made.grid()), Search(made).total) == (6, True, 6, 6)
    assert told[""] == 6
    turned = made.in_order_of(["alpha"])
    assert turned.trials == 6
    assert turned.grid() != made.grid()
    assert made.at_fold(2).grid() == made.grid()


def repeating(points, **study):
    """Many points, and one setting of each student: where alpha is 0 the temperature decides nothing."""
    temperature = [1 + each / 1000 for each in range(points)]
    return Space(
        {
            "study": {"trials": 8, "startup": 3, "objective_folds": 1, "baselines": [], **study},
            "search": {"alpha": [0.0], "temperature": temperature, "student": ["micro", "tiny"]},
        }
    )


def test_settings_are_counted_where_the_points_are_few_enough():
    few, many = repeating(49), repeating(300)
    assert (few.trials, trials_told(few)) == (2, "2")
    assert "2 different settings, fewer than the 8 trials" in notes(few)[0]
    assert (many.trials, trials_told(many), notes(many)) == (8, "at most 8", [])
    assert trials_told(space(8, temperature=list(range(1, 21)), alpha={"low": 0.1, "high": 1.0})) == "8"


@pytest.mark.parametrize("reproducible", [True, False])
def test_a_pruner_that_lets_no_study_be_repeated_is_told_of(reproducible):
    asked = {"pruner": "asha", "objective_folds": 1, "reproducible": reproducible}
    assert (ASHA_NOTE in notes(Space({"study": asked}))) == reproducible
    assert ASHA_NOTE not in notes(Space({}))


@pytest.mark.parametrize(
    ("chain", "search", "told"),
    [
        ({"alpha": 1.0}, {}, True),
        ({"alpha": 1.0, "warm_start": False}, {}, False),
        ({"alpha": 1.0, "order": "40"}, {}, False),
        ({"alpha": 1.0, "order": "40>100"}, {}, True),
        ({"alpha": 1.0, "order": "40>100", "student": "tiny"}, {}, False),  # larger, so it starts cold
        ({"alpha": 1.0, "order": "40>100>200", "student": "tiny"}, {}, True),  # from stage 3 on it is its own teacher
        ({"alpha": 1.0}, {"alpha": [0.3, 0.9]}, False),
        ({}, {"alpha": [0.5, 1.0]}, True),
        ({}, {"alpha": {"per_stage": [0.5, 1.0]}}, True),
        ({}, {"alpha": {"low": 0.1, "high": 1.0}, "warm_start": [True, False]}, True),
        ({"order": "40>100", "student": "tiny"}, {"alpha": [1.0], "student": ["micro", "tiny"]}, True),
    ],
)
def test_a_student_that_is_its_own_teacher_is_told_of(chain, search, told):
    assert (ALPHA_NOTE in notes(Space({"study": {"baselines": []}, "chain": chain, "search": search}))) == told
