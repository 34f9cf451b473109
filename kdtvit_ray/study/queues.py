"""Where a study's trials come from: a search that suggests them, or a list that is fixed beforehand."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdtvit_ray.study.asks import Ask, searched
from kdtvit_ray.study.journal import Journal
from kdtvit_ray.study.search import Outcome, Search
from kdtvit_ray.study.space import Space


class SearchQueue:
    """The searched trials of a space: distilled chains, or settings of a baseline. `next` returns None while results
    are missing that the next trial is drawn from.

    `journal` copies what the search was told.
    """

    def __init__(self, space: Space, journal: Journal | None) -> None:
        self.space = space
        self.search = Search(space, journal.add if journal else None)
        self._ended = 0
        self._ahead: Ask | None = None

    @property
    def left(self) -> int:
        """How many trials have not ended."""
        return self.search.total - self._ended

    @property
    def exhausted(self) -> bool:
        """Whether there is no trial left to start."""
        return self._ahead is None and self.search.exhausted

    def restore(
        self, number: int, params: Mapping[str, Any], outcome: Outcome | None = None, ended: bool = False
    ) -> None:
        """A trial has ended in an earlier session, or without an outcome has begun there, or had `ended` and is run
        again. To be called before the first `next`."""
        self.search.restore(number, params, outcome, ended)
        self._ended += outcome is not None

    def next(self) -> Ask | None:
        """The next trial; None where there is none just now."""
        self.look_ahead()
        ahead, self._ahead = self._ahead, None
        return ahead

    def look_ahead(self) -> None:
        """Have the search suggest its next trial, which replays the restored ones first."""
        if self._ahead is None and (found := self.search.suggest()) is not None:
            self._ahead = searched(self.space, *found)

    def ended(self, ask: Ask, outcome: Outcome) -> None:
        self.search.end(ask.number, outcome)
        self._ended += 1


class FixedQueue:
    """Trials that are given in the order of the list: baselines, or replicates."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.left = len(asks)
        self._waiting = {ask.trial: ask for ask in asks}

    @property
    def exhausted(self) -> bool:
        """Whether there is no trial left to start."""
        return not self._waiting

    def restore(self, trial: str) -> None:
        """A trial has ended in an earlier session. Trials of other lists are ignored."""
        if self._waiting.pop(trial, None) is not None:
            self.left -= 1

    def next(self) -> Ask | None:
        """The next trial; None where there is none."""
        return self._waiting.pop(next(iter(self._waiting)), None) if self._waiting else None

    def ended(self) -> None:
        self.left -= 1
