"""The section on how far the choice of a search can be trusted."""

import json
import math

from kdtvit_ray.report import trust_figures
from kdtvit_ray.report.document import Items, Section
from kdtvit_ray.report.tables import P_HOLM, P_PAIRED, Column, Estimate, P, Table
from kdtvit_ray.results.choice import ranked
from kdtvit_ray.results.development import flatters, lead, patients
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.trust import FEWEST_SETTINGS, Rival, Search, stepped_up
from kdtvit_ray.results.undefined_objectives import nothing
from kdtvit_ray.results.words import BASELINE_NAMES, amount, baseline_label, listed, metric_name


def trust(findings: Findings) -> Section:
    section = Section("trust", "Can the search be trusted?")
    study, found, best = findings.study, findings.search, findings.best
    if not study.parts:
        section.missing(
            "One validation part judged every setting of this study, which cannot tell how far the choice can be "
            "trusted; objective_folds in [study] judges settings on all development patients and does."
        )
        return section
    if found is None or best is None:
        section.missing(f"{nothing(study)}, so there is no choice to trust.")
        return section
    section.add(Items(_sentences(findings, found)))
    # one magnification alone has another objective than the mean over all of them: no line for those
    lines = {name: judged.value for name, judged in findings.judged.items() if name in BASELINE_NAMES}
    section.add(trust_figures.objectives(found.table, best.trial, lines, findings.objective))
    numbers, objective, test = trust_figures.so_far(found.table)
    if study.finished and any(map(math.isfinite, test)):
        section.add(trust_figures.incumbents(numbers, objective, test, f"mean {metric_name(study.metric)}"))
    section.add(_settings(findings))
    return section


def _sentences(findings: Findings, found: Search) -> list[str]:
    study, best = findings.study, findings.best
    assert best is not None
    complete = int((found.table["state"] == "complete").sum())
    error = float(found.table.set_index("trial").loc[best.trial, "error"])
    told = []
    if math.isfinite(error):
        told.append(
            f"{best.trial} has {findings.objective} {best.objective:.3f} with a standard error of {error:.3f} over "
            f"{patients(findings)}."
        )
    if math.isfinite(found.gap):
        told.append(
            f"The best objective is better than the median of the {complete} settings that were judged on all inner "
            f"folds by {found.gap:.1f} standard errors of their difference, paired over patients."
        )
    if flattering := flatters(findings):
        told.append(flattering)
    told += _agreements(found, complete)
    if study.finished:
        told += _on_test(findings, found)
    parts, dropped = len(study.parts), len(found.table) - complete
    saved = found.possible - found.chains
    racing = "Racing was off" if not study.plain["study"]["racing"] else f"Racing dropped {dropped}"
    told.append(
        f"{found.chains} chains were run to judge {len(found.table)} settings; all of them on all {parts} inner folds "
        f"would have been {found.possible}. {racing}{f' and saved {saved} chains' if saved else ''}."
    )
    return told


def _agreements(found: Search, complete: int) -> list[str]:
    """Whether parts of the development patients agree on which settings are better."""
    if complete < FEWEST_SETTINGS:
        return [f"Rank correlations need {FEWEST_SETTINGS} settings, so it cannot be told whether patients agree."]
    folds, halves, told = found.folds_agree, found.halves_agree, []
    if math.isfinite(folds):
        told.append(
            f"Two inner folds agree on the order of the settings with a rank correlation of {folds:.2f} (mean over "
            "pairs): so reliable is one inner fold alone as a judge."
        )
    else:
        told.append(
            "Single inner folds cannot be compared: a class is missing in them, or they tell no settings apart."
        )
    if math.isfinite(halves):
        whole = stepped_up(halves)
        after = f", which makes {whole:.2f} for all of them (Spearman and Brown)" if math.isfinite(whole) else ""
        told.append(
            f"Two halves of the development patients order the settings with a rank correlation of {halves:.2f}{after}."
        )
    return told


def _on_test(findings: Findings, found: Search) -> list[str]:
    """A look back when the search has ended: did what it saw hold on test?"""
    own, told = findings.study.metric, []
    metric = metric_name(own)
    if math.isfinite(found.test_agrees):
        drawn, development = findings.measured.resampling, findings.development_patients.patients
        where = f", on {len(drawn.patients)} test patients (the objective is on {development})" if drawn else ""
        told.append(
            f"Seen only now, after the end: objective and test {metric} of the settings have a rank correlation of "
            f"{found.test_agrees:.2f}. A setting's test value is the mean over its chains over inner folds"
            f"{where}; it varies by chance as well."
        )
    incumbents = int(found.table["incumbent"].sum())
    if math.isfinite(found.overtuning) and incumbents > 1:
        told.append(
            f"Overtuning: of the {incumbents} settings that were the best so far, the last one is "
            f"{amount(found.overtuning, own)} of {metric} behind the best of them on test."
            if found.overtuning > 0
            else f"No overtuning: of the {incumbents} settings that were the best so far, the last one is the best on "
            "test too."
        )
    return told


def _settings(findings: Findings) -> Table | None:
    best, search = findings.best, findings.search
    if best is None or search is None:
        return None
    table = Table(
        "settings-against-chosen",
        "Every setting that was judged on all inner folds, the best objective first: its objective with one standard "
        f"error, and the chosen setting, {best.trial}, minus it, paired over development patients; {P_PAIRED}, "
        "and Holm's correction over these lines. Tied: the data cannot tell it from the chosen one.",
        [
            Column("setting"),
            Column("order"),
            Column("student"),
            Column("T, alpha"),
            Column("objective"),
            Column("chosen minus it"),
            P,
            P_HOLM,
            Column("tied"),
        ],
    )
    rivals = {rival.trial: rival for rival in findings.other_settings}
    errors = search.table.set_index("trial")["error"]
    records = ranked(findings.study.settings, findings.study.metric)
    for record in records.itertuples():
        rival: Rival | None = rivals.get(record.trial)
        temperature, alpha = (listed(json.loads(each), "/") or "-" for each in (record.temperature, record.alpha))
        tied = rival.tied if rival and rival.tested else None
        table.add(
            record.trial,
            record.order,
            record.student,
            f"{temperature}, {alpha}",
            Estimate(float(record.objective), sd=float(errors.get(record.trial, math.nan))),
            Estimate.of(rival.difference) if rival else None,
            rival.p if rival else None,
            rival.p_holm if rival else None,
            tied,
        )
    return table


def baselines(findings: Findings) -> Table | None:
    """The chosen setting against the baselines on the development patients; None where there is nothing to compare."""
    if not findings.baselines_in_development:
        return None
    drawn = findings.measured.resampling
    test = f", where test has {drawn.sides.told(findings.study.dataset.words)}" if drawn else ""
    table = Table(
        "baselines-in-development",
        f"The best chain's setting minus each baseline, out of fold, on {patients(findings)}{test}: mean over "
        f"magnifications, paired over patients; {P_PAIRED}, and Holm's correction over these lines. "
        f"{lead(findings)}".strip(),
        [Column("minus"), Column("metric"), Column("taken off"), Column("difference"), P, P_HOLM],
    )
    for rival in findings.baselines_in_development:
        metric, less = metric_name(findings.study.metric), Estimate.of(rival.difference)
        table.add(baseline_label(rival.trial), metric, rival.taken_off, less, rival.p, rival.p_holm)
    return table
