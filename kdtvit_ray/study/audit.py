"""Looking before leaping: what a prepared set holds, and what a space would have to train."""

import random
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdtvit_ray.console import duration
from kdtvit_ray.recipe import MAGNIFICATIONS, SUBTYPES
from kdtvit_ray.study.binding import largest_size
from kdtvit_ray.study.space import Space, load_space


def check_data(location: str, console: Console) -> None:
    """Print what a prepared set holds: images by subtype and magnification, patients, differences from the census.

    Raises `UserError` for a folder that is no prepared set.
    """
    from kdtvit_ray.data.prepared import open_prepared

    prepared = open_prepared(Path(location))
    frame = prepared.table
    table = Table(title=f"{len(frame)} images of {frame['slide'].nunique()} slides", title_style="bold")
    table.add_column("subtype")
    for magnification in MAGNIFICATIONS:
        table.add_column(f"{magnification}X", justify="right")
    table.add_column("slides", justify="right")
    for index, subtype in enumerate(SUBTYPES):
        of_subtype = frame[frame["subtype"] == index]
        counts = [str(int((of_subtype["magnification"] == each).sum())) for each in MAGNIFICATIONS]
        table.add_row(f"{'M' if index >= 4 else 'B'} {subtype}", *counts, str(of_subtype["slide"].nunique()))
    totals = [str(int((frame["magnification"] == each).sum())) for each in MAGNIFICATIONS]
    table.add_row("all", *totals, str(frame["slide"].nunique()), style="bold")
    console.print(table)
    console.print(
        f"stored as {prepared.images.shape[1]}x{prepared.images.shape[2]} px, aspect {prepared.about['aspect']}"
    )
    console.print(f"fingerprint {prepared.fingerprint}")
    differences = prepared.about.get("census_differences", [])
    console.print(f"differences from the official census: {len(differences) or 'none'}")
    for each in differences[:20]:
        console.print(f"  {each if len(each) <= 150 else each[:147] + '...'}")
    if len(differences) > 20:
        console.print(f"  ... and {len(differences) - 20} more")


def stage_counts(space: Space) -> tuple[int, int, int]:
    """(trials, stages that they ask for, distinct stages), by random suggestions; exact for a grid."""
    study = space.study
    if study["sampler"] == "grid":
        suggested = space.grid()[: study["trials"]]
    else:
        suggested = list(islice(space.samples(random.Random(study["seed"])), study["trials"]))
    plans = [space.plan(params) for params in suggested] + list(space.baselines().values())
    keys = {stage.key for plan in plans for stage in plan}
    return len(plans), sum(map(len, plans)), len(keys)


def check_space(name: str, seconds: float, console: Console, data: str = "") -> None:
    """Print what a space would train, without training it, and with `data`, a prepared set, what a study on it could
    show. Raises `UserError`."""
    space = load_space(name)
    _, asked, distinct = stage_counts(space)
    sizes = {label: spec.name for label, spec in space.models.items()}
    console.print(f"space     {space.source}")
    for dimension, each in space.dimensions.items():
        values = getattr(each, "values", None)
        words = ", ".join(map(str, values)) if values else f"{each.low:g} to {each.high:g}"  # type: ignore[union-attr]
        console.print(f"search    {dimension}: {words}")
    console.print(
        f"models    {', '.join(f'{label} ({size})' if label != size else label for label, size in sizes.items())}"
    )
    console.print(f"images    {largest_size(space)} px; 'kdtvit-ray prepare --size {largest_size(space)}' fits")
    exact = "" if space.study["sampler"] == "grid" else " (drawn at random)"
    console.print(f"trials    {space.study['trials']} searched + {len(space.baselines())} baselines{exact}")
    console.print(f"stages    {asked} asked for, {distinct} distinct: sharing saves {asked - distinct}")
    if seconds:
        console.print(
            f"cost      about {duration(distinct * seconds)} on one worker group, {duration(asked * seconds)} unshared"
        )
    else:
        console.print("cost      say --seconds S, the time of one stage on your machine")
    if data:
        from kdtvit_ray.data.prepare import open_prepared
        from kdtvit_ray.study.feasibility import feasibility

        for line in feasibility(space, open_prepared(Path(data))):
            console.print(line, soft_wrap=True)
    else:
        console.print("data      say --data DATA, a prepared set: what can a study on it show?")
