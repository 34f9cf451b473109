"""Images on disk, and what lies in a folder, for the tests of what is delivered."""

import numpy as np
from PIL import Image


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def names(folder):
    return sorted(each.name for each in folder.iterdir())
