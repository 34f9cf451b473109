"""A study's model as a folder that others can use without the study: weights for timm, ONNX, and a model card."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdtvit_ray.data.prepared import Prepared
from kdtvit_ray.deliver import folder
from kdtvit_ray.deliver.checksums import packed
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.model import OnnxModel, TorchModel
from kdtvit_ray.deliver.model_choice import BEST, Chosen, choose_model, describe, network_of
from kdtvit_ray.deliver.onnx_file import largest_difference, to_int8, to_onnx
from kdtvit_ray.deliver.study_images import development_of, pixels_of, prepared_of
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.operating import Operating, operating

MOST_IMAGES = 512
"""As many test images of the prepared set are used to hold ONNX against PyTorch."""
AGREEMENT = 1e-4
"""Largest difference between a logit in ONNX Runtime and in PyTorch, both in float32."""


@dataclass(frozen=True)
class Difference:
    """The largest difference of a probability of the positive side, and how many images the chosen threshold decides
    otherwise."""

    probability: float
    decisions: int


@dataclass(frozen=True)
class Compared:
    """Against PyTorch in float32 on `images` images, of the study's test part where `real` is true, else of noise: the
    largest difference of a logit in ONNX; `int8`, the ONNX model of eight bits, None where there is none; and
    `bfloat16`, the study's own probabilities, None where it computed in float32 or the images are noise."""

    images: int
    real: bool
    logits: float
    int8: Difference | None = None
    bfloat16: Difference | None = None


@dataclass(frozen=True)
class Exported:
    """`development` says whether the model holds the checksums of its development images."""

    out: Path
    chosen: Chosen
    operating: Operating
    compared: Compared
    bytes: Mapping[str, int]
    development: bool


def export(
    study: str,
    out: Path,
    trial: str = BEST,
    *,
    data: str = "",
    int8: bool = False,
    progress: Callable[[str], None] = lambda words: None,
) -> Exported:
    """Write the model of `trial` of a study to the folder `out`. The same study gives the same bytes.

    `data` is the prepared set, by default the study's own where it lies: on its test images ONNX is held against
    PyTorch, and its development images are known again by `predict`; without it noise has to do, and `int8`, whose
    difference only real images tell, is refused. Raises `UserError`; then nothing is written.
    """
    from kdtvit_ray.deliver.card import card

    folder.check_target(out)
    progress("reading the study")
    chosen = choose_model(study, trial)
    decided = operating(chosen.study, chosen.trial, chosen.key)
    told = describe(chosen)
    weights = chosen.weights
    prepared = prepared_of(chosen, data)
    if prepared is not None:
        progress("reading the development images")
        told = replace(told, development=packed(development_of(chosen, prepared, told)))
    test = _test_images(chosen, told, prepared)
    if int8 and test is None:
        raise UserError(
            f"--int8 needs the prepared set of study '{chosen.study.folder.shown}', on whose images the difference is "
            "measured; say with --data where it lies"
        )
    progress("predicting test images")
    network = network_of(chosen)
    shown = test[0] if test else _noise(told)
    # in the float32 of ONNX: bfloat16 differs a hundred times more than an ONNX model that is right may
    ours = TorchModel(network, told.in_float32(), device="cpu")
    found = ours.probabilities(shown)
    bfloat16 = None
    if told.in_bfloat16 and test:
        bfloat16 = _difference(told, told.positive_probability(found), test[1])
        told = replace(told, numeric={**told.numeric, "float32_difference": float(f"{bfloat16.probability:.2g}")})
    progress("writing ONNX")
    content = to_onnx(network, told)
    files = {folder.WEIGHTS: weights, folder.ONNX: content}
    progress("comparing ONNX with PyTorch")
    theirs = OnnxModel(content, out / folder.ONNX)
    difference = largest_difference(ours.logits(shown), theirs.logits(told.normalised(shown)))
    if not difference <= AGREEMENT:
        raise UserError(
            f"The ONNX model of stage {chosen.key} differs from PyTorch by {difference:.2g} in a logit (allowed: "
            f"{AGREEMENT:g}); nothing was written"
        )
    compared = Compared(len(shown), test is not None, difference, bfloat16=bfloat16)
    if int8:
        progress("writing ONNX of eight bits")
        files[folder.ONNX_INT8] = to_int8(content, told)
        small = OnnxModel(files[folder.ONNX_INT8], out / folder.ONNX_INT8)
        first, second = map(told.positive_probability, (found, small.probabilities(shown)))
        compared = replace(compared, int8=_difference(told, first, second))
    progress("writing the model card")
    files[folder.CARD] = card(chosen, told, decided, compared).encode()
    folder.write(out, files, timm_config(chosen, told, network), told)
    sizes = {name: len(each) for name, each in files.items()}
    return Exported(out, chosen, decided, compared, sizes, bool(told.development))


def timm_config(chosen: Chosen, told: Description, network: Any) -> dict[str, Any]:
    """`config.json` as timm reads it. Its preprocessing is timm's nearest: of two resizings it does one."""
    spec = StageSpec.from_dict(dict(chosen.record.spec)).model
    name, _ = spec.timm
    size, how = spec.image_size, told.preprocessing
    return {
        "architecture": name,
        "num_classes": spec.classes,
        "num_features": int(network.num_features),
        "label_names": list(told.classes),
        "model_args": json.loads(json.dumps(network.timm_arguments)),
        "pretrained_cfg": {
            "architecture": name,
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": "img_size" in network.timm_arguments,
            "interpolation": how["interpolation"],
            "crop_pct": _crop_pct(size, int(how["size"])) if how["crop"] == "centre" else 1.0,
            "crop_mode": "squash" if how["aspect"] == "squash" else "center",
            "mean": list(how["mean"]),
            "std": list(how["std"]),
            "num_classes": spec.classes,
            "first_conv": network.pretrained_cfg.get("first_conv"),
            "classifier": network.pretrained_cfg.get("classifier"),
        },
    }


def _crop_pct(cut: int, size: int) -> float:
    """The share of a square's side that is cut out of its middle; timm divides by it and rounds down to `size`."""
    share = cut / size
    return share if math.floor(cut / share) == size else math.nextafter(share, 0.0)


def _test_images(chosen: Chosen, told: Description, prepared: Prepared | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Test images of the study as its model takes them, uint8 (B, S, S, 3), at most `MOST_IMAGES`, and the study's
    probabilities (B,) of them; None where the prepared set is not at hand."""
    predictions = chosen.study.predictions(chosen.key)
    if prepared is None or predictions is None:
        return None
    test = predictions[predictions["split"] == "test"].sort_values("image")
    test = test.iloc[:: max(1, -(-len(test) // MOST_IMAGES))]
    if not len(test):
        return None
    return pixels_of(prepared, test["image"].to_numpy(), told), test["probability"].to_numpy()


def _difference(told: Description, first: np.ndarray, second: np.ndarray) -> Difference:
    """Between probabilities (B,) of the positive side."""
    other = (first >= told.threshold) != (second >= told.threshold)
    return Difference(largest_difference(first, second), int(other.sum()))


def _noise(told: Description) -> np.ndarray:
    """64 images of noise, always the same."""
    return np.random.default_rng(0).integers(0, 256, (64, told.image_size, told.image_size, 3), dtype=np.uint8)
