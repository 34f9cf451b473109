"""A linear probe on stored features against the same probe with the frozen model in every step; one thread, 64 px.

The peer runs the same batches, views and optimiser. The first stage on a model computes its features; the stages after
it, which differ in their rate, find them stored. Without evaluation; figures are CPU seconds, which other work on the
machine changes little.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kdtvit_ray.data.batches import BLOCK, StageData, block_views, blocks_of, epoch_batches
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.synthetic import synthesise
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.optimise import adamw, freeze, learning_rate
from kdtvit_ray.learning.outputs import StoredOutputs
from kdtvit_ray.learning.teacher import Parent
from kdtvit_ray.recipe import DataSpec, ModelSpec, StageSpec, Training
from tests.benchmarks.teacher import seconds

SETTINGS = Training(epochs=5, batch=32, trainable_blocks=0)


def live(spec: StageSpec, data: StageData, parent: Parent) -> float:
    """CPU seconds of the stage's training with the whole model in each step."""
    device = torch.device("cpu")
    model = build(spec.model, spec.seed)
    model.load_state_dict(dict(parent.state))
    freeze(model, spec.training)
    rows = data.rows("train", spec.magnifications)
    feed = Feed(data.pixels(spec.model.image_size, "none"), model, spec.training.batch, device)
    labels = torch.from_numpy(data.labels("subtype")[rows])
    optimizer = adamw(model, spec.training)
    started = time.process_time()
    for epoch in range(spec.training.epochs):
        views = block_views(blocks_of(len(rows)), spec.training.all_views, spec.seed, epoch)
        view_of = np.repeat(views, BLOCK)[: len(rows)]
        batches = epoch_batches(len(rows), spec.training.batch, spec.seed, epoch)
        for index, batch in enumerate(batches):
            F.cross_entropy(model(feed(rows[batch], view_of[batch])), labels[torch.from_numpy(batch)]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec.training.clip_grad, foreach=True)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * len(batches) + index, len(batches), spec.training)
            optimizer.step()
            optimizer.zero_grad()
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        synthesise(folder / "images", patients=24, per_magnification=6, size=(140, 92))
        data = StageData(prepare(folder / "images", folder / "prepared", size=64, aspect="squash"), DataSpec())
        images = len(data.rows("train", (40,)))
        model = ModelSpec("tiny", (("patch_size", 8),))
        root = StageSpec((40,), model, Training())
        parent = Parent(root, build(model, 0).state_dict())
        print(f"  tiny, {SETTINGS.epochs} epochs, {images} images        live    first stage   stages after it")
        for views in ("d4", "none"):
            training = replace(SETTINGS, views=views)
            spec = replace(root, training=training, parent=root.key, warm=True)
            again = replace(spec, training=replace(training, lr=3e-3))
            outputs = StoredOutputs()
            theirs, first = live(spec, data, parent), seconds(spec, data, parent, outputs)
            after = seconds(again, data, parent, outputs)
            told = f"{first:5.2f} s {theirs / first:4.2f}x   {after:5.2f} s {theirs / after:4.1f}x"
            print(f"  views {views:6s}               {theirs:8.2f} s   {told}")


if __name__ == "__main__":
    main()
