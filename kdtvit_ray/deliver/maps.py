"""Where a vision transformer looks: attention rollout, and what each patch adds to the log odds by its gradient.

Attention rollout (Abnar and Zuidema, ACL 2020, doi 10.18653/v1/2020.acl-main.385) follows attention through all blocks
and knows nothing of the classes. Gradient x activation (captum's `LayerGradientXActivation`; on tokens it is the
HiResCAM of Draelos and Carin, arXiv 2011.08891) is made for the log odds of the positive side, so it has a sign.
Neither proves anything: read them beside maps of a model with random weights (Adebayo et al., NeurIPS 2018).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F

from kdtvit_ray.deliver.model import Model, TorchModel
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.numeric import numeric_mode

BY_TOKEN, BY_MEAN, BY_ATTENTION = "token", "avg", "map"
"""The ways of timm to make one vector of all tokens of which there are maps."""


@dataclass(frozen=True)
class Maps:
    """rollout (S, S) float32: how much attention reaches each place, where 1 is the mean over patches.
    gradient (S, S) float32: what each patch adds to the log odds of the positive side, to first order; above 0 it
    speaks for the positive side, below 0 against it."""

    rollout: np.ndarray
    gradient: np.ndarray


def mappable(model: Model) -> TorchModel:
    """The model, if maps of it can be made. Raises `UserError` for an ONNX model and an architecture whose tokens are
    not the patches of the image."""
    if not isinstance(model, TorchModel):
        raise UserError(
            "Maps need a model's attention and gradients, which ONNX does not give; allowed: a study, or the folder of "
            "an export where torch is installed"
        )
    _tokens(model)
    return model


def maps(model: TorchModel, image: np.ndarray) -> Maps:
    """Both maps of an image uint8 (S, S, 3). They are made in float32 and one image at a time, so that they do not
    depend on other images. The network is left as it was."""
    with numeric_mode(model.numeric, model.device):
        inputs = model.normaliser(torch.from_numpy(image[None].copy()).to(model.device))
        reached = _reached(model, inputs)
        added = _added(model, inputs)
    return Maps(*(_over_image(model, each) for each in (reached / reached.mean(), added)))


def attention(network: Any, inputs: Tensor) -> list[np.ndarray]:
    """Attention of each block, (heads, N, N) float64 with rows that sum to one, for one input (1, 3, S, S). A block
    with several attentions side by side gives the heads of all of them."""
    found: dict[int, list[Tensor]] = {}
    with _attention_seen(network, lambda block, seen: found.setdefault(block, []).append(seen)), torch.no_grad():
        network(inputs)
    return [torch.cat([each[0] for each in found[block]]).double().cpu().numpy() for block in sorted(found)]


def rollout(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Attention from the last block's tokens back to the first one's, (N, N), from each block's (heads, N, N): the mean
    over heads, half of it replaced by the identity for the residual connection, multiplied over blocks. Rows sum to
    one."""
    joint = np.eye(blocks[0].shape[-1])
    for each in blocks:
        mixed = 0.5 * each.mean(axis=0) + 0.5 * np.eye(each.shape[-1])
        joint = mixed / mixed.sum(axis=1, keepdims=True) @ joint
    return joint


def log_odds(model: TorchModel, inputs: Tensor) -> Tensor:
    """Log odds (B,) of the positive side, without the temperature, of normalised inputs (B, 3, S, S)."""
    logits, first = model.network(inputs).float(), model.description.first_positive
    if len(model.description.logit_offsets):
        logits = logits + torch.tensor(list(model.description.logit_offsets), device=logits.device)
    return logits[:, first:].logsumexp(dim=1) - logits[:, :first].logsumexp(dim=1)


def _reached(model: TorchModel, inputs: Tensor) -> np.ndarray:
    """Rollout to the patches (P,) from what the head reads."""
    blocks = attention(model.network, inputs)
    prefix, (rows, columns) = _tokens(model)
    for each in blocks:
        if each.shape[-2:] != (prefix + rows * columns,) * 2:
            raise _refused(model)
    joint = rollout(blocks)
    if model.network.global_pool == BY_ATTENTION:
        weights = _pooling(model.network, inputs)  # of all tokens, or of the patches
        return (weights @ joint[-len(weights) :])[prefix:]
    return joint[_read_by_head(model.network, prefix)].mean(axis=0)[prefix:]


def _added(model: TorchModel, inputs: Tensor) -> np.ndarray:
    """Gradient x activation of the patches (P,): of what the last attention takes where the head reads the class token,
    whose value patches change there for the last time; else of the last norm's output, of which the head reads all."""
    from captum.attr import LayerGradientXActivation

    prefix, _ = _tokens(model)
    by_token = _by_token(model.network)
    layers = _last_attention(model) if by_token else [model.network.norm]
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's on hooks that it takes away again
        method = LayerGradientXActivation(lambda each: log_odds(model, each), layers, multiply_by_inputs=True)
        found = method.attribute(inputs.detach().requires_grad_(), attribute_to_layer_input=by_token)
    of_tokens = torch.stack([each[0] if isinstance(each, tuple) else each for each in found]).detach()
    return of_tokens.double().sum(dim=(0, 1, 3))[prefix:].cpu().numpy()


