"""What a dataset is: its magnifications, its classes, which of them count as positive, its official folds.

A source makes it (`data/sources/`), a prepared set stores it in `prepared.json`, and everything downstream is handed
it. It is plain data and imports nothing heavy, so that a report can read it too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

MAGNIFICATIONS_ALLOWED = (1, 9999)
"""Smallest and largest magnification that a table can hold."""
MOST_CLASSES = 100
KNOWN_POSITIVES: dict[tuple[str, ...], str] = {("benign", "malignant"): "malignant", ("0", "1"): "1"}
"""Pairs of labels, in small letters, of which everybody knows the positive one."""


@dataclass(frozen=True)
class Reference:
    """A published result: `values` are shares of one by column of the results ("40X", ..., "mean"), `protocol` says on
    which split they were measured, `source` where they were published."""

    label: str
    level: str
    metric: str
    values: Mapping[str, float]
    protocol: str
    source: str


@dataclass(frozen=True)
class Census:
    """What the complete set holds: `images` by slide and magnification, and the size of the originals in pixels."""

    images: Mapping[str, Mapping[int, int]]
    width: int
    height: int


@dataclass(frozen=True)
class Dataset:
    """One dataset.

    source: how it was given, "breakhis", "manifest" or "folder".
    magnifications: ascending. classes: the negative ones first, then the positive ones; a table's column `subtype`
    holds positions in them. negative, positive: words for the two sides, "benign" and "malignant" for instance.
    folds: how many official folds there are; test_in_fold: by slide, the folds (from 1) in which it is tested.
    """

    name: str
    source: str
    magnifications: tuple[int, ...]
    classes: tuple[str, ...]
    positives: tuple[str, ...]
    negative: str = "negative"
    positive: str = "positive"
    folds: int = 0
    test_in_fold: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    census: Census | None = None
    references: tuple[Reference, ...] = ()

    def __post_init__(self) -> None:
        if list(self.magnifications) != sorted(set(self.magnifications)):
            raise ValueError(f"magnifications {self.magnifications} are not in ascending order")
        if not 0 < self.first_positive < len(self.classes) or self.classes[self.first_positive :] != self.positives:
            raise ValueError(f"classes {self.classes} do not end with the positive ones, {self.positives}")

    @property
    def first_positive(self) -> int:
        """Position of the first positive class: the classes before it are negative, those from it on are positive."""
        return len(self.classes) - len(self.positives)

    @property
    def is_positive(self) -> tuple[bool, ...]:
        """Whether each class is positive."""
        return tuple(index >= self.first_positive for index in range(len(self.classes)))

    @property
    def words(self) -> tuple[str, str]:
        """The words for the negative and for the positive side."""
        return self.negative, self.positive

    def outputs(self, head: str) -> tuple[str, ...]:
        """What a model's outputs stand for: the classes for the head "subtype", the two sides for "binary"."""
        return self.classes if head == "subtype" else self.words

    def first_positive_output(self, head: str) -> int:
        """Position of the first positive one of a model's outputs."""
        return self.first_positive if head == "subtype" else 1

    def without_slides(self) -> "Dataset":
        """The same dataset without what is known of single slides: what a study keeps of it."""
        return replace(self, test_in_fold={}, census=None)

    def to_plain(self) -> dict[str, Any]:
        """As tables for JSON or TOML; `from_plain` is its inverse. What is empty is left out."""
        plain: dict[str, Any] = {
            "name": self.name,
            "source": self.source,
            "magnifications": list(self.magnifications),
            "classes": list(self.classes),
            "positives": list(self.positives),
            "negative": self.negative,
            "positive": self.positive,
            "folds": self.folds,
        }
        if self.test_in_fold:
            plain["test_in_fold"] = {slide: list(folds) for slide, folds in self.test_in_fold.items()}
        if self.census:
            images = {slide: {str(at): n for at, n in counts.items()} for slide, counts in self.census.images.items()}
            plain["census"] = {"images": images, "width": self.census.width, "height": self.census.height}
        if self.references:
            plain["references"] = [{**vars(each), "values": dict(each.values)} for each in self.references]
        return plain

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> "Dataset":
        """Read what `to_plain` has written. Raises `KeyError` or `TypeError` for anything else."""
        census = plain.get("census")
        return Dataset(
            name=plain["name"],
            source=plain["source"],
            magnifications=tuple(plain["magnifications"]),
            classes=tuple(plain["classes"]),
            positives=tuple(plain["positives"]),
            negative=plain["negative"],
            positive=plain["positive"],
            folds=plain["folds"],
            test_in_fold={slide: tuple(folds) for slide, folds in plain.get("test_in_fold", {}).items()},
            census=census
            and Census(
                {slide: {int(at): n for at, n in counts.items()} for slide, counts in census["images"].items()},
                census["width"],
                census["height"],
            ),
            references=tuple(Reference(**each) for each in plain.get("references", ())),
        )


def sides(labels: Iterable[str], positive: Iterable[str]) -> tuple[str, str]:
    """Words for the negative and the positive side: a label itself where a side has just one that is a word."""
    positive = set(positive)
    words = []
    for side, otherwise in ((set(labels) - positive, "negative"), (positive, "positive")):
        only = next(iter(side)) if len(side) == 1 else ""
        words.append(only if only and not only.isdigit() else otherwise)
    return words[0], words[1]


def in_order(words: Iterable[str]) -> list[str]:
    """Names in the order in which people count them: numbers by value, then words whatever their capitals."""
    return sorted(words, key=lambda each: (not each.isdigit(), len(each) if each.isdigit() else 0, each.lower(), each))
