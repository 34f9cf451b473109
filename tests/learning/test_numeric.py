"""What decides the last bits: determinism, compiled code; and which device a worker may use, and how much of it."""

import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from kdtvit_ray.data.batches import StageData, epoch_batches
from kdtvit_ray.errors import NodeFault, UserError
from kdtvit_ray.learning import compiling, numeric, stage, warm
from kdtvit_ray.learning.compiling import CompiledModels
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.numeric import (
    cap_memory,
    empty_caches,
    lacks_memory,
    numeric_mode,
    pick_device,
    reserved_device,
)
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.warm import WarmModels
from kdtvit_ray.recipe import Numeric
from tests.learning import toy

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def data():
    return StageData(toy.prepared(), toy.DATA)


def kernels():
    """Whether attention may use flash, memory-efficient, cuDNN's and plain kernels."""
    allowed = torch.backends.cuda
    return (
        allowed.flash_sdp_enabled(),
        allowed.mem_efficient_sdp_enabled(),
        allowed.cudnn_sdp_enabled(),
        allowed.math_sdp_enabled(),
    )


def test_a_stage_is_strictly_deterministic_and_leaves_torch_as_it_was(data):
    before, seen = kernels(), []

    def look(_):
        strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        seen.append((*strict, *kernels()))
        return True

    train_stage(toy.first(), data, None, on_epoch=look)
    assert seen == [(True, False, True, True, False, True)] * 2
    assert kernels() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_form_is_told(data, monkeypatch):
    def scatter(*_):
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))

    monkeypatch.setattr(stage._Run, "_train_epoch", scatter)
    with pytest.raises(UserError, match="cannot be reproduced on cpu: torch has no deterministic form of 'put_' there"):
        train_stage(toy.first(), data, None)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_setting_of_cublas_that_is_not_deterministic_is_refused(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG is ':0:0'"), numeric_mode(Numeric(), GPU):
        pass
    with numeric_mode(Numeric(), CPU):
        assert torch.are_deterministic_algorithms_enabled()


def precisions():
    """What torch says of reduced precision inside of float32 operations, the first three words in its older way."""
    backends = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    told = [torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32]
    return told + [part.fp32_precision for part in parts]


@pytest.mark.parametrize("before", ["highest", "medium"])
def test_float32_is_computed_in_full_and_what_was_allowed_before_is_put_back(before):
    torch.set_float32_matmul_precision(before)
    try:
        was = precisions()
        with numeric_mode(Numeric(), CPU):
            inside = precisions()
        assert inside[:3] == ["highest", False, False]
        assert set(inside[3:]) == {"ieee"}
        assert precisions() == was
        assert was[2], "torch allows TF32 in convolutions unless it is told not to"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_caller_that_allows_tf32_the_new_way_is_no_trouble():
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    was, before = (conv.fp32_precision, matmul.fp32_precision), precisions()
    try:
        conv.fp32_precision, matmul.fp32_precision = "ieee", "tf32"
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            precisions()
        with numeric_mode(Numeric(), CPU):
            inside = precisions()
        assert inside[:3] == ["highest", False, False]
        assert set(inside[3:]) == {"ieee"}
        assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "tf32")
    finally:
        torch.backends.cudnn.allow_tf32 = before[2]
        torch.set_float32_matmul_precision(before[0])
        conv.fp32_precision, matmul.fp32_precision = was
    assert precisions() == before, "else torch.export fails in the tests that follow"


@pytest.mark.parametrize(
    ("devices", "lacking", "dtype"),
    [
        ([GPU, GPU], (), "bfloat16"),
        ([GPU, torch.device("cuda", 1)], (torch.device("cuda", 1),), "float32"),
        ([CPU], (), "float32"),
        ([GPU, CPU], (), "float32"),
    ],
)
def test_bfloat16_is_chosen_where_all_devices_are_gpus_that_have_it(monkeypatch, devices, lacking, dtype):
    monkeypatch.setattr(numeric, "has_bfloat16", lambda device: device not in lacking)
    assert numeric.auto_dtype(devices) == dtype


