import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.optim import create_optimizer_v2

from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.drop_path import DropPaths, KeyedDropPath
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.optimise import (
    adamw,
    check_layers,
    freeze,
    layers_of,
    learning_rate,
    lr_scales,
    rates_of,
    restore,
    set_rates,
)
from kdtvit_ray.recipe import ModelSpec, Training
from tests.learning.toy import MODEL

CPU = torch.device("cpu")
REGISTERED = replace(
    MODEL,
    name="vit_small_patch14_reg4_dinov2",
    args=(("depth", 3), ("embed_dim", 24), ("num_heads", 2), ("patch_size", 4)),
)
SWIN = ModelSpec(
    "swin_tiny_patch4_window7_224",
    (("depths", (1, 1)), ("embed_dim", 8), ("num_heads", (1, 2)), ("window_size", 2), ("drop_path_rate", 0.0)),
    image_size=16,
)


def test_only_weight_matrices_decay():
    model = build(MODEL, 0)
    groups = adamw(model, Training(weight_decay=0.3)).param_groups
    names = {id(each): name for name, each in model.named_parameters()}
    decayed, kept = ({names[id(each)] for each in group["params"]} for group in groups)
    assert groups[0]["weight_decay"] == 0.3
    assert groups[1]["weight_decay"] == 0.0
    assert {"blocks.0.attn.qkv.weight", "head.weight", "patch_embed.proj.weight"} <= decayed
    assert {"pos_embed", "cls_token", "head.bias", "blocks.1.norm1.weight"} <= kept
    assert len(decayed) + len(kept) == len(names)


def test_tokens_and_positions_do_not_decay_where_the_model_does_not_say_so():
    class Silent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("pos_embed", "cls_token", "reg_token", "dist_token", "weight"):
                setattr(self, name, torch.nn.Parameter(torch.zeros(1, 2, 3)))

    model = Silent()
    decayed, kept = (group["params"] for group in adamw(model, Training(weight_decay=0.3)).param_groups)
    assert [id(each) for each in decayed] == [id(model.weight)]
    assert len(kept) == 4


@pytest.mark.parametrize(("spec", "layers"), [(MODEL, 4), (REGISTERED, 5), (SWIN, 4)], ids=["micro", "dinov2", "swin"])
def test_each_parameters_rate_and_decay_are_those_of_timms_optimiser(spec, layers):
    model = build(spec, 0)
    training = Training(lr=1e-2, weight_decay=0.3, layer_decay=0.65)
    timms = create_optimizer_v2(model, "adamw", lr=1e-2, weight_decay=0.3, layer_decay=0.65)
    wanted, found = (
        {
            id(each): (group["lr"] * group.get("lr_scale", 1.0), group["weight_decay"])
            for group in optimizer.param_groups
            for each in group["params"]
        }
        for optimizer in (timms, adamw(model, training))
    )
    assert found == wanted
    assert len({rate for rate, _ in found.values()}) == layers


def test_without_factors_the_optimiser_has_the_two_groups_that_it_always_had():
    model = build(MODEL, 0)
    plain = adamw(model, Training()).state_dict()
    assert [len(each["params"]) for each in plain["param_groups"]] == [10, 22]
    assert all("lr_scale" not in each for each in plain["param_groups"])


def test_the_factor_of_the_head_is_the_heads_alone():
    model = build(MODEL, 0)
    scales = lr_scales(model, Training(head_lr=10.0, layer_decay=0.5))
    assert {name for name, each in scales.items() if each == 10} == {"head.weight", "head.bias"}
    assert scales["norm.weight"] == scales["blocks.1.attn.qkv.weight"] == 0.5
    assert scales["blocks.0.attn.qkv.weight"] == 0.25
    assert scales["cls_token"] == scales["patch_embed.proj.weight"] == 0.125
    assert lr_scales(model, Training(head_lr=10.0))["cls_token"] == 1


def test_a_frozen_block_drops_no_path():
    model = build(MODEL, 0)
    freeze(model, Training(trainable_blocks=0))
    assert DropPaths(model, 0.5, 0).modules == []
    model = build(replace(MODEL, args=(("depth", 3), *MODEL.args[1:])), 0)
    freeze(model, Training(trainable_blocks=1))
    assert [each.rate for each in DropPaths(model, 0.4, 0).modules] == [0.4, 0.4]


