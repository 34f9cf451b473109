"""The model card: what a model is, how it was made, what it reached, how far to trust it (after Mitchell et al. 2019,
Model Cards for Model Reporting)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain as one_after_another
from typing import TYPE_CHECKING

from kdtvit_ray.deliver import folder
from kdtvit_ray.deliver.card_origin import arguments, origin, provenance
from kdtvit_ray.deliver.description import Description, at
from kdtvit_ray.deliver.model_choice import Chosen
from kdtvit_ray.recipe import SIZES
from kdtvit_ray.report.decisions import NOT_FITTED, fitted_on, thresholds
from kdtvit_ray.report.document import Code, Document, Items, Section, markdown
from kdtvit_ray.report.patient_section import TITLE, added_tables, left
from kdtvit_ray.report.study_sections import banners, who_saw_what
from kdtvit_ray.report.tables import Column, Estimate, Table
from kdtvit_ray.results import development
from kdtvit_ray.results.backward_transfer import BIASED, backward_over_patients, kept
from kdtvit_ray.results.bootstrap import bootstrap, resample
from kdtvit_ray.results.extra_metrics import EVERY, everything
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.how_many import chosen_from
from kdtvit_ray.results.images import tells_classes
from kdtvit_ray.results.operating import Operating
from kdtvit_ray.results.patient_sentences import NO_CERTAINTY, adds
from kdtvit_ray.results.patients import added
from kdtvit_ray.results.rivals import value_and_interval
from kdtvit_ray.results.statistics import FEWEST_PATIENTS, MEAN, Interval
from kdtvit_ray.results.subtypes import METRICS as SUBTYPE_METRICS
from kdtvit_ray.results.subtypes import subtypes
from kdtvit_ray.results.transfer import chain_transfer, positive_shares, transfer_metrics
from kdtvit_ray.results.words import amount, joined, metric_name

if TYPE_CHECKING:
    from kdtvit_ray.deliver.export import Compared, Difference

HEADER = """---
library_name: timm
pipeline_tag: image-classification
tags: [histopathology, knowledge-distillation, vision-transformer]
---

"""

SNIPPET = """import timm
model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"""
"""What loads the model in plain timm, from inside the folder."""

OFFSETS = """import json, torch
offsets = json.load(open("config.json"))["kdtvit_ray"]["description"]["logit_offsets"]
probabilities = (logits + torch.tensor(offsets)).softmax(dim=1)"""
"""What makes probabilities of a model's logits where offsets correct for the weights of the classes."""

UNFINISHED = (
    "The study has not finished. Until it has, no figures on test are told: whoever may still choose must not see them."
)

BIBTEX = """@article{kdtvit2026,
  title   = {{KDTViT}},
  journal = {Scientific Reports},
  year    = {2026},
  doi     = {10.1038/s41598-026-49792-6}
}"""


def card(chosen: Chosen, told: Description, decided: Operating, compared: "Compared") -> str:
    """The card in Markdown."""
    study = chosen.study
    findings = Findings(study)
    if not study.finished:
        decided = _without_test(decided)
    sections = [
        _what(chosen, told),
        origin(chosen),
        _use(told, compared),
        _test(chosen),
        *(_patients(chosen) if study.finished else ()),
        _decisions(chosen, told, decided),
        _kept(findings, chosen),
        _trust(findings, chosen),
        who_saw_what(study),
        _limits(chosen, told),
        provenance(chosen, told),
        _cite(),
    ]
    title = f"Model card: {study.name}, {chosen.trial}"
    warnings = [each for each in banners(study) if study.leaks or not study.finished]
    others = _others(told)
    subtitle = f"One vision transformer for {at(told.trained)}. It is not a medical device."
    if others:
        subtitle = f"{subtitle} At {others} it was tested without having been trained there."
    return HEADER + markdown(Document(title, subtitle, warnings, sections))


def _what(chosen: Chosen, told: Description) -> Section:
    section, spec = Section("what", "What it is"), chosen.record.spec
    outputs = f"{len(told.classes)} classes ({', '.join(told.classes)})"
    section.say(
        f"A vision transformer, timm's {SIZES.get(spec['model']['name'], (spec['model']['name'],))[0]}"
        f"{arguments(spec['model'])}, with {chosen.record.parameters:,} parameters. It takes RGB "
        f"images of {told.image_size} x {told.image_size} pixels and gives logits of {outputs}; the probability of "
        f"{told.words[1]} is the sum over {', '.join(told.positive)}."
    )
    return section


def _without_test(decided: Operating) -> Operating:
    points = tuple(replace(each, test=None) for each in decided.points)
    losses = {who: each for who, each in decided.log_loss.items() if who != "test"}
    return replace(decided, points=points, log_loss=losses)


