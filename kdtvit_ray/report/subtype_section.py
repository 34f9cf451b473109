"""What the best chain says about the dataset's classes: which ones it confuses, and how well it tells them apart."""

import numpy as np
import pandas as pd

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.report import curves
from kdtvit_ray.report.document import Items, Picker, Section
from kdtvit_ray.report.headline_section import row_name
from kdtvit_ray.report.tables import Column, Estimate, Table
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.images import class_confusion, tells_classes
from kdtvit_ray.results.statistics import FEWEST_PATIENTS, MEAN
from kdtvit_ray.results.subtypes import METRICS, Subtypes, absent, told


def subtypes(findings: Findings, section: Section, predictions: pd.DataFrame) -> None:
    """Add the confusion of classes and what it comes to, for the chain of `predictions`, the best one."""
    dataset = findings.study.dataset
    if not tells_classes(predictions, dataset):
        section.missing(
            "The models have a two-class head, so there is no confusion of classes."
            if len(dataset.classes) > 2
            else "The dataset has two classes, one on each side, so there is no other confusion of classes."
        )
        return
    counts = class_confusion(predictions, dataset).to_numpy()
    section.add(curves.classes(dataset.classes, counts, dataset.first_positive, dataset.words))
    section.add(_confused(counts, dataset))
    found = findings.subtypes["best"]
    section.add(Picker("classes", ("Metric",), _metrics(findings)), _recalls(found))
    section.say(told(found))
    section.add(
        Items(
            [
                *absent(found),
                f"An image is called the most probable of the {len(dataset.classes)} classes. Macro F1 and balanced "
                "accuracy are means over the classes that test has, in every bootstrap draw over those that are "
                "drawn: a class of one patient weighs as much as one of many.",
            ]
        )
    )


def _confused(counts: np.ndarray, dataset: Dataset) -> Table | None:
    table = Table(
        "confused-classes",
        "The most confused classes on test, all magnifications together.",
        [
            Column("true"),
            Column("predicted"),
            Column("images", 0),
            Column("share of the true class"),
            Column(f"crosses {dataset.negative} and {dataset.positive}"),
        ],
    )
    names, total, positive = dataset.classes, counts.sum(axis=1), dataset.is_positive
    pairs = [(int(counts[i, j]), i, j) for i in range(len(counts)) for j in range(len(counts)) if i != j]
    for count, i, j in sorted(pairs, key=lambda each: (-each[0], each[1], each[2]))[:8]:
        if count:
            table.add(names[i], names[j], count, count / total[i], positive[i] != positive[j])
    return table if table.rows else None


def _metrics(findings: Findings) -> list[tuple[tuple[str], Table]]:
    """One table for each metric, a line for each chain."""
    study, made = findings.study, []
    for metric, name in METRICS.items():
        table = Table(
            f"classes-{metric}".replace("_", "-"),
            f"Test {name}, by magnification and their mean; 95 % intervals over patients.",
            [Column("chain"), *(Column(each, 3, "max") for each in (*study.tested_columns, MEAN))],
        )
        for model in findings.models:
            if (found := findings.subtypes.get(model.name)) is not None:
                cells = [Estimate.of(found.metric(metric, place)) for place in (*study.magnifications, MEAN)]
                table.add(row_name(study, model.label, model.kind), *cells, kind=model.kind)
        made.append(((name,), table))
    return made


def _recalls(found: Subtypes) -> Table:
    """One line for each class; one that test does not have has no numbers."""
    columns = [f"{each}X" for each in found.magnifications]
    table = Table(
        "class-recall",
        "Recall of each class by the best chain on test, by magnification and their mean; images and patients of all "
        f"magnifications together; 95 % intervals over patients, none for fewer than {FEWEST_PATIENTS}.",
        [
            Column("class"),
            Column("images", 0),
            Column("patients", 0),
            *(Column(each) for each in (*columns, MEAN)),
        ],
    )
    for of, name in enumerate(found.classes):
        cells = [Estimate.of(found.recall(place, of)) for place in (*found.magnifications, MEAN)]
        table.add(name, int(found.images[:, of].sum()), int(found.everyone[of]), *cells)
    return table
