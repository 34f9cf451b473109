"""AdamW without decay on what must not decay, and the learning rate of each layer and step."""

import math
from typing import Any

import numpy as np
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.low_rank import check_low_rank
from kdtvit_ray.learning.models import of_head
from kdtvit_ray.learning.upload import uploaded
from kdtvit_ray.recipe import ALL_BLOCKS, Training


def adamw(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused. Biases, norms, scales and what the model names itself (position
    embeddings, class and register tokens) are not decayed.

    A group whose rate is not that of the schedule has the factor between them as `lr_scale`. On a GPU the rates are
    tensors there, so that a recorded step finds those of its time (`set_rates`).
    """
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    exempt |= {name for name, each in named.items() if each.ndim <= 1}
    exempt |= {name for name in named if name.endswith(("pos_embed", "cls_token", "reg_token", "dist_token"))}
    scales = lr_scales(model, training)
    groups: list[dict[str, Any]] = []
    for scale in sorted({scales[name] for name in named}):
        names = [name for name in named if scales[name] == scale]
        factor = {"lr_scale": scale} if scale != 1 else {}
        decayed = [named[name] for name in names if name not in exempt]
        kept = [named[name] for name in names if name in exempt]
        groups += [
            {"params": decayed, "weight_decay": training.weight_decay, **factor},
            {"params": kept, "weight_decay": 0.0, **factor},
        ]
    device = next(iter(named.values())).device
    on_gpu = device.type == "cuda"
    rate: float | Tensor = torch.tensor(training.lr, device=device) if on_gpu else training.lr
    return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=on_gpu)


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser the moments of a checkpoint, which may come from another kind of device."""
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        saved["capturable"] = group["capturable"]
    optimizer.load_state_dict(state)


def rates_of(optimizer: torch.optim.Optimizer, rate: float, device: torch.device) -> Tensor:
    """The learning rate of each group (G,) at this rate of the schedule, on the device."""
    rates = np.array([rate * group.get("lr_scale", 1.0) for group in optimizer.param_groups])
    return uploaded(rates.astype(np.float32) if device.type == "cuda" else rates, device)


def set_rates(optimizer: torch.optim.Optimizer, rates: Tensor) -> None:
    """Let the next step move each group at its rate (G,)."""
    for group, rate in zip(optimizer.param_groups, rates if rates.is_cuda else rates.tolist(), strict=True):
        group["lr"] = rate


def lr_scales(model: nn.Module, training: Training) -> dict[str, float]:
    """Factor on the learning rate of each parameter, by name: `layer_decay` to the power of the layers above its own,
    and `head_lr` for the head."""
    scales = dict.fromkeys((name for name, _ in model.named_parameters()), 1.0)
    if training.layer_decay != 1:
        layers = layers_of(model)
        top = max(layers.values())
        scales = {name: training.layer_decay ** (top - layers[name]) for name in scales}
    for name in head_of(model):
        scales[name] *= training.head_lr
    return scales


def freeze(model: nn.Module, training: Training) -> None:
    """Freeze all but the last `trainable_blocks` blocks, the norm after them and the head; with 0 all but the head, and
    with `ALL_BLOCKS` nothing, or all but the head where the blocks learn updates of a low rank."""
    trainable_blocks = 0 if training.lora_rank else training.trainable_blocks
    if trainable_blocks == ALL_BLOCKS:
        return
    layers, kept = layers_of(model), set(head_of(model))
    if trainable_blocks:
        kept |= {name for name, layer in layers.items() if layer >= max(layers.values()) - int(trainable_blocks)}
    for name, each in model.named_parameters():
        if name not in kept:
            each.requires_grad_(False)


def layers_of(model: nn.Module) -> dict[str, int]:
    """Layer of each parameter, by name, as timm groups them: 0 for the patch embedding and the tokens, then the blocks,
    the last one with the norm after it, then the head. {} for a model that does not tell its layers."""
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        return {}
    found: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    return found


def head_of(model: nn.Module) -> list[str]:
    """Names of the parameters of the classifier; none where the model does not tell."""
    return [name for name, _ in model.named_parameters() if of_head(name, model)]


def check_layers(model: nn.Module, name: str, training: Training) -> None:
    """Raise a `UserError` for settings that need layers or a head that this model, called `name`, does not tell."""
    top = max(layers_of(model).values(), default=0)
    if training.layer_decay != 1 and top < 2:
        raise UserError(
            f"layer_decay is {training.layer_decay:g}, but model '{name}' does not tell its layers; "
            "allowed: layer_decay = 1, or another model"
        )
    if training.head_lr != 1 and not head_of(model):
        raise UserError(
            f"head_lr is {training.head_lr:g}, but model '{name}' does not tell its head; "
            "allowed: head_lr = 1, or another model"
        )
    if training.lora_rank:
        if not head_of(model):
            raise UserError(
                f"lora_rank is {training.lora_rank}, but model '{name}' does not tell its head; "
                "allowed: lora_rank = 0, or another model"
            )
        check_low_rank(model, name, training.lora_rank)
    trained = training.trainable_blocks
    if trained != ALL_BLOCKS and (top < 2 or not head_of(model)):
        raise UserError(
            f"trainable_blocks is {trained}, but model '{name}' does not tell its blocks and its head; "
            f'allowed: trainable_blocks = "{ALL_BLOCKS}", or another model'
        )
    if trained != ALL_BLOCKS and not 0 <= int(trained) < top:
        raise UserError(
            f"trainable_blocks is {trained}, but model '{name}' has {top - 1} blocks; "
            f'allowed: "{ALL_BLOCKS}", or 0 to {top - 1} (blocks as timm groups the layers of this model)'
        )


def learning_rate(step: int, steps_per_epoch: int, training: Training) -> float:
    """Rate of a step (from 0): linear warm-up, reaching `lr` on its last step, then half a cosine down to
    `lr * min_lr_ratio` at the last step of the stage.

    A warm-up is shorter than its stage (`preflight.check_warmup`), so that the last step decays however it is rounded.
    """
    total = training.epochs * steps_per_epoch
    warmup = min(round(training.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return training.lr * (step + 1) / warmup
    done = (step - warmup + 1) / (total - warmup)
    return training.lr * (training.min_lr_ratio + (1 - training.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2)
