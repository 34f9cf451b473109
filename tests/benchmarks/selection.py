"""Does the objective of a search choose a setting that holds for patients that nobody has seen?

Synthetic studies of 48 patients with a space of 24 settings, all trained on every way to divide the patients
(`_selection_chains`). The truth of a setting is the AUC of its refit on 160 new patients, as mean over magnifications.
Searches are then played through many random orders of the settings: with one validation part, with inner folds, with
racing; until the settings are used up, and until as many stages are trained as the search with one validation part
takes for all settings. TPE is played by the study's own search.

    regret      truth of the best setting that was tried minus truth of the chosen one, in points of AUC
    space       the same from the best setting of the space
    overtuning  truth of the best incumbent along the search minus truth of the last (Schneider et al. 2025)
    rho         rank correlation of objective and truth over the settings that were judged in full
    seconds     the stages, each at the time of one that is trained alone on one thread
"""

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy import stats

from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.results.out_of_fold import Judged, Part, judge, patients_of, share_worse
from kdtvit_ray.study.search import Outcome, Search
from kdtvit_ray.study.space import Space
from tests.benchmarks._selection_chains import (
    FOLDS,
    SPACE,
    STUDIES,
    Trained,
    make_all,
    seconds_of_a_stage,
    settings,
    table,
)

ORDERS = 100
LAG = 2
MAGNIFICATIONS = (40, 100, 200, 400)
PARTS = tuple(Part(1, inner) for inner in range(1, FOLDS + 1))


class Study:
    """All chains of one study, and what objectives they give."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.single = table(number, "single")
        self.parts = {part: table(number, part.name) for part in PARTS}
        self.truth = np.array([each.truth["auc"] for each in table(number, "refit")])
        self._judged: dict[tuple[int, tuple[Part, ...], str], Judged] = {}

    def judged(self, setting: int, parts: tuple[Part, ...], metric: str = "auc") -> Judged:
        """A setting over some inner folds; over none of them, on the single validation part."""
        if (setting, parts, metric) not in self._judged:
            frames = {part: self.parts[part][setting].predictions for part in parts}
            frames = frames or {PARTS[0]: self.single[setting].predictions}
            drawn = patients_of(list(frames.values()))
            self._judged[setting, parts, metric] = judge(frames, metric, MAGNIFICATIONS, drawn)
        return self._judged[setting, parts, metric]

    def share_worse(self, setting: int, best: int, parts: tuple[Part, ...], metric: str) -> float:
        return share_worse(self.judged(setting, parts, metric), self.judged(best, parts, metric), metric)

    def keys(self, setting: int, parts: tuple[Part, ...]) -> set[str]:
        """Of the stages that judging takes."""
        chains: list[Trained] = [self.parts[part][setting] for part in parts] or [self.single[setting]]
        return {key for chain in chains for key in chain.keys}


def gain(metric: str, value: np.ndarray | float) -> np.ndarray | float:
    return -value if metric in LOWER_IS_BETTER else value


@dataclass(frozen=True)
class Strategy:
    """How settings are judged: on how many inner folds (1: one validation part), in which metric, and with racing from
    how many folds on at which confidence (0: none)."""

    name: str
    folds: int
    metric: str = "auc"
    least: int = 0
    confidence: float = 1.0


STRATEGIES = (
    Strategy("one validation part, AUC", 1),
    Strategy("one validation part, Brier", 1, "brier"),
    Strategy(f"{FOLDS} inner folds, AUC", FOLDS),
    Strategy(f"{FOLDS} inner folds, Brier", FOLDS, "brier"),
    *(
        Strategy(f"{FOLDS} folds, racing from {least} at {confidence:g}", FOLDS, "auc", least, confidence)
        for least in (1, 2)
        for confidence in (0.6, 0.7, 0.8, 0.9)
    ),
)


@dataclass
class Played:
    """One search that was played: the settings in order, the objective of those that were judged in full (NaN of the
    others), and the keys of all stages."""

    order: list[int] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    stages: set[str] = field(default_factory=set)


def judge_next(study: Study, strategy: Strategy, played: Played, setting: int) -> None:
    """Judge one more setting as `study.inner_folds` does."""
    parts: tuple[Part, ...] = PARTS if strategy.folds > 1 else ()
    number = len(played.order)
    known = [n for n in range(number - LAG + 1) if math.isfinite(played.objective[n])]
    if strategy.least and known:
        best = played.order[max(known, key=lambda n: (gain(strategy.metric, played.objective[n]), -n))]
        done = strategy.least
        while done < len(PARTS):
            if study.share_worse(setting, best, PARTS[:done], strategy.metric) >= strategy.confidence:
                break
            done += 1
        parts = PARTS[:done]
    full = len(parts) == len(PARTS) or strategy.folds == 1
    played.order.append(setting)
    played.objective.append(study.judged(setting, parts, strategy.metric).value if full else math.nan)
    played.stages |= study.keys(setting, parts)


def play(study: Study, strategy: Strategy, order: Sequence[int], budget: float = math.inf) -> Played:
    """Judge settings in an order until they or the stages are used up."""
    played = Played()
    for setting in order:
        if len(played.stages) >= budget:
            break
        judge_next(study, strategy, played, setting)
    return played


def play_tpe(study: Study, strategy: Strategy, trials: int, seed: int) -> Played:
    """Settings in the order in which the study's own search suggests them."""
    played_with = {"trials": trials, "lag": LAG, "seed": seed, "metric": strategy.metric}
    space = Space({**SPACE, "study": {**SPACE["study"], **played_with}})
    search, played, points = Search(space), Played(), settings()
    while (found := search.suggest()) is not None:
        number, params = found
        judge_next(study, strategy, played, points.index(params))
        value = played.objective[-1]
        if math.isfinite(value):
            search.end(number, Outcome("complete", (value,)))
        else:
            search.end(number, Outcome("pruned", (0.0,), strategy.least))
    return played


