"""Which trials a study has, which have ended, and what comes next: the search, the baselines and their records.

Knows no Ray. A trial has ended when its record is on storage; starting a study again reads the records and goes on.
"""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.rows import TrialRecord, compact, read_trials, write_trial
from kdtvit_ray.study.search import Journal, Outcome, Search
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.stage_results import summary_of, trial_rows
from kdtvit_ray.study.store import DamagedStage, StageStore

COMPACT_EVERY = 100
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ask:
    """A trial to run."""

    trial: str
    kind: str
    params: dict[str, Any]


@dataclass
class Counts:
    """How many trials of one kind are in which state."""

    total: int = 0
    complete: int = 0
    failed: int = 0
    pruned: int = 0
    running: int = 0


@dataclass
class Best:
    """The best complete searched trial so far, by its validation objective."""

    trial: str = ""
    objective: float = -math.inf
    by_magnification: dict[int, float] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """The trials of one study: its search and baselines, or, where `confirm` lists some, those replicates alone.

    `in_flight` bounds how many run at once, baselines included.
    """

    def __init__(self, folder: StudyFolder, space: Space, confirm: Sequence[Ask] = ()) -> None:
        self.folder, self.space, self.store = folder, space, StageStore(folder)
        self.name = space.study["name"]
        self.metric = space.study["metric"]
        self.baselines = space.baselines()
        self.best = Best()
        self.records: dict[str, str] = {}
        self.shared_uses = 0
        journal = None if confirm else self._journal()
        self.search = Search(space, journal.add if journal else None)
        self.searching = not confirm
        self.in_flight = max(self.search.lag, 1)
        self._open: dict[str, tuple[Ask, float]] = {}
        self._numbers: dict[str, int] = {}
        self._kinds: dict[str, str] = {}
        self._since_compaction = 0
        self._abouts: dict[str, dict[str, Any]] = {}
        self._keys_seen: set[str] = set()
        self._recall()
        self._fixed = list(confirm) or [Ask(name, "baseline", {}) for name in self.baselines]
        self._left = [ask for ask in self._fixed if ask.trial not in self.records]
        self._ahead: tuple[int, dict[str, Any]] | None = None

    @property
    def left(self) -> int:
        """Number of trials that have not ended."""
        searched = sum(self._kinds[trial] == "search" for trial in dict(self.records)) if self.searching else 0
        return (self.search.total - searched if self.searching else 0) + sum(
            ask.trial not in self.records for ask in self._fixed
        )

    def finished(self) -> bool:
        """Whether every trial of the study has ended."""
        if self.searching and self._ahead is None and not self.search.exhausted:
            self._ahead = self.search.suggest()
        return self.exhausted and not self._open

    def next(self) -> Ask | None:
        """The next trial to run; None when there is none just now. Searched trials go first: the search is the
        longer way, and baselines fill the gaps while it waits for results."""
        if len(self._open) >= self.in_flight:
            return None
        ahead, self._ahead = self._ahead, None
        suggested = ahead or (self.search.suggest() if self.searching else None)
        if suggested is not None:
            number, params = suggested
            ask = Ask(f"t{number:04d}", "search", params)
            self._numbers[ask.trial] = number
        elif self._left:
            ask = self._left.pop(0)
        else:
            return None
        self._kinds[ask.trial] = ask.kind
        self._open[ask.trial] = (ask, time.time())
        return ask

    @property
    def exhausted(self) -> bool:
        """Whether no trial is left to start."""
        return (not self.searching or self.search.exhausted) and self._ahead is None and not self._left

    def forget(self, trial: str) -> None:
        """The trial was stopped without a result (the study is stopping): it has not ended."""
        self._open.pop(trial, None)

    def ended(self, trial: str, state: str, stage: int, reason: str = "") -> None:
        """A trial has ended as complete, failed or pruned after `stage` finished stages: put it on storage, then
        tell the search. Raises `StorageLost`."""
        ask, started = self._open[trial]
        stages = self.space.stages(ask.trial, ask.kind, ask.params)
        abouts = [(index + 1, spec.key, self._about(spec.key)) for index, spec in enumerate(stages[:stage])]
        record = self._record(ask, stages, abouts, state, reason, started)
        rows = trial_rows(self.name, trial, abouts)
        write_trial(self.folder, record, rows)
        self.records[trial] = state
        del self._open[trial]
        self._count_shared(spec.key for spec in stages[:stage])
        if ask.kind == "search":
            if state == "complete":
                self._consider(trial, record.objective, abouts[-1][2], ask.params)
            self.search.end(self._numbers[trial], self._outcome(state, record.objective, record.parameters, stage))
        self._since_compaction += 1
        if self._since_compaction >= COMPACT_EVERY:
            self.compact()

    def compact(self) -> None:
        """Merge the many small files of ended trials into few."""
        if self._since_compaction:
            compact(self.folder)
            self._since_compaction = 0

    def counts(self) -> dict[str, Counts]:
        """Trials of the search and baselines by state."""
        replicates = len(self._fixed) if not self.searching else 0
        counted = {
            "search": Counts(self.search.total), "baseline": Counts(len(self.baselines)), "confirm": Counts(replicates)
        }  # fmt: skip
        for trial, state in dict(self.records).items():  # the live view reads this from another thread
            each = counted[self._kinds[trial]]
            setattr(each, state, getattr(each, state) + 1)
        for ask, _ in dict(self._open).values():
            counted[ask.kind].running += 1
        return counted

    # -- inside ----------------------------------------------------------------------------------------------------

    def _journal(self) -> Journal | None:
        if self.folder.local is None:
            return None  # Optuna writes journals to local files only
        path = self.folder.local / self.folder.journal
        path.parent.mkdir(parents=True, exist_ok=True)
        return Journal(str(path), self.name or "study", 2 if self.space.study["sampler"] == "nsga2" else 1)

    def _recall(self) -> None:
        """Take up the trials that have ended in earlier sessions."""
        records = read_trials(self.folder)
        self._since_compaction = len(records)  # sessions that were killed early may have merged none of theirs
        best: tuple[float, str, Any] | None = None
        for record in records.itertuples(index=False):
            if record.kind == "baseline" and record.trial not in self.baselines:
                continue
            self._kinds[record.trial] = record.kind
            self.records[record.trial] = record.state
            self._count_shared(record.stages)
            if record.kind != "search":
                continue
            outcome = self._outcome(record.state, record.objective, record.parameters, len(record.stages))
            self.search.restore(int(record.number), json.loads(record.params), outcome)
            if record.state == "complete" and (best is None or record.objective > best[0]):
                best = (record.objective, record.trial, record)
        if best is not None:
            record = best[2]
            try:
                about = self._about(record.stages[-1])
            except DamagedStage as error:  # its rows are kept: the view of this session has less to show
                log.warning("%s", error)
                about = {"measures": []}
            self._consider(best[1], best[0], about, json.loads(record.params))

    def _outcome(self, state: str, objective: float, parameters: int, stage: int) -> Outcome:
        if state == "failed":
            return Outcome(state)
        values = (objective, float(parameters)) if self.search.two_objectives else (objective,)
        return Outcome(state, values, stage)

    def _about(self, key: str) -> dict[str, Any]:
        if key not in self._abouts:
            if len(self._abouts) > 500:
                self._abouts.clear()
            about = self.store.about(key)
            self._abouts[key] = {name: about[name] for name in ("spec", "measures", "cost")}
        return self._abouts[key]

    def _count_shared(self, keys: Any) -> None:
        for key in keys:
            self.shared_uses += key in self._keys_seen
            self._keys_seen.add(key)

    def _consider(self, trial: str, objective: float, about: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        if objective > self.best.objective:
            by_magnification = {
                magnification: value
                for magnification, split, level, metric, value in about["measures"]
                if (split, level, metric) == ("validation", "image", self.metric)
            }
            self.best = Best(trial, objective, by_magnification, self.space.values(params))

    def _record(
        self,
        ask: Ask,
        stages: tuple[StageSpec, ...],
        abouts: list[tuple[int, str, dict[str, Any]]],
        state: str,
        reason: str,
        started: float,
    ) -> TrialRecord:
        measured = [summary_of(about) for _, _, about in abouts]
        words = self._words(ask, stages)
        return TrialRecord(
            trial=ask.trial,
            number=self._numbers.get(ask.trial, -1),
            kind=ask.kind,
            state=state,
            reason=reason,
            seed=stages[0].seed,
            fold=stages[0].data.fold,
            parameters=measured[-1]["parameters"] if measured else 0,
            params=json.dumps(ask.params, sort_keys=True),
            objective=_last_objective(measured, self.metric) if state != "failed" else math.nan,
            stages=[key for _, key, _ in abouts],
            cost_seconds=sum(each["cost"] for each in measured),
            started=started,
            finished=time.time(),
            **words,
        )

    def _words(self, ask: Ask, stages: tuple[StageSpec, ...]) -> dict[str, Any]:
        """Order, teacher, student and settings as the report names them; a baseline has what it really used."""
        words = self.space.values(ask.params.get("params", ask.params))
        if ask.kind == "baseline" or ask.params.get("of") in self.baselines:
            distilled = [stage.distillation for stage in stages if stage.distillation]
            words["order"] = ">".join("+".join(map(str, stage.magnifications)) for stage in stages)
            words["temperature"] = [each.temperature for each in distilled]
            words["alpha"] = [each.alpha for each in distilled] or [0.0] * (len(stages) - 1)
            words["warm_start"] = any(stage.warm for stage in stages)
            if not distilled:
                words["teacher"] = words["student"]
        words["temperature"] = json.dumps(words["temperature"])
        words["alpha"] = json.dumps(words["alpha"])
        return words


def _last_objective(measured: list[dict[str, Any]], metric: str) -> float:
    return measured[-1]["objectives"].get(metric, math.nan) if measured else math.nan
