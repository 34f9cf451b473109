import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.forward import check_forward
from kdtvit_ray.learning.models import build, mean_std, parameters, resolve
from kdtvit_ray.recipe import ModelSpec, Training
from tests.learning.toy import MODEL, TEACHER

weights_file = pytest.mark.skipif("KDTVIT_WEIGHTS" not in os.environ, reason="needs KDTVIT_WEIGHTS")


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_micro_is_half_a_million_parameters_at_64_pixels():
    model = build(ModelSpec(), 0)
    assert 0.4e6 < parameters(model) < 0.6e6
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 8)
    assert build(replace(ModelSpec(), head="binary"), 0)(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_initial_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    one = build(MODEL, 5).state_dict()
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert same(one, build(MODEL, 5).state_dict())
    assert not same(one, build(MODEL, 6).state_dict())
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)  # and building leaves the generator alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "micr"}, "Unknown model 'micr'.*did you mean 'micro'"),
        ({"image_size": 65}, "image_size 65 is not a multiple of the patch size 4"),
        ({"args": (("depht", 2),)}, "cannot be made.*depht"),
        ({"args": (*MODEL.args, ("proj_drop_rate", 0.1))}, "has dropout .*; allowed: no dropout arguments, and drop_p"),
        (
            {"args": (*MODEL.args, ("drop_path_rate", 0.1))},
            "has dropout .*; allowed: args = { drop_path_rate = 0.0 }, ",
        ),
        ({"args": (*MODEL.args, ("patch_drop_rate", 0.5))}, "has dropout"),
        ({"name": "resnet10t", "args": ()}, "'resnet10t' has batch normalisation"),
        ({"name": "efficientvit_m0", "args": ()}, "'efficientvit_m0' has batch normalisation"),
        ({"name": "xcit_nano_12_p16_224", "args": ()}, "'xcit_nano_12_p16_224' has batch normalisation"),
        ({"weights": "/nowhere.safetensors"}, "Weights file '/nowhere.safetensors'.*does not exist"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        build(replace(MODEL, **changes), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "nest_tiny"])
def test_a_model_that_drops_paths_by_default_is_taken_with_the_argument_that_its_refusal_names(name):
    spec = ModelSpec(name, image_size=64)
    with pytest.raises(
        UserError, match=r"has dropout \(DropPath .*; allowed: args = { drop_path_rate = 0\.0 }, and drop"
    ):
        build(spec, 0)
    check_forward(build(replace(spec, args=(("drop_path_rate", 0.0),)), 0), spec, Training(drop_path=0.1))


SMALL_DAVIT = (("depths", (1, 1, 1, 1)), ("embed_dims", (8, 16, 24, 32)), ("num_heads", (1, 1, 1, 1)))


def test_a_model_that_takes_no_image_size_is_made_without_and_runs_on_it():
    spec = ModelSpec("davit_tiny", SMALL_DAVIT, image_size=40)
    model = build(spec, 3)
    assert model.timm_arguments == dict(SMALL_DAVIT)
    assert same(model.state_dict(), build(spec, 3).state_dict())
    torch.manual_seed(3)
    assert same(model.state_dict(), timm.create_model("davit_tiny", num_classes=8, **dict(SMALL_DAVIT)).state_dict())
    check_forward(model, spec, Training(drop_path=0.1))
    assert build(MODEL, 0).timm_arguments == {**dict(MODEL.args), "img_size": 16}
    with pytest.raises(UserError, match=r"cannot be made at image_size 40 .*'depht'"):
        build(replace(spec, args=(*SMALL_DAVIT, ("depht", 2))), 0)


def test_patches_that_overlap_set_no_size():
    small = (("depths", (1, 1, 1, 1)), ("embed_dims", (8, 16, 24, 32)), ("num_heads", (1, 1, 1, 1)))
    spec = ModelSpec("pvt_v2_b0", small, image_size=64)  # patches of 7 pixels at every fourth
    check_forward(build(spec, 0), spec, Training())


def test_padding_of_timms_own_is_left_to_it():
    spec = replace(MODEL, image_size=18, args=(*MODEL.args, ("dynamic_img_pad", True), ("dynamic_img_size", True)))
    model = build(spec, 0)
    assert model(torch.zeros(1, 3, 18, 18)).shape == (1, 8)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_gives_its_weights_at_another_size_and_another_head(tmp_path, suffix):
    source = build(MODEL, 1).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{name}": value for name, value in source.items()}, "epoch": 3}, path)
    else:
        save_file({name: value.half() for name, value in source.items()}, path)
    spec = replace(MODEL, weights=str(path))
    model = build(spec, 0)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, source[name], atol=1e-3), name
    other = build(replace(spec, head="binary", image_size=24), 0).state_dict()
    assert other["pos_embed"].shape[1] == 1 + 6 * 6
    assert torch.allclose(other["blocks.0.attn.qkv.weight"], source["blocks.0.attn.qkv.weight"], atol=1e-3)
    assert torch.equal(other["head.weight"], build(replace(MODEL, head="binary", image_size=24), 0).head.weight)
    assert same(build(spec, 0, initial=False).state_dict(), build(MODEL, 0).state_dict())


