"""How often a report claims that a searched value makes a difference where there is none, and where there is one.

Studies of settings that differ in name only (`tests.results.null_study`), nominal level 5 %. Beside it: the test that
takes settings for a sample and one set of patients for the world (Kruskal-Wallis over settings).
"""

import os

import numpy as np

from kdtvit_ray.results.effects_over_patients import main_effects
from kdtvit_ray.results.statistics import group_test, holm
from tests.results.null_study import null_study

STUDIES = int(os.environ.get("BENCH_TRIALS", "1000"))
PATIENTS = ((13, 43), (10, 26), (18, 18))


def claims(
    benign: int, malignant: int, settings: int, noise: float, effect: float, seed: int, response: float = 0.0
) -> tuple[float, float]:
    """Shares of studies in which a difference is claimed: over patients, and by Kruskal-Wallis over settings; with an
    effect, a difference of the setting that has it."""
    rng, ours, theirs = np.random.default_rng(seed), 0, 0
    for _ in range(STUDIES):
        columns, objective, replicates, patients = null_study(rng, settings, benign, malignant, noise, effect, response)
        found = main_effects(columns, objective, replicates, patients)
        names = ["a"] if effect else list(columns)
        ours += any(each.p_holm < 0.05 for name in names for each in found[name].contrasts)
        tests = holm([group_test(objective, list(columns[name]), 499) for name in columns])
        theirs += any(tests[list(columns).index(name)] < 0.05 for name in names)
    return ours / STUDIES, theirs / STUDIES


def main() -> None:
    print(f"  {STUDIES} studies each; share that claims a difference: over patients | Kruskal-Wallis over settings")
    for benign, malignant in PATIENTS:
        for settings in (16, 40):
            for noise in (0.0, 0.01, 0.03):
                ours, theirs = claims(benign, malignant, settings, noise, 0.0, seed=1)
                print(
                    f"  no difference, {benign} + {malignant} patients, {settings} settings, training noise {noise}: "
                    f"{100 * ours:.1f} % | {100 * theirs:.1f} %",
                    flush=True,
                )
        ours, theirs = claims(benign, malignant, 40, 0.01, 0.0, seed=3, response=0.1)
        print(
            f"  no difference, but patients respond to a value alike in all settings, {benign} + {malignant} patients: "
            f"{100 * ours:.1f} % | {100 * theirs:.1f} %",
            flush=True,
        )
    for effect in (0.01, 0.02, 0.04):
        ours, theirs = claims(13, 43, 40, 0.01, effect, seed=2)
        print(f"  a difference of {effect}, 13 + 43 patients, 40 settings: {100 * ours:.1f} % | {100 * theirs:.1f} %")


if __name__ == "__main__":
    main()
