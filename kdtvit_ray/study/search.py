"""Suggestions from Optuna, drawn so that the same seed gives the same study however fast its trials finish.

Suggestion n (counted from 0) is drawn by a sampler seeded with (seed, n) from the results of trials 0 .. n - lag, told
in trial order, and from the parameters of the trials after them, which are still open. It depends on nothing else:
not on who finished first, nor on whether the search was interrupted. Going on is therefore replaying: finished trials
are given back with `restore`, and the next suggestion is the one that it would have been.

No setting is tried twice: a suggestion that repeats one is drawn again, and the search ends where a space has no other.

Optuna's in-memory storage serves the search; `study.journal` copies each told trial to a file for optuna-dashboard.
"""

import hashlib
import itertools
import logging
import math
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.study.dimensions import Choices, Dimension, Range
from kdtvit_ray.study.space import Space

REDRAWS = 200
"""How many uniform draws are made for a setting that was not tried yet."""
STATES = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL, "pruned": TrialState.PRUNED}

optuna.logging.set_verbosity(optuna.logging.ERROR)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `state` is complete, failed or pruned; `values` holds one number per objective."""

    state: str
    values: tuple[float, ...] = ()
    stage: int = 0


def _random(seed: int, startup: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _tpe(seed: int, startup: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)


def _nsga2(seed: int, startup: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=startup)


SAMPLERS: dict[str, Callable[[int, int], optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "random": _random,
    "nsga2": _nsga2,
    "grid": _random,  # it never draws: a grid lists its points beforehand
}
"""How each sampler is made from a seed and the study's `startup`."""


