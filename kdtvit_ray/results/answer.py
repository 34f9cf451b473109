"""What a study found, in plain sentences that say no more than the data can show."""

import math
from collections.abc import Iterator

from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.results import baseline_search, development, patient_sentences
from kdtvit_ray.results.backward_transfer import BIASED, kept
from kdtvit_ray.results.effects import Effect
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.how_many import chosen_from, judged_in_full
from kdtvit_ray.results.models import Best
from kdtvit_ray.results.rivals import rivals, trained_again, value_and_interval
from kdtvit_ray.results.statistics import MEAN, SIGNIFICANCE, Interval
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.transfer import Transfer
from kdtvit_ray.results.undefined_objectives import nothing, undefined, why
from kdtvit_ray.results.words import amount, duration, joined, listed, metric_name, p_value, points, tried

FEW_FAILURES = 3


def answer(findings: Findings) -> list[str]:
    """Sentences, the most important one first: state, best chain, its test figures, patients, rivals, settings,
    forgetting, cost, failures. Works for a study in any state, and for one without trials too."""
    study, best = findings.study, findings.best
    sentences = [_state(study)]
    if best is None:
        sentences.append(f"{nothing(study)}, so there is no best chain and nothing to conclude.")
    else:
        sentences += [_choice(study, best), *development.choice(findings), *_figures(findings)]
        sentences += patient_sentences.decided(findings)
        settings = development.settings(findings) if study.parts else _settings(findings)
        sentences += [
            *baseline_search.told(study, findings.baseline_searches),
            *rivals(findings),
            *development.baselines(findings),
            *trained_again(findings),
            *development.nested(findings),
        ]
        sentences += [*settings, *_kept(findings)]
    if len(study.trials):
        sentences.append(_cost(findings))
    said = [*sentences, *_without_objective(study), *failures(study)]
    return list(dict.fromkeys(said))  # what holds for images and for patients is said once


def _state(study: Study) -> str:
    searched = study.trials[study.trials["kind"] == "search"]
    states = searched["state"].value_counts()
    called = {"complete": "complete", "failed": "failed", "pruned": "dropped by racing" if study.parts else "pruned"}
    parts = [f"{states[each]} {word}" for each, word in called.items() if each in states]
    if without := len(undefined(study)):
        parts[0] += f", {without} of them without an objective"
    names = study.planned_baselines
    there = sum(name in set(study.trials["trial"]) for name in names)
    word = "finished" if study.finished else "not finished, and everything below is interim"
    counts = f" ({', '.join(parts)})" if parts else ""
    baselines = f", and {there} of {len(names)} baseline trials" if names else ""
    if study.searched_baselines:
        tried, total = int((study.trials["kind"] == "baseline_search").sum()), study.status.baseline_settings.total
        baselines += f", and {tried}{f' of {max(total, tried)}' if total else ''} settings of searched baselines"
    ended = f"{len(searched)} of {study.planned} searched trials have ended"
    return f"Study '{study.name}' is {word}: {ended}{counts}{baselines}."


def _choice(study: Study, best: Best) -> str:
    distilled = (
        f"T = {listed(best.temperature)}, alpha = {listed(best.alpha)}" if best.temperature else "no distillation"
    )
    trained = f", {best.training}" * bool(best.training)
    return (
        f"The best chain, chosen on {study.chosen_on} from {chosen_from(study, best)}, is {best.trial}: order "
        f"{best.order}, teacher {best.teacher}, student {best.student} ({best.parameters:,} parameters), "
        f"{distilled}{trained}; its {study.judged_on} {metric_name(study.metric)} is {best.objective:.3f} "
        f"{_alone(study) or 'as the mean over magnifications'}."
    )


