"""Images of a study's prepared set, as a model of the study takes them."""

from pathlib import Path

import numpy as np

from kdtvit_ray.data.batches import Pixels
from kdtvit_ray.data.folds import split
from kdtvit_ray.data.prepared import Prepared, open_prepared
from kdtvit_ray.deliver.checksums import checksum
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.model_choice import Chosen
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import StageSpec

AT_ONCE = 256
"""As many development images are in memory at once."""


def prepared_of(chosen: Chosen, data: str = "") -> Prepared | None:
    """The prepared set that the study was made for: at `data`, by default where it lay then. None where it is not at
    hand. Raises `UserError` where `data` names no set, or another one."""
    place = data or chosen.study.plain["data"]["path"]
    try:
        prepared = open_prepared(Path(place))
    except UserError:
        if data:
            raise
        return None
    wanted = chosen.record.spec["data"]["fingerprint"]
    if prepared.fingerprint == wanted:
        return prepared
    if data:
        raise UserError(
            f"The prepared set '{data}' has fingerprint {prepared.fingerprint}, but the study was made for {wanted}"
        )
    return None


def pixels_of(prepared: Prepared, rows: np.ndarray, told: Description) -> np.ndarray:
    """Images `rows` (B,) of the set as uint8 (B, S, S, 3)."""
    pixels = Pixels(prepared.images[rows], told.image_size, told.preprocessing["crop"])
    pixels.make(np.arange(len(rows)))
    return pixels.gather(np.arange(len(rows)), None, np.empty((len(rows), *(told.image_size,) * 2, 3), np.uint8))


def development_of(chosen: Chosen, prepared: Prepared, told: Description) -> frozenset[bytes]:
    """Checksums of the images of the study that are not test for this model."""
    parts = split(prepared.table, StageSpec.from_dict(dict(chosen.record.spec)).data, prepared.dataset)
    rows = np.sort(np.concatenate([parts.train, parts.validation]))
    starts = range(0, len(rows), AT_ONCE)
    return frozenset(
        checksum(image) for start in starts for image in pixels_of(prepared, rows[start : start + AT_ONCE], told)
    )
