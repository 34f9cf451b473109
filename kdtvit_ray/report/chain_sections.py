"""Sections on the best chain itself: errors and calibration, agreement with its teachers, learning curves."""

import io
import json
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import PREPARED_ABOUT, PREPARED_IMAGES, Folder
from kdtvit_ray.report import curves
from kdtvit_ray.report.decisions import NOT_FITTED, fitted_on, thresholds
from kdtvit_ray.report.document import Section, Thumbnail, Thumbnails
from kdtvit_ray.report.explanation_maps import explained
from kdtvit_ray.report.style import looks
from kdtvit_ray.report.subtype_section import subtypes
from kdtvit_ray.report.tables import Column, Table
from kdtvit_ray.results import effort
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.images import confusion, operating_points, reliability, roc, wrong
from kdtvit_ray.results.models import predictions_on_test
from kdtvit_ray.results.stage_record import StageRecord
from kdtvit_ray.results.undefined_objectives import nothing

WRONG = 18
"""Images in the list of most confident errors: three rows of six."""
THUMBNAIL = 128


def errors(findings: Findings) -> Section:
    section = Section("errors", "Errors and calibration")
    if findings.best is None:
        section.missing(f"{nothing(findings.study)}, so there are no errors to look at.")
        return section
    model = next((each for each in findings.models if each.kind == "best"), None)
    if model is None:
        section.missing(
            "The best chain has not been trained on all development patients yet, so it has no errors on test."
        )
        return section
    predictions = predictions_on_test(findings.study, model)
    if predictions is None or not len(predictions):
        section.missing(
            "The predictions of the best chain's last stage are missing or damaged, so ROC, reliability "
            "and confusion cannot be drawn."
        )
        return section
    section.say(f"All of {findings.best.trial}, the best chain on {findings.study.chosen_on}, after its last stage.")
    dataset, drawn = findings.study.dataset, looks(findings.study.dataset.magnifications)
    parts = {int(m): part for m, part in predictions.groupby("magnification", sort=True)}
    rocs, points, bins, tables = {}, {}, {}, {}
    for magnification, part in parts.items():
        found = roc(part)
        if math.isfinite(found.auc):
            rocs[magnification] = (found.false_positive, found.true_positive, found.auc)
        counts = confusion(part, dataset).to_numpy()
        tables[magnification] = counts
        (rejected, alarms), (missed, hits) = counts
        if rejected + alarms and missed + hits:
            points[magnification] = (alarms / (rejected + alarms), hits / (missed + hits))
        calibration = reliability(part)
        filled = calibration.table[calibration.table["n"] > 0]
        bins[magnification] = curves.Reliability(
            filled["confidence"].tolist(), filled["observed"].tolist(), filled["n"].tolist(), calibration.error
        )
    if rocs:
        section.add(curves.roc(rocs, points, drawn, dataset.positive))
    else:
        section.missing("Test holds one class only at every magnification, so there is no ROC.")
    section.add(
        curves.reliability(bins, drawn, dataset.positive),
        curves.confusion(tables, dataset.words),
    )
    _decisions(findings, section)
    section.add(_operating_points(parts, dataset.positive))
    subtypes(findings, section, predictions)
    _wrong(findings, section, predictions)
    explained(findings, section)
    return section


def _decisions(findings: Findings, section: Section) -> None:
    """Temperature and thresholds that never saw test."""
    decided = findings.operating
    if decided is None:
        return
    if not decided.judged_on:
        section.missing(NOT_FITTED)
        return
    section.say(f"{fitted_on(decided, findings.study.dataset.positive)}.")
    section.add(thresholds(decided))


def _operating_points(parts: dict[int, pd.DataFrame], positive: str) -> Table | None:
    table = Table(
        "operating-points",
        f"Optimistic operating points: the threshold on the probability of {positive} that meets each goal, read off "
        "the test ROC itself. They describe the curve by magnification and are no promise for other patients.",
        [Column("magnification"), Column("goal"), Column("threshold"), Column("sensitivity"), Column("specificity")],
    )
    for magnification, part in parts.items():
        for line in operating_points(part).itertuples():
            table.add(f"{magnification}X", str(line.goal), line.threshold, line.sensitivity, line.specificity)
    return table if table.rows else None


def _wrong(findings: Findings, section: Section, predictions: pd.DataFrame) -> None:
    dataset = findings.study.dataset
    found = wrong(predictions, dataset, WRONG)
    if not len(found):
        section.say("No test image is classified wrongly at threshold 0.5.")
        return
    pixels, why = _pixels(findings)
    items = []
    for line in found.to_dict("records"):
        truth, called = dataset.words[int(line["malignant"])], line["called"]
        named = line["class"] if line["class"] == truth else f"{line['class']}, {truth}"
        taken = f", taken for {called}" if called in dataset.classes and called not in dataset.words else ""
        text = f"is {named}{taken}; P({dataset.positive}) {line['probability']:.2f}"
        data = _thumbnail(pixels, int(line["image"])) if pixels is not None else b""
        items.append(Thumbnail(str(line["name"]), text, data))
    section.say(f"The {len(items)} test images on which the chain is most confidently wrong:")
    section.add(Thumbnails(items))
    if why:
        section.missing(why)


