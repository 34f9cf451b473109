"""Low-rank updates against loops written by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.low_rank import LowRank, adapt, merge
from kdtvit_ray.learning.models import build, parameters
from kdtvit_ray.learning.optimise import adamw, check_layers, freeze, lr_scales
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.teacher import Parent
from kdtvit_ray.recipe import ModelSpec, Training
from tests.learning import toy
from tests.learning.test_optimise import REGISTERED, SWIN

ADAPTED = [f"blocks.{block}.attn.{layer}" for block in range(2) for layer in ("qkv", "proj")]


@pytest.fixture(scope="module")
def data():
    return StageData(toy.prepared(), toy.DATA)


@pytest.fixture(scope="module")
def taught(data):
    spec = toy.first(model=toy.MODEL, training=replace(toy.TRAINING, epochs=4, lr=5e-3))
    return Parent(spec, train_stage(spec, data, None).state)


def adapted(rank=2, keys=(0, 40)):
    model = build(toy.MODEL, 0)
    freeze(model, Training(lora_rank=rank))
    adapt(model, rank, keys)
    return model


def moved(model):
    """The model with updates that are not zero."""
    with torch.no_grad():
        for index, name in enumerate(ADAPTED):
            layer = model.get_submodule(name)
            layer.lora_b += torch.sin(torch.arange(layer.lora_b.numel()) + index).view_as(layer.lora_b)
    return model


def test_a_layer_computes_its_weight_plus_twice_b_a_and_so_does_the_merged_one():
    plain = torch.nn.Linear(5, 7)
    layer = LowRank(plain, 2, "some", (3,))
    inputs = torch.randn(4, 3, 5)
    assert torch.equal(layer(inputs), plain(inputs))  # B is zero at first
    with torch.no_grad():
        layer.lora_b.copy_(torch.randn(7, 2))
    weight = (plain.weight + 2 * layer.lora_b @ layer.lora_a).detach().clone()
    assert torch.allclose(layer(inputs), inputs @ weight.T + plain.bias, atol=1e-5)
    merged = layer.merged()
    assert type(merged) is torch.nn.Linear
    assert torch.allclose(merged.weight, weight, atol=1e-7)
    assert set(merged.state_dict()) == {"weight", "bias"}


def test_updates_start_as_a_function_of_keys_and_name_alone():
    torch.manual_seed(1)
    one = adapted().state_dict()
    torch.manual_seed(2)
    two, other, higher = adapted().state_dict(), adapted(keys=(0, 100)).state_dict(), adapted(rank=3).state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    starts = [one[f"{name}.lora_a"] for name in ADAPTED] + [other[f"{name}.lora_a"] for name in ADAPTED]
    assert not any(torch.equal(a, b) for index, a in enumerate(starts) for b in starts[:index])
    assert all(torch.equal(higher[f"{name}.lora_a"][:2], one[f"{name}.lora_a"]) for name in ADAPTED)
    values = torch.cat([each.flatten() for each in starts])
    assert values.abs().max() <= 0.25  # 1 / sqrt(16 inputs)
    assert values.std() == pytest.approx(0.5 / 12**0.5, rel=0.05)


def test_updates_and_the_head_are_trained_and_nothing_else():
    model = adapted()
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    updates = {f"{name}.{factor}" for name in ADAPTED for factor in ("lora_a", "lora_b")}
    assert trained == updates | {"head.weight", "head.bias"}
    assert parameters(model) == 2 * 2 * ((16 + 48) + (16 + 16)) + 16 * 8 + 8
    assert sum(len(group["params"]) for group in adamw(model, Training()).param_groups) == len(trained)
    scales = lr_scales(model, Training(layer_decay=0.5, head_lr=3.0))
    assert [scales[f"{name}.lora_a"] for name in ADAPTED] == [0.25, 0.25, 0.5, 0.5]
    assert scales["head.weight"] == 3


@pytest.mark.parametrize("spec", [toy.MODEL, REGISTERED], ids=["micro", "dinov2"])
def test_a_merged_model_is_a_plain_one_with_the_same_outputs(spec):
    model = build(spec, 0).eval().requires_grad_(False)
    for name, each in model.named_parameters():
        if name.endswith("gamma"):  # layer scales, which make a fresh model nearly the identity
            each.fill_(1.0)
    names = set(model.state_dict())
    inputs = torch.randn(3, 3, 16, 16)
    before = model.forward_features(inputs)
    adapt(model, 2, (0,))
    assert torch.equal(model.forward_features(inputs), before)
    moved(model)
    unmerged = model.forward_features(inputs)
    merge(model)
    assert set(model.state_dict()) == names
    assert not any(isinstance(each, LowRank) for each in model.modules())
    assert (unmerged - before).abs().max() > 0.05
    assert torch.allclose(model.forward_features(inputs), unmerged, atol=1e-5)


def test_a_stage_is_that_of_a_hand_written_loop(data, taught):
    """All images in one step an epoch, without turns: the factors' path is that of Adam through W + 2 B A."""
    training = Training(
        epochs=5, batch=10_000, lr=1e-2, weight_decay=0.0, warmup_epochs=0, min_lr_ratio=1.0, views="none",
        clip_grad=0.0, lora_rank=2,
    )  # fmt: skip
    spec = replace(toy.second(taught.spec, warm=True, training=training), distillation=None)
    result = train_stage(spec, data, taught)

    model = build(spec.model, 0)
    model.load_state_dict(dict(taught.state))
    starts = adapted(keys=(spec.seed, 100)).state_dict()
    factors = {name: (starts[f"{name}.lora_a"], starts[f"{name}.lora_b"]) for name in ADAPTED}
    head = [each.detach().clone() for each in (model.head.weight, model.head.bias)]
    trained = [each.requires_grad_() for each in (*(one for pair in factors.values() for one in pair), *head)]
    weights = dict(taught.state)
    rows = data.rows("train", (100,))
    pixels = data.pixels(16, "none")
    pixels.make(rows)
    inputs = Feed(pixels, model, len(rows), torch.device("cpu"))(rows)
    labels = torch.from_numpy(data.labels("subtype")[rows])

    def now():
        moved = {f"{name}.weight": weights[f"{name}.weight"] + 2 * b @ a for name, (a, b) in factors.items()}
        return {**weights, **moved, "head.weight": head[0], "head.bias": head[1]}

    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(torch.func.functional_call(model, now(), inputs), labels).backward()
        optimizer.step()
    for name, value in now().items():
        if name.endswith(".weight"):  # a bias of the keys has no effect, but these are frozen here
            assert torch.allclose(result.state[name], value.detach(), atol=2e-4), name
    assert (result.state["blocks.0.attn.qkv.weight"] - weights["blocks.0.attn.qkv.weight"]).abs().max() > 1e-2


