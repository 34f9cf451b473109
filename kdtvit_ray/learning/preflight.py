"""What cannot be trained, told before anything starts. Of specs alone: no torch, no data, no model is made.

One check for everybody: a space asks it of all chains that it can ask for, `bind` once more with the dataset and the
size of its prepared images, and a stage of itself. What only a built model can tell is told by `models.build`,
and by `forward.check_forward`, which runs it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.errors import UserError, choose
from kdtvit_ray.recipe import ALL_BLOCKS, Distillation, ModelSpec, StageSpec, Training, check_variants

REFUSED_WITH_TWO_CLASSES = {
    "dkd": "its non-target part is zero",
    "dist": "its inter-class correlation has no gradient",
    "logit-std": "standardised logits keep only a sign",
}

NO_ARGUMENTS = {
    "checkpoint_path": "weights = a path in the model's table",
    "pretrained": 'weights = "hub" in the model\'s table',
    "pretrained_cfg": 'the model\'s name with its tag, such as name = "vit_small_patch16_224.augreg_in1k"',
    "pretrained_cfg_overlay": "weights = a path in the model's table",
    "num_classes": "head in [chain], and the classes of the prepared set",
    "img_size": "image_size in the model's table or in [chain]",
    "in_chans": "nothing, since the images have three channels",
    "device": "nothing, since a worker takes the GPU that it has, or the CPU",
    "dtype": "dtype in [numeric]",
    "cache_dir": "nothing; the environment variable HF_HOME says where timm's hub keeps its files",
    "features_only": "nothing, since a model has to predict the classes",
    **dict.fromkeys(("scriptable", "exportable", "no_jit"), "nothing, since models run as PyTorch has them"),
    **dict.fromkeys(
        ("pretrained_strict", "pretrained_filter_fn", "pretrained_model_args", "kwargs_filter"),
        "nothing, since weights are loaded in one way",
    ),
}
"""Arguments of `timm.create_model` that a model's `args` may not have, each with what there is instead: what they load
is not in a stage's key, other settings decide them, or they say where and how a model is made, not which."""


def check_chain(stages: Iterable[StageSpec], dataset: Dataset | None = None, stored: int = 0) -> None:
    """Check the stages of a chain, parents first. Arguments and errors are those of `check_stage`."""
    for stage, teacher in with_teachers(stages):
        check_stage(stage, teacher, dataset, stored)


def check_size(model: ModelSpec, stored: int, name: str = "") -> None:
    """Raise `UserError` where a model takes larger images than the prepared ones (`stored` pixels a side; 0 where that
    is not known). `name` is what the message calls the model, by default its own name."""
    if stored and model.image_size > stored:
        raise UserError(
            f"image_size {model.image_size} of model '{name or model.name}' is larger than the prepared images "
            f"({stored} x {stored} pixels); prepare them again with 'kdtvit-ray prepare --size {model.image_size}', or "
            "lower image_size"
        )


def with_teachers(stages: Iterable[StageSpec]) -> Iterator[tuple[StageSpec, ModelSpec | None]]:
    """Each stage of a chain, parents first, with the model that it is distilled from, if any."""
    models: dict[str, ModelSpec] = {}
    for stage in stages:
        models[stage.key] = stage.model
        yield stage, models[stage.parent] if stage.distillation and stage.parent else None


