import io
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdtvit_ray.data.batches import BLOCK, StageData, block_views, turned
from kdtvit_ray.errors import OutOfMemory, StageFailed, UserError
from kdtvit_ray.learning import evaluate, numeric, stage
from kdtvit_ray.learning.evaluate import agreement, batch_of, evaluation, latency, predict
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.models import build, mean_std
from kdtvit_ray.learning.optimise import adamw
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.teacher import Parent
from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.recipe import Numeric, Training
from tests.learning import toy


@pytest.fixture(scope="module")
def prepared():
    return toy.prepared()


@pytest.fixture(scope="module")
def data(prepared):
    return StageData(prepared, toy.DATA)


@pytest.fixture(scope="module")
def taught(data):
    """A trained first stage, as a parent."""
    spec = toy.first(training=replace(toy.TRAINING, epochs=6, lr=5e-3))
    return Parent(spec, train_stage(spec, data, None).state)


def assert_resumes(spec, data, parent):
    """Interrupted after the first or the second epoch and resumed, a stage is bit for bit what it is in one go."""
    whole = train_stage(spec, data, parent)
    for stop in (1, 2):
        checkpoint = Memory()
        checkpoint.every_seconds = 1e9
        assert train_stage(spec, data, parent, checkpoint=checkpoint, on_epoch=lambda n, s=stop: n.epoch < s) is None
        assert equal(whole, train_stage(spec, data, parent, checkpoint=checkpoint))


def equal(one, two):
    """Bit for bit the same weights, predictions and curves."""
    assert one.state.keys() == two.state.keys()
    assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())
    assert all(np.array_equal(value, two.predictions[name]) for name, value in one.predictions.items())
    assert one.curves == two.curves
    assert one.agreement == two.agreement
    return True


def test_a_stage_learns_and_says_what_it_cost(data):
    spec = toy.first((40, 100, 200, 400), training=replace(toy.TRAINING, epochs=8, lr=5e-3))
    seen = []
    result = train_stage(spec, data, None, on_epoch=lambda now: seen.append(now) or True)
    assert result.curves[-1]["loss"] < 0.8 * result.curves[0]["loss"]
    auc = [
        each["value"]
        for each in evaluation(result.predictions, data, "subtype")
        if (each["split"], each["level"], each["metric"]) == ("test", "image", "auc")
    ]
    assert len(auc) == 4
    assert np.mean(auc) > 0.85
    assert [each.epoch for each in seen] == list(range(1, 9))
    images = len(data.rows("train"))
    assert seen[-1].step == result.cost["steps"] == 8 * math.ceil(images / 24)
    assert result.cost["images"] == 8 * images
    assert result.cost["train_seconds"] > 0
    assert result.cost["latency_1_seconds"] > 0
    assert result.agreement is None
    assert result.curves[0]["distillation"] is None


def test_a_stage_is_a_function_of_its_spec(data, taught):
    spec = toy.second(taught.spec)
    torch.manual_seed(1)
    one = train_stage(spec, data, taught)
    torch.manual_seed(2)
    torch.rand(7)
    assert equal(one, train_stage(spec, StageData(toy.prepared(), toy.DATA), taught))
    other = train_stage(replace(spec, seed=1), data, taught)
    assert not torch.equal(one.state["head.weight"], other.state["head.weight"])


