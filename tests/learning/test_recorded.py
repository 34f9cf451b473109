"""Steps that are recorded and played again.

There is no GPU here, so a recording is imitated: every operation of torch is noted with the tensors that it reads and
writes, and playing it runs these operations on these tensors again. No Python of the step runs, as with a CUDA graph.
"""

import gc
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.learning import data_parallel, recorded, stage
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.recorded import RecordedSteps, frozen_on, no_recordings, steps_on
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.teacher import Parent
from kdtvit_ray.learning.warm import WarmModels
from tests.learning import toy

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """Operations in the order in which they ran. Recording runs them as well, so the first `replay` does nothing."""

    def __init__(self):
        super().__init__()
        self.operations, self.fresh = [], True

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        found = function(*arguments, **(named or {}))
        self.operations.append((function, arguments, named or {}, found))
        return found

    @torch.no_grad()
    def replay(self):
        if self.fresh:
            self.fresh = False
            return
        for function, arguments, named, found in self.operations:
            again = function(*arguments, **named)
            if function._schema.is_mutable or torch.Tag.inplace_view in function.tags:
                continue
            for place, value in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class Imitated(RecordedSteps):
    """Recorded steps on the CPU."""

    played = 0

    def __call__(self, given, batch):
        return self._run(given, batch)

    def _record(self, given, batch):
        places, tape = {name: each.clone() for name, each in given.items()}, Tape()
        with tape:
            found = self._step(places, batch)
        return recorded._Recording(tape, places, found)

    def _run(self, given, batch):
        played = any(self._recordings.values())
        Imitated.played += played
        return super()._run(given, batch)


