"""Studies and predictions that were never trained: settings that differ in name only, judged on patients with their own
difficulty; magnifications of which one adds nothing."""

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


def null_patients(
    rng: np.random.Generator, benign: int, malignant: int, signal: float, last: float | None = None
) -> pd.DataFrame:
    """Predictions of test images of three magnifications, 1, 2 and 3, and of a fourth, 4, of one model.

    A patient has a score of its own and one at each magnification, both normal with variance 1, the latter with that of
    its images; malignant patients score higher by `signal`. At magnification 4 they do so by `last`: by default so that
    it adds nothing, since the mean of all four has the AUC of the mean of the other three. With score s, the mean of k
    magnifications has variance 1 + 1 / k within a class, hence (3 signal + last) / 4 : sqrt(5 / 4) = signal : sqrt(4 /
    3). Where `signal` is 0 no magnification, and no set of them, tells anything.
    """
    last = signal * (4 * np.sqrt(5 / 4) / np.sqrt(4 / 3) - 3) if last is None else last
    count = benign + malignant
    sick = np.repeat([False, True], [benign, malignant])
    shift = np.array([signal, signal, signal, last])
    score = rng.normal(0, 1, count)[:, None] + rng.normal(0, 1, (count, 4)) + sick[:, None] * shift
    return pd.DataFrame(
        {
            "patient": np.repeat([f"p{each:03d}" for each in range(count)], 4),
            "magnification": np.tile([1, 2, 3, 4], count),
            "malignant": np.repeat(sick, 4),
            "probability": np.clip(0.5 + 0.04 * score.ravel(), 0, 1),
        }
    )
