"""Where a model comes from, for its card: the stages of its chain, what they start from, data and versions."""

from collections.abc import Mapping
from typing import Any

from kdtvit_ray import __version__
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.model_choice import Chosen
from kdtvit_ray.recipe import SIZES, format_order
from kdtvit_ray.report.document import Section
from kdtvit_ray.report.tables import Column, Table
from kdtvit_ray.results.stage_record import StageRecord
from kdtvit_ray.results.words import baseline_label, joined


def arguments(model: Mapping[str, Any]) -> str:
    """What sets a model apart from timm's of that name, in words; "" for nothing."""
    return _with({**SIZES.get(model["name"], ("", {}))[1], **dict(model["args"])})


def _with(given: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{name} {value}' for name, value in given.items())}" if given else ""


def origin(chosen: Chosen) -> Section:
    """Which setting it is, on whom it was trained, and the stages of its chain."""
    section, study, spec = Section("origin", "How it was made"), chosen.study, chosen.record.spec
    chain = study.trial(chosen.chain)
    assert chain is not None
    kind, chose = baseline_label(chosen.trial), "chose" if study.finished else "has chosen so far"
    what = f"the setting that the search {chose}" if chosen.is_best else f"trial {chosen.trial}"
    section.say(
        f"It is {what if kind == chosen.trial else f'the baseline: {kind[0].lower()}{kind[1:]}'}, trained in the order "
        f"{chain['order'] or format_order(spec['magnifications'])}. {_trained_on(chosen)}"
    )
    stages = _stages(chosen)
    section.add(_table(stages))
    training = spec["training"]
    settings = ", ".join(f"{name} {value}" for name, value in training.items())
    first = stages[0].spec["training"] if stages else training
    apart = [f"{name} {value}" for name, value in first.items() if training[name] != value]
    own = f"; the first stage has {', '.join(apart)} instead" if apart else ""
    section.say(f"Every stage: {settings}{own}; seed {spec['seed']}.")
    return section


def _trained_on(chosen: Chosen) -> str:
    study = chosen.study
    if not study.parts:
        return "It was trained on the training patients; validation patients were left out."
    if chosen.refit:
        return "It was trained on all development patients."
    why = ": a setting that was not chosen is not trained on all of them"
    if chosen.chain == chosen.trial:
        why = ""
    elif chosen.is_best or not study.finished:
        why = ", and not on all of them yet"
    return f"It was trained on the development patients of all inner folds but fold {chosen.left_out}{why}."


def _stages(chosen: Chosen) -> list[StageRecord]:
    """The stages of its chain that are there."""
    return [chosen.study.stages[key] for key in chosen.stages if key in chosen.study.stages]


def _table(stages: list[StageRecord]) -> Table:
    distilled = any(each.spec["distillation"] for each in stages)
    teacher = ": where there is a temperature, the teacher is the model of the stage before" if distilled else ""
    table = Table(
        "chain",
        f"The stages of its chain{teacher}.",
        [
            Column("stage", 0),
            Column("images at"),
            Column("model"),
            Column("parameters", 0),
            Column("starts from"),
            Column("temperature"),
            Column("alpha"),
            Column("key"),
        ],
    )
    for number, stage in enumerate(stages, 1):
        model, given = stage.spec["model"], stage.spec["distillation"] or {}
        table.add(
            number,
            f"{stage.trained}X",
            model["name"] + _with(dict(model["args"])),
            stage.parameters or None,
            "the stage before" if stage.spec["warm"] else _initial(stage),
            *(f"{given[name]:g}" if name in given else "" for name in ("temperature", "alpha")),
            stage.key,
        )
    return table


def _initial(stage: StageRecord) -> str:
    """The weights that a stage's model had before any training here."""
    weights = stage.spec["model"]["weights"]
    if weights == "none":
        return "random weights"
    name = _of_hub(stage)[0] if weights == "hub" else weights.rsplit("/", 1)[-1]
    return f"{name} (digest {stage.spec['model']['digest']})"


def _of_hub(stage: StageRecord) -> tuple[str, str]:
    """What timm calls the weights that its hub has for a stage's model, and which licence it names for them, as far as
    that is certain: a name without a tag is whatever weights the timm of that day took for the model's own."""
    import timm

    model = stage.spec["model"]
    name = SIZES.get(model["name"], (model["name"],))[0]
    if stage.versions.get("timm") != timm.__version__:
        return (name, "") if "." in name else ("timm's hub", "")
    about = timm.get_pretrained_cfg(name)
    if about is None:
        return "timm's hub", ""
    return about.hf_hub_id or f"{about.architecture}.{about.tag}", about.license or ""


def provenance(chosen: Chosen, told: Description) -> Section:
    section, source = Section("provenance", "Provenance"), told.provenance
    section.say(
        f"Stage {source['stage']} of study '{source['study']}', made by kdtvit_ray {__version__} from data with the "
        f"fingerprint {source['fingerprint']}. The key is a hash of all that decides the stage's result, the stages "
        "before it included: the same key gives the same weights on the same kind of device."
    )
    versions = ", ".join(f"{name} {value}" for name, value in source["versions"].items())
    section.say(f"It was trained with {versions}.")
    if licence := _licence([each for each in _stages(chosen) if not each.spec["warm"]]):
        section.say(licence)
    return section


def _licence(stages: list[StageRecord]) -> str:
    """Whose licence the weights have that stages start from; "" where all of them are random."""
    given = [each for each in stages if each.spec["model"]["weights"] != "none"]
    if not given:
        return ""
    named = dict(_of_hub(each) for each in given if each.spec["model"]["weights"] == "hub")
    told = [f"{licence} for {name}" for name, licence in named.items() if licence]
    return "The weights that it starts from have a licence of their own, which this card neither knows nor grants" + (
        f"; timm names {joined(told)}." if told else "."
    )
