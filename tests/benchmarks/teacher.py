"""A distilled stage with stored teacher outputs against the same stage with a live teacher in the step; one thread.

Eight views are seen once each in eight epochs, so the first stage under a teacher has to compute every output; stages
that follow with the same teacher (another temperature, alpha or student) find them stored. The peer runs the same
batches, views, student, loss and optimiser, and asks the teacher in every step. Without evaluation; figures are CPU
seconds, which other work on the machine changes little.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kdtvit_ray.data.batches import BLOCK, StageData, block_views, blocks_of, epoch_batches
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.synthetic import synthesise
from kdtvit_ray.learning import losses
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.models import build, parameters
from kdtvit_ray.learning.optimise import adamw, learning_rate
from kdtvit_ray.learning.outcome import Progress
from kdtvit_ray.learning.outputs import StoredOutputs
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.teacher import Parent, frozen
from kdtvit_ray.recipe import DataSpec, Distillation, ModelSpec, StageSpec, Training

SETTINGS = Training(epochs=8, batch=32)


def live(spec: StageSpec, data: StageData, parent: Parent) -> float:
    """CPU seconds of the stage's training with the teacher's forward pass in each step."""
    device = torch.device("cpu")
    model, teacher = build(spec.model, spec.seed), frozen(parent, device)
    rows = data.rows("train", spec.magnifications)
    feed = Feed(data.pixels(spec.model.image_size, "none"), model, spec.training.batch, device)
    labels = torch.from_numpy(data.labels("subtype")[rows])
    first = data.dataset.first_positive_output(spec.model.head)
    weights = losses.class_weights(spec.training.class_weights, labels, spec.model.classes, first)
    objective = losses.Objective(spec.distillation, weights, spec.training.label_smoothing)
    optimizer = adamw(model, spec.training)
    started = time.process_time()
    for epoch in range(spec.training.epochs):
        views = np.repeat(block_views(blocks_of(len(rows)), spec.training.all_views, spec.seed, epoch), BLOCK)[
            : len(rows)
        ]
        batches = epoch_batches(len(rows), spec.training.batch, spec.seed, epoch)
        for index, batch in enumerate(batches):
            inputs = feed(rows[batch], views[batch])
            with torch.no_grad():
                taught = teacher(inputs)
            loss, _, _ = objective(model(inputs), taught, labels[torch.from_numpy(batch)], len(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec.training.clip_grad, foreach=True)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * len(batches) + index, len(batches), spec.training)
            optimizer.step()
            optimizer.zero_grad()
    return time.process_time() - started


def seconds(spec: StageSpec, data: StageData, parent: Parent, outputs: StoredOutputs) -> float:
    """CPU seconds from the stage's start to the end of its training."""
    ends = []

    def told(progress: Progress) -> bool:
        ends.append(time.process_time())
        return True

    started = time.process_time()
    train_stage(spec, data, parent, outputs=outputs, on_epoch=told)
    return ends[-1] - started


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        synthesise(folder / "images", patients=24, per_magnification=3, size=(140, 92))
        prepared = prepare(folder / "images", folder / "prepared", size=64, aspect="squash")
        data = StageData(prepared, DataSpec())
        student = ModelSpec("micro")
        print("  student micro, 64 px, 8 epochs            live    first stage   stages after it")
        tiny = (("patch_size", 8),)
        for teacher in (student, ModelSpec("tiny", tiny)):
            root = StageSpec((40,), teacher, SETTINGS)
            parent = Parent(root, build(teacher, 0).state_dict())
            spec = replace(
                root, magnifications=(100,), model=student, parent=root.key, distillation=Distillation(4.0, 0.5)
            )
            again = replace(spec, distillation=Distillation(2.0, 0.7))
            rounds = []  # in turns, so that a machine that is busy for a while is so for all; the first one warms up
            for _ in range(3):
                outputs = StoredOutputs()
                first = seconds(spec, data, parent, outputs)
                rounds.append((live(again, data, parent), first, seconds(again, data, parent, outputs)))
            theirs, first, after = (min(each) for each in zip(*rounds[1:], strict=True))
            size = parameters(build(teacher, 0)) / 1e6
            told = f"{first:5.2f} s {theirs / first:4.2f}x   {after:5.2f} s {theirs / after:4.2f}x"
            print(f"  teacher {teacher.name:6s} {size:5.1f} M parameters   {theirs:8.2f} s   {told}")


if __name__ == "__main__":
    main()
