"""How many trials of each kind a study is to have, before its searches have found out how many settings there are."""

from contextlib import suppress

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import KINDS
from kdtvit_ray.results.study_status import Status
from kdtvit_ray.study.space import Space


def planned(folder: StudyFolder, space: Space, replicates: int) -> dict[str, int]:
    """By kind. Beside replicates nothing is searched, so that the last session tells what its searches found, and how
    many refits followed."""
    found = dict.fromkeys(KINDS, 0) | {
        "search": space.trials,
        "baseline": len(space.baselines()),
        "baseline_search": sum(each.trials for each in space.searched_baselines().values()),
        "confirm": replicates,
    }
    if replicates:
        with suppress(FileNotFoundError, ValueError):  # none, or a damaged one
            last = Status.read(folder)
            for kind, counts in (("search", last.trials), ("baseline_search", last.baseline_settings)):
                found[kind] = min(found[kind], counts.total or found[kind])
            found["refit"] = last.refits.total
    return found
