"""Pixels on the device: the same batches by every way, one copy a process, room for it, and none.

All of it runs with the CPU as the device. What needs CUDA does not run here: pinned memory, copies that nobody waits
for, and what torch tells of a real GPU's memory; figures and events are faked.
"""

import gc
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdtvit_ray.data.batches import Pixels, StageData, turned
from kdtvit_ray.data.prepared import open_prepared
from kdtvit_ray.errors import OutOfMemory
from kdtvit_ray.learning import device_pixels, stage
from kdtvit_ray.learning.augmentation import Variants
from kdtvit_ray.learning.device_pixels import COPIES, DeviceCopies, DevicePixels
from kdtvit_ray.learning.feed import Feed, HostPixels
from kdtvit_ray.learning.memory_retry import else_on_less
from kdtvit_ray.learning.models import build, mean_std
from kdtvit_ray.learning.numeric import free_memory
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.team import Team
from kdtvit_ray.learning.upload import Buffers
from kdtvit_ray.recipe import DataSpec
from tests.learning import toy

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
VARIED = replace(toy.TRAINING, views="d4", stain="hed", stain_strength=0.1, variants=3, zoom=0.3)


@pytest.fixture
def there(monkeypatch):
    """Let pixels lie on the CPU as if it were a GPU with room, and forget them afterwards."""
    monkeypatch.setattr(device_pixels, "free_memory", lambda _: 1 << 30)
    yield
    COPIES.clear()


@pytest.fixture(scope="module")
def prepared():
    return toy.prepared()


@pytest.fixture(params=["in memory", "in memory, resized", "on disk", "on disk, resized"])
def pixels(request, data):
    """Pixels of a set, some of them made."""
    on_disk = open_prepared(data)
    images = on_disk.images if "disk" in request.param else np.array(on_disk.images)
    found = Pixels(images, 16 if "resized" in request.param else 24, fingerprint=on_disk.fingerprint)
    found.make(np.array([3, 4, 5, 9, 30]))
    assert found.made.sum() == (5 if request.param == "in memory, resized" else len(images))
    return found


def test_batches_are_the_same_bits_by_every_way(pixels, there, monkeypatch):
    monkeypatch.setattr(device_pixels, "PIECE", 2 * 3 * pixels.size**2)  # two images
    model = build(replace(toy.MODEL, image_size=pixels.size), 0)
    variants = Variants(VARIED, 5, CPU)
    on_device = [Feed(pixels, model, 8, CPU, each) for each in (None, variants)]
    random = np.random.default_rng(0)
    made = np.array([3, 4, 5, 9, 30])
    for _ in range(2):
        rows = random.choice(made, 8)
        plain, squares, varied = np.zeros(8, int), random.integers(0, 8, 8), random.integers(0, 24, 8)
        assert len(np.unique(squares)) > 2
        stored = pixels.gather(rows, None, np.empty((8, pixels.size, pixels.size, 3), np.uint8)).copy()
        mean, std = (np.array(each, np.float32)[:, None, None] for each in mean_std(model))
        for views in (None, plain, squares):
            square = np.concatenate([turned(stored[at, None], 0 if views is None else views[at]) for at in range(8)])
            found = on_device[0](rows, views)
            expected = (square.transpose(0, 3, 1, 2) / 255 - mean) / std
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found, _by_host(pixels, model, None)(rows, views))
        for views in (None, plain, squares, varied):
            assert torch.equal(on_device[1](rows, views), _by_host(pixels, model, variants)(rows, views))
        pixels.make(np.arange(40))  # what another stage asks for comes later
        made = np.arange(40)
    (copy,) = COPIES._kept
    assert set(copy.users) == set(on_device)


