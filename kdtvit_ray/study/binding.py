"""Binds a space to its data and weights, and records both in `study.toml`.

Starting a study again in the same folder compares: a change that alters a suggestion or a stage is refused by name, any
other (more trials, more baselines, another path to the same data) is accepted.
"""

import itertools
import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w

from kdtvit_ray.errors import UserError, relabelled
from kdtvit_ray.learning.preflight import check_size, check_steps
from kdtvit_ray.paths import StudyFolder, without_secrets
from kdtvit_ray.recipe import RECIPE_VERSION, SIZES, DataSpec, ModelSpec, Numeric, canonical, parse_order
from kdtvit_ray.results.study_file import VERSION, read_study
from kdtvit_ray.results.words import joined
from kdtvit_ray.study.dimensions import possible
from kdtvit_ray.study.settings import PROTOCOL_DEFAULTS
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.stage_results import versions

if TYPE_CHECKING:
    from kdtvit_ray.data.prepared import Prepared

MAY_CHANGE = {"study": ("trials", "baselines", "baselines_searched", "name", "choose", "mix_devices", "track")}
"""Keys of a space that may differ when a study is started again: they change neither keys nor suggestions."""
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Bound:
    """A space bound to one prepared set and to its models' weights; `weights` finds a weights file by its digest."""

    space: Space
    prepared: "Prepared"
    weights: dict[str, str]
    data: dict[str, Any]

    @property
    def magnifications(self) -> tuple[int, ...]:
        """Those of the prepared images."""
        there = set(self.prepared.table["magnification"])
        return tuple(each for each in self.prepared.dataset.magnifications if each in there)


def bind(space: Space, data: str, *, hub: bool = True) -> Bound:
    """Check data, fold and models before anything starts; without `hub`, models with weights from there are taken as
    they are drawn, so that no network is needed. Raises `UserError` for whatever does not fit."""
    from kdtvit_ray.data.cache import check_whole, local_copy
    from kdtvit_ray.data.folds import split

    prepared = local_copy(data)
    check_whole(prepared)
    dataset, bound = prepared.dataset, for_data(space, prepared)
    # a study with inner folds has several ways to divide the development patients, and its refits train on all of them
    parts = split(prepared.table, bound.refit().data if bound.parts else bound.data, dataset)
    inner = [split(prepared.table, bound.inner_fold(part).data, dataset) for part in bound.parts]
    _check_steps(bound, prepared, [each.train for each in (parts, *inner)])
    models, weights = _models(bound, hub)
    counts: dict[str, dict[str, int]] = {}
    for name in PARTS:
        chosen = getattr(parts, name)
        if not len(chosen):
            continue
        of_image = prepared.table["magnification"].to_numpy()[chosen]
        counts[name] = {
            "images": len(chosen),
            "patients": len(set(parts.groups[chosen])),
            **{f"{magnification}X": int((of_image == magnification).sum()) for magnification in dataset.magnifications},
        }
    told = {
        "path": str(prepared.path.resolve()),
        "fingerprint": prepared.fingerprint,
        "images": len(prepared.table),
        "patients": len(set(parts.groups)),
        "leaks": bool(parts.leaks),
        "notes": [*prepared.about["notes"], *parts.notes, *filter(None, [size_note(space, prepared)])],
        "splits": counts,
        "census": [str(each) for each in prepared.about["census_differences"]],
        "dataset": dataset.without_slides().to_plain(),
    }
    return Bound(bound.with_models(models), prepared, weights, told)


def for_data(space: Space, prepared: "Prepared") -> Space:
    """The space for the dataset of a prepared set. Raises `UserError` for chains that cannot be trained on it."""
    dataset, there = prepared.dataset, set(prepared.table["magnification"])
    bound = space.with_data(prepared.fingerprint, len(dataset.classes))
    # a part of a set may lack a magnification of the whole
    present = replace(dataset, magnifications=tuple(each for each in dataset.magnifications if each in there))
    stored = prepared.images.shape[1]
    largest = max((stage.model for chain in bound.demanding() for stage in chain), key=lambda each: each.image_size)
    try:  # of several that are too large, the one that all others fit
        check_size(largest, stored, bound.label(largest))
    except UserError as error:
        raise UserError(f"{space.source}: {error}") from None
    bound.check(present, stored)
    return bound