def test_frozen_weights_stay_bit_for_bit_and_what_is_yielded_is_plain(data, taught):
    training = replace(toy.TRAINING, lora_rank=2, weight_decay=0.5, ema=0.5, layer_decay=0.7, head_lr=2.0)
    spec = toy.second(taught.spec, warm=True, training=training)
    result = train_stage(spec, data, taught)
    assert result.state.keys() == taught.state.keys()
    changed = {name for name, value in result.state.items() if not torch.equal(value, taught.state[name])}
    assert changed == {*(f"{name}.weight" for name in ADAPTED), "head.weight", "head.bias"}
    for name in ADAPTED:
        update = result.state[f"{name}.weight"].double() - taught.state[f"{name}.weight"].double()
        values = torch.linalg.svdvals(update)
        assert values[1] > 1e-5
        assert values[2] < 1e-6
    assert result.cost["trainable_parameters"] == parameters(adapted())
    assert result.cost["parameters"] == sum(each.numel() for each in result.state.values())
    # what is evaluated is the model that is yielded
    model = build(spec.model, 0).eval()
    model.load_state_dict(result.state)
    some = result.predictions["image"][::5]
    with torch.no_grad():
        logits = model(Feed(data.pixels(16, "none"), model, len(some), torch.device("cpu"))(some))
    assert torch.allclose(
        torch.from_numpy(result.predictions["probabilities"][::5]), logits.double().softmax(1), atol=1e-6
    )


def test_what_has_no_such_layers_is_refused_by_name(data, taught):
    with pytest.raises(UserError, match="lora_rank is 4, but model 'swin' has no attention with linear layers qkv and"):
        check_layers(build(SWIN, 0), "swin", Training(lora_rank=4))
    clip = ModelSpec("vit_xsmall_patch16_clip_224", (("embed_dim", 16),), image_size=16)
    check_layers(build(clip, 0), "clip", Training(lora_rank=4))
    with pytest.raises(
        UserError, match=r"lora_rank is 17, but the attention of model 'micro' has 16 .*; allowed: 0 to 16"
    ):
        check_layers(build(toy.MODEL, 0), "micro", Training(lora_rank=17))
    unknown = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="lora_rank is 1, but model 'mine' does not tell its head"):
        check_layers(unknown, "mine", Training(lora_rank=1))
    both = replace(toy.TRAINING, lora_rank=2, trainable_blocks=1)
    with pytest.raises(UserError, match="lora_rank is 2 and trainable_blocks is 1, but"):
        train_stage(toy.second(taught.spec, warm=True, training=both), data, taught)
    with pytest.raises(UserError, match="lora_rank is 2, but model 'micro' starts from random weights"):
        train_stage(toy.first(training=replace(toy.TRAINING, lora_rank=2)), data, None)