class Search:
    """Suggestions for one study. Not thread-safe: one owner asks and tells.

    `tell_observer`, if given, is called with every trial that Optuna has been told of, in the order of trials.
    """

    def __init__(self, space: Space, tell_observer: Callable[[FrozenTrial], None] | None = None) -> None:
        self.space = space
        study = space.study
        self.seed, self.lag, self.total = study["seed"], study["lag"], space.trials
        self.two_objectives = space.two_objectives
        self.in_order = study["reproducible"] and study["pruner"] == "none"
        self.distributions = {name: _distribution(each) for name, each in space.dimensions.items()}
        self.grid = space.grid() if study["sampler"] == "grid" else None
        self.study = optuna.create_study(directions=directions(space), study_name=study["name"] or "study")
        self.observer = tell_observer
        self._asked: list[dict[str, Any]] = []
        self._known: dict[int, tuple[dict[str, Any], Outcome | None]] = {}
        self._waiting: dict[int, Outcome] = {}
        self._told = 0
        self._open: set[int] = set()
        self._tried: set[str] = set()
        self._settings: dict[str, str] = {}
        """What `_setting` has told, by the parameters: the neighbours of a suggestion were asked for before."""
        self._common: Any = None
        """The parameters that the trials have in common, kept by Optuna's object from one sampler to the next."""

    @property
    def exhausted(self) -> bool:
        return len(self._asked) >= self.total

    def restore(
        self, number: int, params: Mapping[str, Any], outcome: Outcome | None = None, ended: bool = False
    ) -> None:
        """Restore a trial of an earlier session: with its outcome, or one that has none and is suggested again with the
        same parameters; one that had `ended` is also where fewer trials are asked for now. To be called before the
        first suggestion."""
        assert not self._asked
        if ended and outcome is None:
            self.total = max(self.total, number + 1)
        self._known[number] = (dict(params), outcome)
        self._tried.add(self._setting(params))

    def suggest(self) -> tuple[int, dict[str, Any]] | None:
        """The next trial to run as (number, parameters); None while earlier results are missing, or at the end."""
        while not self.exhausted and self._may_ask(len(self._asked)):
            number = len(self._asked)
            self._tell_up_to(number - self.lag)
            known, outcome = self._known.pop(number, (None, None))
            if known is not None:
                self._tried.discard(self._setting(known))
            params = self._ask(number, known)
            if params is None:
                log.warning("All %d settings of the space have been tried: the search ends", number)
                self.total = number
                break
            self._asked.append(params)
            self._tried.add(self._setting(params))
            if outcome is None:
                self._open.add(number)
                return number, params
            self._waiting[number] = outcome
            if not self.in_order:
                self._tell(number)
        if self.exhausted and not self._open:
            self._tell_up_to(self.total - 1)
        return None

    def end(self, number: int, outcome: Outcome) -> None:
        """A trial has ended."""
        if number not in self._open:
            return
        self._open.discard(number)
        self._waiting[number] = outcome
        if not self.in_order:
            self._tell(number)
        elif self.exhausted and not self._open:
            self._tell_up_to(self.total - 1)

    def _may_ask(self, number: int) -> bool:
        if self.in_order:
            return all(index in self._waiting for index in range(self._told, number - self.lag + 1))
        ended = self._known.get(number, (None, None))[1] is not None
        return ended or len(self._open) < self.lag

    def _tell_up_to(self, last: int) -> None:
        if self.in_order:
            while self._told <= last:
                self._tell(self._told)
                self._told += 1

    def _tell(self, number: int) -> None:
        outcome = self._waiting.pop(number)
        values = list(outcome.values)
        state = "failed" if any(map(math.isnan, values)) else outcome.state  # an objective that is undefined is none
        if state == "complete":
            self.study.tell(number, values)
        elif state == "pruned" and not self.two_objectives:
            trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
            self.study._storage.set_trial_intermediate_value(trial_id, outcome.stage, values[0])
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, state=TrialState.FAIL)
        if self.observer:
            self.observer(self.study.get_trials(deepcopy=False)[number])

    def _ask(self, number: int, known: dict[str, Any] | None) -> dict[str, Any] | None:
        """The parameters of a new Optuna trial; None, and a failed trial, where no setting is left."""
        if self.grid is not None:
            known = known or self.grid[number]
        # only asking writes the attributes in which NSGA-II keeps its generations, so it is asked again
        if known is not None and not self.two_objectives:
            trial = create_trial(state=TrialState.RUNNING, params=known, distributions=self.distributions)
            self.study.add_trial(trial)
            return dict(known)
        self.study.sampler = self._sampler(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self.study.ask(self.distributions)
        params = dict(trial.params)
        chosen = self._other(number, params) if self._setting(params) in self._tried else params
        if known is not None and chosen != known:
            log.warning("Trial %d was %s, would be %s now, and stays what it was", number, known, chosen)
            chosen = dict(known)
        if chosen is None:
            self.study.tell(number, state=TrialState.FAIL)
            return None
        if chosen != params:  # the trial is asked for already
            for name, distribution in self.distributions.items():
                value = distribution.to_internal_repr(chosen[name])
                self.study._storage.set_trial_param(trial._trial_id, name, value, distribution)
        return chosen

    def _other(self, number: int, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """A setting that was not tried yet in place of one that was; None where there is none. Any for the sampler that
        draws any, and in ranges without steps, which have values enough; else a neighbour that differs in as few values
        as can be, since a sampler that has learned repeats what is good. Depends on the suggestions so far and nothing
        else."""
        rng = random.Random(self._seed(number, again=True))
        any_of = itertools.islice(self.space.samples(rng), REDRAWS)
        near = self.space.neighbours(params, rng)
        without_steps = any(isinstance(each, Range) and not each.step for each in self.space.dimensions.values())
        any_first = without_steps or self.space.study["sampler"] == "random"
        candidates = (any_of, near) if any_first else (near, any_of)
        return next((each for each in itertools.chain(*candidates) if self._setting(each) not in self._tried), None)

    def _setting(self, params: Mapping[str, Any]) -> str:
        """`Space.setting`, worked out once."""
        told = repr(sorted(params.items()))  # not the values themselves, of which 1, 1.0 and True are equal
        if told not in self._settings:
            self._settings[told] = self.space.setting(params)
        return self._settings[told]

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """The sampler of one suggestion."""
        study = self.space.study
        sampler: Any = SAMPLERS[study["sampler"]](self._seed(number), study["startup"])
        if hasattr(sampler, "_search_space"):  # a new one would go through all trials again
            self._common = sampler._search_space = self._common or sampler._search_space
        return sampler

    def _seed(self, number: int, again: bool = False) -> int:
        text = f"{self.seed}:{number}" + ":again" * again
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def directions(space: Space) -> list[str]:
    """Which way each objective is better, as Optuna calls it."""
    quality = "minimize" if space.study["metric"] in LOWER_IS_BETTER else "maximize"
    return [quality, "minimize"] if space.two_objectives else [quality]


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(list(dimension.values))
    low, high = dimension.ends  # of a range that its step does not divide, Optuna warns
    if dimension.integer:
        return IntDistribution(int(low), int(high), log=dimension.log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=dimension.step)
