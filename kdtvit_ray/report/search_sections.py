"""Sections on the search: order, temperature and alpha, student size, importance and history."""

import json
import math
from typing import Any

import numpy as np

from kdtvit_ray.report import figures
from kdtvit_ray.report.document import Items, Parallel, Picker, Section
from kdtvit_ray.report.headline import NOTHING, Facts, metric_name
from kdtvit_ray.report.tables import Column, Estimate, Table
from kdtvit_ray.results import summary


def order(facts: Facts) -> Section:
    section = Section("order", "Order of magnifications")
    effect = facts.effects.get("order")
    if effect is None or not len(effect.table):
        section.missing(
            f"{NOTHING}, so orders cannot be compared." if not len(facts.searched)
            else "Only one order has been tried so far." if "order" in facts.study.plain.get("search", {})
            else "The order was not searched in this study: every chain has the same one."
        )  # fmt: skip
        if len(facts.searched):
            section.add(_only_order(facts))
    else:
        rows = [
            (str(line.value), Estimate(line.mean, line.low, line.high), int(line.n))
            for line in effect.table.sort_values("mean", ascending=False).itertuples()
        ]
        section.add(figures.orders(rows, facts.objective), _effect_table(facts, "order", "Orders"))
        section.add(
            _effect_table(facts, "first", "The magnification that the teacher starts with"),
            _effect_table(facts, "last", "The magnification that is trained last"),
        )
    if effect is not None:
        section.say(
            "Means over an adaptive search describe what was tried: a value that the sampler liked has more and better "
            "settings. They are no designed experiment. A setting that was tried again counts once.",
            "note",
        )
    _forgetting(facts, section)
    return section


def _only_order(facts: Facts) -> Table:
    tried = facts.study.settings
    table = Table(
        "effect-order",
        f"The order: {facts.objective} over the settings that were tried.",
        [Column("order"), Column("settings", 0), Column("mean"), Column("best")],
    )
    for name, part in tried.groupby("order")["objective"]:
        table.add(str(name), len(part), float(part.mean()), float(part.max()))
    return table


def _effect_table(facts: Facts, setting: str, what: str) -> Table | None:
    effect = facts.effects.get(setting)
    if effect is None or not len(effect.table):
        return None
    p = ""
    if math.isfinite(effect.p):
        # what follows from the order is no question of its own, and takes no part in the correction
        after = "" if setting in ("first", "last") else f", p {_p(effect.p_holm)} by Holm over all that was searched"
        p = f" Do they differ? Kruskal-Wallis by permutation: p {_p(effect.p)}{after}."
    table = Table(
        f"effect-{setting}".replace(".", "-"),
        f"{what}: {facts.objective} over the settings that were tried with each value.{p}",
        [Column(setting), Column("settings", 0), Column("mean"), Column("best", 3, "max")],
    )
    for line in effect.table.sort_values("mean", ascending=False).itertuples():
        value = line.value
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        table.add(shown, int(line.n), Estimate(line.mean, line.low, line.high), float(line.best))
    return table


def _forgetting(facts: Facts, section: Section) -> None:
    transfer = summary.forgetting(facts.study)
    mean = summary.mean_forgetting(facts.study)
    matrices = []
    if transfer is not None:
        matrices.append(_matrix("best chain", transfer.accuracy))
    if mean is not None:
        matrices.append(_matrix(f"mean of {mean.chains} chains, by stage", mean.by_stage))
        matrices.append(_matrix("the same, by magnification", mean.by_magnification))
    if not matrices:
        section.missing("No chain of several stages has finished, so there is no forgetting matrix.")
        return
    section.add(figures.forgetting(matrices, "test accuracy"))
    columns = [
        Column(name) for name in ("chain", "average accuracy", "backward transfer", "forward transfer", "forgetting")
    ]
    table = Table(
        "transfer",
        "Average: accuracy over all magnifications after the last stage. Backward transfer: what earlier ones "
        "gained (or lost, below 0) after their own stage. Forward transfer: accuracy at a magnification before its "
        "stage, over always guessing the more frequent class. Forgetting: the loss from the best value before the "
        "last stage (a gain, below 0).",
        columns,
    )
    if transfer is not None:
        table.add("best chain", transfer.average, transfer.backward, transfer.forward, transfer.forgetting)
    if mean is not None:
        found = (mean.average, mean.backward, mean.forward, mean.forgetting)
        table.add(f"mean of {mean.chains} chains", *(_estimate(each) for each in found))
    section.add(table)


