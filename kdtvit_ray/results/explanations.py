"""Maps of a study's test images: what lies in its folder `explanations/`. `kdtvit_ray.deliver.explain_study` writes it,
the report reads it.

`explanations.json` names the model and its images; each image's PNG holds three squares side by side: the image,
attention rollout, gradient x activation.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdtvit_ray.paths import StudyFolder

VERSION = 1


@dataclass(frozen=True)
class Explained:
    """One test image. `file` is its PNG's name in the folder; `class_name` its true class, which is `positive` or not;
    `probability` that of the positive side, `right` whether the threshold 0.5 calls it rightly."""

    file: str
    name: str
    magnification: int
    class_name: str
    positive: bool
    probability: float
    right: bool


@dataclass(frozen=True)
class Explanations:
    """Maps that the model of stage `stage`, which stands for `trial`, gave."""

    trial: str
    stage: str
    images: tuple[Explained, ...]

    def to_plain(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}


def read(folder: StudyFolder) -> Explanations | None:
    """What lies in a study's folder; None where there is nothing, or nothing that can be read."""
    try:
        return _from_plain(folder.read_json(folder.explanations_about))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _from_plain(plain: Mapping[str, Any]) -> Explanations | None:
    if int(plain["version"]) > VERSION:
        return None
    images = tuple(Explained(**each) for each in plain["images"])
    for each in images:
        if not isinstance(each.name, str) or "/" in each.file or not each.file.endswith(".png"):
            raise ValueError(f"'{each.file}' is no file of this folder")
        float(each.probability), int(each.magnification)
    return Explanations(str(plain["trial"]), str(plain["stage"]), images)