def _figures(findings: Findings) -> Iterator[str]:
    study, long = findings.study, findings.headline.long
    of_best = {
        (each.level, each.metric, each.magnification): each for each in long[long["kind"] == "best"].itertuples()
    }

    flat = []

    def told(level: str, metric: str, column: str) -> str:
        """A number with its interval; "" where it is undefined or missing."""
        line = of_best.get((level, metric, column))
        if not line or not math.isfinite(line.value):
            return ""
        flat.append(Interval(line.value, line.low, line.high).flat)
        return value_and_interval(line.value, line.low, line.high)

    name, mean = metric_name(study.metric), told("image", study.metric, MEAN)
    each = [f"{column} {value}" for column in study.tested_columns if (value := told("image", study.metric, column))]
    if not mean and not each and findings.best is not None and not findings.best.keys:
        yield "There are no test figures: it has not been trained on all development patients yet."
        return
    if not mean and not each:
        yield "Its test figures cannot be told: rows and predictions of its last stage are missing."
        return
    if not mean:
        yield (
            f"On test images it reaches {name} {', '.join(each)}; elsewhere it is not defined, so it has no mean over "
            "magnifications."
        )
    else:
        several = f"as the mean over {_over(study)}; {', '.join(each)}"
        yield f"On test images it reaches {name} {mean} {_alone(study) or several}."
        if "CI" not in mean and any("CI" in one for one in each):
            yield (
                "The mean has no interval: test has too few patients for one at some magnification (the notes below "
                "the headline say which)."
            )
        elif "CI" not in mean:
            yield (
                "There is no interval: test has too few patients for one, or the predictions are missing "
                "(the notes below the headline say which)."
            )
    others = {
        "image-level accuracy": told("image", "accuracy", MEAN),
        "patient-level rate accuracy": told("patient_rate", "accuracy", MEAN),
        "recall (sensitivity)": told("image", "recall", MEAN),
        "specificity": told("image", "specificity", MEAN),
    }
    others = {word: value for word, value in others.items() if value}
    if others:
        means = ", ".join(f"{word} {value}" for word, value in others.items())
        its = f"it has {_alone(study)}" if _alone(study) else f"its means over {_over(study)} are"
        yield f"At the threshold 0.5 {its} {means}."
    if any(flat):
        yield patient_sentences.NO_CERTAINTY
    if study.leaks:
        yield (
            "The split is by image: images of one patient are in train and in test, so these figures leak and are too "
            "good."
        )


def _alone(study: Study) -> str:
    """`at 20X` where test has one magnification, so that a mean over magnifications is its number; else ""."""
    return f"at {study.tested_columns[0]}" if len(study.magnifications) == 1 else ""


def _over(study: Study) -> str:
    """What a mean is over: all magnifications, or the few that test has."""
    return "magnifications" if len(study.magnifications) > 3 else joined(study.tested_columns)


def _settings(findings: Findings) -> Iterator[str]:
    study = findings.study
    asked = {name: each for name, each in findings.effects.items() if name not in ("first", "last")}
    for name in ("order", "student"):
        if name in asked:
            yield _effect(study, asked.pop(name))
    shown = [name for name, each in asked.items() if each.p_holm < SIGNIFICANCE]
    silent = [name for name, each in asked.items() if math.isnan(each.p_holm)]
    rest = [name for name in asked if name not in shown and name not in silent]
    if shown:
        yield f"Settings also differ by {joined(shown)} (p < 0.05 after Holm's correction); the tables say which way."
    if rest:
        yield f"For {joined(rest)} no difference can be shown over {judged_in_full(study)}."
    if silent:
        yield development.too_few(silent)