def check_stage(
    stage: StageSpec, teacher: ModelSpec | None = None, dataset: Dataset | None = None, stored: int = 0
) -> None:
    """Raise a `UserError` for a stage that cannot be trained.

    teacher: the model that the stage is distilled from, where it is. dataset: what it is trained on; stored: side of
    the prepared images in pixels. Without these two, what depends on them is not checked.
    """
    model = stage.model
    choose("head", model.head, ModelSpec.HEADS)
    _check_arguments(model)
    if dataset:
        _check_dataset(stage, dataset)
    check_patch(model, patch_of(model))
    check_size(model, stored)
    check_warmup(stage.training.epochs, stage.training.warmup_epochs)
    check_variants(stage.training)
    _check_frozen(stage)
    if stage.distillation:
        if stage.training.mixup > 0:
            raise UserError(
                f"mixup is {stage.training.mixup:g} in a stage with a teacher, whose outputs are stored and belong to "
                "images that are not blended; allowed: mixup = 0 in [training.later], or everywhere"
            )
        _check_distillation(stage.distillation, model)
        if stage.distillation.loss == "dist" and stage.training.batch < 3:
            raise UserError(
                f"Distillation loss 'dist' relates the images of a batch, and correlations of {stage.training.batch} "
                "teach nothing; allowed: batch of 3 or more, or another loss: kd, dkd, logit-std"
            )
        if stage.distillation.loss == "dkd" and stage.training.rehearsal_loss == "distillation":
            raise UserError(
                "Distillation loss 'dkd' needs the labels of all images, and rehearsal_loss = 'distillation' uses none "
                "of the rehearsed ones; allowed: rehearsal_loss = 'full', or another loss: kd, dist, logit-std"
            )
    if teacher:
        _check_teacher(stage, teacher)


def _check_arguments(model: ModelSpec) -> None:
    for name, value in model.args:
        if name in NO_ARGUMENTS:
            raise UserError(
                f"args of model '{model.name}' has {name} = {value!r}; allowed instead: {NO_ARGUMENTS[name]}"
            )


def check_warmup(
    epochs: int, warmup_epochs: float, epochs_name: str = "epochs", warmup_name: str = "warmup_epochs"
) -> None:
    """Raise a `UserError` for a warm-up that lasts as long as the stage, whose learning rate would then never decay.

    The names say in the message where the two values come from.
    """
    if warmup_epochs >= epochs:
        raise UserError(
            f"{warmup_name} is {warmup_epochs:g} and {epochs_name} is {epochs}, so the warm-up lasts as long as the "
            f"stage and the learning rate never decays; allowed: warmup_epochs below epochs (here below {epochs})"
        )


def check_steps(magnifications: Sequence[int], training: Training, images: int) -> None:
    """Raise a `UserError` for a stage with so many training images of its own that has one step, at a rate of 0."""
    shown = images + training.rehearsed(images)
    if training.min_lr_ratio == 0 and training.epochs == 1 and shown <= training.batch:
        raise UserError(
            f"min_lr_ratio is 0, and the stage at {', '.join(f'{each}X' for each in magnifications)} has a single step "
            f"(epochs is 1, batch is {training.batch}, and it shows {shown} images), whose learning rate would be 0: "
            "nothing would be trained; allowed: min_lr_ratio above 0, epochs of 2 or more, or a batch below "
            f"{shown}"
        )


def _check_frozen(stage: StageSpec) -> None:
    """Refuse what cannot be trained where a part of the model, or all of it but updates of a low rank, is frozen."""
    training, model = stage.training, stage.model
    blocks, rank = training.trainable_blocks, training.lora_rank
    if rank and blocks != ALL_BLOCKS:
        raise UserError(
            f"lora_rank is {rank} and trainable_blocks is {blocks}, but updates of a low rank go with all blocks; "
            f'allowed: trainable_blocks = "{ALL_BLOCKS}", or lora_rank = 0'
        )
    if blocks == 0 and training.drop_path > 0:
        raise UserError(
            f"drop_path is {training.drop_path:g} and trainable_blocks is 0, but what lies before the head is computed "
            "once, with all paths; allowed: drop_path = 0, or trainable_blocks of 1 or more"
        )
    if blocks == 0 and training.mixup > 0:
        raise UserError(
            f"mixup is {training.mixup:g} and trainable_blocks is 0, but what lies before the head is computed once, "
            "of images that are not blended; allowed: mixup = 0, or trainable_blocks of 1 or more"
        )
    if (rank or blocks != ALL_BLOCKS) and model.weights == "none" and not stage.warm:
        found = f"lora_rank is {rank}" if rank else f"trainable_blocks is {blocks}"
        allowed = "lora_rank = 0" if rank else f'trainable_blocks = "{ALL_BLOCKS}"'
        raise UserError(
            f"{found}, but model '{model.name}' starts from random weights, and what is frozen would stay random; "
            f"allowed: {allowed}, weights for the model, or a warm start (which the baselines per_magnification, joint "
            "and from_scratch_kd do not have)"
        )


