"""Trials that ended complete and have no objective all the same: the study's metric is undefined at some magnification,
such as precision where no image was called positive. No mean over magnifications can be made of that."""

import math

import pandas as pd

from kdtvit_ray.results.out_of_fold import judge
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import joined, metric_name


def undefined(study: Study, kind: str = "search") -> pd.DataFrame:
    """The records of complete trials of a kind whose objective is not a number."""
    trials = study.trials[(study.trials["kind"] == kind) & (study.trials["state"] == "complete")]
    return trials[~trials["objective"].map(math.isfinite).astype(bool)]


def why(study: Study, trial: pd.Series) -> str:
    """`precision is undefined at 40X and 100X`, from a trial's record."""
    if study.parts:
        frames = study.out_of_fold(trial["trial"])
        values = dict(judge(frames, study.metric, study.magnifications).by_magnification) if frames else {}
    else:
        rows = study.rows
        rows = rows[(rows["trial"] == trial["trial"]) & (rows["stage"] == len(trial["stages"]))]
        rows = rows[(rows["split"] == "validation") & (rows["level"] == "image") & (rows["metric"] == study.metric)]
        values = dict(zip(rows["magnification"].astype(int), rows["value"], strict=True))
    places = [f"{each}X" for each, value in values.items() if not math.isfinite(value)]
    return f"{metric_name(study.metric)} is undefined at {joined(places) if places else 'some magnification'}"


def nothing(study: Study) -> str:
    """Why no chain could be chosen, as the beginning of a sentence."""
    if len(undefined(study)):
        return f"No complete searched trial has an objective ({metric_name(study.metric)} is undefined)"
    return "No searched trial is complete"