@contextmanager
def _attention_seen(network: Any, see: Callable[[int, Tensor], object]) -> Iterator[None]:
    """Call `see(block, attention)` for every attention (B, heads, N, N) of a forward pass. For that time attention is
    computed step by step, since the fused kernels never hold it."""
    fused: list[Any] = [each for each in network.modules() if getattr(each, "fused_attn", False)]
    hooks = []
    try:
        for each in fused:
            each.fused_attn = False
        for place, block in enumerate(network.blocks):
            for module in _attending(block):

                def hook(_module: nn.Module, _inputs: Any, output: Tensor, place: int = place) -> None:
                    see(place, output)

                hooks.append(module.attn_drop.register_forward_hook(hook))
        yield
    finally:
        for hook_ in hooks:
            hook_.remove()
        for each in fused:
            each.fused_attn = True


def _attending(block: nn.Module) -> list[Any]:
    """The modules of a block that compute attention: timm's give it to their `attn_drop`."""
    return [each for each in block.modules() if isinstance(getattr(each, "attn_drop", None), nn.Module)]


def _last_attention(model: TorchModel) -> list[nn.Module]:
    found = _attending(model.network.blocks[-1])
    if model.network.blocks[-1] in found:  # block and attention are one, so its input is not normalised yet
        raise _refused(model)
    return found


def _by_token(network: nn.Module) -> bool:
    return network.global_pool == BY_TOKEN


def _pooling(network: Any, inputs: Tensor) -> np.ndarray:
    """How much each token counts (N,) in pooling by attention: the mean over heads and over the latents that are read.
    Sums to one."""
    pool, seen = network.attn_pool, {}

    def keep(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen[module] = output

    hooks = [each.register_forward_hook(keep) for each in (pool.q_norm, pool.k_norm)]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    queries, keys = (seen[each][0].double() for each in (pool.q_norm, pool.k_norm))  # (heads, latents or N, width)
    attended = (pool.scale * queries @ keys.transpose(1, 2)).softmax(dim=2)
    read = attended[:, :1] if pool.pool == BY_TOKEN else attended
    return read.mean(dim=(0, 1)).cpu().numpy()


def _read_by_head(network: nn.Module, prefix: int) -> slice:
    """The tokens that the head reads: the class token, with DeiT's second head its token as well, or all patches."""
    if _by_token(network):
        return slice(0, 2 if getattr(network, "head_dist", None) is not None else 1)
    return slice(0 if getattr(network, "pool_include_prefix", False) else prefix, None)


def _tokens(model: TorchModel) -> tuple[int, tuple[int, int]]:
    """Number of tokens before those of the patches, and the grid of patches (rows, columns). Raises `UserError` for
    another architecture, and for another way of pooling."""
    network, size = model.network, model.description.image_size
    embed = getattr(network, "patch_embed", None)
    told = (getattr(network, name, None) for name in ("blocks", "norm", "num_prefix_tokens"))
    if embed is None or any(each is None for each in told) or not len(network.blocks):
        raise _refused(model)
    if any(not _attending(block) for block in network.blocks):
        raise _refused(model)
    dynamic = getattr(network, "dynamic_img_size", False)
    pooling = getattr(network, "global_pool", "")
    attends = pooling == BY_ATTENTION and isinstance(network.attn_pool, AttentionPoolLatent)
    if pooling not in (BY_TOKEN, BY_MEAN) and not attends:
        raise UserError(
            f"Maps of a {type(network).__name__} that pools its tokens by '{pooling}' cannot be made; allowed: "
            f"{BY_TOKEN}, {BY_MEAN}, {BY_ATTENTION}"
        )
    grid = embed.dynamic_feat_size((size, size)) if dynamic else getattr(embed, "grid_size", None)
    if grid is None:
        raise _refused(model)
    return int(network.num_prefix_tokens), (int(grid[0]), int(grid[1]))


def _over_image(model: TorchModel, patches: np.ndarray) -> np.ndarray:
    """Patches (P,) as a map (S, S) float32, bilinear between their centres."""
    _, grid = _tokens(model)
    size, embed = model.description.image_size, model.network.patch_embed
    covered = (size, size)
    if getattr(embed, "dynamic_img_pad", False):  # the last patches reach beyond the image
        covered = (grid[0] * embed.patch_size[0], grid[1] * embed.patch_size[1])
    values = torch.from_numpy(patches.reshape(1, 1, *grid).copy())
    return F.interpolate(values, covered, mode="bilinear", align_corners=False)[0, 0, :size, :size].float().numpy()


def _refused(model: TorchModel) -> UserError:
    return UserError(
        f"Maps of a {type(model.network).__name__} cannot be made; allowed: vision transformers of timm whose blocks "
        "attend over all patches of the image"
    )
