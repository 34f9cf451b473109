"""Trials to run, each resolved once into its stages: searched ones, baselines, and what follows from either: its chains
over inner folds, its refit, its replicates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdtvit_ray.recipe import WITHOUT_REHEARSAL, StageSpec
from kdtvit_ray.results.out_of_fold import Part
from kdtvit_ray.results.rows import baseline_of
from kdtvit_ray.study.space import Space


@dataclass(frozen=True)
class Ask:
    """A trial to run. `stages` has parents first, and `labels` names each of them for the live view. `params` is what
    the sampler chose or which replicate it is, and `words` the trial's settings by name: its record keeps both.
    `number` counts searched trials from 0."""

    trial: str
    kind: str
    params: Mapping[str, Any]
    stages: tuple[StageSpec, ...]
    labels: tuple[str, ...]
    words: Mapping[str, Any]
    number: int = -1


def numbered(number: int) -> str:
    """The name of a searched trial: `t0007`."""
    return f"t{number:04d}"


def trial_named(asked: str) -> str:
    """A trial's name from what a user wrote: a number stands for a searched trial, anything else for itself."""
    return numbered(int(asked)) if asked.isascii() and asked.isdigit() else asked


def searched(space: Space, number: int, params: Mapping[str, Any]) -> Ask:
    """The trial that has these suggested values; in the space of a searched baseline a setting of that baseline."""
    kind, trial = "search", numbered(number)
    if space.baseline:
        kind, trial = "baseline_search", f"{space.baseline}-{trial}"
    stages, words = _elsewhere(space, space, trial, params)
    return Ask(trial, kind, dict(params), stages, _labels(space, stages), words, number)


def baselines(space: Space) -> list[Ask]:
    """The baselines of the space."""
    return [
        Ask(name, "baseline", {}, stages, _labels(space, stages), _baseline_words(space, stages, {}))
        for name, stages in space.baselines().items()
    ]


def replicate(space: Space, of: str, params: Mapping[str, Any], fold: int, seed: int) -> Ask:
    """The trial `of`, a baseline or one with these suggested values, at another fold and training seed: it shares those
    stages with the study that these leave as they were. Where the objective is over inner folds, it is trained on all
    development patients of the fold."""
    stages, words = _elsewhere(space, space.replicate(fold, seed), of, params)
    told = {"of": of, "params": dict(params), "fold": fold, "seed": seed}
    return Ask(f"{of}-f{fold}-s{seed}", "confirm", told, stages, _labels(space, stages), words)


def inner(space: Space, of: Ask, part: Part) -> Ask:
    """The chain of a setting that leaves out one inner fold."""
    other = space.inner_fold(part)
    stages = other.stages_of(of.trial, of.params)
    told = {"of": of.trial, "params": dict(of.params), "repeat": part.repeat, "inner": part.inner}
    labels = tuple(f"{label} {part.name}" for label in _labels(space, stages))
    return Ask(f"{of.trial}-{part.name}", "inner", told, stages, labels, of.words, of.number)


def refit(space: Space, of: str, params: Mapping[str, Any]) -> Ask:
    """The chain of a setting, a baseline or one with these suggested values, on all development patients."""
    stages, words = _elsewhere(space, space.refit(), of, params)
    return Ask(f"{of}-refit", "refit", {"of": of, "params": dict(params)}, stages, _labels(space, stages), words)


def without_rehearsal(space: Space, of: str, params: Mapping[str, Any]) -> Ask | None:
    """The chain of the setting `of`, which has these suggested values, without rehearsal and otherwise as the chain
    that answers for the setting on test; None for a setting without rehearsal."""
    changed = space.without_rehearsal(params)
    if changed is None:
        return None
    other, name = space.refit() if space.parts else space, f"{of}-{WITHOUT_REHEARSAL}"
    stages, told = other.plan(changed), {"of": name, "params": changed}
    return Ask(f"{name}-refit", "refit", told, stages, _labels(space, stages), space.values(changed))


def _elsewhere(
    space: Space, other: Space, of: str, params: Mapping[str, Any]
) -> tuple[tuple[StageSpec, ...], dict[str, Any]]:
    """Stages and settings in words of a baseline, or of the trial with these suggested values, in a space that is
    `space` on other data or with another seed."""
    stages = other.stages_of(of, params)
    return stages, _baseline_words(space, stages, params) if baseline_of(of) else space.values(params)


def _labels(space: Space, stages: Sequence[StageSpec]) -> tuple[str, ...]:
    return tuple(f"{'+'.join(map(str, stage.magnifications))}X {space.label(stage.model)}" for stage in stages)


def _baseline_words(space: Space, stages: Sequence[StageSpec], params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a baseline with these suggested values really uses: those of the space's chain, save for what
    the baseline changes."""
    distilled = [stage.distillation for stage in stages if stage.distillation]
    words = space.values(params) | {
        "order": ">".join("+".join(map(str, stage.magnifications)) for stage in stages),
        "temperature": [each.temperature for each in distilled],
        "alpha": [each.alpha for each in distilled] or [0.0] * (len(stages) - 1),
        "warm_start": any(stage.warm for stage in stages),
    }
    if not distilled:
        words["teacher"] = words["student"]
    return words
