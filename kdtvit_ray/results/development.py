"""Sentences on what the development patients show, for studies whose objective is over inner folds: which settings
cannot be told from the chosen one, whether searched values differ, and how the choice stands against baselines."""

import math
from collections.abc import Iterator

from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.results.effects_over_patients import Contrast, OverPatients
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.rivals import SHOWN, Difference, value_and_interval
from kdtvit_ray.results.words import baseline_name, joined, metric_name, p_value, points

RULES = {
    "best": "the best objective",
    "simplest": "the fewest parameters, then the fewest distilled stages, within one standard error of the best",
}


def choice(findings: Findings) -> Iterator[str]:
    """How sure the choice among the settings is."""
    study, best, rivals = findings.study, findings.best, findings.other_settings
    if best is None or not rivals:
        return
    tied = [each for each in rivals if each.tied]
    rule = RULES.get(study.plain.get("study", {}).get("choose", "best"), "")
    search = findings.search
    flatters = (
        f" Its objective is expected to be {points(search.optimism)} points too good, because it was picked on them."
        if search is not None and math.isfinite(search.optimism)
        else ""
    )
    if not tied:
        yield f"The data tell it from all {len(rivals)} other settings, on the development patients.{flatters}"
        return
    yield (
        f"{len(tied)} of the {len(rivals)} other settings that were judged on all inner folds cannot be told from it "
        f"on the development patients; among those it was chosen for {rule}.{flatters}"
    )


def baselines(findings: Findings) -> Iterator[str]:
    """The choice against the baselines, on the development patients."""
    rivals = findings.baselines_in_development
    if not rivals:
        return
    shown = [each for each in rivals if not each.tied]
    metric = findings.study.metric
    for each in shown:
        told = Difference(metric, each.difference, each.p, each.p_holm, len(rivals))
        yield f"On the development patients, where it was chosen, it {told.against(baseline_name(each.trial))}"
    rest = [baseline_name(each.trial) for each in rivals if each.tied]
    if rest:
        yield (
            f"On the development patients it cannot be told from {joined(rest)}, though it was chosen there and "
            f"{'they were' if len(rest) > 1 else 'that was'} not."
        )


def nested(findings: Findings) -> Iterator[str]:
    """What the whole search reaches on patients that no search saw."""
    found, study = findings.nested, findings.study
    if found is None:
        return
    negative, positive = study.dataset.words
    value = value_and_interval(found.value.value, found.value.low, found.value.high)
    yield (
        f"With the whole search repeated in {len(found.folds)} outer folds, the chosen chains reach "
        f"{metric_name(study.metric)} {value} on all {found.negative + found.positive} test patients "
        f"({found.negative} {negative}, {found.positive} {positive}), each judged by a chain whose search never saw "
        "it: what a search with this space gives on new patients."
    )
    for each in found.baselines:
        told = Difference(study.metric, each.difference, each.p, each.p_holm, len(found.baselines))
        yield f"There the search {told.against(baseline_name(each.trial))}"


def settings(findings: Findings) -> Iterator[str]:
    """Whether values of searched settings differ for new patients."""
    asked = dict(findings.effects_over_patients)
    if not asked:
        return
    count = next(iter(asked.values())).settings
    silent = [name for name, each in asked.items() if not each.contrasts]
    shown = {name: each for name, each in asked.items() if name not in silent and _shown(each)}
    for name, each in shown.items():
        yield from _made_a_difference(findings, name, each)
    rest = [name for name in asked if name not in silent and name not in shown]
    over = f"over {count} settings, judged on all inner folds, and their development patients"
    if rest:
        yield f"For {joined(rest)} no difference can be shown {over}."
    if silent:
        yield f"For {joined(silent)} there are too few settings or patients to say whether it matters."


def _shown(effect: OverPatients) -> bool:
    return any(each.p_holm < SHOWN for each in effect.contrasts)


def _made_a_difference(findings: Findings, name: str, effect: OverPatients) -> Iterator[str]:
    called = "Student size" if name == "student" else name.capitalize()
    clearest = effect.clearest
    assert clearest is not None
    yield (
        f"{called} made a difference: {told(clearest, findings.study.metric)}, {p_value(clearest.p_holm)} after Holm's "
        "correction over all values that were compared. Other patients and other trainings are allowed for."
    )


def told(contrast: Contrast, metric: str) -> str:
    """`micro is 1.4 points of out-of-fold AUC above nano (95 % CI 0.3 to 2.5), other settings being equal`."""
    value, low, high = contrast.difference.value, contrast.difference.low, contrast.difference.high
    above = "above" if value >= 0 else "below"
    if value < 0:
        value, low, high = -value, -high, -low
    lower = " (lower is better)" if metric in LOWER_IS_BETTER else ""
    against = "the mean of the other values" if contrast.low is None else str(contrast.low)
    return (
        f"{contrast.high} is {points(value)} points of out-of-fold {metric_name(metric)}{lower} {above} {against} "
        f"(95 % CI {points(low)} to {points(high)}), other settings being equal"
    )
