"""What a chain learned, kept and lost: the matrix R[i, j] of a metric after stage i at the magnification of stage j.

With T stages, b_j what a constant answer reaches on the test images at magnification j (`constant_answer`):

    average   ACC = 1/T sum_j R[T, j]
    backward  BWT = 1/(T-1) sum_{j<T} (R[T, j] - R[j, j])          negative: what later stages cost the earlier ones
    forward   FWT = 1/(T-1) sum_{j>1} (R[j-1, j] - b_j)            what is known of a magnification before it is trained
    forgetting  F = 1/(T-1) sum_{j<T} (max_{l<T} R[l, j] - R[T, j])   the loss against the best it ever was

For a metric that is better the lower it is (Brier score) the differences change their sign and the largest value
becomes the smallest: above zero, backward and forward transfer are gains and forgetting is a loss whatever the metric.

ACC, BWT and FWT: Lopez-Paz & Ranzato, Gradient Episodic Memory, NIPS 2017, equations 2 to 4, there for accuracy; b_j
there is the accuracy of a model at random initialisation, for which a constant answer is the stricter stand-in and
needs no model. F: Chaudhry et al., Riemannian Walk, ECCV 2018, section 3 (f_j = max over l in 1..T-1, averaged over
j < T). Accuracy at threshold 0.5 can hide what a model forgot: with 69 % malignant images a model that calls every
image malignant keeps an accuracy of 0.69. So the study's own metric comes first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdtvit_ray.metrics import LOWER_IS_BETTER, largest
from kdtvit_ray.recipe import parse_order
from kdtvit_ray.results.models import Best
from kdtvit_ray.results.statistics import Interval, mean_interval
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import joined, metric_name


@dataclass(frozen=True)
class Transfer:
    """One chain in one metric.

    matrix: index "1: 40X" .. (stage and its magnification), columns "40X" .. (every magnification, trained or not); NaN
    where the metric is undefined. constant: b_j by the same columns; NaN where it is unknown or undefined. The four
    numbers are over the chain's own magnifications. They are NaN where a value that they need is missing, and `notes`
    say why.
    """

    trial: str
    metric: str
    order: tuple[int, ...]
    matrix: pd.DataFrame
    constant: Mapping[str, float]
    average: float
    backward: float
    forward: float
    forgetting: float
    notes: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether the order leaves a magnification out, so that the numbers are over fewer than all."""
        return len(self.order) < len(self.matrix.columns)

    @property
    def over(self) -> str:
        """The magnifications that the numbers are over, in words."""
        own = f"the chain's own magnifications, {joined([f'{each}X' for each in sorted(self.order)])},"
        return own if self.partial else "all magnifications"


@dataclass(frozen=True)
class MeanTransfer:
    """The mean over different settings' chains in one metric, with t intervals over chains.

    by_stage: R[i, j], index and columns "stage 1" ..: j stands for whatever magnification was trained at stage j.
    by_magnification: index "after 40X" .., columns "40X" ..: i is the magnification trained last, at whatever stage.
    Chains whose matrix has an undefined value are left out, and `notes` say how many; where all chains have one, the
    numbers are NaN.
    """

    metric: str
    chains: int
    by_stage: pd.DataFrame
    by_magnification: pd.DataFrame
    average: Interval
    backward: Interval
    forward: Interval
    forgetting: Interval
    notes: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether the chains' orders leave magnifications out."""
        return len(self.by_stage) < len(self.by_magnification)


def transfer_metrics(study: Study) -> tuple[str, ...]:
    """The metrics in which transfer is shown: the study's own, then two that hold at threshold 0.5."""
    return tuple(dict.fromkeys((study.metric, "balanced_accuracy", "accuracy")))


