"""Variants of training images, against scikit-image, torchvision and Pillow, and in a stage."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import hed2rgb, rgb2hed
from torchvision.transforms.v2 import functional

from kdtvit_ray.data.batches import BLOCK, StageData, block_views, blocks_of, turned
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning import augmentation, numeric
from kdtvit_ray.learning.augmentation import (
    Variants,
    boxes,
    factors,
    jittered,
    mixing,
    restained,
    zoomed,
)
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.outputs import StoredOutputs
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.teacher import Parent, Teacher, frozen
from kdtvit_ray.recipe import Numeric, Training, check_variants
from tests.learning import toy
from tests.learning.operations import Operations

CPU = torch.device("cpu")
STAINED = replace(toy.TRAINING, stain="hed", stain_strength=0.1, variants=3, zoom=0.3)


@pytest.fixture(scope="module")
def data():
    return StageData(toy.prepared(), toy.DATA)


@pytest.fixture(scope="module")
def parent():
    return toy.untrained(toy.first(training=STAINED))


def planes(images):
    """Images (B, S, S, 3) as float32 (B, 3, S, S)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous()


def pixels(planes):
    return planes.permute(0, 2, 3, 1).numpy()


def test_a_stain_is_moved_as_scikit_image_unmixes_and_mixes():
    random = np.random.default_rng(0)
    # amounts of tissue, so that none is negative: scikit-image would cut those off
    amounts = random.uniform(0.03, 0.06, (5, 24, 24, 3))
    images = hed2rgb(amounts).astype(np.float32) * 255
    assert images.min() > 1
    drawn, strength = random.random((5, 6)), 0.12
    found = pixels(restained(planes(images), torch.from_numpy(mixing(drawn, strength)).float()))
    alpha, beta = 1 + strength * (2 * drawn[:, :3] - 1), strength * (2 * drawn[:, 3:] - 1)
    for one, scale, shift, image in zip(found, alpha, beta, images, strict=True):
        six = -np.log10(1e-6)  # scikit-image's amounts are shares of the density of a millionth of the light
        moved = rgb2hed(image / 255) * scale + shift / six
        assert moved.min() >= 0
        assert np.abs(one - image).max() > 3
        np.testing.assert_allclose(one, hed2rgb(moved) * 255, atol=0.02)


def test_a_stain_loses_nothing_and_leaves_bytes_in_range():
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    still = pixels(restained(planes(images), torch.from_numpy(mixing(np.full((2, 6), 0.5), 0.9)).float()))
    np.testing.assert_allclose(still, np.maximum(images, 1), atol=0.01)
    far = restained(planes(images), torch.from_numpy(mixing(np.random.default_rng(2).random((2, 6)), 1.0)).float())
    assert far.min() >= 0
    assert far.max() == 255  # some would be brighter than white


@pytest.mark.parametrize("strength", [0.1, 0.8])
def test_a_jitter_is_torchvisions(strength):
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    images[0, 0] = 77  # grey: of no hue
    images[0, 1] = [[255, 255, 0]]  # two largest channels
    images[0, 2] = 0
    changes = factors(random.random((6, 4)), strength)
    assert np.abs(changes[:, 3]).max() <= strength / 4
    found = jittered(planes(images), torch.from_numpy(changes).float())
    for one, image, (brightness, contrast, saturation, hue) in zip(found, images, changes, strict=True):
        expected = torch.from_numpy(image).permute(2, 0, 1) / 255
        expected = functional.adjust_brightness(expected, brightness)
        expected = functional.adjust_contrast(expected, contrast)
        expected = functional.adjust_saturation(expected, saturation)
        expected = functional.adjust_hue(expected, hue)
        torch.testing.assert_close(one, expected * 255, atol=0.02, rtol=0)


def test_nothing_is_copied_from_the_host_while_images_are_changed():
    images, jitter, stain, box = torch.rand(2, 3, 8, 8) * 255, torch.rand(2, 4), torch.rand(2, 12), torch.rand(2, 3)
    with Operations() as ran:
        zoomed(restained(jittered(images, jitter), stain), box)
    assert {"remainder", "baddbmm", "bmm"} <= ran.names
    assert not {"lift_fresh", "_to_copy"} & ran.names


def test_a_zoom_is_pillows_resize_of_a_box():
    random = np.random.default_rng(4)
    size = 40
    smooth = [random.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(6)]
    images = np.stack([np.asarray(Image.fromarray(each).resize((size, size), 3)) for each in smooth])
    drawn = random.random((6, 3))
    drawn[0], drawn[1] = (1, 0, 0), (1, 1, 1)  # corners, where the filter reaches beyond the image
    box = boxes(drawn, 0.4)
    found = pixels(zoomed(planes(images), torch.from_numpy(box).float()))
    for one, image, (side, left, top) in zip(found, images, box, strict=True):
        assert 0.6 <= side <= 1
        assert 0 <= left <= left + side <= 1 + 1e-12
        corners = tuple(size * each for each in (left, top, left + side, top + side))
        expected = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=corners)
        assert np.abs(one - np.asarray(expected)).max() < 1.6  # Pillow rounds to bytes, twice
        assert np.abs(one - image).max() > 10