def _matrix(title: str, frame: Any) -> figures.Matrix:
    return figures.Matrix(
        title, [str(each) for each in frame.index], [str(each) for each in frame.columns], frame.to_numpy(float)
    )


def _estimate(found: Any) -> Estimate:
    return Estimate(found.value, found.low, found.high) if hasattr(found, "value") else Estimate(float(found))


def settings(facts: Facts) -> Section:
    section = Section("temperature", "Temperature and alpha")
    students: dict[str, list[figures.Trial]] = {}
    for trial in facts.searched.itertuples():
        temperature, alpha = json.loads(trial.temperature), json.loads(trial.alpha)
        if temperature and alpha:
            dot = figures.Trial(_geometric(temperature), float(np.mean(alpha)), trial.objective, _told(trial))
            students.setdefault(trial.student, []).append(dot)
    if not students:
        section.missing(f"{NOTHING}, so there is no map of temperature and alpha.")
        return section
    stages = {name: _per_stage(facts, name) for name in ("temperature", "alpha")}
    section.add(figures.temperature_alpha(students, facts.objective, any(stages.values())))
    section.add(*(figures.per_stage(name, found, facts.objective) for name, found in stages.items() if found))
    others = [setting for setting in facts.effects if setting not in ("order", "first", "last", "student")]
    tables = [(setting, _effect_table(facts, setting, setting.capitalize())) for setting in others]
    found = [((setting,), table) for setting, table in tables if table is not None]
    if len(found) > 1:
        section.add(Picker("settings", ("Setting",), found))
    elif found:
        section.add(found[0][1])
    return section


def _told(trial: Any) -> str:
    """What a trial is, where a pointer rests on its dot."""
    temperature, alpha = (summary.listed(json.loads(each)) or "-" for each in (trial.temperature, trial.alpha))
    return (
        f"{trial.trial}: {trial.objective:.4f}, order {trial.order}, student {trial.student}, T {temperature}, "
        f"alpha {alpha}"
    )


def _geometric(values: list[float]) -> float:
    """Geometric mean of per-stage temperatures, exact where all are the same."""
    return values[0] if len(set(values)) == 1 else float(np.exp(np.mean(np.log(values))))


def _per_stage(facts: Facts, name: str) -> dict[int, list[tuple[float, float]]]:
    found: dict[int, list[tuple[float, float]]] = {}
    for trial in facts.searched.itertuples():
        for key, value in json.loads(trial.params).items():
            base, _, stage = key.partition(".")
            if base == name and stage.isdigit():
                found.setdefault(int(stage), []).append((float(value), trial.objective))
    return dict(sorted(found.items()))


