"""How often the 95 % intervals of the numbers over the classes hold the value that all patients would give, beside
the expanded percentile intervals of the same draws.

Test patients of eight classes are drawn, each with a recall of her own (Beta around her class's mean) and eight images
at each of two magnifications; wrong images are called another class, some classes more often than others. The value of
all patients is that of 60,000 of them, with the same share of each class. 2,000 bootstrap draws.
"""

import os

import numpy as np
import pandas as pd

from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.results.bootstrap import percentile, resample
from kdtvit_ray.results.statistics import MEAN
from kdtvit_ray.results.subtypes import METRICS, Subtypes, subtypes

SETS = int(os.environ.get("BENCH_TRIALS", "400"))
IMAGES, REPLICATES, ALL_PATIENTS = 8, 2_000, 60_000
SPREAD = 6.0
"""Sum of the parameters of the Beta distribution of a patient's recall."""
COUNTS = {
    "a third of BreakHis": (1, 3, 1, 2, 13, 2, 3, 2),
    "all of BreakHis": (4, 10, 3, 7, 38, 5, 9, 6),
    "equal": (5,) * 8,
}
"""Patients of each class."""
RECALLS = {"0.4 to 0.85": np.linspace(0.4, 0.85, 8), "0.2 to 0.97": np.linspace(0.2, 0.97, 8)}


def drawn(counts: np.ndarray, recalls: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Predictions of test images: so many patients of each class, whose mean recalls are given."""
    of_patient = np.repeat(np.arange(len(counts)), counts)
    mean = recalls[of_patient]
    recall = rng.beta(SPREAD * mean, SPREAD * (1 - mean))
    truth = np.repeat(of_patient, 2 * IMAGES)
    right = rng.random(len(truth)) < np.repeat(recall, 2 * IMAGES)
    likely = np.arange(1, len(counts)) / np.arange(1, len(counts)).sum()
    wrong = (truth + 1 + rng.choice(len(counts) - 1, size=len(truth), p=likely)) % len(counts)
    called = np.where(right, truth, wrong)
    columns = {f"p{each}": np.where(called == each, 0.7, 0.04) for each in range(len(counts))}
    return pd.DataFrame(
        {
            "split": "test",
            "magnification": np.tile([40, 100], len(truth) // 2),
            "patient": np.repeat([f"p{number:05}" for number in range(len(of_patient))], 2 * IMAGES),
            "subtype": truth,
            "malignant": truth >= 4,
            **columns,
        }
    )


def measured(table: pd.DataFrame, replicates: int) -> Subtypes:
    patients = resample(table["patient"].to_numpy(), table["malignant"].to_numpy(), replicates)
    return subtypes(table, breakhis(), patients, (40, 100))


def main() -> None:
    print(f"  {SETS} sets each; share that holds the value, and mean width, in points: ours | expanded percentile")
    for recalls_told, recalls in RECALLS.items():
        for counts_told, counts in COUNTS.items():
            shares, rng = np.array(counts) / sum(counts), np.random.default_rng(1)
            everyone = measured(drawn((ALL_PATIENTS * shares).astype(int), recalls, rng), 1)
            lines: dict[str, list[tuple[float, ...]]] = {name: [] for name in METRICS}
            for _ in range(SETS):
                one = measured(drawn(np.array(counts), recalls, rng), REPLICATES)
                for name in METRICS:
                    interval, value = one.metric(name, MEAN), everyone.metrics[name, MEAN][0]
                    before = percentile(
                        interval.value, one.metrics[name, MEAN][1:], patients=one.sides[MEAN].behind(name)
                    )
                    pair = [(each.low <= value <= each.high, each.high - each.low) for each in (interval, before)]
                    lines[name].append((*pair[0], *pair[1]))
            found = {name: 100 * np.mean(each, axis=0) for name, each in lines.items()}
            told = ", ".join(
                f"{name} {held:.1f} % ({width:.0f}) | {held_before:.1f} % ({width_before:.0f})"
                for name, (held, width, held_before, width_before) in found.items()
            )
            print(f"  recalls {recalls_told}, {counts_told} ({sum(counts)} patients): {told}", flush=True)


if __name__ == "__main__":
    main()
