"""Maps of image files: for each slide one PNG that shows its images, attention rollout and gradients side by side."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from kdtvit_ray.data.sources.breakhis import ImageName, breakhis
from kdtvit_ray.data.sources.files import IMAGE_SUFFIXES, has_suffix
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.maps import mappable, maps
from kdtvit_ray.deliver.model import Model, TorchModel
from kdtvit_ray.deliver.overlays import Pane, file_name, slide_png
from kdtvit_ray.errors import UserError, first_line
from kdtvit_ray.paths import Folder
from kdtvit_ray.report.tables import clean

MOST = 4
"""Images of a slide that are shown at one magnification."""


@dataclass(frozen=True)
class Listed:
    """A file. `slide` is the name of what it is shown with, `told` what its name says where it is one of BreakHis."""

    path: Path
    slide: str
    told: ImageName | None

    @property
    def magnification(self) -> int | None:
        return self.told.magnification if self.told else None


@dataclass(frozen=True)
class Made:
    """PNGs that were written, sentences on files that could not be read, and how many images were left out because
    their slide has more than `MOST` at their magnification."""

    files: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    left_out: int = 0


def explain(
    model: Model,
    sources: Sequence[str],
    out: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Made:
    """Write a PNG for each slide among the images at `sources`, files and folders, to the folder `out`. Raises
    `UserError` for a model of which there are no maps, and where there is no image at all."""
    able = mappable(model)
    listed, unreadable = images_of(sources)
    if not listed:
        raise UserError(f"There is no image to explain: {unreadable[0]}" if unreadable else "There is no image")
    folder = Folder(out)
    if folder.local is not None and folder.local.is_file():
        raise UserError(f"'{out}' is a file; choose a folder for the maps")
    given = {os.path.realpath(each.path) for each in listed}
    taken = {Path(each).name.lower() for each in given if folder.local and Path(each).parent == folder.local}
    files, left_out, done = [], 0, 0
    for _, images in groupby(listed, key=_slide_key):
        group = list(images)
        panes, broken, more = _panes(able, group)
        unreadable += broken
        left_out += more
        done += len(group)
        if panes:
            name = file_name(group[0].slide, taken)
            told = able.description
            folder.write(name, slide_png(group[0].slide, _model_line(told), told.words, panes))
            files.append(folder.path(name))
        progress(done, len(listed))
    return Made(tuple(files), tuple(unreadable), left_out)


def images_of(sources: Iterable[str]) -> tuple[list[Listed], list[str]]:
    """Image files at `sources`, a folder with all that is below it, each file once, sorted by slide, magnification and
    name; and sentences on sources without any."""
    found: dict[str, Path] = {}
    missing = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            inside = [each for each in path.rglob("*") if has_suffix(each.name, IMAGE_SUFFIXES) and each.is_file()]
            if not inside:
                missing.append(f"folder '{clean(source)}' holds no image ({', '.join(IMAGE_SUFFIXES)})")
        else:
            inside = [path]
            if not path.exists():
                missing.append(f"'{clean(source)}' does not exist")
                continue
        for each in inside:
            found.setdefault(os.path.realpath(each), each)
    listed = [_listed(path) for path in found.values()]
    return sorted(listed, key=lambda each: (*_slide_key(each), each.magnification or 0, each.path.name)), missing


def _listed(path: Path) -> Listed:
    try:
        told = ImageName.parse(path.name)
    except ValueError:
        return Listed(path, path.stem, None)
    return Listed(path, told.folder, told)


def _slide_key(image: Listed) -> tuple[str, str]:
    """Images of one slide share it; a file whose name tells no slide shares its own with none."""
    return (image.slide, "" if image.told else str(image.path))


def _panes(model: TorchModel, group: Sequence[Listed]) -> tuple[list[Pane], list[str], int]:
    """The images of a slide that are shown, sentences on those that cannot be read, and how many were left out."""
    panes, broken, left_out = [], [], 0
    for _, images in groupby(group, key=lambda each: each.magnification):
        waiting = list(images)
        shown: list[Pane] = []
        while waiting and len(shown) < MOST:
            image = waiting.pop(0)
            try:
                shown.append(_pane(model, image))
            except (ValueError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
                broken.append(f"'{clean(str(image.path))}': {clean(reason)}")
        panes += [replace(each, count=len(shown) + len(waiting)) for each in shown]
        left_out += len(waiting)
    return panes, broken, left_out


def _pane(model: TorchModel, image: Listed) -> Pane:
    """Raises `ValueError` and `OSError` for a file that is no sound image."""
    told = model.description
    pixels = told.pixels(image.path.read_bytes())
    probability = float(told.positive_probability(model.probabilities(pixels[None]))[0])
    positive = told.words[1]
    return Pane(
        name=image.path.stem,
        magnification=image.magnification,
        told=f"{positive}: {probability:.2f}",
        truth=_truth(image.told, told),
        pixels=pixels,
        maps=maps(model, pixels),
    )


def _truth(name: ImageName | None, told: Description) -> str:
    """The true class that a BreakHis name tells, for a model of its two sides."""
    if name is None or tuple(told.words) != tuple(breakhis().words):
        return "true class not in the name"
    return f"true class: {name.subtype}, {told.words[int(name.malignant)]}"


def _model_line(told: Description) -> str:
    source = told.provenance
    return f"model {source.get('trial', '?')} of study {source.get('study', '?')}"
