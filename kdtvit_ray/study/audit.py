"""Checks before anything is trained: what a prepared set holds, and what a space would train on it."""

import random
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.effort import rehearsal_told, views_told
from kdtvit_ray.results.words import counted, duration, joined
from kdtvit_ray.study.asks import without_rehearsal
from kdtvit_ray.study.binding import bind, check_models, cold_note, largest_size, size_note
from kdtvit_ray.study.dimensions import most_variants
from kdtvit_ray.study.space import Space, load_space
from kdtvit_ray.study.space_notes import notes, trials_told

if TYPE_CHECKING:
    import pandas as pd

    from kdtvit_ray.data.dataset import Dataset

SIDES = ("negative", "positive")


def check_data(location: str, console: Console) -> None:
    """Print what a prepared set holds: images by class and magnification, patients, what is odd about it.

    Raises `UserError` for a folder that is no prepared set, and in the end for one that is not what was prepared.
    """
    from kdtvit_ray.data.cache import check_whole
    from kdtvit_ray.data.prepared import open_prepared

    prepared = open_prepared(Path(location))
    frame, dataset = prepared.table, prepared.dataset
    # BreakHis knows slides; whether two of them are one patient's, it does not say
    owner, owners = ("slide", "slides") if dataset.census else ("id", "patients")
    table = Table(
        title=f"{dataset.name}: {counted(len(frame), 'image')} of {counted(frame[owner].nunique(), owners[:-1])}",
        title_style="bold",
    )
    table.add_column("class")
    table.add_column("counts as")
    for magnification in dataset.magnifications:
        table.add_column(f"{magnification}X", justify="right")
    table.add_column(owners, justify="right")
    for index, (name, positive) in enumerate(zip(dataset.classes, dataset.is_positive, strict=True)):
        of_class = frame[frame["subtype"] == index]
        table.add_row(name, SIDES[positive], *_counts(of_class, dataset), str(of_class[owner].nunique()))
    table.add_row("all", "", *_counts(frame, dataset), str(frame[owner].nunique()), style="bold")
    console.print(table)
    if words := [f"'{word}' for {side}" for side, word in zip(SIDES, dataset.words, strict=True) if side != word]:
        console.print(f"reports say {joined(words)}")
    console.print(
        f"stored as {prepared.images.shape[1]}x{prepared.images.shape[2]} px, aspect {prepared.about['aspect']}"
    )
    console.print(f"fingerprint {prepared.fingerprint}")
    console.print(f"official folds: {dataset.folds or 'none'}")
    if dataset.census:
        differences = prepared.about["census_differences"]
        console.print(f"differences from the official census: {len(differences) or 'none'}")
        _list(differences, console)
    if odd := prepared.about["notes"]:
        console.print(f"notes: {len(odd)}")
        _list(odd, console)
    check_whole(prepared)


def _counts(frame: "pd.DataFrame", dataset: "Dataset") -> list[str]:
    return [str(int((frame["magnification"] == each).sum())) for each in dataset.magnifications]


def _list(sentences: Sequence[str], console: Console) -> None:
    for each in sentences:
        console.print(f"  {each}")


def _dtype_told(space: Space) -> str:
    """What a study of this space computes in; where the devices decide, what it would be on this machine."""
    if not space.dtype_by_device:
        return str(space.numeric["dtype"])
    from kdtvit_ray.learning.numeric import auto_dtype, device_name, pick_device

    here = pick_device(None)
    return f"{auto_dtype([here])} on this machine ({device_name(here)}); a study asks its own devices when it starts"


