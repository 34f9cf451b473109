"""What a chain learned, kept and lost: the matrix R[i, j] of accuracies after stage i at the magnification of stage j.

With T stages, b_j the accuracy of always guessing the more frequent class of the test images at magnification j:

    average   ACC = 1/T sum_j R[T, j]
    backward  BWT = 1/(T-1) sum_{j<T} (R[T, j] - R[j, j])          negative: what later stages cost the earlier ones
    forward   FWT = 1/(T-1) sum_{j>1} (R[j-1, j] - b_j)            what is known of a magnification before it is trained
    forgetting  F = 1/(T-1) sum_{j<T} (max_{l<T} R[l, j] - R[T, j])   the loss against the best it ever was

ACC, BWT and FWT: Lopez-Paz & Ranzato, Gradient Episodic Memory, NIPS 2017, equations 2 to 4; b_j there is the accuracy
of a model at random initialisation, for which guessing the majority is the stricter stand-in and needs no model.
F: Chaudhry et al., Riemannian Walk, ECCV 2018, section 3 (f_j = max over l in 1..T-1, averaged over j < T).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdtvit_ray.recipe import MAGNIFICATIONS, parse_order
from kdtvit_ray.results.statistics import Interval, mean_interval
from kdtvit_ray.results.study import Study, best


@dataclass(frozen=True)
class Transfer:
    """One chain. `accuracy`: index "1: 40X" .. (stage and its magnification), columns "40X" .. "400X" (all four,
    trained or not); `chance`: b_j by the same columns, NaN where it is unknown; the four numbers as above, over the
    chain's own magnifications, NaN for a chain of one stage."""

    trial: str
    order: tuple[int, ...]
    accuracy: pd.DataFrame
    chance: Mapping[str, float]
    average: float
    backward: float
    forward: float
    forgetting: float


@dataclass(frozen=True)
class MeanTransfer:
    """Mean over complete searched chains. `by_stage`: R[i, j], index and columns "stage 1" ..: j stands for whatever
    magnification was trained at stage j. `by_magnification`: index "after 40X" .., columns "40X" ..: i is the
    magnification trained last, at whatever stage. The numbers have t intervals over chains."""

    chains: int
    by_stage: pd.DataFrame
    by_magnification: pd.DataFrame
    average: Interval
    backward: Interval
    forward: Interval
    forgetting: Interval


def transfer_numbers(matrix: np.ndarray, chance: Sequence[float] | np.ndarray) -> dict[str, float | np.ndarray]:
    """average, backward, forward, forgetting of matrices (..., T, T) whose columns are in the order of training, with
    b_j (..., T) or (T,); arrays (...,), floats for a single matrix. NaN for T = 1 save the average."""
    R = np.asarray(matrix, dtype=np.float64)
    b = np.broadcast_to(np.asarray(chance, dtype=np.float64), R.shape[:-1])
    T = R.shape[-1]
    diagonal = np.diagonal(R, axis1=-2, axis2=-1)
    last = R[..., T - 1, :]
    found = {"average": last.mean(axis=-1)}
    if T > 1:
        before = np.diagonal(R, offset=1, axis1=-2, axis2=-1)  # R[j-1, j] for j = 2 .. T
        found["backward"] = (last - diagonal)[..., :-1].mean(axis=-1)
        found["forward"] = (before - b[..., 1:]).mean(axis=-1)
        found["forgetting"] = (R[..., : T - 1, : T - 1].max(axis=-2) - last[..., :-1]).mean(axis=-1)
    else:
        found |= dict.fromkeys(("backward", "forward", "forgetting"), np.full(R.shape[:-2], math.nan))
    return {name: float(value) if value.ndim == 0 else value for name, value in found.items()}


