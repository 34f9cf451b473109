"""Suggestions: a function of seed and earlier results alone, however trials finish and however often it is resumed."""

import random
import warnings
from collections import Counter

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtvit_ray.study.dimensions import Range
from kdtvit_ray.study.journal import Journal
from kdtvit_ray.study.search import Outcome, Search, _distribution, directions
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.space_notes import notes


def space(sampler="tpe", **study):
    return Space(
        {
            "study": {"sampler": sampler, "trials": 30, "lag": 5, "startup": 6, **study},
            "search": {
                "temperature": [1, 2, 4, 8],
                "alpha": [0.3, 0.6, 0.9],
                "order": "first",
                "student": ["micro", "tiny"],
            },
        }
    )


def quality(params):
    return params["alpha"] / 10 + (params["order"][:2] == "40") / 5 - abs(params["temperature"] - 4) / 30


def values(sampler, params):
    parameters = (9.0 if params["student"] == "tiny" else 5.0,) if sampler == "nsga2" else ()
    return (quality(params), *parameters)


def run(sampler, chaos, kills=(), **study):
    """A whole study; trials finish in random order; after each number of `kills` results it starts anew."""
    rng = random.Random(chaos)
    search, running, seen, ended = Search(space(sampler, **study)), [], {}, {}
    while True:
        suggested = search.suggest()
        if suggested:
            running.append(suggested)
            seen[suggested[0]] = suggested[1]
        elif running:
            number, params = running.pop(rng.randrange(len(running)))
            outcome = Outcome("failed") if number % 11 == 7 else Outcome("complete", values(sampler, params))
            ended[number] = params, outcome
            search.end(number, outcome)
            if len(ended) in kills:
                search, running = Search(space(sampler, **study)), []
                for each, (known, how) in ended.items():
                    search.restore(each, known, how)
        else:
            return search, [seen[number] for number in sorted(seen)]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "nsga2"])
def test_the_same_seed_gives_the_same_study_whoever_finishes_first_and_whatever_is_killed(sampler):
    study = {"trials": 20} if sampler == "grid" else {}
    _, plain = run(sampler, 0, **study)
    for seed, kills in ((1, ()), (2, (3, 11, 12, 19)), (3, (1, 2, 4, 8, 16))):
        assert run(sampler, seed, kills, **study)[1] == plain


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_restored_trial_stays_what_it_was_though_it_would_be_drawn_otherwise_now(sampler, caplog):
    """As after a failed trial that was run again and told the sampler something else."""
    _, plain = run(sampler, 0)
    search = Search(space(sampler))
    values = (0.5, 9.0) if sampler == "nsga2" else (0.5,)
    for number, params in enumerate(plain[:15]):
        other = next(each for each in space(sampler).points() if each not in plain)
        search.restore(number, other if number == 12 else params, Outcome("complete", values))
    number, _ = search.suggest()
    assert number == 15
    found = [dict(trial.params) for trial in search.study.trials[:15]]
    assert found == [*plain[:12], other, *plain[13:15]]
    assert ("stays what it was" in caplog.text) == (sampler == "nsga2"), "others are not asked for again"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_trial_costs_no_copy_of_all_others(sampler, monkeypatch):
    """Optuna's `Study.trials` copies every trial: with ASHA and 4,000 of them a minute a trial."""
    search = Search(space(sampler, reproducible=False, pruner="asha", objective_folds=1))
    monkeypatch.setattr(optuna.Study, "trials", property(lambda _: pytest.fail("all trials are copied")))
    for number in range(12):
        search.suggest()
        outcome = Outcome("pruned", (0.3,), stage=2) if number % 2 else Outcome("complete", (0.7,))
        search.end(number, outcome)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_what_is_kept_between_suggestions_changes_none(sampler, monkeypatch):
    _, kept = run(sampler, 4, trials=50)
    monkeypatch.setattr(Search, "_setting", lambda search, params: search.space.setting(params))
    plain = Search._sampler

    def forgetful(search, number):
        search._common = None
        return plain(search, number)

    monkeypatch.setattr(Search, "_sampler", forgetful)
    assert run(sampler, 4, trials=50)[1] == kept


