"""What cannot be trained is told of specs alone, in one sentence, without torch."""

import subprocess
import sys
from dataclasses import replace

import pytest

from kdtvit_ray.chain import Chain
from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.preflight import (
    NO_ARGUMENTS,
    REFUSED_WITH_TWO_CLASSES,
    check_chain,
    check_stage,
    check_steps,
    patch_of,
)
from kdtvit_ray.recipe import Distillation, ModelSpec, StageSpec, Training

TWO = Dataset("nerves", "folder", (5, 10, 20), ("healthy", "ill"), ("ill",), "healthy", "ill")
MODEL = ModelSpec(image_size=64)
TAUGHT = StageSpec((40,), MODEL, distillation=Distillation(), parent="p")


def told(stage: StageSpec, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        check_stage(stage, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("loss", ["dist", "dkd", "logit-std"])
def test_losses_without_meaning_for_two_classes_are_refused_with_the_reason(loss):
    taught = replace(TAUGHT, distillation=Distillation(loss=loss))
    check_stage(taught, MODEL, breakhis())
    binary = replace(taught, model=replace(MODEL, head="binary"))
    assert told(binary) == (
        f"Distillation loss '{loss}' cannot be used with two classes: {REFUSED_WITH_TWO_CLASSES[loss]}; "
        "allowed: kd, or head = 'subtype'"
    )
    # the classes are two whatever the head: there is no other head to advise
    two = replace(taught, magnifications=(5,), model=replace(MODEL, subtypes=2))
    assert told(two, two.model, TWO).endswith(f"{REFUSED_WITH_TWO_CLASSES[loss]}; allowed: kd")
    check_stage(replace(two, distillation=Distillation()), two.model, TWO)


def test_a_loss_over_the_batch_needs_three_images():
    taught = replace(TAUGHT, distillation=Distillation(loss="dist"))
    check_stage(replace(taught, training=Training(batch=3)), MODEL, breakhis())
    for few in (1, 2):
        message = (
            f"correlations of {few} teach nothing; allowed: batch of 3 or more, or another loss: kd, dkd, logit-std"
        )
        assert message in told(replace(taught, training=Training(batch=few)))
        check_stage(replace(TAUGHT, training=Training(batch=few)), MODEL, breakhis())


@pytest.mark.parametrize(
    ("stage", "rest", "message"),
    [
        (
            replace(TAUGHT, distillation=Distillation(loss="kl")),
            (),
            "Unknown distillation loss 'kl' (did you mean 'kd'?)",
        ),
        (replace(TAUGHT, distillation=Distillation(temperature=0)), (), "temperature is 0; allowed: above 0"),
        (replace(TAUGHT, distillation=Distillation(alpha=1.5)), (), "alpha is 1.5; allowed: from 0 to 1"),
        (
            TAUGHT,
            (replace(MODEL, head="binary"),),
            "The teacher has the 2-class head 'binary' and the student the 8-class",
        ),
        (
            TAUGHT,
            (replace(MODEL, subtypes=3),),
            "The teacher has the 3-class head 'subtype' and the student the 8-class",
        ),
        (
            replace(TAUGHT, training=Training(crop="centre")),
            (replace(MODEL, image_size=32),),
            "With crop = 'centre' a teacher at image_size 32 sees another field than a student at 64",
        ),
        (TAUGHT, (MODEL, breakhis(), 32), "image_size 64 of model 'micro' is larger than the prepared images (32 x 32"),
        (
            replace(TAUGHT, model=replace(MODEL, image_size=60)),
            (),
            "image_size 60 is not a multiple of the patch size 8",
        ),
        (replace(TAUGHT, model=replace(MODEL, head="both")), (), "Unknown head 'both'"),
        (
            TAUGHT,
            (MODEL, TWO),
            "to be trained at 40X, which the set 'nerves' does not have; allowed in an order: 5X, 10X, 20X",
        ),
        (
            replace(TAUGHT, magnifications=(5,)),
            (MODEL, TWO),
            "Model 'micro' predicts 8 classes and the set 'nerves' has 2",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(stage, rest, message):
    assert message in told(stage, *rest)


def test_a_centre_crop_and_sizes_of_their_own_go_together_where_nothing_is_distilled():
    cropped = Training(crop="centre")
    chain = Chain((40, 100), MODEL, replace(MODEL, image_size=32), (4.0,), (0.0,), training=cropped)
    check_chain(chain.stages(), breakhis(), 64)
    with pytest.raises(UserError, match="crop = 'centre'"):
        check_chain(replace(chain, alpha=(0.5,)).stages(), breakhis(), 64)


@pytest.mark.parametrize(
    ("model", "patch"),
    [
        (ModelSpec("micro"), (8,)),
        (ModelSpec("tiny"), (16,)),
        (ModelSpec("micro", (("patch_size", 4),)), (4,)),
        (ModelSpec("vit_small_patch14_dinov2"), (14,)),
        (ModelSpec("vit_small_patch14_reg4_dinov2"), (14,)),
        (ModelSpec("deit_tiny_patch16_224", (("patch_size", (8, 4)),)), (8, 4)),
        (ModelSpec("tiny", (("dynamic_img_pad", True), ("dynamic_img_size", True))), ()),
        (ModelSpec("tiny", (("dynamic_img_pad", True),)), (16,)),
        (ModelSpec("swin_tiny"), ()),
        (ModelSpec("tiny", (("patch_size", "8"),)), ()),  # timm will refuse it
    ],
)
def test_the_patch_size_is_read_from_arguments_and_names(model, patch):
    assert patch_of(model) == patch


def test_a_stage_whose_only_step_has_a_rate_of_0_is_refused():
    single = Training(epochs=1, warmup_epochs=0, batch=64, min_lr_ratio=0)
    with pytest.raises(UserError) as caught:
        check_steps((40, 100), single, 60)
    assert str(caught.value) == (
        "min_lr_ratio is 0, and the stage at 40X, 100X has a single step (epochs is 1, batch is 64, and it shows 60 "
        "images), whose learning rate would be 0: nothing would be trained; allowed: min_lr_ratio above 0, epochs of 2 "
        "or more, or a batch below 60"
    )
    for each in (replace(single, epochs=2), replace(single, min_lr_ratio=0.1), replace(single, rehearsal=0.2)):
        check_steps((40,), each, 60)
    check_steps((40,), single, 65)


def test_a_preflight_needs_no_torch():
    script = "import sys, kdtvit_ray.learning.preflight; sys.exit(str({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize("name", NO_ARGUMENTS)
def test_arguments_that_say_how_a_model_is_made_or_that_other_settings_decide_are_refused_with_what_there_is_instead(
    name,
):
    stage = StageSpec((40,), replace(MODEL, args=(("depth", 2), (name, "w.pth"))))
    assert told(stage) == (f"args of model 'micro' has {name} = 'w.pth'; allowed instead: {NO_ARGUMENTS[name]}")
    check_stage(StageSpec((40,), replace(MODEL, args=(("depth", 2),))))
