"""The sizes of batches that a compiled stage shows to its model: a few, with the same result."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.learning import compiling, warm
from kdtvit_ray.learning.compiling import in_multiples
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.stage_images import Shown
from kdtvit_ray.learning.warm import WarmModels
from tests.learning import toy

TRAINING = replace(toy.TRAINING, batch=40)


def split(validation):
    return StageData(toy.prepared(), replace(toy.DATA, validation=validation))


@pytest.fixture(scope="module")
def data():
    return split(0.15)


@pytest.fixture
def graphs(monkeypatch):
    """Every stage is compiled, but for the kernels; how many graphs have been made since the last question."""
    monkeypatch.setattr(warm, "repaid", lambda *_: True)
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()

    def made():
        count = counters["stats"]["unique_graphs"]
        counters.clear()
        return count

    yield made
    torch._dynamo.reset()


@given(st.integers(0, 300), st.integers(1, 16))
def test_a_batch_grows_to_a_multiple_by_less_than_a_quarter_or_not_at_all(count, multiple):
    images = np.arange(100, 100 + count)
    found = in_multiples(images, multiple)
    assert (found[:count] == images).all()
    assert set(found) == set(images)
    if len(found) != count:
        assert count < len(found) < 1.25 * count
        assert len(found) % multiple == 0
        assert len(found) - count < multiple


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixup": 0.4, "drop_path": 0.0},
        {"trainable_blocks": 1},
        {"rehearsal": 0.3, "rehearsal_loss": "distillation"},
        {"class_weights": "balanced", "ema": 0.9},
    ],
    ids=str,
)
@pytest.mark.usefixtures("graphs")
def test_images_that_are_shown_again_count_for_nothing(data, changes):
    spec, parent = toy.first(training=replace(TRAINING, **changes)) if "mixup" in changes else toy.first(), None
    if "mixup" not in changes:
        parent = toy.untrained(spec)
        others = {"earlier": (40,)} if "rehearsal" in changes else {}
        others |= {"warm": True, "model": toy.TEACHER} if "trainable_blocks" in changes else {}
        spec = toy.second(spec, training=replace(TRAINING, **changes), **others)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv2d, "forward", noting(seen, torch.nn.Conv2d.forward))
        ours = train_stage(spec, data, parent)
    assert seen
    assert {size % 8 for size in seen} == {0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm, "repaid", lambda *_: False)
        plain = train_stage(spec, data, parent)
    for name, value in plain.state.items():
        torch.testing.assert_close(ours.state[name], value, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(ours.curves, plain.curves, strict=True):
        for name, value in theirs.items():
            assert mine[name] == (value if value is None else pytest.approx(value, rel=1e-4)), name


def noting(seen, forward):
    def run(self, images):
        if self.training and torch.is_grad_enabled():  # not in the pass that only asks whether the model runs
            seen.append(len(images))
        return forward(self, images)

    return run


def test_stages_of_other_splits_find_the_code(graphs):
    models, sizes = WarmModels(), set()
    for number, validation in enumerate((0.15, 0.2, 0.35)):
        data = split(validation)
        spec = toy.first(training=TRAINING, data=data.spec)
        sizes |= {len(batch) for batch in Shown(spec, data).batches(0)}
        train_stage(spec, data, None, models=models)
        assert bool(graphs()) == (number == 0)
    assert sizes == {34, 35, 37, 38, 40}
