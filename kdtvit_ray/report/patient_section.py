"""One decision a patient, from its images of all magnifications together: all models, and what each magnification
adds."""

from collections.abc import Sequence

from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.report.document import Section
from kdtvit_ray.report.headline_section import row_name
from kdtvit_ray.report.tables import P_HOLM, P_PAIRED, Column, Estimate, P, Table
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.patient_sentences import decided
from kdtvit_ray.results.patients import Added, Patients, metrics_of
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.undefined_objectives import nothing
from kdtvit_ray.results.words import metric_name

TITLE = "A patient, over all magnifications"


def patient(findings: Findings) -> Section:
    section, study = Section("patient", TITLE), findings.study
    if findings.best is None:
        section.missing(f"{nothing(findings.study)}, so there are no decisions on patients.")
        return section
    if len(study.magnifications) < 2:
        section.missing("Test has images of one magnification only, so there is nothing to put together.")
        return section
    found = findings.patients
    if found is None:
        section.missing("The predictions of all models are missing or damaged, so no patient can be decided.")
        return section
    section.say(
        "One model for all magnifications can decide once a patient: the mean probability over all of a patient's test "
        "images, whatever their magnification, at the threshold 0.5. Brackets hold 95 % intervals over patients."
    )
    section.add(_models(study, found))
    if found.left_out:
        section.missing(f"Left out, for want of predictions at every magnification: {', '.join(found.left_out)}.")
    for sentence in decided(findings):
        section.say(sentence)
    if found.added is not None:
        section.add(*added_tables(found.added))
        if found.added.left:
            section.say(left(found.added), "note")
    return section


def _models(study: Study, found: Patients) -> Table:
    negative, positive = study.dataset.words
    metrics = metrics_of(study.metric)
    table = Table(
        "patient-all",
        f"One decision a patient over all magnifications, on {found.negative} {negative} and {found.positive} "
        f"{positive} test patients.",
        [Column("chain"), *_columns(metrics)],
    )
    for each in found.models:
        cells = [Estimate.of(each.values[metric]) for metric in metrics]
        table.add(row_name(study, each.model.label, each.model.kind), *cells, kind=each.model.kind)
    return table


def added_tables(added: Added) -> tuple[Table, Table]:
    """The decision from all magnifications, from each alone and from all without one, and the comparisons."""
    metrics = metrics_of(added.metric)
    # of two magnifications all without one are the other alone
    others = (
        ", of each alone, and of all without one" if len(added.subsets[0].magnifications) > 2 else " and of each alone"
    )
    values = Table(
        "patient-magnifications",
        f"The decision on a patient from the images of all magnifications{others}.",
        [Column("images of"), *_columns(metrics)],
    )
    gains = Table(
        "patient-added",
        f"What is added to them: {metric_name(added.metric)} of all magnifications minus that of these, "
        f"paired over patients; {P_PAIRED}, and Holm's correction over these lines.",
        [Column("images of"), Column("all minus these"), P, P_HOLM],
    )
    for each in added.subsets:
        values.add(each.name, *(Estimate.of(each.values[metric]) for metric in metrics))
        if each.gain is not None:
            gains.add(each.name, Estimate.of(each.gain.interval), each.gain.p, each.p_holm)
    return values, gains


def left(added: Added) -> str:
    """That some patients are not in the table of magnifications."""
    them = "patient lacks" if added.left == 1 else "patients lack"
    return f"{added.left} {them} images at some magnification and are not in the table of magnifications."


def _columns(metrics: Sequence[str]) -> list[Column]:
    return [Column(metric_name(each), 3, "min" if each in LOWER_IS_BETTER else "max") for each in metrics]
