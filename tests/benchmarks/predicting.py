"""Predicting image files against the usual way: images/s of wall clock, PNG of 700x460 pixels to probabilities.

Both use a `micro` model at 64 px on files in the page cache, with as many decoding workers as there are cores. The peer
is timm's way: `ImageDataset` with its `create_transform` under a `DataLoader` of worker processes, batches of 32.
"""

import os
import tempfile
import time
from pathlib import Path

import torch
from timm.data import ImageDataset, create_transform
from torch.utils.data import DataLoader

from kdtvit_ray.data.synthetic import synthesise
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.inputs import Images
from kdtvit_ray.deliver.model import TorchModel
from kdtvit_ray.deliver.predict import predict
from kdtvit_ray.learning.models import build
from kdtvit_ray.recipe import ModelSpec

SIZE, ROUNDS = 64, 3
DESCRIPTION = Description(
    preprocessing={
        "size": SIZE,
        "aspect": "squash",
        "crop": "none",
        "image_size": SIZE,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    },
    classes=list("ABCDEFGH"),
    positive=list("EFGH"),
    words=["benign", "malignant"],
    numeric={"dtype": "float32", "threads": 1},
)


def ours(folder: Path, network: torch.nn.Module) -> int:
    return len(predict(TorchModel(network, DESCRIPTION), Images([str(folder)])).table)


@torch.no_grad()
def peer(folder: Path, network: torch.nn.Module) -> int:
    transform = create_transform((3, SIZE, SIZE), mean=[0.5] * 3, std=[0.5] * 3, crop_pct=1.0, crop_mode="squash")
    dataset = ImageDataset(str(folder.parent), transform=transform)
    loader = DataLoader(dataset, batch_size=32, num_workers=os.cpu_count() or 1)
    return sum(len(network(images).softmax(dim=1)) for images, _ in loader)


def main() -> None:
    network = build(ModelSpec("micro", image_size=SIZE), 0).eval()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "files" / "all"
        synthesise(folder, patients=20, per_magnification=6, size=(700, 460), seed=0)
        fastest = dict.fromkeys((ours, peer), 0.0)
        for _ in range(ROUNDS):
            for way in fastest:
                started = time.perf_counter()
                count = way(folder, network)
                fastest[way] = max(fastest[way], count / (time.perf_counter() - started))
    here, there = fastest.values()
    print(f"{os.cpu_count()} cores: {here:.0f} images/s, timm's loader {there:.0f}: {here / there:.2f} times as many")


if __name__ == "__main__":
    main()
