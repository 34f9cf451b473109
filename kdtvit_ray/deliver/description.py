"""What one needs beside the weights to use a model: plain data that lies in `config.json` and inside `model.onnx`.

Needs neither torch nor Ray.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from kdtvit_ray.data.batches import turned
from kdtvit_ray.data.decode import decode
from kdtvit_ray.data.resized import resized
from kdtvit_ray.deliver.checksums import unpacked
from kdtvit_ray.errors import UserError
from kdtvit_ray.metrics import positive_share
from kdtvit_ray.recipe import Numeric
from kdtvit_ray.results.words import counted, joined

VERSION = 3
HALF = "half"


@dataclass(frozen=True)
class Description:
    """How images become inputs and outputs become decisions.

    preprocessing: an image becomes a square of `size` pixels by `aspect` ("crop": its central square, "squash": all of
    it), then of `image_size` pixels (by `crop` = "centre" cut out of the square, else resized), then normalised by
    `mean` and `std`, in units of [0, 1]; both times it is resized by `interpolation`, antialiased.
    classes: what the outputs stand for, in order; positive: which of them are positive; words: the negative and the
    positive side. logit_offsets (C,) are added to the logits; () for none. numeric: dtype and threads of the study, and
    for the dtype bfloat16, where it was measured, `float32_difference`: by how much float32 changes a probability of
    the positive side on the study's test images at most.
    temperature divides the log odds of the positive side. thresholds: by name, on the probability before the
    temperature; decision: the name of the one that decides.
    development: checksums of the pixels of all images that the model was trained or chosen on, packed
    (`checksums.packed`); "" where they were not at hand.
    trained, tested: the magnifications that the model's chain was trained at, and those of the study's test images.
    provenance: study, trial, stage, its parents, fingerprint of the data, versions.
    """

    preprocessing: Mapping[str, Any]
    classes: Sequence[str]
    positive: Sequence[str]
    words: Sequence[str]
    logit_offsets: Sequence[float] = ()
    numeric: Mapping[str, Any] = field(default_factory=lambda: asdict(Numeric()))
    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=lambda: {HALF: 0.5})
    decision: str = HALF
    development: str = ""
    trained: Sequence[int] = ()
    tested: Sequence[int] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @property
    def image_size(self) -> int:
        return int(self.preprocessing["image_size"])

    @property
    def checksums(self) -> frozenset[bytes] | None:
        """Those of the development images; None where they are not known: no model has no such images."""
        return unpacked(self.development) if self.development else None

    @property
    def first_positive(self) -> int:
        return len(self.classes) - len(self.positive)

    @property
    def threshold(self) -> float:
        return float(self.thresholds[self.decision])

    @property
    def in_bfloat16(self) -> bool:
        """Whether the study computed in bfloat16."""
        return self.numeric["dtype"] == "bfloat16"

    def in_float32(self) -> "Description":
        """The same for a model that is to compute in float32."""
        return replace(self, numeric={**self.numeric, "dtype": "float32"})

    @property
    def float32_note(self) -> str:
        """What float32 changes where the study computed in bfloat16."""
        difference = self.numeric.get("float32_difference")
        how = (
            "how far its probabilities differ from the study's was not measured"
            if difference is None
            else f"its probabilities of {self.words[1]} differ from the study's by up to {difference:.2g} on test "
            "images"
        )
        return f"The study computed in bfloat16, and the model here computes in float32: {how}"

    def deciding_by(self, asked: str) -> "Description":
        """The same with another threshold: one of its names, or a number between 0 and 1. Raises `UserError`."""
        if not asked or asked in self.thresholds:
            return replace(self, decision=asked or self.decision)
        try:
            value = float(asked)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            allowed = ", ".join(f"{name} ({value:.3g})" for name, value in self.thresholds.items())
            raise UserError(f"Threshold '{asked}' is not known; allowed: {allowed}, or a number from 0 to 1")
        return replace(self, thresholds={**self.thresholds, asked: value}, decision=asked)

    def pixels(self, content: bytes) -> np.ndarray:
        """The bytes of an image file as uint8 (S, S, 3), the very pixels that a study would train on. Raises
        `ValueError` with the reason for a file that is no sound image."""
        told = self.preprocessing
        stored, _ = decode(content, int(told["size"]), told["aspect"])
        return stored if told["size"] == self.image_size else resized(stored, self.image_size, told["crop"])

    def normalised(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (B, S, S, 3) as a model's input, float32 (B, 3, S, S)."""
        mean, std = (np.asarray(self.preprocessing[name], dtype=np.float32) for name in ("mean", "std"))
        scale, shift = np.float32(1) / (np.float32(255) * std), -mean / std
        return np.ascontiguousarray((images * scale + shift).transpose(0, 3, 1, 2))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Class probabilities (B, C) float64 from logits (B, C)."""
        offsets = np.asarray(self.logit_offsets, dtype=np.float64) if len(self.logit_offsets) else 0.0
        return softmax(logits.astype(np.float64) + offsets, axis=1)

    def positive_probability(self, probabilities: np.ndarray) -> np.ndarray:
        """Probability (B,) of the positive side."""
        return positive_share(probabilities, self.first_positive)

    def decides(self, probability: float) -> str:
        """The word of the side that a probability is decided for."""
        return self.words[int(probability >= self.threshold)]

    def untrained(self, magnifications: Iterable[int]) -> str:
        """How many images at these magnifications (0: not known) are at others than the model was trained at, in a
        sentence. "" where none is."""
        given = list(magnifications)
        count = sum(each != 0 and each not in self.trained for each in given)
        if not count:
            return ""
        others = set(given) - {0, *self.trained}
        parts = ((others & set(self.tested), "only tested"), (others - set(self.tested), "not even tested"))
        where = joined([f"{at(sorted(those))} ({how})" for those, how in parts if those])
        return (
            f"{count:,} of {counted(len(given), 'image')} {'is' if count == 1 else 'are'} at {where}; the model was "
            f"trained at {at(self.trained)}"
        )

    def to_plain(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_plain(plain: Mapping[str, Any], where: str | Path) -> "Description":
        """Read what `to_plain` has written. Raises `UserError` for anything else; `where` names its file."""
        try:
            version = int(plain["version"])
            if version > VERSION:
                raise UserError(
                    f"Model '{where}' has format {version}, written by a newer version of kdtvit-ray; this one reads "
                    f"formats up to {VERSION}"
                )
            made = Description(**{each.name: plain[each.name] for each in fields(Description)})
            made._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"Model '{where}' does not say how it is used ({type(error).__name__}: {error}); allowed: what "
                "'kdtvit-ray export' has written"
            ) from None
        return made

    def _check(self) -> None:
        told = self.preprocessing
        told["interpolation"]
        if told["aspect"] not in ("crop", "squash") or told["crop"] not in ("none", "centre"):
            raise ValueError(f"aspect {told['aspect']!r}, crop {told['crop']!r}")
        if not 1 <= self.image_size <= int(told["size"]) or len(told["mean"]) != 3 or len(told["std"]) != 3:
            raise ValueError("sizes or normalisation that cannot be")
        if len(self.words) != 2 or list(self.classes[self.first_positive :]) != list(self.positive):
            raise ValueError("positive classes that do not stand last")
        if len(self.logit_offsets) not in (0, len(self.classes)):
            raise ValueError(f"{len(self.logit_offsets)} logit offsets for {len(self.classes)} classes")
        unpacked(self.development)
        for each in (*self.trained, *self.tested):
            int(each)
        self.numeric["dtype"], int(self.numeric["threads"]), float(self.numeric.get("float32_difference", 0))
        self.provenance["trial"], self.provenance["study"]
        if not self.temperature > 0 or not 0 <= self.threshold <= 1:
            raise ValueError(f"temperature {self.temperature}, threshold {self.threshold}")


def views_of(images: np.ndarray, views: int) -> list[np.ndarray]:
    """Images (B, S, S, 3) in the first `views` of the square's eight views, each (B, S, S, 3)."""
    return [np.ascontiguousarray(turned(images, view)) for view in range(views)]


def at(magnifications: Sequence[int]) -> str:
    """Magnifications in words, such as `40X and 100X`."""
    return joined([f"{each}X" for each in magnifications])
