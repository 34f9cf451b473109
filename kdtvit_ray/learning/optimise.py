"""AdamW without decay on what must not decay, and the learning rate of each step."""

import math

import torch
from torch import nn

from kdtvit_ray.recipe import Training


def adamw(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused. Biases, norms, scales and what the model names itself (position
    embeddings, class and register tokens) are not decayed."""
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    exempt |= {name for name, each in named.items() if each.ndim <= 1}
    exempt |= {name for name in named if name.endswith(("pos_embed", "cls_token", "reg_token", "dist_token"))}
    groups = [
        {"params": [each for name, each in named.items() if name not in exempt], "weight_decay": training.weight_decay},
        {"params": [each for name, each in named.items() if name in exempt], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.lr, fused=True)


def learning_rate(step: int, steps_per_epoch: int, training: Training) -> float:
    """Rate of a step (from 0): linear warm-up, reaching `lr` on its last step, then half a cosine down to
    `lr * min_lr_ratio` at the last step of the stage.

    A warm-up is shorter than its stage (`recipe.check_warmup`), so that the last step decays however it is rounded.
    """
    total = training.epochs * steps_per_epoch
    warmup = min(round(training.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return training.lr * (step + 1) / warmup
    done = (step - warmup + 1) / (total - warmup)
    return training.lr * (training.min_lr_ratio + (1 - training.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2)
