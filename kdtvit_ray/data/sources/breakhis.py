"""BreakHis as it is distributed: its facts, its file names, its official census, and where its images are found.

BreakHis: 7,909 images of 82 slides, Spanhol et al., IEEE TBME 2016, doi 10.1109/TBME.2015.2496264. A file is
`SOB_<B|M>_<subtype>-<yy>-<slide>-<magnification>-<sequence>.png`; directories of the official tree write the slide
with an underscore, `SOB_M_DC_14-10926/100X`. The name is the truth of an image; a directory that
contradicts it is an error. Importing this module imports nothing heavy.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kdtvit_ray.data.dataset import Census, Dataset, Reference
from kdtvit_ray.data.findings import Finding
from kdtvit_ray.data.sources.files import (
    IMAGE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    TWICE,
    Found,
    Scan,
    check_name,
    has_suffix,
    shortened,
)
from kdtvit_ray.errors import UserError, counted

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "breakhis"
EXAMPLE = "SOB_M_DC-14-10926-100-001.png"
OTHER_IMAGES = "BreakHis names, other images"
"""The name of a set that has no slide of BreakHis, such as a drawn one."""

_NAME = re.compile(
    r"SOB_(?P<type>[BM])_(?P<subtype>[A-Z]+)-(?P<year>[0-9]{2})-(?P<slide>[0-9]+[A-Za-z]*)"
    r"-(?P<magnification>[0-9]+)-(?P<sequence>[0-9]{1,6})"
)
_SLIDE_DIRECTORY = re.compile(r"SOB_(?P<rest>[BM]_[A-Z]+)[_-](?P<id>[0-9]{2}-[0-9]+[A-Za-z]*)")
_MAGNIFICATION_DIRECTORY = re.compile(r"(?P<magnification>40|100|200|400)X", re.IGNORECASE)
_TYPE_DIRECTORY = {"benign": False, "malignant": True}


@cache
def official_census() -> dict[str, Any]:
    """The official census: `total`, `images_per_subtype_and_magnification`, and `slides`, where each slide folder has
    its `images` by magnification (keys are strings) and the official folds in which it is test, `test_in_fold`."""
    return json.loads((Path(__file__).parent / "census.json").read_text())


@cache
def breakhis() -> Dataset:
    """BreakHis: four magnifications, four benign and four malignant subtypes, five official folds, its census, and what
    others have published on it."""
    slides = official_census()["slides"]
    magnifications = (40, 100, 200, 400)
    return Dataset(
        name="BreakHis",
        source=SOURCE,
        magnifications=magnifications,
        classes=("A", "F", "PT", "TA", "DC", "LC", "MC", "PC"),
        positives=("DC", "LC", "MC", "PC"),
        negative="benign",
        positive="malignant",
        folds=5,
        test_in_fold={slide: tuple(facts["test_in_fold"]) for slide, facts in slides.items()},
        census=Census(
            {slide: {at: facts["images"].get(str(at), 0) for at in magnifications} for slide, facts in slides.items()},
            width=700,
            height=460,
        ),
        references=(*_kdtvit(), *_by_magnification(magnifications)),
    )


def _kdtvit() -> list[Reference]:
    reported = {"accuracy": 0.9543, "precision": 0.9445, "recall": 0.9920, "f1": 0.9676, "auc": 0.9930}
    source = "KDTViT, Scientific Reports 2026, doi 10.1038/s41598-026-49792-6"
    return [
        Reference("KDTViT (reported)", "image", metric, {"mean": value}, "reported, split unknown", source)
        for metric, value in reported.items()
    ]


def _by_magnification(magnifications: Iterable[int]) -> list[Reference]:
    rows = (
        (
            "PFTAS features (Spanhol et al.)",
            "Spanhol et al., IEEE TBME 2016, doi 10.1109/TBME.2015.2496264",
            (0.8380, 0.8210, 0.8510, 0.8230),
        ),
        (
            "Bayramoglu MI",
            "Bayramoglu et al., magnification-independent CNN, ICPR 2016",
            (0.8308, 0.8317, 0.8463, 0.8210),
        ),
        (
            "ImageNet ResNet-50 (reported)",
            "as quoted by others, first source not traced",
            (0.9146, 0.9124, 0.9072, 0.8790),
        ),
        (
            "MPCS EfficientNet-b2 (Chhipa et al.)",
            "Chhipa et al., WACV 2023, arXiv 2203.07707",
            (0.9326, 0.9357, 0.9223, 0.8957),
        ),
    )
    protocol = "patient-disjoint, patient-level rate accuracy"
    return [
        Reference(
            label,
            "patient_rate",
            "accuracy",
            {f"{at}X": value for at, value in zip(magnifications, values, strict=True)},
            protocol,
            source,
        )
        for label, source, values in rows
    ]


@dataclass(frozen=True, order=True)
class ImageName:
    """What one BreakHis file name says. `name` is the name without its extension, `year` the two digits of it."""

    name: str
    subtype: str
    malignant: bool
    year: str
    slide: str
    magnification: int
    sequence: int

    @property
    def folder(self) -> str:
        """The slide's folder, unique over the set: `M_DC-14-13412`."""
        return f"{'M' if self.malignant else 'B'}_{self.subtype}-{self.id}"

    @property
    def id(self) -> str:
        """Year and slide: `14-22549AB`. One id, 14-13412, is filed under two subtypes."""
        return f"{self.year}-{self.slide}"

    @property
    def stem(self) -> str:
        """Year and number of the slide without its letters: `14-22549`, the widest meaning of a patient."""
        return f"{self.year}-{re.match('[0-9]+', self.slide)[0]}"  # type: ignore[index]

    @staticmethod
    def parse(file_name: str) -> "ImageName":
        """Read a file name, with or without its extension. Raises `ValueError` with the reason, as half a sentence."""
        name = file_name
        for suffix in IMAGE_SUFFIXES:
            if file_name.lower().endswith(suffix):
                name = file_name[: -len(suffix)]
                break
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError("not a BreakHis name")
        subtype, magnification = found["subtype"], int(found["magnification"])
        if subtype not in breakhis().classes:
            raise ValueError(f"unknown subtype {subtype}")
        malignant = subtype in breakhis().positives
        if malignant != (found["type"] == "M"):
            raise ValueError(
                f"{subtype} is {'malignant' if malignant else 'benign'}, but the name says {found['type']}"
            )
        if found["magnification"] not in map(str, breakhis().magnifications):
            raise ValueError(f"unknown magnification {found['magnification']}")
        return ImageName(name, subtype, malignant, found["year"], found["slide"], magnification, int(found["sequence"]))


