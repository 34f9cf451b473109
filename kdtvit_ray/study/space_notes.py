"""What a user is told of a space before anything is trained: how many settings its search tries, and what it cannot
promise."""

import random
from itertools import islice

from kdtvit_ray.results.words import counted
from kdtvit_ray.study.space import SMALL, Space

ASHA_NOTE = (
    "Pruner 'asha' compares a trial with those that ended before it, so the same seed does not give the same study "
    "again; reproducible = false says so"
)


def notes(space: Space) -> list[str]:
    """A sentence where the space has fewer settings than trials are asked for, as far as they are counted, and one
    where its pruner lets no study be repeated although it is to be reproducible."""
    study, found = space.study, []
    if space.trials < study["trials"]:
        found.append(
            f"The space has {counted(space.trials, 'different setting')}, fewer than the {study['trials']} trials "
            "asked for: the search ends when all have been tried"
        )
    if study["pruner"] == "asha" and study["reproducible"]:
        found.append(ASHA_NOTE)
    return found


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