def test_a_setting_is_worked_out_once_and_the_trials_in_common_once(monkeypatch):
    asked, walked = [], []

    def told(params):
        return str(sorted(params.items()))

    setting, calculate = Space.setting, optuna.search_space.intersection._calculate
    monkeypatch.setattr(Space, "setting", lambda made, params: asked.append(told(params)) or setting(made, params))

    def counted(trials, pruned, found, before):
        walked.append(sum(trial.number >= before for trial in trials))
        return calculate(trials, pruned, found, before)

    monkeypatch.setattr(optuna.search_space.intersection, "_calculate", counted)
    run("tpe", 0, trials=60)
    assert max(Counter(asked).values()) == 2, "once in the search, once before it, to count the settings"
    assert max(walked) < 20, "of 60 trials those since the last one that was open"


def test_another_seed_gives_another_study():
    assert run("tpe", 0)[1] != run("tpe", 0, seed=1)[1]


@given(st.integers(-20, 50), st.integers(1, 40), st.integers(2, 12), st.sampled_from([1, 2, 3, 4]))
def test_all_values_of_a_range_with_steps_are_optunas(low, step, count, places):
    """Of lows and steps with up to four decimals."""
    high = (low + (count - 1) * step) / 10**places
    low, step = low / 10**places, step / 10**places
    within = Range(low, high, step=step)
    distribution = _distribution(within)
    values = within.grid()
    assert (within.count, within.ends) == (count, (distribution.low, distribution.high))
    assert all(distribution._contains(value) for value in values)
    assert values[-1] == pytest.approx(high, abs=1e-12)
    assert len(set(values)) == count


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "nsga2"])
@pytest.mark.parametrize("high", [0.3, 0.7])
def test_a_range_with_steps_is_tried_to_its_last_value(tmp_path, sampler, high):
    plain = {"alpha": {"low": 0.1, "high": high, "step": 0.1}}
    made = Space({"study": {"sampler": sampler, "trials": 20, "lag": 2, "startup": 2}, "search": plain})
    drawn = {}
    for session in range(2):  # the second one replays the first
        search = Search(made, Journal(str(tmp_path / "journal.log"), "study", directions(made)).add)
        for number, params in drawn.items():
            search.restore(number, params, Outcome("complete", outcome(sampler, params)))
        while (suggested := search.suggest()) is not None:
            assert not session
            number, params = suggested
            drawn[number] = params
            search.end(number, Outcome("complete", outcome(sampler, params)))
        assert search.exhausted
        assert len({each["alpha"] for each in drawn.values()}) == round(high * 10)
        assert max(each["alpha"] for each in drawn.values()) == high


@pytest.mark.parametrize(
    "training", [{"lr": {"low": 0.1, "high": 0.35, "step": 0.1}}, {"epochs": {"low": 2, "high": 9, "step": 3}}]
)
def test_a_range_that_its_step_does_not_divide_is_searched_without_a_warning(training):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = Search(Space({"study": {"trials": 3, "lag": 3}, "search": {"training": training}}))
        assert all(search.suggest() for _ in range(3))
    (distribution,) = search.distributions.values()
    assert distribution.high == {"lr": 0.3, "epochs": 8}[next(iter(training))]


def outcome(sampler, params):
    return (params["alpha"], 1.0) if sampler == "nsga2" else (params["alpha"],)


def test_results_steer_the_search():
    everywhere = [quality(params) for params in space().points()]
    best = sorted(everywhere)[-10:]
    for seed in range(3):
        _, suggested = run("tpe", 0, trials=30, seed=seed)
        drawn = [quality(params) for params in suggested[10:]]
        assert sum(drawn) / len(drawn) > sum(everywhere) / len(everywhere) + 0.05
        assert sum(each >= best[0] for each in drawn) >= 6  # of ten in ninety-six


def test_no_more_than_lag_trials_are_open_and_every_trial_is_told_in_order():
    told = []
    search = Search(space(), lambda trial: told.append(trial.number))
    numbers = [search.suggest()[0] for _ in range(5)]
    assert search.suggest() is None
    for number in reversed(numbers[1:]):
        search.end(number, Outcome("complete", (0.5,)))
    assert search.suggest() is None, "trial 5 needs the result of trial 0"
    assert told == []
    search.end(0, Outcome("complete", (0.4,)))
    assert search.suggest()[0] == 5
    assert told == [0], "suggestion 5 is drawn from the results up to trial 0 alone"


