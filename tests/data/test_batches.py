from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdtvit_ray.data.batches import (
    Pixels,
    StageData,
    block_views,
    epoch_batches,
    hashed,
    mixed_batches,
    share,
    shuffled,
    turned,
    uniform,
)
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import DataSpec
from tests.learning import toy

seeds = st.integers(0, 2**63)


@given(st.integers(1, 400), st.integers(1, 90), seeds, st.integers(0, 50), st.integers(1, 5))
def test_an_epoch_holds_each_image_once_in_nearly_equal_batches_whatever_the_workers(images, batch, seed, epoch, world):
    batches = epoch_batches(images, batch, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(images))
    sizes = [len(each) for each in batches]
    assert len(batches) == -(-images // batch)
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    for each in batches:
        assert np.array_equal(np.concatenate([share(each, rank, world) for rank in range(world)]), each)


def test_epochs_and_seeds_shuffle_differently_and_repeatably():
    orders = [np.concatenate(epoch_batches(100, 10, seed, epoch)).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(each) for each in orders}) == 4
    assert orders[0] == np.concatenate(epoch_batches(100, 33, 0, 0)).tolist()


def test_rehearsed_images_are_shuffled_by_the_seed_and_a_stages_own_by_seed_and_epoch():
    rows = np.arange(100)
    assert np.array_equal(np.sort(shuffled(rows, 1)), rows)
    assert len({tuple(shuffled(rows, seed).tolist()) for seed in range(4)}) == 4
    orders = [np.concatenate(mixed_batches(100, 40, 30, 13, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(each[each < 100].tolist()) for each in orders}) == 4


@given(st.integers(1, 40), seeds, st.integers(0, 5))
def test_eight_epochs_show_every_block_in_every_view_once(blocks, seed, start):
    shown = np.array([block_views(blocks, 8, seed, 8 * start + epoch) for epoch in range(8)])
    assert (np.sort(shown, axis=0) == np.arange(8)[:, None]).all()
    assert (block_views(blocks, 1, seed, start) == 0).all()


def test_blocks_take_their_views_in_different_orders():
    assert len(set(block_views(64, 8, 0, 0).tolist())) == 8


def test_keyed_numbers_are_uniform_and_depend_on_every_key():
    drawn = uniform(1, np.arange(200)[:, None], np.arange(200))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, 50, (0, 1))
    assert ((counts - 800) ** 2 / 800).sum() < 85.4  # chi-squared with 49 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.25
    assert len({int(hashed(*keys)) for keys in [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1, 3)]}) == 5
    assert hashed(-1, 2**63) == hashed(-1, 2**63)


def test_the_eight_views_are_the_symmetries_of_the_square():
    square = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(1, 12, 12, 3)
    seen = {turned(square, view).tobytes() for view in range(8)}
    assert len(seen) == 8
    assert np.array_equal(turned(square, 0), square)
    assert np.array_equal(turned(square, 1)[0], np.rot90(square[0]))
    assert np.array_equal(turned(square, 4)[0], np.fliplr(square[0]))
    assert {turned(turned(square, a), b).tobytes() for a in range(8) for b in range(8)} == seen


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 24, 24, 3), dtype=np.uint8)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 7)), min_size=1, max_size=20))
def test_gathering_is_turning_each_image(picked):
    images = np.random.default_rng(0).integers(0, 256, (12, 9, 9, 3), dtype=np.uint8)
    images.flags.writeable = False
    rows, views = (np.array(each) for each in zip(*picked, strict=True))
    out = np.full((20, 9, 9, 3), 7, np.uint8)
    found = Pixels(images, 9).gather(rows, views, out)
    assert np.array_equal(found, np.concatenate([turned(images[row][None], view) for row, view in picked]))
    assert np.shares_memory(found, out)
    assert np.array_equal(Pixels(images, 9).gather(rows, None, out), images[rows])


def test_pixels_are_resized_with_antialiasing_once(images):
    pixels = Pixels(images, 8)
    rows = np.array([3, 5, 3])
    pixels.make(rows)
    images[:] = 0  # what was made is not made again
    pixels.make(rows)
    found = pixels.gather(rows, None, np.empty((3, 8, 8, 3), np.uint8))
    stored = np.random.default_rng(0).integers(0, 256, (12, 24, 24, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(stored[3]).resize((8, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(found[0], expected)
    assert found[0].std() < stored[3].std() * 0.7  # noise is averaged, not picked


def test_a_centre_crop_keeps_pixels(images):
    pixels = Pixels(images, 10, "centre")
    pixels.make(np.array([4]))
    found = pixels.gather(np.array([4]), None, np.empty((1, 10, 10, 3), np.uint8))
    assert np.array_equal(found[0], images[4, 7:17, 7:17])


def test_a_size_above_the_stored_one_is_refused(images):
    with pytest.raises(UserError, match="image_size 32 is larger than the prepared images"):
        Pixels(images, 32)


def test_pixels_are_shared_by_the_splits_of_one_prepared_set_alone():
    first = StageData(toy.prepared(), toy.DATA)
    other_split = replace(toy.DATA, seed=1)
    same, another = (StageData(toy.prepared(seed=seed), other_split, [first]) for seed in (0, 1))
    assert same.pixels(16, "none") is first.pixels(16, "none")
    assert another.pixels(16, "none") is not first.pixels(16, "none")
    assert len({each.identity for each in (first, same, another)}) == 3
    assert StageData(toy.prepared(), other_split).identity == same.identity


def test_another_prepared_set_is_refused():
    with pytest.raises(UserError, match="fingerprint abc"):
        StageData(SimpleNamespace(fingerprint="abc", path="here", table=None, images=None), DataSpec("def"))
