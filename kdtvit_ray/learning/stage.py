"""Train one stage: from its spec, its data and its parent to weights, predictions, curves and cost.

A stage is a function of its spec. It can be stopped after any epoch and resumed bit for bit, and on several workers
(data parallel, the global batch fixed) it computes what one worker computes, up to the order of additions.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kdtvit_ray.data.batches import StageData, blocks_of, share
from kdtvit_ray.errors import StageFailed
from kdtvit_ray.learning import losses
from kdtvit_ray.learning.augmentation import Variants
from kdtvit_ray.learning.compiling import COMPILED_STEP, in_multiples
from kdtvit_ray.learning.data_parallel import SharedSteps
from kdtvit_ray.learning.drop_path import DropPaths
from kdtvit_ray.learning.evaluate import agreement, batch_of, latency, predict, softmax, usage
from kdtvit_ray.learning.features import Features, check_features, classifier
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.forward import check_forward
from kdtvit_ray.learning.low_rank import adapt, merge
from kdtvit_ray.learning.memory_retry import else_on_less, lacking
from kdtvit_ray.learning.mixup import partners, weight_of
from kdtvit_ray.learning.models import parameters
from kdtvit_ray.learning.numeric import autocast, hardware_name, lacks_memory, numeric_mode, pick_device
from kdtvit_ray.learning.optimise import adamw, check_layers, freeze, learning_rate, rates_of, restore, set_rates
from kdtvit_ray.learning.outcome import Checkpoint, Progress, StageResult, packed, unpacked
from kdtvit_ray.learning.outputs import FrozenOutputs, StoredOutputs
from kdtvit_ray.learning.preflight import check_stage
from kdtvit_ray.learning.recorded import Given, Step, steps_on
from kdtvit_ray.learning.stage_images import Shown
from kdtvit_ray.learning.teacher import Parent, Teacher
from kdtvit_ray.learning.team import ALONE, Team
from kdtvit_ray.learning.upload import uploaded
from kdtvit_ray.learning.warm import WarmModels
from kdtvit_ray.recipe import StageSpec


@else_on_less
def train_stage(
    spec: StageSpec,
    data: StageData,
    parent: Parent | None,
    *,
    device: str | torch.device | None = None,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Progress], bool] | None = None,
    outputs: StoredOutputs | None = None,
    models: WarmModels | None = None,
    team: Team = ALONE,
) -> StageResult | None:
    """Train and evaluate one stage; None when `on_epoch` said to stop (the state is saved then).

    `on_epoch` is called after each epoch on every worker; the answer of rank 0 counts. Every worker of the `team` gets
    the same result; checkpoints are rank 0's. `outputs` and `models` are what a process keeps between its stages; the
    result does not depend on them.
    Raises `UserError` for a spec that cannot be trained, `StageFailed` for a non-finite loss, on every worker,
    `OutOfMemory` on the worker that it happens to, and `NodeFault` for a device that cannot compute it.
    """
    where = pick_device(device)
    run = None
    with numeric_mode(spec.numeric, where):
        try:
            run = _Run(spec, data, parent, where, outputs or StoredOutputs(), models or WarmModels(), team)
            result = run.result() if run.train(checkpoint, on_epoch) else None
            run.give_back()
            return result
        except Exception as error:
            if run:
                run.models.forget(run.learner)
            if not lacks_memory(error):
                raise
            if models:
                models.clear()  # their memory is for the next try
            evaluated = run is not None and run.epoch == spec.training.epochs
            raise lacking(spec, where, run.place() if run else "before epoch 1", evaluated) from error


class _Run:
    """One stage being trained on one worker."""

    def __init__(
        self,
        spec: StageSpec,
        data: StageData,
        parent: Parent | None,
        device: torch.device,
        outputs: StoredOutputs,
        models: WarmModels,
        team: Team,
    ) -> None:
        assert (parent.spec.key if parent else None) == spec.parent
        began = time.perf_counter()
        self.spec, self.data, self.device, self.models, self.team = spec, data, device, models, team
        check_stage(
            spec,
            parent.spec.model if parent and spec.distillation else None,
            data.dataset,
            data.prepared.images.shape[1],
        )
        self.shown = Shown(spec, data)
        started = time.perf_counter()
        self.pixels = data.pixels(spec.model.image_size, spec.training.crop)
        self.pixels.make(self.shown.rows)
        data_seconds = time.perf_counter() - started

        started_from = parent.state if parent and spec.warm else None
        self.student = models.lend(spec.model, spec.seed, device, started_from)
        check_layers(self.student, spec.model.name, spec.training)
        check_forward(self.student, spec.model, spec.training)
        check_features(self.student, spec.model, spec.training)
        self.size = parameters(self.student)
        freeze(self.student, spec.training)
        # stages of one chain start in different subspaces: what the first one learned is merged when the next begins
        adapt(self.student, spec.training.lora_rank, (spec.seed, *spec.magnifications))
        self.learner = self.student  # what a step runs and moves
        self.stored: list[FrozenOutputs] = []
        self.features = None
        if spec.training.trainable_blocks == 0:
            self.learner = classifier(self.student)
            self.features = Features(self.student, spec, data, outputs, device, team)
            self.stored.append(self.features)
        self.drop_paths = DropPaths(self.student, spec.training.drop_path, spec.seed)
        self.teacher = None
        if spec.distillation and parent:
            self.teacher = Teacher(parent, spec, data, outputs, device, team, models)
            self.stored.append(self.teacher)

        labels = torch.from_numpy(data.labels(spec.model.head)[self.shown.rows])
        classes = spec.model.classes
        first_positive = data.dataset.first_positive_output(spec.model.head)
        labelled, times = self.shown.labelled(), self.shown.times()
        self.labelled = labelled.to(device) if labelled is not None else None
        weights = losses.class_weights(spec.training.class_weights, labels, classes, first_positive, times)
        self.class_weights, self.offsets = weights, losses.logit_offsets(spec.training.class_weights, weights)
        self.labels = labels.to(device)
        self.objective = losses.Objective(spec.distillation, weights.to(device), spec.training.label_smoothing)
        self.optimizer = adamw(self.student, spec.training)
        self.average = ModelEmaV3(self.learner, spec.training.ema, use_warmup=True) if spec.training.ema > 0 else None
        self.steps_per_epoch = len(self.shown.batches(0))
        self.multiple = 1
        longest = max(
            -(-self.shown.per_epoch // self.steps_per_epoch) + COMPILED_STEP - 1, batch_of(device, self.pixels.size)
        )
        variants = Variants(spec.training, spec.seed, device)
        self.feed = Feed(self.pixels, self.student, longest, device, variants)

        self.epoch = self.step = 0
        self.curves: list[dict[str, Any]] = []
        self.spent = {
            "data_seconds": data_seconds,
            "setup_seconds": time.perf_counter() - began - data_seconds,
            "train_seconds": 0.0,
            "teacher_seconds": 0.0,
            "teacher_asked": 0,
            "teacher_computed": 0,
            **(self.features.tally() if self.features else {}),
        }

    def place(self) -> str:
        """Where the stage is, for messages."""
        if self.epoch == self.spec.training.epochs:
            return "in the evaluation"
        return f"in epoch {self.epoch + 1}, step {self.step + 1} of {self.steps_per_epoch},"

    def train(self, checkpoint: Checkpoint | None, on_epoch: Callable[[Progress], bool] | None) -> bool:
        """Train to the last epoch, from the checkpoint on where there is one; False when told to stop before."""
        if checkpoint is not None:
            self._resume(checkpoint)
        images = self.shown.per_epoch * self.spec.training.epochs
        with self.models.compiled(self.learner, self.device, images) as self.multiple:
            return self._train_epochs(self._steps(), checkpoint, on_epoch)

    def _steps(self) -> Step:
        buffers = tuple(self.student.buffers())
        if self.team.alone:
            return steps_on(self._step, self.device, buffers)
        self.team.same((*self.student.parameters(), *buffers))
        moved = [each for each in self.student.parameters() if each.requires_grad]
        # this loss relates the images of all workers to each other: they talk within the step
        apart = self.spec.distillation is None or self.spec.distillation.loss != "dist"
        return SharedSteps(
            self._backward, self._update, moved, self.team, self.device, buffers=buffers, recordable=apart
        )

    def _train_epochs(
        self, step: Step, checkpoint: Checkpoint | None, on_epoch: Callable[[Progress], bool] | None
    ) -> bool:
        saved = time.monotonic()
        while self.epoch < self.spec.training.epochs:
            started = time.perf_counter()
            self._train_epoch(step)
            self._count_stored()
            self.spent["train_seconds"] += time.perf_counter() - started
            go_on = self.team.agree(on_epoch(self._progress()) if on_epoch else True)
            due = checkpoint is not None and time.monotonic() - saved >= checkpoint.every_seconds
            if checkpoint is not None and self.team.leads and (due or not go_on):
                checkpoint.save(packed(self._state()))
                saved = time.monotonic()
            if not go_on:
                return False
        return True

    def result(self) -> StageResult:
        """Evaluate the trained student: the average of its weights, where there is one, with updates merged."""
        if self.average:
            self.learner.load_state_dict(self.average.module.state_dict())
        self.team.same(self.student.buffers())  # running statistics, of each worker's own images
        trained = parameters(self.student)
        merge(self.student)
        spec, started = self.spec, time.perf_counter()
        rows, codes = self.data.evaluated()
        self.pixels.make(rows)
        logits = predict(self.student, self.feed, rows, spec.model.classes, spec.numeric, self.team)
        if not np.isfinite(logits).all():
            raise StageFailed(f"The model's outputs are not finite after epoch {self.epoch}; use a lower lr")
        follows = None
        validation = self.data.rows("validation", spec.magnifications)
        if self.teacher and len(validation):
            theirs = self.teacher.of("validation", validation, np.zeros(blocks_of(len(validation)), np.int64))
            ours = logits[: int((codes == 0).sum())]  # validation comes first
            follows = agreement(ours[np.isin(self.data.rows("validation"), validation)], theirs)
            self._count_stored()
        cost = {
            **self.spent,
            "evaluate_seconds": time.perf_counter() - started,
            "steps": self.steps_per_epoch * self.epoch,
            "images": self.shown.per_epoch * self.epoch,
            **({"rehearsed_images": self.shown.rehearsed * self.epoch} if spec.earlier else {}),
            "evaluated_images": len(rows),
            "parameters": self.size,
            "trainable_parameters": trained,
            "device": hardware_name(self.device),
            "device_type": self.device.type,
            "workers": self.team.size,
            **latency(self.student, spec.model, spec.numeric, self.device),
        }
        state = {name: value.detach().to("cpu", copy=True) for name, value in self.student.state_dict().items()}
        predictions = {"image": rows.astype(np.int32), "split": codes, "probabilities": softmax(logits, self.offsets)}
        weighting = {"class_weights": self.class_weights.tolist(), "logit_offsets": self.offsets.tolist()}
        needed = usage(self.student, spec, self.data)
        return StageResult(spec, state, predictions, self.curves, follows, cost, weighting, needed)

    def give_back(self) -> None:
        """Let later stages use the models of this one, which yields nothing more."""
        self.drop_paths.remove()
        self.models.take_back(self.student)
        if self.teacher and self.teacher.model:
            self.models.take_back(self.teacher.model)

    def _train_epoch(self, step: Step) -> None:
        spec, settings = self.spec, self.spec.training
        batches, view_of = self.shown.batches(self.epoch), self.shown.views(self.epoch)

        def images(seen: np.ndarray) -> Tensor:
            return self.feed(self.shown.rows[seen], view_of[seen])

        target, features = (
            None if found is None else torch.from_numpy(found).to(self.device)
            for found in (self.shown.outputs(batches, each, self.epoch) for each in (self.teacher, self.features))
        )
        # Losses of each step stay on the device until the epoch's end: reading them would wait for the step.
        sums = torch.zeros(len(batches), 4, dtype=torch.float64, device=self.device)
        self.learner.train()
        shares = [share(batch, self.team.rank, self.team.size) for batch in batches]
        on_device = uploaded(np.concatenate(shares), self.device).split([len(mine) for mine in shares])
        for index, (batch, mine, chosen) in enumerate(zip(batches, shares, on_device, strict=True)):
            self.step = index
            seen = in_multiples(mine, self.multiple)
            rate = learning_rate(self.epoch * len(batches) + index, len(batches), settings)
            given = {
                "inputs": features[chosen] if features is not None else images(seen),
                "labels": self.labels[chosen],
                "rates": rates_of(self.optimizer, rate, self.device),
            }
            if settings.mixup > 0:
                others = share(partners(batch), self.team.rank, self.team.size)
                weight = weight_of(settings.mixup, spec.seed, self.epoch, index)
                theirs = images(in_multiples(others, self.multiple))
                given["inputs"] = weight * given["inputs"] + (1 - weight) * theirs
                given["blended labels"] = self.labels[uploaded(others, self.device)]
                given["weight"] = uploaded(np.array(weight), self.device)
            if target is not None:
                given["targets"] = target[chosen]
            if self.labelled is not None:
                given["labelled"] = self.labelled[chosen]
            masks = self.drop_paths.masks(self.epoch, self.shown.rows[seen], self.device)
            if masks is not None:
                given["masks"] = masks
            sums[index] = step(given, len(batch))
            if self.average:
                self.average.update(self.learner, self.epoch * len(batches) + index + 1)
        self._close_epoch(sums, np.array([len(batch) for batch in batches]), rate)

    def _step(self, given: Given, batch: int) -> Tensor:
        """One step of the optimiser over a batch of so many images: what `_backward` answers. A recording of it runs no
        Python."""
        found = self._backward(given, batch)
        self._update(given, batch)
        return found

    def _backward(self, given: Given, batch: int) -> Tensor:
        """Gradients of this worker's share of the loss of a global batch of so many images; its total, cross-entropy,
        distillation, images with the teacher's argmax (4,)."""
        self.student.zero_grad(set_to_none=True)
        self.drop_paths.set(given.get("masks"))
        with autocast(self.spec.numeric, self.device):
            logits = self.learner(given["inputs"])[: len(given["labels"])]
        logits, targets = logits.float(), given.get("targets")
        parts: tuple[Tensor, ...]
        parts = self.objective(logits, targets, given["labels"], batch, self.team.size, given.get("labelled"))
        if "weight" in given:
            weight = given["weight"]
            other = self.objective(logits, targets, given["blended labels"], batch, self.team.size)
            parts = tuple(weight * own + (1 - weight) * its for own, its in zip(parts, other, strict=True))
        parts[0].backward()
        same = (logits.argmax(1) == targets.argmax(1)).sum() if targets is not None else parts[0].detach() * 0
        return torch.stack((*(part.detach() for part in parts), same))

    def _update(self, given: Given, batch: int) -> Tensor:
        """Move the weights by the gradients of the whole batch; the rates."""
        clip = self.spec.training.clip_grad
        if clip > 0:
            nn.utils.clip_grad_norm_(self.student.parameters(), clip, foreach=True)
        set_rates(self.optimizer, given["rates"])
        self.optimizer.step()
        return given["rates"]

    def _close_epoch(self, sums: Tensor, sizes: np.ndarray, rate: float) -> None:
        """Add the workers' shares up, refuse a non-finite loss, write the epoch's line of the curves."""
        self.team.add_up(sums)
        of_step = sums.cpu().numpy()  # (steps, 4): total, cross-entropy, distillation, images with the same argmax
        bad = np.flatnonzero(~np.isfinite(of_step[:, :3]).all(axis=1))
        if len(bad):
            total, hard, soft = of_step[bad[0], :3]
            raise StageFailed(
                f"The loss is not finite in epoch {self.epoch + 1}, step {bad[0] + 1} of {len(sizes)}: "
                f"total {total:g}, cross-entropy {hard:g}, distillation {soft:g}; a lower lr or clip_grad may help"
            )
        self.epoch += 1
        total, hard, soft = ((of_step[:, column] * sizes).sum() / sizes.sum() for column in range(3))
        self.curves.append(
            {
                "epoch": self.epoch,
                "loss": float(total),
                "cross_entropy": float(hard),
                "distillation": float(soft) if self.teacher else None,
                "lr": rate,
                "agreement": float(of_step[:, 3].sum() / sizes.sum()) if self.teacher else None,
            }
        )

    def _count_stored(self) -> None:
        for each in self.stored:
            for name, value in each.tally().items():
                self.spent[name] += value

    def _progress(self) -> Progress:
        last = self.curves[-1]
        return Progress(
            self.epoch,
            self.spec.training.epochs,
            self.epoch * self.steps_per_epoch,
            last["loss"],
            last["cross_entropy"],
            last["distillation"] or 0.0,
        )

    def _state(self) -> dict[str, Any]:
        return {
            "key": self.spec.key,
            "epoch": self.epoch,
            "model": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "curves": self.curves,
            "spent": self.spent,
        }

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this stage; one that is damaged or another stage's counts as none."""
        content = self.team.agree(checkpoint.load() if self.team.leads else None)
        state = unpacked(content, self.spec.key, self.device) if content is not None else None
        if state is None:
            return
        self.student.load_state_dict(state["model"])
        restore(self.optimizer, state["optimizer"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.epoch, self.curves = state["epoch"], state["curves"]
        of_this_process = ("data_seconds", "setup_seconds")
        self.spent |= {name: value for name, value in state["spent"].items() if name not in of_this_process}