def census(table: "pd.DataFrame") -> dict[str, dict[int, int]]:
    """Images of each slide folder at each magnification, all four of them. `table` has `slide` and `magnification`."""
    counted = Counter(zip(table["slide"], table["magnification"], strict=True))
    return {
        slide: {magnification: counted[slide, magnification] for magnification in breakhis().magnifications}
        for slide in sorted(set(table["slide"]))
    }


def census_differences(table: "pd.DataFrame") -> list[str]:
    """How a set differs from the official BreakHis, in plain sentences; none for the complete set."""
    complete = breakhis().census
    assert complete is not None
    official, found = complete.images, census(table)
    if not official.keys() & found.keys():
        return [f"none of its {len(found)} slides is one of the {len(official)} of BreakHis: these are other images"]
    sentences = []
    for magnification in breakhis().magnifications:
        for malignant, word in enumerate(breakhis().words):
            here, there = (
                sum(counts[magnification] for slide, counts in each.items() if (slide[0] == "M") == malignant)
                for each in (found, official)
            )
            if here != there:
                sentences.append(f"{magnification}X has {here:,} {word} images, the official set {there:,}")
    if missing := sorted(set(official) - set(found)):
        sentences.append(f"slides absent: {len(missing)} of {len(official)} ({', '.join(missing)})")
    if foreign := sorted(set(found) - set(official)):
        sentences.append(f"slides that the official set has not: {len(foreign)} ({shortened(foreign, 100)})")
    if other := sorted(slide for slide in set(found) & set(official) if found[slide] != official[slide]):
        counts = [f"{slide} has {sum(found[slide].values())} of {sum(official[slide].values())}" for slide in other]
        sentences.append(f"slides with another number of images: {len(other)} ({', '.join(counts)})")
    return sentences


def claims_name(path: str) -> bool:
    """Whether a file's name begins as BreakHis's do, whatever comes after that."""
    return PurePosixPath(path).name.lower().startswith("sob_")


def is_candidate(name: str) -> bool:
    """Whether a file claims to be an image: by its suffix, or by a BreakHis beginning whatever its suffix is."""
    return has_suffix(name, IMAGE_SUFFIXES + OTHER_IMAGE_SUFFIXES) or claims_name(name)


def scan(source: Path, paths: Iterable[tuple[str, int, int]]) -> Scan:
    """The images of a source among its files, (path, bytes, modification time) each: the official tree, a flat folder,
    an archive. Misnamed, misplaced and twice-filed images are listed in `Scan.findings`. Raises `UserError` where not
    one image has a BreakHis name."""
    images: list[Found] = []
    findings: list[Finding] = []
    named: dict[str, str] = {}
    for path, size, modified in sorted(paths):
        try:
            name = _parse_with_directories(path)
            if name.name in named:
                raise ValueError(TWICE if named[name.name] == path else f"the same name as {named[name.name]}")
        except ValueError as error:
            findings.append(Finding(path, str(error), "misnamed or misplaced"))
            continue
        named[name.name] = path
        images.append(
            Found(
                path,
                name.name,
                name.subtype,
                name.magnification,
                name.folder,
                name.id,
                name.stem,
                name.sequence,
                size,
                modified,
            )
        )
    if not images:
        kind = "Archive" if source.is_file() else "Folder"
        raise UserError(
            f"{kind} '{source}' holds {counted(len(findings), 'image')}, but none with a BreakHis name such as "
            f"{EXAMPLE}: {shortened([f'{each.where} ({each.reason})' for each in findings], 5)}"
        )
    return Scan(source, source, _dataset(images), images, findings)


def _dataset(images: Iterable[Found]) -> Dataset:
    """BreakHis, or where not one slide is of it, a set that has its names and layout alone: what others have published
    on BreakHis says nothing of that."""
    known = breakhis()
    if any(image.slide in known.test_in_fold for image in images):
        return known
    return replace(known, name=OTHER_IMAGES, references=())


def _parse_with_directories(path: str) -> ImageName:
    """The name of a file, held against the directories above it. Raises `ValueError` with the reason."""
    check_name(path)
    *directories, file = PurePosixPath(path).parts
    if not has_suffix(file, IMAGE_SUFFIXES):
        raise ValueError(f"not one of {', '.join(IMAGE_SUFFIXES)}")
    name = ImageName.parse(file)
    for directory in directories:
        slide = _SLIDE_DIRECTORY.fullmatch(directory)
        magnification = _MAGNIFICATION_DIRECTORY.fullmatch(directory)
        contradicts = (
            (slide and f"{slide['rest']}-{slide['id']}" != name.folder)
            or (magnification and int(magnification["magnification"]) != name.magnification)
            or _TYPE_DIRECTORY.get(directory.lower(), name.malignant) != name.malignant
        )
        if contradicts:
            raise ValueError(f"the name contradicts its folder {directory}")
    return name
