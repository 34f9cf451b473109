"""The bootstrap over patients as matrix products against a plain loop over scikit-learn's metrics.

10,000 replicates of 1,600 images of 80 patients, 8 metrics. Ours also has the patient levels (17 numbers a replicate);
the loop has the 8 image metrics only. The loop is run for 50 replicates and its time multiplied by 200. CPU seconds.
"""

import time
import warnings

import numpy as np
import pandas as pd
from sklearn import metrics

from kdtvit_ray.results.bootstrap import bootstrap, resample

REPLICATES, LOOPED, IMAGES, PATIENTS = 10_000, 50, 1_600, 80


def predictions() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    patient = rng.integers(0, PATIENTS, IMAGES)
    malignant = patient % 3 > 0
    score = 1 / (1 + np.exp(-(rng.normal(0, 1, IMAGES) + rng.normal(0, 1, PATIENTS)[patient] + malignant - 0.5)))
    return pd.DataFrame(
        {"magnification": 40, "malignant": malignant, "probability": score, "patient": np.char.mod("%03d", patient)}
    )


def loop(frame: pd.DataFrame, replicates: int) -> dict[str, np.ndarray]:
    """What a script would do: draw patients, put their images together, ask scikit-learn."""
    rng = np.random.default_rng(1)
    members = {name: np.asarray(places) for name, places in frame.groupby("patient").indices.items()}
    sides = [np.array(each) for _, each in frame.groupby("malignant")["patient"].unique().items()]
    truth, score = frame["malignant"].to_numpy(), frame["probability"].to_numpy()
    found: dict[str, list[float]] = {}
    for _ in range(replicates):
        drawn = np.concatenate([members[name] for side in sides for name in rng.choice(side, len(side))])
        t, p = truth[drawn], score[drawn]
        called = p >= 0.5
        for name, value in {
            "accuracy": metrics.accuracy_score(t, called),
            "balanced_accuracy": metrics.balanced_accuracy_score(t, called),
            "precision": metrics.precision_score(t, called),
            "recall": metrics.recall_score(t, called),
            "specificity": metrics.recall_score(~t, ~called),
            "f1": metrics.f1_score(t, called),
            "auc": metrics.roc_auc_score(t, p),
            "brier": metrics.brier_score_loss(t, p),
        }.items():
            found.setdefault(name, []).append(float(value))
    return {name: np.array(values) for name, values in found.items()}


def main() -> None:
    frame = predictions()
    started = time.process_time()
    ours = bootstrap(frame, resample(frame["patient"], frame["malignant"].to_numpy(), REPLICATES), (40,))
    mine = time.process_time() - started
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.process_time()
        theirs = loop(frame, LOOPED)
    looped = (time.process_time() - started) * REPLICATES / LOOPED
    print(f"  matrix products, {REPLICATES} replicates: {mine:.2f} s")
    print(
        f"  loop over scikit-learn: {looped:.0f} s (extrapolated from {LOOPED} replicates); ratio {looped / mine:.0f}"
    )
    spread = {name: (ours.replicates["image", name, 40].std(), values.std()) for name, values in theirs.items()}
    name = "auc"
    print(f"  standard error of the AUC: {spread[name][0]:.4f}; by the loop's {LOOPED}: {spread[name][1]:.4f}")


if __name__ == "__main__":
    main()
