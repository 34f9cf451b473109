"""Low-rank adaptation (LoRA, Hu et al. 2022): the attention's linear layers stay as they are and learn an update B A.

While a stage is trained, the layers `qkv` and `proj` of every block's attention compute W x + SCALE * B A x, with
W frozen, A (rank, in) random and B (out, rank) zero at first, so that training starts from the model as it is. At the
end the updates are merged into the weights: what a stage yields is a plain model again.
"""

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from kdtvit_ray.data.batches import uniform
from kdtvit_ray.errors import UserError

SCALE = 2.0
"""Factor on B A: the paper's alpha / rank, with alpha twice the rank. Its size acts as the learning rate's does."""
LAYERS = ("qkv", "proj")
"""The attention's linear layers, by timm's names, that learn an update."""

_LOW_RANK = 6


class LowRank(nn.Linear):
    """A linear layer with a frozen weight (out, in) and a trained update SCALE * B A of it.

    `lora_a` (rank, in) is uniform within 1 / sqrt(in), as a function of `keys` and of the layer's name; `lora_b`
    (out, rank) is zero.
    """

    def __init__(self, layer: nn.Linear, rank: int, name: str, keys: Sequence[int]) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
        drawn = uniform(_LOW_RANK, *keys, digest, torch.arange(rank * self.in_features).numpy())
        start = torch.from_numpy((2 * drawn - 1) * self.in_features**-0.5).to(self.weight)
        self.lora_a = nn.Parameter(start.view(rank, self.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, rank))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + SCALE * F.linear(F.linear(input, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that computes the same, in the memory of this one's weight."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        plain.weight += SCALE * self.lora_b @ self.lora_a
        return plain


def adapt(model: nn.Module, rank: int, keys: Sequence[int]) -> None:
    """Give the attention of every block of a frozen model updates of this rank, which are trained. `keys` decide how
    they start. With rank 0 nothing changes."""
    if not rank:
        return
    for name, attention in _attentions(model).items():
        for layer in LAYERS:
            setattr(attention, layer, LowRank(getattr(attention, layer), rank, f"{name}.{layer}", keys))


def merge(model: nn.Module) -> None:
    """Make every layer with an update a plain one that computes the same."""
    for attention in _attentions(model).values():
        for layer in LAYERS:
            adapted = getattr(attention, layer)
            if isinstance(adapted, LowRank):
                setattr(attention, layer, adapted.merged())


def check_low_rank(model: nn.Module, name: str, rank: int) -> None:
    """Raise a `UserError` where the model, called `name`, has no layers for updates of this rank."""
    found = _attentions(model).values()
    blocks: Sequence[nn.Module] = getattr(model, "blocks", ())
    if not len(found) or len(found) != len(blocks):
        raise UserError(
            f"lora_rank is {rank}, but model '{name}' has no attention with linear layers {' and '.join(LAYERS)} in "
            "each of its blocks; allowed: lora_rank = 0, or a plain vision transformer"
        )
    width = min(min(each.qkv.weight.shape + each.proj.weight.shape) for each in found)
    if rank > width:
        raise UserError(
            f"lora_rank is {rank}, but the attention of model '{name}' has {width} features, so that is no low rank; "
            f"allowed: 0 to {width}"
        )


def _attentions(model: nn.Module) -> dict[str, Attention]:
    """Attention by name. Other kinds than timm's plain one may use their weights without calling the layer."""
    return {
        name: each
        for name, each in model.named_modules()
        if isinstance(each, Attention) and all(isinstance(getattr(each, layer), nn.Linear) for layer in LAYERS)
    }
