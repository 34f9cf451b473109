"""What a study found, in plain sentences that say no more than the data can show.

A difference counts as shown when its 95 % interval leaves zero out and its p-value, after Holm's correction over all
that is compared with it, is below 0.05.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.results.confirm import Pooled, confirmed, pooled
from kdtvit_ray.results.effects import Effect, effects
from kdtvit_ray.results.effort import sharing
from kdtvit_ray.results.headline import Comparison, columns_of, comparisons, differences, headline
from kdtvit_ray.results.statistics import MEAN, REPLICATES, Interval
from kdtvit_ray.results.study import Best, Study, best, listed
from kdtvit_ray.results.transfer import Transfer, forgetting, transfer_metrics
from kdtvit_ray.results.words import metric_name as metric_word

SHOWN = 0.05
FEW_FAILURES = 3
RIVALS = {
    "per_magnification": "one model per magnification",
    "joint": "one model trained on all magnifications at once",
    "sequential": "sequential fine-tuning",
    "from_scratch_kd": "distillation without warm start",
}


def answer(study: Study, replicates: int = REPLICATES) -> list[str]:
    """Sentences, most important first: state, best chain, its test figures, rivals, settings, forgetting, cost,
    failures. Works for a study of any state, without trials too."""
    chosen = best(study)
    sentences = [_state(study)]
    if chosen is None:
        sentences.append("No searched trial is complete, so there is no best chain and nothing to conclude.")
    else:
        sentences += [_choice(study, chosen), *_figures(study, replicates)]
        sentences += _rivals(study, chosen, comparisons(study, replicates))
        sentences += _confirmed(study, replicates)
        sentences += _settings(study)
        sentences += _kept(study)
    if len(study.trials):
        sentences.append(_cost(study))
    sentences += _failures(study)
    return sentences


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def _state(study: Study) -> str:
    searched = study.trials[study.trials["kind"] == "search"]
    states = searched["state"].value_counts()
    parts = [f"{states[each]} {each}" for each in ("complete", "failed", "pruned") if each in states]
    names = study.planned_baselines
    there = sum(name in set(study.trials["trial"]) for name in names)
    word = "finished" if study.finished else "not finished, and everything below is interim"
    counts = f" ({', '.join(parts)})" if parts else ""
    baselines = f", and {there} of {len(names)} baseline trials" if names else ""
    ended = f"{len(searched)} of {study.planned} searched trials have ended"
    return f"Study '{study.name}' is {word}: {ended}{counts}{baselines}."


def _choice(study: Study, chosen: Best) -> str:
    tried, repeats = _tried(chosen.chosen_from), len(study.searched) - chosen.chosen_from
    if repeats:
        tried += f" ({repeats} more {'trial repeats one' if repeats == 1 else 'trials repeat one'})"
    distilled = (
        f"T = {listed(chosen.temperature)}, alpha = {listed(chosen.alpha)}" if chosen.temperature else "no distillation"
    )
    return (
        f"The best chain, chosen on validation from {tried}, is {chosen.trial}: order {chosen.order}, teacher "
        f"{chosen.teacher}, student {chosen.student} ({chosen.parameters:,} parameters), {distilled}; its validation "
        f"{metric_word(study.metric)} is {chosen.objective:.3f} as the mean over magnifications."
    )


def _figures(study: Study, replicates: int) -> Iterator[str]:
    long = headline(study, replicates).long
    of_best = long[long["kind"] == "best"]

    def cell(level: str, metric: str, column: str) -> pd.Series | None:
        found = of_best[
            (of_best["level"] == level) & (of_best["metric"] == metric) & (of_best["magnification"] == column)
        ]
        return found.iloc[0] if len(found) and math.isfinite(found.iloc[0]["value"]) else None

    word = metric_word(study.metric)
    mean = cell("image", study.metric, MEAN)
    each = [
        f"{column} {_number(found)}"
        for column in columns_of(study)
        if (found := cell("image", study.metric, column)) is not None
    ]
    if mean is None and not each:
        yield "Its test figures cannot be told: rows and predictions of its last stage are missing."
        return
    if mean is None:
        yield (
            f"On test images it reaches {word} {', '.join(each)}; elsewhere it is not defined, so it has no mean over "
            "magnifications."
        )
    else:
        yield f"On test images it reaches {word} {_number(mean)} as the mean over {_over(study)}; {', '.join(each)}."
        if not math.isfinite(mean["low"]):
            yield (
                "There is no interval: test has too few patients for one, or the predictions are missing "
                "(the notes below the headline say which)."
            )
    others = []
    for level, metric, name in (
        ("image", "accuracy", "image-level accuracy"),
        ("patient_rate", "accuracy", "patient-level rate accuracy"),
        ("image", "recall", "sensitivity"),
        ("image", "specificity", "specificity"),
    ):
        found = cell(level, metric, MEAN)
        if found is not None:
            others.append(f"{name} {_number(found)}")
    if others:
        yield f"At the threshold 0.5 its means over {_over(study)} are {', '.join(others)}."
    if study.leaks:
        yield (
            "The split is by image: images of one patient are in train and in test, so these figures leak and are too "
            "good."
        )


def _over(study: Study) -> str:
    """What a mean is over: all magnifications, or the few that the study has."""
    columns = columns_of(study)
    return "magnifications" if len(columns) > 3 else _and(columns)


def _rivals(study: Study, chosen: Best, rivals: Sequence[Comparison]) -> Iterator[str]:
    ordered = sorted(rivals, key=lambda each: (each.against.name != "sequential", each.against.kind != "student"))
    record, own = study.trial("sequential"), study.trial(chosen.trial)
    for rival in ordered:
        if not math.isfinite(rival.difference):
            continue
        name = rival.against.name
        told = _against(rival, len(rivals))
        if rival.against.kind == "student":
            over = f"the best chain with student {name.removeprefix('best-')}"
            yield f"The best chain, with student {chosen.student}, {_difference(told, over)}"
        elif rival.alike:
            yield (
                f"With that baseline's order, student and training settings, distillation (trial {rival.trial}) "
                f"{_difference(told, RIVALS[name])}"
            )
        elif name == "sequential" and record is not None and own is not None:
            apart = differences(own, record, study.plain.get("training", {}))
            yield f"{'The searched chain' if apart else 'Distillation'} {_difference(told, RIVALS[name])}"
            if apart:
                differs = "; ".join(f"{setting} {theirs} against {ours}" for setting, ours, theirs in apart)
                yield (
                    f"That baseline was not searched and differs in more than distillation ({differs}), so the "
                    "difference is that of the whole search."
                )
        else:
            yield f"The best chain {_difference(told, RIVALS.get(name, name))}"


@dataclass(frozen=True)
class _Against:
    """A difference as a sentence needs it, in shares of one; `few` names patients where they are too few."""

    metric: str
    difference: Interval
    p: float
    p_holm: float
    tests: int
    few: str = ""


def _against(rival: Comparison, tests: int) -> _Against:
    difference = Interval(rival.difference, rival.low, rival.high)
    few = f"too few patients to tell, {rival.patients} in the smaller class" if rival.few else ""
    return _Against(rival.metric, difference, rival.p, rival.p_holm, tests, few)


def _difference(found: _Against, over: str) -> str:
    """`adds 0.4 points of AUC over X (95 % CI -0.6 to 1.5): not distinguishable from zero.`"""
    points, interval = 100 * found.difference.value, ""
    verdict = found.few or "how sure that is cannot be told"
    if found.difference.bounded:
        interval = f" (95 % CI {_points(found.difference.low)} to {_points(found.difference.high)})"
        verdict = "not distinguishable from zero"
        if not found.difference.spans_zero:
            corrected = (
                f"p {_p(found.p_holm)} after Holm's correction for {found.tests} comparisons"
                if found.tests > 1
                else f"p {_p(found.p)}"
            )
            verdict = f"a difference that the data show, {corrected}"
            if found.p_holm >= SHOWN:
                verdict = f"not distinguishable from zero, {corrected}"
    does, against = ("adds", "over") if points >= 0 else ("loses", "against")
    much = f"{_points(abs(points) / 100)} points of {metric_word(found.metric)}"
    return f"{does} {much} {against} {over}{interval}: {verdict}."


def _points(share: float) -> str:
    """Points of a hundred with one decimal; with two where one would show a small number as none."""
    digits = 1 if share == 0 or abs(share) >= 0.0005 else 2
    return f"{round(100 * share, digits) + 0.0:.{digits}f}"  # never -0.0


def _confirmed(study: Study, replicates: int) -> Iterator[str]:
    found = confirmed(study)
    if not len(found):
        return
    found = found[(found["level"] == "image") & (found["metric"] == study.metric) & (found["column"] == MEAN)]
    if not len(found):
        return
    first, word = found.iloc[0], metric_word(study.metric)
    fold = study.plain.get("protocol", {}).get("fold", "?")
    spread = f" \u00b1 {first['sd']:.3f} (sd)" if math.isfinite(first["sd"]) else ""
    reached = f"reaches {word} {first['mean']:.3f}{spread} on test"
    if first["folds"] < 2:
        yield (
            f"Trained again with {first['runs']} seeds at one fold, {first['chain']} {reached}; that tells of training "
            "noise, not of other patients."
        )
        return
    interval = f", 95 % CI {first['low']:.3f} to {first['high']:.3f}" if math.isfinite(first["low"]) else ""
    yield (
        f"Trained again {first['runs']} times over {first['folds']} folds, {first['chain']}, the best of them on "
        f"validation, {reached}{interval} by Nadeau and Bengio's corrected t over the folds. Its settings were "
        f"chosen with fold {fold}, whose training and validation images are test images of other folds."
    )
    together = pooled(study, replicates)
    if together is not None:
        yield from _pooled(study, together)
        return
    tests = int(found["p"].notna().sum()) if "p" in found else 0
    for line in found.iloc[1:].itertuples():
        if not math.isfinite(line.difference):
            continue
        difference = Interval(line.difference, line.difference_low, line.difference_high)
        told = _difference(
            _Against(study.metric, difference, line.p, line.p_holm, tests), RIVALS.get(line.chain, line.chain)
        )
        yield f"Fold by fold it {told}"


def _pooled(study: Study, found: Pooled) -> Iterator[str]:
    """What the folds say together, with every test patient judged once."""
    table = found.table
    table = table[(table["level"] == "image") & (table["metric"] == study.metric) & (table["column"] == MEAN)]
    first = table.iloc[0]
    yield (
        f"Over all {found.benign + found.malignant} patients of the {found.folds} folds ({found.benign} benign, "
        f"{found.malignant} malignant), each judged by models that were not trained on it, {first['chain']} reaches "
        f"{metric_word(study.metric)} {_number(first)} (out-of-fold predictions pooled, patients resampled)."
    )
    tests = int(table["p"].notna().sum()) if "p" in table else 0
    for line in table.iloc[1:].itertuples():
        difference = Interval(line.difference, line.difference_low, line.difference_high)
        told = _difference(
            _Against(study.metric, difference, line.p, line.p_holm, tests), RIVALS.get(line.chain, line.chain)
        )
        yield f"Over these patients it {told}"


def _settings(study: Study) -> Iterator[str]:
    found = effects(study)
    asked = [each for each in found if each.setting not in ("first", "last")]
    for effect in asked:
        if effect.setting in ("order", "student"):
            yield _effect(study, effect)
    shown = [each.setting for each in asked if each.p_holm < SHOWN and each.setting not in ("order", "student")]
    rest = [each.setting for each in asked if each.setting not in ("order", "student", *shown)]
    if shown:
        yield f"Settings also differ by {_and(shown)} (p < 0.05 after Holm's correction); the tables say which way."
    if rest:
        yield f"For {_and(rest)} no difference can be shown over {_tried(len(study.settings))}."


def _effect(study: Study, effect: Effect) -> str:
    word = metric_word(study.metric)
    name = "Student size" if effect.setting == "student" else effect.setting.capitalize()
    means = effect.table[effect.table["n"] >= 2].sort_values("mean")
    if math.isnan(effect.p) or len(means) < 2:
        return f"{name}: too few settings for each of {len(effect.table)} values to say whether it matters."
    low, high = means.iloc[0], means.iloc[-1]
    between = (
        f"{high['value']} is {100 * effect.spread:.1f} points of validation {word} above {low['value']} on average "
        f"(n = {high['n']} and {low['n']})"
    )
    test = (
        f"p {_p(effect.p_holm)} by Kruskal-Wallis with Holm's correction over what was searched, {_tried(effect.tried)}"
    )
    if effect.p_holm < SHOWN:
        return f"{name} made a difference on validation: {between}; {test}."
    return f"{name} made no difference that the data can show: {between}; {test}."


def _kept(study: Study) -> Iterator[str]:
    """Backward transfer and forgetting in the study's metric, then forgetting in the others, which may hide it."""
    found = [each for metric in transfer_metrics(study) if (each := forgetting(study, metric=metric)) is not None]
    if not found or len(found[0].order) < 2:
        return
    told = [each for each in found if math.isfinite(each.backward)]
    missing = [note for each in found if each not in told for note in each.notes]
    if not told:
        yield f"What the chain forgot cannot be told. {missing[0]}"
        return
    first, *others = told
    if first.metric != study.metric:
        yield f"What the chain forgot cannot be told in {metric_word(study.metric)}. {missing[0]}"
    change = "better" if first.backward >= 0 else "worse"
    yield (
        f"After its last stage the chain's {metric_word(first.metric)} at the magnifications of earlier stages is "
        f"{_points(abs(first.backward))} points {change} than right after they were trained (backward transfer), and "
        f"{_forgotten(first)}."
    )
    if others:
        beside = _and([f"{_points(each.forgetting)} points in {metric_word(each.metric)}" for each in others])
        yield f"At the threshold 0.5 forgetting is {beside}."


