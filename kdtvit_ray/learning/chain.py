"""Run the stages of chains in this process, one after another: what a study computes, without Ray."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.learning.outcome import Progress, StageResult
from kdtvit_ray.learning.outputs import StoredOutputs
from kdtvit_ray.learning.preflight import check_chain
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.teacher import Parent
from kdtvit_ray.learning.warm import WarmModels
from kdtvit_ray.recipe import DataSpec, StageSpec


def run_chain(
    stages: Sequence[StageSpec],
    prepared: Any,
    *,
    device: str | torch.device | None = None,
    progress: Callable[[int, StageSpec, Progress], None] | None = None,
) -> list[StageResult]:
    """Results of `stages`, parents first. `progress` is called after each epoch with the stage's number from 1, its
    spec, and where it is. A stage that occurs twice is trained once. Raises what `train_stage` raises, and a
    `UserError` for a stage that cannot be trained before any is."""
    check_chain(stages, prepared.dataset, prepared.images.shape[1])
    outputs, models = StoredOutputs(), WarmModels()
    data: dict[DataSpec, StageData] = {}
    done: dict[str, StageResult] = {}
    results = []
    for number, spec in enumerate(stages, start=1):
        key = spec.key
        if key not in done:
            if spec.data not in data:
                data[spec.data] = StageData(prepared, spec.data, data.values())
            parent = None
            if spec.parent is not None:
                before = done[spec.parent]
                parent = Parent(before.spec, before.state)

            def report(now: Progress, number: int = number, spec: StageSpec = spec) -> bool:
                if progress is not None:
                    progress(number, spec, now)
                return True

            result = train_stage(
                spec, data[spec.data], parent, device=device, on_epoch=report, outputs=outputs, models=models
            )
            assert result is not None
            done[key] = result
        results.append(done[key])
    return results