def _by_host(pixels, model, variants):
    with COPIES.closed():
        feed = Feed(pixels, model, 8, CPU, variants)
        assert isinstance(feed._stored, HostPixels)
        return feed


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 7)), max_size=20))
def test_gathering_on_the_device_is_turning_each_image(picked):
    images = np.random.default_rng(0).integers(0, 256, (12, 9, 9, 3), dtype=np.uint8)
    rows, views = np.array(picked, np.int64).reshape(-1, 2).T
    stored = Pixels(images, 9)
    found = DevicePixels(stored, CPU).gather(rows, views).numpy()
    expected = [turned(images[row][None], view) for row, view in picked]
    assert np.array_equal(found, np.concatenate([images[:0], *expected]))
    assert np.array_equal(DevicePixels(stored, CPU).gather(rows, None).numpy(), images[rows])


def test_folds_of_a_set_share_one_copy(prepared, there):
    spec = replace(toy.DATA, fingerprint=prepared.fingerprint)
    folds = [StageData(prepared, spec)]
    opened_again = SimpleNamespace(**{**vars(prepared), "images": prepared.images.copy()})
    folds.append(StageData(opened_again, replace(spec, fold=2), folds))
    other = toy.prepared(seed=1)
    apart = StageData(other, DataSpec(other.fingerprint, folds=3, validation=0.3), folds)
    users = [Feed.__new__(Feed) for _ in range(4)]
    copies = [
        COPIES.of(each.pixels(size, "none"), CPU, user)
        for each, size, user in zip((*folds, apart, folds[0]), (16, 16, 16, 12), users, strict=True)
    ]
    assert copies[0] is copies[1]
    assert len(set(map(id, copies))) == len(COPIES._kept) == 3


def test_the_least_recently_used_copies_make_room(monkeypatch):
    total, kept = 4 * 1000, DeviceCopies()
    monkeypatch.setattr(device_pixels, "free_memory", lambda _: total - sum(each.nbytes for each in kept._kept))
    sets = [Pixels(np.zeros((count, 5, 5, 3), np.uint8), 5) for count in (4, 4, 4, 10, 14)]  # 300, 750, 1050 bytes

    def lying():
        return [sets.index(each.pixels()) for each in kept._kept]

    user = Feed.__new__(Feed)
    for each in sets[:3]:
        kept.of(each, CPU, Feed.__new__(Feed))
    assert lying() == [0, 1, 2]
    first = kept.of(sets[0], CPU, Feed.__new__(Feed))
    assert lying() == [1, 2, 0]
    kept.of(sets[3], CPU, user)
    assert lying() == [3], "750 and 300 bytes are more than a quarter of 4000"
    del first
    assert kept.of(sets[1], CPU, Feed.__new__(Feed)) is None
    assert lying() == [3], "what is in use stays"
    del user
    assert kept.of(sets[4], CPU, Feed.__new__(Feed)) is None
    assert lying() == [3], "nothing goes in vain"
    kept.of(sets[1], CPU, Feed.__new__(Feed))
    assert lying() == [1]
    sets[1] = sets[0]
    kept.of(sets[2], CPU, Feed.__new__(Feed))
    assert lying() == [2], "pixels that are gone have no copy"
    assert kept.clear()
    assert not kept.clear()


@pytest.mark.parametrize(
    ("share", "free", "reserved", "allocated", "expected"),
    [
        (1.0, 70, 6, 4, 72),  # nobody else is there
        (0.25, 70, 6, 4, 16),  # a quarter of 80, of which 4 are used
        (0.25, 5, 6, 4, 7),  # others have taken more than their share
        (0.25, 50, 21, 21, 0),
    ],
)
def test_memory_of_a_gpu_that_a_process_can_still_have(monkeypatch, share, free, reserved, allocated, expected):
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: {GPU: share}[device])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {GPU: (free, 80)}[device])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: {GPU: reserved}[device])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: {GPU: allocated}[device])
    assert free_memory(GPU) == expected
    assert free_memory(CPU) == 0


