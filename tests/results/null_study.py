"""Studies that were never trained: settings that differ in name only, judged on patients with their own difficulty."""

import numpy as np
import pandas as pd

DRAWS = 500


def null_study(
    rng: np.random.Generator,
    settings: int,
    benign: int,
    malignant: int,
    noise: float,
    effect: float = 0.0,
    response: float = 0.0,
) -> tuple[dict[str, pd.Series], np.ndarray, np.ndarray, int]:
    """Searched values by name, objectives (S,), replicates (R, S) and patients of the smaller class.

    Settings differ by training noise (standard deviation `noise`, in the metric), and by `effect` between the two
    values of `a`. A patient has a difficulty of its own, a response of its own to each setting, and to each value of
    `a` (standard deviation `response`), which is the same in all settings with that value: no difference between the
    values for patients in general, but one for the patients of a study. Values are drawn unevenly, as an adaptive
    search does.
    """
    columns = {
        "a": pd.Series(rng.choice(["x", "y"], settings, p=[0.3, 0.7])),
        "b": pd.Series(rng.choice([1, 2, 4], settings)),
        "c": pd.Series(rng.choice(["p", "q", "r", "s"], settings, p=[0.5, 0.3, 0.1, 0.1])),
    }
    patients = benign + malignant
    shared, own = rng.normal(0, 0.3, patients), rng.normal(0, 0.1, (patients, settings))
    own += response * rng.normal(0, 1, (patients, 2))[:, (columns["a"] == "y").to_numpy(int)]
    score = 0.8 + shared[:, None] + own + rng.normal(0, noise, settings) + effect * (columns["a"] == "y").to_numpy()
    drawn = [rng.multinomial(count, np.full(count, 1 / count), DRAWS) / count for count in (benign, malignant)]
    weights = np.concatenate(drawn, axis=1) / 2
    whole = np.repeat([0.5 / benign, 0.5 / malignant], [benign, malignant])
    return columns, whole @ score, weights @ score, min(benign, malignant)
