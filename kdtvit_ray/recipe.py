"""What decides a stage's result, and its key. Pure Python, no heavy imports.

A `StageSpec` holds everything that decides what a stage computes and nothing else, so its `key`, a hash of its
canonical form, is the identity of the result: two trials that begin alike ask for the same keys. The parent's key is
inside the child's, so a key stands for the whole path from the root.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from kdtvit_ray.errors import UserError

BASELINES = ("per_magnification", "joint", "sequential", "from_scratch_kd")

WITHOUT_REHEARSAL = "without_rehearsal"
"""Baseline of a study whose chosen chain rehearses: the same chain without it."""

RECIPE_VERSION = 3
"""Raised whenever the maths of a stage changes, so that old results are never taken for new ones."""

ADDED_LATER: dict[tuple[str, str], Any] = {}
"""Settings that came after the first release, none so far, by (part, name), each with its frozen value: the one that
every stage had before there was a choice. The part is one of a stage's spec (`model`, `training`, `distillation`,
`data`, `numeric`; "" for the spec itself), or `study` for [study] of a space. At that value a setting is left out of
the key, so stages from before keep theirs, and a spec or a study that lacks the setting is read with that value,
whatever the default of a new one is by then."""

ALL_BLOCKS = "all"
"""The value of `Training.trainable_blocks` where the whole model is trained."""

SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "micro": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}),
    "tiny": ("vit_tiny_patch16_224", {}),
    "small": ("vit_small_patch16_224", {}),
    "base": ("vit_base_patch16_224", {}),
}
"""timm name and arguments of each size; `micro` (0.47 M parameters at 64 px) is meant for CPUs."""


@dataclass(frozen=True)
class ModelSpec:
    """One architecture with its initial weights.

    `name` is a size (`micro`, `tiny`, ...) or any timm model name; `args` are keyword arguments of
    `timm.create_model`, as sorted pairs. `head` says what is predicted: `subtype`, the dataset's classes, of which
    there are `subtypes`, or `binary`, negative against positive. `weights` is `none`, `hub` or a file's path; only its
    `digest` decides a result, so the path stays out of the key.
    """

    name: str = "micro"
    args: tuple[tuple[str, Any], ...] = ()
    image_size: int = 64
    head: str = "subtype"
    weights: str = "none"
    digest: str = ""
    subtypes: int = 8

    HEADS = ("subtype", "binary")

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return 2 if self.head == "binary" else self.subtypes

    @property
    def timm(self) -> tuple[str, dict[str, Any]]:
        """timm's name of the architecture, and a new dict of its arguments but for the image size and the classes."""
        name, arguments = SIZES.get(self.name, (self.name, {}))
        return name, {**arguments, **dict(self.args)}

    def same_architecture(self, other: "ModelSpec") -> bool:
        """Whether one model's weights can be loaded into the other, whatever weights each started from."""
        return replace(self, weights="", digest="") == replace(other, weights="", digest="")


