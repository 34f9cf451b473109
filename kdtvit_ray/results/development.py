"""Sentences on what the development patients show, for studies whose objective is over inner folds: which settings
cannot be told from the chosen one, whether searched values differ, and how the choice stands against baselines."""

import math
from collections.abc import Iterator, Sequence

from kdtvit_ray.metrics import LOWER_IS_BETTER, gain
from kdtvit_ray.results.effects_over_patients import Contrast, OverPatients
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.how_many import compared, judged_in_full
from kdtvit_ray.results.models import Best
from kdtvit_ray.results.rivals import ALONE, Difference, allowed_for, value_and_interval
from kdtvit_ray.results.statistics import SIGNIFICANCE
from kdtvit_ray.results.trust import Search
from kdtvit_ray.results.words import amount, baseline_name, joined, metric_name, p_value, points, value_name

RULES = {
    "best": "which takes the best objective",
    "simplest": "which takes the fewest parameters, then the fewest distilled stages, within one standard error of the "
    "best objective",
}
MOST_NAMES = 8


def choice(findings: Findings) -> Iterator[str]:
    """How sure the choice among the settings is, and how much its objective flatters."""
    study, best, rivals = findings.study, findings.best, findings.other_settings
    if best is None or not rivals:
        return
    told = [each for each in rivals if each.tested]
    raced = " that racing did not drop" if (study.judged_settings["state"] == "pruned").any() else ""
    tied = [each.trial for each in told if each.tied]
    others = f"{len(rivals)} other setting{'s' * (len(rivals) > 1)}{raced}"
    where, chose = f"on {patients(findings)}", study.plain["study"]["choose"]
    corrected = f", after Holm's correction for {len(told)} comparisons" if len(told) > 1 else ""
    if not told:
        yield f"Whether its lead over the {others} is chance cannot be told {where}: they are too few."
    elif tied:
        yield (
            f"{len(tied)} of the {others} ({_few(tied)}) cannot be told from it {where}{corrected}: the choice among "
            f"them is a matter of the rule '{chose}', {RULES.get(chose, 'which is not known here')}."
        )
    else:
        yield f"The data tell it from the {others}, {where}{corrected}."
    better = [each.trial for each in told if not each.tied and gain(study.metric, each.difference.value) < 0]
    if better:
        are, them = ("are", "them") if len(better) > 1 else ("is", "it")
        yield f"The data show that {_few(better)} {are} better; the rule passed {them} over."
    flattering = flatters(findings)
    if flattering:
        yield flattering


def _picked(findings: Findings) -> tuple[Search, Best] | None:
    """The search and its choice, where there was something to choose from and its optimism is known."""
    search, best = findings.search, findings.best
    if search is None or best is None or not math.isfinite(search.optimism) or best.chosen_from < 2:
        return None
    return search, best


def flatters(findings: Findings) -> str:
    """By how much the best objective is too good; "" where there was nothing to choose from."""
    if (found := _picked(findings)) is None:
        return ""
    search, best = found
    metric = findings.study.metric
    dropped = bool((search.table["state"] == "pruned").any())
    more = "what racing dropped and chance in training come" if dropped else "chance in training comes"
    return (
        f"The best of {best.chosen_from} objectives is optimistic: it was picked on the patients that it was measured "
        f"on, which is expected to make it {amount(search.optimism, metric)} of {metric_name(metric)} "
        f"too good (bootstrap over patients; {more} on top)."
    )


def patients(findings: Findings) -> str:
    """`the 54 development patients (16 benign, 38 malignant)`."""
    found = findings.development_patients
    return f"the {found.patients} development patients ({found.told(findings.study.dataset.words)})"


def _few(trials: Sequence[str]) -> str:
    """Trials by name, as many as a sentence can hold."""
    if len(trials) <= MOST_NAMES:
        return joined(trials)
    return f"{', '.join(trials[:MOST_NAMES])} and {len(trials) - MOST_NAMES} more"


def baselines(findings: Findings) -> Iterator[str]:
    """The choice against the baselines, on the development patients."""
    rivals, study = findings.baselines_in_development, findings.study
    told = [each for each in rivals if each.tested]
    if not rivals:
        return
    if not told:
        yield f"How it stands against baselines on {patients(findings)} cannot be told: they are too few."
        return
    less = ", less what its choice flatters it there," if any(each.taken_off for each in told) else ""
    for each in (one for one in told if not one.tied):
        difference = Difference(study.metric, each.difference, each.p, each.p_holm, len(told))
        yield f"On the development patients{less} it {difference.against(baseline_name(each.trial))}"
    tied = [baseline_name(each.trial) for each in told if each.tied]
    if tied:
        yield f"On {patients(findings)} it cannot be told from {joined(tied)}."
    advantage = lead(findings)
    if advantage:
        yield advantage