def _check_steps(space: Space, prepared: "Prepared", parts: Sequence[np.ndarray]) -> None:
    """Raise a `UserError` for a stage that would train nothing on one of these parts, positions in the prepared set."""
    stages = {(stage.magnifications, stage.training) for chain in space.demanding() for stage in chain}
    magnification = prepared.table["magnification"]
    for magnifications, training in sorted(stages, key=lambda stage: stage[0]):
        of_stage = magnification.isin(magnifications).to_numpy()
        try:
            check_steps(magnifications, training, min(int(of_stage[part].sum()) for part in parts))
        except UserError as error:
            raise UserError(f"{space.source}: {error}") from None


def largest_size(space: Space) -> int:
    """The largest image_size, in pixels, that a model of the space sees."""
    return max(spec.image_size for spec in space.models.values())


def size_note(space: Space, prepared: "Prepared") -> str:
    """One sentence where the prepared images are larger than the models take: resized twice, they lose detail that
    resizing once keeps. Empty where the sizes fit, and where smaller images are cropped from the stored ones."""
    stored, needed = prepared.images.shape[1], largest_size(space)
    if stored <= needed or "none" not in possible(space.dimensions, "training.crop", space.training["crop"]):
        return ""
    return (
        f"The images were prepared at {stored} px and the models take {needed} px, so they are resized twice; "
        f"'kdtvit-ray prepare' with --size {needed} would resize them once"
    )


def cold_note(space: Space) -> str:
    """One sentence where a student would start from its teacher's weights, if both were called alike. Empty where none
    would, and without a warm start."""
    warm, orders, teachers, students = (
        possible(space.dimensions, name, space.chain[name]) for name in ("warm_start", "order", "teacher", "student")
    )
    if True not in warm or all(len(parse_order(each)) == 1 for each in orders):
        return ""
    for teacher, student in itertools.product(teachers, students):
        first, second = space.models[teacher], space.models[student]
        if _architecture(first) == _architecture(second) and not first.same_architecture(second):
            return (
                f"The teacher '{teacher}' and the student '{student}' are one architecture by two names, so stage 2 "
                f"does not start from the teacher's weights; for a warm start write the same name for both: "
                f'student = "{teacher}"'
            )
    return ""


def _architecture(model: ModelSpec) -> tuple[Any, ...]:
    """What decides the shapes of a model's weights, whatever it is called."""
    name, arguments = model.timm
    return name.partition(".")[0], arguments, model.image_size, model.classes


def hub_note(space: Space) -> str:
    """What to say before `bind`, which waits for timm's hub (a minute where it cannot be reached). Empty where no
    weights come from there."""
    named = [f"'{label}'" for label, spec in space.models.items() if spec.weights == "hub"]
    return f"Weights of {joined(named)} come from timm's hub and are fetched unless they are here" if named else ""


def check_models(space: Space) -> None:
    """Raise a `UserError` for a model of the space that there is not. Without a doubtful name this imports no timm."""
    for label, spec in space.models.items():
        if spec.name in SIZES:
            continue
        from kdtvit_ray.learning.models import check_name

        # a table that sets something, and no name
        unnamed = label == spec.name and (
            spec.args or spec.weights != "none" or spec.image_size != space.chain["image_size"]
        )
        try:
            check_name(spec.name, () if unnamed else space.models)
        except UserError as error:
            told, allowed = str(error), str(error).partition("; ")[2]
            if unnamed:
                told = (
                    f"[models.{label}] has no other name, so '{label}' itself is the architecture, and there is none "
                    f"of that name; set name = ... in that table; {allowed}"
                )
            raise UserError(f"{space.source}: {told}") from None


