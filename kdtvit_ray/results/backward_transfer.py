"""What a chain kept, over patients: its backward transfer with an interval, since one set of test patients shows a gain
or a loss by chance too.

Backward transfer is a mean of differences, as likely too high as too low. Forgetting (`results.transfer`) compares with
the best of several noisy values, so that it is above zero on average also where nothing is lost, and tells no loss by
itself.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.recipe import parse_order
from kdtvit_ray.results.bootstrap import Difference, bootstrap, difference, resample
from kdtvit_ray.results.statistics import REPLICATES, Interval
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import amount, points

BIASED = "the best of several noisy values is above zero on average also where nothing is lost"
"""Why forgetting alone shows no loss."""


def backward_over_patients(
    study: Study, trial: str, metrics: Sequence[str], replicates: int = REPLICATES
) -> dict[str, Difference]:
    """The backward transfer of a trial's chain on test by metric, every stage on the same drawn patients: above zero it
    is a gain, also in a metric that is better when it is lower. It rests on the patients at the earlier magnification
    with the fewest. {} for a chain of one stage, one with a stage of several magnifications, and where predictions are
    missing."""
    record = study.chain_of(trial)
    if record is None or "+" in record["order"]:
        return {}
    order, frames = parse_order(record["order"]), []
    for key in record["stages"]:
        found = study.predictions(key)
        frames.append(None if found is None else found[found["split"] == "test"])
    there = [frame for frame in frames if frame is not None]
    if len(order) < 2 or len(there) < len(order):
        return {}
    *own, last = there
    everyone = pd.concat([frame[["patient", "malignant"]] for frame in there]).drop_duplicates()
    if not len(everyone):
        return {}
    drawn = resample(everyone["patient"].to_numpy(), everyone["malignant"].to_numpy(), replicates)
    earlier = order[:-1]
    after = bootstrap(last, drawn, earlier)
    before = [
        bootstrap(frame[frame["magnification"] == each], drawn, [each])
        for frame, each in zip(own, earlier, strict=True)
    ]
    made = {}
    for metric in metrics:
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        cells = [(found, ("image", metric, each)) for found, each in zip(before, earlier, strict=True)]
        if all(cell in found.values and cell in after.values for found, cell in cells):
            value = np.mean([sign * (after.values[cell] - found.values[cell]) for found, cell in cells])
            gained = [sign * (after.replicates[cell] - found.replicates[cell]) for found, cell in cells]
            patients = min(min(found.patients(cell), after.patients(cell)) for found, cell in cells)
            made[metric] = difference(float(value), np.mean(gained, axis=0), patients)
    return made


def kept(backward: Interval | None, metric: str) -> str:
    """What the patients show of the loss, after a sentence that tells the backward transfer in a metric."""
    if backward is None or not backward.bounded:
        return "whether other patients would show the same cannot be told"
    told = f"95 % CI {points(backward.low, metric)} to {amount(backward.high, metric)} over patients"
    if backward.low > 0:
        return f"{told}: on the whole nothing was forgotten"
    if backward.high < 0:
        return f"{told}: it forgot some of what it knew"
    return f"{told}: whether it forgot anything, these patients do not tell"
