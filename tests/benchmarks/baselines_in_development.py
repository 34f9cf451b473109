"""How often a report claims on the development patients that the chosen setting is better than a baseline, or worse,
where it is not, and how often where it is; nominal level 5 %.

Settings have a true AUC each, patients are hard for all settings and for each of them by chance, and the chain is the
setting with the best measured AUC. Beside it: the paired bootstrap that takes nothing off for the choice.
"""

import os

import numpy as np
from scipy import stats

from kdtvit_ray.results.out_of_fold import Judged
from kdtvit_ray.results.trust import Rival, against, optimism

STUDIES, DRAWS = int(os.environ.get("BENCH_TRIALS", "300")), 2_000
SHARED, OWN = 1.0, 0.5
"""Standard deviations of what makes a patient hard for all settings, and for one."""
LEVEL = 0.9
BASELINES = 4


def judged(rng: np.random.Generator, truth: np.ndarray, noise: float, benign: int, malignant: int) -> list[Judged]:
    """Settings of a true AUC (S,), each trained once: `noise` is the standard deviation of training in the signal that
    sets the classes apart (2 at an AUC of 0.9)."""
    signal = stats.norm.ppf(truth) * np.sqrt(2 * (SHARED**2 + OWN**2)) + rng.normal(0, noise, len(truth))
    sick = np.arange(benign + malignant) >= benign
    score = rng.normal(0, SHARED, (len(sick), 1)) + rng.normal(0, OWN, (len(sick), len(truth))) + sick[:, None] * signal
    wins = (score[benign:].T[:, :, None] > score[:benign].T[:, None, :]).astype(float)
    below, above = (rng.multinomial(n, np.full(n, 1 / n), DRAWS).astype(float) for n in (benign, malignant))
    drawn = [((above @ each) * below).sum(axis=1) / (benign * malignant) for each in wins]
    return [Judged(float(w.mean()), {}, d, min(benign, malignant)) for w, d in zip(wins, drawn, strict=True)]


def claims(
    benign: int,
    malignant: int,
    settings: int,
    *,
    spread: float = 0.0,
    noise: float = 0.0,
    tried: int = 1,
    gap: float = 0.0,
    rule: str = "best",
    seed: int = 1,
    studies: int = STUDIES,
) -> dict[str, np.ndarray]:
    """By way, "as measured" and "less flattery", the shares of studies with a wrong claim against any of four
    baselines, with a wrong one against a single baseline, and with a right one against that.

    True AUCs of settings have standard deviation `spread`; baselines, each of which is the best of `tried` settings of
    its own, are `gap` below the best true setting.
    """
    rng = np.random.default_rng(seed)
    found = {"as measured": np.zeros(3), "less flattery": np.zeros(3)}
    for _ in range(studies):
        own = np.clip(rng.normal(LEVEL, spread, settings), 0.55, 0.995)
        truth = np.concatenate([own, np.full(BASELINES * tried, own.max() - gap)])
        measured = dict(enumerate(judged(rng, truth, noise, benign, malignant)))
        by_name = {str(place): each for place, each in measured.items()}
        first = _choose(measured, range(settings), rule)
        whole = optimism(by_name, [str(each) for each in range(settings)], "auc")
        flattery, baselines = {}, []
        for start in range(settings, len(truth), tried):
            names = [str(each) for each in range(start, start + tried)]
            baselines.append(str(_choose(measured, range(start, start + tried), rule)))
            flattery[baselines[-1]] = whole - optimism(by_name, names, "auc")
        for way, much in (("as measured", {}), ("less flattery", flattery)):
            told = [_wrong(each, truth, first) for each in against(by_name, str(first), baselines, much)]
            (one,) = (_wrong(each, truth, first) for each in against(by_name, str(first), baselines[:1], much))
            found[way] += [any(wrong for wrong in told), bool(one), one is False]
    return {way: shares / studies for way, shares in found.items()}


def _choose(measured: dict[int, Judged], settings: range, rule: str) -> int:
    """The setting with the best measured AUC or, `simplest`, the first within one standard error of it."""
    best = max(settings, key=lambda each: measured[each].value)
    within = measured[best].value - (measured[best].standard_error if rule == "simplest" else 0.0)
    return next(each for each in settings if measured[each].value >= within)


def _wrong(rival: Rival, truth: np.ndarray, first: int) -> bool | None:
    """Whether what is claimed of a rival is wrong; None where nothing is."""
    if rival.tied or rival.difference.spans_zero:
        return None
    apart = float(truth[first] - truth[int(rival.trial)])
    return apart * rival.difference.value <= 1e-12


def main() -> None:
    print(f"  {STUDIES} studies each: wrong claim against any of four baselines, against one; right claim against one")
    lines = [(*patients, settings, {}) for patients in ((13, 43), (10, 26)) for settings in (4, 16, 40)]
    lines += [(6, 18, settings, {}) for settings in (4, 16)]
    lines += [(13, 43, settings, {"noise": 0.12}) for settings in (16, 40)]
    lines += [(13, 43, 16, {"spread": 0.02, "noise": 0.06}), (13, 43, 16, {"rule": "simplest"})]
    lines += [(13, 43, 16, {"tried": tried}) for tried in (2, 16)]
    lines += [(13, 43, 16, {"gap": gap}) for gap in (0.02, 0.04, 0.08)]
    lines += [(13, 43, 16, {"spread": 0.02, "noise": 0.06, "gap": gap}) for gap in (0.02, 0.04, 0.08)]
    lines += [(13, 43, 16, {"tried": 16, "gap": gap}) for gap in (0.02, 0.04)]
    for benign, malignant, settings, more in lines:
        found = claims(benign, malignant, settings, **more)
        told = "; ".join(f"{way} {', '.join(f'{100 * each:.1f}' for each in of)} %" for way, of in found.items())
        print(f"  {benign} + {malignant} patients, {settings} settings, {more or 'all alike'}: {told}", flush=True)


if __name__ == "__main__":
    main()