def sizes(facts: Facts) -> Section:
    section = Section("size", "Student size")
    chains = summary.best_by_student(facts.study)
    if not chains:
        section.missing(f"{NOTHING}, so student sizes cannot be compared.")
        return section
    metric = metric_name(facts.study.metric)
    students = []
    table = Table(
        "students",
        f"The best chain of each student: test {metric} (image level, mean over magnifications), size and speed.",
        [Column("student"), Column("best trial"), Column(f"test {metric}", 3, "max"),
         Column(facts.objective, 3, "max"),
         Column("parameters", 0), Column("ms/image at batch 1", 2), Column("images/s at batch 32", 1),
         Column("on the front of quality and parameters")],
    )  # fmt: skip
    rows = []
    devices: dict[str, list[str]] = {}
    for chain in chains:
        stage = facts.study.stages.get(chain.keys[-1]) if chain.keys else None
        cost = stage.cost if stage else {}
        alone, rate = _known(cost.get("latency_1_seconds")), _known(cost.get("images_per_second"))
        quality = _student_quality(facts, chain)
        each = figures.Size(str(chain.student), quality, float(chain.parameters), 1e3 * alone, rate)
        students.append(each)
        rows.append((chain, each))
        if math.isfinite(alone):
            devices.setdefault(
                (stage.device if stage and stage.device else "a device that was not recorded"), []
            ).append(each.name)
    front = figures.pareto(students, lambda each: each.parameters)
    for chain, each in rows:
        table.add(
            chain.student, chain.trial, each.quality, float(chain.objective), int(chain.parameters),
            each.milliseconds, each.rate, each.name in front,
        )  # fmt: skip
    shown = [each for each in students if math.isfinite(each.quality.value) and each.parameters > 0]
    if shown:
        section.add(figures.sizes(shown, f"test {metric}"))
    section.add(table)
    if not devices:
        section.missing("No stage recorded how long one image takes, so speed is missing.")
    elif len(devices) == 1:
        section.say(f"Times were measured on {next(iter(devices))}.", "note")
    else:
        told = "; ".join(f"{', '.join(names)} on {device}" for device, names in devices.items())
        section.say(f"Times were measured on different devices and do not compare: {told}.", "note")
    section.add(_effect_table(facts, "student", "Student sizes over all settings"))
    return section


def _student_quality(facts: Facts, chain: Any) -> Estimate:
    """Test quality of the chain as the headline has it: it is the best one or its student's best one."""
    long = facts.headline.long
    model = "best" if chain.trial == facts.best.trial else f"best-{chain.student}"
    found = long[
        (long["model"] == model) & (long["level"] == "image") & (long["metric"] == facts.study.metric)
        & (long["magnification"] == "mean")
    ]  # fmt: skip
    if not len(found):
        return Estimate(math.nan)
    line = found.iloc[0]
    return Estimate(float(line["value"]), float(line["low"]), float(line["high"]))


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"


def _known(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def importance(facts: Facts) -> Section:
    section = Section("importance", "Importance and the search")
    found = summary.importance(facts.study)
    if found:
        for name, shares in found.items():
            section.add(figures.importance(name, shares))
    else:
        section.missing(
            "The study's folder has no importance.json, so importances are missing: too few trials have finished."
        )
    trials = facts.searched
    if not len(trials):
        section.missing(f"{NOTHING}, so there is no history of the search.")
        return section
    others = facts.study.trials
    base = others[(others["kind"] == "baseline") & (others["state"] == "complete")]
    # one magnification alone has another objective than the mean over all four: no line for those
    lines = {row.trial: row.objective for row in base.itertuples() if not row.trial.startswith("per_magnification")}
    lines = {name: value for name, value in lines.items() if math.isfinite(value)}
    section.add(
        figures.history(
            trials["number"].tolist(),
            trials["objective"].tolist(),
            [_told(each) for each in trials.itertuples()],
            lines,
            facts.objective,
        ),
        _parallel(facts),
    )
    corrected = {name: each for name, each in facts.effects.items() if name not in ("first", "last")}
    if corrected:
        ranked = [f"{name} (p {_p(each.p_holm)})" for name, each in corrected.items() if each.p_holm < 0.05]
        text = ", ".join(ranked) if ranked else "none"
        section.add(Items([f"Settings with a difference between their values at 5 %, Holm-corrected: {text}."]))
    return section


def _parallel(facts: Facts) -> Parallel | None:
    """All finished trials over everything that was searched."""
    trials = facts.searched
    params = [json.loads(each) for each in trials["params"]]
    names = list(dict.fromkeys(key for each in params for key in each))
    axes: list[tuple[str, list[float | str]]] = []
    for name in names:
        values = [each.get(name) for each in params]
        if any(value is None for value in values):
            continue
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            axes.append((name, [float(value) for value in values]))
        else:
            axes.append((name, [str(value) for value in values]))
    if not axes:
        return None
    axes.append(("objective", [float(value) for value in trials["objective"]]))
    return Parallel(axes, trials["trial"].tolist())
