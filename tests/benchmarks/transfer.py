"""Which way to train a chain from pretrained weights transfers to patients that nobody has seen?

A ViT-S/14 with DINOv2 weights, chains 40>100>200>400 on all outer folds of two populations: synthetic patients, and the
real BreakHis images of the folder that KDTVIT_BREAKHIS names (it needs all four magnifications; KDTVIT_WEIGHTS names a
weights file where there is no network). BENCH_POPULATIONS and BENCH_WAYS choose a part of it all. Every way to train
has the CPU seconds that `FULL_EPOCHS` epochs of full fine-tuning take, and as many epochs as fit in; each learning rate
is a line of its own. Logistic regressions on the frozen features of the same network are what a chain has to beat: one
for each magnification, and one over all.

    AUC          of the unified model on test, images of all folds put together, mean over magnifications, with a 95 %
                 interval over patients; by magnification
    - regression the same minus that of the better regression, paired over patients
    forgotten    AUC after the last stage minus AUC right after the magnification's own stage, worst magnification
"""

import math
import sys

import numpy as np
import pandas as pd

from kdtvit_ray.results.bootstrap import Bootstrapped, Cell, bootstrap, paired
from kdtvit_ray.results.out_of_fold import patients_of
from kdtvit_ray.results.statistics import MEAN
from tests.benchmarks._transfer_chains import (
    FOLDS,
    MAGNIFICATIONS,
    Job,
    Trained,
    features,
    jobs,
    make_all,
    populations,
    prepared,
    space,
)

OF_MEAN: Cell = ("image", "auc", MEAN)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the regression's penalty, chosen by cross-validation over development patients."""


def regression(population: str, *, each: bool) -> pd.DataFrame:
    """Predictions on test of logistic regressions on frozen features, of all folds: one for `each` magnification, or
    one on the images of all."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from kdtvit_ray.data.batches import StageData

    images, inputs, made = prepared(population), features(population), []
    malignant, of_image = (images.table[name].to_numpy() for name in ("malignant", "magnification"))
    for fold in range(1, FOLDS + 1):
        data = StageData(images, space(population, jobs()[0].way, 1e-4, 2, fold).data)
        train, test, patient = data.rows("train"), data.rows("test"), np.asarray(data.split.groups)
        for magnification in MAGNIFICATIONS:
            rows = train[of_image[train] == magnification] if each else train
            chosen = GridSearchCV(
                make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)),
                {"logisticregression__C": STRENGTHS},
                scoring="neg_log_loss",
                cv=StratifiedGroupKFold(4),
            ).fit(inputs[rows], malignant[rows], groups=patient[rows])
            asked = test[of_image[test] == magnification]
            columns = {"magnification": magnification, "malignant": malignant[asked], "patient": patient[asked]}
            made.append(pd.DataFrame({**columns, "probability": chosen.predict_proba(inputs[asked])[:, 1]}))
    return pd.concat(made)


def measured(predictions: pd.DataFrame) -> Bootstrapped:
    return bootstrap(predictions, patients_of([predictions], 2000), MAGNIFICATIONS)


def line(name: str, found: Bootstrapped, rival: Bootstrapped | None = None) -> str:
    interval = found.interval(OF_MEAN)
    parts = " ".join(f"{found.values['image', 'auc', each]:.3f}" for each in MAGNIFICATIONS)
    words = f"  {name:<38} {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]  {parts}"
    if rival:
        told = paired(found, rival, OF_MEAN)
        words += f"  {100 * told.interval.value:+5.1f} (p {told.p:.2f})"
    return words


def forgotten(predictions: pd.DataFrame) -> float:
    """The largest loss of AUC at an earlier magnification from its own stage to the last, in points, negative."""
    last = measured(predictions[predictions["stage"] == len(MAGNIFICATIONS)])
    losses = []
    for stage, magnification in enumerate(MAGNIFICATIONS[:-1], start=1):
        own = measured(predictions[predictions["stage"] == stage])
        cell: Cell = ("image", "auc", magnification)
        losses.append(100 * (last.values[cell] - own.values[cell]))
    return min(losses)


def together(kept: list[Job]) -> tuple[pd.DataFrame, list[Trained]]:
    import pickle

    found: list[Trained] = [pickle.loads(job.path.read_bytes()) for job in kept]
    return pd.concat([each.predictions for each in found]), found


def main() -> None:
    for done in make_all():
        print(done.path.stem, file=sys.stderr, flush=True)
    for population in populations():
        table = prepared(population).table
        print(f"  {population}: {len(table)} images")
        print(f"  {'':<38} AUC                   at {MAGNIFICATIONS}   - regression, forgotten, epochs, CPU s, MB")
        own, both = (measured(regression(population, each=each)) for each in (True, False))
        print(line("regression, one a magnification", own))
        print(line("regression, one over all", both))
        rival = max((own, both), key=lambda each: each.values[OF_MEAN])
        settings: dict[tuple[str, float], list[Job]] = {}
        for job in jobs():
            if job.population == population:
                settings.setdefault((job.way.name, job.lr), []).append(job)
        for (name, lr), kept in settings.items():
            predictions, found = together(kept)
            last = measured(predictions[predictions["stage"] == len(MAGNIFICATIONS)])
            seconds = math.fsum(each.seconds for each in found) / len(found)
            memory, epochs = max(each.memory for each in found), found[0].epochs
            print(
                f"{line(f'{name}, lr {lr:g}', last, rival)}  {forgotten(predictions):+5.1f}  {epochs:3d}  "
                f"{seconds:4.0f}  {memory:4.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