def stages_of(space: Space) -> tuple[list[StageSpec], dict[str, StageSpec]]:
    """The stages that trials ask for, and the distinct ones by key, by random suggestions; exact for a grid. With inner
    folds, every setting is on all of them, as it is without racing, and the baselines and one setting of each search
    are refit. A setting that rehearses is trained once more without."""
    searched = {name: _suggested(each) for name, each in {"": space, **space.searched_baselines()}.items()}
    plans = []
    for each in [space.inner_fold(part) for part in space.parts] or [space]:
        plans += [each.stages_of(name, params) for name, suggested in searched.items() for params in suggested]
        plans += each.baselines().values()
    if space.parts:
        whole = space.refit()
        plans += [whole.stages_of(name, suggested[0] if suggested else {}) for name, suggested in searched.items()]
        plans += whole.baselines().values()
    alone = (other for each in searched[""] if (other := without_rehearsal(space, "any", each)))
    plans += [other.stages for other in islice(alone, 1)]
    asked = [stage for plan in plans for stage in plan]
    return asked, {stage.key: stage for stage in asked}


def stage_work(stages: Iterable[StageSpec]) -> float:
    """How long stages take, in units of one without rehearsal."""
    return sum(1 / (1 - stage.training.rehearsal) for stage in stages)


def _suggested(space: Space) -> list[dict[str, Any]]:
    """As many settings as the search of a space has, all of a grid's or random ones."""
    if space.study["sampler"] == "grid" or space.trials < space.study["trials"]:
        return space.grid()[: space.study["trials"]]
    return list(islice(space.samples(random.Random(space.study["seed"])), space.study["trials"]))


def check_space(name: str, seconds: float, console: Console, data: str = "") -> None:
    """Print what a space would train, without training it, and with `data`, a prepared set, what a study on it could
    show. Raises `UserError`, with `data` for all that `sweep` and `chain` would refuse; weights of the hub are not
    asked for."""
    space = load_space(name)
    check_models(space)
    bound = bind(space, data, hub=False) if data else None
    say = partial(console.print, soft_wrap=True)  # a line that is cut at 80 columns would go on below the labels
    stages, by_key = stages_of(space)
    asked, distinct = len(stages), len(by_key)
    sizes = {label: spec.name for label, spec in space.models.items()}
    say(f"space     {space.source}")
    for dimension, each in space.dimensions.items():
        values = getattr(each, "values", None)
        words = ", ".join(map(str, values)) if values else f"{each.low:g} to {each.high:g}"  # type: ignore[union-attr]
        say(f"search    {dimension}: {words}")
    say(f"models    {', '.join(f'{label} ({size})' if label != size else label for label, size in sizes.items())}")
    say(f"dtype     {_dtype_told(space)}")
    say(f"images    {largest_size(space)} px; 'kdtvit-ray prepare --size {largest_size(space)}' fits")
    if bound is not None and (note := size_note(space, bound.prepared)):
        say(f"          {note}")
    if note := cold_note(space):
        say(f"warm      {note}")
    say(f"trials    {trials_told(space)} searched + {counted(len(space.baselines()), 'baseline')}")
    if searched := space.searched_baselines():
        told = ", ".join(f"{trials_told(each)} of {name}" for name, each in searched.items())
        total = sum(each.trials for each in searched.values())
        say(f"          + {counted(total, 'setting')} of searched baselines: {told}")
    for note in notes(space):
        say(f"          {note}")
    if space.parts:
        racing = ", fewer where racing drops a setting" if space.racing else ""
        say(f"chains    {len(space.parts)} of each, on inner folds{racing}; then refits")
    if space.study["sampler"] != "grid":
        say("          the counts below are estimated from settings drawn at random")
    say(f"stages    {asked} asked for, {distinct} distinct: sharing saves {asked - distinct}")
    most = most_variants(space.training, space.dimensions).settled()
    say(f"views     {views_told(most)}")
    if rehearsal := rehearsal_told(by_key.values()):
        say(f"rehearsal {rehearsal}")
    if seconds:
        say(
            f"cost      about {duration(stage_work(by_key.values()) * seconds)} on one worker group, "
            f"{duration(stage_work(stages) * seconds)} unshared"
        )
    else:
        say("cost      add --seconds S, the time of one stage on your machine")
    if bound is not None:
        from kdtvit_ray.study.feasibility import feasibility

        for line in feasibility(bound.space, bound.prepared):
            say(line)
    else:
        say("data      add --data DATA, a prepared set: what can a study on it show?")
