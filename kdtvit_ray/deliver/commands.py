"""What the commands `export`, `predict` and `explain` do and print."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtvit_ray.console import Bar
from kdtvit_ray.data.findings import SHOWN, Finding
from kdtvit_ray.deliver import folder
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.inputs import Images
from kdtvit_ray.deliver.model import Model, open_model
from kdtvit_ray.deliver.predict import Predictions, check_labels, patients_of, predict
from kdtvit_ray.deliver.prediction_files import Target
from kdtvit_ray.deliver.scores import METRICS, numbers, scores, text
from kdtvit_ray.errors import EXIT_OK, EXIT_TRIALS_FAILED, UserError
from kdtvit_ray.paths import expanded
from kdtvit_ray.report.escaping import clean
from kdtvit_ray.results.patient_sentences import NO_CERTAINTY
from kdtvit_ray.results.words import counted, metric_name

OUT = "explanations"
"""The folder of maps where none is named."""
ROWS = 20
"""As many lines of a table are printed; a file holds all of them."""


def export_model(asked: argparse.Namespace, console: Console) -> int:
    """Export a study's model and say what was written."""
    from kdtvit_ray.deliver.export import export

    out = expanded(asked.out)
    with console.status("starting") as status:
        made = export(asked.study, out, asked.trial, data=asked.data, int8=asked.int8, progress=status.update)
    chosen, compared = made.chosen, made.compared
    what = "the best one" if chosen.is_best else "not the one that the search chose"
    what = what if chosen.study.finished else f"{what}; the study is not finished"
    console.print(Text(f"{chosen.trial} of study '{chosen.study.name}', {what}, in {out}:"), soft_wrap=True)
    for name, size in sorted(made.bytes.items()):
        console.print(f"  {name:18} {size / 1e6:9.2f} MB")
    on = f"{compared.images} test images" if compared.real else f"{compared.images} images of noise"
    console.print(f"ONNX and PyTorch differ by at most {compared.logits:.1g} in a logit, on {on}")
    for what, each in (
        ("ONNX of eight bits differs", compared.int8),
        ("The study computed in bfloat16: its own numbers differ", compared.bfloat16),
    ):
        if each:
            console.print(
                f"{what} by at most {each.probability:.2g} in a probability, and in {each.decisions} decisions",
                soft_wrap=True,
            )
    if not made.development:
        place = chosen.study.plain["data"]["path"]
        console.print(
            Text(
                f"The prepared set of the study is not at '{place}': checksums of development images are missing, so "
                "'predict' cannot know them again. Say with --data where it lies"
            ),
            soft_wrap=True,
        )
    if not chosen.refit:
        console.print(
            f"It was not trained on all development patients: its chain left out those of inner fold {chosen.left_out}"
        )
    console.print(Text(f"Use it: kdtvit-ray predict {out} IMAGES"), soft_wrap=True)
    return EXIT_OK


def predict_images(asked: argparse.Namespace, console: Console) -> int:
    """Predict images, print the tables and write them; 1 where some images could not be read."""
    out = Target(expanded(asked.out)) if asked.out else None
    if out:
        out.check()
    images = Images(asked.images)
    if out:
        out.spare(images)
    model = open_model(asked.model, asked.trial, asked.threads)
    model.description = told = model.description.deciding_by(asked.threshold)
    check_labels(images.of_tables, told)
    for note in (*model.notes, *images.notes):
        console.print(Text(clean(note)), soft_wrap=True)
    with Bar(console, "predicting", "images") as bar:
        bar.show(0, images.total)
        found = predict(model, images, tta=asked.tta, progress=lambda done: bar.show(done, images.total))
    unreadable = [*images.findings, *found.unreadable]
    if len(found.table):
        _tables(found, unreadable, model, out, console)
    else:
        not_written = f", so '{out.path}' is not written" if out else ""
        console.print(Text(f"no image could be read{not_written}"), soft_wrap=True)
        out = None
    _tell_unreadable(unreadable, out.unreadable if out else None, console)
    return EXIT_TRIALS_FAILED if unreadable else EXIT_OK


def explain_images(asked: argparse.Namespace, console: Console) -> int:
    """Draw maps of images, or of a study's test images, and print the files; 1 where some images could not be read."""
    from kdtvit_ray.deliver.explain import MOST, Made, explain
    from kdtvit_ray.deliver.explain_study import explain_study

    if asked.images and asked.data:
        raise UserError("--data is for a study's test images; give either it or images")
    notes: list[str] = []
    with Bar(console, "explaining") as bar:
        if asked.images:
            images = Images(asked.images)
            model = open_model(asked.model, asked.trial)
            check_labels(images.of_tables, model.description)
            made = explain(model, images, asked.out or OUT, lambda done: bar.show(done, images.total))
            made.unreadable[:0] = images.findings
            notes = images.notes
        else:
            path = expanded(asked.model)
            if path.is_file() or (path / folder.CONFIG).is_file():
                raise UserError(f"'{asked.model}' is an exported model, which has no test images; name images")
            if asked.out:
                raise UserError("--out is for images that are named; maps of a study's test images lie in the study")
            made = Made(explain_study(asked.model, asked.trial, asked.data, bar.show))
    for note in notes:
        console.print(Text(clean(note)), soft_wrap=True)
    for file in made.files:
        console.print(Text(file), soft_wrap=True)
    if made.untrained:
        console.print(made.untrained)
    if made.left_out:
        console.print(f"{made.left_out:,} images were left out: a slide shows {MOST} at each magnification")
    _tell_unreadable(made.unreadable, None, console)
    return EXIT_TRIALS_FAILED if made.unreadable else EXIT_OK