def as_tensors(optimizer, rates):
    """The rates, as on a GPU: a number would be that of the recorded step for ever."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


@contextmanager
def recording(made=None):
    """Stages record their steps; weak references to what they make are appended to `made`."""

    def noted(step, device, buffers=()):
        if recorded._forbidden:
            return step
        found = Imitated(step, device, buffers)
        if made is not None:
            made.append(weakref.ref(found))
        return found

    Imitated.played = 0
    with ExitStack() as patched:
        for module in (stage, data_parallel, recorded):
            patched.enter_context(patch.object(module, "steps_on", noted))
        patched.enter_context(patch.object(recorded, "REPAID_FROM", 0))
        patched.enter_context(patch.object(stage, "set_rates", as_tensors))
        yield


@pytest.fixture
def imitated():
    with recording():
        yield


@pytest.fixture(scope="module")
def data():
    return StageData(toy.prepared(images=2, patients=4), toy.DATA)


@pytest.mark.parametrize(
    ("changes", "loss"),
    [
        ({}, None),
        ({"drop_path": 0.0, "clip_grad": 0.0, "class_weights": "balanced"}, None),
        ({"mixup": 0.4, "layer_decay": 0.6, "head_lr": 3.0}, None),
        ({"ema": 0.9}, "dkd"),
        ({"trainable_blocks": 1}, "dist"),
        ({"trainable_blocks": 0, "drop_path": 0.0}, "kd"),
        ({"lora_rank": 2}, "logit-std"),
        ({"rehearsal": 0.5, "rehearsal_loss": "distillation"}, "kd"),
    ],
)
def test_a_stage_of_recorded_steps_is_the_stage(data, changes, loss, request):
    spec, parent = toy.first(training=replace(toy.TRAINING, epochs=3, batch=5)), None
    if loss:
        parent = Parent(spec, toy.untrained(spec).state)
        spec = toy.second(spec, loss=loss, model=spec.model, warm=True)
    earlier = (40,) if "rehearsal" in changes else ()
    spec = replace(spec, training=replace(spec.training, **changes), earlier=earlier)
    plain = train_stage(spec, data, parent)
    request.getfixturevalue("imitated")
    again = train_stage(spec, data, parent)
    assert Imitated.played > 3
    assert again.curves == plain.curves
    assert all(torch.equal(value, plain.state[name]) for name, value in again.state.items())
    assert np.array_equal(again.predictions["probabilities"], plain.predictions["probabilities"])


def test_recordings_and_their_memory_go_with_their_stage(data):
    made, models = [], WarmModels()
    gc.collect()
    gc.disable()  # nothing may have to wait for it
    try:
        with recording(made):
            train_stage(toy.first(training=replace(toy.TRAINING, batch=5)), data, None, models=models)
            train_stage(toy.first(training=replace(toy.TRAINING, batch=5)), data, None, on_epoch=lambda _: False)
        assert [each() for each in made] == [None] * 3, "those of the steps of both, and of one evaluation"
    finally:
        gc.enable()


def test_each_shape_is_run_once_then_recorded_and_played():
    ran = []
    weight = torch.zeros(2)

    def step(given, batch):
        ran.append((len(given["x"]), batch))
        weight.add_(given["x"].sum(0) / batch)
        return weight * given["rate"]

    steps, rows = Imitated(step, CPU), torch.arange(40.0).view(20, 2)
    expected = torch.zeros(2)
    for count, (start, size, batch) in enumerate(
        [(0, 3, 3), (3, 2, 2), (5, 3, 3), (8, 3, 3), (11, 2, 2), (13, 3, 6), (0, 3, 3)]
    ):
        x, rate = rows[start : start + size], torch.tensor(float(count))
        found = steps({"x": x, "rate": rate}, batch).clone()
        expected = expected + x.sum(0) / batch
        assert torch.equal(found, expected * rate)
        assert torch.equal(weight, expected)
    assert ran == [(3, 3), (2, 2), (3, 3), (2, 2), (3, 6)], "run once and recorded once for each shape and batch"


def test_a_step_that_cannot_be_recorded_is_run_each_time(monkeypatch, caplog):
    ran = []

    def refuse(self, given, batch):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Imitated, "_record", refuse)
    steps = Imitated(lambda given, batch: ran.append(batch) or given["x"], CPU)
    for _ in range(3):
        steps({"x": torch.zeros(1)}, 1)
    assert ran == [1, 1, 1]
    (said,) = caplog.messages
    assert said.endswith("CUDA error: operation not permitted when stream is capturing")


def test_without_memory_for_a_recording_all_are_given_up_and_steps_are_launched(caplog):
    full = []

    class Small(Imitated):
        def _record(self, given, batch):
            if full:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._record(given, batch)

    runs, steps = [], Small(lambda given, batch: runs.append(batch) or given["x"] + 1, CPU)
    one, two = {"x": torch.zeros(1)}, {"x": torch.zeros(2)}
    for given in (one, one, one, two):
        assert torch.equal(steps(given, 1), given["x"] + 1)
    assert len(runs) == 3, "the third was played"
    recording = weakref.ref(next(each for each in steps._recordings.values() if each))
    full.append(True)
    for given in (two, two, one, one):
        assert torch.equal(steps(given, 1), given["x"] + 1)
    assert len(runs) == 7
    assert recording() is None
    (said,) = caplog.messages
    assert said.endswith("launched anew each time: CUDA out of memory")


def test_without_memory_beside_a_recording_a_step_of_new_shapes_is_begun_anew_without_it(caplog):
    """As for the last, smaller batches of an epoch, when the larger ones are recorded already."""
    mean, weight, tight = torch.zeros(2), torch.zeros(2), []

    def step(given, batch):
        mean.mul_(0.5).add_(given["x"].mean(0))  # running statistics of a forward pass
        if tight and any(steps._recordings.values()):
            raise torch.OutOfMemoryError("CUDA out of memory")
        weight.add_(given["x"].sum(0) + mean)
        return weight * 1

    steps, rows = Imitated(step, CPU, (mean,)), torch.arange(24.0).view(12, 2)
    own_mean, own_weight = torch.zeros(2), torch.zeros(2)
    for start, size in ((0, 3), (3, 3), (6, 3), (9, 2), (0, 2), (4, 3), (2, 2)):
        if size == 2:
            tight.append(True)
        x = rows[start : start + size]
        own_mean = own_mean * 0.5 + x.mean(0)
        own_weight = own_weight + x.sum(0) + own_mean
        assert torch.equal(steps({"x": x}, size), own_weight)
    assert not steps._recordings
    (said,) = caplog.messages
    assert said.endswith("launched anew each time: CUDA out of memory")


def test_memory_that_is_lacking_without_a_recording_is_told(caplog):
    def full(given, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Imitated(full, CPU)({"x": torch.zeros(1)}, 1)
    assert not caplog.messages


class Allocator:
    """The part of torch's that a failed recording leaves in disorder: in `underway` are the pools that are recorded
    into, and until that is none, nothing is given back (torch up to 2.12)."""

    def __init__(self, monkeypatch, broken):
        self.broken, self.underway, self.uses, self.emptied = broken, [], {}, 0
        graphs = torch.cuda
        monkeypatch.setattr(graphs, "CUDAGraph", lambda: self)
        monkeypatch.setattr(graphs, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(graphs, "graph", self.recording)
        monkeypatch.setattr(graphs, "is_initialized", lambda: True)
        monkeypatch.setattr(graphs, "empty_cache", self.empty)
        monkeypatch.setattr(recorded, "_stream", lambda device: None)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)

    @contextmanager
    def recording(self, graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.underway.append(pool)
        self.uses[pool] = self.uses.get(pool, 0) + 1
        try:
            yield
        finally:
            if self.broken == "ends":
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.end(0, pool)
        if self.broken == "instantiates":  # when it has ended; the graph gives its pool up itself
            self.release(0, pool)
            raise RuntimeError("CUDA error: out of memory")

    def end(self, device, pool):
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def release(self, device, pool):
        self.uses[pool] -= 1

    def empty(self):
        if self.underway:
            raise RuntimeError("INTERNAL ASSERT FAILED: captures_underway.empty()")
        self.emptied += 1

    def replay(self):
        pass


@pytest.mark.parametrize("broken", ["ends", "instantiates"])
def test_a_recording_that_fails_leaves_the_memory_of_the_process_in_order(monkeypatch, broken):
    torch_s = Allocator(monkeypatch, broken)
    steps, one = RecordedSteps(lambda given, batch: given["x"] + 1, torch.device("cuda", 0)), {"x": torch.zeros(1)}
    for _ in range(3):
        assert torch.equal(steps._run(one, 1), one["x"] + 1)
    assert (torch_s.underway, torch_s.uses, torch_s.emptied) == ([], {(0, 7): 0}, 1)
    torch_s.broken = ""
    again = RecordedSteps(lambda given, batch: given["x"] + 1, torch.device("cuda", 0))
    for size in (1, 1, 2, 2, 2):
        again._run({"x": torch.zeros(size)}, 1)
    assert torch_s.uses == {(0, 7): 2}, "two recordings share a pool"
    torch_s.broken = "ends"
    for _ in range(2):
        again._run({"x": torch.zeros(3)}, 1)
    assert torch_s.uses == {(0, 7): 2}, "theirs; they give it up as they go"
    assert not torch_s.underway
    assert not again._recordings


def test_memory_that_torch_cannot_give_back_does_not_end_a_stage(monkeypatch):
    torch_s = Allocator(monkeypatch, "ends")
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    steps, one = RecordedSteps(lambda given, batch: given["x"] + 1, torch.device("cuda", 0)), {"x": torch.zeros(1)}
    for _ in range(3):
        assert torch.equal(steps._run(one, 1), one["x"] + 1)
    assert torch_s.underway


def test_few_batches_of_a_frozen_model_are_not_recorded():
    made = []
    with patch.object(recorded, "steps_on", lambda step, device: made.append(step) or step):
        for batches in (recorded.REPAID_FROM - 1, recorded.REPAID_FROM):
            forward = frozen_on(lambda inputs: inputs * 2, toy.NUMERIC, CPU, batches)
            assert torch.equal(forward(torch.ones(2)), torch.full((2,), 2.0))
    assert len(made) == 1


def test_a_frozen_model_is_recorded_and_what_it_yields_is_its_own(data):
    made, model = [], build(toy.MODEL, 0).eval()
    images = torch.rand(5, 4, 3, 16, 16)
    with recording(made):
        forward = frozen_on(model, toy.NUMERIC, CPU)
        for batch in images:
            assert torch.equal(forward(batch), model(batch))
        assert Imitated.played == 3
    del forward
    assert made[0]() is None


def test_outputs_of_teachers_and_predictions_are_recorded_and_go_with_their_stage(data):
    spec, made = toy.first(training=replace(toy.TRAINING, epochs=3)), []
    parent = Parent(spec, toy.untrained(spec).state)
    gc.collect()
    gc.disable()
    try:
        with recording(made):
            train_stage(toy.second(spec, model=spec.model), data, parent)
        assert [each() for each in made] == [None] * 3, "those of the steps, of the teacher, of the evaluation"
    finally:
        gc.enable()


def test_steps_are_recorded_on_a_gpu_alone(monkeypatch):
    monkeypatch.setattr(recorded, "RecordedSteps", lambda step, device, buffers: "recorded")
    assert steps_on(len, CPU) is len
    assert steps_on(len, torch.device("cuda", 0)) == "recorded"
    with no_recordings():
        assert steps_on(len, torch.device("cuda", 0)) is len
    assert steps_on(len, torch.device("cuda", 0)) == "recorded"
