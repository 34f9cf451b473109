"""Sentences on decisions over a patient's images of all magnifications, which claim no more than the data show."""

import math
from collections.abc import Iterator

from kdtvit_ray.metrics import gain
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.patients import Added, Subset
from kdtvit_ray.results.rivals import value_and_interval
from kdtvit_ray.results.statistics import FEWEST_PATIENTS, Interval
from kdtvit_ray.results.words import amount, joined, metric_name, p_value, points

NO_CERTAINTY = (
    "An interval without width is no certainty: no draw of these patients gives another value, but other patients may."
)
"""Holds where no patient has an error, and where all draws have the same share of them, as of a constant answer."""


def decided(findings: Findings) -> Iterator[str]:
    """What the chosen model's decisions on patients reach, and what each magnification adds to them; no sentence where
    test has one magnification only, or where predictions are missing."""
    found, study = findings.patients, findings.study
    if found is None or found.models[0].model.kind != "best" or len(study.magnifications) < 2:
        return
    values = {metric: _told(each) for metric, each in found.models[0].values.items() if math.isfinite(each.value)}
    wanted = [metric for metric in dict.fromkeys((study.metric, "auc", "accuracy")) if metric in values]
    negative, positive = study.dataset.words
    if not wanted:
        return
    reached = joined([f"{metric_name(metric)} {values[metric]}" for metric in wanted])
    flat = any(found.models[0].values[metric].flat for metric in wanted)
    yield (
        f"One decision a patient, from the mean over its images of all magnifications, reaches {reached} on "
        f"{found.negative + found.positive} test patients ({found.negative} {negative}, {found.positive} {positive})."
    )
    if flat:
        yield NO_CERTAINTY
    if found.added is not None:
        yield adds(found.added, study.dataset.words)


def adds(added: Added, words: tuple[str, str]) -> str:
    """What all magnifications together add to each alone, and each of them to the others."""
    compared = [each for each in added.subsets if each.gain is not None and math.isfinite(each.p_holm)]
    if not compared:
        few = min(added.negative, added.positive) < FEWEST_PATIENTS
        why = (
            f"test has {added.negative} {words[0]} and {added.positive} {words[1]} patients with images at all of "
            f"them, and fewer than {FEWEST_PATIENTS} of a class tell nothing"
            if few
            else f"{metric_name(added.metric)} is not defined"
        )
        return f"What each magnification adds to that decision cannot be told: {why}."
    corrected = f"after Holm's correction for {len(compared)} comparisons"
    shown = [each for each in compared if each.shown]
    if not shown:
        without = " or from all without any one" if len(added.subsets[0].magnifications) > 2 else ""
        return (
            f"What each magnification adds to that decision cannot be shown: in {metric_name(added.metric)} it is not "
            f"distinguishable from the one from any magnification alone{without} ({corrected})."
        )
    better = [each for each in shown if _gain(added, each) > 0]
    worse = [each for each in shown if each not in better]
    sides = [
        f"{word} than from {joined([_by(each, added.metric) for each in part])}"
        for word, part in (("better", better), ("worse", worse))
        if part
    ]
    rest = len(compared) - len(shown)
    others = f"; the other {rest} show no difference" if rest else ""
    return f"In {metric_name(added.metric)} that decision is {' and '.join(sides)} ({corrected}{others})."


def _gain(added: Added, subset: Subset) -> float:
    assert subset.gain is not None
    return float(gain(added.metric, subset.gain.interval.value))


def _by(subset: Subset, metric: str) -> str:
    """`40X alone by 3.1 points (95 % CI 0.4 to 6.0, p = 0.010)`."""
    assert subset.gain is not None
    interval = subset.gain.interval
    low, high = sorted((abs(interval.low), abs(interval.high)))
    return (
        f"{subset.name} by {amount(abs(interval.value), metric)} (95 % CI {points(low, metric)} to "
        f"{points(high, metric)}, {p_value(subset.p_holm)})"
    )


def _told(each: Interval) -> str:
    return value_and_interval(each.value, each.low, each.high)
