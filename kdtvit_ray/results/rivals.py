"""Sentences on differences: the best chain against its rivals on test, and chains that were trained again.

A difference counts as shown when its 95 % interval leaves zero out and its p-value, after Holm's correction over all
that is compared with it, is below 0.05.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.metrics import LOWER_IS_BETTER, gain
from kdtvit_ray.results.confirmation import Pooled
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models_on_test import Comparison, apart
from kdtvit_ray.results.statistics import MEAN, SIGNIFICANCE, Interval
from kdtvit_ray.results.words import amount, baseline_name, joined, metric_name, p_value, points


@dataclass(frozen=True)
class Difference:
    """A difference as a sentence needs it, in shares of one. `tests` says how many differences were corrected together;
    `few` says how many patients there are where they are too few."""

    metric: str
    interval: Interval
    p: float
    p_holm: float
    tests: int
    few: str = ""

    def against(self, rival: str) -> str:
        """`adds 0.4 points of AUC over RIVAL (95 % CI -0.6 to 1.5): not distinguishable from zero.` A loss and its
        interval are told as what is lost; of what is better when it is lower, better and worse are told."""
        value, ends, verdict = self.interval.value, "", self.few or "how sure that is cannot be told"
        if self.interval.bounded:
            low, high = sorted(math.copysign(1, value) * each for each in (self.interval.low, self.interval.high))
            ends = f" (95 % CI {points(low, self.metric)} to {points(high, self.metric)})"
            verdict = "not distinguishable from zero"
            if not self.interval.spans_zero:
                corrected = (
                    f"{p_value(self.p_holm)} after Holm's correction for {self.tests} comparisons"
                    if self.tests > 1
                    else p_value(self.p)
                )
                shown = self.p_holm < SIGNIFICANCE
                verdict = f"{'a difference that the data show' if shown else verdict}, {corrected}"
        much = f"{amount(abs(value), self.metric)} of {metric_name(self.metric)}"
        if self.metric in LOWER_IS_BETTER:
            return f"is {much} {'better' if gain(self.metric, value) >= 0 else 'worse'} than {rival}{ends}: {verdict}."
        does, over = ("adds", "over") if value >= 0 else ("loses", "against")
        return f"{does} {much} {over} {rival}{ends}: {verdict}."


def rivals(findings: Findings) -> Iterator[str]:
    """The best chain against the baseline `sequential`, the other students' best chains and the other baselines."""
    best = findings.best
    if best is None:
        return
    found = findings.comparisons
    tests = sum(math.isfinite(each.p) for each in found)  # what Holm's correction is over
    for rival in sorted(found, key=lambda each: (each.against.name != "sequential", each.against.kind != "student")):
        if not math.isfinite(rival.difference.value):
            continue
        name, told = rival.against.name, _of_comparison(rival, tests)
        if rival.against.kind == "student":
            over = f"the best chain with student {name.removeprefix('best-')}"
            yield f"The best chain, with student {best.student}, {told.against(over)}"
        elif rival.matched:
            yield (
                f"With that baseline's order, student and training settings, distillation (trial {rival.trial}) "
                f"{told.against(baseline_name(name))}"
            )
        elif name == "sequential":
            yield from _sequential(findings, best.trial, told)
        else:
            yield f"The best chain {told.against(baseline_name(name))}"
    yield from _same(findings)


def _same(findings: Findings) -> Iterator[str]:
    """Which models are not compared, since an earlier one has trained the very same stages."""
    of: dict[str, list[str]] = {}
    for name, earlier in findings.same_stages.items():
        of.setdefault(earlier, []).append(_called(name))
    for earlier, names in of.items():
        told = joined(names)
        begin, are = told[0].upper() + told[1:], "it is" if len(names) == 1 else "they are"
        yield f"{begin} trained the same stages as {_called(earlier)}, so {are} not compared apart."


def _called(model: str) -> str:
    if model == "best":
        return "the best chain"
    student = model.removeprefix("best-")
    return baseline_name(model) if student == model else f"the best chain with student {student}"


def _sequential(findings: Findings, trial: str, told: Difference) -> Iterator[str]:
    """The best chain against the baseline that does not distil, and what else sets the two apart."""
    study = findings.study
    record, own = study.trial("sequential"), study.trial(trial)
    if record is None or own is None:
        return
    others, distils = apart(own, record, study.plain["training"]), any(json.loads(own["alpha"]))
    what = "The searched chain" if others or not distils else "Distillation"
    yield f"{what} {told.against(baseline_name('sequential'))}"
    if others:
        differs = "; ".join(f"{setting} {theirs} against {ours}" for setting, ours, theirs in others)
        search = findings.baseline_searches.get("sequential")
        if not distils:
            yield f"Neither of the two distils; the baseline differs in {differs}."
        elif search is not None and search.had_choice:
            yield (
                f"That baseline was searched too and chose other values ({differs}), so the difference is that between "
                "the best that was found with distillation and without it."
            )
        else:
            yield (
                f"That baseline was not searched and differs in more than distillation ({differs}), so the difference "
                "is that of the whole search."
            )


