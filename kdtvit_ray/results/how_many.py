"""Over how many settings a choice, a table or a figure is, in words."""

from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models import Best
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.undefined_objectives import undefined
from kdtvit_ray.results.words import joined, tried


def chosen_from(study: Study, best: Best) -> str:
    """What the best chain was chosen from: how many settings, and which of them were not judged in full."""
    searched = study.trials[study.trials["kind"] == "search"]
    repeats, dropped, without = len(study.searched) - best.chosen_from, _dropped(study), _without_objective(study)
    told = tried(best.chosen_from + dropped + without)
    fates = []
    if dropped:
        early = "racing dropped" if study.parts else f"{'was' if dropped == 1 else 'were'} stopped early"
        fates.append(f"{dropped} of which {early}")
    if without:
        fates.append(f"{without} of which {'has' if without == 1 else 'have'} no objective")
    if fates and (dropped or best.chosen_from > 1):
        told += f", {joined(fates)}"
    elif best.chosen_from == 1 and len(searched) > 1 + repeats:  # the others failed, or their metric is undefined
        told = "the only setting that has an objective"
    if repeats:
        told += f" ({repeats} more {'trial repeats one' if repeats == 1 else 'trials repeat one'})"
    return told


def judged_in_full(study: Study) -> str:
    """`the 3 settings that racing did not drop (of 16)`."""
    count, dropped, without = len(study.settings), _dropped(study), _without_objective(study)
    which = "was judged" if count == 1 else "were judged"
    fates = []
    if dropped:
        fates.append("racing did not drop" if study.parts else f"{'was' if count == 1 else 'were'} not stopped early")
    if without:
        fates.append(f"{'has' if count == 1 else 'have'} an objective")
    if fates:
        which = f"{' and that '.join(fates)} (of {count + dropped + without})"
    return f"the {'only setting' if count == 1 else f'{count} settings'} that {which}"


def compared(findings: Findings) -> str:
    """The settings whose values are compared (`judged.compared`), and what they are judged on."""
    settings, study = findings.compared, findings.study
    if not (settings["state"] == "pruned").any():
        return judged_in_full(study)
    left_out = len(study.judged_settings) + _without_objective(study) > len(settings)
    which = f"all {len(settings)} settings{' that have an objective' if left_out else ''}"
    common = f"{len(findings.folds_in_common)} of {len(study.parts)}"
    return f"{which}, those that racing dropped too, on the {common} inner folds that all of them had"


def _dropped(study: Study) -> int:
    return int(((study.trials["kind"] == "search") & (study.trials["state"] == "pruned")).sum())


def _without_objective(study: Study) -> int:
    return len(study.different(undefined(study)))
