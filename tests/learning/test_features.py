"""A linear probe on stored features against one whose frozen part runs in every step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdtvit_ray.data.batches import BLOCK, StageData, block_views, blocks_of, epoch_batches
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.augmentation import Variants
from kdtvit_ray.learning.features import Features, check_features
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.optimise import adamw, freeze, learning_rate
from kdtvit_ray.learning.outputs import StoredOutputs
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.recipe import ModelSpec, Training
from tests.learning import toy
from tests.learning.test_optimise import REGISTERED, SWIN

CPU = torch.device("cpu")
TRAINING = replace(toy.TRAINING, epochs=10, drop_path=0.0, label_smoothing=0.0, lr=1e-2, trainable_blocks=0)
STAINED = replace(TRAINING, stain="hed", variants=3)


@pytest.fixture(scope="module")
def data():
    return StageData(toy.prepared(), toy.DATA)


@pytest.fixture(scope="module")
def parent():
    return toy.untrained(toy.first(model=toy.MODEL))


def probe(parent, *, training=TRAINING, **changes):
    return toy.second(parent.spec, warm=True, training=training, **changes)


def student(parent, spec):
    model = build(spec.model, spec.seed)
    model.load_state_dict(dict(parent.state))
    freeze(model, spec.training)
    return model


@pytest.mark.parametrize("training", [TRAINING, STAINED], ids=["views", "variants"])
def test_features_are_those_of_the_live_model(data, parent, training):
    spec = probe(parent, training=training)
    rows = data.rows("train", (100,))
    views = block_views(blocks_of(len(rows)), training.all_views, 0, 1)
    found = Features(student(parent, spec), spec, data, StoredOutputs(), CPU).of("train", rows, views)
    model = student(parent, spec).eval()
    feed = Feed(data.pixels(16, "none"), model, len(rows), CPU, Variants(training, spec.seed, CPU))
    with torch.no_grad():
        inputs = feed(rows, np.repeat(views, BLOCK)[: len(rows)])
        expected = model.fc_norm(model.pool(model.forward_features(inputs)))
        torch.testing.assert_close(model.head(torch.from_numpy(found)), model(inputs), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-6, rtol=1e-5)


def test_a_probe_is_that_of_a_hand_written_loop_with_the_whole_model_in_each_step(data, parent):
    spec = replace(probe(parent), distillation=None)
    found = train_stage(spec, data, parent)
    model = student(parent, spec)
    optimizer = adamw(model, spec.training)
    rows = data.rows("train", (100,))
    labels = torch.from_numpy(data.labels("subtype")[rows])
    pixels = data.pixels(16, "none")
    pixels.make(rows)
    feed = Feed(pixels, model, len(rows), CPU)
    for epoch in range(10):
        views = np.repeat(block_views(blocks_of(len(rows)), 8, spec.seed, epoch), BLOCK)[: len(rows)]
        batches = epoch_batches(len(rows), spec.training.batch, spec.seed, epoch)
        for index, batch in enumerate(batches):
            loss = F.cross_entropy(model(feed(rows[batch], views[batch])), labels[torch.from_numpy(batch)])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec.training.clip_grad)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * len(batches) + index, len(batches), spec.training)
            optimizer.step()
    assert (found.state["head.weight"] - parent.state["head.weight"]).abs().max() > 0.05
    for name, value in model.state_dict().items():
        assert torch.allclose(found.state[name], value, atol=1e-5), name


def test_each_feature_is_computed_once_for_all_epochs_and_stages(data, parent):
    images = len(data.rows("train", (100,)))
    outputs = StoredOutputs()
    specs = [probe(parent), probe(parent, alpha=0.2), probe(parent, training=replace(TRAINING, lr=3e-2, ema=0.5))]
    shared = [train_stage(spec, data, parent, outputs=outputs) for spec in specs]
    assert [each.cost["features_asked"] for each in shared] == [10 * images] * 3
    assert [each.cost["features_computed"] for each in shared] == [8 * images, 0, 0]
    for spec, mine in zip(specs, shared, strict=True):
        alone = train_stage(spec, data, parent)
        assert all(torch.equal(value, alone.state[name]) for name, value in mine.state.items())
        assert np.array_equal(mine.predictions["probabilities"], alone.predictions["probabilities"])
        assert mine.curves == alone.curves
    assert "features_asked" not in train_stage(toy.second(parent.spec), data, parent).cost


def test_a_full_store_does_not_make_a_stage_compute_anything_again(data, parent):
    images, validation = (len(data.rows(split, (100,))) for split in ("train", "validation"))
    outputs = StoredOutputs(limit_bytes=1)
    cost = train_stage(probe(parent), data, parent, outputs=outputs).cost
    assert cost["features_computed"] == 8 * images
    assert cost["teacher_computed"] == 8 * images + validation


def test_features_are_known_by_the_weights_before_the_head(data, parent):
    outputs, rows = StoredOutputs(), data.rows("train", (100,))
    views = np.zeros(blocks_of(len(rows)), int)

    def computed(model, spec):
        made = Features(model, spec, data, outputs, CPU)
        made.of("train", rows, views)
        return made.computed > 0

    spec = probe(parent)
    assert computed(student(parent, spec), spec)
    other_head = student(parent, spec)
    torch.nn.init.ones_(other_head.head.weight)
    assert not computed(other_head, spec)
    binary = replace(spec, model=replace(spec.model, head="binary"))
    model = build(binary.model, 0)
    model.load_state_dict({name: value for name, value in parent.state.items() if "head" not in name}, strict=False)
    assert not computed(model, binary)
    other_weights = student(parent, spec)
    with torch.no_grad():
        other_weights.norm.bias[0] += 1e-3
    assert computed(other_weights, spec)
    heads = replace(spec, model=replace(spec.model, args=(*spec.model.args[:2], ("num_heads", 4), spec.model.args[3])))
    assert computed(student(parent, heads), heads)  # the same weights in another architecture


POOLED = replace(toy.MODEL, args=(*toy.MODEL.args, ("class_token", False), ("global_pool", "avg")))
DISTILLED = ModelSpec("deit_tiny_distilled_patch16_224", (("depth", 1), ("embed_dim", 12)), image_size=16)


@pytest.mark.parametrize("spec", [toy.MODEL, POOLED, REGISTERED, SWIN], ids=["micro", "pooled", "dinov2", "swin"])
def test_models_with_a_linear_head_on_their_features_are_taken(spec):
    model = build(spec, 0)
    check_features(model, spec, Training(trainable_blocks=0))
    assert model.training


def test_models_whose_head_cannot_be_told_are_refused_by_name():
    distilled = build(DISTILLED, 0)
    with pytest.raises(
        UserError, match="trainable_blocks is 0, but the head of model 'deit_tiny_distilled_patch16_224'"
    ):
        check_features(distilled, DISTILLED, Training(trainable_blocks=0))
    unknown = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(
        UserError, match=r"is not one linear layer on features .*; allowed: trainable_blocks of 1 or more"
    ):
        check_features(unknown, replace(toy.MODEL, name="mine"), Training(trainable_blocks=0))
    check_features(distilled, DISTILLED, Training(trainable_blocks=1))


def test_a_probe_that_drops_paths_is_refused(data, parent):
    with pytest.raises(UserError, match=r"drop_path is 0\.2 and trainable_blocks is 0, but what lies before the head"):
        train_stage(probe(parent, training=replace(TRAINING, drop_path=0.2)), data, parent)