def transfer_numbers(
    matrix: np.ndarray, constant: Sequence[float] | np.ndarray, lower_is_better: bool = False
) -> dict[str, float | np.ndarray]:
    """average, backward, forward and forgetting of matrices (..., T, T) whose columns are in the order of training,
    with b_j (..., T) or (T,), for T of at least 2. The values are arrays (...,), or floats for a single matrix."""
    sign = -1.0 if lower_is_better else 1.0
    R = sign * np.asarray(matrix, dtype=np.float64)
    b = np.broadcast_to(sign * np.asarray(constant, dtype=np.float64), R.shape[:-1])
    T = R.shape[-1]
    diagonal = np.diagonal(R, axis1=-2, axis2=-1)
    last = R[..., T - 1, :]
    before = np.diagonal(R, offset=1, axis1=-2, axis2=-1)  # R[j-1, j] for j = 2 .. T
    found = {
        "average": sign * last.mean(axis=-1),
        "backward": (last - diagonal)[..., :-1].mean(axis=-1),
        "forward": (before - b[..., 1:]).mean(axis=-1),
        "forgetting": (R[..., : T - 1, : T - 1].max(axis=-2) - last[..., :-1]).mean(axis=-1),
    }
    return {name: float(value) if value.ndim == 0 else value for name, value in found.items()}


def constant_answer(metric: str, positive: float) -> float:
    """b_j: what the same answer for every image reaches where the share `positive` of the images is positive. The
    answer is the more frequent class; for the Brier score and the log loss it is that share itself, as a probability.

    The result is NaN where the metric needs the share and it is unknown, and where the metric is undefined: AUC,
    balanced accuracy and the rate of the missing class with images of one class, and precision where no image is called
    positive.
    """
    one_class = positive in (0.0, 1.0)
    if metric in ("auc", "balanced_accuracy"):
        return math.nan if one_class else 0.5
    if math.isnan(positive):
        return math.nan
    called = positive >= 0.5
    return {
        "accuracy": max(positive, 1 - positive),
        "precision": positive if called else math.nan,
        "recall": float(called) if positive > 0 else math.nan,
        "specificity": float(not called) if positive < 1 else math.nan,
        "f1": 2 * positive / (positive + 1) if called else 0.0 if positive > 0 else math.nan,
        "brier": positive * (1 - positive),
        "log_loss": -sum(share * math.log(share) for share in (positive, 1 - positive) if share > 0),
    }[metric]


def chain_transfer(study: Study, trial: str, metric: str, shares: Mapping[int, float]) -> Transfer | None:
    """The transfer of a trial's chain; None for a chain of one stage, which has nothing to forget, where a stage has
    several magnifications, and where rows are missing. `shares` are those of positive images, as `positive_shares`
    gives them."""
    record = study.chain_of(trial)
    if record is None or "+" in record["order"]:
        return None
    order = parse_order(record["order"])
    if len(order) < 2:
        return None
    cube, there = _cube(study, [record["trial"]], len(order), metric)
    known = study.dataset.magnifications
    own = np.searchsorted(known, order)
    if not there[0][:, own].all():
        return None
    constant = {each: constant_answer(metric, shares.get(each, math.nan)) for each in known}
    numbers = transfer_numbers(cube[0][:, own], [constant[each] for each in order], metric in LOWER_IS_BETTER)
    names = [f"{each}X" for each in known]
    return Transfer(
        trial=trial,
        metric=metric,
        order=order,
        matrix=pd.DataFrame(cube[0], [f"{stage}: {each}X" for stage, each in enumerate(order, 1)], names),
        constant={f"{each}X": value for each, value in constant.items()},
        **{number: float(value) for number, value in numbers.items()},
        notes=_notes(study, metric, order, cube[0][:, own], shares, constant),
    )