@pytest.fixture
def graphs(monkeypatch):
    """How many graphs a model is compiled to for batches of these sizes, and how many attempts that took."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()

    def count(compiled, model, sizes):
        counters.clear()
        with compiled.of(model):
            for size in sizes:
                model(torch.zeros(size, 3, 16, 16)).sum().backward()
        return counters["stats"]["unique_graphs"], counters["frames"]["total"]

    yield count
    torch._dynamo.reset()


def test_each_model_has_graphs_of_its_own_and_keeps_them(graphs):
    compiled, one, other = CompiledModels(), build(toy.MODEL, 0), build(toy.MODEL, 1)
    assert graphs(compiled, one, (24, 23)) == (2, 2)
    assert graphs(compiled, one, (24, 23, 24)) == (0, 0)
    assert graphs(compiled, other, (24, 23)) == (2, 2), "another model of the same architecture"
    assert graphs(compiled, other, range(2, 11)) == (9, 9), "torch itself gives up after eight shapes"
    assert graphs(compiled, one, (23, 22)) == (1, 1)
    frozen = build(toy.MODEL, 0)
    frozen.blocks.requires_grad_(False)
    assert graphs(compiled, frozen, (24,)) == (1, 1)
    frozen.blocks.requires_grad_(True)
    assert graphs(compiled, frozen, (24,)) == (1, 1), "what is trained is another graph"
    compiled.forget(one)
    assert graphs(compiled, other, (24, 23)) == (2, 2)


def test_graphs_are_given_up_when_there_are_many(graphs, monkeypatch):
    monkeypatch.setattr(compiling, "GRAPHS_KEPT", 3)
    compiled, model = CompiledModels(), build(toy.MODEL, 0)
    assert graphs(compiled, model, (4, 5)) == (2, 2)
    assert graphs(compiled, model, (4, 6)) == (1, 1)
    assert graphs(compiled, model, (4, 5)) == (2, 2)


def test_more_shapes_than_a_stage_has_are_an_error(graphs, monkeypatch):
    monkeypatch.setattr(compiling, "COMPILED_SHAPES", 2)
    monkeypatch.setattr(compiling, "GRAPHS_KEPT", 0)
    with pytest.raises(FailOnRecompileLimitHit):
        graphs(CompiledModels(), build(toy.MODEL, 0), (3, 4, 5))


def test_the_shapes_of_earlier_stages_do_not_count(graphs, monkeypatch):
    monkeypatch.setattr(compiling, "COMPILED_SHAPES", 2)
    compiled, model = CompiledModels(), build(toy.MODEL, 0)
    assert graphs(compiled, model, (3, 4)) == (2, 2)
    assert graphs(compiled, model, (5, 3, 6)) == (2, 2)
    with pytest.raises(FailOnRecompileLimitHit):
        graphs(compiled, model, (7, 8, 9))


def test_a_model_whose_stage_fails_is_let_go(graphs):
    compiled = CompiledModels()

    def fail():
        model = build(toy.MODEL, 0)
        held.append(weakref.ref(model))
        with compiled.of(model):
            model(torch.zeros(4, 3, 16, 16))
            raise KeyError

    held = []
    with pytest.raises(KeyError):
        fail()
    gc.collect()
    assert held[0]() is None


def test_what_is_compiled_elsewhere_with_sizes_left_open_changes_nothing(graphs):
    loose = torch.compile(build(toy.TEACHER, 0), dynamic=None, backend="eager")
    for size in (5, 6, 7):
        loose(torch.zeros(size, 3, 16, 16))
    compiled, model = CompiledModels(), build(toy.MODEL, 0)
    assert graphs(compiled, model, (24, 23)) == (2, 2)
    assert graphs(compiled, model, (24, 23)) == (0, 0)


def test_layers_that_a_model_repeats_are_compiled_once(graphs):
    deep = replace(toy.MODEL, args=(("depth", 5), *toy.MODEL.args[1:]))
    assert dict(deep.args)["depth"] == 5
    model = build(deep, 0)
    assert compiling.repeated(model) == list(model.blocks)
    assert graphs(CompiledModels(), model, (24,)) == (1, 1)
    model.blocks[:2].requires_grad_(False)
    assert graphs(CompiledModels(), model, (24,))[0] == 2
    assert all("forward" not in vars(each) for each in model.blocks)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    assert compiling.repeated(plain) == [plain]


def test_what_was_frozen_learns_with_kept_code(graphs, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    compiled, model = CompiledModels(), build(toy.MODEL, 0)
    for trained in (False, True, False):
        model.zero_grad(set_to_none=True)
        model.blocks.requires_grad_(trained)
        graphs(compiled, model, (4,))
        assert all((each.grad is not None) == trained for each in model.blocks.parameters())


def test_what_torch_compiles_in_pieces_is_compiled_for_each_stage(graphs):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3 * 16 * 16, 2)

        def forward(self, images):
            torch._dynamo.graph_break()
            return self.layer(images.flatten(1))

    compiled, model = CompiledModels(), Broken()
    first = graphs(compiled, model, (4,))
    assert first[0] > 0
    assert graphs(compiled, model, (4,)) == first


def test_a_compiled_stage_has_a_graph_for_each_size_of_batch_and_form_of_layer_and_the_same_result(data, monkeypatch):
    spec = toy.first(training=replace(toy.TRAINING, batch=20))
    assert {len(batch) for batch in epoch_batches(len(data.rows("train", (40,))), 20, 0, 0)} == {17, 18}
    plain = train_stage(spec, data, None)
    monkeypatch.setattr(warm, "repaid", lambda *_: True)
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    models = WarmModels()
    for compiled in (4, 0):
        counters.clear()
        result = train_stage(spec, data, None, models=models)
        assert (counters["stats"]["unique_graphs"], counters["frames"]["total"]) == (compiled, compiled)
        assert all(torch.equal(value, plain.state[name]) for name, value in result.state.items())


def test_a_reserved_gpu_that_torch_does_not_see_is_the_nodes_fault(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert pick_device(None) == reserved_device(0.0) == CPU
    with pytest.raises(NodeFault, match=r"on host .+ cannot use one: it sees none \(CUDA_VISIBLE_DEVICES is '3'\)"):
        reserved_device(0.5)


def test_a_gpu_that_does_not_start_is_the_nodes_fault(monkeypatch):
    def broken():
        raise RuntimeError("CUDA unknown error\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert pick_device(None) == reserved_device(1.0) == GPU
    monkeypatch.setattr(torch.cuda, "current_device", broken)
    with pytest.raises(NodeFault, match=r"cannot use one: CUDA unknown error \("):
        reserved_device(1.0)


def test_a_process_without_a_gpu_of_its_own_leaves_those_that_it_sees_alone(monkeypatch):
    """Ray hides none from a worker that has reserved none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", None)
    assert reserved_device(0.0) == CPU


def test_a_share_of_a_gpu_is_a_cap(monkeypatch):
    capped, total = [], 80 << 30
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *told: capped.append(told))
    for share, device in ((0.25, CPU), (0.25, GPU), (1.0, GPU), (2.0, GPU)):
        cap_memory(share, device)
    assert capped == [((20 - 0.75) / 80, GPU)]
    assert 4 * (capped[0][0] * total + numeric.CONTEXT_BYTES) <= total, "four shares of a quarter fit"
    total = 2 << 30
    cap_memory(0.25, GPU)
    assert capped[1] == (0.125, GPU), "of a small share half is left"


def test_caches_are_emptied_where_a_gpu_is_in_use(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("gpu"))
    monkeypatch.setattr(numeric.gc, "collect", lambda: emptied.append("python"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    empty_caches()
    assert emptied == [], "a GPU that was not used yet stays unused"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    empty_caches()
    assert emptied == ["gpu"]
    empty_caches(after_error=True)
    assert emptied == ["gpu", "python", "gpu"]


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("The loss is not finite"), False),
    ],
    ids=str,
)
def test_errors_that_mean_that_memory_was_lacking(error, lacks):
    assert lacks_memory(error) == lacks