def _of_comparison(rival: Comparison, tests: int) -> Difference:
    few = f"too few patients to tell, {rival.patients} of a class at some magnification" if rival.few else ""
    return Difference(rival.metric, rival.difference, rival.p, rival.p_holm, tests, few)


def trained_again(findings: Findings) -> Iterator[str]:
    """Chains that were trained again over folds and seeds; no sentence without a confirmation."""
    study, found = findings.study, findings.confirmed
    if not len(found):
        return
    found = found[(found["level"] == "image") & (found["metric"] == study.metric) & (found["column"] == MEAN)]
    if not len(found):
        return
    first = found.iloc[0]
    chain = baseline_name(first["chain"])
    fold = study.plain["protocol"]["fold"]
    spread = f" \u00b1 {first['sd']:.3f} (sd)" if math.isfinite(first["sd"]) else ""
    reached = f"reaches {metric_name(study.metric)} {first['mean']:.3f}{spread} on test"
    if first["folds"] < 2:
        yield (
            f"Trained again with {first['runs']} seed{'s' if first['runs'] > 1 else ''} at one fold, {chain} "
            f"{reached}; that tells of training noise, not of other patients."
        )
    else:
        several = int((found["chain"].map(baseline_name) == found["chain"]).sum())
        best = f", the best of the {several} settings on {study.chosen_on}," if several > 1 else ""
        ends = ""
        if math.isfinite(first["low"]):
            span = f"{first['low']:.3f} to {first['high']:.3f}"
            ends = f", 95 % CI {span} by Nadeau and Bengio's corrected t over the folds"
        yield (
            f"Trained again {first['runs']} times over {first['folds']} folds, {chain}{best} {reached}{ends}. Its "
            f"settings were chosen with fold {fold}, whose other images are test images of other folds."
        )
    if findings.uneven:
        yield findings.uneven
    if findings.pooled is not None:
        yield from _pooled(findings, findings.pooled)
    else:
        yield from _each_difference(findings, found, "Fold by fold it")


def _pooled(findings: Findings, found: Pooled) -> Iterator[str]:
    """What the folds say together, with every test patient judged once."""
    study, table = findings.study, found.table
    table = table[(table["level"] == "image") & (table["metric"] == study.metric) & (table["column"] == MEAN)]
    first = table.iloc[0]
    reached = value_and_interval(first["value"], first["low"], first["high"])
    yield (
        f"Over all {found.patients.patients} patients of the {found.folds} folds "
        f"({found.patients.told(study.dataset.words)}), each judged by models that were not trained on it, "
        f"{baseline_name(first['chain'])} reaches {metric_name(study.metric)} {reached} (out-of-fold "
        f"predictions pooled, patients resampled{ALONE if 'CI' in reached else ''})."
    )
    told = list(_each_difference(findings, table, "Over these patients it"))
    yield from told
    if any("CI" in each for each in told):
        yield allowed_for(found.folds)


ALONE = "; for these trained models: chance in training is not in it"
"""What an interval over patients leaves out."""


def allowed_for(folds: int) -> str:
    """What the differences of chains that were trained anew in every fold allow for."""
    return (
        "These differences allow for other patients and for chance in training, which is told from how far the chains "
        f"differ from fold to fold over the {folds} folds."
    )


def _each_difference(findings: Findings, table: pd.DataFrame, begin: str) -> Iterator[str]:
    """The first chain of a table against each of the others that it can be compared with."""
    metric = findings.study.metric
    if "difference" not in table:
        return
    tests = int(table["p"].notna().sum()) if "p" in table else 0
    for line in table.iloc[1:].itertuples():
        if math.isfinite(line.difference) and line.chain not in findings.same_stages:
            interval = Interval(line.difference, line.difference_low, line.difference_high)
            told = Difference(metric, interval, line.p, line.p_holm, tests)
            yield f"{begin} {told.against(baseline_name(line.chain))}"


def value_and_interval(value: float, low: float, high: float) -> str:
    """`0.957 (95 % CI 0.846 to 1.000)`, without brackets where there is no interval."""
    return f"{value:.3f} (95 % CI {low:.3f} to {high:.3f})" if math.isfinite(low) else f"{value:.3f}"
