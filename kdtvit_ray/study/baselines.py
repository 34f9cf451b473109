"""The baselines: chains that a distilled chain is compared with, and what may be searched for them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from kdtvit_ray.chain import Chain
from kdtvit_ray.recipe import StageSpec

Value = TypeVar("Value")


def _per_magnification(chain: Chain) -> dict[str, tuple[StageSpec, ...]]:
    alone = replace(chain, teacher=chain.student, temperature=(), alpha=())
    return {f"per_magnification-{each}": replace(alone, order=(each,)).stages() for each in chain.order}


def _joint(chain: Chain) -> dict[str, tuple[StageSpec, ...]]:
    return {"joint": chain.joint()}


def _sequential(chain: Chain) -> dict[str, tuple[StageSpec, ...]]:
    # all stages have the student's architecture, since plain fine-tuning hands over weights alone
    alpha = (0.0,) * (len(chain.order) - 1)
    return {"sequential": replace(chain, teacher=chain.student, alpha=alpha).stages()}


def _from_scratch_kd(chain: Chain) -> dict[str, tuple[StageSpec, ...]]:
    return {"from_scratch_kd": replace(chain, warm_start=False).stages()}


BASELINES: dict[str, Callable[[Chain], dict[str, tuple[StageSpec, ...]]]] = {
    "per_magnification": _per_magnification,
    "joint": _joint,
    "sequential": _sequential,
    "from_scratch_kd": _from_scratch_kd,
}
"""The trials of each baseline, made from a chain: that of the space's fixed values, or of a suggestion."""


DECIDING = {"joint": ("student", "training"), "sequential": ("order", "student", "warm_start", "training")}
"""What of [search] decides something for a baseline that can be searched. All stages of `sequential` have the student's
architecture, so that no teacher is chosen."""


def deciding(baseline: str, dimensions: Mapping[str, Value]) -> dict[str, Value]:
    """Of what is searched for distilled chains, by name, that which decides something for a baseline."""
    made = {name: each for name, each in dimensions.items() if name.partition(".")[0] in DECIDING[baseline]}
    if baseline == "joint":  # its one stage is neither a first stage nor a later one, as in training.first.lr
        made = {name: each for name, each in made.items() if name.count(".") < 2 and ".rehearsal" not in name}
    return made
