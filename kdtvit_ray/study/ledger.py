"""Which trials a study has, which have ended, and what comes next: the searches, the baselines and their records.

Knows no Ray. A trial has ended when its record is on storage; starting a study again reads the records and goes on.
"""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from kdtvit_ray.metrics import gain
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.out_of_fold import Judged, Part, judge
from kdtvit_ray.results.rows import SEARCHES, TrialRecord, baseline_of, compact, read_trials, write_trial
from kdtvit_ray.results.stage_record import StageRecord
from kdtvit_ray.results.study_status import BestTrial, TrialCounts
from kdtvit_ray.study.asks import Ask, baselines
from kdtvit_ray.study.earlier import earlier
from kdtvit_ray.study.inner_folds import Chain, InnerFolds
from kdtvit_ray.study.journal import Journal
from kdtvit_ray.study.queues import FixedQueue, SearchQueue
from kdtvit_ray.study.refits import that_follow
from kdtvit_ray.study.retries import Retried
from kdtvit_ray.study.search import Outcome, directions
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.stage_reader import StageReader
from kdtvit_ray.study.stage_results import trial_record, trial_rows
from kdtvit_ray.study.store import DamagedStage, StageStore
from kdtvit_ray.study.totals import planned

COMPACT_EVERY = 100
"""Rows and records are merged into few files each time that this many trials have ended."""
log = logging.getLogger(__name__)


