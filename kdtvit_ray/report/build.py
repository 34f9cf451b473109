"""A study's report, from its folder alone: one HTML page, Markdown, tables and figures.

findings = Findings(load("studies/demo"))
write_report(findings)                report/index.html, report.md, tables/*.csv *.tex, figures/*.svg *.png
print_headline(findings, console)     the same headline on a terminal of 80 columns
compare(["a", "b"], console, out)     several studies side by side
"""

from kdtvit_ray.report import (
    chain_sections,
    headline_section,
    order_section,
    patient_section,
    search_sections,
    study_sections,
    trust_section,
)
from kdtvit_ray.report.document import Document, markdown
from kdtvit_ray.report.html import page
from kdtvit_ray.report.terminal import compare, print_headline
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.rows import SEARCHES
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.undefined_objectives import undefined
from kdtvit_ray.results.words import counted

__all__ = ["compare", "print_headline", "write_report"]


def write_report(findings: Findings) -> None:
    """Write the study's report into its folder anew; works while the study runs and after failures."""
    study = findings.study
    document, folder = assemble(findings), study.folder
    base = folder.report
    contents: dict[str, bytes] = {}
    for table in document.tables():
        contents[f"tables/{table.name}.csv"] = table.csv().encode()
        contents[f"tables/{table.name}.tex"] = table.latex().encode()
    for figure in document.figures():
        contents[f"figures/{figure.name}.svg"] = figure.svg
        contents[f"figures/{figure.name}.png"] = figure.png
    # figures and tables of an earlier report that this one does not have are deleted
    for place in ("tables", "figures"):
        for name in folder.names(f"{base}/{place}"):
            if f"{place}/{name}" not in contents:
                folder.delete(f"{base}/{place}/{name}")
    contents["report.md"] = markdown(document).encode()
    contents["index.html"] = page(document).encode()
    for name, content in contents.items():
        folder.write(f"{base}/{name}", content)


def assemble(findings: Findings) -> Document:
    """All sections in the report's order."""
    study = findings.study
    sections = [
        headline_section.answer(findings),
        headline_section.headline(findings),
        patient_section.patient(findings),
        trust_section.trust(findings),
        order_section.order(findings),
        search_sections.settings(findings),
        search_sections.sizes(findings),
        search_sections.importance(findings),
        chain_sections.errors(findings),
        chain_sections.stages(findings),
        study_sections.cost(findings),
        study_sections.protocol(findings),
        study_sections.failures(findings),
    ]
    return Document(f"Study {study.name}", _subtitle(study), study_sections.banners(study), sections)


def _subtitle(study: Study) -> str:
    trials = study.trials
    counts = []
    for kind, what, more in (
        ("search", "searched setting" if study.parts else "searched trial", ""),
        ("baseline", "baseline" if study.parts else "baseline chain", ""),
        ("baseline_search", "setting" if study.parts else "chain", " of searched baselines"),
        ("inner", "chain", " over inner folds"),
        ("refit", "refit", ""),
        ("confirm", "confirming chain", ""),
    ):
        count = int(((trials["kind"] == kind) & (trials["state"] == "complete")).sum())
        without = len(undefined(study, kind)) if kind in SEARCHES else 0
        if count or kind == "search":
            counts.append(
                f"{counted(count, what)}{more} complete{f', {without} of them without an objective' if without else ''}"
            )
        dropped = int(((trials["kind"] == kind) & (trials["state"] == "pruned")).sum())
        if dropped and kind in SEARCHES and study.parts:
            counts.append(f"{dropped} dropped by racing")
    settings = study.plain["study"]
    counts.append(f"sampler {settings['sampler']}, seed {settings['seed']}")
    return "; ".join(counts) + f". Protocol: {study.protocol}."
