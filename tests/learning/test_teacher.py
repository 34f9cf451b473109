from dataclasses import replace

import numpy as np
import pytest
import torch

from kdtvit_ray.data.batches import BLOCK, StageData, block_views, blocks_of
from kdtvit_ray.learning.outputs import StoredOutputs
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.teacher import Teacher, frozen
from tests.learning import toy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return StageData(toy.prepared(), toy.DATA)


@pytest.fixture(scope="module")
def parent():
    return toy.untrained(toy.first())


def test_a_teacher_is_frozen_in_eval_mode_and_owns_its_memory(data, parent):
    model = frozen(parent, CPU)
    assert not any(module.training for module in model.modules())
    assert not any(each.requires_grad for each in model.parameters())
    owned = {each.data_ptr() for each in model.state_dict().values()}
    assert not owned & {each.data_ptr() for each in parent.state.values()}
    teacher = Teacher(parent, toy.second(parent.spec), data, StoredOutputs(), CPU)
    teacher.of("train", data.rows("train", (100,)), np.zeros(blocks_of(len(data.rows("train", (100,)))), int))
    assert teacher.model is not None
    assert not teacher.model.training


def test_stored_outputs_are_the_bits_that_would_be_computed_now(data, parent):
    rows = data.rows("train", (100,))
    blocks = blocks_of(len(rows))
    assert blocks >= 2
    spec = toy.second(parent.spec)
    kept = StoredOutputs()
    stores = [kept, kept, StoredOutputs()]
    epochs = {}
    for epoch in (0, 3, 8, 0):  # epoch 8 shows the views of epoch 0
        views = block_views(blocks, 8, 0, epoch)
        found = [Teacher(parent, spec, data, store, CPU).of("train", rows, views) for store in stores]
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], found[2])
        epochs[epoch] = found[0]
    assert np.array_equal(epochs[0], epochs[8])
    assert not np.array_equal(epochs[0][:BLOCK], epochs[3][:BLOCK])


def test_siblings_share_outputs_and_get_the_same_result(data, parent):
    outputs = StoredOutputs()
    specs = [toy.second(parent.spec, alpha=alpha, seed=3) for alpha in (0.3, 0.9)]
    shared = [train_stage(spec, data, parent, outputs=outputs) for spec in specs]
    alone = [train_stage(spec, data, parent) for spec in specs]
    for one, two in zip(shared, alone, strict=True):
        assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())
        assert one.curves == two.curves
    teacher = Teacher(parent, specs[1], data, outputs, CPU)
    rows = data.rows("train", (100,))
    teacher.of("train", rows, block_views(blocks_of(len(rows)), 8, 3, 1))
    assert teacher.model is None  # nothing was missing
    images = len(data.rows("train", specs[0].magnifications)) * specs[0].training.epochs
    validation = len(data.rows("validation", specs[0].magnifications))
    first, second = (each.cost for each in shared)
    assert first["teacher_asked"] == second["teacher_asked"] == images + validation
    assert 0 < first["teacher_computed"] <= first["teacher_asked"]
    assert second["teacher_computed"] == 0
    assert [each.cost["teacher_computed"] for each in alone] == [first["teacher_computed"]] * 2


def test_outputs_are_kept_apart_by_teacher_data_and_crop(data, parent):
    outputs = StoredOutputs()
    rows = data.rows("train", (100,))
    views = np.zeros(blocks_of(len(rows)), int)
    other = toy.untrained(toy.first(seed=1))
    spec = toy.second(parent.spec)
    cropped = replace(spec, training=replace(spec.training, crop="centre"))
    found = [
        Teacher(parent, spec, data, outputs, CPU).of("train", rows, views),
        Teacher(other, toy.second(other.spec), data, outputs, CPU).of("validation", rows, views),
        Teacher(parent, toy.second(parent.spec, (40,)), data, outputs, CPU).of(
            "train", data.rows("train", (40,)), views
        ),
        Teacher(parent, cropped, data, outputs, CPU).of("train", rows, views),
    ]
    assert len(outputs._stored) == 4
    assert not np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[3])


def test_a_teacher_sees_images_of_its_own_size(data, parent):
    rows = data.rows("train", (100,))
    views = np.zeros(blocks_of(len(rows)), int)
    small = replace(toy.MODEL, image_size=8)
    found = [
        Teacher(parent, toy.second(parent.spec, model=model), data, StoredOutputs(), CPU).of("train", rows, views)
        for model in (toy.MODEL, small)
    ]
    assert np.array_equal(found[0], found[1])


def test_the_least_recently_used_teacher_goes_first():
    outputs = StoredOutputs(limit_bytes=3 * 8 * 10 * 8 * 4)
    for key in "abc":
        outputs.of(key, 10, 8).values[:] = ord(key)
    outputs.of("a", 10, 8)
    outputs.of("d", 10, 8)
    assert list(outputs._stored) == ["c", "a", "d"]
    assert outputs.of("a", 10, 8).values[0, 0, 0] == ord("a")
    outputs.of("large", 1000, 8)
    assert list(outputs._stored) == ["large"]
