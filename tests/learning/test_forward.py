"""What a forward pass tells of a model, before it is trained."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning import forward
from kdtvit_ray.learning.drop_path import KeyedDropPath
from kdtvit_ray.learning.forward import check_forward
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.recipe import ModelSpec, Training
from tests.learning import toy

PLAIN = Training()
DROPPING = Training(drop_path=0.2)
PROBE = Training(trainable_blocks=0)


def small(name, size=32, **args):
    return ModelSpec(name, tuple(sorted({"depth": 2, "embed_dim": 24, "num_heads": 2, **args}.items())), size)


EVA = small("eva02_tiny_patch14_224", patch_size=8)
ROPE = small("vit_small_patch16_dinov3", patch_size=8)
NAFLEX = small("naflexvit_base_patch16_gap", patch_size=8)
HIERA = ModelSpec("hiera_tiny_224", (("embed_dim", 24), ("stages", (1, 1, 1, 1))), 64)


def with_args(spec, **args):
    return replace(spec, args=tuple(sorted({**dict(spec.args), **args}.items())))


def refusal(spec, training=PLAIN):
    with pytest.raises(UserError) as caught:
        check_forward(build(spec, 0), spec, training)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("spec", [toy.MODEL, EVA, ROPE, NAFLEX, HIERA], ids=lambda spec: spec.name)
@pytest.mark.parametrize("training", [PLAIN, DROPPING, PROBE], ids=["plain", "dropping", "probe"])
def test_a_model_that_passes_is_left_as_it_was(spec, training):
    model = build(spec, 0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    check_forward(model, spec, training)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    assert not any(isinstance(each, KeyedDropPath) for each in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize(
    "spec",
    [
        with_args(ROPE, rope_rescale_coords=2.0),
        with_args(ROPE, rope_shift_coords=0.1),
        with_args(EVA, patch_drop_rate=0.5),
        with_args(NAFLEX, patch_drop_rate=0.5),
        with_args(HIERA, patch_drop_rate=0.5),
        small("vit_base_patch16_sapiens2", patch_size=8, num_kv_heads=2),
    ],
    ids=["rescale", "shift", "eva", "naflex", "hiera", "sapiens2"],
)
def test_a_model_that_draws_random_numbers_in_any_way_is_refused_unless_it_is_only_probed(spec):
    generator = torch.get_rng_state()
    assert f"Model '{spec.name}' at image_size {spec.image_size}" in refusal(spec)
    assert "draws random numbers when it is trained" in refusal(spec)
    assert torch.equal(torch.get_rng_state(), generator)
    check_forward(build(spec, 0), spec, PROBE)  # nothing before the head is in train mode then


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            with_args(toy.MODEL, in_chans=1),
            "cannot be run at image_size 16 with arguments {.*'in_chans': 1.*RuntimeErr",
        ),
        (
            with_args(toy.MODEL, global_pool=""),
            r"yields a tensor \(2, 17, 8\) for 2 images, which are no logits of 8 c",
        ),
        (ModelSpec("crossvit_9_240", image_size=48), "Model 'crossvit_9_240' cannot be run at image_size 48"),
    ],
    ids=["in_chans", "global_pool", "crossvit"],
)
def test_a_model_that_cannot_be_trained_is_refused_in_one_sentence(spec, told):
    with pytest.raises(UserError, match=told) as caught:
        check_forward(build(spec, 0), spec, PLAIN)
    assert "\n" not in str(caught.value)
    assert "; allowed: " in str(caught.value)


def test_paths_are_refused_where_blocks_run_on_parts_of_an_image():
    spec = ModelSpec("tnt_s_patch16_224", (("depth", 2),), 32)
    check_forward(build(spec, 0), spec, PLAIN)
    model = build(spec, 0)
    with pytest.raises(UserError, match=r"drop_path is 0\.2, but blocks of model 'tnt_s_patch16_224' run on parts of"):
        check_forward(model, spec, DROPPING)
    assert not any(isinstance(each, KeyedDropPath) for each in model.modules())


class Fails(nn.Linear):
    """A model whose pass raises `error`."""

    def __init__(self, error):
        super().__init__(1, 1)
        self.error = error

    def forward(self, _):
        raise self.error


def test_out_of_memory_is_no_mistake_of_the_users_and_neither_is_a_failing_gpu(monkeypatch):
    for error in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)):
            check_forward(Fails(error), toy.MODEL, PLAIN)
    broken = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(UserError, match="cannot be run"):
        check_forward(Fails(broken), toy.MODEL, PLAIN)
    monkeypatch.setattr(forward, "_run", lambda *_: Fails(broken)(None))
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        check_forward(Fails(broken).to("meta"), toy.MODEL, PLAIN)  # a device that is not the CPU


def test_a_model_that_passed_is_not_run_again_but_under_other_settings_it_is():
    model = build(toy.MODEL, 0)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for training in (PLAIN, PLAIN, replace(PLAIN, lr=1.0), DROPPING, DROPPING, PROBE, PROBE):
        check_forward(model, toy.MODEL, training)
        counts.append(len(calls))
    assert counts == [1, 1, 1, 3, 3, 4, 4]


def test_a_stage_asks_for_itself():
    data = StageData(toy.prepared(images=1, patients=4, size=32), toy.DATA)
    spec = toy.first(model=with_args(EVA, patch_drop_rate=0.5), training=Training(epochs=1, warmup_epochs=0.5))
    with pytest.raises(UserError, match="draws random numbers when it is trained"):
        train_stage(spec, data, None)
