"""Losses of a stage: `total = (1 - alpha) * cross-entropy + alpha * distillation`; without a teacher, cross-entropy.

Logits are (B, C), labels (B,). Every loss is a sum of per-image terms over the global batch, divided by that batch's
size ("batchmean"), so that a batch split over workers gives the same sum; `dist` alone relates the images of a batch
to one another and gathers them first.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from kdtvit_ray.recipe import Distillation

DKD_BETA = 8.0
"""Weight of the non-target part of DKD beside the target part's 1, as in its authors' code."""


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Per image (B,): `w[y_i] * CE_i`, the label mixed with the uniform distribution by `smoothing`.

    The weight multiplies the whole smoothed term and the caller divides by the batch size; torch's own `weight`
    would divide by the batch's sum of weights, which changes when a batch is split.
    """
    return weights[labels] * F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def class_weights(
    choice: str, labels: Tensor, classes: int, first_positive: int, shown: Tensor | None = None
) -> Tensor:
    """Weights (C,) of the classes by `Training.class_weights`, of mean one over the training images' `labels` (N,).
    Classes from `first_positive` on are the positive ones. `shown` (N,): how often an epoch shows each image, on
    average; once unless it is given."""
    if choice == "none":
        return torch.ones(classes)
    if choice == "balanced-binary":
        positive = (torch.arange(classes) >= first_positive).long()
        return balanced_weights(positive[labels], 2, shown)[positive]
    return balanced_weights(labels, classes, shown)


def logit_offsets(choice: str, weights: Tensor) -> Tensor:
    """What is added to the logits (M, C) of a trained model before probabilities are made of them: (C,) float64.

    Cross-entropy with weights w is least for probabilities in proportion to w times those of the training images, so
    `balanced-corrected` adds -log w; a class without training images has no weight and is left alone. Nothing
    (zeros) for the other choices.
    """
    if choice != "balanced-corrected":
        return torch.zeros(len(weights), dtype=torch.float64)
    return -torch.where(weights > 0, weights, 1.0).double().log()


def balanced_weights(labels: Tensor, classes: int, shown: Tensor | None = None) -> Tensor:
    """Weights (C,) inverse to the classes' counts among `labels` (N,), of mean one over these images, each of which
    counts as often as it is `shown` (N,)."""
    counts = torch.bincount(labels, shown, minlength=classes).float()
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * torch.where(present, counts, 1.0)), 0.0)


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Per image (B,): `T^2 * KL(softmax(teacher / T) || softmax(student / T))`, summed over classes
    (Hinton et al. 2015)."""
    target = F.log_softmax(teacher / temperature, dim=1)
    found = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(found, target, reduction="none", log_target=True).sum(dim=1) * temperature**2


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, beta: float = DKD_BETA) -> Tensor:
    """Per image (B,): decoupled distillation (Zhao et al. 2022): `T^2 * (target part + beta * non-target part)`.

    The target part compares (p_label, 1 - p_label), the other part the distributions over the remaining classes; with
    `beta = 1 - p_label` of the teacher the sum is `kd`.
    """
    # chosen by comparing, not by `gather`, whose deterministic gradient waits for a GPU and so cannot be recorded
    at, label = torch.arange(student.shape[1], device=student.device), labels[:, None]
    pairs, rests = [], []
    for logits in (student / temperature, teacher / temperature):
        own = torch.where(at == label, logits, 0.0).sum(dim=1, keepdim=True)
        rest = torch.where(at[:-1] < label, logits[:, :-1], logits[:, 1:])  # (B, C-1): every class but the label
        pair = torch.cat((own, rest.logsumexp(dim=1, keepdim=True)), dim=1)
        pairs.append(F.log_softmax(pair, dim=1))
        rests.append(F.log_softmax(rest, dim=1))
    target = F.kl_div(pairs[0], pairs[1], reduction="none", log_target=True).sum(dim=1)
    other = F.kl_div(rests[0], rests[1], reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * (target + beta * other)


def logit_std(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Per image (B,): `kd` of logits standardised over classes, so that only their shape counts (Sun et al. 2024)."""

    def standard(logits: Tensor) -> Tensor:
        return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)

    return kd(standard(student), standard(teacher), temperature)


def relations(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """DIST (Huang et al. 2022): `T^2 * (1 - Pearson correlation)` between the softened predictions of student and
    teacher, per image over classes (B,) and per class over the batch (C,). The loss is the sum of both means."""
    found = (student / temperature).softmax(dim=1)
    target = (teacher / temperature).softmax(dim=1)
    inter = 1 - _pearson(found, target)
    intra = 1 - _pearson(found.t(), target.t())
    return temperature**2 * inter, temperature**2 * intra


class Objective:
    """The loss of a stage. `weights` (C,) are the classes' weights, `distillation` is None without a teacher."""

    def __init__(self, distillation: Distillation | None, weights: Tensor, smoothing: float) -> None:
        self.distillation, self.weights, self.smoothing = distillation, weights, smoothing

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        batch: int,
        world: int = 1,
        labelled: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """This worker's share of (total, cross-entropy, distillation) over a global batch of `batch` images.

        `labelled` (B,) is 1 for images whose labels count and 0 for those that enter by the teacher's outputs alone:
        their cross-entropy is 0. All images count, unless it is given.
        The workers' shares add up to the loss of the whole batch, and so do their gradients.
        """
        of_image = cross_entropy(student, labels, self.weights, self.smoothing)
        hard = (of_image if labelled is None else of_image * labelled).sum() / batch
        if self.distillation is None:
            return hard, hard, torch.zeros_like(hard)
        assert teacher is not None
        alpha, soft = self.distillation.alpha, _distilled(self.distillation, student, teacher, labels, batch, world)
        return (1 - alpha) * hard + alpha * soft, hard, soft


def _distilled(
    distillation: Distillation, student: Tensor, teacher: Tensor, labels: Tensor, batch: int, world: int
) -> Tensor:
    """This worker's share of the distillation loss over a global batch of `batch` images, from its own logits (B, C) of
    student and teacher and its labels (B,)."""
    loss, temperature = distillation.loss, distillation.temperature
    if loss == "dist":
        return _dist_share(student, teacher, temperature, batch, world)
    if loss == "dkd":
        return dkd(student, teacher, labels, temperature).sum() / batch
    return {"kd": kd, "logit-std": logit_std}[loss](student, teacher, temperature).sum() / batch


def _dist_share(student: Tensor, teacher: Tensor, temperature: float, batch: int, world: int) -> Tensor:
    inter, intra = relations(student, teacher, temperature)
    if world > 1:
        # The other workers' logits enter as constants: each worker's gradient is that of the whole batch's loss by its
        # own images, and the workers' gradients add up to the full one.
        _, intra = relations(_gathered(student, batch, world), _gathered(teacher, batch, world), temperature)
    whole = intra.mean()
    return inter.sum() / batch + whole - whole.detach() * (1 - 1 / world)


def _gathered(own: Tensor, batch: int, world: int) -> Tensor:
    """All workers' logits (batch, C) in rank order; this worker's part keeps its gradient."""
    longest = -(-batch // world)
    padded = F.pad(own.detach(), (0, 0, 0, longest - len(own))).contiguous()
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    sizes = [batch // world + (rank < batch % world) for rank in range(world)]
    whole = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    whole[dist.get_rank()] = own
    return torch.cat(whole)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the rows of two matrices; 0 where a row is constant."""
    a, b = (each - each.mean(dim=1, keepdim=True) for each in (a, b))
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)
