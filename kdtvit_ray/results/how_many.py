"""Over how many settings a choice, a table or a figure is, in words."""

from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models import Best
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import tried


def chosen_from(study: Study, best: Best) -> str:
    """What the best chain was chosen from: how many settings, and which of them were not judged in full."""
    searched = study.trials[study.trials["kind"] == "search"]
    repeats, dropped = len(study.searched) - best.chosen_from, _dropped(study)
    told = tried(best.chosen_from + dropped)
    if dropped:
        early = "racing dropped" if study.parts else f"{'was' if dropped == 1 else 'were'} stopped early"
        told += f", {dropped} of which {early}"
    elif best.chosen_from == 1 and len(searched) > 1 + repeats:  # the others failed, or their metric is undefined
        told = "the only setting that has an objective"
    if repeats:
        told += f" ({repeats} more {'trial repeats one' if repeats == 1 else 'trials repeat one'})"
    return told


def judged_in_full(study: Study) -> str:
    """`the 3 settings that racing did not drop (of 16)`."""
    count, dropped = len(study.settings), _dropped(study)
    which = "was judged" if count == 1 else "were judged"
    if dropped:
        early = "racing did not drop" if study.parts else f"{'was' if count == 1 else 'were'} not stopped early"
        which = f"{early} (of {count + dropped})"
    return f"the {'only setting' if count == 1 else f'{count} settings'} that {which}"


def compared(findings: Findings) -> str:
    """The settings whose values are compared (`judged.compared`), and what they are judged on."""
    settings, study = findings.compared, findings.study
    if not (settings["state"] == "pruned").any():
        return judged_in_full(study)
    common = f"{len(findings.folds_in_common)} of {len(study.parts)}"
    return (
        f"all {len(settings)} settings, those that racing dropped too, on the {common} inner folds that all of them had"
    )


def _dropped(study: Study) -> int:
    return int(((study.trials["kind"] == "search") & (study.trials["state"] == "pruned")).sum())
