"""Maps of images: for each slide one PNG that shows its images, attention rollout and gradients side by side."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePath

import numpy as np

from kdtvit_ray.data.findings import Finding
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.inputs import Image
from kdtvit_ray.deliver.maps import mappable, maps
from kdtvit_ray.deliver.model import Model, TorchModel
from kdtvit_ray.deliver.overlays import Pane, file_name, is_own, slide_png
from kdtvit_ray.deliver.predict import pixels_of, truth_of
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import Folder, try_to_make

MOST = 4
"""Images of a slide that are shown at one magnification."""


@dataclass
class Made:
    """PNGs that were written, images that could not be read, how many were left out because their slide has more than
    `MOST` at their magnification, and what is to be said of those at magnifications that the model was not trained
    at."""

    files: list[str] = field(default_factory=list)
    unreadable: list[Finding] = field(default_factory=list)
    left_out: int = 0
    untrained: str = ""


def explain(
    model: Model,
    images: Iterable[Image],
    out: str,
    progress: Callable[[int], None] = lambda done: None,
) -> Made:
    """Write a PNG for each slide among `images` to the folder `out`. A patient's images without a slide are a slide, an
    image of which neither is known is one of its own. `progress` is told how many images are done. Raises `UserError`
    for a model of which there are no maps, and where `out` cannot be written."""
    able = mappable(model)
    folder = Folder(out)
    if folder.local is not None and folder.local.is_file():
        raise UserError(f"'{out}' is a file; choose a folder for the maps")
    if folder.local is not None:
        try:
            try_to_make(folder.local / "maps.png")
        except OSError as error:
            raise UserError(f"Cannot write maps to '{out}': {error.strerror or error}") from None
    made, taken = Made(), set[str]()
    slides: dict[tuple[str, str], list[tuple[Image, np.ndarray]]] = defaultdict(list)
    there: Counter[tuple[tuple[str, str], int]] = Counter()
    shown: Counter[tuple[tuple[str, str], int]] = Counter()
    seen: set[str] = set()
    for done, image in enumerate(images, start=1):
        slide = (image.patient, image.slide)
        place = (slide, image.magnification)
        name = PurePath(image.name).name
        # a BreakHis name is unique, so the same one in two folders is the same image; other names say nothing of that
        if "slide" not in image.by_name or name not in seen:
            if "slide" in image.by_name:
                seen.add(name)
            if any(slide) and shown[place] == MOST:
                there[place] += 1
            elif isinstance(pixels := pixels_of(image, able.description), str):
                made.unreadable.append(Finding(image.name, pixels))
            else:
                there[place] += 1
                shown[place] += 1
                if any(slide):
                    slides[slide].append((image, pixels))
                else:
                    title = PurePath(image.name).stem
                    made.files.append(_draw(folder, taken, able, title, [_pane(able, image, pixels)]))
        progress(done)
    patients = Counter(name for _, name in slides)
    for slide, kept in sorted(slides.items(), key=lambda each: each[0][::-1]):
        panes = [replace(_pane(able, image, pixels), count=there[slide, image.magnification]) for image, pixels in kept]
        patient, name = slide
        title = f"{patient} {name}".strip() if not name or patients[name] > 1 else name
        made.files.append(_draw(folder, taken, able, title, panes))
    made.left_out = sum((there - shown).values())
    made.untrained = able.description.untrained(magnification for _, magnification in shown.elements())
    return made


def _pane(model: TorchModel, image: Image, pixels: np.ndarray) -> Pane:
    told = model.description
    probability = float(told.positive_probability(model.probabilities(pixels[None]))[0])
    return Pane(
        name=PurePath(image.name).stem,
        magnification=image.magnification or None,
        told=f"{told.words[1]}: {probability:.2f}",
        truth=_truth(image, told),
        pixels=pixels,
        maps=maps(model, pixels),
    )


def _truth(image: Image, told: Description) -> str:
    positive = truth_of(image, told)
    if positive is None:
        return "true class not known"
    word = told.words[int(positive)]
    return f"true class: {word if image.labels[0] == word else f'{image.labels[0]}, {word}'}"


def _draw(folder: Folder, taken: set[str], model: TorchModel, slide: str, panes: list[Pane]) -> str:
    """Write a slide's PNG beside whatever else is in the folder; its path."""
    source, words = model.description.provenance, model.description.words
    line = f"model {source['trial']} of study {source['study']}"
    name = file_name(slide, taken)
    while folder.exists(name) and not is_own(folder.read(name)):
        name = file_name(slide, taken)
    folder.write(name, slide_png(slide, line, words, panes))
    return folder.path(name)