def check_patch(model: ModelSpec, patch: Sequence[int]) -> None:
    """Raise a `UserError` where an image is not a whole number of patches, of which `patch` are the sides."""
    if any(model.image_size % side for side in patch):
        raise UserError(
            f"image_size {model.image_size} is not a multiple of the patch size {patch[0]} of model '{model.name}'; "
            f"allowed: multiples of {patch[0]}, or the arguments dynamic_img_size and dynamic_img_pad"
        )


def patch_of(model: ModelSpec) -> tuple[int, ...]:
    """Sides of a model's patches, from its arguments or its name; none where these do not tell, or do not matter."""
    name, arguments = model.timm
    if arguments.get("dynamic_img_pad") and arguments.get("dynamic_img_size"):
        return ()
    given = arguments.get("patch_size")
    if given is None:
        named = re.search(r"_patch([0-9]+)(?![0-9])", name)
        return (int(named[1]),) if named else ()
    sides = given if isinstance(given, list | tuple) else (given,)
    return tuple(side for side in sides if isinstance(side, int) and side > 0)


def _check_dataset(stage: StageSpec, dataset: Dataset) -> None:
    there = ", ".join(f"{each}X" for each in dataset.magnifications)
    if missing := [each for each in stage.magnifications if each not in dataset.magnifications]:
        raise UserError(
            f"A stage is to be trained at {', '.join(f'{each}X' for each in missing)}, which the set '{dataset.name}' "
            f"does not have; allowed in an order: {there}"
        )
    if stage.model.head == "subtype" and stage.model.subtypes != len(dataset.classes):
        raise UserError(
            f"Model '{stage.model.name}' predicts {stage.model.subtypes} classes and the set '{dataset.name}' has "
            f"{len(dataset.classes)}; allowed: as many, or head = 'binary'"
        )


def _check_distillation(distillation: Distillation, model: ModelSpec) -> None:
    choose("distillation loss", distillation.loss, Distillation.LOSSES)
    if model.classes == 2 and distillation.loss in REFUSED_WITH_TWO_CLASSES:
        other = ", or head = 'subtype'" if model.head == "binary" and model.subtypes > 2 else ""
        raise UserError(
            f"Distillation loss '{distillation.loss}' cannot be used with two classes: "
            f"{REFUSED_WITH_TWO_CLASSES[distillation.loss]}; allowed: kd{other}"
        )
    if not distillation.temperature > 0:
        raise UserError(f"temperature is {distillation.temperature}; allowed: above 0")
    if not 0 <= distillation.alpha <= 1:
        raise UserError(f"alpha is {distillation.alpha}; allowed: from 0 to 1")


def _check_teacher(stage: StageSpec, teacher: ModelSpec) -> None:
    model = stage.model
    if (teacher.head, teacher.classes) != (model.head, model.classes):
        raise UserError(
            f"The teacher has the {teacher.classes}-class head '{teacher.head}' and the student the "
            f"{model.classes}-class head '{model.head}'; allowed: the same head"
        )
    if stage.training.crop == "centre" and teacher.image_size != model.image_size:
        raise UserError(
            f"With crop = 'centre' a teacher at image_size {teacher.image_size} sees another field than a student at "
            f"{model.image_size}; allowed: the same image_size, or crop = 'none'"
        )
