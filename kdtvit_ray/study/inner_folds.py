"""Judges settings over inner folds: which chains a setting still needs, when racing drops it, and its objective.

Racing: the first `racing_folds` inner folds of a setting run side by side, each further one only while the setting is
not clearly behind the best setting that was complete when it was suggested. Clearly behind: on the patients that both
were judged on, it is worse in a share `racing_confidence` of bootstrap draws. What is decided depends on the results of
these two settings alone, and which one is the best depends on trials that the lag lets be known. So the same seed gives
the same study, on one worker group or on ten, interrupted or not.

Knows no Ray. A chain's predictions are read from storage when they are needed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kdtvit_ray.metrics import gain
from kdtvit_ray.results.bootstrap import Resampling
from kdtvit_ray.results.out_of_fold import Judged, Part, judge, patients_of, share_worse
from kdtvit_ray.results.rows import SEARCHES, baseline_of
from kdtvit_ray.study.asks import Ask, inner
from kdtvit_ray.study.space import Space


@dataclass(frozen=True)
class Chain:
    """A chain that has ended: how, why and by whose `fault` where it failed, and the key of its last stage, whose
    predictions count. `seconds` are those of all of its stages, `parameters` the last model's."""

    state: str
    reason: str
    last: str
    parameters: int
    seconds: float
    fault: str = ""

    @classmethod
    def of(cls, record: Any) -> "Chain":
        """A chain by its record, of this session or an earlier one."""
        last = record.stages[-1] if len(record.stages) else ""
        seconds = float(record.cost_seconds)
        return cls(record.state, record.reason, last, int(record.parameters), seconds, record.fault)


@dataclass(frozen=True)
class Verdict:
    """What became of a setting: `state` is complete, failed or pruned; the objective, over the `chains` that it was
    given, is None where it failed, by the `fault` of a stage or of the infrastructure."""

    ask: Ask
    state: str
    reason: str
    fault: str
    judged: Judged | None
    chains: tuple[Chain, ...]


@dataclass
class _Setting:
    ask: Ask
    best: str
    """The setting that it races against; empty where there is none."""
    asked: set[Part] = field(default_factory=set)
    ended: dict[Part, Chain] = field(default_factory=dict)
    lost: set[Part] = field(default_factory=set)
    """Of chains that ended and whose predictions are gone: a setting is judged on all parts that it has records of."""
    behind: dict[int, bool] = field(default_factory=dict)
    """Whether it is clearly behind after so many parts."""


