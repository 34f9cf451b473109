"""What a user is told of a space before anything is trained: how many settings its search tries, and what it cannot
promise."""

import itertools
import random
from itertools import islice

from kdtvit_ray.recipe import parse_order
from kdtvit_ray.results.words import counted
from kdtvit_ray.study.dimensions import possible
from kdtvit_ray.study.space import SMALL, Space

ASHA_NOTE = (
    "Pruner 'asha' compares a trial with those that ended before it, so the same seed does not give the same study "
    "again; reproducible = false says so"
)

ALPHA_NOTE = (
    "With alpha 1 a student that starts from its own teacher's weights gives the teacher's outputs already and has "
    "nothing to learn: its stages move by rounding errors alone; to learn, take alpha below 1 or warm_start = false"
)


def notes(space: Space) -> list[str]:
    """A sentence where the space has fewer settings than trials are asked for, as far as they are counted, one where
    its pruner lets no study be repeated although it is to be reproducible, and one where chains would train nothing."""
    study, found = space.study, []
    if space.trials < study["trials"]:
        found.append(
            f"The space has {counted(space.trials, 'different setting')}, fewer than the {study['trials']} trials "
            "asked for: the search ends when all have been tried"
        )
    if study["pruner"] == "asha" and study["reproducible"]:
        found.append(ASHA_NOTE)
    if _own_teachers(space):
        found.append(ALPHA_NOTE)
    return found


def _own_teachers(space: Space) -> bool:
    """Whether a chain may have alpha 1 where a student starts as its own teacher. From stage 3 on every student with a
    warm start does."""
    alphas = [each.ends[1] for name, each in space.dimensions.items() if name.partition(".")[0] == "alpha"]
    warm, orders, teachers, students = (
        possible(space.dimensions, name, space.chain[name]) for name in ("warm_start", "order", "teacher", "student")
    )
    longest = max(len(parse_order(each)) for each in orders)
    alike = any(
        space.models[one].same_architecture(space.models[other]) for one, other in itertools.product(teachers, students)
    )
    return max(alphas or [space.chain["alpha"]]) == 1 and True in warm and longest > (1 if alike else 2)


def trials_told(space: Space) -> str:
    """How many trials the search has; "at most" so many where the settings are not counted and random suggestions do
    not show that there are enough."""
    planned, found = space.study["trials"], set()
    if not space.is_counted:
        for params in islice(space.samples(random.Random(0)), SMALL * planned):
            found.add(space.setting(params))
            if len(found) == planned:
                break
    return f"{'' if space.is_counted or len(found) == planned else 'at most '}{space.trials}"
