"""One chain in this process, without Ray: the same stages, the same numbers as the trial inside a sweep."""

import json
import re
from typing import Any

from rich.console import Console
from rich.table import Table

from kdtvit_ray.data.batches import SPLITS
from kdtvit_ray.errors import StageFailed, UserError, unknown
from kdtvit_ray.paths import StudyFolder, expanded
from kdtvit_ray.recipe import StageSpec, format_order
from kdtvit_ray.results.out_of_fold import Part
from kdtvit_ray.results.rows import SEARCHES, read_trials
from kdtvit_ray.results.stage_record import StageRecord
from kdtvit_ray.results.study import load
from kdtvit_ray.results.study_file import settings_of
from kdtvit_ray.study.asks import trial_named
from kdtvit_ray.study.binding import Bound, bind, hub_note, size_note
from kdtvit_ray.study.space import Space, load_space
from kdtvit_ray.study.stage_results import stage_results


def run_local(
    source: str, data: str, trial: str, chosen: dict[str, Any], seed: int | None, console: Console
) -> list[StageRecord]:
    """Run a chain of a space, or a trial's of a study, and print accuracy and AUC after each stage. Where the space
    leaves the dtype to the device, it is that of this process.

    Returns the record of each stage. Raises `UserError`.
    """
    from kdtvit_ray.data.batches import StageData
    from kdtvit_ray.learning.chain import run_chain
    from kdtvit_ray.learning.numeric import auto_dtype, pick_device

    space, trial, params = _source(source, trial)
    if seed is not None:
        space.study["seed"] = seed
    if space.dtype_by_device:
        space = space.with_dtype(auto_dtype([pick_device(None)]))
    if chosen:
        # the reader of spaces checks values of the command line as it checks those of a file
        plain = space.plain()
        plain["chain"] |= chosen
        plain["search"] = {}
        data_of_trial, space = space.data, Space(plain, "command line")
        space.data = data_of_trial
        params = {name: value for name, value in params.items() if name.partition(".")[0] not in chosen}
    if note := hub_note(space):
        console.print(note, soft_wrap=True)
    bound = bind(space, data)
    if note := size_note(space, bound.prepared):
        console.print(note)
    stages = bound.space.stages_of(trial, params)
    console.print(f"Chain {format_order([stage.magnifications[0] for stage in stages])}, {len(stages)} stages")
    try:
        with console.status("starting") as status:

            def show(number: int, spec: StageSpec, now: Any) -> None:
                where = "+".join(map(str, spec.magnifications))
                status.update(f"stage {number} of {len(stages)}, {where}X: epoch {now.epoch}/{now.epochs}")

            results = run_chain(stages, bound.prepared, progress=show)
    except StageFailed as error:
        raise UserError(f"The chain failed: {error}") from None
    held = StageData(bound.prepared, bound.space.data)
    records = [stage_results(spec, result, held)[0] for spec, result in zip(stages, results, strict=True)]
    console.print(_table(records, bound))
    return records


def _source(source: str, trial: str) -> tuple[Space, str, dict[str, Any]]:
    """The space, the trial, and its parameters where it is a searched one of a study. A replicate is its trial at its
    own fold and seed, a chain over inner folds its setting with its inner fold left out, a searched baseline its chosen
    setting. A setting that was judged over inner folds is trained on all development patients, as its refit is."""
    if not (expanded(source) / StudyFolder.study).is_file():
        space = load_space(source)
        named = [*space.baselines(), *space.searched_baselines()]
        if re.fullmatch("t?[0-9]+", trial):
            raise UserError(
                f"'{source}' is a space, and only a study has a trial {trial}; allowed: a study's folder instead of "
                f"the space, or a baseline: {', '.join(named) or 'none'}"
            )
        if trial and trial not in named:
            raise UserError(unknown("baseline", trial, named))
        return space, trial, {}
    folder, trial = StudyFolder(source), trial_named(trial)
    plain = settings_of(folder)
    space = Space(plain, source=folder.path(folder.study))
    whole = space.refit() if space.parts else space
    if not trial or trial in space.baselines():
        return whole, trial, {}
    if trial in space.searched_baselines():
        trial = load(source).named(trial)
    records = {record.trial: record for record in read_trials(folder).itertuples(index=False)}
    if trial not in records:
        settings = [name for name, each in records.items() if each.kind in SEARCHES]
        raise UserError(unknown(f"trial of '{source}'", trial, [*settings, *space.baselines()]))
    told = json.loads(records[trial].params)
    made = {
        "confirm": lambda: space.replicate(told["fold"], told["seed"]),
        "inner": lambda: space.inner_fold(Part(told["repeat"], told["inner"])),
        "refit": lambda: whole,
    }.get(records[trial].kind)
    return (made(), told["of"], told["params"]) if made else (whole, trial, told)


def _table(records: list[StageRecord], bound: Bound) -> Table:
    metric = bound.space.study["metric"]
    table = Table(title=f"{metric} after each stage", title_style="bold")
    table.add_column("stage")
    table.add_column("split")
    magnifications = bound.prepared.dataset.magnifications
    for magnification in magnifications:
        table.add_column(f"{magnification}X", justify="right")
    table.add_column("mean", justify="right")
    told = ""
    for number, record in enumerate(records, start=1):
        for name in SPLITS:
            values = record.values(name, "image", metric)
            if not values:
                continue  # trained on all development patients: there is no validation
            cells = [f"{values[each]:.3f}" if each in values else "-" for each in magnifications]
            label = f"{number}: {record.trained}X" if record.key != told else ""
            told = record.key
            table.add_row(label, name, *cells, f"{sum(values.values()) / len(values):.4f}")
    return table