def test_stages_on_the_device_are_the_stages_by_the_host(prepared, there, monkeypatch):
    first = toy.first(training=replace(VARIED, epochs=2), model=toy.TEACHER)
    second = toy.second(first, warm=False)
    with COPIES.closed():
        data = StageData(prepared, toy.DATA)
        chain = [train_stage(first, data, None)]
        parent = stage.Parent(first, chain[0].state)
        chain.append(train_stage(second, data, parent))
    monkeypatch.setattr(HostPixels, "gather", None)
    data = StageData(prepared, toy.DATA)
    gc.collect()
    gc.disable()
    try:
        again = [train_stage(first, data, None), train_stage(second, data, parent)]
        (copy,) = COPIES._kept
        assert not copy.users, "a stage that has ended keeps no copy in use"
    finally:
        gc.enable()
    for one, two in zip(chain, again, strict=True):
        assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())
        assert np.array_equal(one.predictions["probabilities"], two.predictions["probabilities"])
        assert one.curves == two.curves


def test_pixels_that_find_no_room_are_gathered_by_the_host(prepared, there, monkeypatch, caplog):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    pixels = Pixels(prepared.images, 20)
    monkeypatch.setattr(DevicePixels, "_bring", full)
    with caplog.at_level(logging.WARNING):
        feed = Feed(pixels, build(replace(toy.MODEL, image_size=20), 0), 4, CPU)
        assert feed(np.arange(4)).shape == (4, 3, 20, 20)
    assert isinstance(feed._stored, HostPixels)
    assert f"{len(prepared.images)} images of 20 x 20 pixels find no room on cpu" in caplog.text
    assert not COPIES._kept
    monkeypatch.setattr(DevicePixels, "_bring", lambda *_: torch.zeros(2).view(3))
    with pytest.raises(RuntimeError, match="shape"):
        Feed(pixels, build(replace(toy.MODEL, image_size=20), 0), 4, CPU)(np.arange(4))


def test_a_stage_that_lacks_memory_beside_its_pixels_is_trained_without_them(prepared, there, monkeypatch, caplog):
    data, spec = StageData(prepared, toy.DATA), toy.first(training=replace(toy.TRAINING, epochs=1, warmup_epochs=0))
    tried, train = [], stage._Run._train_epoch

    def tight(run, model):
        train(run, model)
        tried.append(run.feed._stored.__class__)
        if COPIES._kept:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stage._Run, "_train_epoch", tight)
    found = train_stage(spec, data, None)
    assert tried == [DevicePixels, HostPixels]
    assert "Out of memory on cpu" in caplog.text
    assert "once more, with the pixels in the host's memory" in caplog.text
    monkeypatch.undo()
    assert all(torch.equal(value, found.state[name]) for name, value in train_stage(spec, data, None).state.items())


def test_memory_that_is_lacking_without_pixels_or_in_a_team_is_told(there):
    tried = []

    @else_on_less
    def train(number, *, team=None):
        tried.append(number)
        raise OutOfMemory("full")

    with pytest.raises(OutOfMemory):
        train(1)
    COPIES.of(Pixels(np.zeros((4, 5, 5, 3), np.uint8), 5), CPU, Feed.__new__(Feed))
    with pytest.raises(OutOfMemory):
        train(2, team=Team(1, 2))
    with pytest.raises(OutOfMemory):
        train(3)
    assert tried == [1, 2, 3, 3]


def test_a_buffer_is_filled_again_when_its_copy_has_arrived(monkeypatch):
    happened, empty = [], torch.empty

    class Event:
        def __init__(self):
            self.name = f"event {sum(isinstance(each, Event) for each in happened)}"
            happened.append(self)

        def record(self, stream):
            happened.append((self.name, "recorded in", stream))

        def synchronize(self):
            happened.append((self.name, "waited for"))

    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **options: empty(*size, **options))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    buffers, used = Buffers((2,), GPU), []
    del happened[:]
    for _ in range(3):
        used.append(buffers.next().data_ptr())
        buffers.sent()
    assert used[0] == used[2] != used[1]
    names = ("event 1", "event 0", "event 1")
    assert happened == [each for name in names for each in ((name, "waited for"), (name, "recorded in", GPU))]