@torch.no_grad()
def by_hand(model, images, rows, views):
    """Logits from the definition: resize, turn, normalise, one image at a time."""
    from PIL import Image

    size = model.patch_embed.img_size[0]
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in mean_std(model))
    logits = []
    for row, view in zip(rows, views, strict=True):
        small = np.asarray(Image.fromarray(images[row]).resize((size, size), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(turned(small[None], view)[0].copy()).permute(2, 0, 1)
        logits.append(model(((pixels / 255 - mean) / std)[None])[0])
    return torch.stack(logits)


def test_an_epochs_loss_is_the_formula_on_the_views_that_both_models_see(prepared, data):
    """A step of size zero leaves the initial weights, so that the whole epoch can be computed from the contract."""
    deit = replace(toy.TEACHER, name="deit_tiny_patch16_224", image_size=20)  # another size, mean and deviation
    first = toy.first(model=deit)
    parent = toy.untrained(first)
    settings = replace(
        toy.TRAINING, epochs=1, warmup_epochs=0.5, lr=0.0, weight_decay=0.0, drop_path=0.0, class_weights="balanced"
    )
    T, alpha = 3.0, 0.7
    spec = toy.second(first, alpha=alpha, temperature=T, training=settings, seed=5)
    found = train_stage(spec, data, parent)

    rows = data.rows("train", (100,))
    blocks = -(-len(rows) // BLOCK)
    assert blocks > 1
    views = np.repeat(block_views(blocks, 8, 5, 0), BLOCK)[: len(rows)]
    student, teacher = build(toy.MODEL, 5).eval(), build(deit, 0).eval()
    teacher.load_state_dict(parent.state)
    assert mean_std(teacher) != mean_std(student)
    s, t = (by_hand(model, prepared.images, rows, views) for model in (student, teacher))
    labels = torch.from_numpy(data.table["subtype"].to_numpy()[rows].astype(int))
    counts = torch.bincount(labels, minlength=8)
    weights = len(rows) / (8 * counts[labels])
    hard = (weights * F.cross_entropy(s, labels, reduction="none", label_smoothing=0.1)).mean()
    p, q = (t / T).softmax(1), (s / T).softmax(1)
    soft = T * T * (p * (p / q).log()).sum(1).mean()
    line = found.curves[0]
    assert line["cross_entropy"] == pytest.approx(hard.item(), rel=1e-4)
    assert line["distillation"] == pytest.approx(soft.item(), rel=1e-3)
    assert line["loss"] == pytest.approx(((1 - alpha) * hard + alpha * soft).item(), rel=1e-4)
    assert line["agreement"] == pytest.approx((s.argmax(1) == t.argmax(1)).float().mean().item())

    chosen = data.rows("validation", (100,))
    s, t = (by_hand(model, prepared.images, chosen, [0] * len(chosen)) for model in (student, teacher))
    kl = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean().item()
    same = (s.argmax(1) == t.argmax(1)).float().mean().item()
    assert found.agreement == {"same_argmax": pytest.approx(same), "kl": pytest.approx(kl, rel=1e-3)}


@pytest.mark.parametrize("warmup", [2.0, 5.0])
def test_a_warm_up_as_long_as_the_stage_is_refused_before_anything_is_trained(data, warmup):
    spec = toy.first(training=replace(toy.TRAINING, epochs=2, warmup_epochs=warmup))
    with pytest.raises(UserError, match=rf"warmup_epochs is {warmup:g} and epochs is 2, .* never decays; .*below 2"):
        train_stage(spec, data, None)


def test_a_stage_whose_only_step_would_have_a_rate_of_0_is_refused_before_anything_is_trained(data):
    single = Training(epochs=1, batch=10_000, warmup_epochs=0, min_lr_ratio=0)
    with pytest.raises(UserError, match="min_lr_ratio is 0, and the stage at 40X has a single step"):
        train_stage(toy.first(training=single), data, None)
    moved = train_stage(toy.first(training=replace(single, min_lr_ratio=0.01)), data, None)
    assert moved.curves[0]["lr"] > 0


def test_predictions_are_the_models_on_unturned_images_of_their_split(prepared, data, taught):
    spec = toy.second(taught.spec)
    result = train_stage(spec, data, taught)
    found = result.predictions
    assert found["image"].dtype == np.int32
    assert found["split"].dtype == np.int8
    assert found["probabilities"].dtype == np.float64
    for code, name in enumerate(("validation", "test")):
        assert np.array_equal(found["image"][found["split"] == code], getattr(data.split, name))
    student = build(toy.MODEL, 0).eval()
    student.load_state_dict(result.state)
    some = np.arange(0, len(found["image"]), 7)
    logits = by_hand(student, prepared.images, found["image"][some], [0] * len(some))
    assert np.allclose(found["probabilities"][some], logits.softmax(1).numpy(), atol=1e-5)


def without(prepared, gone):
    """The set without some of its images (N,)."""
    kept = np.flatnonzero(~gone)
    table = prepared.table.iloc[kept].reset_index(drop=True).assign(index=np.arange(len(kept)))
    return SimpleNamespace(
        images=prepared.images[kept],
        table=table,
        fingerprint="few",
        path="few",
        about=prepared.about,
        dataset=prepared.dataset,
    )


def few(prepared):
    """The set without two thirds of the patients of three subtypes: classes of unequal size."""
    table = prepared.table
    return without(prepared, table["subtype"].isin([0, 2, 6]) & (table["stem"].str[-1].astype(int) >= 3))


def test_corrected_weights_change_the_predictions_and_nothing_that_is_trained(prepared):
    data = StageData(few(prepared), replace(toy.DATA, fingerprint="few"))
    results = {}
    for choice in ("balanced", "balanced-corrected"):
        training = replace(toy.TRAINING, class_weights=choice)
        first = train_stage(toy.first(training=training, data=data.spec), data, None)
        parent = Parent(first.spec, first.state)
        # the student learns from the logits of a corrected teacher as they are
        results[choice] = [first, train_stage(toy.second(first.spec, alpha=0.5), data, parent)]
    for plain, corrected in zip(*results.values(), strict=True):
        assert all(torch.equal(value, corrected.state[name]) for name, value in plain.state.items())
        assert plain.curves == corrected.curves
        assert plain.agreement == corrected.agreement
        weights = np.array(corrected.weighting["class_weights"])
        labels = data.labels("subtype")[data.rows("train", corrected.spec.magnifications)]
        assert weights == pytest.approx(len(labels) / (8 * np.bincount(labels)), rel=1e-6)
        assert len(set(weights)) > 1
        by_hand = plain.predictions["probabilities"] / weights
        by_hand /= by_hand.sum(axis=1, keepdims=True)
        assert corrected.predictions["probabilities"] == pytest.approx(by_hand)
        assert corrected.weighting["logit_offsets"] == pytest.approx(-np.log(weights))
        assert plain.weighting == {"class_weights": weights.tolist(), "logit_offsets": [0.0] * 8}


def test_test_images_touch_nothing_but_test_predictions(taught):
    clean, spoilt = toy.prepared(), toy.prepared()
    reference = StageData(clean, toy.DATA)
    spoilt.images[reference.split.test] = 0
    spec = toy.second(taught.spec)
    one = train_stage(spec, reference, taught)
    two = train_stage(spec, StageData(spoilt, toy.DATA), taught)
    assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())
    assert one.curves == two.curves
    assert one.agreement == two.agreement
    same = (one.predictions["probabilities"] == two.predictions["probabilities"]).all(axis=1)
    assert same[one.predictions["split"] == 0].all()
    assert not same[one.predictions["split"] == 1].any()

    spoilt.images[:] = clean.images
    spoilt.images[reference.split.validation] = 0
    three = train_stage(spec, StageData(spoilt, toy.DATA), taught)
    assert all(torch.equal(value, three.state[name]) for name, value in one.state.items())
    same = (one.predictions["probabilities"] == three.predictions["probabilities"]).all(axis=1)
    assert same[one.predictions["split"] == 1].all()


def test_measures_are_of_their_split_and_magnification_with_malignant_as_positive(data):
    rows, codes = data.evaluated()
    malignant = data.table["malignant"].to_numpy()[rows]
    magnification = data.table["magnification"].to_numpy()[rows]
    right = (codes == 1) == (magnification < 200)  # every test image below 200X, no validation image there
    sick = np.where(right, malignant, ~malignant)
    probabilities = np.where(sick[:, None], np.repeat([0.0, 0.25], 4), np.repeat([0.25, 0.0], 4)).astype(np.float32)
    found = evaluation({"image": rows, "split": codes, "probabilities": probabilities}, data, "subtype")
    assert len(found) == 2 * 4 * (9 + 1 + 9)
    for each in found:
        if each["metric"] not in LOWER_IS_BETTER:
            assert each["value"] == float((each["split"] == "test") == (each["magnification"] < 200))
    chosen = [each for each in found if each["metric"] == "recall" and each["value"] == 1.0]
    assert {(each["split"], each["magnification"]) for each in chosen} == {
        ("test", 40),
        ("test", 100),
        ("validation", 200),
        ("validation", 400),
    }


class Memory:
    every_seconds = 0.0

    def __init__(self):
        self.content = None

    def load(self):
        return self.content

    def save(self, content):
        self.content = content


@pytest.mark.parametrize("warm", [False, True])
def test_interrupted_after_any_epoch_and_resumed_it_is_bit_for_bit_the_same(data, taught, warm):
    model = taught.spec.model if warm else toy.MODEL
    training = replace(taught.spec.training, epochs=4)
    spec = toy.second(taught.spec, warm=warm, model=model, training=training)
    whole = train_stage(spec, data, taught)
    assert len(whole.curves) == 4
    for stop in range(1, 5):
        checkpoint = Memory()
        checkpoint.every_seconds = 1e9  # a stop saves all the same
        assert train_stage(spec, data, taught, checkpoint=checkpoint, on_epoch=lambda n, s=stop: n.epoch < s) is None
        went_on = []
        resumed = train_stage(
            spec, data, taught, checkpoint=checkpoint, on_epoch=lambda now, w=went_on: w.append(now.epoch) or True
        )
        assert went_on == list(range(stop + 1, 5))
        assert equal(whole, resumed)


TUNED = {
    "layer decay": {"layer_decay": 0.5, "head_lr": 10.0},
    "one block": {"trainable_blocks": 1, "layer_decay": 0.5},
    "linear probe": {"trainable_blocks": 0, "drop_path": 0.0},
    "average of a linear probe": {"trainable_blocks": 0, "drop_path": 0.0, "ema": 0.6, "head_lr": 3.0},
    "average": {"ema": 0.9},
    "average of one block": {"ema": 0.6, "trainable_blocks": 1},
    "low rank": {"lora_rank": 2, "ema": 0.6, "layer_decay": 0.5},
}
"""Training settings that change how the weights move."""


@pytest.mark.parametrize("changes", TUNED.values(), ids=TUNED)
def test_every_way_to_train_goes_on_bit_for_bit(data, taught, changes):
    training = replace(toy.TRAINING, epochs=3, **changes)
    spec = toy.second(taught.spec, warm=True, model=taught.spec.model, training=training)
    whole = train_stage(spec, data, taught)
    plain = train_stage(replace(spec, training=replace(toy.TRAINING, epochs=3)), data, taught)
    assert not torch.equal(whole.state["head.weight"], plain.state["head.weight"])
    checkpoint = Memory()
    assert train_stage(spec, data, taught, checkpoint=checkpoint, on_epoch=lambda now: now.epoch < 2) is None
    assert equal(whole, train_stage(spec, data, taught, checkpoint=checkpoint))


def test_the_average_is_that_of_a_hand_written_loop(data, taught, monkeypatch):
    """Weights after every step, averaged in float64 by the definition: decay 1 - n^(-2/3), at most `ema`."""
    training = replace(toy.TRAINING, epochs=3, lr=5e-3)
    spec = toy.second(taught.spec, training=training)
    after: list[list[np.ndarray]] = []

    class Watched(torch.optim.AdamW):
        def step(self, closure=None):
            super().step(closure)
            groups = [each.detach().clone().double().numpy() for group in self.param_groups for each in group["params"]]
            after.append(groups)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Watched)
        last = train_stage(spec, data, taught)
    assert len(after) == 12
    average = after[0]
    for step, weights in enumerate(after[1:], start=2):
        decay = min(0.7, 1 - step ** (-2 / 3))
        average = [decay * mean + (1 - decay) * new for mean, new in zip(average, weights, strict=True)]
    assert 1 - 6 ** (-2 / 3) < 0.7 < 1 - 7 ** (-2 / 3)  # the warm-up ends within the stage
    averaged = train_stage(replace(spec, training=replace(training, ema=0.7)), data, taught)
    model = build(spec.model, 0)
    model.load_state_dict(averaged.state)
    found = [each for group in adamw(model, training).param_groups for each in group["params"]]
    assert all(
        np.allclose(mine.detach().numpy(), theirs, atol=1e-6) for mine, theirs in zip(found, average, strict=True)
    )
    assert averaged.curves == last.curves  # the steps themselves do not know of it
    assert not np.allclose(average[0], after[-1][0], atol=1e-4)


def test_the_average_is_what_is_evaluated_and_handed_on(prepared, data, taught):
    spec = toy.second(taught.spec, training=replace(toy.TRAINING, ema=0.9))
    result = train_stage(spec, data, taught)
    student = build(toy.MODEL, 0).eval()
    student.load_state_dict(result.state)
    some = np.arange(0, len(result.predictions["image"]), 7)
    logits = by_hand(student, prepared.images, result.predictions["image"][some], [0] * len(some))
    assert np.allclose(result.predictions["probabilities"][some], logits.softmax(1).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("blocks", "trained"),
    [(0, ("head.",)), (1, ("head.", "norm.", "blocks.1.")), (2, ("head.", "norm.", "blocks.")), ("all", ("",))],
)
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(data, taught, blocks, trained):
    training = replace(toy.TRAINING, trainable_blocks=blocks, weight_decay=0.5, ema=0.5, drop_path=0.2 if blocks else 0)
    spec = toy.second(taught.spec, warm=True, model=taught.spec.model, training=training)
    checkpoint = Memory()
    checkpoint.every_seconds = 0.0
    result = train_stage(spec, data, taught, checkpoint=checkpoint)
    moved = {name for name, value in result.state.items() if not torch.equal(value, taught.state[name])}
    assert moved == {name for name in result.state if name.startswith(trained)}
    sizes = {name: value.numel() for name, value in result.state.items()}
    assert result.cost["parameters"] == sum(sizes.values())
    assert result.cost["trainable_parameters"] == sum(sizes[name] for name in moved)
    kept = torch.load(io.BytesIO(checkpoint.content), weights_only=True)["optimizer"]["state"]
    assert sum(each["exp_avg"].numel() for each in kept.values()) == result.cost["trainable_parameters"]


def test_a_linear_probe_is_logistic_regression_on_the_features_of_the_frozen_model(data, taught):
    """All images in one step an epoch, without turns: the head's path is that of Adam on the features."""
    training = Training(
        epochs=5, batch=10_000, lr=1e-2, weight_decay=0.0, warmup_epochs=0, min_lr_ratio=1.0, views="none",
        clip_grad=0.0, trainable_blocks=0,
    )  # fmt: skip
    spec = replace(toy.second(taught.spec, warm=True, model=taught.spec.model, training=training), distillation=None)
    found = train_stage(spec, data, taught).state
    model = build(spec.model, 0).eval()
    model.load_state_dict(dict(taught.state))
    rows = data.rows("train", (100,))
    with torch.no_grad():
        pixels = data.pixels(16, "none")
        pixels.make(rows)
        features = model.forward_head(
            model.forward_features(Feed(pixels, model, len(rows), torch.device("cpu"))(rows)), pre_logits=True
        )
    labels = torch.from_numpy(data.labels("subtype")[rows])
    head = model.head
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(head(features), labels).backward()
        optimizer.step()
    assert torch.allclose(found["head.weight"], head.weight, atol=1e-4)


def test_frozen_random_weights_are_refused(data):
    probe = replace(toy.TRAINING, trainable_blocks=0, drop_path=0)
    with pytest.raises(UserError, match=r"trainable_blocks is 0, but model 'micro' starts from random weights"):
        train_stage(toy.first(training=probe), data, None)


def test_more_blocks_than_the_model_has_are_refused(data, taught):
    training = replace(toy.TRAINING, trainable_blocks=3)
    spec = toy.second(taught.spec, warm=True, model=taught.spec.model, training=training)
    with pytest.raises(UserError, match=r"trainable_blocks is 3, but model 'micro' has 2 blocks; .* or 0 to 2"):
        train_stage(spec, data, taught)


def test_the_first_step_of_adam_moves_each_layer_by_its_rate(data):
    """Without decay Adam's first step is the rate times the gradient's sign, up to its epsilon."""
    settings = replace(toy.TRAINING, epochs=1, warmup_epochs=0, batch=1000, lr=1e-2, weight_decay=0, min_lr_ratio=1)
    spec = toy.first(model=toy.MODEL, training=replace(settings, layer_decay=0.5, head_lr=3.0))
    before, after = build(toy.MODEL, 0).state_dict(), train_stage(spec, data, None).state
    moved = {name: (after[name] - before[name]).abs().median().item() for name in before}
    expected = {"head.weight": 3e-2, "norm.weight": 5e-3, "blocks.1.mlp.fc1.weight": 5e-3}
    expected |= {"blocks.0.mlp.fc1.weight": 2.5e-3, "patch_embed.proj.weight": 1.25e-3, "pos_embed": 1.25e-3}
    assert {name: moved[name] for name in expected} == pytest.approx(expected, rel=1e-2)


def test_killed_at_any_moment_it_goes_on_from_the_last_saved_epoch(data, taught):
    spec = toy.second(taught.spec, training=replace(toy.TRAINING, epochs=3))
    whole = train_stage(spec, data, taught)
    checkpoint = Memory()

    def kill(now):
        if now.epoch == 2:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        train_stage(spec, data, taught, checkpoint=checkpoint, on_epoch=kill)
    seen = []
    resumed = train_stage(spec, data, taught, checkpoint=checkpoint, on_epoch=lambda n: seen.append(n.epoch) or True)
    assert seen == [2, 3]
    assert equal(whole, resumed)


def test_a_damaged_checkpoint_or_another_stages_counts_as_none(data):
    spec = toy.first()
    whole = train_stage(spec, data, None)
    checkpoint = Memory()
    train_stage(replace(spec, seed=9), data, None, checkpoint=checkpoint)
    assert equal(whole, train_stage(spec, data, None, checkpoint=checkpoint))
    checkpoint.content = checkpoint.content[: len(checkpoint.content) // 2]
    assert equal(whole, train_stage(spec, data, None, checkpoint=checkpoint))


def test_every_seconds_bounds_how_often_a_checkpoint_is_saved(data):
    saved = []
    checkpoint = Memory()
    checkpoint.save = lambda content: saved.append(len(content))
    checkpoint.every_seconds = 1e9
    train_stage(toy.first(), data, None, checkpoint=checkpoint)
    assert not saved
    checkpoint.every_seconds = 0.0
    train_stage(toy.first(), data, None, checkpoint=checkpoint)
    assert len(saved) == 2


def test_a_warm_start_begins_where_the_parent_ended_and_a_cold_one_does_not(data, taught):
    still = replace(toy.TRAINING, epochs=1, warmup_epochs=0.5, lr=0.0)
    before = {name: value.clone() for name, value in taught.state.items()}
    spec = toy.second(taught.spec, model=taught.spec.model, training=still)
    warm = train_stage(replace(spec, warm=True), data, taught)
    cold = train_stage(spec, data, taught)
    assert all(torch.equal(value, taught.state[name]) for name, value in warm.state.items())
    fresh = build(spec.model, spec.seed).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in cold.state.items())
    assert warm.agreement["same_argmax"] == 1.0
    assert warm.agreement["kl"] == pytest.approx(0, abs=1e-6)
    moved = train_stage(replace(spec, warm=True, training=toy.TRAINING), data, taught)
    assert all(torch.equal(value, before[name]) for name, value in taught.state.items())  # a copy was trained
    assert not torch.equal(moved.state["head.weight"], taught.state["head.weight"])
    sequential = replace(spec, warm=True, distillation=None)
    assert train_stage(sequential, data, taught).agreement is None


@pytest.mark.parametrize("changes", [{"loss": "dist"}, {"loss": "dkd"}, {"loss": "logit-std"}, {"alpha": 1.0}])
def test_every_loss_pulls_the_student_to_its_teacher(data, taught, changes):
    spec = toy.second(taught.spec, **changes)
    far = train_stage(replace(spec, training=replace(toy.TRAINING, lr=0.0)), data, taught)
    near = train_stage(replace(spec, training=replace(toy.TRAINING, lr=5e-3, epochs=5)), data, taught)
    assert near.curves[-1]["distillation"] < 0.9 * far.curves[-1]["distillation"]


def test_the_binary_head_and_the_centre_crop_train_too(data):
    model = replace(toy.MODEL, head="binary")
    spec = toy.first((40, 400), model=model, training=replace(toy.TRAINING, crop="centre", views="none"))
    result = train_stage(spec, data, None)
    assert result.predictions["probabilities"].shape[1] == 2
    assert result.state["head.weight"].shape[0] == 2


def test_a_non_finite_loss_names_epoch_step_and_parts(data, taught):
    broken = {name: value * math.nan for name, value in taught.state.items()}
    spec = toy.second(taught.spec)
    expected = re.escape("epoch 1, step 1 of 4: total nan, cross-entropy ") + r"[\d.]+, distillation nan"
    with pytest.raises(StageFailed, match=expected):
        train_stage(spec, data, Parent(taught.spec, broken))
    warm = toy.second(taught.spec, warm=True, model=taught.spec.model)
    with pytest.raises(StageFailed, match="cross-entropy nan"):
        train_stage(warm, data, Parent(taught.spec, broken))
    wild = toy.first(training=replace(toy.TRAINING, lr=1e30, warmup_epochs=0, clip_grad=0.0))
    with pytest.raises(StageFailed, match=r"epoch 1, step [234] of"):
        train_stage(wild, data, None)


def test_lack_of_memory_comes_with_advice(data, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stage._Run, "_train_epoch", full)
    with pytest.raises(OutOfMemory, match=r"cpu in epoch 1, step 1 of \d+, with batch 24 .*use a smaller batch"):
        train_stage(toy.first(), data, None)


def test_lack_of_memory_in_the_evaluation_is_not_blamed_on_the_batch(data, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stage, "predict", full)
    with pytest.raises(OutOfMemory) as told:
        train_stage(toy.first(), data, None)
    assert str(told.value) == (
        "Out of memory on cpu in the evaluation with batch 32 of micro at image_size 16; use a smaller image_size or "
        "model"
    )


def test_on_a_gpu_large_images_are_evaluated_in_small_batches():
    gpu = torch.device("cuda", 0)
    assert [batch_of(gpu, size) for size in (64, 224, 256, 448, 1024, 5000)] == [256, 256, 196, 64, 12, 1]
    assert batch_of(torch.device("cpu"), 1024) == 32


STARVED = """
import resource
from dataclasses import replace
from kdtvit_ray.data.batches import StageData
from kdtvit_ray.errors import OutOfMemory
from kdtvit_ray.learning.stage import train_stage
from tests.learning import toy
data = StageData(toy.prepared(), toy.DATA)
train_stage(toy.first(), data, None)
base = replace(toy.MODEL, name="base", args=(("patch_size", 4),), image_size=16)
spec = toy.first(training=replace(toy.TRAINING, batch=64), model=base)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 600_000_000, size + 600_000_000))
try:
    train_stage(spec, data, None)
except OutOfMemory as error:
    print(error)
"""


def test_memory_that_really_runs_out_is_told_as_such():
    """A process with 600 MB to spare, where a ViT-B with its gradients and moments needs 1.4 GB."""
    told = subprocess.run(
        [sys.executable, "-c", STARVED],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert told.stdout.startswith("Out of memory on "), told.stdout + told.stderr
    assert "of base at image_size 16; use a smaller batch" in told.stdout


def test_what_a_user_got_wrong_is_said(data, taught):
    binary = replace(toy.MODEL, head="binary")
    with pytest.raises(UserError, match="8-class head 'subtype' and the student the 2-class head 'binary'"):
        train_stage(toy.second(taught.spec, model=binary), data, taught)
    with pytest.raises(UserError, match="'dkd' cannot be used with two classes"):
        train_stage(toy.second(taught.spec, model=binary, loss="dkd"), data, taught)
    cropped = replace(toy.TRAINING, crop="centre")
    smaller = replace(toy.MODEL, image_size=12)
    with pytest.raises(UserError, match="crop = 'centre'"):
        train_stage(toy.second(taught.spec, model=smaller, training=cropped), data, taught)
    with pytest.raises(UserError, match="50X, which the set 'BreakHis' does not have"):
        train_stage(toy.first((50,)), data, None)


def test_bfloat16_is_refused_where_the_device_has_none(data, monkeypatch):
    monkeypatch.setattr(numeric, "has_bfloat16", lambda device: False)
    with pytest.raises(UserError, match="'bfloat16' is not supported by this device"):
        train_stage(toy.first(numeric=Numeric("bfloat16")), data, None)
    monkeypatch.setattr(numeric, "has_bfloat16", lambda device: True)
    spec = toy.first(numeric=Numeric("bfloat16"))
    half, full = train_stage(spec, data, None), train_stage(toy.first(), data, None)
    assert half.state["head.weight"].dtype == torch.float32
    assert half.curves[0]["loss"] == pytest.approx(full.curves[0]["loss"], rel=0.05)
    assert half.curves[0]["loss"] != full.curves[0]["loss"]


def test_the_numeric_mode_is_put_back(data):
    torch.set_num_threads(2)
    seen = []
    try:
        spec = toy.first(numeric=Numeric(threads=1))
        train_stage(spec, data, None, on_epoch=lambda _: seen.append(torch.get_num_threads()) or True)
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(1)


def test_the_hardware_behind_a_measured_time_is_named():
    told = numeric.hardware_name(torch.device("cpu"))
    assert told.endswith((" thread", " threads"))
    assert len(told.partition(",")[0]) > 2


def test_a_slow_models_speed_is_not_measured(monkeypatch):
    model = build(toy.MODEL, 0)
    ticks = iter(range(100))
    monkeypatch.setattr(evaluate, "_LATENCIES", {})
    monkeypatch.setattr("kdtvit_ray.learning.evaluate.time.perf_counter", lambda: float(next(ticks)))
    assert set(latency(model, toy.MODEL, Numeric(), torch.device("cpu")).values()) == {None}
    assert model.training


def test_a_models_speed_is_measured_once(data, monkeypatch):
    measured = []

    def measure(model, size, *_):
        measured.append(size)
        return {"latency_1_seconds": 0.1 * len(measured)}

    monkeypatch.setattr(evaluate, "_LATENCIES", {})
    monkeypatch.setattr(evaluate, "_measured", measure)
    parent = train_stage(toy.first(model=toy.MODEL), data, None)
    child = train_stage(toy.second(parent.spec, warm=True), data, Parent(parent.spec, parent.state))
    assert measured == [16], "weights do not change the speed"
    assert parent.cost["latency_1_seconds"] == child.cost["latency_1_seconds"] == 0.1
    model, device = build(toy.MODEL, 0), torch.device("cpu")
    told = [
        latency(model, replace(toy.MODEL, weights="some.pth", digest="abc"), Numeric(), device),
        latency(model, replace(toy.MODEL, image_size=12), Numeric(), device),
        latency(model, toy.TEACHER, Numeric(), device),
        latency(model, toy.MODEL, Numeric("bfloat16"), device),
        latency(model, toy.MODEL, Numeric(), torch.device("cuda:0")),
    ]
    assert measured == [16, 12, 16, 16, 16]
    assert [each["latency_1_seconds"] for each in told] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_agreement_by_hand():
    student, teacher = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.4, 0.6], [0.9, 0.1]])
    found = agreement(student.astype(np.float32), teacher.astype(np.float32))
    kl = (0.4 * math.log(0.4 / 0.5) + 0.6 * math.log(0.6 / 0.5)) / 2
    assert found == {"same_argmax": 0.5, "kl": pytest.approx(kl, rel=1e-5)}


