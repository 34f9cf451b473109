"""What goes into and comes out of the training of a stage: its progress, where it keeps its state, its result."""

import io
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdtvit_ray.recipe import StageSpec


@dataclass(frozen=True)
class Progress:
    """Where a stage is: `epoch` of `epochs` is finished, `step` steps in all; the losses are the epoch's means."""

    epoch: int
    epochs: int
    step: int
    loss: float
    cross_entropy: float
    distillation: float


class Checkpoint(Protocol):
    """Where a stage keeps its state between epochs; `every_seconds` is the least time between two savings."""

    every_seconds: float

    def load(self) -> bytes | None: ...

    def save(self, content: bytes) -> None: ...


def packed(state: dict[str, Any]) -> bytes:
    """A stage's state as the content of a checkpoint. Its `key` is the stage's."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def unpacked(content: bytes, key: str, device: torch.device) -> dict[str, Any] | None:
    """The state in a checkpoint, on the device; None where it is damaged or another stage's than that of the key."""
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception:  # whatever a torn file makes the unpickler raise
        return None
    return state if state.get("key") == key else None


@dataclass(frozen=True)
class StageResult:
    """What a stage yields.

    `state`: weights by name, on the CPU. `predictions`: `image` int32 (M,) positions in the prepared set, `split` int8
    (M,) codes (0 validation, 1 test), `probabilities` float64 (M, C), over all magnifications. `curves`: one dict an
    epoch. `agreement` with the teacher on validation at the stage's magnifications, None without either. `cost`:
    seconds (those of training and evaluation include `teacher_seconds`), counts, speed of the model. `weighting`: the
    `class_weights` (C,) of the loss and the `logit_offsets` (C,): probabilities are softmax(logits + offsets), also
    wherever else the weights are used. As a teacher the model gives its logits without offsets: its student is trained
    with such weights as well, so that both terms of its loss ask for the same probabilities, and its own offsets
    correct what it has learned from both. `usage`: what else one needs beside the weights to use the model
    (`evaluate.usage`).
    """

    spec: StageSpec
    state: dict[str, Tensor]
    predictions: dict[str, np.ndarray]
    curves: list[dict[str, Any]]
    agreement: dict[str, float] | None
    cost: dict[str, Any] = field(default_factory=dict)
    weighting: dict[str, list[float]] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
