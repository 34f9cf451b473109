"""Stage keys: what they are for ever, and that settings can be added without changing them."""

import hashlib
import json
from dataclasses import replace

import pytest

from kdtvit_ray import recipe
from kdtvit_ray.chain import Chain
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import ModelSpec, StageSpec, Training, parse_order
from kdtvit_ray.study.settings import STUDY_DEFAULTS
from tests.lacking import places, without

ROOT = {
    "magnifications": [40],
    "model": {
        "name": "tiny",
        "args": [["patch_size", 8]],
        "image_size": 64,
        "head": "subtype",
        "weights": "none",
        "digest": "",
        "subtypes": 8,
    },
    "training": {
        "epochs": 10,
        "batch": 64,
        "lr": 1e-3,
        "weight_decay": 0.05,
        "warmup_epochs": 1.0,
        "min_lr_ratio": 0.01,
        "label_smoothing": 0.0,
        "drop_path": 0.0,
        "class_weights": "balanced",
        "views": "d4",
        "crop": "none",
        "stain": "none",
        "stain_strength": 0.05,
        "variants": 1,
        "zoom": 0.0,
        "clip_grad": 1.0,
        "layer_decay": 1.0,
        "head_lr": 1.0,
        "trainable_blocks": "all",
        "ema": 0.0,
        "rehearsal": 0.0,
        "rehearsal_loss": "full",
        "lora_rank": 0,
        "mixup": 0.0,
    },
    "distillation": None,
    "parent": None,
    "warm": False,
    "seed": 0,
    "data": {
        "fingerprint": "430bb916e4e93ae6a2996e7b8ffe0387",
        "protocol": "patient",
        "fold": 1,
        "folds": 5,
        "validation": 0.15,
        "group": "stem",
        "seed": 0,
        "inner_folds": 0,
        "inner": 0,
        "partition": 0,
    },
    "numeric": {"dtype": "float32", "threads": 1},
    "earlier": [],
}
"""A spec as the first release stores it in a stage.json."""
CHILD = {
    **ROOT,
    "magnifications": [100],
    "model": {**ROOT["model"], "head": "binary", "weights": "x.pth", "digest": "d1"},
    "training": {**ROOT["training"], "crop": "centre"},
    "distillation": {"temperature": 4.0, "alpha": 0.5, "loss": "kd"},
    "parent": "f0b8cbf38e04c9210ca66711db68871c",
    "warm": True,
    "seed": 5,
    "data": {**ROOT["data"], "protocol": "official"},
    "numeric": {"dtype": "bfloat16", "threads": 2},
}


REHEARSING = {**CHILD, "training": {**CHILD["training"], "rehearsal": 0.25}, "earlier": [40]}
PINNED = [
    (3, ROOT, "f58c51da20b96fef20b449b10817bc45"),
    (3, CHILD, "4cc2acc1ac6dce83f73b0b49fbe11fe9"),
    (3, REHEARSING, "e842d41e5160d1046cf8988d8553d047"),
]


@pytest.mark.parametrize(("version", "spec", "key"), PINNED)
def test_keys_are_pinned_for_ever(monkeypatch, version, spec, key):
    # a stored study is found by these: no line of the table changes, whatever settings are added
    monkeypatch.setattr(recipe, "RECIPE_VERSION", version)
    assert StageSpec.from_dict(spec).key == key


SETTINGS = [each for each in places(REHEARSING) if not isinstance(REHEARSING[each[0]], dict) or len(each) > 1]


@pytest.mark.parametrize("place", SETTINGS, ids=".".join)
def test_a_spec_that_lacks_a_setting_is_not_read_and_every_setting_is_in_the_key_but_what_decides_nothing(place):
    with pytest.raises(KeyError, match=place[-1]):
        StageSpec.from_dict(without(REHEARSING, place))
    spec = StageSpec.from_dict(REHEARSING)
    name, *rest = place
    old = getattr(spec, name)
    value = getattr(old, rest[0]) if rest else old
    other = {str: "other", float: 0.3, int: 3, bool: not value, tuple: (7,)}[type(value)]
    changed = replace(spec, **{name: replace(old, **{rest[0]: other}) if rest else other})
    decides_nothing = place in (("model", "weights"), ("model", "digest"))  # it starts warm
    assert (changed.key == spec.key) == decides_nothing


