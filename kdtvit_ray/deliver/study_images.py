"""Images of a study's prepared set, as a model of the study takes them."""

from pathlib import Path

import numpy as np

from kdtvit_ray.data.batches import Pixels
from kdtvit_ray.data.prepared import Prepared, open_prepared
from kdtvit_ray.deliver.chosen import Chosen
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.errors import UserError


def prepared_of(chosen: Chosen, data: str = "") -> Prepared | None:
    """The prepared set that the study was made for: at `data`, by default where it lay then. None where it is not at
    hand. Raises `UserError` where `data` names no set, or another one."""
    place = data or str(chosen.study.plain.get("data", {}).get("path", ""))
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