@dataclass(frozen=True)
class Training:
    """Settings of one stage's optimisation. Sizes are counts of images, `lr` is AdamW's peak learning rate.

    `class_weights` weighs the cross-entropy's images by their class, so that rare classes have more say. None is the
    default: equal totals for the classes of the head cost AUC and accuracy of the decision between negative and
    positive, even for a classifier that knows the truth (`tests/benchmarks/class_weights.py`). The choices:
    `none`; `balanced`, the classes of the head have equal totals; `balanced-binary`, the negative and the positive
    classes have equal totals and each class keeps its share of them; `balanced-corrected`, trained as `balanced`, and
    the predicted probabilities are divided by the weights and scaled to sum to one again, which gives back the class
    frequencies of the training images (Saerens et al. 2002; Menon et al. 2021).

    `variants` counts the forms of an image: the unchanged one, and others that differ in `stain` (as strong as
    `stain_strength`), in the crop that they show (`zoom`), or in both (`learning.augmentation`). Each is shown in all
    `views` of the square.

    `layer_decay` is a factor on the learning rate of each layer for every layer above it: the head has `lr`, the last
    block `lr * layer_decay`, the patch embedding the lowest rate (Bao et al. 2022, BEiT). `head_lr` is a factor on the
    head's rate alone. `trainable_blocks` is `ALL_BLOCKS`, or a number: the last so many blocks, the norm after them and
    the head are trained, with 0 the head alone (a linear probe), and the rest stays as it starts.

    `ema` is the decay of an exponential moving average of the weights, one update a step, and what a stage yields is
    that average (Polyak and Juditsky 1992; Tarvainen and Valpola 2017). 0: what it yields are the last weights.

    `rehearsal` is the share of a later stage's batches that are training images of the chain's earlier magnifications
    (experience replay; Robins 1995; Rolnick et al. 2019). `rehearsal_loss` says how these images enter the loss:
    `full`, as the stage's own; `distillation`, by the teacher's outputs alone, without their labels (learning without
    forgetting, Li and Hoiem 2017, here on the earlier magnifications' images).

    `lora_rank` above 0 trains the head and, for the linear layers of every block's attention, updates of this rank (Hu
    et al. 2022; `learning.low_rank`). The updates are merged into the weights at the stage's end.

    `mixup` above 0 blends each image and its label with another one's, with a weight from Beta(`mixup`, `mixup`) a step
    (Zhang et al. 2018; `learning.mixup`), in stages without a teacher: a teacher's stored outputs are of whole images.
    """

    epochs: int = 10
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    min_lr_ratio: float = 0.01
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    class_weights: str = "none"
    views: str = "d4"
    crop: str = "none"
    stain: str = "none"
    stain_strength: float = 0.05
    variants: int = 1
    zoom: float = 0.0
    clip_grad: float = 1.0
    layer_decay: float = 1.0
    head_lr: float = 1.0
    trainable_blocks: str | int = ALL_BLOCKS
    ema: float = 0.0
    rehearsal: float = 0.0
    rehearsal_loss: str = "full"
    lora_rank: int = 0
    mixup: float = 0.0

    CHOICES = {
        "class_weights": ("none", "balanced", "balanced-binary", "balanced-corrected"),
        "views": ("d4", "none"),
        "crop": ("none", "centre"),
        "stain": ("none", "hed", "jitter"),
        "rehearsal_loss": ("full", "distillation"),
    }
    VIEWS = {"none": 1, "d4": 8}
    """Views of the square by the word of `views`."""

    @property
    def all_views(self) -> int:
        """How many views an image has: those of the square, times the variants."""
        return self.VIEWS[self.views] * self.variants

    @property
    def teacher_passes(self) -> int:
        """How many times at most a teacher computes its outputs for a stage's images: once a view, and no view is shown
        that the epochs do not reach."""
        return min(self.all_views, self.epochs)

    def rehearsed(self, images: int) -> int:
        """How many images of earlier magnifications an epoch shows beside so many of the stage's own."""
        return round(images * self.rehearsal / (1 - self.rehearsal))

    def without_rehearsal(self) -> "Training":
        """The same training on the stage's own images alone."""
        return replace(self, rehearsal=0.0, rehearsal_loss=Training.rehearsal_loss)

    def settled(self) -> "Training":
        """The same training with every setting that changes nothing at its default, so that equal trainings are equal:
        a stain or a zoom with one variant, variants without both, a strength without a stain, a loss of rehearsed
        images where none are rehearsed, a decay over layers of which the head alone is trained."""
        stain, zoom = (self.stain, self.zoom) if self.variants > 1 else ("none", 0.0)
        return replace(
            self,
            stain=stain,
            stain_strength=Training.stain_strength if stain == "none" else self.stain_strength,
            variants=self.variants if stain != "none" or zoom > 0 else 1,
            zoom=zoom,
            rehearsal_loss=self.rehearsal_loss if self.rehearsal > 0 else Training.rehearsal_loss,
            layer_decay=self.layer_decay if self.trainable_blocks != 0 else Training.layer_decay,
        )


@dataclass(frozen=True)
class Distillation:
    """How the teacher's outputs enter the loss; `alpha` is the weight of the distillation term."""

    temperature: float = 4.0
    alpha: float = 0.5
    loss: str = "kd"

    LOSSES = ("kd", "dist", "dkd", "logit-std")