def test_results_as_they_come_do_not_wait():
    search = Search(space(reproducible=False))
    for _ in range(5):
        search.suggest()
    search.end(3, Outcome("complete", (0.5,)))
    assert search.suggest()[0] == 5


def test_failed_and_pruned_trials_are_told_as_such():
    search = Search(space(reproducible=False, trials=3, pruner="asha", objective_folds=1))
    for _ in range(3):
        search.suggest()
    search.end(0, Outcome("failed"))
    search.end(1, Outcome("pruned", (0.3,), stage=2))
    search.end(2, Outcome("complete", (0.7,), stage=4))
    states = [trial.state.name for trial in search.study.trials]
    assert states == ["FAIL", "PRUNED", "COMPLETE"]
    assert search.study.trials[1].intermediate_values == {2: 0.3}


def test_an_objective_that_is_undefined_is_told_as_a_failure():
    search = Search(space(reproducible=False, trials=2, pruner="asha", objective_folds=1))
    for number, state in enumerate(("complete", "pruned")):
        search.suggest()
        search.end(number, Outcome(state, (float("nan"),), stage=2))
    assert [trial.state.name for trial in search.study.trials] == ["FAIL", "FAIL"]
    two = Search(space("nsga2", trials=1))
    two.suggest()
    two.end(0, Outcome("complete", (float("nan"), 5.0)))
    assert [trial.state.name for trial in two.study.trials] == ["FAIL"]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_results_count_from_the_end_of_the_startup_on(sampler):
    def drawn(sign):
        search, seen = Search(space(sampler, startup=20, lag=1)), []
        while (suggested := search.suggest()) is not None:
            number, params = suggested
            seen.append(params)
            (first, *rest) = values(sampler, params)
            search.end(number, Outcome("complete", (sign * first, *rest)))
        return seen

    one, other = drawn(1), drawn(-1)
    assert one[:20] == other[:20]
    assert one[20:] != other[20:]


SMALL_SPACE = {"temperature": [1, 2], "alpha": [0.0, 0.5], "order": ["40>100>200>400", "400>200>100>40"]}
DIFFERENT = 6  # where alpha is 0, the temperature changes nothing


def settings_tried(sampler, trials, lag=4, until=None, restore=()):
    made = Space({"study": {"sampler": sampler, "trials": trials, "startup": 3, "lag": lag}, "search": SMALL_SPACE})
    search = Search(made)
    for number, params in enumerate(restore):
        search.restore(number, params, Outcome("complete", measured(made, params)))
    tried = list(restore)
    while (found := search.suggest()) and len(tried) != until:
        number, params = found
        assert number == len(tried)
        tried.append(params)
        search.end(number, Outcome("failed") if number == 1 else Outcome("complete", measured(made, params)))
    return made, search, tried


def measured(made, params):
    return (quality(params), 1.0) if made.two_objectives else (quality(params),)


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "nsga2"])
def test_no_setting_is_tried_twice_and_the_search_ends_where_all_have_been_tried(sampler):
    made, search, tried = settings_tried(sampler, trials=30)
    assert len(tried) == DIFFERENT == len({made.setting(each) for each in tried})
    assert made.trials == search.total == DIFFERENT
    assert search.exhausted
    assert "6 different settings, fewer than the 30 trials asked for" in notes(made)[0]


def test_a_space_that_turns_out_to_be_too_small_ends_the_search():
    # so many points that they are not counted beforehand, and nearly all of them the same setting
    search = {"temperature": {"low": 1, "high": 5, "step": 0.001}, "alpha": [0.0]}
    made = Space({"study": {"sampler": "tpe", "trials": 9, "startup": 3, "lag": 2}, "search": search})
    found = Search(made)
    assert made.trials == 9
    number, _ = found.suggest()
    found.end(number, Outcome("complete", (0.5,)))
    assert found.suggest() is None
    assert found.exhausted
    assert found.total == 1


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_goes_on_draws_what_it_would_have_drawn(sampler):
    whole = settings_tried(sampler, trials=5)[2]
    begun = settings_tried(sampler, trials=5, until=3)[2]
    assert settings_tried(sampler, trials=5, restore=begun[:3])[2] == whole