def test_equal_numbers_in_a_models_arguments_are_one_key_and_true_is_no_number():
    def key(value):
        return StageSpec((40,), ModelSpec(args=(("mlp_ratio", value),))).key

    assert key(4) == key(4.0)
    assert key((1, (2.0, 3))) == key((1.0, (2, 3.0)))
    assert len({key(value) for value in (1, True, "1", (1,), 1.5, 0, False, None)}) == 8


@pytest.fixture
def came_later(monkeypatch):
    """As if two settings had been added after the first release: before, nothing was clipped and nothing rehearsed."""
    monkeypatch.setitem(recipe.ADDED_LATER, ("training", "clip_grad"), 0.0)
    monkeypatch.setitem(recipe.ADDED_LATER, ("", "earlier"), ())
    monkeypatch.setitem(recipe.ADDED_LATER, ("distillation", "loss"), "kd")
    monkeypatch.setitem(recipe.ADDED_LATER, ("study", "choose"), "best")  # of a study, and of no stage


@pytest.mark.parametrize("whole", [ROOT, CHILD])
def test_a_spec_from_before_a_setting_is_read_with_the_value_that_it_had_and_keeps_its_key(came_later, whole):
    whole = {**whole, "training": {**whole["training"], "clip_grad": 0.0}}
    before = without(without(whole, ("training", "clip_grad")), ("earlier",))
    if whole["distillation"]:
        before = without(before, ("distillation", "loss"))
    kept = json.dumps(before)
    spec = StageSpec.from_dict(before)
    assert spec == StageSpec.from_dict(whole)
    assert json.dumps(before) == kept, "what is handed in is left as it is"
    plain = {**before, "model": {name: value for name, value in before["model"].items() if name != "weights"}}
    if spec.warm:
        plain["model"].pop("digest")
    text = json.dumps({**plain, "recipe_version": recipe.RECIPE_VERSION}, sort_keys=True, separators=(",", ":"))
    assert spec.key == hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), "as before there were these settings"


def test_a_setting_that_was_added_later_is_in_the_key_only_where_it_is_not_as_it_was(came_later):
    spec = StageSpec((40,), ModelSpec(), Training(clip_grad=0.0))
    other = replace(spec, training=Training(clip_grad=1.0))
    assert other.key != spec.key
    assert StageSpec.from_dict(other.to_dict()) == other


def chain(alpha=(0.5, 0.5), warm_start=True, first=None, **training):
    model = ModelSpec()
    settings = Training(**training)
    return Chain((40, 100, 200), model, model, (2.0,) * 2, alpha, warm_start=warm_start, training=settings, first=first)


def test_later_stages_rehearse_the_magnifications_before_their_own():
    stages = chain(rehearsal=0.25).stages()
    assert [stage.earlier for stage in stages] == [(), (40,), (40, 100)]
    assert [stage.training.rehearsal for stage in stages] == [0, 0.25, 0.25]
    turned = replace(chain(rehearsal=0.25), order=(200, 100, 40)).stages()
    assert [stage.earlier for stage in turned] == [(), (200,), (100, 200)]
    assert stages[0].key == chain().stages()[0].key, "a first stage is the same with and without"
    assert chain(rehearsal=0.25).joint()[0].key == chain().joint()[0].key
    keys = {stage.key for each in (0.0, 0.25, 0.5) for stage in chain(rehearsal=each).stages()[1:]}
    assert len(keys) == 6
    for stage in stages:
        assert StageSpec.from_dict(stage.to_dict()) == stage


