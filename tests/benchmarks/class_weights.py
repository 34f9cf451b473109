"""What each choice of `Training.class_weights` does to the decision between benign and malignant, on new patients.

First a classifier that knows the truth: eight overlapping Gaussian classes with BreakHis's image counts, whose exact
probabilities are reweighted as the cross-entropy's minimum would be. Then chains of `micro` (`micro.toml`), trained on
synthetic patients and judged on 164 new ones: patients of each subtype as BreakHis has them (82, four images at each
magnification), and the demo's set, whose subtypes are equal (48, six images). A choice's chain is compared with that of
`balanced` from the same patients and seed; `balanced-corrected` is trained as `balanced` and shares its chain.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kdtvit_ray.data.batches import Pixels
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.prepared import Prepared
from kdtvit_ray.data.sources.breakhis import breakhis, official_census
from kdtvit_ray.data.synthetic.generate import render
from kdtvit_ray.learning.chain import run_chain
from kdtvit_ray.learning.evaluate import predict, softmax
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.losses import class_weights, logit_offsets
from kdtvit_ray.learning.models import build
from kdtvit_ray.metrics import measure, positive_share
from kdtvit_ray.recipe import Numeric, Training
from kdtvit_ray.study.space import load_space

MAGNIFICATIONS, SUBTYPES, FIRST_MALIGNANT = breakhis().magnifications, breakhis().classes, breakhis().first_positive
STUDIES = int(os.environ.get("BENCH_TRIALS", "4"))
CHOICES = Training.CHOICES["class_weights"]
SHOWN = ("auc", "accuracy", "balanced_accuracy", "brier")
NEW_PATIENTS_SEED = 1000
"""Of the generator, for patients that no chain was trained on; the studies' patients have seeds from 0."""

GEOMETRIES, DRAWN, SIDES, SPREAD = 20, 100_000, 0.5, 0.5
"""Of the perfect classifier: arrangements of the eight classes, images of each, half the distance between benign and
malignant and the spread of subtypes within, both in deviations of an image."""


def slides() -> dict[str, int]:
    """BreakHis's slides of each subtype."""
    names = [slide.split("-")[0].split("_")[1] for slide in official_census()["slides"]]
    return {subtype: names.count(subtype) for subtype in SUBTYPES}


def perfect(seed: int) -> dict[str, dict[str, float]]:
    """Measures by choice, of the exact probabilities of images drawn in BreakHis's proportions, reweighted."""
    counted = official_census()["images_per_subtype_and_magnification"]
    counts = np.array([sum(counted[subtype].values()) for subtype in SUBTYPES])
    rng = np.random.default_rng(seed)
    centres = SPREAD * rng.standard_normal((8, 8))
    centres[:, 0] += SIDES * np.where(np.arange(8) >= FIRST_MALIGNANT, 1, -1)
    subtype = rng.choice(8, DRAWN, p=counts / counts.sum())
    images = centres[subtype] + rng.standard_normal((DRAWN, 8))
    exact = np.log(counts) - ((images[:, None] - centres) ** 2).sum(axis=2) / 2  # (images, classes) log-probabilities
    labels = torch.repeat_interleave(torch.arange(8), torch.from_numpy(counts))
    found = {}
    for choice in CHOICES:
        weights = class_weights(choice, labels, 8, FIRST_MALIGNANT)
        learned = exact + weights.double().log().numpy()
        probability = positive_share(softmax(learned, logit_offsets(choice, weights)), FIRST_MALIGNANT)
        found[choice] = measure(subtype >= FIRST_MALIGNANT, probability)
    return found


def patients(folder: Path, of_subtype: Mapping[str, int], images: int, seed: int) -> Prepared:
    """New synthetic patients, so many of each subtype, prepared as `make demo` does."""
    source = folder / "images"
    source.mkdir(parents=True)
    drawn = [subtype for subtype, count in of_subtype.items() for _ in range(count)]
    for number, subtype in enumerate(drawn):
        kind = "M" if SUBTYPES.index(subtype) >= FIRST_MALIGNANT else "B"
        for magnification in MAGNIFICATIONS:
            for sequence in range(1, images + 1):
                name = f"SOB_{kind}_{subtype}-14-{90001 + number}-{magnification}-{sequence:03d}"
                pixels = render(name, size=(350, 230), seed=seed)
                Image.fromarray(pixels).save(source / f"{name}.png", compress_level=1)
    return prepare(source, folder / "prepared", size=64, aspect="squash")