def lead(findings: Findings) -> str:
    """What was taken off the differences from baselines, and why; "" where there was nothing to choose from."""
    if (found := _picked(findings)) is None:
        return ""
    search, _ = found
    rivals = [each.trial for each in findings.baselines_in_development]
    searched = [baseline_name(each) for each in rivals if _chosen_too(findings, each)]
    rule, metric = findings.study.plain["study"]["choose"], findings.study.metric
    own = f", less what their own choice flatters the searched {joined(searched)}" if searched else ""
    flattered = f"{'about' if rule == 'best' else 'up to'} {amount(search.optimism, metric)}"
    return (
        f"The chain was picked on the development patients from {judged_in_full(findings.study)}, which is expected to "
        f"flatter it there by {flattered}: that is taken off its differences from baselines{own}; intervals reach "
        "over the differences with and without that."
    )


def _chosen_too(findings: Findings, baseline: str) -> bool:
    """Whether a baseline was searched, and so was chosen on the development patients as the chain was."""
    search = findings.baseline_searches.get(baseline)
    return search is not None and search.had_choice


def nested(findings: Findings) -> Iterator[str]:
    """What the whole search reaches on patients that no search saw."""
    found, study = findings.nested, findings.study
    if found is None:
        return
    value = value_and_interval(found.value.value, found.value.low, found.value.high)
    yield (
        f"With the whole search repeated in {len(found.folds)} outer folds, the chosen chains reach "
        f"{metric_name(study.metric)} {value} on all {found.patients.patients} test patients "
        f"({found.patients.told(study.dataset.words)}), each judged by a chain whose search never saw "
        f"it (predictions of all folds pooled{ALONE if found.value.bounded else ''}): what a search with this space "
        "gives on new patients."
    )
    tests = sum(each.tested for each in found.baselines)
    for each in found.baselines:
        told = Difference(study.metric, each.difference, each.p, each.p_holm, tests)
        yield f"There the search {told.against(baseline_name(each.trial))}"
    if tests:
        yield allowed_for(len(found.folds))
    if found.unpaired:
        yield (
            f"There the search is not compared with {joined([baseline_name(each) for each in found.unpaired])}, whose "
            "predictions are not of the same patients."
        )


def settings(findings: Findings) -> Iterator[str]:
    """Whether values of searched settings differ for new patients."""
    asked = dict(findings.effects_over_patients)
    if not asked:
        return
    silent = [name for name, each in asked.items() if not each.contrasts]
    shown = {name: each for name, each in asked.items() if name not in silent and _shown(each)}
    smaller = min(each.patients for each in asked.values())
    over = f"over {compared(findings)}, with at least {smaller} patients of the smaller class at each magnification"
    for name, each in shown.items():
        yield _made_a_difference(findings, name, each)
    if shown:
        differ = "That difference is" if len(shown) == 1 else "These differences are"
        yield f"{differ} {over}; other patients and other trainings are allowed for."
    rest = [name for name in asked if name not in silent and name not in shown]
    if rest:
        yield f"For {joined(rest)} no difference can be shown {over}."
    if silent:
        yield too_few(silent)


def too_few(names: Sequence[str]) -> str:
    """The sentence on searched names of which no two values can be compared."""
    return (
        f"For {joined(names)} there are too few settings or patients to say whether "
        f"{'it matters' if len(names) == 1 else 'they matter'}."
    )


def _shown(effect: OverPatients) -> bool:
    return any(each.p_holm < SIGNIFICANCE for each in effect.contrasts)


def _made_a_difference(findings: Findings, name: str, effect: OverPatients) -> str:
    called = "Student size" if name == "student" else name.capitalize()
    clearest = effect.clearest
    assert clearest is not None
    return (
        f"{called} made a difference: {told(clearest, findings.study.metric)}, {p_value(clearest.p_holm)} after Holm's "
        "correction over all values that were compared."
    )


def told(contrast: Contrast, metric: str) -> str:
    """`micro is 1.4 points of out-of-fold AUC above nano (95 % CI 0.3 to 2.5), other settings being equal`."""
    value, low, high = contrast.difference.value, contrast.difference.low, contrast.difference.high
    above = "above" if value >= 0 else "below"
    if value < 0:
        value, low, high = -value, -high, -low
    lower = " (lower is better)" if metric in LOWER_IS_BETTER else ""
    against = "the mean of the other values" if contrast.low is None else value_name(contrast.low)
    return (
        f"{value_name(contrast.high)} is {amount(value, metric)} of out-of-fold {metric_name(metric)}{lower} {above} "
        f"{against} (95 % CI {points(low, metric)} to {points(high, metric)}), other settings being equal"
    )