class Ledger:
    """The trials of one study: its search, baselines and the searches for baselines, or only the `replicates` where
    some are given.

    Where the objective is over inner folds, what runs are chains of settings, `inner`; when all settings are judged,
    `refits` of the chosen ones and of the baselines follow. Where the chosen one rehearses, the same chain without
    rehearsal follows as well, also without inner folds.

    `retried` are failed trials to run again. `in_flight` is the greatest number of trials that run at once, baselines
    included. `magnifications` are those of the validation images.
    """

    def __init__(
        self,
        folder: StudyFolder,
        space: Space,
        replicates: Sequence[Ask] = (),
        magnifications: Sequence[int] = (),
        retried: Retried | None = None,
    ) -> None:
        """Raises `UserError` for a trial to run again that has no record."""
        self.folder, self.space, self.store = folder, space, StageStore(folder)
        self.stages = StageReader(self.store)
        self.name = space.study["name"]
        self.metric, self.magnifications = space.study["metric"], tuple(magnifications)
        self.inner = (
            InnerFolds(space, self.stages.validation, magnifications) if space.parts and not replicates else None
        )
        self.in_flight = most_at_once(space, judged=self.inner is not None)
        self.best = BestTrial()
        self.shared_uses = 0
        self.records: dict[str, tuple[str, str]] = {}
        """Kind and state of every trial that has ended."""
        found = read_trials(folder)
        parts = self.inner.parts if self.inner is not None else ()
        least = space.study["racing_folds"]
        usable = self.stages.readable if parts else (lambda key: bool(replicates) or self.stages.sound(key))
        gaps = not space.study["reproducible"]
        before = earlier(found, retried or Retried(), parts, least, self.metric, usable, gaps)
        if before.again and not replicates and self._journal_path is not None:
            self._journal_path.unlink(missing_ok=True)  # it is written anew, with what becomes of them now
        self.fixed = FixedQueue(list(replicates) or baselines(space))
        self.searches: dict[str, SearchQueue] = {}
        """The search for the distilled chain, whose name is empty, and one for each searched baseline."""
        if not replicates:
            self.searches[""] = SearchQueue(space, self._journal(self.name or "study"))
            for name, own in space.searched_baselines().items():
                self.searches[name] = SearchQueue(own, self._journal(f"{self.name or 'study'}-{name}"))
        self._replicates = {ask.trial for ask in replicates}
        self.refits: FixedQueue | None = None
        """What follows when all settings are judged; None before, and where nothing follows."""
        self._more_follows = self.inner is not None or (not replicates and space.rehearses)
        self._of_infrastructure: set[str] = set()
        self._totals = planned(folder, space, len(replicates))
        self._open: dict[str, tuple[Ask, float]] = {}
        self._judging: dict[str, float] = {}
        """When each setting was begun in this session."""
        self._baselines = set(space.baselines())
        self._searched = set(space.searched_baselines())
        self._keys_seen: set[str] = set()
        self._since_compaction = len(found)  # a killed session may not have merged its own
        self._restore(before.records)
        for trial, each in before.drawn.items():
            if (name := baseline_of(trial)) in self.searches:
                self.searches[name].restore(each.number, each.params, ended=each.ended)

    @property
    def left(self) -> int:
        """Number of trials that have not ended; with inner folds, of chains that may still be needed."""
        settings = self.fixed.left + sum(max(each.left, 0) for each in self.searches.values())
        if self.inner is None:
            return settings + (self.refits.left if self.refits else int(self._more_follows))
        refits = self.refits.left if self.refits else self._totals["baseline"] + len(self.searches)
        return (settings - self.inner.open) * len(self.space.parts) + self.inner.left + refits

    @property
    def ended_chains(self) -> int:
        """Number of chains that have ended."""
        of_settings = () if self.inner is None else ("baseline", *SEARCHES)
        return sum(kind not in of_settings for kind, _ in dict(self.records).values())  # as in `counts`

    @property
    def exhausted(self) -> bool:
        """Whether no trial is left to start."""
        if not self._more_follows or not self._settled:
            return self._settled
        return self.refits is not None and self.refits.exhausted

    @property
    def _settled(self) -> bool:
        """Whether no search trial and no baseline is left to start, and with inner folds none is being judged."""
        begun = self.fixed.exhausted and all(each.exhausted for each in self.searches.values())
        return begun and (self.inner is None or not self.inner.open)

    def finished(self) -> bool:
        """Whether every trial of the study has ended. Raises `OSError` where storage fails."""
        for each in self.searches.values():
            each.look_ahead()
        if self._more_follows and not self._open:
            self._begin_refits()
        return self.exhausted and not self._open

    def next(self) -> Ask | None:
        """The next trial to run; None when there is none just now. Searched trials go first: the search takes longer,
        and baselines, searched ones before the others, fill the gaps while it waits for results. Raises `OSError` where
        storage fails."""
        if len(self._open) >= self.in_flight:
            return None
        ask = self._next_chain() if self.inner is not None else self._next_trial() or self._next_that_follows()
        if ask is not None:
            self._open[ask.trial] = (ask, time.time())
        return ask

    def _next_trial(self) -> Ask | None:
        searched = next(filter(None, (each.next() for each in self.searches.values())), None)
        return searched or self.fixed.next()

    def _next_that_follows(self) -> Ask | None:
        if self._more_follows and not self._open:
            self._begin_refits()
        return self.refits.next() if self.refits else None

    def _next_chain(self) -> Ask | None:
        """The next chain of the settings that are being judged, else of the next setting, else a refit."""
        assert self.inner is not None
        while (chain := self.inner.next()) is None:
            setting = self._next_trial()
            if setting is None:
                return self._next_that_follows()
            self._judging[setting.trial] = time.time()
            self.inner.begin(setting)
            self._settle(setting.trial)  # earlier sessions may know all of its chains
        return chain

    def forget(self, trial: str) -> None:
        """The trial was stopped before its end, because the study is stopping. It will be run again."""
        self._open.pop(trial, None)

    def ended(self, trial: str, state: str, stage: int, reason: str = "", fault: str = "") -> None:
        """A trial has ended as complete, failed or pruned after `stage` finished stages, a failed one by the `fault` of
        a stage or of the infrastructure: put it on storage, then tell the search. Raises `OSError` where storage
        fails."""
        ask, started = self._open[trial]
        stages = [self.stages.record(spec.key) for spec in ask.stages[:stage]]
        record = trial_record(ask, stages, state, (reason, fault), self.metric, (started, time.time()))
        self._write(ask, record, stages)
        del self._open[trial]
        if ask.kind in SEARCHES:
            if state == "complete" and ask.kind == "search":
                values = stages[-1].values("validation", "image", self.metric)
                self._update_best(trial, record.objective, values, ask.words)
            outcome = self._outcome(state, record.objective, record.parameters, stage)
            self.searches[baseline_of(trial)].ended(ask, outcome)
        elif ask.kind == "inner":
            assert self.inner is not None
            self.inner.ended(ask, Chain.of(record))
            self._settle(ask.params["of"])
        elif ask.kind == "refit":
            assert self.refits is not None
            self.refits.ended()
        else:
            self.fixed.ended()
        if self._since_compaction >= COMPACT_EVERY:
            self.compact()

    def _write(self, ask: Ask, record: TrialRecord, stages: Sequence[StageRecord]) -> None:
        write_trial(self.folder, record, trial_rows(self.name, record.trial, stages))
        self.records[record.trial] = (ask.kind, record.state)
        self._of_infrastructure.discard(record.trial)
        if record.fault == "infrastructure":
            self._of_infrastructure.add(record.trial)
        self._count_shared(record.stages)
        self._since_compaction += 1

    def _settle(self, trial: str) -> None:
        """Put a setting on storage and tell the search, if it needs no further chain."""
        assert self.inner is not None
        verdict = self.inner.verdict(trial)
        if verdict is None:
            return
        ask, judged = verdict.ask, verdict.judged
        times = self._judging.pop(trial), time.time()
        record = trial_record(ask, (), verdict.state, (verdict.reason, verdict.fault), self.metric, times)
        record = replace(
            record,
            objective=judged.value if judged else math.nan,
            parameters=max((chain.parameters for chain in verdict.chains), default=0),
            cost_seconds=math.fsum(chain.seconds for chain in verdict.chains),
        )
        self._write(ask, record, ())
        if ask.kind in SEARCHES:
            if judged and verdict.state == "complete" and ask.kind == "search":
                self._update_best(trial, judged.value, judged.by_magnification, ask.words)
            outcome = self._outcome(record.state, record.objective, record.parameters, len(verdict.chains))
            self.searches[baseline_of(trial)].ended(ask, outcome)
        else:
            self.fixed.ended()

    def _begin_refits(self) -> None:
        """When all settings are judged: begin what follows (`refits.that_follow`)."""
        if self.refits is not None or not self._settled:
            return
        trials = read_trials(self.folder)
        asks = list(that_follow(self.space, trials, lambda trial: self._standard_error(trials, trial)))
        self.refits = FixedQueue(asks)
        self._totals["refit"] = len(asks)
        planned = {ask.trial for ask in asks}
        ended = trials["trial"].isin([trial for trial, (kind, _) in self.records.items() if kind == "refit"])
        for each in trials[ended].itertuples():
            # another setting was chosen when fewer had been tried, or the model is damaged
            if each.trial in planned and (each.state == "failed" or self.stages.sound(each.stages[-1])):
                self.refits.restore(each.trial)
            else:
                del self.records[each.trial]

    def _judged(self, trials: pd.DataFrame, trial: str) -> Judged | None:
        """A complete setting's objective again, from the predictions of its chains; None where it has lost records of
        some, so that fewer patients would judge it than before."""
        frames = {}
        for record in trials[(trials["kind"] == "inner") & (trials["state"] == "complete")].itertuples(index=False):
            told = json.loads(record.params)
            if told["of"] == trial:
                frames[Part(told["repeat"], told["inner"])] = self.stages.validation(record.stages[-1])
        whole = frames.keys() == set(self.space.parts)
        return judge(frames, self.metric, self.magnifications) if whole else None

    def _standard_error(self, trials: pd.DataFrame, trial: str) -> float:
        judged = self._judged(trials, trial)
        return judged.standard_error if judged else math.nan

    def compact(self) -> None:
        """Merge the many small files of ended trials into few."""
        if self._since_compaction:
            compact(self.folder)
            self._since_compaction = 0

    def counts(self) -> dict[str, TrialCounts]:
        """Trials of each kind by state."""
        if self.searches:  # they end early where they find no other setting
            self._totals["search"] = self.searches[""].search.total
            own = (each.search.total for name, each in self.searches.items() if name)
            self._totals["baseline_search"] = sum(own)
        counted = {kind: Counter(total=total) for kind, total in self._totals.items()}
        for trial, (kind, state) in dict(self.records).items():  # the live view reads this from another thread
            counted[kind][state] += 1
            counted[kind]["infrastructure"] += trial in self._of_infrastructure
        for ask, _ in dict(self._open).values():
            counted[ask.kind]["running"] += 1
        for trial in dict(self._judging):
            kind = "baseline" if trial in self._baselines else "baseline_search" if baseline_of(trial) else "search"
            counted[kind]["running"] += 1
        return {kind: TrialCounts(**each) for kind, each in counted.items()}

    # -- inside ----------------------------------------------------------------------------------------------------

    @property
    def _journal_path(self) -> Path | None:
        return self.folder.local / self.folder.journal if self.folder.local is not None else None

    def _journal(self, study: str) -> Journal | None:
        path = self._journal_path
        if path is None:
            return None  # Optuna writes journals to local files only
        path.parent.mkdir(parents=True, exist_ok=True)
        return Journal(str(path), study, directions(self.space))

    def _restore(self, records: pd.DataFrame) -> None:
        """Restore the trials that ended in earlier sessions."""
        given = self._restore_chains(records)
        best: Any = None
        for record in records.itertuples(index=False):
            if not self._wanted(record):
                continue
            self.records[record.trial] = (record.kind, record.state)
            if record.fault == "infrastructure":
                self._of_infrastructure.add(record.trial)
            self._count_shared(record.stages)
            self.fixed.restore(record.trial)
            if record.kind not in SEARCHES:
                continue
            if self.searches:
                done = given[record.trial] or len(record.stages)
                outcome = self._outcome(record.state, record.objective, record.parameters, done)
                search = self.searches[baseline_of(record.trial)]
                search.restore(int(record.number), json.loads(record.params), outcome)
            if record.state != "complete":
                continue
            if record.kind == "search" and self._better(record.objective, best.objective if best else math.nan):
                best = record
            if self.inner is not None:
                self.inner.restore_complete(record.trial, int(record.number), record.objective)
        if best is not None:
            try:
                values: Mapping[int, float] = {}
                if self.space.parts:
                    judged = self._judged(records, best.trial)
                    values = judged.by_magnification if judged else {}
                elif len(best.stages):
                    values = self.stages.record(best.stages[-1]).values("validation", "image", self.metric)
            except DamagedStage as error:  # its rows are kept, only the live view lacks its values
                log.warning("%s", error)
                values = {}
            self._update_best(best.trial, best.objective, values, self.space.values(json.loads(best.params)))

    def _wanted(self, record: Any) -> bool:
        """Whether a trial is one of this session's: not of another confirmation, nor of a baseline, or a setting or
        chain of one, that the space does not have, or does not search, any more."""
        if record.kind == "confirm":
            return not self._replicates or record.trial in self._replicates
        setting = json.loads(record.params)["of"] if record.kind == "inner" else record.trial
        if record.kind == "refit" or not (name := baseline_of(setting)):
            return True
        return setting in self._baselines or (name in self._searched and setting != name)

    def _restore_chains(self, records: pd.DataFrame) -> Counter[str]:
        """Restore the chains over inner folds. Returns how many each setting was given."""
        given: Counter[str] = Counter()
        for record in records[records["kind"] == "inner"].itertuples(index=False):
            told = json.loads(record.params)
            given[told["of"]] += 1
            if self.inner is not None:
                self.inner.restore_chain(told["of"], Part(told["repeat"], told["inner"]), Chain.of(record))
        return given

    def _outcome(self, state: str, objective: float, parameters: int, stage: int) -> Outcome:
        if state == "failed":
            return Outcome(state)
        values = (objective, float(parameters)) if self.space.two_objectives else (objective,)
        return Outcome(state, values, stage)

    def _count_shared(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.shared_uses += key in self._keys_seen
            self._keys_seen.add(key)

    def _update_best(self, trial: str, objective: float, values: Mapping[int, float], words: Mapping[str, Any]) -> None:
        best = self.best
        # of equal ones the earlier, as in the report, whichever ended first; by length, since t10000 follows t9999
        earlier_one = objective == best.objective and (len(trial), trial) < (len(best.trial), best.trial)
        if earlier_one or self._better(objective, best.objective if best.trial else math.nan):
            self.best = BestTrial(trial, objective, values, words)

    def _better(self, objective: float, other: float) -> bool:
        """Whether an objective is better than another one; NaN is none."""
        if math.isnan(objective) or math.isnan(other):
            return not math.isnan(objective)
        return bool(gain(self.metric, objective) > gain(self.metric, other))


def most_at_once(space: Space, judged: bool) -> int:
    """The greatest number of trials that run at once, and so of worker groups that have work; where settings are
    `judged` over inner folds it counts their chains."""
    return max(space.study["lag"], 1) * (len(space.parts) if judged else 1)