@dataclass(frozen=True)
class DataSpec:
    """Which images a stage may see: the prepared set's fingerprint and one fold of one protocol.

    `group` says what a patient is: the slide id's numeric `stem`, the slide `id`, or the slide `folder`. In other sets
    than BreakHis the first two are the patient, and `folder` is the slide.

    `inner_folds` says what becomes of the development patients, all those that are not test. 0: a share `validation` of
    them is validation. 2 or more: they are cut into so many inner folds, of which number `inner`, counted from 1, is
    validation; `partition` numbers the ways to cut. 1: all of them are training patients, and there is no validation.
    """

    fingerprint: str = ""
    protocol: str = "patient"
    fold: int = 1
    folds: int = 5
    validation: float = 0.15
    group: str = "stem"
    seed: int = 0
    inner_folds: int = 0
    inner: int = 0
    partition: int = 0

    PROTOCOLS = ("patient", "official", "image")
    GROUPS = ("stem", "id", "folder")

    def inner_fold(self, inner: int, inner_folds: int, partition: int = 0) -> "DataSpec":
        """The same fold, with inner fold `inner` of `inner_folds` for validation. The share `validation` plays no part
        then, so it is no part of the key either."""
        return replace(self, validation=0.0, inner_folds=inner_folds, inner=inner, partition=partition)

    def refit(self) -> "DataSpec":
        """The same fold, with all development patients for training."""
        return replace(self, validation=0.0, inner_folds=1, inner=0, partition=0)

    def settled(self) -> "DataSpec":
        """The same fold with every setting that changes nothing at its default, so that equal folds are equal. The
        official lists say how many folds there are and who is in test, and their patients are slide ids: what is dealt
        there is who validates, by stem or, by any other `group`, by id. Without validation nothing is dealt."""
        if self.protocol != "official":
            return self
        settled = replace(self, folds=DataSpec.folds, group="stem" if self.group == "stem" else "id")
        return replace(settled, group=DataSpec.group, seed=DataSpec.seed) if self.inner_folds == 1 else settled


