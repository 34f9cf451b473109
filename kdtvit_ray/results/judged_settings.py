"""All settings and baselines of a study with inner folds, judged on the same drawn development patients."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from kdtvit_ray.results.choice import with_objective
from kdtvit_ray.results.out_of_fold import Judged, Part, judge, patients_of
from kdtvit_ray.results.statistics import Sides
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import BASELINE_NAMES

REPLICATES = 2_000


def judged_together(study: Study, replicates: int = REPLICATES) -> dict[str, Judged]:
    """The objective of every complete setting and baseline by trial, with replicates over the same draws of patients,
    so that any two can be compared. The baseline `per_magnification` stands under its own name: at each magnification
    its model that was trained there. So does a searched baseline, its chosen setting, beside all settings that were
    tried for it. Trials whose predictions are missing are left out; {} without inner folds."""
    frames = {trial: found for trial in _complete(study) if (found := study.out_of_fold(trial))}
    for name in BASELINE_NAMES:
        single = {m: frames.get(f"{name}-{m}") for m in study.magnifications}
        if all(single.values()):
            frames[name] = _side_by_side({m: each for m, each in single.items() if each})
    return _on_common_draws(study, frames, replicates)


def judged_alike(study: Study, replicates: int = REPLICATES) -> dict[str, Judged]:
    """Every setting, those that racing dropped too, on the inner folds that all of them had: what was dropped early is
    then judged like the rest, on fewer patients, and no setting is missing because it was bad. By trial, on the same
    draws of patients; trials whose predictions are missing are left out, {} without inner folds."""
    frames = {trial: found for trial in study.judged_settings["trial"] if (found := study.out_of_fold(trial))}
    common = inner_folds_in_common(study, list(frames))
    if not common:
        return {}
    alike = {trial: {part: each[part] for part in common} for trial, each in frames.items()}
    return _on_common_draws(study, alike, replicates)


def inner_folds_in_common(study: Study, settings: Sequence[str]) -> list[Part]:
    """The inner folds on which every one of these settings has a complete chain."""
    return sorted(set.intersection(*(set(study.chains(each)) for each in settings))) if settings else []


def compared(study: Study, alike: Mapping[str, Judged]) -> pd.DataFrame:
    """The records of the settings whose values are compared with each other, with the `objective` that they have
    there. Where racing dropped settings these are all that were judged, `alike` (`judged_alike`): the others alone
    would be survivors, of which little can be learned. Else they are the complete ones with their own objectives."""
    records = study.judged_settings
    if not (alike and (records["state"] == "pruned").any()):
        return study.settings
    records = records[records["trial"].isin(alike.keys())]
    records = records.assign(objective=[alike[trial].value for trial in records["trial"]])
    return records[records["objective"].map(math.isfinite)]


def development_patients(study: Study, setting: str) -> Sides:
    """How many patients a setting was judged on; none where its predictions are missing."""
    frames = study.out_of_fold(setting)
    if not frames:
        return Sides()
    return patients_of(list(frames.values()), replicates=1).sides


def _on_common_draws(
    study: Study, frames: Mapping[str, Mapping[Part, pd.DataFrame]], replicates: int
) -> dict[str, Judged]:
    """Every trial's objective from its predictions by part, all on the same draws of patients; {} of none."""
    if not frames:
        return {}
    drawn = patients_of([frame for each in frames.values() for frame in each.values()], replicates)
    return {trial: judge(each, study.metric, study.magnifications, drawn) for trial, each in frames.items()}


def _complete(study: Study) -> list[str]:
    baselines = study.trials[(study.trials["kind"] == "baseline") & (study.trials["state"] == "complete")]
    fixed = [name for name in baselines["trial"] if name not in study.searched_baselines]
    tried = [trial for name in study.chosen_of for trial in with_objective(study.settings_of(name))["trial"]]
    return [*study.settings["trial"], *fixed, *study.chosen_of, *tried]


def _side_by_side(single: Mapping[int, Mapping[Part, pd.DataFrame]]) -> dict[Part, pd.DataFrame]:
    """The predictions of several models, each of the images of its own magnification."""
    parts = set.intersection(*(set(each) for each in single.values()))
    return {
        part: pd.concat([each[part][each[part]["magnification"] == m] for m, each in single.items()])
        for part in sorted(parts)
    }
