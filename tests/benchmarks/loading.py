"""Batches from the memory map against per-item loading: images/s of CPU time, normalised float32 batches of 64.

All three yield randomly turned images at 224 px in random order. The peers are torchvision's way: a `Dataset` of one
item at a time with `ToTensor` and `Normalize` under a `DataLoader`, over the same prepared pixels, and over the PNG
files (700x460, as BreakHis's), decoded and resized each time. Files and map are in the page cache on all sides.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdtvit_ray.data.batches import Pixels, epoch_batches
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.synthetic import synthesise
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.models import build, mean_std
from kdtvit_ray.recipe import ModelSpec

SIZE, BATCH = 224, 64
SECONDS = 3.0


class Items(Dataset):
    """One item at a time through `load`, then torchvision's transforms."""

    def __init__(self, items: Any, load: Callable[[Any], Image.Image], mean: Any, std: Any) -> None:
        self.items, self.load = items, load
        turn = transforms.Lambda(lambda image: image.rotate(90 * int(torch.randint(4, ()))))
        self.transform = transforms.Compose(
            [
                transforms.Resize((SIZE, SIZE)),
                turn,
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.load(self.items[index]))


def rate(epoch: Callable[[], Iterable[Any]]) -> float:
    """Images per CPU second of repeated epochs, after one batch to warm up."""
    next(iter(epoch()))
    images, started = 0, time.process_time()
    while time.process_time() - started < SECONDS:
        for batch in epoch():
            images += len(batch)
            if time.process_time() - started > SECONDS:
                break
    return images / (time.process_time() - started)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        synthesise(folder / "images", patients=8, per_magnification=8)
        prepared = prepare(folder / "images", folder / "prepared", size=SIZE, aspect="squash")
        model = build(ModelSpec("micro", image_size=SIZE), 0)
        mean, std = mean_std(model)
        rows, rng = np.arange(len(prepared.images)), np.random.default_rng(0)
        feed = Feed(Pixels(prepared.images, SIZE), model, BATCH, torch.device("cpu"))
        paths = sorted((folder / "images").rglob("*.png"))

        def mapped() -> Iterable[Any]:
            for batch in epoch_batches(len(rows), BATCH, 0, int(rng.integers(1000))):
                yield feed(batch, rng.integers(0, 8, len(batch)))

        def items(source: Any, load: Callable[[Any], Image.Image]) -> Callable[[], Iterable[Any]]:
            return lambda: DataLoader(Items(source, load, mean, std), BATCH, shuffle=True)

        ours = rate(mapped)
        per_item = rate(items(prepared.images, Image.fromarray))
        decoding = rate(items(paths, opened))
        print(f"  memory map, batched gather and views    {ours:7.0f} images/s")
        print(f"  same pixels, Dataset and DataLoader     {per_item:7.0f} images/s   ours {ours / per_item:.1f}x")
        print(f"  PNG decoded each time, DataLoader       {decoding:7.0f} images/s   ours {ours / decoding:.1f}x")


if __name__ == "__main__":
    main()