def _models(space: Space, hub: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The models with their weights' digests. Each is built once, so that a weights file of another architecture, a
    model that does not run, and training settings that it cannot have, are reported now."""
    from kdtvit_ray.learning.features import check_features
    from kdtvit_ray.learning.forward import check_forward
    from kdtvit_ray.learning.models import build, resolve
    from kdtvit_ray.learning.optimise import check_layers

    check_models(space)
    stages = {(stage.model, stage.training) for chain in space.demanding() for stage in chain}
    models, weights = {}, {}
    for label, spec in space.models.items():
        try:
            asked = spec if hub or spec.weights != "hub" else replace(spec, weights="none")
            resolved, path = resolve(asked)
            models[label] = replace(resolved, weights=spec.weights)
            if path is not None:
                weights[resolved.digest] = str(path)
            built = build(resolved, seed=0)
            for training in (training for model, training in stages if model == spec):
                check_layers(built, spec.name, training)
                check_forward(built, spec, training)
                check_features(built, spec, training)
        except UserError as error:
            raise UserError(f"{space.source}: {relabelled(error, spec.name, label)}") from None
    return models, weights


def dtype_of(folder: StudyFolder) -> str:
    """The dtype that a study was started with; empty where there is no study yet. Raises `UserError` where its file is
    damaged."""
    before = read_study(folder)
    found = before["numeric"]["dtype"] if before else ""
    return found if found in Numeric.DTYPES else ""


def as_begun(bound: Bound, folder: StudyFolder) -> Bound:
    """The space with the dimensions of the study, in their order, on which suggestions depend: the lines of its file
    may have been sorted since. Raises `UserError` where the study's file is damaged."""
    before = read_study(folder)
    return bound if before is None else replace(bound, space=bound.space.in_order_of(before["dimensions"]))


def write_study(folder: StudyFolder, bound: Bound, replicates: bool = False) -> None:
    """Write `study.toml`, or check the one that is there. Raises `UserError` naming what has changed. The command in it
    is the one that makes the study, not one that adds `replicates`."""
    plain = bound.space.plain()
    digests = {label: spec.digest for label, spec in bound.space.models.items()}
    plain["data"] = {**bound.data, "digests": digests}
    plain["versions"] = {**versions(), "recipe": str(RECIPE_VERSION)}
    plain["command"] = without_secrets(shlex.join(["kdtvit-ray", *_again(sys.argv[1:])]))
    plain["version"] = VERSION
    before = read_study(folder)
    plain["id"] = uuid.uuid4().hex if before is None else before["id"]
    if before is not None:
        changed = list(_changes(before, plain))
        recipe = before["versions"]["recipe"]
        if recipe != plain["versions"]["recipe"]:
            others = f"; its settings differ as well: {'; '.join(changed)}" if changed else ""
            raise UserError(
                f"The study '{folder.shown}' was started by a kdtvit-ray with training recipe {recipe}, and this one "
                f"has recipe {RECIPE_VERSION}, which gives other numbers for the same settings{others}; "
                "allowed: a new folder with --out, or the kdtvit-ray that started it"
            )
        if changed:
            raise UserError(
                f"The study '{folder.shown}' was started with other settings: {'; '.join(changed)}; "
                "allowed: the same settings with more or fewer trials, or a new folder with --out"
            )
        if replicates:
            plain["command"] = before["command"]
    folder.write(folder.study, tomli_w.dumps(plain).encode(), before_others=True)


def _again(words: Sequence[str]) -> list[str]:
    """The words of a command without those that are for one session only."""
    kept: list[str] = []
    for word, before in zip(words, ("", *words), strict=False):
        once = word in ("--takeover", "--retry-failed", "--retry") or word.startswith("--retry=")
        if not once and before != "--retry":
            kept.append(word)
    return kept


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Any:
    """What differs in a way that matters, in words."""
    decided = {name for name, _ in _decided(before).items() ^ _decided(now).items()}
    may_change = {**MAY_CHANGE, "protocol": PROTOCOL_DEFAULTS.keys() - decided}
    for table in ("study", "protocol", "chain", "training", "numeric", "search"):
        old, new = _flat(before[table]), _flat(now[table])
        for name in sorted(old.keys() | new.keys()):
            if name not in may_change.get(table, ()) and old.get(name) != new.get(name):
                yield f"[{table}] {name} was {old.get(name, 'absent')}, is {new.get(name, 'absent')}"
    old_models, new_models = _flat(before["models"]), _flat(now["models"])
    for name in sorted(old_models.keys() | new_models.keys()):
        if not name.endswith(".weights") and canonical(old_models.get(name)) != canonical(new_models.get(name)):
            yield f"[models] {name} was {old_models.get(name, 'absent')}, is {new_models.get(name, 'absent')}"
    data, data_now = before["data"], now["data"]
    if data["fingerprint"] != data_now["fingerprint"]:
        yield f"the prepared set was {data['fingerprint'][:12]} ({data['path']}), is {data_now['fingerprint'][:12]}"
    for label, digest in data_now["digests"].items():
        if data["digests"].get(label, digest) != digest:
            yield f"the weights of model {label} have another content"


def _decided(plain: Mapping[str, Any]) -> dict[str, Any]:
    """[protocol] by name, with what decides no stage of the study at its default."""
    table, folds = plain["protocol"], plain["study"]["objective_folds"]
    names = {name: "protocol" if name == "name" else name for name in PROTOCOL_DEFAULTS}
    data = DataSpec(**{field: table[name] for name, field in names.items()})
    settled = (data.inner_fold(1, folds) if folds > 1 else data).settled()
    return {name: getattr(settled, field) for name, field in names.items()}


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