def _use(told: Description, compared: "Compared") -> Section:
    section, how = Section("use", "How to use it"), told.preprocessing
    section.say("In plain timm, from inside this folder:")
    section.add(Code(SNIPPET))
    if any(told.logit_offsets):
        section.say(
            "It was trained with weights of the classes, which move its logits. The probabilities, thresholds and "
            "temperature of this card are for logits to which offsets are added, one for each class:"
        )
        section.add(Code(OFFSETS))
    square = "the central square of an image is" if how["aspect"] == "crop" else "an image is squashed to a square,"
    second = ""
    if how["size"] != how["image_size"]:
        way = "the middle of it is cut out" if how["crop"] == "centre" else "it is resized"
        second = f", then {way} to {how['image_size']} x {how['image_size']} pixels"
    section.say(
        f"The exact preprocessing: {square} resized to {how['size']} x {how['size']} pixels"
        f"{second} ({how['interpolation']}, antialiased, rounded to whole numbers after each step), then normalised by "
        f"mean {_numbers(how['mean'])} and standard deviation {_numbers(how['std'])} in units of [0, 1]. timm's own "
        "transform above comes close; with kdtvit_ray the pixels are exact:"
    )
    section.add(Code("kdtvit-ray predict . images/*.png --out predictions.csv"))
    what = f"{compared.images} test images" if compared.real else f"{compared.images} images of noise"
    offsets = "the same offsets added, then " if any(told.logit_offsets) else ""
    section.say(
        f"{folder.ONNX} takes the normalised input, float32 (batch, 3, {told.image_size}, {told.image_size}), and "
        f"gives logits, of which {offsets}softmax makes probabilities. On {what} no logit differs by more than "
        f"{compared.logits:.1g} from PyTorch's in float32."
    )
    if compared.int8:
        section.say(f"{folder.ONNX_INT8} has weights of eight bits. {_differs(compared.int8, told, compared.images)}.")
    if told.in_bfloat16:
        much = (
            _differs(compared.bfloat16, told, compared.images)
            if compared.bfloat16
            else "How much that changes was not measured, as the prepared set was not at hand"
        )
        section.say(
            "The study computed in bfloat16, and the figures of this card are of that. ONNX, plain timm and any device "
            f"without bfloat16 compute in float32. {much}."
        )
    return section


def _differs(each: "Difference", told: Description, images: int) -> str:
    return (
        f"On the same images the probability of {told.words[1]} differs by up to {each.probability:.3f}, and the "
        f"decision at the threshold {told.threshold:.3g} for {each.decisions} of {images}"
    )


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{each:g}" for each in values) + ")"


def _test(chosen: Chosen) -> Section:
    section, study = Section("test", "What it reaches on test patients"), chosen.study
    if not study.finished:
        section.missing(UNFINISHED)
        return section
    frame = study.predictions(chosen.key)
    test = None if frame is None else frame[frame["split"] == "test"]
    if test is None or not len(test):
        section.missing("Its predictions of test images are missing, so there are no figures.")
        return section
    drawn = resample(test["patient"].to_numpy(), test["malignant"].to_numpy())
    found = bootstrap(test, drawn, study.magnifications, everything)
    table = Table(
        "test",
        "Test images, each magnification alone and the mean over them, at the threshold 0.5; 95 % intervals over "
        "patients.",
        [Column("metric"), *(Column(each, 3) for each in (*study.tested_columns, MEAN))],
    )
    lines = {
        metric: [found.interval(("image", metric, place)) for place in (*study.magnifications, MEAN)]
        for metric in EVERY
    }
    for metric, cells in lines.items():
        table.add(metric_name(metric), *map(Estimate.of, cells))
    section.add(table)
    section.say(
        f"Test has {len(test)} images of {len(drawn.patients)} patients: {drawn.sides.told(study.dataset.words)}. "
        "Intervals resample patients within each class; where a number rests on fewer than "
        f"{FEWEST_PATIENTS} patients of a class, at any magnification of a mean, there is none."
        + _no_certainty(one_after_another.from_iterable(lines.values()))
    )
    if tells_classes(test, study.dataset):
        classes = subtypes(test, study.dataset, drawn, study.magnifications)
        told = [f"{name} {_told(classes.metric(metric, MEAN))}" for metric, name in SUBTYPE_METRICS.items()]
        section.say(
            f"Called the most probable of the {len(study.dataset.classes)} classes, as mean over magnifications: "
            f"{joined(told)}."
        )
    return section


def _no_certainty(shown: Iterable[Interval]) -> str:
    """What a reader must know where one of the intervals that are shown has no width."""
    return f" {NO_CERTAINTY}" if any(each.flat for each in shown) else ""


def _told(each: Interval) -> str:
    return value_and_interval(each.value, each.low, each.high)