def forgetting(study: Study, trial: str | None = None) -> Transfer | None:
    """The best chain's matrix, or that of `trial`; None where there is none with all its rows."""
    chosen = best(study) if trial is None else None
    name = trial if trial is not None else (chosen.trial if chosen else None)
    record = study.trial(name) if name is not None else None
    if record is None or name is None or "+" in record["order"]:
        return None
    order = parse_order(record["order"])
    rows = _accuracies(study, study.rows["trial"] == name)
    wide = rows.pivot_table(index="stage", columns="magnification", values="value", observed=True)
    if sorted(wide.index) != list(range(1, len(order) + 1)) or not set(order) <= set(wide.columns):
        return None
    wide = wide.reindex(columns=list(MAGNIFICATIONS))
    chance = majority_share(study)
    numbers = transfer_numbers(wide[list(order)].to_numpy(), [chance.get(each, math.nan) for each in order])
    wide.index = pd.Index([f"{stage}: {order[stage - 1]}X" for stage in wide.index])
    wide.columns = pd.Index([f"{each}X" for each in wide.columns])
    by_column = {f"{each}X": chance.get(each, math.nan) for each in MAGNIFICATIONS}
    return Transfer(name, order, wide, by_column, **{k: float(v) for k, v in numbers.items()})


def mean_forgetting(study: Study) -> MeanTransfer | None:
    """Mean over the complete searched chains that have as many stages as most of them; None where there is none."""
    trials = study.settings
    lengths = trials["order"].str.count(">") + 1
    if not len(trials):
        return None
    T = int(lengths.mode().iloc[0])
    trials = trials[lengths == T]
    rows = _accuracies(study, study.rows["trial"].isin(trials["trial"]))
    code = pd.Series(np.arange(len(trials)), index=trials["trial"])
    orders = np.array([parse_order(order) for order in trials["order"]])  # (chains, T)
    # cube[c, i, m]: accuracy of chain c after stage i at magnification m
    cube = np.full((len(trials), T, len(MAGNIFICATIONS)), math.nan)
    at = np.searchsorted(MAGNIFICATIONS, rows["magnification"].to_numpy())
    chain = code.reindex(rows["trial"].cat.categories).to_numpy()[rows["trial"].cat.codes].astype(np.int64)
    within = rows["stage"].to_numpy() <= T
    cube[chain[within], rows["stage"].to_numpy()[within].astype(np.int64) - 1, at[within]] = rows["value"].to_numpy()[
        within
    ]
    place = np.searchsorted(MAGNIFICATIONS, orders)  # (chains, T): column of the magnification of stage j
    aligned = np.take_along_axis(cube, np.broadcast_to(place[:, None, :], (len(trials), T, T)), axis=2)
    complete = np.isfinite(aligned).all(axis=(1, 2))
    if not complete.any():
        return None
    cube, aligned, place = cube[complete], aligned[complete], place[complete]
    known = majority_share(study)
    chance = np.array([known.get(each, math.nan) for each in MAGNIFICATIONS])[place]
    numbers = transfer_numbers(aligned, chance)
    stages = [f"stage {index + 1}" for index in range(T)]
    after = np.full((len(MAGNIFICATIONS), len(MAGNIFICATIONS)), math.nan)
    for column in range(len(MAGNIFICATIONS)):
        trained = cube[place == column]
        if len(trained):
            after[column] = trained.mean(axis=0)
    names = [f"{each}X" for each in MAGNIFICATIONS]
    return MeanTransfer(
        chains=len(cube),
        by_stage=pd.DataFrame(aligned.mean(axis=0), index=stages, columns=stages),
        by_magnification=pd.DataFrame(after, index=[f"after {name}" for name in names], columns=names),
        **{name: mean_interval(np.atleast_1d(value)).within(-1, 1) for name, value in numbers.items()},
    )


def majority_share(study: Study) -> dict[int, float]:
    """b_j by magnification: the share of the more frequent class among the test images, from any stage's predictions;
    {} where there are none."""
    keys = [key for keys in study.trials["stages"] for key in keys[-1:]]
    chosen = best(study)
    for key in ([chosen.keys[-1]] if chosen else []) + keys[:3]:
        found = study.predictions(key)
        if found is not None and len(found):
            test = found[found["split"] == "test"]
            share = test.groupby("magnification")["malignant"].mean()
            return {int(m): float(max(each, 1 - each)) for m, each in share.items()}
    return {}


def _accuracies(study: Study, of: pd.Series) -> pd.DataFrame:
    rows = study.rows
    wanted = of & (rows["split"] == "test") & (rows["level"] == "image") & (rows["metric"] == "accuracy")
    return rows.loc[wanted, ["trial", "stage", "magnification", "value"]]
