"""Sections on the search: temperature and alpha, student size, importance and history."""

import json
import math

import numpy as np
import pandas as pd

from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.report import figures
from kdtvit_ray.report.document import Items, Parallel, Picker, Section
from kdtvit_ray.report.order_section import effect_table
from kdtvit_ray.report.size_figure import Size, pareto
from kdtvit_ray.report.size_figure import sizes as sizes_figure
from kdtvit_ray.report.tables import Column, Estimate, Table
from kdtvit_ray.results.confirmation import PER_MAGNIFICATION
from kdtvit_ray.results.development import too_few
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.how_many import compared, judged_in_full
from kdtvit_ray.results.models import Best
from kdtvit_ray.results.statistics import FEWEST_FOR_IMPORTANCE, SIGNIFICANCE
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.undefined_objectives import nothing
from kdtvit_ray.results.words import listed, metric_name, p_value, value_name


def settings(findings: Findings) -> Section:
    section = Section("temperature", "Temperature and alpha")
    students: dict[str, list[figures.Trial]] = {}
    searched = findings.compared
    for trial, label in zip(searched.itertuples(), _labels(searched), strict=True):
        temperature, alpha = json.loads(trial.temperature), json.loads(trial.alpha)
        if temperature and alpha:
            dot = figures.Trial(_geometric(temperature), float(np.mean(alpha)), trial.objective, label)
            students.setdefault(trial.student, []).append(dot)
    if not len(searched):
        section.missing(f"{nothing(findings.study)}, so there is no map of temperature and alpha.")
        return section
    if students:
        stages = {name: _per_stage(findings, name) for name in ("temperature", "alpha")}
        shown = (findings.objective, compared(findings))
        section.add(figures.temperature_alpha(students, *shown, any(stages.values())))
        section.add(*(figures.per_stage(name, found, *shown) for name, found in stages.items() if found))
    else:
        section.missing("No complete chain distils, so there is no map of temperature and alpha.")
    others = [setting for setting in findings.effects if setting not in ("order", "first", "last", "student")]
    tables = [(setting, effect_table(findings, setting, setting.capitalize())) for setting in others]
    found = [((setting,), table) for setting, table in tables if table is not None]
    if len(found) > 1:
        section.add(Picker("settings", ("Setting",), found))
    elif found:
        section.add(found[0][1])
    return section


def _labels(trials: pd.DataFrame) -> list[str]:
    """What each trial is, shown where a pointer rests on its dot."""
    return [
        f"{trial.trial}: {trial.objective:.4f}, order {trial.order}, student {trial.student}, "
        f"T {listed(json.loads(trial.temperature)) or '-'}, alpha {listed(json.loads(trial.alpha)) or '-'}"
        for trial in trials.itertuples()
    ]


def _geometric(values: list[float]) -> float:
    """Geometric mean of the stages' temperatures, exact where all are the same."""
    return values[0] if len(set(values)) == 1 else float(np.exp(np.mean(np.log(values))))


def _per_stage(findings: Findings, name: str) -> dict[int, list[tuple[float, float]]]:
    found: dict[int, list[tuple[float, float]]] = {}
    for trial in findings.compared.itertuples():
        for key, value in json.loads(trial.params).items():
            base, _, stage = key.partition(".")
            if base == name and stage.isdigit():
                found.setdefault(int(stage), []).append((float(value), trial.objective))
    return dict(sorted(found.items()))


