"""How often the 95 % intervals of a model's numbers hold the value that all patients would give, beside the expanded
percentile intervals of the same draws; and how often two equal models are called different at 5 %.

An image's log odds are a signal for its class, a difficulty of its patient (variance 1), one of its patient at its
magnification (0.25), and chance (0.64); a model adds its own opinion of the patient (0.25) and of the image (0.16). A
patient has three to nine images at each of four magnifications. The value of all patients is that of 20,000 of them,
with the same share of each class. 1,000 bootstrap draws; means over magnifications.
"""

import math
import os
from collections import defaultdict

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.metrics import average_precision_score, matthews_corrcoef

from kdtvit_ray.metrics import measure_levels
from kdtvit_ray.results.bootstrap import Cell, bootstrap, paired, percentile, resample
from kdtvit_ray.results.extra_metrics import EVERY, everything
from kdtvit_ray.results.statistics import MEAN

SETS = int(os.environ.get("BENCH_TRIALS", "1000"))
REPLICATES, ALL_PATIENTS = 1_000, 20_000
MAGNIFICATIONS = (40, 100, 200, 400)
PATIENTS = ((6, 18), (13, 43))
SIGNALS = (1.0, 1.6, 2.2)
"""Half the distance between the classes: AUC 0.83, 0.93 and 0.98."""
CELLS: tuple[Cell, ...] = (
    *(("image", metric, MEAN) for metric in EVERY),
    *(("image", metric, 40) for metric in ("auc", "recall", "specificity")),
    ("patient_rate", "accuracy", MEAN),
    *(("patient_vote", metric, MEAN) for metric in ("auc", "accuracy", "specificity")),
)


def drawn(rng: np.random.Generator, benign: int, malignant: int, signal: float, models: int = 2) -> list[pd.DataFrame]:
    """Predictions of so many models that are equally good, for the same images."""
    count, places = benign + malignant, len(MAGNIFICATIONS)
    sick = np.repeat([False, True], [benign, malignant])
    cell = np.repeat(np.arange(places * count), rng.integers(3, 10, places * count))
    owner, images = cell // places, len(cell)
    shared = np.where(sick, signal, -signal)[owner] + 0.3
    shared += rng.normal(0, 1, count)[owner] + rng.normal(0, 0.5, places * count)[cell] + rng.normal(0, 0.8, images)
    made = []
    for _ in range(models):
        score = shared + rng.normal(0, 0.5, count)[owner] + rng.normal(0, 0.4, images)
        columns = {"magnification": np.array(MAGNIFICATIONS)[cell % places], "malignant": sick[owner]}
        names = np.char.mod("p%05d", owner)
        made.append(pd.DataFrame({"patient": names, **columns, "probability": expit(1.5 * score)}))
    return made


def truths(benign: int, malignant: int, signal: float) -> dict[tuple[str, str], float]:
    """{(level, metric): mean over magnifications} over all patients; each magnification has the same."""
    times = ALL_PATIENTS // (benign + malignant)
    (everyone,) = drawn(np.random.default_rng(7), times * benign, times * malignant, signal, models=1)
    found = defaultdict(list)
    for _, part in everyone.groupby("magnification"):
        truth, score = part["malignant"].to_numpy(), part["probability"].to_numpy()
        for level, values in measure_levels(truth, score, part["patient"].to_numpy()).items():
            for metric, value in values.items():
                found[level, metric].append(value)
        found["image", "auprc"].append(float(average_precision_score(truth, score)))
        found["image", "mcc"].append(float(matthews_corrcoef(truth, score >= 0.5)))
    return {cell: float(np.mean(values)) for cell, values in found.items()}


def main() -> None:
    print(
        f"  {SETS} sets each; share that holds the value, and mean width: ours | expanded percentile; no width; equal"
    )
    print("  models called different")
    for benign, malignant in PATIENTS:
        for signal in SIGNALS:
            everyone = truths(benign, malignant, signal)
            rng = np.random.default_rng([benign, malignant, round(10 * signal)])
            lines: dict[Cell, list[tuple[float, ...]]] = {cell: [] for cell in CELLS}
            for seed in range(SETS):
                frames = drawn(rng, benign, malignant, signal)
                first = frames[0]
                patients = resample(first["patient"].to_numpy(), first["malignant"].to_numpy(), REPLICATES, seed)
                ours, other = (bootstrap(each, patients, MAGNIFICATIONS, everything) for each in frames)
                for cell in CELLS:
                    value, true = ours.values[cell], everyone[cell[:2]]
                    if not math.isfinite(value):
                        continue
                    interval = ours.interval(cell)
                    before = percentile(value, ours.replicates[cell], patients=ours.patients(cell))
                    pair = [(each.low <= true <= each.high, each.high - each.low) for each in (interval, before)]
                    lines[cell].append((*pair[0], *pair[1], interval.flat, paired(ours, other, cell).p < 0.05))
            print(f"  {benign} + {malignant} patients, AUC {everyone['image', 'auc']:.3f}")
            for (level, metric, place), found in lines.items():
                held, width, held_before, width_before, flat, claimed = np.mean(found, axis=0)
                print(
                    f"    {level} {metric} {place}, {everyone[level, metric]:.3f}: {100 * held:.1f} % ({width:.3f}) | "
                    f"{100 * held_before:.1f} % ({width_before:.3f}); {100 * flat:.1f} %; {100 * claimed:.1f} %",
                    flush=True,
                )


if __name__ == "__main__":
    main()
