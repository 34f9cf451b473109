"""What variants add to a training step: a micro student at 64 px, batches of 64, one thread, with and without them.

The steps take turns, so that a machine that is busy for a while is so for all; figures are CPU seconds of a step, the
median of the rounds. All images but those of variant 0 are changed.
"""

import time
from dataclasses import replace

import numpy as np
import torch

from kdtvit_ray.data.batches import Pixels
from kdtvit_ray.learning.augmentation import Variants
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.losses import Objective
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.optimise import adamw
from kdtvit_ray.recipe import ModelSpec, Training

SIZE, BATCH, ROUNDS = 64, 64, 15
PLAIN = Training()
KINDS = {
    "unchanged images": PLAIN,
    "stain hed": replace(PLAIN, stain="hed", variants=4),
    "stain jitter": replace(PLAIN, stain="jitter", variants=4),
    "zoom": replace(PLAIN, zoom=0.2, variants=4),
    "stain hed, zoom": replace(PLAIN, stain="hed", zoom=0.2, variants=4),
    "stain jitter, zoom": replace(PLAIN, stain="jitter", zoom=0.2, variants=4),
}


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    random = np.random.default_rng(0)
    stored = Pixels(random.integers(0, 256, (512, SIZE, SIZE, 3), dtype=np.uint8), SIZE)
    rows = np.arange(512)
    stored.make(rows)
    model = build(ModelSpec("micro", image_size=SIZE), 0).train()
    optimizer, labels = adamw(model, PLAIN), torch.from_numpy(random.integers(0, 8, BATCH))
    objective = Objective(None, torch.ones(8), 0.0)
    feeds = {name: Feed(stored, model, BATCH, device, Variants(each, 0, device)) for name, each in KINDS.items()}
    steps: dict[str, list[float]] = {name: [] for name in KINDS}
    for _ in range(ROUNDS):
        chosen = random.choice(rows, BATCH, replace=False)
        for name, training in KINDS.items():
            views = random.integers(0, training.all_views, BATCH)
            started = time.process_time()
            objective(model(feeds[name](chosen, views)), None, labels, BATCH)[0].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), PLAIN.clip_grad, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
            steps[name].append(time.process_time() - started)
    medians = {name: float(np.median(each[2:])) for name, each in steps.items()}  # the first rounds warm up
    base = medians["unchanged images"]
    for name, each in medians.items():
        print(f"  {name:20s} {1000 * each:7.1f} ms a step   {100 * (each / base - 1):+5.1f} %")


if __name__ == "__main__":
    main()