def _effect(study: Study, effect: Effect) -> str:
    name = "Student size" if effect.setting == "student" else effect.setting.capitalize()
    means = effect.table[effect.table["n"] >= 2].sort_values("mean")
    if math.isnan(effect.p) or len(means) < 2:
        return f"{name}: too few settings for each of {len(effect.table)} values to say whether it matters."
    low, high = means.iloc[0], means.iloc[-1]
    lower = " (lower is better)" if study.metric in LOWER_IS_BETTER else ""
    between = (
        f"{high['value']} is {amount(effect.spread, study.metric)} of validation {metric_name(study.metric)}{lower} "
        f"above {low['value']} on average (n = {high['n']} and {low['n']})"
    )
    test = (
        f"{p_value(effect.p_holm)} by Kruskal-Wallis with Holm's correction over what was searched, "
        f"{tried(effect.tried)}"
    )
    if effect.p_holm < SIGNIFICANCE:
        return (
            f"{name} made a difference for the validation patients of this study: {between}; {test}. The test asks "
            "whether settings differ on these patients; it does not tell what other patients would show."
        )
    return f"{name} made no difference that the data can show: {between}; {test}."


def _kept(findings: Findings) -> Iterator[str]:
    """Backward transfer and forgetting in the study's metric, then forgetting in the others, which may hide it."""
    found = list(findings.transfer.values())
    if not found:
        return
    told = [each for each in found if math.isfinite(each.backward)]
    missing = [note for each in found if each not in told for note in each.notes]
    if not told:
        yield f"What the chain forgot cannot be told. {missing[0]}"
        return
    first, *others = told
    if first.metric != findings.study.metric:
        yield f"What the chain forgot cannot be told in {metric_name(findings.study.metric)}. {missing[0]}"
    change = "better" if first.backward >= 0 else "worse"
    over = findings.backward_over_patients.get(first.metric)
    yield (
        f"After its last stage the chain's {metric_name(first.metric)} at the magnifications of earlier stages is "
        f"{amount(abs(first.backward), first.metric)} {change} than right after they were trained "
        f"(backward transfer {points(first.backward, first.metric)}; "
        f"{kept(over.interval if over else None, first.metric)}), and {_forgotten(first)}."
    )
    if others:
        beside = joined([f"{points(each.forgetting)} points in {metric_name(each.metric)}" for each in others])
        yield f"At the threshold 0.5 forgetting is {beside}."


def _forgotten(found: Transfer) -> str:
    much = amount(abs(found.forgetting), found.metric)
    if found.forgetting >= 0:
        return f"{much} worse than the best of the stages before the last (forgetting; {BIASED})"
    return f"{much} better than the best of any earlier stage"


def _cost(findings: Findings) -> str:
    spent = findings.sharing
    said = f"It took {duration(spent.seconds_spent)} of training and evaluation in {spent.distinct} stages"
    if not spent.shared:
        return f"{said}; no stage was shared."
    return (
        f"{said}; {spent.shared} of {spent.asked} stages asked for were shared with another trial, which saved "
        f"{duration(spent.seconds_saved)} ({spent.factor:.2f} times the cost without sharing)."
    )


def _without_objective(study: Study) -> Iterator[str]:
    found = undefined(study)
    if len(found):
        told = [f"{each['trial']} ({why(study, each)})" for _, each in found.head(FEW_FAILURES).iterrows()]
        more = f" and {len(found) - FEW_FAILURES} more" if len(found) > FEW_FAILURES else ""
        has = "trial has" if len(found) == 1 else "trials have"
        yield f"{len(found)} complete {has} no objective: {'; '.join(told)}{more}."


def failures(study: Study) -> Iterator[str]:
    """How many trials failed, and why the first of them did; no sentence where none failed."""
    failed = study.failed
    if len(failed):
        told = [
            f"{trial} ({reason.rstrip('.')})" for trial, reason in zip(failed["trial"], failed["reason"], strict=True)
        ]
        more = f" and {len(failed) - FEW_FAILURES} more" if len(failed) > FEW_FAILURES else ""
        word = "trial" if len(failed) == 1 else "trials"
        machines = int((failed["fault"] == "infrastructure").sum())
        whose = f", {machines} for reasons of the infrastructure" if machines else ""
        yield f"{len(failed)} {word} failed{whose}: {'; '.join(told[:FEW_FAILURES])}{more}."
