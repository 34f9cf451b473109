"""A chain's backward transfer over patients, against a bootstrap that copies the images of drawn patients."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, roc_auc_score

from kdtvit_ray.results.backward_transfer import backward_over_patients, kept
from kdtvit_ray.results.bootstrap import resample
from kdtvit_ray.results.statistics import Interval

ORDER = (200, 40, 100)


def chain(seed: int, lost: float, benign: int = 8, malignant: int = 12) -> SimpleNamespace:
    """A study with one chain of three stages, whose last one is worse by `lost` at the magnifications before."""
    rng, count = np.random.default_rng(seed), benign + malignant
    owner, at = np.repeat(np.arange(count), 6), np.tile(np.repeat(ORDER, 2), count)
    truth, hard = owner >= benign, rng.normal(0, 0.3, count)
    frames = {}
    for stage in range(3):
        signal = np.where((stage == 2) & (at != ORDER[2]), 0.4 - lost, 0.4)
        score = np.where(truth, signal, -signal) + hard[owner] + rng.normal(0, 0.5, len(owner))
        columns = {"magnification": at, "malignant": truth, "probability": 1 / (1 + np.exp(-score))}
        test = pd.DataFrame({"split": "test", "patient": np.char.mod("p%02d", owner), **columns})
        frames[f"k{stage}"] = pd.concat([test, test.assign(split="validation", probability=0.5)])
    record = {"trial": "t0", "order": ">".join(map(str, ORDER)), "stages": list(frames)}
    return SimpleNamespace(chain_of=lambda trial: record, predictions=frames.get)


def test_the_interval_is_that_of_a_bootstrap_that_copies_the_images_of_drawn_patients() -> None:
    study, replicates = chain(0, 0.3), 60
    own, between, last = (study.predictions(f"k{stage}").query("split == 'test'") for stage in range(3))
    drawn = resample(last["patient"].to_numpy(), last["malignant"].to_numpy(), replicates)
    for metric, measure, sign in (("auc", roc_auc_score, 1), ("brier", brier_score_loss, -1)):
        gained = []
        for line in np.concatenate([np.ones((1, 20)), drawn.weights]):
            rows = np.concatenate(
                [np.repeat(np.arange(6 * place, 6 * place + 6), int(n)) for place, n in enumerate(line)]
            )
            parts = []
            for frame, each in ((own, ORDER[0]), (between, ORDER[1])):
                before, after = (one.iloc[rows].query(f"magnification == {each}") for one in (frame, last))
                worth = [measure(one["malignant"], one["probability"]) for one in (before, after)]
                parts.append(sign * (worth[1] - worth[0]))
            gained.append(np.mean(parts))
        found = backward_over_patients(study, "t0", [metric], replicates)[metric].interval
        tail = stats.norm.cdf(-math.sqrt(8 / 7) * stats.t.ppf(0.975, 7))
        assert found.value == pytest.approx(gained[0])
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(gained[1:], [tail, 1 - tail])))


def test_what_the_patients_show_is_told() -> None:
    (lost,), (same,), (gained,) = (
        backward_over_patients(chain(1, each), "t0", ["auc"], 1_000).values() for each in (0.4, 0.0, -0.8)
    )
    assert kept(lost.interval, "auc").endswith("points over patients: it forgot some of what it knew")
    assert kept(same.interval, "auc").endswith("whether it forgot anything, these patients do not tell")
    assert kept(gained.interval, "auc").endswith("on the whole nothing was forgotten")
    few = backward_over_patients(chain(1, 0.8, benign=4), "t0", ["auc"], 100)["auc"].interval
    assert math.isfinite(few.value)
    for none in (few, None, Interval(0.1)):
        assert kept(none, "auc") == "whether other patients would show the same cannot be told"


def test_without_predictions_of_every_stage_there_is_no_interval() -> None:
    study = chain(2, 0.0)
    gone = SimpleNamespace(
        chain_of=study.chain_of, predictions=lambda key: None if key == "k1" else study.predictions(key)
    )
    assert backward_over_patients(gone, "t0", ["auc"], 50) == {}
    for record in (
        None,
        {"trial": "t0", "order": "200", "stages": ["k0"]},
        {"trial": "t0", "order": "200+40>100", "stages": ["k0", "k1"]},
    ):
        other = SimpleNamespace(chain_of=lambda trial, record=record: record, predictions=study.predictions)
        assert backward_over_patients(other, "t0", ["auc"], 50) == {}