def _tables(
    found: Predictions, unreadable: Sequence[Finding], model: Model, out: Target | None, console: Console
) -> None:
    told = model.description
    console.print(_images(found, told))
    hidden = len(found.table) - ROWS
    if hidden > 0:
        console.print(f"and {hidden:,} more" + ("" if out else "; --out FILE.csv writes all of them"))
    patients, development = patients_of(found, told), None
    if any(each is not None for each in found.positive):
        development = model.development()
    measured = scores(found, told, development)
    if len(patients):
        console.print(_patients(patients, told))
        if len(patients) > ROWS:
            console.print(f"and {len(patients) - ROWS:,} more" + ("" if out else "; --out FILE.csv writes all of them"))
    if len(measured):
        intervals = any(each[metric].bounded for each in measured.to_dict("records") for metric in METRICS)
        more = ", 95 % intervals over patients" if intervals else ""
        console.print(Text(f"against the labels at the threshold {told.threshold:.3g}{more}", "bold"))
        console.print(_scores(measured))
        if any(each[metric].flat for each in measured.to_dict("records") for metric in METRICS):
            console.print(NO_CERTAINTY)
        _tell_development(measured, console)
    if untrained := told.untrained(found.table.get("magnification", ())):
        console.print(untrained)
    for note in found.notes:
        console.print(note)
    count = len(found.table)
    console.print(f"{counted(count, 'image')} in {found.seconds:.1f} s, {count / found.seconds:.0f} images/s")
    if out:
        images = found.table
        if development is not None:
            images = images.assign(development=[each in development for each in found.checksums])
        tables = {"images": images, "patients": patients, "metrics": numbers(measured, told)}
        for path in out.write(tables, unreadable):
            console.print(Text(f"written: {path}"), soft_wrap=True)


def _tell_development(measured: pd.DataFrame, console: Console) -> None:
    """Say how many of the labelled images the model was developed on."""
    labelled, again = measured["images"][0], measured["development_images"][0]
    if math.isnan(again):
        console.print(
            f"It cannot be told whether any of {counted(labelled, 'labelled image')} is a development image of "
            "this model, which makes the figures against the labels too good: their checksums are missing, since the "
            "prepared set of its study was not at hand"
        )
    elif again:
        which = "All" if again == labelled else f"{again:,} of"
        console.print(
            f"{which} {labelled:,} labelled images are development images of this model, which was trained or "
            "chosen on them: the figures against the labels are too good for new patients"
        )


def _images(found: Predictions, told: Description) -> Table:
    positive = told.words[1]
    table = Table(title=f"decided at the threshold {told.threshold:.3g} ({told.decision})", title_style="bold")
    table.add_column("image", overflow="ellipsis", no_wrap=True)
    for name in (f"P({positive})", "calibrated"):
        table.add_column(Text(name), justify="right")
    table.add_column("class", no_wrap=True)
    table.add_column("decision", no_wrap=True)
    for each in found.table.head(ROWS).to_dict("records"):
        numbers = [f"{each[name]:.3f}" for name in ("probability", "calibrated")]
        table.add_row(Text(_end(clean(each["name"]))), *numbers, Text(clean(each["class"])), Text(each["decision"]))
    return table


def _end(name: str, most: int = 28) -> str:
    """The end of a long path, which tells more than its beginning."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _patients(patients: pd.DataFrame, told: Description) -> Table:
    table = Table(title="patients, by the mean over their images", title_style="bold")
    table.add_column("patient", overflow="ellipsis", no_wrap=True)
    table.add_column("images", justify="right")
    labelled = "label" in patients
    if labelled:
        table.add_column("label")
    table.add_column(Text(f"P({told.words[1]})"), justify="right")
    table.add_column("decision")
    for each in patients.head(ROWS).to_dict("records"):
        label = [Text(each["label"])] if labelled else []
        name = Text(_end(clean(each["patient"])))
        table.add_row(name, str(each["images"]), *label, f"{each['probability']:.3f}", Text(each["decision"]))
    return table


def _scores(measured: pd.DataFrame) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("of")  # breaks before a number is cut off
    for metric in METRICS:
        table.add_column(metric_name(metric), justify="right", no_wrap=True)
    for each in measured.to_dict("records"):
        count = each["patients"] if each["what"] == "patients" else each["images"]
        table.add_row(f"{each['what']} {count:,}", *(text(each[metric]) for metric in METRICS))
    return table


def _tell_unreadable(unreadable: Sequence[Finding], listed: Path | None, console: Console) -> None:
    """Print what could not be read: all of it, or the first of it where the file `listed` has all."""
    if not unreadable:
        return
    console.print(f"{len(unreadable)} could not be read:")
    for each in unreadable[: None if listed is None else SHOWN]:
        console.print(Text(f"  {clean(each.where)}: {clean(each.reason)}"), soft_wrap=True)
    if listed and len(unreadable) > SHOWN:
        console.print(Text(f"  all of them are in {listed}"), soft_wrap=True)
