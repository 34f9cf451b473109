"""Ray Tune's side of a study: a searcher on the ledger, ASHA at stage ends, and thin trials (`cluster.chain_trial`)."""

import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from kdtvit_ray.cluster.chain_trial import ChainTrial
from kdtvit_ray.cluster.nodes import own_share
from kdtvit_ray.cluster.stop import Stop
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.study.asks import Ask
from kdtvit_ray.study.ledger import Ledger

LEAST_OPEN = 8
"""Trials that are open at once even where few worker groups run."""
PER_GROUP = 2
"""Stages that a worker group has to choose from: one that it trains, and one for when the chain has ended."""


class LedgerSearcher(Searcher):
    """Hands the ledger's trials to Tune and their ends back, and tells the coordinator which trials run.

    It opens no more trials than keep the worker groups busy, whose number `groups` tells: the actor of an open trial
    takes more than 100 MB, all on the driver's node. What is suggested does not depend on it. No open trial waits for
    one that is not, so there is always one that goes on."""

    def __init__(self, ledger: Ledger, coordinator: Any, stop: Stop, groups: Callable[[], int]) -> None:
        super().__init__(metric="objective", mode="max")
        self.ledger, self.coordinator, self.stop, self.groups = ledger, coordinator, stop, groups
        self.elsewhere = 0
        """How many stages that are wanted other studies train."""
        self._running: dict[str, Ask] = {}
        """The running trials by Tune's id."""
        self._last: dict[str, dict[str, Any]] = {}
        self._changing = threading.Lock()

    def join_missing(self, known: Collection[str]) -> None:
        """Name the running trials to the coordinator that it does not know, because it was restarted. `known` are the
        trials that it knew just before. To be called from another thread than Tune's."""
        with self._changing:
            for ask in self._running.values():
                if ask.trial not in known:
                    self._join(ask)

    def _join(self, ask: Ask) -> None:
        self.coordinator.join.remote(ask.trial, ask.stages, ask.labels)

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.stop.wished:
            return Searcher.FINISHED
        if self._enough_open():
            return None
        try:
            ask = self.ledger.next()
        except OSError as lost:
            self.stop.because(str(lost))
            return Searcher.FINISHED
        if ask is None:
            return Searcher.FINISHED if self.ledger.exhausted else None
        with self._changing:
            self._running[trial_id] = ask
            self._join(ask)
        return {"trial": ask.trial, "kind": ask.kind, "stages": len(ask.stages)}

    def _enough_open(self) -> bool:
        """Whether the open trials keep the groups busy. Trials that wait for the same stage give work to one group."""
        needed = PER_GROUP * self.groups()
        if len(self._running) < max(LEAST_OPEN, needed):
            return False
        stages = set()
        for trial, ask in self._running.items():
            done = self._last.get(trial, {}).get("stage", 0)
            stages |= {stage.key for stage in ask.stages[done : done + 1]}
        return len(stages) >= needed + self.elsewhere

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._last[trial_id] = result

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self._changing:
            ask = self._running.pop(trial_id, None)
            if ask is None:
                return  # Tune repeats a call that has raised
            self.coordinator.leave.remote(ask.trial)
        # Tune passes no result for a trial that its scheduler stopped: take the last one that it reported
        last = self._last.pop(trial_id, {})
        result = result or last
        state, stage = result.get("state", ""), int(result.get("stage", 0))
        try:
            if error:
                died = "its Ray Tune actor died again and again; the log has more"
                self.ledger.ended(ask.trial, "failed", stage, died, "infrastructure")
            elif state == "failed":
                self.ledger.ended(ask.trial, "failed", stage, result.get("reason", ""), result.get("fault", "stage"))
            elif state == "stopped" or self.stop.reason:
                self.ledger.forget(ask.trial)
            else:
                # Tune marks a trial that its scheduler stopped as done as well, but some of its stages are missing
                self.ledger.ended(ask.trial, "complete" if stage == len(ask.stages) else "pruned", stage)
        except OSError as lost:
            self.stop.because(str(lost))
            self.ledger.forget(ask.trial)

    def save(self, checkpoint_path: str) -> None:
        # Tune wants a file; a study goes on from the records of its trials
        Path(checkpoint_path).write_text("The search is replayed from the records in ../trials\n")

    def restore(self, checkpoint_path: str) -> None:
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {}


class InOrder(FIFOScheduler):
    """Stops no trial, and keeps up to `in_flight` idle actors for the next trials.

    Tune stops the actor of an ended trial unless another trial is waiting at that moment. Here several trials end at
    once, when a stage that they share ends. Tune would stop all of their actors but one and start as many again a
    moment later, each of which costs a second of CPU.
    """

    def __init__(self, in_flight: int) -> None:
        super().__init__()
        self._in_flight = in_flight
        self._told = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        cache: Any = getattr(tune_controller, "_actor_cache", None)  # Tune has no public setting for it
        if not self._told and hasattr(cache, "increase_max"):
            cache.increase_max(trial.placement_group_factory, self._in_flight)
        self._told = True
        super().on_trial_add(tune_controller, trial)


class StageASHA(ASHAScheduler):
    """ASHA whose rungs are finished stages, from the second one on. The first stage depends on the order, but not on
    temperature, alpha or student, so stopping trials there would choose by the first magnification. Baselines are never
    stopped, because the searched trials are compared with them."""

    def __init__(self, in_flight: int) -> None:
        super().__init__(
            time_attr="stage", metric="objective", mode="max", max_t=1_000, grace_period=2, reduction_factor=2
        )
        self._exempt = InOrder(in_flight)

    def set_search_properties(self, metric: Any, mode: Any, **spec: Any) -> bool:
        return True

    def _for(self, trial: Any) -> Any:
        return super() if trial.config.get("kind") == "search" else self._exempt

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._exempt.on_trial_add(tune_controller, trial)
        if self._for(trial) is not self._exempt:
            super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result.get("state") != "done":
            return TrialScheduler.CONTINUE
        return self._for(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if result.get("state") == "done":
            self._for(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._for(trial).on_trial_remove(tune_controller, trial)


SCHEDULERS: dict[str, Callable[[int], TrialScheduler]] = {"none": InOrder, "asha": StageASHA}
"""The scheduler of each pruner, made from the number of trials that run at once."""


def run_trials(folder: StudyFolder, searcher: LedgerSearcher, coordinator: Any, *, pruner: str, session: str) -> None:
    """Run the trials that the ledger still has. Returns when they have ended or the study is stopping. The trials take
    no CPU, and run on this node, since others may be unfit."""
    # it would name each trial of whose results Tune has no file, as none has one here
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    share, here = own_share()
    resources = tune.PlacementGroupFactory([share], bundle_label_selector=[here])
    trainable = tune.with_resources(tune.with_parameters(ChainTrial, coordinator=coordinator), resources)
    in_flight = searcher.ledger.in_flight
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=SCHEDULERS[pruner](in_flight),
            num_samples=-1,
            max_concurrent_trials=in_flight,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=session,
            storage_path=folder.path(folder.tune),
            storage_filesystem=folder.fs,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=10),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    tuner.fit()