def test_variant_0_is_the_image_and_the_others_are_the_same_in_every_batch():
    images = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    for training in (STAINED, replace(STAINED, stain="jitter"), replace(STAINED, stain="none", stain_strength=0.05)):
        make = Variants(training, 7, CPU)
        rows, variants = np.arange(100, 112), np.arange(12) % 3
        assert make(images, rows, np.zeros(12, int)) is images
        found = make(images, rows, variants)
        assert found.dtype == torch.float32
        assert torch.equal(found[variants == 0], images[variants == 0].float())
        again = Variants(training, 7, CPU)(images.flip(0)[:5], rows[::-1][:5], variants[::-1][:5])
        torch.testing.assert_close(again.flip(0), found[-5:], atol=1e-3, rtol=0)
        same = images[:1].expand(4, 16, 16, 3)  # one image in four places
        others = [
            make(same, np.full(4, 100), np.array([1, 1, 2, 2])),
            make(same, np.arange(4), np.full(4, 1)),
            Variants(training, 8, CPU)(same, np.full(4, 100), np.array([1, 1, 2, 2])),
        ]
        assert torch.equal(others[0][0], others[0][1])
        differ = (others[0][0], others[0][2], *others[1], others[2][0])
        assert all(not torch.allclose(a, b, atol=0.5) for i, a in enumerate(differ) for b in differ[:i])


@pytest.mark.parametrize(("stain", "how"), [("hed", "mixing"), ("jitter", "factors")])
def test_the_crop_of_a_variant_tells_nothing_of_its_stain(monkeypatch, stain, how):
    drawn = {}

    def remembered(name, made):
        return lambda numbers, strength: made(drawn.setdefault(name, numbers), strength)

    monkeypatch.setattr(augmentation, how, remembered("stain", getattr(augmentation, how)))
    monkeypatch.setattr(augmentation, "boxes", remembered("crop", boxes))
    images = 2_000
    Variants(replace(STAINED, stain=stain), 3, CPU)(
        torch.zeros(images, 2, 2, 3, dtype=torch.uint8), np.arange(images), np.ones(images, int)
    )
    together = np.corrcoef(np.concatenate((drawn["stain"], drawn["crop"]), axis=1), rowvar=False)
    assert np.abs(together - np.eye(len(together))).max() < 0.1


def test_every_view_of_every_variant_is_shown_once():
    shown = np.array([block_views(9, STAINED.all_views, 3, epoch) for epoch in range(24)])
    assert (np.sort(shown, axis=0) == np.arange(24)[:, None]).all()
    square, variant = Variants(STAINED, 0, CPU).split(np.arange(24))
    assert {*zip(square.tolist(), variant.tolist(), strict=True)} == {(s, v) for s in range(8) for v in range(3)}
    square, variant = Variants(replace(STAINED, views="none"), 0, CPU).split(np.arange(3))
    assert (square == 0).all()
    assert variant.tolist() == [0, 1, 2]


