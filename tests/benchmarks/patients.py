"""How often a report claims that a magnification adds to the decision on a patient where it does not, and where it
does.

Test patients whose scores are drawn (`tests.results.null_study.null_patients`), 2,000 bootstrap draws, nominal level
5 % over the eight comparisons that Holm's correction is for. A claim is what the report's sentence says.
"""

import os

import numpy as np

from kdtvit_ray.results.patient_sentences import adds
from kdtvit_ray.results.patients import added
from tests.results.null_study import null_patients

STUDIES = int(os.environ.get("BENCH_TRIALS", "500"))
PATIENTS = ((5, 11), (6, 18), (13, 43))
REPLICATES = 2_000


def claims(benign: int, malignant: int, signal: float, last: float | None, seed: int) -> tuple[float, float, float]:
    """Shares of studies: with any claim, with one about what magnification 4 adds to the others, and with one that all
    magnifications decide better than 1 alone. The sentence claims if and only if a line does."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(STUDIES):
        one = added(null_patients(rng, benign, malignant, signal, last), [1, 2, 3, 4], "auc", REPLICATES)
        assert one is not None
        lines = {each.name: each.shown for each in one.subsets}
        assert any(lines.values()) == ("that decision is " in adds(one, ("benign", "malignant")))
        found.append((any(lines.values()), lines["all without 4X"], lines["1X alone"]))
    any_claim, of_last, of_first = np.mean(found, axis=0)
    return float(any_claim), float(of_last), float(of_first)


def main() -> None:
    print(
        f"  {STUDIES} studies each; share that claims: anything | that 4X adds to the others | that all beat 1X alone"
    )
    for what, signal, last in (
        ("no magnification tells anything (AUC 0.5)", 0.0, None),
        ("4X adds nothing to the others (AUC 0.90)", 2.08, None),
        ("4X alone tells nothing (AUC 0.84 with it, 0.90 without)", 2.08, 0.0),
        ("4X tells most (AUC 0.93 with it, 0.80 without)", 1.375, 5.4),
    ):
        for benign, malignant in PATIENTS:
            shares = " | ".join(f"{100 * each:.1f} %" for each in claims(benign, malignant, signal, last, seed=1))
            print(f"  {what}, {benign} + {malignant} patients: {shares}", flush=True)


if __name__ == "__main__":
    main()
