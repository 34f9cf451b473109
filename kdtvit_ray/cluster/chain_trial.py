"""The thin trial of Ray Tune: it waits for the stages of a chain and reports each.

Trials hold no data and no model; their actors are reused, so a trial costs a few calls. A trial that fails reports it
as its result instead of raising: its actor stays usable, and Tune's own retries are left to actors that die.

Each actor imports this module, and there are many: it needs Ray alone.
"""

from typing import TYPE_CHECKING, Any

import ray
from ray import tune

if TYPE_CHECKING:
    from kdtvit_ray.cluster.messages import StageOutcome

LOWEST = -1e9
"""The objective that a trial reports before it has one: lower than any metric that can be the objective."""


class ChainTrial(tune.Trainable):
    """One trial. It waits for the stages of its chain and reports once for each that is finished."""

    _trial: str
    _stages: int
    _stage: int
    _objective: float | None

    def setup(self, config: dict[str, Any], coordinator: Any = None) -> None:
        self._coordinator = coordinator
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        while True:
            outcome: StageOutcome = ray.get(self._coordinator.result.remote(self._trial, self._stage))
            if outcome.state != "waiting":
                break
        if outcome.state == "done":
            self._stage += 1
            self._objective = outcome.objective
        return {
            "objective": self._objective,
            "stage": self._stage,
            "stages": self._stages,
            "state": outcome.state,
            "reason": outcome.reason,
            "fault": outcome.fault,
            "done": outcome.state != "done" or self._stage == self._stages,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        return None  # finished stages are on storage; there is nothing else to save

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None

    def _begin(self, config: dict[str, Any]) -> None:
        self._trial, self._stages = config["trial"], config["stages"]
        self._stage = 0
        self._objective = LOWEST