def _patients(chosen: Chosen) -> list[Section]:
    """[] where test has one magnification only, or where predictions are missing."""
    section, study = Section("patient", TITLE), chosen.study
    frame = study.predictions(chosen.key)
    test = None if frame is None else frame[frame["split"] == "test"]
    if test is None or len(study.magnifications) < 2:
        return []
    found = added(test, study.magnifications, study.metric)
    if found is None:
        return []
    negative, positive = study.dataset.words
    section.say(
        f"One decision a patient, from the mean probability over its images at the threshold 0.5, on {found.negative} "
        f"{negative} and {found.positive} {positive} test patients."
        + _no_certainty(one_after_another.from_iterable(each.values.values() for each in found.subsets))
    )
    section.add(*added_tables(found))
    section.say(adds(found, study.dataset.words))
    if found.left:
        section.say(left(found))
    return [section]


def _decisions(chosen: Chosen, told: Description, decided: Operating) -> Section:
    section = Section("decisions", "Decisions")
    if not decided.judged_on:
        section.say(NOT_FITTED)
        return section
    section.say(f"{fitted_on(decided, told.words[1])}; '{told.decision}' decides unless another is asked for.")
    section.add(thresholds(decided))
    return section


def _kept(findings: Findings, chosen: Chosen) -> Section:
    section, study = Section("kept", "What the chain learned, kept and lost"), chosen.study
    if len(chosen.stages) < 2:
        section.say("It was trained in one stage, so there is nothing that a later one could have made it forget.")
        return section
    if not study.finished:
        section.missing(UNFINISHED)
        return section
    shares = positive_shares(study, findings.best)
    backward = backward_over_patients(study, chosen.chain, transfer_metrics(study))
    told = False
    for metric in transfer_metrics(study):
        found = chain_transfer(study, chosen.chain, metric, shares)
        if found is None or not math.isfinite(found.backward):
            continue
        told = True
        over = kept(backward[metric].interval if metric in backward else None, metric)
        section.say(
            f"{metric_name(metric)[0].upper()}{metric_name(metric)[1:]} on test: {found.average:.3f} as the mean over "
            f"{found.over} after the last stage, backward transfer {amount(found.backward, metric)} "
            f"({over}), forgetting {amount(found.forgetting, metric)}."
        )
    if told:
        section.say(f"Forgetting is the loss from the best value before the last stage: {BIASED}.")
    else:
        section.missing("What the chain forgot cannot be told: values of some stages are missing or undefined.")
    return section


def _trust(findings: Findings, chosen: Chosen) -> Section:
    section, study = Section("trust", "How far the choice can be trusted"), chosen.study
    if not chosen.is_best:
        section.say(
            f"The search {'did not choose' if study.finished else 'has not chosen'} this model. Its study, "
            f"'{study.name}', tells how it compares with the one that was chosen ('kdtvit-ray report')."
        )
        return section
    best = findings.best
    assert best is not None
    section.say(
        f"It was chosen {'' if study.finished else 'so far '}on {study.chosen_on} from {chosen_from(study, best)}, by "
        f"the {study.judged_on} {metric_name(study.metric)}, {best.objective:.3f} as the mean over magnifications."
    )
    sentences = list(development.choice(findings)) if study.parts else []
    if sentences:
        section.add(Items(sentences))
    else:
        section.say(
            "A single validation part judged the settings, which is a weak judge: small differences are chance."
        )
    return section


def _others(told: Description) -> str:
    """The magnifications that the model was tested at and not trained at, in words; "" for none."""
    others = [each for each in told.tested if each not in told.trained]
    return at(others) if others else ""


def _limits(chosen: Chosen, told: Description) -> Section:
    section, study = Section("limits", "Intended use and limits"), chosen.study
    others = _others(told)
    only_tested = f"at {others} it was only tested, and " if others else ""
    unknown = (
        "The checksums of its development images are missing, since the prepared set was not at hand at the export: "
        "'kdtvit-ray predict' does not know them again, on which its figures would be too good.",
    )
    section.add(
        Items(
            [
                "For research on methods. It is not a medical device and must not decide anything about a patient.",
                f"It knows images like those of the set '{study.dataset.name}' at {at(told.trained)}; {only_tested}"
                "other stains, scanners, hospitals, tissues and magnifications are untested. 'kdtvit-ray predict' with "
                "labels measures it on images of yours, with intervals over patients.",
                f"It has no answer but {told.words[0]} and {told.words[1]}: it gives one for any image, also for one "
                "that shows no tissue at all.",
                "Its probabilities are those of single images. A mean over a patient's images is no diagnosis.",
                *(() if told.development else unknown),
            ]
        )
    )
    return section


def _cite() -> Section:
    section = Section("cite", "Citation")
    section.say("The idea of one vision transformer for all magnifications by sequential distillation is KDTViT's:")
    section.add(Code(BIBTEX))
    return section
