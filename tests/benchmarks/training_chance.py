"""How often a confirmation or a nested search claims a difference between chains that are equal but for chance in
training, and how often it finds one that there is; nominal level 5 %, first chain against each other one, Holm's
correction.

Every trained model has a skill and an offset of its logits by chance, each fold and seed anew or alike for the seeds of
a fold; patients are hard for all chains, and for each chain. Beside it: what looks at patients alone (the paired
bootstrap of pooled predictions), and what looks at folds alone (Nadeau and Bengio's corrected t-test).
"""

import os

import numpy as np
import pandas as pd

from kdtvit_ray.results.bootstrap import paired, resample
from kdtvit_ray.results.pooling import Folded, differences, measure_folds
from kdtvit_ray.results.statistics import corrected_t_test, holm

STUDIES, DRAWS, IMAGES = int(os.environ.get("BENCH_TRIALS", "300")), 500, 5
BENIGN, MALIGNANT, SIGNAL = 24, 58, 1.6
METRICS = ("auc", "accuracy", "specificity", "recall", "brier")
GAINS = (0.13, 0.27, 0.55)
"""Of signal; 2, 4 and 7 points of AUC."""
WAYS = ("patients alone", "folds alone", "ours")


def chains(
    rng: np.random.Generator,
    count: int,
    folds: int,
    seeds: int,
    *,
    skill: float = 0.0,
    offset: float = 0.0,
    by_fold: bool = False,
    alike: float = 0.0,
    gain: float = 0.0,
) -> list[Folded]:
    """Chains measured on the patients of all folds; the first one's classes are `gain` further apart. `skill` and
    `offset` are the standard deviations of a model's own signal and of its logits' shift, one draw a model or, with
    `by_fold`, one for all seeds of a fold; of their variance the share `alike` is common to all models of a chain,
    whose training patients are the same in part."""
    sick = np.repeat([False, True], [BENIGN, MALIGNANT])
    fold_of = np.concatenate([rng.permutation(np.arange(each) % folds) for each in (BENIGN, MALIGNANT)])
    owner = np.repeat(np.arange(len(sick)), IMAGES)
    truth, fold = sick[owner], fold_of[owner]
    names = np.char.mod("p%03d", owner)
    drawn = resample(names, truth, DRAWS, seed=int(rng.integers(2**31)))
    shared = rng.normal(0, 1, len(sick))[owner] + rng.normal(0, 0.6, len(owner))
    made = []
    for chain in range(count):
        own, of_seeds = rng.normal(0, 0.4, len(sick))[owner], []
        drift = np.sqrt(1 - alike) * rng.normal(0, 1, (1 if by_fold else seeds, 2, folds))
        drift = (drift + np.sqrt(alike) * rng.normal(0, 1, (2, 1))) * np.array([skill, offset])[:, None]
        for seed in range(seeds):
            more, shift = drift[seed % len(drift)]
            signal = (SIGNAL + gain * (chain == 0) + more)[fold]
            noise = rng.normal(0, 0.3, len(sick))[owner]
            logit = shared + own + noise + np.where(truth, 0.5, -0.5) * signal + shift[fold]
            frame = pd.DataFrame({"patient": names, "malignant": truth, "probability": 1 / (1 + np.exp(-logit))})
            of_seeds.append([frame[fold == each].assign(magnification=40) for each in range(folds)])
        made.append(measure_folds(of_seeds, drawn, (40,)))
    return made


def claims(count: int, folds: int, seeds: int, studies: int = STUDIES, seed: int = 4, **chance: float) -> np.ndarray:
    """Shares of studies with a claim, (metrics, ways, 2): of any chain, and of the second one; and the mean difference
    of the first two, (metrics,), in a last column."""
    rng, found = np.random.default_rng(seed), np.zeros((len(METRICS), len(WAYS) + 1, 2))
    for _ in range(studies):
        made = chains(rng, count, folds, seeds, **chance)
        for place, metric in enumerate(METRICS):
            cell = ("image", metric, 40)
            by_patients = [paired(made[0].pooled, each.pooled, cell) for each in made[1:]]
            by_fold = [
                corrected_t_test(made[0].by_fold[cell] - each.by_fold[cell], 1 / (folds - 1)) for each in made[1:]
            ]
            for way, told in enumerate((by_patients, by_fold, differences(made, cell, 1 / (folds - 1)))):
                shown = holm([each.p for each in told]) < 0.05
                shown &= [not each.interval.spans_zero for each in told]
                found[place, way] += shown.any(), shown[0]
            found[place, -1] += made[0].pooled.values[cell] - made[1].pooled.values[cell]
    return found / studies


def main() -> None:
    noisy = {"skill": 0.12, "offset": 0.4}
    print(f"  {STUDIES} studies each; share with a claim on any chain or, where they differ, on the second")
    lines = [(2, folds, seeds, noisy) for folds, seeds in ((2, 1), (3, 1), (3, 3))]
    lines += [(5, folds, seeds, noisy) for folds, seeds in ((2, 1), (3, 1), (5, 1), (3, 3))]
    lines += [(5, 3, 3, {**noisy, "by_fold": True}), (2, 3, 1, {}), (5, 3, 1, {})]
    lines += [(count, 3, 1, {**noisy, "alike": 1 / 3}) for count in (2, 5)]
    mild = {"skill": 0.06, "offset": 0.2}
    lines += [(count, 3, 1, {**mild, "gain": gain}) for count in (5, 2) for gain in GAINS]
    for count, folds, seeds, chance in lines:
        found = claims(count, folds, seeds, **chance)
        print(f"  {count} chains, {folds} folds, {seeds} seeds, {chance or 'no chance in training'}")
        for metric, of in zip(METRICS, found, strict=True):
            shares = of[: len(WAYS), int("gain" in chance)]
            told = ", ".join(f"{way} {100 * share:.1f} %" for way, share in zip(WAYS, shares, strict=True))
            print(f"    {metric}, apart {100 * of[-1, 0]:.1f} points: {told}", flush=True)


if __name__ == "__main__":
    main()