def test_a_stages_agreement_is_on_the_validation_images_of_its_own_magnification(prepared, taught):
    """At 40X, the first one of the set, there are few benign images, so that others stand in the same places."""
    table = prepared.table
    data = StageData(
        without(prepared, (table["magnification"] == 40) & ~table["malignant"] & (table["sequence"] > 0)), toy.DATA
    )
    result = train_stage(toy.second(taught.spec), data, taught)
    found, rows = result.predictions, data.rows("validation", (100,))
    own = (found["split"] == 0) & np.isin(found["image"], rows)
    teacher = build(taught.spec.model, 0).eval()
    teacher.load_state_dict(taught.state)
    pixels = data.pixels(16, "none")
    pixels.make(rows)
    theirs = predict(teacher, Feed(pixels, teacher, 64, torch.device("cpu")), rows, 8, Numeric())
    expected = agreement(np.log(found["probabilities"][own]), theirs)
    assert result.agreement == {name: pytest.approx(value, abs=1e-4) for name, value in expected.items()}


def test_predicting_leaves_the_mode_as_it_was_and_uses_eval_mode(data):
    model = build(toy.MODEL, 0)
    pixels = data.pixels(16, "none")
    rows = data.rows("validation", (40,))
    pixels.make(rows)
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    predict(model, Feed(pixels, model, 64, torch.device("cpu")), rows, 8, Numeric())
    assert set(modes) == {False}
    assert model.training
