"""What cannot be trained is told of specs alone, in one sentence, without torch."""

import subprocess
import sys
from dataclasses import replace

import pytest

from kdtvit_ray.chain import Chain
from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.preflight import NO_ARGUMENTS, REFUSED_WITH_TWO_CLASSES, check_chain, check_stage, patch_of
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


def test_a_preflight_needs_no_torch():
    script = "import sys, kdtvit_ray.learning.preflight; sys.exit(str({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize("name", NO_ARGUMENTS)
def test_arguments_that_load_weights_or_that_other_settings_decide_are_refused_with_what_there_is_instead(name):
    stage = StageSpec((40,), replace(MODEL, args=(("depth", 2), (name, "w.pth"))))
    assert told(stage) == (f"args of model 'micro' has {name} = 'w.pth'; allowed instead: {NO_ARGUMENTS[name]}")
    check_stage(StageSpec((40,), replace(MODEL, args=(("depth", 2),))))