def logits_of(trained: Any, new: Prepared) -> np.ndarray:
    """A trained stage's logits (N, C) of all images of `new`."""
    spec, device = trained.spec.model, torch.device("cpu")
    model = build(spec, 0, initial=False)
    model.load_state_dict(trained.state)
    feed = Feed(Pixels(new.images, spec.image_size), model, 32, device)
    return predict(model, feed, np.arange(len(new.table)), spec.classes, Numeric())


def probabilities(trained: Any, new: Prepared) -> np.ndarray:
    """A trained stage's probabilities (N,) of malignant for all images of `new`."""
    offsets = torch.tensor(trained.weighting["logit_offsets"], dtype=torch.float64)
    return positive_share(softmax(logits_of(trained, new), offsets), FIRST_MALIGNANT)


def judged(trained: Any, new: Prepared, choices: tuple[str, ...]) -> Iterator[tuple[str, dict[str, float]]]:
    """Measures of a trained stage on all images of `new`, means over magnifications, under each of `choices`."""
    logits = logits_of(trained, new)
    malignant, of_image = (new.table[name].to_numpy() for name in ("malignant", "magnification"))
    weights = torch.tensor(trained.weighting["class_weights"])
    for choice in choices:
        probability = positive_share(softmax(logits, logit_offsets(choice, weights)), FIRST_MALIGNANT)
        each = [measure(malignant[of_image == m], probability[of_image == m]) for m in MAGNIFICATIONS]
        yield choice, {name: float(np.mean([found[name] for found in each])) for name in SHOWN}


def study(prepared: Prepared, new: Prepared, seed: int) -> dict[str, dict[str, float]]:
    """Measures of the final model by choice: one chain each, with the settings of `micro.toml`, seed and fold 1."""
    space = load_space(str(Path(__file__).parent / "micro.toml")).with_data(prepared.fingerprint).replicate(1, seed)
    found: dict[str, dict[str, float]] = {}
    for choice, also in (("none", ()), ("balanced", ("balanced-corrected",)), ("balanced-binary", ())):
        chain = space.plan({"training.class_weights": choice})
        found |= judged(run_chain(chain, prepared)[-1], new, (choice, *also))
    return found


def told(title: str, studies: list[dict[str, dict[str, float]]]) -> None:
    """Print means over studies, and the mean difference from `balanced` with its standard error, paired by study."""
    print(f"  {title}\n  {'':18s}" + "".join(f"{name.replace('_', ' '):>27s}" for name in SHOWN))
    for choice in CHOICES:
        cells = []
        for name in SHOWN:
            values = np.array([each[choice][name] for each in studies])
            apart = values - [each["balanced"][name] for each in studies]
            error = apart.std(ddof=1) / np.sqrt(len(apart)) if len(apart) > 1 else float("nan")
            difference = "" if choice == "balanced" else f"{apart.mean():+.4f} ± {error:.4f}"
            cells.append(f"{values.mean():.4f} {difference:>18s}")
        print(f"  {choice:18s}" + "".join(f"{cell:>27s}" for cell in cells), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    title = f"a classifier that knows the truth, BreakHis's counts, {GEOMETRIES} arrangements of the classes"
    told(title, [perfect(seed) for seed in range(GEOMETRIES)])
    sets = {
        "patients of each subtype as in BreakHis": (slides(), 4, 2),
        "subtypes equal, as `make demo`": (dict.fromkeys(SUBTYPES, 6), 6, 3.5),
    }
    for about, (of_subtype, images, times) in sets.items():
        with tempfile.TemporaryDirectory() as place:
            more = {subtype: round(times * count) for subtype, count in of_subtype.items()}
            new = patients(Path(place) / "new", more, 4, NEW_PATIENTS_SEED)
            studies = []
            for seed in range(STUDIES):
                prepared = patients(Path(place) / f"{seed}", of_subtype, images, seed)
                studies.append(study(prepared, new, seed))
            many = f"{sum(of_subtype.values())} patients, {sum(more.values())} new ones"
            told(f"chains of micro, {about}: {many}; {STUDIES} studies", studies)


if __name__ == "__main__":
    main()
