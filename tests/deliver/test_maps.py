"""Maps against what is known of a model: attention by hand and by timm, gradients by autograd, a signal that was
planted, and models whose weights are random (Adebayo et al., NeurIPS 2018)."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from scipy.stats import spearmanr
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer
from timm.utils import AttentionExtract
from torch import nn

from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.maps import attention, log_odds, mappable, maps, rollout
from kdtvit_ray.deliver.model import TorchModel
from kdtvit_ray.errors import UserError

SIZE, PATCH = 16, 4
GRID = SIZE // PATCH


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def described(network, offsets=(), size=SIZE):
    """A model of four benign and four malignant classes whose input is the image in units of [0, 1]."""
    told = Description(
        {
            "size": size,
            "image_size": size,
            "aspect": "squash",
            "crop": "none",
            "interpolation": "bicubic",
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
        },
        classes=list("ABCDEFGH"),
        positive=list("EFGH"),
        words=["benign", "malignant"],
        logit_offsets=list(offsets),
    )
    return TorchModel(network, told, threads=1, device="cpu")


def vit(seed=0, size=SIZE, patch=PATCH, **changes):
    torch.manual_seed(seed)
    told = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 8, "img_size": size, "patch_size": patch}
    return VisionTransformer(**{**told, **changes})


def noise(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def inputs_of(model, image):
    return model.normaliser(torch.from_numpy(image[None].copy()))


# -- rollout -----------------------------------------------------------------------------------------------------------


def test_rollout_is_the_product_by_hand():
    first = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])  # two heads, mean [[.5, .5], [.5, .5]]
    second = np.array([[[0.2, 0.8], [1.0, 0.0]]])
    # 0.5 A + 0.5 I: [[.75, .25], [.25, .75]] and [[.6, .4], [.5, .5]]; the later block stands on the left
    assert rollout([first, second]) == pytest.approx(np.array([[0.55, 0.45], [0.5, 0.5]]))


def test_rows_of_rollout_sum_to_one():
    drawn = np.random.default_rng(0).dirichlet(np.ones(9), (4, 3, 9))  # four blocks of three heads
    found = rollout(list(drawn))
    assert found.sum(axis=1) == pytest.approx(np.ones(9))
    assert (found >= 0).all()


def looking(strength=40.0, sign=1.0, size=SIZE, patch=PATCH, **changes):
    """A model of one block that attends to bright patches by softmax(strength * brightness), and whose log odds are
    `sign` times the brightness that arrives at the class token."""
    told = {"embed_dim": 4, "depth": 1, "num_heads": 1, "norm_layer": nn.Identity, "fc_norm": False}
    network = vit(size=size, patch=patch, **{**told, **changes})
    with torch.no_grad():
        for each in network.parameters():
            each.zero_()
        network.patch_embed.proj.weight[0] = 1 / (3 * patch**2)  # the first channel is a patch's mean brightness
        qkv = network.blocks[0].attn.qkv
        qkv.bias[0] = strength * 4**0.5  # the query, the same for all tokens; attention divides by sqrt(4)
        qkv.weight[4, 0] = 1.0  # the key is the brightness
        qkv.weight[9, 0] = 1.0  # the value as well, in the second channel
        network.blocks[0].attn.proj.weight.copy_(torch.eye(4))
        network.head.weight[7, 1] = sign
    return described(network, size=size)


def test_rollout_of_a_block_whose_attention_is_known():
    image = np.repeat(np.repeat(noise(1, 2), 8, axis=0), 8, axis=1)  # two by two patches, each of one colour
    model = looking(strength=3.0, patch=8)
    brightness = np.array([image[y, x].mean() / 255 for y in (0, 8) for x in (0, 8)])
    weights = np.exp(3.0 * np.array([0.0, *brightness]))  # the class token is black
    weights /= weights.sum()
    assert attention(model.network, inputs_of(model, image))[0][0, 0] == pytest.approx(weights, abs=1e-6)
    found = maps(model, image).rollout
    of_patches = weights[1:] / weights[1:].mean()
    # an upsampled map's corners are the corner patches' own values
    assert found[[0, 0, -1, -1], [0, -1, 0, -1]] == pytest.approx(of_patches, abs=1e-5)
    assert found.min() >= of_patches.min() - 1e-5
    assert found.max() <= of_patches.max() + 1e-5


@pytest.mark.parametrize(
    ("changes", "rows", "prefix"),
    [
        ({}, slice(0, 1), 1),
        ({"reg_tokens": 4}, slice(0, 1), 5),
        ({"global_pool": "avg", "class_token": False}, slice(0, None), 0),
        ({"global_pool": "avg"}, slice(1, None), 1),
        ({"global_pool": "avg", "class_token": False, "reg_tokens": 3}, slice(3, None), 3),
        ({"global_pool": "avg", "pool_include_prefix": True}, slice(0, None), 1),
    ],
    ids=str,
)
def test_rollout_reads_the_tokens_that_the_head_reads(changes, rows, prefix):
    network = vit(**changes)
    with torch.no_grad():
        for block in network.blocks:
            block.attn.qkv.weight.mul_(30)  # so that attention is uneven
    model, image = described(network), noise()
    fused = [each.attn.fused_attn for each in network.blocks]
    with torch.no_grad():
        before = network(inputs_of(model, image))
        for each in network.blocks:
            each.attn.fused_attn = False
        seen = AttentionExtract(network, method="fx")(inputs_of(model, image))  # timm's own reading
        for each, was in zip(network.blocks, fused, strict=True):
            each.attn.fused_attn = was
    matrices = [each[0].double().numpy() for each in seen.values()]
    ours = attention(network, inputs_of(model, image))
    assert len(matrices) == len(ours) == 2
    for one, other in zip(ours, matrices, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    patches = rollout(matrices)[rows].mean(axis=0)[prefix:]
    expected = (patches / patches.mean()).reshape(GRID, GRID)
    assert expected.max() > 1.05
    assert maps(model, image).rollout[[0, 0, -1, -1], [0, -1, 0, -1]] == pytest.approx(
        expected[[0, 0, -1, -1], [0, -1, 0, -1]], abs=1e-5
    )
    # the network is left as it was
    assert [each.attn.fused_attn for each in network.blocks] == fused
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in network.modules())
    assert all(each.grad is None for each in network.parameters())
    with torch.no_grad():
        assert torch.equal(network(inputs_of(model, image)), before)


@pytest.mark.parametrize(
    ("changes", "prefix"),
    [
        ({"class_token": False}, 0),
        ({}, 1),
        ({"pool_include_prefix": True}, 1),
        ({"class_token": False, "latents": 3}, 0),
    ],
    ids=str,
)
def test_rollout_weighs_patches_as_pooling_by_attention_does(changes, prefix):
    latents = changes.get("latents", 1)
    network = vit(global_pool="map", **{name: value for name, value in changes.items() if name != "latents"})
    if latents > 1:
        network.attn_pool = AttentionPoolLatent(16, num_heads=2, latent_len=latents, pool_type="avg")
    pool = network.attn_pool
    with torch.no_grad():
        for each in (*(block.attn.qkv for block in network.blocks), pool.q, pool.kv):
            each.weight.mul_(40)  # so that attention is uneven
    model, image = described(network), noise()
    # what is added to a token's value arrives in the pooled vector in proportion to its weight
    pooled, values = [], []
    hooks = [
        pool.kv.register_forward_hook(lambda _module, _inputs, output: values.append(output)),
        pool.proj.register_forward_pre_hook(lambda _module, inputs: pooled.append(inputs[0])),
    ]
    network(inputs_of(model, image))
    for each in hooks:
        each.remove()
    (found,) = torch.autograd.grad(pooled[0].sum(), values)
    width = found.shape[-1] // 2
    weights = found[0, :, width:].double().sum(dim=1).numpy()  # over the values of both heads and all latents
    weights /= weights.sum()
    assert weights.max() > 1.2 * weights.mean()
    joint = rollout(attention(network, inputs_of(model, image)))[-len(weights) :]
    assert len(joint) == prefix * ("pool_include_prefix" in changes) + GRID**2
    patches = (weights @ joint)[prefix:]
    expected = (patches / patches.mean()).reshape(GRID, GRID)
    assert maps(model, image).rollout[[0, 0, -1, -1], [0, -1, 0, -1]] == pytest.approx(
        expected[[0, 0, -1, -1], [0, -1, 0, -1]], abs=1e-5
    )
    assert not any(each._forward_hooks for each in network.modules())


@pytest.mark.parametrize("pooling", ["max", "avgmax", "prr"])
def test_another_pooling_is_refused(pooling):
    told = f"Maps of a VisionTransformer that pools its tokens by '{pooling}' cannot be made; allowed: token, avg, map"
    with pytest.raises(UserError, match=told):
        mappable(described(vit(global_pool=pooling, class_token=False)))


def test_the_second_head_of_deit_reads_a_token_of_its_own():
    torch.manual_seed(0)
    network = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=SIZE, patch_size=PATCH, embed_dim=16, depth=1, num_heads=1
    )
    network.reset_classifier(8)
    with torch.no_grad():
        network.blocks[0].attn.qkv.weight.mul_(30)
        network.dist_token.normal_()
        network.cls_token.normal_()
    model, image = described(network), noise()
    matrix = rollout(attention(network, inputs_of(model, image)))
    patches = matrix[:2, 2:].mean(axis=0)
    assert not np.allclose(matrix[0, 2:], matrix[1, 2:], atol=1e-4)
    assert maps(model, image).rollout[0, 0] == pytest.approx(patches[0] / patches.mean(), abs=1e-5)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_gradient_map_is_autograds(pool):
    offsets = np.linspace(-1, 1, 8)
    network = vit(global_pool=pool, fc_norm=False)
    nn.init.normal_(network.head.weight, std=0.3)
    model, image = described(network, offsets), noise()
    kept = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        kept.append(output)

    # what the last attention takes is the output of the norm before it
    hook = (network.blocks[-1].norm1 if pool == "token" else network.norm).register_forward_hook(keep)
    logits = network(inputs_of(model, image))
    hook.remove()
    share = torch.softmax(logits.double() + torch.from_numpy(offsets), dim=1)[0, 4:].sum()
    torch.log(share / (1 - share)).backward()
    by_hand = (kept[0].grad * kept[0]).sum(dim=2)[0, 1:].detach().numpy().reshape(GRID, GRID)
    assert np.abs(by_hand).max() > 1e-4
    found = maps(model, image).gradient[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert found == pytest.approx(by_hand[[0, 0, -1, -1], [0, -1, 0, -1]], rel=1e-3, abs=1e-7)


def test_the_target_is_the_log_odds_of_the_probability():
    model, image = described(vit(), np.linspace(-1, 1, 8)), noise()
    share = model.description.positive_probability(model.probabilities(image[None]))[0]
    with torch.no_grad():
        assert float(log_odds(model, inputs_of(model, image))[0]) == pytest.approx(
            np.log(share / (1 - share)), abs=1e-5
        )


def test_averaged_patches_add_up_to_the_log_odds():
    """With average pooling and a linear head of two classes the map is what each patch adds, and nothing is left."""
    network = vit(global_pool="avg", class_token=False, fc_norm=False, num_classes=2)
    nn.init.normal_(network.head.weight)
    model = described(network)
    model.description = SimpleNamespace(image_size=SIZE, first_positive=1, logit_offsets=())
    one = np.kron(np.eye(GRID), np.ones((PATCH, PATCH)))  # any image
    image = np.repeat((255 * one).astype(np.uint8)[:, :, None], 3, axis=2)
    with torch.no_grad():
        whole = float(log_odds(model, inputs_of(model, image))[0])
    # bilinear upsampling by a whole number keeps the mean but for the borders, so the patches are asked themselves
    from kdtvit_ray.deliver.maps import _added

    assert _added(model, inputs_of(model, image)).sum() == pytest.approx(whole, abs=1e-5)


# -- a planted signal --------------------------------------------------------------------------------------------------


def planted(row, column, size=SIZE, patch=PATCH):
    """A dim image with one bright patch."""
    image = noise(3, size) // 6
    image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 240
    return image


def patch_of(place, patch=PATCH):
    return tuple(int(each) // patch for each in np.unravel_index(place, (SIZE, SIZE)))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (3, 3)])
@pytest.mark.parametrize("changes", [{}, {"reg_tokens": 4}], ids=str)
def test_maps_find_the_patch_that_a_class_token_looks_at(row, column, changes):
    found = maps(looking(**changes), planted(row, column))
    assert patch_of(found.rollout.argmax()) == (row, column)
    assert patch_of(found.gradient.argmax()) == (row, column)
    assert found.rollout.max() > 5
    against = maps(looking(sign=-1.0, **changes), planted(row, column)).gradient
    assert patch_of(against.argmin()) == (row, column)
    assert abs(against.max()) < 0.05 * abs(against.min())


@pytest.mark.parametrize("changes", [{"class_token": False}, {"class_token": False, "reg_tokens": 2}, {}], ids=str)
def test_gradients_find_the_patch_that_is_averaged_without_attention(changes):
    model = looking(global_pool="avg", **changes)
    with torch.no_grad():
        model.network.blocks[0].attn.qkv.weight[9, 0] = 0.0  # no value arrives: the patch's own token alone counts
        model.network.head.weight[7] = torch.tensor([1.0, 0, 0, 0])
    assert patch_of(maps(model, planted(2, 1)).gradient.argmax()) == (2, 1)


def test_a_grid_that_reaches_beyond_the_image_is_cut_and_not_squeezed():
    model = looking(patch=5, dynamic_img_size=True, dynamic_img_pad=True)  # four by four patches cover 20 pixels
    found = maps(model, planted(1, 2, patch=5))
    assert found.rollout.shape == found.gradient.shape == (SIZE, SIZE)
    assert patch_of(found.rollout.argmax(), 5) == patch_of(found.gradient.argmax(), 5) == (1, 2)


def test_maps_are_the_same_every_time():
    model = described(vit())
    one, other = maps(model, noise()), maps(model, noise())
    assert np.array_equal(one.rollout, other.rollout)
    assert np.array_equal(one.gradient, other.gradient)
    assert one.rollout.dtype == one.gradient.dtype == np.float32


# -- random weights ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(one_thread):
    """A model that was trained to tell images with a bright patch somewhere, and the images it is asked about."""
    random = np.random.default_rng(5)
    images = random.integers(0, 120, (128, SIZE, SIZE, 3), dtype=np.uint8)
    places = random.integers(0, GRID, (128, 2))
    labels = np.arange(128) % 2
    for image, (row, column), label in zip(images, places, labels, strict=True):
        if label:
            image[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 120
    network = vit(seed=1, depth=3, embed_dim=24).train()
    model = described(network)
    pixels, truth = torch.from_numpy(images.copy()), torch.from_numpy(7 * labels)
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(100):
        loss = nn.functional.cross_entropy(network(model.normaliser(pixels)), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser.zero_grad()
    network.eval()
    assert loss.item() < 0.2, loss
    chosen = np.flatnonzero(labels)[:24]
    return model, images[chosen], places[chosen]


def randomised(model, *modules):
    """A copy of the model with these of its modules, by name, drawn anew."""
    network = vit(seed=1, depth=3, embed_dim=24)
    network.load_state_dict(model.network.state_dict())
    other = vit(seed=99, depth=3, embed_dim=24).state_dict()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not modules or name.startswith(modules):
                tensor.copy_(other[name])
    return described(network)


def likeness(model, other, images, what):
    """Mean rank correlation between the maps of two models."""
    pairs = ((getattr(maps(each, image), what).ravel() for each in (model, other)) for image in images)
    return float(np.mean([spearmanr(*pair).statistic for pair in pairs]))


def test_a_trained_model_looks_at_the_bright_patch(trained):
    model, images, places = trained
    found = [patch_of(maps(model, image).gradient.argmax()) for image in images]
    assert np.mean([each == tuple(place) for each, place in zip(found, places, strict=True)]) >= 0.7


@pytest.mark.parametrize("what", ["rollout", "gradient"])
def test_maps_of_random_weights_are_others(trained, what):
    model, images, _ = trained
    assert likeness(model, randomised(model, "no module"), images[:4], what) == pytest.approx(1)
    assert abs(likeness(model, randomised(model), images, what)) < 0.4


def test_gradients_fade_as_weights_are_randomised_from_the_head_down(trained):
    """This head has one direction only, benign against malignant, so another head may turn the map's sign but not its
    order; the blocks below it do the rest."""
    model, images, _ = trained
    steps = [("head",), ("head", "norm.", "blocks.2"), ("head", "norm.", "blocks.")]
    head, last, blocks = (likeness(model, randomised(model, *names), images, "gradient") for names in steps)
    assert head < 0.5
    assert abs(last) < 0.9
    assert abs(blocks) < 0.6


def test_rollout_knows_no_classes_but_changes_with_the_blocks(trained):
    """The sanity check that rollout cannot pass: its map is the same whatever the head says."""
    model, images, _ = trained
    assert likeness(model, randomised(model, "head"), images[:4], "rollout") == pytest.approx(1)
    assert abs(likeness(model, randomised(model, "blocks.2"), images, "rollout")) < 0.6
    assert abs(likeness(model, randomised(model, "blocks.2", "blocks.1"), images, "rollout")) < 0.5


# -- what cannot be mapped ---------------------------------------------------------------------------------------------


def test_a_model_without_attention_over_patches_is_refused():
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, window_size=7, depths=(1, 1), num_classes=8)
    with pytest.raises(UserError, match=r"Maps of a SwinTransformer cannot be made; allowed: vision transformers"):
        mappable(described(swin, size=56))


def test_an_onnx_model_is_refused():
    with pytest.raises(UserError, match="ONNX does not give; allowed: a study, or the folder of an export"):
        mappable(SimpleNamespace(description=None, batch=32, notes=()))