def test_a_model_that_does_not_tell_its_layers_or_its_head_is_refused_by_name():
    unknown = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert layers_of(unknown) == {}
    with pytest.raises(UserError, match=r"layer_decay is 0\.75, but model 'mine' does not tell its layers"):
        check_layers(unknown, "mine", Training(layer_decay=0.75))
    with pytest.raises(UserError, match="head_lr is 5, but model 'mine' does not tell its head"):
        check_layers(unknown, "mine", Training(head_lr=5.0))
    with pytest.raises(UserError, match="trainable_blocks is 0, but model 'mine' does not tell its blocks"):
        check_layers(unknown, "mine", Training(trainable_blocks=0))
    check_layers(unknown, "mine", Training())


def test_the_rate_warms_up_to_lr_and_ends_at_its_floor():
    training = Training(epochs=5, lr=0.1, warmup_epochs=1.5, min_lr_ratio=0.02)
    rates = [learning_rate(step, 10, training) for step in range(50)]
    assert rates[:15] == pytest.approx([0.1 * (step + 1) / 15 for step in range(15)])
    assert rates[-1] == pytest.approx(0.002)
    assert rates[15 + 17] == pytest.approx(0.1 * (0.02 + 0.98 * (1 + np.cos(np.pi * 18 / 35)) / 2))
    assert np.all(np.diff(rates[14:]) < 0)
    assert learning_rate(0, 10, replace(training, warmup_epochs=0)) < 0.1


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(1, 0.5, 1), (2, 1.9, 1), (3, 2.99, 4), (1, 0.99, 10)])
def test_a_warm_up_shorter_than_its_stage_decays_however_it_is_rounded(epochs, warmup, steps):
    training = Training(epochs=epochs, lr=0.1, warmup_epochs=warmup, min_lr_ratio=0.02)
    assert learning_rate(epochs * steps - 1, steps, training) == pytest.approx(0.002)


def test_a_checkpoint_from_another_kind_of_device_is_gone_on_with():
    def stepped(optimizer, times):
        for _ in range(times):
            model.norm.weight.grad = torch.ones_like(model.norm.weight)
            optimizer.step()
        return model.norm.weight.detach().clone()

    training = Training(lr=0.1)
    model = build(MODEL, 0)
    expected = stepped(adamw(model, training), 3)
    model = build(MODEL, 0)
    first = adamw(model, training)
    stepped(first, 2)
    saved = copy.deepcopy(first.state_dict())
    for group in saved["param_groups"]:  # as a GPU leaves them
        group |= {"capturable": True, "lr": torch.tensor(0.3)}
    second = adamw(model, training)
    restore(second, saved)
    # the other way round, a GPU could not record its steps
    assert not any(group["capturable"] for group in second.param_groups)
    set_rates(second, rates_of(second, 0.1, CPU))
    assert torch.equal(stepped(second, 1), expected)


def test_an_images_mask_depends_on_the_image_and_not_on_its_batch():
    model = build(MODEL, 0)
    paths = DropPaths(model, 0.5, seed=3)
    assert [each.rate for each in paths.modules] == [0.5, 0.5]  # the first block's rate is 0: no module
    images = np.arange(4000)
    paths.set(paths.masks(2, images, CPU))
    masks = [each.keep.clone() for each in paths.modules]
    assert all(set(mask.tolist()) == {0.0, 2.0} for mask in masks)
    assert all(mask.mean().item() == pytest.approx(1, abs=0.06) for mask in masks)
    assert abs(np.corrcoef(*(mask.numpy() for mask in masks))[0, 1]) < 0.06
    some = np.array([17, 3, 3999])
    paths.set(paths.masks(2, some, CPU))
    assert all(torch.equal(each.keep, mask[some]) for each, mask in zip(paths.modules, masks, strict=True))
    paths.set(paths.masks(3, images, CPU))
    assert not torch.equal(paths.modules[0].keep, masks[0])


def test_dropping_scales_what_is_kept_and_does_nothing_in_eval_mode():
    drop = KeyedDropPath(0.75)
    drop.keep = torch.tensor([0.0, 4.0])
    branch = torch.ones(2, 3, 5)
    assert torch.equal(drop(branch), torch.stack((torch.zeros(3, 5), torch.full((3, 5), 4.0))))
    assert torch.equal(drop.eval()(branch), branch)


def test_a_model_without_places_for_it_is_refused():
    with pytest.raises(UserError, match=r"drop_path 0\.1 is set, but Linear"):
        DropPaths(torch.nn.Linear(2, 2), 0.1, 0)
    assert DropPaths(torch.nn.Linear(2, 2), 0.0, 0).modules == []