class InnerFolds:
    """The settings that are being judged. `predictions` reads the validation predictions of a stage by its key, and
    raises `OSError` where they are missing or damaged."""

    def __init__(self, space: Space, predictions: Callable[[str], pd.DataFrame], magnifications: Sequence[int]) -> None:
        self.space, self.parts, self.magnifications = space, space.parts, tuple(magnifications)
        self.metric = space.study["metric"]
        self._predictions = predictions
        self._open: dict[str, _Setting] = {}
        self._known: dict[str, dict[Part, Chain]] = {}
        self._complete: dict[str, tuple[int, float, dict[Part, str]]] = {}
        """Number, objective and last stages of each complete searched setting."""
        self._draws: dict[tuple[Part, ...], Resampling] = {}
        """The drawn patients of these parts, which are the same for all settings."""
        self._judged: dict[tuple[str, tuple[Part, ...]], Judged] = {}
        """Open settings, and those that were raced against last, by the parts that they were judged on."""

    @property
    def left(self) -> int:
        """How many chains the open settings may still need."""
        # a copy: the live view reads this from another thread
        return sum(len(self.parts) - len(each.ended) for each in dict(self._open).values())

    @property
    def open(self) -> int:
        """How many settings are being judged."""
        return len(self._open)

    # -- what earlier sessions have left -------------------------------------------------------------------------------

    def restore_chain(self, setting: str, part: Part, chain: Chain) -> None:
        """A chain ended in an earlier session."""
        self._known.setdefault(setting, {})[part] = chain

    def restore_complete(self, setting: str, number: int, objective: float) -> None:
        """A searched setting was complete in an earlier session. Its chains must have been restored."""
        last = {part: chain.last for part, chain in self._known.get(setting, {}).items()}
        self._complete[setting] = (number, objective, last)

    # -- the settings --------------------------------------------------------------------------------------------------

    def begin(self, ask: Ask) -> None:
        """Start to judge a setting, with what earlier sessions know of it."""
        made = _Setting(ask, self._best_before(ask))
        for part, chain in self._known.pop(ask.trial, {}).items():
            if chain.state == "failed" or self._readable(chain.last):
                made.ended[part] = chain
            else:
                made.lost.add(part)
        self._open[ask.trial] = made

    def next(self) -> Ask | None:
        """The next chain to run, of the setting that was begun first; None where no setting needs one just now."""
        for setting in self._open.values():
            for part in self._needed(setting):
                if part not in setting.asked and part not in setting.ended:
                    setting.asked.add(part)
                    return inner(self.space, setting.ask, part)
        return None

    def ended(self, chain: Ask, outcome: Chain) -> None:
        """A chain that `next` gave has ended."""
        part = Part(chain.params["repeat"], chain.params["inner"])
        self._open[chain.params["of"]].ended[part] = outcome

    def verdict(self, trial: str) -> Verdict | None:
        """What became of a setting; None while it needs further chains. It is no longer open then. Raises `OSError`
        where predictions cannot be read."""
        setting = self._open[trial]
        if setting.asked - setting.ended.keys():
            return None  # some still run
        chains = tuple(chain for _, chain in sorted(setting.ended.items()))
        broken = [chain for chain in chains if chain.state == "failed"]
        # one that failed of its own tells most: running the others again would not mend the setting
        failed = min(broken, key=lambda chain: chain.fault == "infrastructure", default=None)
        if failed is not None:
            made = Verdict(setting.ask, "failed", failed.reason, failed.fault, None, chains)
        elif set(self._needed(setting)) - setting.ended.keys():
            return None
        else:
            last = {part: chain.last for part, chain in setting.ended.items()}
            state = "complete" if len(last) == len(self.parts) else "pruned"
            judged = self._judge(trial, last)
            made = Verdict(setting.ask, state, "", "", judged, chains)
            if state == "complete" and setting.ask.kind in SEARCHES:
                self._complete[trial] = (setting.ask.number, judged.value, last)
        del self._open[trial]
        needed = self._open.keys() | {each.best for each in (setting, *self._open.values())}
        self._judged = {key: each for key, each in self._judged.items() if key[0] in needed}
        return made

    def _needed(self, setting: _Setting) -> Sequence[Part]:
        """The parts that a setting is to be judged on, as far as that can be said now."""
        raced = self._raced(setting)
        return [part for part in self.parts if part in raced or part in setting.lost]

    def _raced(self, setting: _Setting) -> Sequence[Part]:
        """Those that it gets in the race."""
        if not setting.best:
            return self.parts
        least = self.parts[: self.space.study["racing_folds"]]
        if any(part not in setting.ended or setting.ended[part].state == "failed" for part in least):
            return least
        done = len(least)
        while done < len(self.parts) and self.parts[done] in setting.ended:
            done += 1
        if done == len(self.parts) or self._behind(setting, self.parts[:done]):
            return self.parts[:done]
        return self.parts[: done + 1]

    def _behind(self, setting: _Setting, parts: Sequence[Part]) -> bool:
        """Whether a setting is clearly behind the one that it races against."""
        if any(setting.ended[part].state == "failed" for part in parts):
            return True
        if len(parts) not in setting.behind:
            best = self._complete[setting.best][2]
            ours = self._judge(setting.ask.trial, {part: setting.ended[part].last for part in parts})
            theirs = self._judge(setting.best, {part: best[part] for part in parts})
            share = share_worse(ours, theirs, self.metric)
            setting.behind[len(parts)] = share >= self.space.study["racing_confidence"]
        return setting.behind[len(parts)]

    def _judge(self, trial: str, last: Mapping[Part, str]) -> Judged:
        """A setting's objective on these parts, from the predictions of the last stages of its chains."""
        parts = tuple(sorted(last))
        if (trial, parts) not in self._judged:
            frames = {part: self._predictions(last[part]) for part in parts}
            if parts not in self._draws:
                self._draws[parts] = patients_of(list(frames.values()))
            self._judged[trial, parts] = judge(frames, self.metric, self.magnifications, self._draws[parts])
        return self._judged[trial, parts]

    def _best_before(self, ask: Ask) -> str:
        """The best complete setting of the same search that may be known where this one is suggested; empty where there
        is none, for baselines that are not searched, and without racing."""
        if not self.space.racing or ask.kind not in SEARCHES:
            return ""
        lag = self.space.study["lag"] if self.space.study["reproducible"] else 0
        known: Mapping[str, tuple[float, int]] = {
            trial: (gain(self.metric, objective), -number)
            for trial, (number, objective, _) in self._complete.items()
            if baseline_of(trial) == baseline_of(ask.trial)
            and not math.isnan(objective)
            and (number <= ask.number - lag or (not lag and number != ask.number))
        }
        return max(known, key=lambda trial: known[trial]) if known else ""

    def _readable(self, key: str) -> bool:
        try:
            self._predictions(key)
        except OSError:
            return False  # it is run again
        return True
