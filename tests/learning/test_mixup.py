"""Mixup against blends and soft labels made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdtvit_ray.data.batches import BLOCK, StageData, block_views, blocks_of, epoch_batches, mixed_batches
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.mixup import partners, weight_of
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.recipe import Training
from tests.learning import toy
from tests.learning.test_stage import assert_resumes

MIXED = replace(toy.TRAINING, epochs=3, mixup=0.4)


@pytest.fixture(scope="module")
def data():
    return StageData(toy.prepared(), toy.DATA)


@pytest.mark.parametrize("strength", [0.2, 1.0, 4.0])
def test_weights_are_those_of_the_beta_distribution(strength):
    drawn = np.array([weight_of(strength, 0, epoch, step) for epoch in range(100) for step in range(40)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * strength + 1)), rel=0.06)
    expected = np.random.default_rng(0).beta(strength, strength, 200_000)
    at = np.linspace(0.05, 0.95, 19)
    shares, theirs = ((each[:, None] < at).mean(axis=0) for each in (drawn, expected))
    assert np.abs(shares - theirs).max() < 0.03


def test_a_weight_is_a_function_of_seed_epoch_and_step():
    keys = [(seed, epoch, step) for seed in range(3) for epoch in range(3) for step in range(3)]
    drawn = [weight_of(0.3, *each) for each in keys]
    assert drawn == [weight_of(0.3, *each) for each in keys]
    assert len(set(drawn)) == len(keys)


def test_every_image_of_a_batch_has_one_partner_that_is_not_itself():
    batch = np.array([7, 3, 9, 1])
    assert sorted(partners(batch)) == sorted(batch)
    assert not (partners(batch) == batch).any()
    assert partners(batch[:1]) == batch[:1]


def test_in_a_stage_that_rehearses_one_image_of_each_kind_is_blended_with_the_other_kind():
    for batch in mixed_batches(80, 60, 34, 57, 0, 1):
        own, theirs = batch < 80, partners(batch) < 80
        assert (own & ~theirs).sum() == (~own & theirs).sum() == 1
        assert len(batch) - own.sum() == 17


def test_a_stage_is_that_of_a_loop_over_blended_images_and_soft_labels(data):
    training = Training(
        epochs=3, batch=24, lr=1e-3, weight_decay=0.0, warmup_epochs=0, min_lr_ratio=1.0, clip_grad=0.0, mixup=0.4,
        label_smoothing=0.1,
    )  # fmt: skip
    spec = toy.first((100,), model=toy.MODEL, training=training)
    result = train_stage(spec, data, None)
    model = build(spec.model, spec.seed)
    rows = data.rows("train", (100,))
    truth = F.one_hot(torch.from_numpy(data.labels("subtype")[rows]), 8).float() * 0.9 + 0.1 / 8
    pixels = data.pixels(16, "none")
    pixels.make(rows)
    feed = Feed(pixels, model, len(rows), torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    means = []
    for epoch in range(3):
        views = np.repeat(block_views(blocks_of(len(rows)), 8, spec.seed, epoch), BLOCK)[: len(rows)]
        images = feed(rows, views)
        total = 0.0
        for step, batch in enumerate(epoch_batches(len(rows), 24, spec.seed, epoch)):
            weight, others = weight_of(0.4, spec.seed, epoch, step), [*batch[-1:], *batch[:-1]]
            blended = weight * images[batch] + (1 - weight) * images[others]
            loss = F.cross_entropy(model(blended), weight * truth[batch] + (1 - weight) * truth[others])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        means.append(total / len(rows))
    assert [each["loss"] for each in result.curves] == pytest.approx(means, rel=1e-4)
    for name in ("head.weight", "blocks.0.mlp.fc1.weight", "patch_embed.proj.weight"):
        assert torch.allclose(result.state[name], model.state_dict()[name], atol=1e-4), name
    plain = train_stage(replace(spec, training=replace(training, mixup=0.0)), data, None)
    assert plain.curves[0]["loss"] != pytest.approx(means[0], rel=1e-3)


def test_interrupted_and_resumed_it_is_bit_for_bit_the_same(data):
    spec = toy.first(training=MIXED)
    assert_resumes(spec, data, None)


def test_it_is_refused_with_a_teacher_and_with_stored_features(data):
    first = toy.untrained(toy.first(training=MIXED))
    with pytest.raises(
        UserError, match=r"mixup is 0\.4 in a stage with a teacher, whose outputs .*; allowed: mixup = 0"
    ):
        train_stage(toy.second(first.spec), data, first)
    probe = replace(MIXED, trainable_blocks=0, drop_path=0.0)
    alone = replace(toy.second(first.spec, warm=True, model=first.spec.model, training=probe), distillation=None)
    with pytest.raises(UserError, match=r"mixup is 0\.4 and trainable_blocks is 0, but what lies before the head is"):
        train_stage(alone, data, first)
