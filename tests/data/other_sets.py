"""Two sets that are not BreakHis, drawn for tests and for trying the whole way on them.

    python -m tests.data.other_sets OUT --patients 24

makes `OUT/scanner/images.csv`, a table of JPEG and TIFF files of a slide scanner: 5X, 10X and 20X; normal, atypical and
tumour, of which tumour is positive; patients with one or two slides; three official folds; and `OUT/nerves`, a folder
`magnification/class/patient/*.png` of healthy and ill at as many magnifications as are asked for. The classes differ in
colour and in the grain of their noise, and the patients in tint, so that a small model learns much in seconds, not all.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 40)
SCANNER_CLASSES = ("normal", "atypical", "tumour")
SCANNER_MAGNIFICATIONS = (5, 10, 20)
SCANNER_FOLDS = 3
NERVES_CLASSES = ("healthy", "ill")


def scanner(folder: Path, patients: int = 18, images: int = 2, seed: int = 0) -> Path:
    """Draw the scanner's set, `images` of each slide at each magnification, and return its table's path."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = []
    for patient in range(patients):
        kind = patient % len(SCANNER_CLASSES)
        tint = random.normal(0, 9, 3)
        slides = [f"s{patient:02d}a", f"s{patient:02d}b"][: 1 + patient % 2]
        for slide in slides:
            for magnification in SCANNER_MAGNIFICATIONS:
                for image in range(images):
                    suffix = "jpg" if magnification == 5 else "tif"
                    path = Path(f"{magnification}x") / f"{slide} {image}.{suffix}"
                    (folder / path).parent.mkdir(exist_ok=True)
                    drawn(random, kind, magnification / 20, tint).save(folder / path)
                    lines.append(
                        {
                            "path": path.as_posix(),
                            "label": SCANNER_CLASSES[kind],
                            "magnification": f"{magnification}X",
                            "patient": f"p{patient:02d}",
                            "slide": slide,
                            "fold": 1 + (patient // len(SCANNER_CLASSES)) % SCANNER_FOLDS,
                        }
                    )
    table = folder / "images.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    return table


def nerves(
    folder: Path, magnifications: Sequence[int] = (10, 40), patients: int = 16, images: int = 2, seed: int = 1
) -> Path:
    """Draw the set of nerves, `images` of each patient at each magnification, and return its folder."""
    random = np.random.default_rng(seed)
    for patient in range(patients):
        kind = patient % len(NERVES_CLASSES)
        tint = random.normal(0, 9, 3)
        for magnification in magnifications:
            place = folder / f"{magnification}X" / NERVES_CLASSES[kind] / f"patient {patient}"
            place.mkdir(parents=True)
            for image in range(images):
                drawn(random, kind, magnification / max(magnifications), tint).save(place / f"{image}.png")
    return folder


def drawn(random: np.random.Generator, kind: int, zoom: float, tint: np.ndarray) -> Image.Image:
    """One image: noise whose grain grows with the zoom, in the colour of its class and the tint of its patient."""
    grain = max(1, round(2 * (1 + kind) * zoom))
    coarse = random.normal(0, 30, (SIZE[1] // grain + 1, SIZE[0] // grain + 1))
    noise = np.kron(coarse, np.ones((grain, grain)))[: SIZE[1], : SIZE[0]]
    pixels = np.full((SIZE[1], SIZE[0], 3), 150.0) + noise[..., None] + tint + random.normal(0, 6, 3)
    pixels[..., kind % 3] += 16
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw two small sets that are not BreakHis.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--patients", type=int, default=24)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--magnifications", type=int, nargs="+", default=[10, 40], help="those of the set of nerves")
    asked = parser.parse_args()
    print(scanner(asked.out / "scanner", asked.patients, asked.images))
    print(nerves(asked.out / "nerves", asked.magnifications, asked.patients, asked.images))
