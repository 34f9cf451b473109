"""What a report says of a chain's forgetting where nothing is lost, and where something is.

An image's log odds are a signal for its class, a difficulty of its patient (variance 1), one of its patient at its
magnification (0.16), what its patient makes of the stage (0.25), and chance (0.36); six images at each of four
magnifications. The last stage loses some of the signal at the magnifications before. 1,000 bootstrap draws.
"""

import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.special import expit

from kdtvit_ray.metrics import auc
from kdtvit_ray.results.backward_transfer import backward_over_patients
from kdtvit_ray.results.transfer import transfer_numbers

STUDIES = int(os.environ.get("BENCH_TRIALS", "300"))
PATIENTS, LOST, SIGNAL, IMAGES, REPLICATES = ((6, 18), (13, 43)), (0.0, 0.35, 0.7), 1.8, 6, 1_000
ORDER = (40, 100, 200, 400)


def drawn(rng: np.random.Generator, benign: int, malignant: int, lost: float) -> list[pd.DataFrame]:
    """Predictions of the four stages of a chain for the same test images."""
    count, stages = benign + malignant, len(ORDER)
    sick = np.repeat([False, True], [benign, malignant])
    owner = np.repeat(np.arange(count), stages * IMAGES)
    at = np.tile(np.repeat(np.arange(stages), IMAGES), count)
    shared = rng.normal(0, 1, count)[owner] + rng.normal(0, 0.4, (count, stages))[owner, at]
    made = []
    for stage in range(stages):
        signal = np.where((stage == stages - 1) & (at < stages - 1), SIGNAL - lost, SIGNAL)
        score = sick[owner] * signal + shared + rng.normal(0, 0.5, count)[owner] + rng.normal(0, 0.6, len(owner))
        columns = {"magnification": np.array(ORDER)[at], "malignant": sick[owner], "probability": expit(score)}
        made.append(pd.DataFrame({"split": "test", "patient": np.char.mod("p%05d", owner), **columns}))
    return made


def numbers(frames: list[pd.DataFrame]) -> dict[str, float]:
    parts = [[frame[frame["magnification"] == each] for each in ORDER] for frame in frames]
    matrix = [[auc(each["malignant"].to_numpy(), each["probability"].to_numpy()) for each in line] for line in parts]
    return {name: float(value) for name, value in transfer_numbers(np.array(matrix), np.full(len(ORDER), 0.5)).items()}


def main() -> None:
    keys = [f"k{each}" for each in range(len(ORDER))]
    record = {"trial": "t0", "order": ">".join(map(str, ORDER)), "stages": keys}
    print(f"  {STUDIES} studies each, AUC, in points")
    for benign, malignant in PATIENTS:
        for lost in LOST:
            true = numbers(drawn(np.random.default_rng(9), 1_000 * benign, 1_000 * malignant, lost))["backward"]
            rng = np.random.default_rng([benign, malignant, round(100 * lost)])
            told, held, forgot, nothing = [], 0, 0, 0
            for _ in range(STUDIES):
                frames = drawn(rng, benign, malignant, lost)
                study = SimpleNamespace(
                    chain_of=lambda trial: record, predictions=dict(zip(keys, frames, strict=True)).get
                )
                interval = backward_over_patients(study, "t0", ["auc"], REPLICATES)["auc"].interval
                told.append(numbers(frames)["forgetting"])
                held += interval.low <= true <= interval.high
                forgot += interval.high < 0
                nothing += interval.low > 0
            print(
                f"  {benign} + {malignant} patients, true backward transfer {100 * true:.1f}: forgetting "
                f"{100 * np.mean(told):.1f} on average, at least 1 in {100 * np.mean(np.array(told) >= 0.01):.0f} %; "
                f"the interval of backward transfer holds the truth in {100 * held / STUDIES:.0f} %; told 'forgot' in "
                f"{100 * forgot / STUDIES:.0f} %, 'nothing' in {100 * nothing / STUDIES:.0f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
