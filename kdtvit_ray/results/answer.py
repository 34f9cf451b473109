"""What a study found, in plain sentences that say no more than the data can show.

A difference counts as shown when its 95 % interval leaves zero out and its p-value, after Holm's correction over all
that is compared with it, is below 0.05.
"""

import json
import math
from collections.abc import Iterator, Sequence

import pandas as pd

from kdtvit_ray.results.effects import Effect, effects
from kdtvit_ray.results.effort import sharing
from kdtvit_ray.results.headline import COLUMNS, Comparison, comparisons, distillation_alone, headline
from kdtvit_ray.results.statistics import MEAN, REPLICATES
from kdtvit_ray.results.study import Best, Study, best
from kdtvit_ray.results.transfer import forgetting

SHOWN = 0.05
FEW_FAILURES = 3
METRIC_WORDS = {
    "auc": "AUC", "f1": "F1", "brier": "Brier score", "balanced_accuracy": "balanced accuracy",
}  # fmt: skip
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
        rivals = comparisons(study, replicates)
        sentences += _rivals(study, chosen, rivals, distillation_alone(study, replicates))
        sentences += _settings(study)
        sentences += _kept(study)
    if len(study.trials):
        sentences.append(_cost(study))
    sentences += _failures(study)
    return sentences


def metric_word(metric: str) -> str:
    return METRIC_WORDS.get(metric, metric)


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
    trials = "the only complete trial" if chosen.chosen_from == 1 else f"{chosen.chosen_from} complete trials"
    distilled = (
        f"T = {_values(chosen.temperature)}, alpha = {_values(chosen.alpha)}"
        if chosen.temperature
        else "no distillation"
    )
    return (
        f"The best chain, chosen on validation from {trials}, is {chosen.trial}: order {chosen.order}, teacher "
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

    mean = cell("image", study.metric, MEAN)
    if mean is None:
        yield "Its test figures cannot be told: rows and predictions of its last stage are missing."
        return
    each = [
        f"{column} {_number(found)}"
        for column in COLUMNS[:-1]
        if (found := cell("image", study.metric, column)) is not None
    ]
    word = metric_word(study.metric)
    yield f"On test images it reaches {word} {_number(mean)} as the mean over magnifications; {', '.join(each)}."
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
        yield f"At the threshold 0.5 its means over magnifications are {', '.join(others)}."
    if study.leaks:
        yield (
            "The split is by image: images of one patient are in train and in test, so these figures leak and are too "
            "good."
        )


def _rivals(
    study: Study, chosen: Best, rivals: Sequence[Comparison], alike: tuple[str, Comparison] | None
) -> Iterator[str]:
    ordered = sorted(rivals, key=lambda each: (each.against.name != "sequential", each.against.kind != "student"))
    for rival in ordered:
        if not math.isfinite(rival.difference):
            continue
        name = rival.against.name
        if rival.against.kind == "student":
            yield _difference(f"Student {chosen.student}", rival, f"the best {name.removeprefix('best-')}", len(rivals))
        elif name == "sequential":
            differs = _differs(study, chosen)
            yield _difference("The searched chain" if differs else "Distillation", rival, RIVALS[name], len(rivals))
            if differs:
                yield (
                    f"That baseline was not searched and differs in more than distillation ({differs}), so the "
                    "difference is that of the whole search."
                )
                if alike:
                    yield _difference(
                        f"At its order and student, distillation (trial {alike[0]})", alike[1], RIVALS[name], 1
                    )
        else:
            yield _difference("The best chain", rival, RIVALS.get(name, name), len(rivals))


def _difference(subject: str, rival: Comparison, over: str, tests: int) -> str:
    points = 100 * rival.difference
    interval = ""
    verdict = "how sure that is cannot be told"
    if math.isfinite(rival.low):
        low, high = (round(100 * end, 1) + 0.0 for end in (rival.low, rival.high))  # never -0.0
        interval = f" (95 % CI {low:.1f} to {high:.1f})"
        verdict = "not distinguishable from zero"
        if rival.few:
            verdict = f"too few patients to tell, {rival.patients} in the smaller class"
        elif rival.shown:
            corrected = (
                f"p = {_p(rival.p_holm)} after Holm's correction for {tests} comparisons"
                if tests > 1
                else f"p = {_p(rival.p)}"
            )
            verdict = f"a difference that the data show, {corrected}"
            if rival.p_holm >= SHOWN:
                verdict = f"not distinguishable from zero once {tests} comparisons are allowed for, {corrected}"
    does = "adds" if points >= 0 else "loses"
    against = "over" if does == "adds" else "against"
    much = f"{abs(points):.1f} points of {metric_word(rival.metric)}"
    return f"{subject} {does} {much} {against} {over}{interval}: {verdict}."


def _differs(study: Study, chosen: Best) -> str:
    """What else sets the best chain, the best of many, apart from the baseline, which has the study's fixed
    settings."""
    record = study.trial("sequential")
    if record is None:
        return ""
    pairs = [("order", chosen.order, record["order"]), ("student", chosen.student, record["student"])]
    own = study.trial(chosen.trial)
    params = json.loads(own["params"]) if own is not None else {}
    fixed = {f"training.{name}": value for name, value in study.plain.get("training", {}).items()}
    fixed |= {name: study.plain.get("chain", {}).get(name) for name in ("loss", "warm_start")}
    pairs += [(name, params[name], value) for name, value in fixed.items() if name in params]
    return "; ".join(f"{name} {theirs} against {ours}" for name, ours, theirs in pairs if ours != theirs)


def _settings(study: Study) -> Iterator[str]:
    found = effects(study)
    asked = [each for each in found if each.setting not in ("first", "last")]
    for effect in asked:
        if effect.setting in ("order", "student"):
            yield _effect(study, effect)
    shown = [each.setting for each in asked if each.p_holm < SHOWN and each.setting not in ("order", "student")]
    rest = [each.setting for each in asked if each.setting not in ("order", "student", *shown)]
    if shown:
        yield f"Trials also differ by {_and(shown)} (p < 0.05 after Holm's correction); the tables say which way."
    if rest:
        yield f"For {_and(rest)} no difference can be shown over {len(study.searched)} trials."


def _effect(study: Study, effect: Effect) -> str:
    word = metric_word(study.metric)
    name = "Student size" if effect.setting == "student" else effect.setting.capitalize()
    means = effect.table[effect.table["n"] >= 2].sort_values("mean")
    if math.isnan(effect.p) or len(means) < 2:
        return f"{name}: too few trials for each of {len(effect.table)} values to say whether it matters."
    low, high = means.iloc[0], means.iloc[-1]
    between = (
        f"{high['value']} is {100 * effect.spread:.1f} points of validation {word} above {low['value']} on average "
        f"(n = {high['n']} and {low['n']})"
    )
    test = f"p = {_p(effect.p_holm)} by Kruskal-Wallis with Holm's correction over the settings, {effect.trials} trials"
    if effect.p_holm < SHOWN:
        return f"{name} made a difference on validation: {between}; {test}."
    return f"{name} made no difference that the data can show: {between}; {test}."


def _kept(study: Study) -> Iterator[str]:
    found = forgetting(study)
    if found is None or math.isnan(found.backward):
        return
    after = "lower" if found.backward < 0 else "higher"
    kept = (
        f"{100 * found.forgetting:.1f} points below the best of the stages before the last (forgetting)"
        if found.forgetting >= 0
        else f"{-100 * found.forgetting:.1f} points above the best of any earlier stage: nothing was forgotten"
    )
    yield (
        f"After its last stage the chain's accuracy at the magnifications of earlier stages is "
        f"{abs(100 * found.backward):.1f} points {after} than right after they were trained (backward transfer), and "
        f"{kept}."
    )


def _cost(study: Study) -> str:
    spent = sharing(study)
    said = f"It took {duration(spent.seconds_spent)} of training and evaluation in {spent.distinct} stages"
    if not spent.shared:
        return f"{said}; no stage was shared."
    return (
        f"{said}; {spent.shared} of {spent.asked} stages asked for were shared with another trial, which saved "
        f"{duration(spent.seconds_saved)} ({spent.factor:.2f} times the cost without sharing)."
    )


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


def _values(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{each:g}" for each in values)


def _p(p: float) -> str:
    return f"{p:.2f}" if p >= 0.1 else (f"{p:.3f}" if p >= 0.001 else "0.001 or less")


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