def test_a_feed_turns_changes_and_normalises(data):
    made = data.pixels(16, "none")
    rows = data.rows("train")[:5]
    made.make(rows)
    variants = Variants(STAINED, 2, CPU)
    model = build(toy.MODEL, 0)
    feed = Feed(made, model, 8, CPU, variants)
    views = np.array([0, 3, 8, 13, 23])
    stored = np.stack([made.gather(rows[[i]], None, np.empty((1, 16, 16, 3), np.uint8))[0] for i in range(5)])
    upright = np.stack([turned(stored[[i]], view % 8)[0] for i, view in enumerate(views)])
    expected = (variants(torch.from_numpy(upright), rows, views // 8) / 255 - 0.5) / 0.5
    torch.testing.assert_close(feed(rows, views), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=0)
    plain = Feed(made, model, 8, CPU)
    assert torch.equal(feed(rows), plain(rows))  # how images are evaluated
    assert torch.equal(feed(rows, views % 8), plain(rows, views % 8))


@pytest.mark.parametrize("stain", ["hed", "jitter"])
def test_stored_teacher_outputs_are_the_bits_of_live_ones(data, parent, stain):
    training = replace(STAINED, stain=stain)
    spec = toy.second(parent.spec, training=training)
    rows = data.rows("train", (100,))
    store, live = StoredOutputs(), frozen(parent, CPU)
    found = {}
    for epoch in (0, 5, 24, 0):  # epoch 24 shows the views of epoch 0
        views = block_views(blocks_of(len(rows)), 24, 0, epoch)
        found[epoch] = Teacher(parent, spec, data, store, CPU).of("train", rows, views)
        feed = Feed(data.pixels(16, "none"), live, BLOCK, CPU, Variants(training, spec.seed, CPU))
        for block, view in enumerate(views):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            with torch.no_grad():
                expected = live(feed(rows[part], np.full(len(rows[part]), view)))
            assert np.array_equal(found[epoch][part], expected.numpy())
    assert np.array_equal(found[0], found[24])
    assert not np.array_equal(found[0], found[5])


def test_outputs_are_kept_apart_by_what_decides_a_variant(data, parent):
    rows, outputs = data.rows("train", (100,)), StoredOutputs()
    views = np.full(blocks_of(len(rows)), 9)
    trainings = [STAINED, replace(STAINED, stain="jitter"), replace(STAINED, zoom=0.1), replace(STAINED, variants=4)]
    trainings += [replace(STAINED, stain_strength=0.2), replace(STAINED, views="none", variants=12)]
    specs = [toy.second(parent.spec, training=each) for each in trainings] + [toy.second(parent.spec, seed=1)]
    found = [Teacher(parent, each, data, outputs, CPU).of("train", rows, views) for each in specs]
    assert len(outputs._stored) == 7
    assert np.array_equal(found[0], found[3])  # one variant more leaves the others as they are
    others = [each for index, each in enumerate(found) if index != 3]
    assert all(not np.allclose(a, b, atol=1e-4) for i, a in enumerate(others) for b in others[:i])


def test_a_teacher_in_bfloat16_sees_variants_that_are_not_rounded(data, monkeypatch):
    spec = toy.first(training=STAINED, numeric=Numeric("bfloat16"))
    teacher_of = toy.untrained(spec)
    seen = []
    monkeypatch.setattr(numeric, "has_bfloat16", lambda device: True)
    original = Variants.__call__

    def watched(self, *arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return original(self, *arguments)

    monkeypatch.setattr(Variants, "__call__", watched)
    rows = data.rows("train", (100,))
    Teacher(teacher_of, toy.second(spec), data, StoredOutputs(), CPU).of(
        "train", rows, np.full(blocks_of(len(rows)), 9)
    )
    assert seen
    assert not any(seen)  # products of matrices would be rounded to it


class Stop:
    """Saves a stage after its first epoch."""

    every_seconds = 0.0

    def __init__(self):
        self.content = None

    def load(self):
        return self.content

    def save(self, content):
        self.content = content


def test_a_stage_with_variants_is_a_function_of_its_spec_and_resumes_bit_for_bit(data, parent):
    spec = toy.second(parent.spec)
    whole = train_stage(spec, data, parent)
    checkpoint = Stop()
    assert train_stage(spec, data, parent, checkpoint=checkpoint, on_epoch=lambda _: False) is None
    resumed = train_stage(spec, StageData(toy.prepared(), toy.DATA), parent, checkpoint=checkpoint)
    assert all(torch.equal(value, resumed.state[name]) for name, value in whole.state.items())
    assert np.array_equal(whole.predictions["probabilities"], resumed.predictions["probabilities"])
    assert whole.curves == resumed.curves
    plain = replace(spec, training=toy.TRAINING)
    assert plain.key != spec.key
    other = train_stage(plain, data, parent)
    assert not torch.equal(other.state["head.weight"], whole.state["head.weight"])
    passes = (whole.cost["teacher_computed"] - len(data.rows("validation", (100,)))) / len(data.rows("train", (100,)))
    assert passes == spec.training.teacher_passes == 2


def test_evaluation_sees_unchanged_images(data, parent):
    """A step of size zero leaves the initial weights, whatever is shown."""
    still = {"lr": 0.0, "weight_decay": 0.0}
    one = toy.first(training=replace(toy.TRAINING, **still))
    two = toy.first(training=replace(STAINED, **still))
    found = [train_stage(spec, data, None) for spec in (one, two)]
    assert np.array_equal(found[0].predictions["probabilities"], found[1].predictions["probabilities"])
    assert found[0].curves[0]["loss"] != found[1].curves[0]["loss"]
    taught = [train_stage(toy.second(spec, seed=0), data, Parent(spec, parent.state)) for spec in (one, two)]
    assert taught[0].agreement == taught[1].agreement


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"variants": 4}, "variants is 4, but stain is 'none' and zoom is 0"),
        ({"stain": "hed"}, "stain is 'hed', but variants is 1"),
        ({"zoom": 0.2}, "zoom is 0.2, but variants is 1"),
        ({"stain_strength": 0.2}, "stain_strength is 0.2, but stain is 'none'"),
        ({"stain_strength": 0.2, "variants": 2, "zoom": 0.1}, "stain_strength is 0.2, but stain is 'none'"),
    ],
)
def test_settings_that_change_nothing_are_refused(data, changes, told):
    with pytest.raises(UserError, match=told):
        train_stage(toy.first(training=replace(toy.TRAINING, **changes)), data, None)
    check_variants(replace(toy.TRAINING, **changes).settled())


def test_at_the_defaults_a_model_sees_what_it_saw_before_there_were_variants(data):
    variants = Variants(Training(), 3, CPU)
    assert (Training().all_views, variants.identity) == (8, ())
    made, rows = data.pixels(16, "none"), data.rows("train")[:20]
    made.make(rows)
    model = build(toy.MODEL, 0)
    views = np.arange(20) % 8
    assert torch.equal(Feed(made, model, 20, CPU, variants)(rows, views), Feed(made, model, 20, CPU)(rows, views))
