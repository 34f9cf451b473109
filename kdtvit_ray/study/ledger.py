"""Which trials a study has, which have ended, and what comes next: the search, the baselines and their records.

Knows no Ray. A trial has ended when its record is on storage; starting a study again reads the records and goes on.
"""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import TrialRecord, compact, read_trials, write_trial
from kdtvit_ray.results.stage_record import StageRecord
from kdtvit_ray.results.study_status import BestTrial, TrialCounts
from kdtvit_ray.study.asks import Ask, baselines
from kdtvit_ray.study.queues import FixedQueue, SearchQueue
from kdtvit_ray.study.search import Journal, Outcome
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.stage_results import trial_rows
from kdtvit_ray.study.store import DamagedStage, StageStore

COMPACT_EVERY = 100
"""Rows and records are merged into few files each time that this many trials have ended."""
STAGES_KEPT = 500
"""Number of stage records kept in memory, for the trials that share the stages."""
log = logging.getLogger(__name__)


class Ledger:
    """The trials of one study: its search and baselines, or only the `replicates` where some are given.

    `in_flight` is the greatest number of trials that run at once, baselines included.
    """

    def __init__(self, folder: StudyFolder, space: Space, replicates: Sequence[Ask] = ()) -> None:
        self.folder, self.space, self.store = folder, space, StageStore(folder)
        self.name = space.study["name"]
        self.metric = space.study["metric"]
        self.in_flight = max(space.study["lag"], 1)
        self.best = BestTrial(objective=-math.inf)
        self.shared_uses = 0
        self.records: dict[str, tuple[str, str]] = {}
        """Kind and state of every trial that has ended."""
        self.fixed = FixedQueue(list(replicates) or baselines(space))
        self.searched = None if replicates else SearchQueue(space, self._journal())
        self._replicates = {ask.trial for ask in replicates}
        self._totals = {"search": space.trials, "baseline": len(space.baselines()), "confirm": len(replicates)}
        self._open: dict[str, tuple[Ask, float]] = {}
        self._stages: dict[str, StageRecord] = {}
        self._keys_seen: set[str] = set()
        self._since_compaction = 0
        self._restore()

    @property
    def left(self) -> int:
        """Number of trials that have not ended."""
        return self.fixed.left + (max(self.searched.left, 0) if self.searched else 0)

    @property
    def exhausted(self) -> bool:
        """Whether no trial is left to start."""
        return self.fixed.exhausted and (self.searched is None or self.searched.exhausted)

    def finished(self) -> bool:
        """Whether every trial of the study has ended."""
        if self.searched:
            self.searched.look_ahead()
        return self.exhausted and not self._open

    def next(self) -> Ask | None:
        """The next trial to run; None when there is none just now. Searched trials go first: the search takes longer,
        and baselines fill the gaps while it waits for results."""
        if len(self._open) >= self.in_flight:
            return None
        ask = (self.searched.next() if self.searched else None) or self.fixed.next()
        if ask is not None:
            self._open[ask.trial] = (ask, time.time())
        return ask

    def forget(self, trial: str) -> None:
        """The trial was stopped before its end, because the study is stopping. It will be run again."""
        self._open.pop(trial, None)

    def ended(self, trial: str, state: str, stage: int, reason: str = "") -> None:
        """A trial has ended as complete, failed or pruned after `stage` finished stages: put it on storage, then
        tell the search. Raises `OSError` where storage fails."""
        ask, started = self._open[trial]
        stages = [self._stage(spec.key) for spec in ask.stages[:stage]]
        record = self._record(ask, stages, state, reason, started)
        write_trial(self.folder, record, trial_rows(self.name, trial, stages))
        self.records[trial] = (ask.kind, state)
        del self._open[trial]
        self._count_shared(record.stages)
        if ask.kind == "search":
            assert self.searched is not None
            if state == "complete":
                self._update_best(trial, record.objective, stages[-1], ask.words)
            self.searched.ended(ask, self._outcome(state, record.objective, record.parameters, stage))
        else:
            self.fixed.ended()
        self._since_compaction += 1
        if self._since_compaction >= COMPACT_EVERY:
            self.compact()

    def compact(self) -> None:
        """Merge the many small files of ended trials into few."""
        if self._since_compaction:
            compact(self.folder)
            self._since_compaction = 0

    def counts(self) -> dict[str, TrialCounts]:
        """Trials of each kind by state."""
        counted = {kind: Counter(total=total) for kind, total in self._totals.items()}
        for kind, state in dict(self.records).values():  # the live view reads this from another thread
            counted[kind][state] += 1
        for ask, _ in dict(self._open).values():
            counted[ask.kind]["running"] += 1
        return {kind: TrialCounts(**each) for kind, each in counted.items()}

    # -- inside ----------------------------------------------------------------------------------------------------

    def _journal(self) -> Journal | None:
        if self.folder.local is None:
            return None  # Optuna writes journals to local files only
        path = self.folder.local / self.folder.journal
        path.parent.mkdir(parents=True, exist_ok=True)
        return Journal(str(path), self.name or "study", 2 if self.space.two_objectives else 1)

    def _restore(self) -> None:
        """Restore the trials that ended in earlier sessions."""
        records = read_trials(self.folder)
        self._since_compaction = len(records)  # a killed session may not have merged its own
        planned = self.space.baselines()
        best: Any = None
        for record in records.itertuples(index=False):
            if record.kind == "baseline" and record.trial not in planned:
                continue
            if record.kind == "confirm" and self._replicates and record.trial not in self._replicates:
                continue  # of another confirmation
            self.records[record.trial] = (record.kind, record.state)
            self._count_shared(record.stages)
            self.fixed.restore(record.trial)
            if record.kind != "search":
                continue
            if self.searched:
                outcome = self._outcome(record.state, record.objective, record.parameters, len(record.stages))
                self.searched.restore(int(record.number), json.loads(record.params), outcome)
            if record.state == "complete" and (best is None or record.objective > best.objective):
                best = record
        if best is not None:
            try:
                stage = self._stage(best.stages[-1])
            except DamagedStage as error:  # its rows are kept, only the live view lacks its values
                log.warning("%s", error)
                stage = None
            self._update_best(best.trial, best.objective, stage, self.space.values(json.loads(best.params)))

    def _outcome(self, state: str, objective: float, parameters: int, stage: int) -> Outcome:
        if state == "failed":
            return Outcome(state)
        values = (objective, float(parameters)) if self.space.two_objectives else (objective,)
        return Outcome(state, values, stage)

    def _stage(self, key: str) -> StageRecord:
        if key not in self._stages:
            if len(self._stages) > STAGES_KEPT:
                self._stages.clear()
            self._stages[key] = replace(self.store.record(key), curves=())
        return self._stages[key]

    def _count_shared(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.shared_uses += key in self._keys_seen
            self._keys_seen.add(key)

    def _update_best(self, trial: str, objective: float, stage: StageRecord | None, words: Mapping[str, Any]) -> None:
        if objective > self.best.objective:
            values = stage.values("validation", "image", self.metric) if stage else {}
            self.best = BestTrial(trial, objective, values, words)

    def _record(self, ask: Ask, stages: Sequence[StageRecord], state: str, reason: str, started: float) -> TrialRecord:
        last = stages[-1] if stages else None
        told = {name: json.dumps(ask.words[name]) for name in ("temperature", "alpha")}
        return TrialRecord(
            trial=ask.trial,
            number=ask.number,
            kind=ask.kind,
            state=state,
            reason=reason,
            seed=ask.stages[0].seed,
            fold=ask.stages[0].data.fold,
            parameters=last.parameters if last else 0,
            params=json.dumps(ask.params, sort_keys=True),
            objective=last.summary().objective(self.metric) if last and state != "failed" else math.nan,
            stages=[stage.key for stage in stages],
            cost_seconds=sum(stage.seconds for stage in stages),
            started=started,
            finished=time.time(),
            **{**ask.words, **told},
        )