@dataclass(frozen=True)
class Numeric:
    """Numeric mode: what changes the last bits of a result. `threads` is torch's thread count per CPU worker."""

    dtype: str = "float32"
    threads: int = 1

    DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class StageSpec:
    """One model trained once. `parent` is the key of the stage before, as far as this stage depends on it:
    as its teacher (`distillation` is set), for its initial weights (`warm`), or both. `earlier` are the magnifications
    that it rehearses, in ascending order; none without rehearsal."""

    magnifications: tuple[int, ...]
    model: ModelSpec
    training: Training = field(default_factory=Training)
    distillation: Distillation | None = None
    parent: str | None = None
    warm: bool = False
    seed: int = 0
    data: DataSpec = field(default_factory=DataSpec)
    numeric: Numeric = field(default_factory=Numeric)
    earlier: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert (self.parent is not None) == (self.warm or self.distillation is not None)
        assert bool(self.earlier) == (self.training.rehearsal > 0)
        assert self.distillation is not None or self.training.rehearsal_loss != "distillation"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; `StageSpec.from_dict` is its inverse."""
        # `asdict` says the same and copies all values deeply, which takes five times as long: a grid makes many keys
        parts = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: dict(vars(part)) if is_dataclass(part) else part for name, part in parts.items()}

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> "StageSpec":
        """Read a spec, also one that was written before there were the settings of `ADDED_LATER`. Raises `KeyError` or
        `TypeError` where it lacks another one."""
        plain = {name: dict(part) if isinstance(part, dict) else part for name, part in plain.items()}
        for its, name, frozen in _added_later(plain):
            its.setdefault(name, frozen)
        model, distillation = plain["model"], plain["distillation"]
        return StageSpec(
            magnifications=tuple(plain["magnifications"]),
            model=_read(ModelSpec, {**model, "args": tuple((name, _frozen(value)) for name, value in model["args"])}),
            training=_read(Training, plain["training"]),
            distillation=None if distillation is None else _read(Distillation, distillation),
            parent=plain["parent"],
            warm=plain["warm"],
            seed=plain["seed"],
            data=_read(DataSpec, plain["data"]),
            numeric=_read(Numeric, plain["numeric"]),
            earlier=tuple(plain["earlier"]),
        )

    @cached_property
    def key(self) -> str:
        """32 hex digits over all that decides the result. A warm start makes the initial weights irrelevant, so
        their digest is left out then; so is the path of a weights file, always, and a setting of `ADDED_LATER` at the
        value that it had before it was one."""
        plain = self.to_dict()
        for its, name, frozen in _added_later(plain):
            if its[name] == frozen:
                its.pop(name)
        model = plain["model"]
        model["args"] = _canonical(model["args"])
        model.pop("weights")
        if self.warm:
            model.pop("digest")
        plain["recipe_version"] = RECIPE_VERSION
        canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def check_variants(training: Training) -> None:
    """Raise a `UserError` for settings of the variants that change nothing."""
    if training.variants > 1 and training.stain == "none" and training.zoom == 0:
        raise UserError(
            f"variants is {training.variants}, but stain is 'none' and zoom is 0, so every variant would be the "
            "unchanged image; allowed: variants = 1, stain = 'hed' or 'jitter', or zoom above 0"
        )
    if training.variants == 1 and (training.stain != "none" or training.zoom > 0):
        found = f"stain is '{training.stain}'" if training.stain != "none" else f"zoom is {training.zoom:g}"
        raise UserError(
            f"{found}, but variants is 1, and the first variant is the unchanged image, so nothing would change; "
            "allowed: variants of 2 or more, or stain = 'none' and zoom = 0"
        )
    if training.stain == "none" and training.stain_strength != Training.stain_strength:
        raise UserError(
            f"stain_strength is {training.stain_strength:g}, but stain is 'none', so it changes nothing; "
            f"allowed: stain = 'hed' or 'jitter', or stain_strength = {Training.stain_strength:g}"
        )


def parse_order(text: str) -> tuple[int, ...]:
    """`40>100>200>400` as a tuple of magnifications; a `UserError` names what is wrong with any other text. Which
    magnifications there are is a fact of the dataset (`learning.preflight` asks it)."""
    parts = [part.strip().removesuffix("X").removesuffix("x") for part in text.split(">")]
    order = tuple(int(part) for part in parts if part.isascii() and part.isdigit())
    if len(order) < len(parts) or len(set(order)) != len(order) or min(order) < 1:
        raise UserError(
            f"Order '{text}' is not a sequence of different magnifications; "
            "allowed: whole numbers joined by '>', such as 40>100>200>400"
        )
    return order


def format_order(order: Sequence[int]) -> str:
    return ">".join(str(magnification) for magnification in order)


def with_added_later(study: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a study's file, with the settings of `ADDED_LATER` that [study], [training] and [numeric] lack."""
    filled = dict(study)
    for (part, name), frozen in ADDED_LATER.items():
        if part in ("study", "training", "numeric") and isinstance(filled.get(part), Mapping):
            filled[part] = {name: frozen, **filled[part]}
    return filled


def canonical(value: Any) -> str:
    """A setting as text in which equal numbers are one, 4 and 4.0. True is no number."""
    return json.dumps(_canonical(value))


def field_names(kind: type) -> tuple[str, ...]:
    """Names of a settings class, for messages that list what is allowed."""
    return tuple(each.name for each in fields(kind))


def _added_later(spec: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Each setting of `ADDED_LATER` that a plain spec has a part for: that part, the setting's name, its value."""
    for (part, name), frozen in ADDED_LATER.items():
        its = spec.get(part) if part else spec
        if its is not None:  # a stage without a teacher has no distillation, and [study] is no part of a stage
            yield its, name, frozen


def _read(kind: Any, plain: dict[str, Any]) -> Any:
    """A settings class from its plain form, which has all of its settings: no default stands in for one."""
    for each in field_names(kind):
        plain[each]
    return kind(**plain)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


def _canonical(value: Any) -> Any:
    """The value with equal numbers in one form, so that 4 and 4.0 are one setting. True is no number."""
    if isinstance(value, list | tuple):
        return [_canonical(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