def _pixels(findings: Findings) -> tuple[np.ndarray | None, str]:
    """The prepared images as a memory map, or None and a sentence on why there are no thumbnails."""
    data = findings.study.plain["data"]
    place = data["path"]
    try:
        folder: Folder | None = Folder(place)
    except (OSError, UserError):  # storage that is away
        folder = None
    if folder is None or folder.local is None or not folder.exists(PREPARED_IMAGES):
        return None, f"The prepared images at {place} cannot be read from here, so they are given by name only."
    try:
        about = json.loads(folder.read(PREPARED_ABOUT))
        pixels = np.load(folder.local / PREPARED_IMAGES, mmap_mode="r")
    except (OSError, ValueError) as error:
        return None, f"The prepared images at {place} cannot be read ({error}), so they are given by name only."
    if about.get("fingerprint") != data["fingerprint"]:
        return None, f"{place} holds other images by now than the study used, so they are given by name only."
    return pixels, ""


def _thumbnail(pixels: np.ndarray, row: int) -> bytes:
    from PIL import Image

    if not 0 <= row < len(pixels):
        return b""
    image = Image.fromarray(np.asarray(pixels[row]))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=78)
    return out.getvalue()


def _agreement(findings: Findings, place: int, about: StageRecord) -> Mapping[str, float]:
    """How far a stage of the best chain follows its teacher on patients that it was not trained on; with inner folds
    the mean over the setting's chains. {} where one did not record it."""
    study = findings.study
    if not study.parts or findings.best is None:
        return about.agreement or {}
    chains = study.chains(findings.best.trial).values()
    stages = [study.stages.get(chain["stages"][place - 1]) for chain in chains if len(chain["stages"]) >= place]
    found = [stage.agreement for stage in stages if stage is not None and stage.agreement]
    if not found or len(found) < len(chains):
        return {}
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def stages(findings: Findings) -> Section:
    section = Section("stages", "Teachers, students and learning curves")
    if findings.best is None:
        section.missing(f"{nothing(findings.study)}, so there are no stages of a best chain.")
        return section
    compared = "on validation after the stage, at its magnification"
    if findings.study.parts:
        compared = (
            "after the stage, at its magnification, on the patients that a chain over inner folds left out, as mean "
            "over these chains, since the chain below was trained on all of them"
        )
    table = Table(
        "stages",
        f"Stages of the best chain, {findings.best.trial}. Agreement and KL divergence compare student and teacher "
        f"{compared}.",
        [
            Column("stage", 0),
            Column("magnification"),
            Column("model"),
            Column("parameters", 0),
            Column("T", 2),
            Column("alpha", 2),
            Column("starts from"),
            Column("agreement"),
            Column("KL (nats)"),
            Column("seconds", 1),
        ],
    )
    losses, agreeing = [], []
    drawn = looks(findings.study.dataset.magnifications)
    found = effort.curves(findings.study, findings.best.keys)
    for place, key in enumerate(findings.best.keys, 1):
        about = findings.study.stages.get(key)
        if about is None:
            section.missing(f"The file of stage {place} ({key}) is missing or damaged, so it is left out here.")
            continue
        spec, cost, follows = about.spec, about.cost, _agreement(findings, place, about)
        trained, distillation = spec["magnifications"], spec["distillation"] or {}
        model = findings.best.student if spec["parent"] else findings.best.teacher
        table.add(
            place,
            "+".join(f"{each}X" for each in trained),
            model,
            cost["parameters"],
            distillation.get("temperature"),
            distillation.get("alpha"),
            "stage before" if spec["warm"] else "its initial weights",
            follows.get("same_argmax"),
            follows.get("kl"),
            cost["train_seconds"],
        )
        part = found[found["stage"] == place].sort_values("epoch")
        if len(part):
            magnification = trained[0] if len(trained) == 1 else 0
            title = f"stage {place}: {'+'.join(map(str, trained))}X"
            values = {name: part[name].astype(float).to_numpy() for name in ("loss", "cross_entropy", "distillation")}
            losses.append((title, magnification, *values.values()))
            shares = part["agreement"].astype(float).to_numpy()
            if np.isfinite(shares).any() and magnification:
                agreeing.append((title, magnification, shares))
    if table.rows:
        section.add(table)
    if agreeing:
        section.add(curves.agreement(agreeing, drawn))
    else:
        section.missing("No stage of the best chain recorded agreement with a teacher.")
    if losses:
        section.add(curves.learning(losses, drawn))
    else:
        section.missing("No stage of the best chain recorded learning curves.")
    return section