def _forgotten(found: Transfer) -> str:
    points = _points(abs(found.forgetting))
    if found.forgetting >= 0:
        return f"{points} points worse than the best of the stages before the last (forgetting)"
    return f"{points} points better than the best of any earlier stage: nothing was forgotten"


def _cost(study: Study) -> str:
    spent = sharing(study)
    said = f"It took {duration(spent.seconds_spent)} of training and evaluation in {spent.distinct} stages"
    if not spent.shared:
        return f"{said}; no stage was shared."
    return (
        f"{said}; {spent.shared} of {spent.asked} stages asked for were shared with another trial, which saved "
        f"{duration(spent.seconds_saved)} ({spent.factor:.2f} times the cost without sharing)."
    )


def _tried(settings: int) -> str:
    return "the only setting tried" if settings == 1 else f"{settings} different settings"


def _failures(study: Study) -> Iterator[str]:
    failed = study.trials[study.trials["state"] == "failed"]
    if len(failed):
        told = [
            f"{trial} ({reason.rstrip('.')})" for trial, reason in zip(failed["trial"], failed["reason"], strict=True)
        ]
        more = f" and {len(failed) - FEW_FAILURES} more" if len(failed) > FEW_FAILURES else ""
        word = "trial" if len(failed) == 1 else "trials"
        yield f"{len(failed)} {word} failed: {'; '.join(told[:FEW_FAILURES])}{more}."


def _number(cell: pd.Series) -> str:
    if math.isfinite(cell["low"]):
        return f"{cell['value']:.3f} (95 % CI {cell['low']:.3f} to {cell['high']:.3f})"
    return f"{cell['value']:.3f}"


def _p(p: float) -> str:
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.2f}" if p >= 0.1 else f"= {p:.3f}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
