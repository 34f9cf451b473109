"""How well the optimism of a chosen objective is estimated, on studies whose truth is known.

A study has settings that separate the classes of a patient's score by some true amount, and patients who are hard for
all settings, and for each of them, by chance. So a setting's true AUC is known, and that of the one with the best
measured AUC too. 13 benign and 43 malignant patients, as BreakHis has them beside a test fold of three.

The peer is the same bootstrap around the measured objectives.
"""

import numpy as np
import pandas as pd
from scipy import stats

from kdtvit_ray.results.out_of_fold import Judged, Part, judge, patients_of
from kdtvit_ray.results.trust import optimism

BENIGN, MALIGNANT, DRAWS = 13, 43, 500
SHARED, OWN = 1.0, 0.5
"""Standard deviations of what makes a patient hard for all settings, and for one."""
STUDIES = 100


def study(rng: np.random.Generator, settings: int, spread: float) -> tuple[dict[str, Judged], np.ndarray]:
    """The settings as they are judged, and their true AUC (S,), which has mean 0.9 and standard deviation `spread`."""
    truth = np.clip(rng.normal(0.9, spread, settings), 0.55, 0.995)
    apart = stats.norm.ppf(truth) * np.sqrt(2 * (SHARED**2 + OWN**2))
    malignant = np.arange(BENIGN + MALIGNANT) >= BENIGN
    shared = rng.normal(0, SHARED, len(malignant))
    frames = {}
    for place, each in enumerate(apart):
        score = each * malignant + shared + rng.normal(0, OWN, len(malignant))
        columns = {"magnification": 40, "malignant": malignant, "probability": stats.norm.cdf(score)}
        frames[str(place)] = pd.DataFrame({**columns, "patient": np.char.mod("%02d", np.arange(len(malignant)))})
    drawn = patients_of(list(frames.values()), DRAWS)
    return {name: judge({Part(1, 1): frame}, "auc", (40,), drawn) for name, frame in frames.items()}, truth


def around_measured(judged: dict[str, Judged]) -> float:
    """The peer: by how much the winner of a draw is better in the draw than measured, on average."""
    drawn = np.stack([each.replicates for each in judged.values()], axis=1)
    whole = np.array([each.value for each in judged.values()])
    return float(np.mean(drawn.max(axis=1) - whole[drawn.argmax(axis=1)]))


def measured(studies: int, settings: int, spread: float, seed: int = 0) -> np.ndarray:
    """(studies, 3): the true optimism, the estimate, the peer's. Luck that all settings of a study share picks no
    winner, so the true one is told without it, which leaves its mean as it is."""
    rng, lines = np.random.default_rng(seed), []
    for _ in range(studies):
        judged, truth = study(rng, settings, spread)
        error = np.array([each.value for each in judged.values()]) - truth
        best = max(range(settings), key=lambda place: judged[str(place)].value)
        lines.append((error[best] - error.mean(), optimism(judged, list(judged), "auc"), around_measured(judged)))
    return np.array(lines)


def main() -> None:
    print(f"  optimism of the best AUC in points, mean and standard error over {STUDIES} studies")
    for settings in (4, 16, 40):
        for spread in (0.0, 0.01, 0.03):
            found = 100 * measured(STUDIES, settings, spread)
            means, errors = found.mean(axis=0), found.std(axis=0) / STUDIES**0.5
            true, ours, peer = (f"{mean:.2f} ± {error:.2f}" for mean, error in zip(means, errors, strict=True))
            print(f"  {settings} settings, true sd {100 * spread:.0f} points: true {true}, ours {ours}, peer {peer}")


if __name__ == "__main__":
    main()
