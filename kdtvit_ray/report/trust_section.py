"""The section on how far the choice of a search can be trusted."""

import json
import math

from kdtvit_ray.report import trust_figures
from kdtvit_ray.report.document import Items, Section
from kdtvit_ray.report.headline_section import NOTHING
from kdtvit_ray.report.tables import P_HOLM, Column, Estimate, P, Table
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.trust import Rival, Search
from kdtvit_ray.results.words import baseline_label, listed, metric_name, points


def trust(findings: Findings) -> Section:
    section = Section("trust", "Can the search be trusted?")
    study, found, best = findings.study, findings.search, findings.best
    if not study.parts:
        section.missing(
            "One validation part judges every setting of this study, so it cannot be told how far the choice holds for "
            "other patients. objective_folds in [study] judges settings on all development patients instead."
        )
        return section
    if found is None or best is None:
        section.missing(f"{NOTHING}, so there is no choice to trust.")
        return section
    section.add(Items(_sentences(findings, found)))
    # one magnification alone has another objective than the mean over all of them: no line for those
    lines = {
        baseline_label(name): judged.value
        for name, judged in findings.judged.items()
        if name in ("joint", "sequential", "from_scratch_kd", "per_magnification")
    }
    section.add(trust_figures.objectives(found.table, best.trial, lines, findings.objective))
    numbers, objective, test = trust_figures.so_far(found.table)
    if study.finished and any(map(math.isfinite, test)):
        section.add(trust_figures.incumbents(numbers, objective, test, f"mean {metric_name(study.metric)}"))
    section.add(_settings(findings), _baselines(findings))
    return section


def _sentences(findings: Findings, found: Search) -> list[str]:
    study, best = findings.study, findings.best
    assert best is not None
    metric, complete = metric_name(study.metric), int((found.table["state"] == "complete").sum())
    error = found.table.set_index("trial").loc[best.trial, "error"]
    told = [
        f"{best.trial} has {findings.objective} {best.objective:.3f} with a standard error of {error:.3f} over "
        f"development patients."
    ]
    if math.isfinite(found.gap):
        told.append(
            f"The best objective is {found.gap:.1f} standard errors above the median of the {complete} settings that "
            "were judged on all inner folds."
        )
    if math.isfinite(found.optimism):
        told.append(
            f"The best of {complete} objectives is expected to be {points(found.optimism)} points of {metric} too "
            "good, because it was picked on the patients that it was measured on (bootstrap over patients)."
        )
    for value, what in (
        (found.folds_agree, "Two inner folds agree on the order of the settings with a mean rank correlation of"),
        (found.halves_agree, "Two halves of the development patients, stepped up to all of them, agree with"),
    ):
        if math.isfinite(value):
            told.append(f"{what} {value:.2f}.")
    if study.finished and math.isfinite(found.test_agrees):
        told.append(
            f"Seen after the end only: objective and test value of the settings' chains have a rank correlation of "
            f"{found.test_agrees:.2f}. Test has few patients, so that this varies by chance as well."
        )
    dropped = len(found.table) - complete
    told.append(
        f"{found.chains} chains over inner folds were run for {len(found.table)} settings; all settings on all inner "
        f"folds are {found.possible}. Racing dropped {dropped} settings."
    )
    return told


def _settings(findings: Findings) -> Table | None:
    best, search = findings.best, findings.search
    if best is None or search is None:
        return None
    table = Table(
        "settings-against-chosen",
        "Every setting that was judged on all inner folds: its objective with one standard error, and the chosen "
        f"setting minus it, paired over development patients, with Holm's correction. Tied: the data cannot tell it "
        f"from {best.trial}.",
        [
            Column("setting"),
            Column("order"),
            Column("student"),
            Column("T, alpha"),
            Column("objective", 3),
            Column("error", 3),
            Column("chosen minus it"),
            P_HOLM,
            Column("tied"),
        ],
    )
    rivals = {rival.trial: rival for rival in findings.other_settings}
    errors = search.table.set_index("trial")["error"]
    for record in findings.study.settings.sort_values("number").itertuples():
        rival: Rival | None = rivals.get(record.trial)
        temperature, alpha = (listed(json.loads(each)) or "-" for each in (record.temperature, record.alpha))
        table.add(
            f"{record.trial} (chosen)" if record.trial == best.trial else record.trial,
            record.order,
            record.student,
            f"{temperature}, {alpha}",
            float(record.objective),
            float(errors.get(record.trial, math.nan)),
            Estimate.of(rival.difference) if rival else None,
            rival.p_holm if rival else None,
            rival.tied if rival else None,
        )
    return table


def _baselines(findings: Findings) -> Table | None:
    if not findings.baselines_in_development:
        return None
    table = Table(
        "baselines-in-development",
        "The chosen setting minus each baseline, out of fold, paired over development patients, with Holm's "
        "correction. The setting was chosen on these patients and the baselines were not, so the differences flatter "
        "it by about the optimism above.",
        [Column("minus"), Column("difference"), P, P_HOLM],
    )
    for rival in findings.baselines_in_development:
        table.add(baseline_label(rival.trial), Estimate.of(rival.difference), rival.p, rival.p_holm)
    return table
