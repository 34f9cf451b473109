"""Does the objective of a study's search say which setting is better for patients that nobody has seen?

Takes a finished study on the synthetic set (`BENCH_STUDY`, else `demo/study`, which `make demo` leaves behind), judges
the final model of every setting that was tried on 160 new synthetic patients, and compares that truth with what the
search saw, and with the study's own test patients.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.study import Study, load
from kdtvit_ray.study.store import StageStore
from tests.benchmarks.class_weights import NEW_PATIENTS_SEED, SUBTYPES, judged, patients

STUDY = os.environ.get("BENCH_STUDY", "demo/study")
EACH, IMAGES = 20, 4
"""New patients of each subtype, and images of each patient at each magnification."""


@dataclass(frozen=True)
class Stored:
    """A stage of a study, as `judged` takes it."""

    spec: StageSpec
    state: Any
    weighting: Any


def main() -> None:
    torch.set_num_threads(1)
    study, store = load(STUDY), StageStore(StudyFolder(STUDY))
    with tempfile.TemporaryDirectory() as place:
        new = patients(Path(place), dict.fromkeys(SUBTYPES, EACH), IMAGES, NEW_PATIENTS_SEED)

        def truth(key: str) -> float:
            record = store.record(key)
            stored = Stored(StageSpec.from_dict(record.spec), store.state(key), record.weighting)
            return dict(judged(stored, new, ("none",)))["none"][study.metric]

        settings = study.settings
        true = np.array([truth(keys[-1]) for keys in settings["stages"]])
        baselines = {
            record.trial: truth(record.stages[-1])
            for record in study.trials.itertuples(index=False)
            if record.kind == "baseline" and not record.trial.startswith("per_magnification")
        }
    objective = settings["objective"].to_numpy()
    test = np.array([_test(study, trial) for trial in settings["trial"]])
    print(
        f"  {len(settings)} settings, {EACH * len(SUBTYPES)} new patients, {study.metric} as mean over magnifications"
    )
    for name, values in (("objective", objective), ("study's test", test), ("new patients", true)):
        print(f"  {name:14s} {values.min():.3f} to {values.max():.3f}")
    for name, values in (("objective", objective), ("study's test", test)):
        found = stats.spearmanr(values, true)
        print(f"  rank correlation of {name} with new patients: {found.statistic:.2f} (p = {found.pvalue:.2f})")
    chosen = true[np.argmax(objective)]
    print(f"  the chosen setting reaches {chosen:.3f}, the best one that was tried {true.max():.3f}")
    print("  " + ", ".join(f"{name} {value:.3f}" for name, value in baselines.items()))


def _test(study: Study, trial: str) -> float:
    """The metric on the study's own test patients after a trial's last stage, mean over magnifications."""
    rows = study.rows[(study.rows["trial"] == trial) & (study.rows["split"] == "test")]
    rows = rows[(rows["level"] == "image") & (rows["metric"] == study.metric)]
    return float(rows.loc[rows["stage"] == rows["stage"].max(), "value"].mean())


if __name__ == "__main__":
    main()