def mean_transfer(study: Study, metric: str, shares: Mapping[int, float]) -> MeanTransfer | None:
    """The mean over the different settings whose chains have as many stages as most of those of several stages; None
    without one. With inner folds one chain stands for each setting (`Study.chain_of`). `shares` as in
    `chain_transfer`."""
    trials = study.settings
    trials = trials[trials["order"].str.contains(">")]
    lengths = trials["order"].str.count(">") + 1
    if not len(trials):
        return None
    T = int(lengths.mode().iloc[0])
    trials = trials[lengths == T]
    chains = [study.chain_of(trial) for trial in trials["trial"]]
    names = [trial if each is None else each["trial"] for trial, each in zip(trials["trial"], chains, strict=True)]
    cube, there = _cube(study, names, T, metric)
    orders = np.array([parse_order(order) for order in trials["order"]])  # (chains, T)
    known = study.dataset.magnifications
    place = np.searchsorted(known, orders)  # (chains, T): column of the magnification of stage j
    across = np.broadcast_to(place[:, None, :], (len(trials), T, T))
    aligned = np.take_along_axis(cube, across, axis=2)
    complete = np.take_along_axis(there, across, axis=2).all(axis=(1, 2))
    if not complete.any():
        return None
    defined = complete & np.isfinite(aligned).all(axis=(1, 2))
    left_out = int(complete.sum() - defined.sum())
    kept = defined if defined.any() else complete
    cube, aligned, place = cube[kept], aligned[kept], place[kept]
    constant = np.array([constant_answer(metric, shares.get(each, math.nan)) for each in known])
    numbers = transfer_numbers(aligned, constant[place], metric in LOWER_IS_BETTER)
    stages = [f"stage {index + 1}" for index in range(T)]
    after = np.full((len(known), len(known)), math.nan)
    for column in range(len(known)):
        trained = cube[place == column]
        if len(trained):
            after[column] = trained.mean(axis=0)
    columns = [f"{each}X" for each in known]
    most = largest(metric)
    note = (
        f"The mean leaves out {left_out} of {complete.sum()} chains: {metric_name(metric)} is undefined somewhere in "
        "their matrices."
    )
    return MeanTransfer(
        metric=metric,
        chains=len(cube),
        by_stage=pd.DataFrame(aligned.mean(axis=0), index=stages, columns=stages),
        by_magnification=pd.DataFrame(after, index=[f"after {name}" for name in columns], columns=columns),
        **{name: mean_interval(np.atleast_1d(value)).within(-most, most) for name, value in numbers.items()},
        notes=(note,) if left_out and defined.any() else (),
    )


def positive_shares(study: Study, best: Best | None) -> dict[int, float]:
    """The share of positive images among the test images by magnification, from the predictions of the best chain's
    last stage or of another stage; {} where there are none."""
    keys = [key for keys in study.trials["stages"] for key in keys[-1:]]
    for key in list(best.keys[-1:] if best else ()) + keys[:3]:
        found = study.predictions(key)
        if found is not None and len(found):
            test = found[found["split"] == "test"]
            return {int(m): float(share) for m, share in test.groupby("magnification")["malignant"].mean().items()}
    return {}


def _cube(study: Study, trials: Sequence[str], T: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """`metric` on test images after each stage of chains of T stages, float64 (chains, T, all magnifications), NaN
    where it is undefined or has no row; and whether there is a row, bool of the same shape."""
    rows, known = study.rows, study.dataset.magnifications
    wanted = rows["trial"].isin(trials) & (rows["split"] == "test") & (rows["level"] == "image")
    rows = rows[wanted & (rows["metric"] == metric) & (rows["stage"] <= T)]
    chain = pd.Series(np.arange(len(trials)), index=list(trials)).reindex(rows["trial"].cat.categories)
    at = (
        chain.to_numpy()[rows["trial"].cat.codes].astype(np.int64),
        rows["stage"].to_numpy(np.int64) - 1,
        np.searchsorted(known, rows["magnification"].to_numpy()),
    )
    cube = np.full((len(trials), T, len(known)), math.nan)
    there = np.zeros(cube.shape, dtype=bool)
    cube[at], there[at] = rows["value"].to_numpy(), True
    return cube, there


def _notes(
    study: Study,
    metric: str,
    order: Sequence[int],
    matrix: np.ndarray,
    shares: Mapping[int, float],
    constant: Mapping[int, float],
) -> tuple[str, ...]:
    """Why numbers of one chain are missing. `matrix` (T, T) has its columns in the order of training."""
    name, found = metric_name(metric), []
    undefined = ~np.isfinite(matrix)
    called = f"no image is called {study.dataset.positive}"
    why = called if metric == "precision" else "test has images of one class only"
    for each, column in zip(order, undefined.T, strict=True):
        if column.any():
            stages = (
                "" if column.all() else f" after stage {joined([str(stage) for stage in np.flatnonzero(column) + 1])}"
            )
            found.append(f"{name} is undefined at {each}X{stages}, where {why}: numbers that need it are missing.")
    if not found and any(math.isnan(constant[each]) for each in order[1:]):
        why = f"{name} is undefined for it" if shares else "predictions are missing, so it is unknown"
        found.append(f"There is no forward transfer in {name} over a constant answer: {why}.")
    return tuple(found)