def test_nothing_is_rehearsed_by_a_teacher_that_is_not_there():
    given = {"rehearsal": 0.25, "rehearsal_loss": "distillation"}
    keys = [stage.key for stage in chain((0.0, 0.0)).stages()]
    assert [stage.key for stage in chain((0.0, 0.0), **given).stages()] == keys
    assert [stage.earlier for stage in chain((0.0, 0.5), **given).stages()] == [(), (), (40, 100)]
    labels = chain((0.0, 0.0), warm_start=False, rehearsal=0.25).stages()
    assert [stage.earlier for stage in labels] == [(), (40,), (40, 100)]
    assert not any(stage.parent for stage in labels)


def test_a_loss_of_rehearsed_images_counts_where_some_are_rehearsed():
    assert Training(rehearsal_loss="distillation").settled() == Training()
    rehearsing = Training(rehearsal=0.1, rehearsal_loss="distillation")
    assert rehearsing.settled() == rehearsing
    assert [Training(rehearsal=share).rehearsed(700) for share in (0, 0.3, 0.5, 0.9)] == [0, 300, 700, 6300]


def test_a_decay_over_layers_counts_where_more_than_the_head_is_trained():
    assert Training(layer_decay=0.7, trainable_blocks=0).settled() == Training(trainable_blocks=0)
    for blocks in (1, recipe.ALL_BLOCKS):
        decayed = Training(layer_decay=0.7, trainable_blocks=blocks)
        assert decayed.settled() == decayed


def test_a_loss_of_rehearsed_images_counts_where_labels_or_weights_do():
    for alpha, weights, counts in ((0.5, "none", True), (1.0, "none", False), (1.0, "balanced", True)):
        settings = {"rehearsal": 0.25, "class_weights": weights}
        full, distilled = (
            chain((0.5, alpha), **settings, rehearsal_loss=loss).stages() for loss in ("full", "distillation")
        )
        assert (replace(full[2], parent=distilled[2].parent).key != distilled[2].key) == counts


def test_with_two_classes_weights_of_the_sides_are_those_of_the_classes():
    for head, same in (("binary", True), ("subtype", False)):
        model = ModelSpec(head=head)
        one, other = (
            replace(chain((0.5,), class_weights=word), order=(40, 100), teacher=model, student=model)
            for word in ("balanced", "balanced-binary")
        )
        for first, second in ((one.stages(), other.stages()), (one.joint(), other.joint())):
            assert ([each.key for each in first] == [each.key for each in second]) == same


def test_smoothed_labels_count_where_labels_do():
    for alpha, counts in ((0.0, True), (0.5, True), (1.0, False)):
        smooth = chain((0.5, alpha), first=Training(), label_smoothing=0.1, rehearsal=0.25).stages()
        sharp = chain((0.5, alpha), first=Training(), rehearsal=0.25).stages()
        assert (replace(smooth[2], parent=sharp[2].parent).key != sharp[2].key) == counts
        assert smooth[2].earlier == sharp[2].earlier == (40, 100)
    assert chain((1.0, 1.0), label_smoothing=0.1).stages()[0].training.label_smoothing == 0.1, (
        "a first stage has labels"
    )


def test_nothing_was_added_later_that_is_no_setting():
    spec = {**StageSpec.from_dict(CHILD).to_dict(), "study": STUDY_DEFAULTS}
    assert all(name in (spec[part] if part else spec) for part, name in recipe.ADDED_LATER)


@pytest.mark.parametrize(
    ("text", "order"),
    [("40>100", (40, 100)), ("20X > 5x", (20, 5)), ("7", (7,)), ("1>2>3>4>5>6>7", (1, 2, 3, 4, 5, 6, 7))],
)
def test_an_order_is_any_magnifications(text, order):
    assert parse_order(text) == order


@pytest.mark.parametrize("text", ["", "40>", "40>40", "0>40", "-40>100", "40,100", "40>1e2", "4²>40", "forty"])
def test_what_is_no_order_is_told(text):
    with pytest.raises(UserError, match="not a sequence of different magnifications"):
        parse_order(text)
