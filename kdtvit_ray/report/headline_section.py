"""The answer in words, and the headline tables: all chains on test beside what others have reported."""

import numpy as np

from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.report import trust_section
from kdtvit_ray.report.confirmation_section import confirmations
from kdtvit_ray.report.document import Items, Picker, Section
from kdtvit_ray.report.tables import P_HOLM, P_PAIRED, Column, Estimate, P, Table
from kdtvit_ray.results.answer import answer as sentences_of
from kdtvit_ray.results.extra_metrics import EVERY
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.undefined_objectives import nothing
from kdtvit_ray.results.words import LEVEL_NAMES, baseline_label, metric_name


def answer(findings: Findings) -> Section:
    section = Section("answer", "The answer")
    sentences = sentences_of(findings)
    section.say(sentences[0])
    if len(sentences) > 1:
        section.say(sentences[1], "lead")
        section.add(Items(sentences[2:]))
    return section


def headline(findings: Findings) -> Section:
    section = Section("headline", "Headline")
    reported = bool(findings.study.dataset.references)
    others = "; rows in italics are other people's numbers as they reported them" if reported else ""
    chosen = f"; chains were chosen on {findings.study.chosen_on}" if findings.best is not None else ""
    section.say(
        f"Numbers are on test, at threshold 0.5, with {findings.study.dataset.positive} as the positive side, save in "
        f"tables that say that they are on development patients{chosen}. Brackets hold 95 % intervals that resample "
        f"patients, not images. The best measured number of a column is bold{others}."
    )
    tables = headline_tables(findings)
    if findings.best is None:
        section.missing(f"{nothing(findings.study)}, so there is nothing of this study's own to compare.")
    if tables:
        section.add(Picker("headline", ("Level", "Metric"), tables))
        section.say(
            "Patient rate is the mean over patients of the share of their images that are right; patient vote "
            "thresholds each patient's mean probability. Both are called patient-level accuracy in the literature.",
            "note",
        )
        section.add(Items([f"{each.removesuffix('.')}." for each in (*findings.headline.notes, *_further(findings))]))
    section.add(_searched_baselines(findings))
    section.add(_comparisons(findings), trust_section.baselines(findings), *confirmations(findings))
    if findings.study.dataset.references:
        section.add(_references(findings.study), _sources(findings.study))
    return section


def _further(findings: Findings) -> list[str]:
    """What AUPRC and MCC are, for a reader who compares; [] where predictions are missing."""
    if not findings.measured.by_model:
        return []
    positive = findings.study.dataset.positive
    shares = ", ".join(f"{share:.3f} at {each}X" for each, share in findings.positive_shares.items())
    return [
        f"AUPRC is average precision, for which a constant answer has the share of {positive} images"
        f"{f' ({shares})' if shares else ''}; MCC is Matthews' correlation of truths and answers at threshold 0.5, "
        "undefined where all images are answered alike. Both are computed from predictions, so they are no objective "
        "of a search"
    ]


def headline_tables(findings: Findings) -> list[tuple[tuple[str, str], Table]]:
    """One table for each level and metric that has values, the study's own metric at image level first."""
    study, long = findings.study, findings.headline.long
    metrics = sorted(EVERY, key=lambda each: (each != study.metric, EVERY.index(each)))
    made = []
    for level, level_name in LEVEL_NAMES.items():
        for metric in metrics:
            part = long[(long["level"] == level) & (long["metric"] == metric)]
            if not len(part) or not np.isfinite(part["value"].astype(float)).any():
                continue
            best = "min" if metric in LOWER_IS_BETTER else "max"
            caption = f"Test {metric_name(metric)}, {level_name} level, by magnification and their mean."
            columns = [Column("chain"), *(Column(name, 3, best) for name in study.columns)]
            table = Table(f"headline-{level}-{metric}".replace("_", "-"), caption, columns)
            for label in dict.fromkeys(part["label"]):
                lines = part[part["label"] == label]
                found = {
                    str(line.magnification): Estimate(float(line.value), float(line.low), float(line.high))
                    for line in lines.itertuples()
                }
                kind = str(lines["kind"].iloc[0])
                name = row_name(study, str(label), kind)
                table.add(name, *(found.get(column) for column in study.columns), kind=kind)
            made.append(((level_name, metric_name(metric)), table))
    return made


def row_name(study: Study, label: str, kind: str, leaks: bool = True) -> str:
    """A chain's name in a table, with what a reader must know to compare it: others' protocol and, unless it is said
    elsewhere, that the study `leaks`."""
    if kind != "reported":
        return f"{label} (image split, leaks)" if leaks and study.leaks else label
    protocol = next((each.protocol for each in study.dataset.references if each.label == label), "protocol unknown")
    if not protocol.startswith("reported"):
        protocol = protocol.split(",")[0]  # level and metric are the table's own
    return f"{label.removesuffix(' (reported)')} ({protocol})"


def _searched_baselines(findings: Findings) -> Table | None:
    """How many settings each searched baseline tried and which one it chose; None where none was searched."""
    study = findings.study
    if not findings.baseline_searches:
        return None
    table = Table(
        "searched-baselines",
        f"Baselines that were searched like the chains, on {study.chosen_on}: what each tried and what it chose. Their "
        "chosen settings stand for them wherever they are compared.",
        [
            Column("baseline"),
            Column("settings judged", 0),
            Column("dropped by racing", 0),
            Column("failed", 0),
            Column("chosen"),
            Column("its values"),
            Column(findings.objective),
        ],
    )
    for name, each in findings.baseline_searches.items():
        table.add(baseline_label(name), each.tried, each.dropped, each.failed, each.trial, each.values, each.objective)
    return table


def _comparisons(findings: Findings) -> Table | None:
    if not findings.comparisons:
        return None
    table = Table(
        "comparisons",
        "A chain minus another on test, mean over magnifications, paired over patients; "
        f"{P_PAIRED}, and Holm's correction over these lines.",
        [Column("chain"), Column("minus"), Column("metric"), Column("difference"), P, P_HOLM],
    )
    for each in findings.comparisons:
        chain = f"{each.trial}, alike but for distillation" if each.matched else "Best chain"
        difference = Estimate.of(each.difference)
        table.add(chain, each.against.label, metric_name(each.metric), difference, each.p, each.p_holm)
    return table


def _references(study: Study) -> Table:
    table = Table(
        "references",
        f"Others' results on {study.dataset.name} as they reported them: compare only where protocol and level are the "
        "same.",
        [Column("work"), Column("protocol"), Column("level and metric"), *(Column(each) for each in study.columns)],
    )
    for each in study.dataset.references:
        what = f"{LEVEL_NAMES[each.level]}, {metric_name(each.metric)}"
        values = [each.values.get(column) for column in study.columns]
        table.add(each.label.removesuffix(" (reported)"), each.protocol, what, *values, kind="reported")
    return table


def _sources(study: Study) -> Items:
    sources: dict[str, list[str]] = {}
    for each in study.dataset.references:
        sources.setdefault(each.source, []).append(each.label.removesuffix(" (reported)"))
    return Items([f"{', '.join(dict.fromkeys(works))}: {source}." for source, works in sources.items()])