def test_a_file_of_another_architecture_or_none_at_all_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    for other in (TEACHER, replace(MODEL, args=tuple({**dict(MODEL.args), "depth": 3}.items()))):
        save_file(build(other, 1).state_dict(), path)
        with pytest.raises(UserError, match="does not fit model 'micro'"):
            build(replace(MODEL, weights=str(path)), 0)
    deeper = tuple({**dict(MODEL.args), "depth": 1}.items())
    save_file(build(replace(MODEL, args=deeper), 1).state_dict(), path)
    with pytest.raises(UserError, match="does not fit model 'micro'"):
        build(replace(MODEL, weights=str(path)), 0)
    save_file({"layer1.conv.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(UserError, match="does not fit model 'micro'"):
        build(replace(MODEL, weights=str(path)), 0)
    for name in ("broken.safetensors", "broken.pth"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(UserError, match="cannot be read"):
            build(replace(MODEL, weights=str(tmp_path / name)), 0)


def test_a_digest_is_of_content_and_not_of_a_path(tmp_path):
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        save_file(build(MODEL, seed).state_dict(), path)
    (a, file), (b, _), (c, _) = (resolve(replace(MODEL, weights=str(path))) for path in paths)
    assert a.digest == b.digest != c.digest
    assert len(a.digest) == 32
    assert file == paths[0]
    assert resolve(MODEL) == (MODEL, None)
    save_file(build(MODEL, 3).state_dict(), paths[0])
    os.utime(paths[0], ns=(1, 1))
    assert resolve(replace(MODEL, weights=str(paths[0])))[0].digest != a.digest


HUB = ModelSpec("test_vit", (), 96, weights="hub")
"""timm's smallest vision transformer of the hub: 160 pixels, 1,000 classes."""
HUB_SEEDED = replace(HUB, weights="none")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A copy of the hub on disk, without a network, that holds what the function is given; and an empty cache."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "hub/models--timm--test_vit.r160_in1k"

    def put(revision: str, state: dict[str, torch.Tensor]) -> None:
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs/main").write_text(revision)
        (repository / "snapshots" / revision).mkdir(parents=True)
        save_file(state, repository / "snapshots" / revision / "model.safetensors")

    return put


def test_weights_of_the_hub_are_a_file_whose_bytes_are_the_same_on_every_machine(hub, tmp_path):
    torch.manual_seed(1)
    theirs = timm.create_model("test_vit").state_dict()
    hub("first", theirs)
    spec, file = resolve(HUB)
    stored = load_file(file)
    # all of the hub's tensors but its head, whose 1,000 classes are others: that one is drawn, on some machines with
    # other last bits, and must not decide the digest
    assert stored.keys() == {name for name in theirs if not name.startswith("head.")}
    assert torch.equal(stored["blocks.1.attn.qkv.weight"], theirs["blocks.1.attn.qkv.weight"])
    assert stored["pos_embed"].shape[1] == 1 + 6 * 6
    assert (file.parent, file.name) == (tmp_path / "cache", f"{spec.digest}.safetensors")
    # what timm itself makes of the hub's weights with the same seed
    torch.manual_seed(7)
    whole = timm.create_model("test_vit", pretrained=True, num_classes=8, img_size=96).state_dict()
    assert same(build(spec, 7).state_dict(), whole)
    # a worker gets the file, and nobody asks the hub again
    shutil.rmtree(tmp_path / "hub")
    assert same(build(replace(spec, weights=str(file)), 7).state_dict(), whole)
    assert same(build(spec, 7).state_dict(), whole)
    assert same(build(spec, 7, initial=False).state_dict(), build(HUB_SEEDED, 7).state_dict())
    file.write_bytes(b"cut off")
    with pytest.raises(UserError, match="The weights of model 'test_vit' cannot be fetched from timm's hub: "):
        build(spec, 7)


def test_a_head_that_the_hub_has_is_kept(hub):
    theirs = timm.create_model("test_vit").state_dict()
    hub("first", theirs)
    spec, file = resolve(replace(HUB, subtypes=1000))
    assert torch.equal(load_file(file)["head.weight"], theirs["head.weight"])
    assert torch.equal(build(spec, 3).head.weight, theirs["head.weight"])


def test_other_weights_on_the_hub_than_those_of_the_study_are_refused(hub, tmp_path):
    hub("first", timm.create_model("test_vit").state_dict())
    spec, _ = resolve(HUB)
    hub("second", timm.create_model("test_vit").state_dict())
    build(spec, 0)  # the cache has them
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match="The hub's weights of model 'test_vit' have another content"):
        build(spec, 0)
    assert resolve(HUB)[0].digest != spec.digest


@weights_file
def test_dinov2_weights_load_at_another_size_as_timm_loads_them():
    path = os.environ["KDTVIT_WEIGHTS"]
    model = build(ModelSpec("vit_small_patch14_dinov2", (), 112, weights=path), 0).eval()
    theirs = (
        timm.create_model(
            "vit_small_patch14_dinov2",
            num_classes=8,
            img_size=112,
            pretrained=True,
            pretrained_cfg_overlay={"file": path, "num_classes": 0},
        )
        .float()
        .eval()
    )
    stored = load_file(path)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert torch.equal(model.blocks[11].mlp.fc1.weight, stored["blocks.11.mlp.fc1.weight"].float())
    image = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, other = model.forward_features(image), theirs.forward_features(image)
    assert torch.allclose(ours, other, atol=2e-2, rtol=1e-2)
    assert mean_std(model)[0] == pytest.approx((0.485, 0.456, 0.406))
    with pytest.raises(UserError, match="does not fit"):
        build(ModelSpec("vit_base_patch14_dinov2", (), 112, weights=path), 0)
    assert resolve(ModelSpec("vit_small_patch14_dinov2", (), 112, weights=path))[1] == Path(path)