def sizes(findings: Findings) -> Section:
    section = Section("size", "Student size")
    chains = findings.best_by_student
    if not chains:
        section.missing(f"{nothing(findings.study)}, so student sizes cannot be compared.")
        return section
    metric = metric_name(findings.study.metric)
    students = []
    table = Table(
        "students",
        f"The best chain of each student: {findings.objective}, test {metric} (image level, mean over magnifications), "
        f"size and speed. The front is that of {findings.study.chosen_on}: a size chosen on test would make its test "
        "numbers too good.",
        [
            Column("student"),
            Column("best trial"),
            Column(findings.objective, 3, "min" if findings.study.metric in LOWER_IS_BETTER else "max"),
            Column(f"test {metric}"),
            Column("parameters", 0),
            Column("ms/image at batch 1", 2),
            Column("images/s at batch 32", 1),
            Column("on the front of objective and parameters"),
        ],
    )
    rows = []
    devices: dict[str, list[str]] = {}
    for chain in chains:
        # a setting without a refit has the size and speed of its chain over an inner fold
        record = findings.study.chain_of(chain.trial)
        stage = None if record is None or not record["stages"] else findings.study.stages.get(record["stages"][-1])
        alone, rate = (
            _known(stage.cost[name] if stage else None) for name in ("latency_1_seconds", "images_per_second")
        )
        tested = _tested(findings, chain)
        each = Size(str(chain.student), chain.objective, tested, float(chain.parameters), 1e3 * alone, rate)
        students.append(each)
        rows.append((chain, each))
        if stage and math.isfinite(alone):
            devices.setdefault(stage.device, []).append(each.name)
    front = pareto(students, lambda each: each.parameters, findings.study.metric)
    for chain, each in rows:
        table.add(
            chain.student,
            chain.trial,
            each.objective,
            each.test,
            int(chain.parameters),
            each.milliseconds,
            each.rate,
            each.name in front,
        )
    shown = [each for each in students if each.parameters > 0]
    if shown:
        section.add(sizes_figure(shown, findings.study.metric, findings.objective))
    section.add(table)
    without = [chain.student for chain in chains if not chain.keys]
    if without:
        section.missing(f"Not trained on all development patients, so without test numbers: {', '.join(without)}.")
    if not devices:
        section.missing("No stage recorded how long one image takes, so speed is missing.")
    elif len(devices) == 1:
        section.say(f"Times were measured on {next(iter(devices))}.", "note")
    else:
        told = "; ".join(f"{', '.join(names)} on {device}" for device, names in devices.items())
        section.say(f"Times were measured on different devices and do not compare: {told}.", "note")
    section.add(effect_table(findings, "student", "Student sizes over all settings"))
    return section


def _tested(findings: Findings, chain: Best) -> Estimate:
    """The chain on test as the headline table has it, as the best chain or as its student's best chain."""
    model = "best" if findings.best and chain.trial == findings.best.trial else f"best-{chain.student}"
    long = findings.headline.long
    own = (long["model"] == model) & (long["level"] == "image") & (long["metric"] == findings.study.metric)
    found = long[own & (long["magnification"] == "mean")]
    if not len(found):
        return Estimate(math.nan)
    line = found.iloc[0]
    return Estimate(float(line["value"]), float(line["low"]), float(line["high"]))


