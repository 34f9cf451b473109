"""Maps of some test images of a study: those on which its model is most confidently right, and wrong."""

from collections.abc import Callable

import pandas as pd

from kdtvit_ray.data.prepared import Prepared
from kdtvit_ray.deliver.maps import mappable, maps
from kdtvit_ray.deliver.model import TorchModel
from kdtvit_ray.deliver.model_choice import BEST, Chosen, choose_model, describe, network_of
from kdtvit_ray.deliver.overlays import file_name, strip_png
from kdtvit_ray.deliver.study_images import pixels_of, prepared_of
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results import explanations
from kdtvit_ray.results.explanations import Explained, Explanations
from kdtvit_ray.results.images import right, wrong
from kdtvit_ray.results.models import best
from kdtvit_ray.results.study import load

EACH = 3
"""Images that are right, and as many that are wrong."""
SIDE = 224
"""Pixels of each of a PNG's three squares."""


def explain_study(
    location: str,
    trial: str = "",
    data: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
    device: str | None = None,
) -> list[str]:
    """Write maps of test images to the study's `explanations/`, in place of those of before; the paths of the PNGs.
    `data` is the prepared set, by default where the study found it. Raises `UserError` where there is no such model,
    its prepared set is not at hand, or no maps of it can be made."""
    chosen = choose_model(location, trial or BEST)
    model = _model(chosen, device)
    prepared = prepared_of(chosen, data)
    if prepared is None:
        place = chosen.study.plain["data"]["path"]
        raise UserError(
            f"The prepared set of study '{chosen.study.folder.shown}' is not at '{place}'; say with --data where it "
            "lies, or name images"
        )
    return _explained(chosen, model, prepared, progress)


def explain_if_new(location: str) -> None:
    """Maps of the chosen model of a study on the CPU, unless they are there, there is no such model yet, or the
    prepared set is away."""
    study = load(location)
    winner, there = best(study), explanations.read(study.folder)
    if winner is None or not winner.keys or (there is not None and there.stage == winner.keys[-1]):
        return
    chosen = choose_model(study)
    prepared = prepared_of(chosen)
    if prepared is not None:
        _explained(chosen, _model(chosen, "cpu"), prepared)


def _model(chosen: Chosen, device: str | None) -> TorchModel:
    return mappable(TorchModel(network_of(chosen), describe(chosen), device=device))


def _explained(
    chosen: Chosen,
    model: TorchModel,
    prepared: Prepared,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Make the maps and write them; the paths of the PNGs."""
    lines = _picked(chosen)
    pixels = pixels_of(prepared, lines["image"].to_numpy(), model.description)
    taken: set[str] = set()
    made, contents = [], {}
    for line, image in zip(lines.to_dict("records"), pixels, strict=True):
        file = file_name(f"{'right' if line['right'] else 'wrong'}-{line['name']}", taken)
        contents[file] = strip_png(image, maps(model, image), SIDE)
        made.append(
            Explained(
                file=file,
                name=str(line["name"]),
                magnification=int(line["magnification"]),
                class_name=str(line["class"]),
                positive=bool(line["malignant"]),
                probability=float(line["probability"]),
                right=bool(line["right"]),
            )
        )
        progress(len(made), len(lines))
    return _write(chosen.study.folder, contents, Explanations(chosen.trial, chosen.key, tuple(made)))


def _picked(chosen: Chosen) -> pd.DataFrame:
    """The images, those that are right first: `results.images.wrong`'s columns and `right`."""
    study = chosen.study
    predictions = study.predictions(chosen.key)
    if predictions is None:
        raise UserError(f"The predictions of stage {chosen.key} of study '{study.folder.shown}' cannot be read")
    parts = [
        right(predictions, study.dataset, EACH).assign(right=True),
        wrong(predictions, study.dataset, EACH).assign(right=False),
    ]
    found = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    if not len(found):
        raise UserError(f"Study '{study.folder.shown}' has no test images")
    return found


def _write(folder: StudyFolder, contents: dict[str, bytes], about: Explanations) -> list[str]:
    before = explanations.read(folder)
    folder.delete(folder.explanations_about)
    for each in before.images if before else ():
        if each.file not in contents:
            folder.delete(f"{folder.explanations}/{each.file}")
    for name, content in contents.items():
        folder.write(f"{folder.explanations}/{name}", content)
    folder.write_json(folder.explanations_about, about.to_plain())
    return [folder.path(f"{folder.explanations}/{name}") for name in contents]