NUMBERS = ("rho", "regret", "space", "overtuning", "settings", "stages", "seconds")


def numbers(study: Study, strategy: Strategy, played: Played) -> list[float]:
    objective, truth = np.array(played.objective), study.truth[played.order]
    known = np.isfinite(objective)
    gains = np.where(known, gain(strategy.metric, objective), -np.inf)
    pick = int(gains.argmax())
    before = np.concatenate([[-np.inf], np.maximum.accumulate(gains)[:-1]])
    rho = math.nan
    if known.sum() > 3:
        rho = float(stats.spearmanr(gain(strategy.metric, objective[known]), truth[known]).statistic)
    return [
        rho,
        100 * (truth.max() - truth[pick]),
        100 * (study.truth.max() - truth[pick]),
        100 * (truth[gains > before].max() - truth[pick]),
        len(played.order),
        len(played.stages),
        len(played.stages) * seconds_of_a_stage(),
    ]


def shown(title: str, rows: Sequence[tuple[str, np.ndarray]]) -> None:
    print(f"  {title}\n  {'':34s}" + "".join(f"{name:>11s}" for name in NUMBERS))
    for name, values in rows:
        print(f"  {name:34s}" + "".join(f"{value:11.2f}" for value in values))


@cache
def orders(seed: int) -> tuple[tuple[int, ...], ...]:
    rng = random.Random(seed)
    return tuple(tuple(rng.sample(range(len(settings())), len(settings()))) for _ in range(ORDERS))


def mean(found: Sequence[Sequence[float]]) -> np.ndarray:
    table = np.array(found, dtype=float)
    known = np.isfinite(table)
    # of few settings that were judged in full there is no rank correlation
    return np.where(known.any(axis=0), np.where(known, table, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1), np.nan)


def limits(studies: Sequence[Study]) -> None:
    """What bounds any choice: the spread between settings, training noise, and the patients."""
    again = [(each, np.array([one.truth["auc"] for one in table(each.number, "again")])) for each in studies[:2]]
    noise = [np.std(each.truth - other, ddof=1) / math.sqrt(2) for each, other in again]
    print("  spread of truth between settings: " + ", ".join(f"{100 * np.ptp(each.truth):.1f}" for each in studies))
    print(
        "  standard deviation of truth between settings: "
        + ", ".join(f"{100 * np.std(each.truth, ddof=1):.1f}" for each in studies)
    )
    print("  training noise of truth (another seed): " + ", ".join(f"{100 * each:.1f}" for each in noise))
    rho = [stats.spearmanr(each.truth, other).statistic for each, other in again]
    print("  rank correlation of truth with that of another seed: " + ", ".join(f"{each:.2f}" for each in rho))
    for name, parts in (("one validation part", ()), (f"{FOLDS} inner folds", PARTS)):
        judged = [[each.judged(n, parts) for n in range(len(settings()))] for each in studies]
        error = np.mean([[one.standard_error for one in each] for each in judged])
        winners = [int(np.argmax([one.value for one in each])) for each in judged]
        flattered = [each[n].value - of.truth[n] for each, of, n in zip(judged, studies, winners, strict=True)]
        print(
            f"  {name}: standard error of the objective {100 * error:.1f}, "
            f"winner's objective minus its truth {100 * np.mean(flattered):.1f}"
        )
    together = [np.stack([each.judged(n, PARTS).replicates for n in range(len(settings()))]) for each in studies]
    pairs = [np.corrcoef(each)[np.triu_indices(len(each), 1)].mean() for each in together]
    print(
        "  correlation of two settings' objectives over drawn patients: " + ", ".join(f"{each:.2f}" for each in pairs)
    )


def pooling(studies: Sequence[Study]) -> None:
    """Out-of-fold predictions put together, as the objective does, against the mean of each inner fold's AUC."""
    found = []
    for each in studies:
        pooled = [each.judged(n, PARTS).value for n in range(len(settings()))]
        by_fold = [np.mean([each.judged(n, (part,)).value for part in PARTS]) for n in range(len(settings()))]
        found.append([stats.spearmanr(values, each.truth).statistic for values in (pooled, by_fold)])
    print("  rank correlation with truth, pooled and by fold: " + ", ".join(f"{a:.2f} and {b:.2f}" for a, b in found))


def main() -> None:
    for done in make_all():
        print(f"  trained: study {done[0]}, {done[1]}", file=sys.stderr)
    studies = [Study(number) for number in range(STUDIES)]
    print(f"  {len(studies)} studies, {len(settings())} settings, {ORDERS} random orders of each; points of AUC")
    limits(studies)
    pooling(studies)
    everything, equal, tpe = [], [], []
    for strategy in STRATEGIES:
        every = [
            [numbers(each, strategy, play(each, strategy, order)) for order in orders(each.number)] for each in studies
        ]
        everything.append((strategy.name, np.mean([mean(each) for each in every], axis=0)))
        found = []
        for each in studies:
            budget = len({key for n in range(len(settings())) for key in each.keys(n, ())})
            found.append(
                mean([numbers(each, strategy, play(each, strategy, order, budget)) for order in orders(each.number)])
            )
        equal.append((strategy.name, np.mean(found, axis=0)))
        half = [
            mean([numbers(each, strategy, play_tpe(each, strategy, len(settings()) // 2, seed)) for seed in range(10)])
            for each in studies
        ]
        tpe.append((strategy.name, np.mean(half, axis=0)))
    shown("all settings, in random orders", everything)
    shown("as many stages as one validation part takes for all settings, random orders", equal)
    shown("half of the settings, suggested by TPE", tpe)


if __name__ == "__main__":
    main()