def _known(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def importance(findings: Findings) -> Section:
    section = Section("importance", "Importance and the search")
    found = findings.importance
    if found:
        for name, shares in found.items():
            section.add(figures.importance(name, shares, judged_in_full(findings.study)))
    else:
        section.missing(_why_no_importance(findings.study))
    trials = findings.study.searched
    if not len(trials):
        section.missing(f"{nothing(findings.study)}, so there is no history of the search.")
        return section
    section.add(
        figures.history(
            trials["number"].tolist(),
            trials["objective"].tolist(),
            _labels(trials),
            _baselines(findings),
            findings.objective,
            judged_in_full(findings.study),
            findings.study.metric in LOWER_IS_BETTER,
        ),
        _parallel(findings),
    )
    section.add(Items(told) if (told := _differences(findings)) else None)
    return section


def _why_no_importance(study: Study) -> str:
    found = study.settings["objective"]
    if len(found) >= FEWEST_FOR_IMPORTANCE and found.nunique() > 1:
        return (
            "The study's folder has no importance.json, which a sweep writes when it ends, so importances are missing."
        )
    judged = "judged on all inner folds" if study.parts else "judged to the end"
    there = f"there {'is' if len(found) == 1 else 'are'} {len(found)}"
    if len(found) >= FEWEST_FOR_IMPORTANCE:
        there = f"all {len(found)} have the same one"
    return (
        f"There are no importances: they need at least {FEWEST_FOR_IMPORTANCE} settings that were {judged} and do not "
        f"all have the same objective, and {there}."
    )


def _baselines(findings: Findings) -> dict[str, float]:
    """The objectives of the baselines by name."""
    others = findings.study.trials
    base = others[(others["kind"] == "baseline") & (others["state"] == "complete")]
    # a model of one magnification alone has the mean over all of them as its objective: together they have another
    lines = {row.trial: row.objective for row in base.itertuples() if not row.trial.startswith(PER_MAGNIFICATION)}
    lines[PER_MAGNIFICATION] = _each_at_its_own(findings)
    lines |= {name: each.objective for name, each in findings.baseline_searches.items()}
    return {name: value for name, value in lines.items() if math.isfinite(value)}


def _each_at_its_own(findings: Findings) -> float:
    """The objective of one model per magnification: the mean over magnifications of its own model's metric there."""
    study, rows = findings.study, findings.study.rows
    if study.parts:
        found = findings.judged.get(PER_MAGNIFICATION)
        return math.nan if found is None else found.value
    rows = rows[(rows["split"] == "validation") & (rows["level"] == "image") & (rows["metric"] == study.metric)]
    names = [f"{PER_MAGNIFICATION}-{each}" for each in rows["magnification"]]
    values = rows.loc[rows["trial"].astype(str) == names, "value"]
    return float(values.mean()) if len(values) == len(study.magnifications) else math.nan


def _differences(findings: Findings) -> list[str]:
    """Which searched names have a difference between their values, as the answer says it: over patients where inner
    folds judged every development patient, else for the validation patients that all settings share."""
    if not findings.study.parts:
        asked = {name: each.p_holm for name, each in findings.effects.items() if name not in ("first", "last")}
        begin = "Settings with a difference between their values for the validation patients of this study, at 5 %, "
        return [f"{begin}Holm-corrected: {_names(asked)}."] if asked else []
    effects = findings.effects_over_patients
    tested = {name: each.clearest.p_holm for name, each in effects.items() if each.clearest is not None}
    told = []
    if tested:
        told.append(
            "Settings with a difference between their values for other patients too, at 5 %, Holm-corrected over all "
            f"values that were compared: {_names(tested)}."
        )
    if silent := [name for name in effects if name not in tested]:
        told.append(too_few(silent))
    return told


def _names(p_values: dict[str, float]) -> str:
    """The names whose p is small enough, with it."""
    return ", ".join(f"{name} ({p_value(p)})" for name, p in p_values.items() if p < SIGNIFICANCE) or "none"


def _parallel(findings: Findings) -> Parallel | None:
    """The settings that are compared, over every name that was searched, and as a table."""
    trials, metric = findings.compared, findings.study.metric
    params = [json.loads(each) for each in trials["params"]]
    names = list(dict.fromkeys(key for each in params for key in each))
    if not names:
        return None
    table = Table(
        "settings",
        f"Every searched value and the {findings.objective} of {compared(findings)}.",
        [Column("trial"), *map(Column, names), Column("objective", 3, "min" if metric in LOWER_IS_BETTER else "max")],
    )
    for trial, given, objective in zip(trials["trial"], params, trials["objective"], strict=True):
        told = [value_name(given[name]) if name in given else None for name in names]
        table.add(trial, *told, float(objective))
    axes: list[tuple[str, list[float | str]]] = []
    for name in names:
        values = [each.get(name) for each in params]
        if any(value is None for value in values):
            continue
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            axes.append((name, [float(value) for value in values]))
        else:
            axes.append((name, [str(value) for value in values]))
    axes.append(("objective", [float(value) for value in trials["objective"]]))
    return Parallel(axes, trials["trial"].tolist(), table, metric in LOWER_IS_BETTER)
