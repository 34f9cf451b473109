"""Measured values and trial records on storage: their schemas, how they are written, merged and read.

    rows/t0007.parquet     what one trial measured; written first
    trials/t0007.parquet   its record; a trial is finished if and only if its record exists
    */part-000001.parquet  many of these merged by `compact`
    */*.damaged            what could not be read, once its trials were written anew

A file is visible only when it is complete. `compact` writes the part before it deletes what went into it, so a kill in
between leaves a trial in two files: reading takes each trial from one file only, a file of its own before any part, a
later part before an earlier one.
"""

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import dataset

from kdtvit_ray.errors import first_line
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import BASELINES

_WORD = pa.dictionary(pa.int32(), pa.string())

ROWS = pa.schema(
    [
        ("study", _WORD),
        ("trial", _WORD),
        ("stage", pa.int8()),
        ("key", _WORD),
        ("trained", _WORD),
        ("magnification", pa.int16()),
        ("split", _WORD),
        ("level", _WORD),
        ("metric", _WORD),
        ("value", pa.float64()),
    ]
)
"""One measured value a row: `stage` counts from 1, `key` is its stage key, `trained` the magnifications that the stage
was trained at (`40`, or `40+100+200+400`), `magnification` the one it was evaluated at."""

TRIALS = pa.schema(
    [
        ("trial", pa.string()),
        ("number", pa.int32()),
        ("kind", pa.string()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("order", pa.string()),
        ("teacher", pa.string()),
        ("student", pa.string()),
        ("temperature", pa.string()),
        ("alpha", pa.string()),
        ("loss", pa.string()),
        ("warm_start", pa.bool_()),
        ("seed", pa.int64()),
        ("fold", pa.int32()),
        ("parameters", pa.int64()),
        ("params", pa.string()),
        ("objective", pa.float64()),
        ("stages", pa.list_(pa.string())),
        ("cost_seconds", pa.float64()),
        ("started", pa.float64()),
        ("finished", pa.float64()),
        ("fault", pa.string()),
    ]
)

KINDS = ("search", "baseline", "baseline_search", "confirm", "inner", "refit")
"""Searched trials, baselines, the trials of searched baselines, and replicates of any of these; their chains over inner
folds, and their refits. Where the objective is over inner folds, the record of one of the first three stands for its
setting: it has the objective, and no stages, which those of its chains have."""
SEARCHES = ("search", "baseline_search")
"""Kinds of trials that a search suggests."""
SEARCHABLE_BASELINES = ("joint", "sequential")
"""Baselines that can be searched."""
TOLD = {
    "confirm": ("of", "params", "fold", "seed"),
    "inner": ("of", "params", "repeat", "inner"),
    "refit": ("of", "params"),
}
"""What `params` names where a trial repeats another one, `of`, by kind: that one's own `params`, and where."""
STATES = ("complete", "failed", "pruned")
FAULTS = ("", "stage", "infrastructure")

# the order in a part: rows of one split, level and metric lie together, so that the columns compress to almost nothing
_SORTED = ("split", "level", "metric", "stage", "trial", "magnification")
_ROW_GROUP = 65_536
_THREADS = 8
_TOGETHER = 500  # small files that are read at once
_PART = 1_000  # trials in a part at most: bounds the memory of a compaction


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it ended. `fault` tells for a failed one whether a stage or the infrastructure is at fault.
    `temperature`, `alpha` (one value for each distilled stage) and `params` (what the sampler chose, or what `TOLD`
    lists) are JSON texts; `parameters` counts the last model's parameters; `objective` is NaN where there is none;
    `cost_seconds` sums train and evaluate seconds over its stages, whoever computed them; `started` and `finished` are
    unix seconds."""

    trial: str
    number: int = -1
    kind: str = "search"
    state: str = "complete"
    reason: str = ""
    order: str = ""
    teacher: str = ""
    student: str = ""
    temperature: str = "[]"
    alpha: str = "[]"
    loss: str = "kd"
    warm_start: bool = True
    seed: int = 0
    fold: int = 1
    parameters: int = 0
    params: str = "{}"
    objective: float = float("nan")
    stages: Sequence[str] = field(default_factory=tuple)
    cost_seconds: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    fault: str = ""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        assert self.state in STATES, self.state
        assert self.fault in FAULTS, self.fault
        for text in (self.temperature, self.alpha, self.params):
            json.loads(text)


assert tuple(each.name for each in fields(TrialRecord)) == tuple(TRIALS.names)


def baseline_of(trial: str) -> str:
    """The baseline that a trial belongs to, by its name: `joint`, `joint-t0003` and `joint-t0003-refit` to `joint`,
    `per_magnification-40` to `per_magnification`. Empty for searched trials of distilled chains."""
    name = trial.partition("-")[0]
    return name if name in BASELINES else ""


def write_trial(folder: StudyFolder, record: TrialRecord, rows: pa.Table) -> None:
    """Publish one trial: its rows, then its record. Writing a trial again replaces it.

    `rows` may be empty (a failed trial); every row must name the record's trial.
    """
    plain = asdict(record)
    plain["stages"] = list(record.stages)
    named = set(rows["trial"].unique().to_pylist())
    assert named <= {record.trial}, f"rows of {named} given with the record of {record.trial}"
    write_rows(folder, record.trial, rows)
    folder.write(f"{folder.trials}/{record.trial}.parquet", _bytes(pa.Table.from_pylist([plain], schema=TRIALS)))


def read_rows(folder: StudyFolder, damaged: list[str] | None = None) -> pd.DataFrame:
    """All rows of a study; text columns are categoricals. Each trial comes once, however many files hold it. A sentence
    for each file that cannot be read is appended to `damaged`; the others are read all the same."""
    return _read(folder, folder.rows, ROWS, damaged).to_pandas()


def read_trials(folder: StudyFolder, damaged: list[str] | None = None) -> pd.DataFrame:
    """All trial records with the columns of `TRIALS`, searched trials by number, then the others by name; `stages`
    holds lists of keys. A sentence for each file, and each record, that cannot be read is appended to `damaged`."""
    frame = _read(folder, folder.trials, TRIALS, damaged).to_pandas()
    told = zip(frame["kind"], frame["params"], strict=True)
    whole = np.array([_told(kind, params) for kind, params in told], dtype=bool)
    if damaged is not None:
        damaged += [
            f"The record of trial {trial} is damaged and was left out; start the sweep again to have it written anew"
            for trial in frame["trial"][~whole]
        ]
    frame = frame[whole]
    frame["stages"] = [list(keys) for keys in frame["stages"]]
    others = (frame["kind"] != "search").to_numpy()
    return (
        frame.assign(_others=others)
        .sort_values(["_others", "number", "trial"])
        .drop(columns="_others")
        .reset_index(drop=True)
    )


def keys_of_trials(folder: StudyFolder) -> dict[str, set[str]]:
    """By trial that has rows which can be read: the keys of the stages that they are of. Reads one part after another:
    the rows of all trials would take much memory."""
    found: dict[str, set[str]] = {}
    for _name, read in _one_by_one(folder, folder.rows, ROWS):
        if isinstance(read, pa.Table):
            found |= keys_of(read)
    return found


def keys_of(rows: pa.Table) -> dict[str, set[str]]:
    """By trial: the keys of the stages that its rows are of."""
    pairs = rows.select(["trial", "key"]).to_pandas().drop_duplicates()
    found: dict[str, set[str]] = {}
    for trial, key in zip(pairs["trial"], pairs["key"], strict=True):
        found.setdefault(trial, set()).add(key)
    return found


def write_rows(folder: StudyFolder, trial: str, rows: pa.Table) -> None:
    """Replace the rows of a trial that has its record."""
    folder.write(f"{folder.rows}/{trial}.parquet", _bytes(rows.select(ROWS.names).cast(ROWS)), before_others=True)


def set_aside(folder: StudyFolder, place: str) -> list[str]:
    """Rename the damaged files of `rows` or `trials`, so that nothing reads them any more; returns what they are called
    now. Raises `OSError` where storage fails, which makes no file a damaged one."""
    schema, found = (ROWS if place == folder.rows else TRIALS), []
    for name, read in _one_by_one(folder, place, schema):
        if isinstance(read, pa.Table | FileNotFoundError):
            continue
        content = folder.read(f"{place}/{name}")
        if not isinstance(_parsed(io.BytesIO(content), name, schema), pa.Table):
            folder.write(f"{place}/{name}.damaged", content, before_others=True)
            folder.delete(f"{place}/{name}")
            found.append(f"{place}/{name}.damaged")
    return found


def compact(folder: StudyFolder, at_least: int = 2) -> None:
    """Merge the files of single trials into one part, for rows and for records, if there are `at_least` of them.
    Damaged files stay where they are. One process at a time may compact."""
    for place, schema in ((folder.rows, ROWS), (folder.trials, TRIALS)):
        names = [name for name in _files(folder, place) if not _is_part(name)]
        if len(names) < max(at_least, 1):
            continue
        part = max((int(name[5:-8]) for name in _files(folder, place) if _is_part(name)), default=0)
        for first in range(0, len(names), _PART):
            read = _read_files(folder, place, names[first : first + _PART], schema)
            tables = {name: table for name, table in read.items() if isinstance(table, pa.Table)}
            if not tables:
                continue
            table = pa.concat_tables(tables.values())
            part += 1
            content = _bytes(sort_rows(table) if schema is ROWS else table)
            folder.write(f"{place}/part-{part:06d}.parquet", content, before_others=True)  # before the deletions, too
            for name in tables:
                folder.delete(f"{place}/{name}")


def sort_rows(table: pa.Table) -> pa.Table:
    """Rows in the order of a part. pyarrow sorts dictionary columns of some tables only, so their codes are sorted."""
    table = table.unify_dictionaries().combine_chunks()
    keys = []
    for name in _SORTED:
        column = table[name].combine_chunks() if isinstance(table[name], pa.ChunkedArray) else table[name]
        if isinstance(column, pa.DictionaryArray):
            rank = np.argsort(np.argsort(np.array(column.dictionary.to_pylist(), dtype=object)))
            keys.append(rank[column.indices.to_numpy()])
        else:
            keys.append(column.to_numpy())
    return table.take(pa.array(np.lexsort(keys[::-1])))


def _told(kind: str, params: str) -> bool:
    """Whether a record's `params` name all that its kind has."""
    try:
        told = json.loads(params)
        return isinstance(told, dict) and told.keys() >= set(TOLD.get(kind, ()))
    except ValueError:
        return False


# -- files -------------------------------------------------------------------------------------------------------------


def _bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP)
    return sink.getvalue()


def _is_part(name: str) -> bool:
    return name.startswith("part-")


def _files(folder: StudyFolder, place: str) -> list[str]:
    return [name for name in folder.names(place) if name.endswith(".parquet")]


def _read(folder: StudyFolder, place: str, schema: pa.Schema, damaged: list[str] | None) -> pa.Table:
    """Every trial once: from its own file, else from the latest part that has it."""
    read: dict[str, pa.Table | Exception] = {}
    for _attempt in range(3):  # a compaction may delete files between listing and reading: list again
        names = _files(folder, place)
        again = [name for name in names if not isinstance(read.get(name), pa.Table)]
        read.update(_read_files(folder, place, again, schema))
        if not any(isinstance(read[name], FileNotFoundError) for name in names):
            break
    for name, found in read.items():
        if isinstance(found, Exception) and not isinstance(found, FileNotFoundError) and damaged is not None:
            damaged.append(
                f"{place}/{name} is damaged and was left out ({_first_line(found)}); start the sweep again to have its "
                "trials written anew, or restore the file"
            )
    tables = {name: found for name, found in read.items() if isinstance(found, pa.Table)}
    chosen = [tables[name] for name in sorted(tables) if not _is_part(name)]
    seen = {name.removesuffix(".parquet") for name in tables if not _is_part(name)}
    for name in sorted((name for name in tables if _is_part(name)), reverse=True):
        table = tables[name]
        trials = set(table["trial"].unique().to_pylist())
        if trials & seen:
            table = table.filter(pc.invert(pc.is_in(table["trial"].cast(pa.string()), pa.array(sorted(seen)))))
        chosen.append(table)
        seen |= trials
    return pa.concat_tables([schema.empty_table(), *chosen]).unify_dictionaries()


def _one_by_one(folder: StudyFolder, place: str, schema: pa.Schema) -> Iterator[tuple[str, pa.Table | Exception]]:
    """The files of a place by name: part after part, then those of single trials, which count before any part."""
    names = _files(folder, place)
    parts = sorted(filter(_is_part, names))
    for together in (*([part] for part in parts), sorted(set(names) - set(parts))):
        yield from _read_files(folder, place, together, schema).items()


def _read_files(
    folder: StudyFolder, place: str, names: Sequence[str], schema: pa.Schema
) -> dict[str, pa.Table | Exception]:
    """A table or an error for each file. Of small files that were read together the first one has all rows and the
    others have none."""
    small = [name for name in names if not _is_part(name)]
    found: dict[str, pa.Table | Exception] = {}
    for first in range(0, len(small), _TOGETHER):
        together = small[first : first + _TOGETHER]
        table = _read_together(folder, place, together, schema) if len(together) > _THREADS else None
        if table is not None:
            found |= {**dict.fromkeys(together, schema.empty_table()), together[0]: table}

    def one(name: str) -> pa.Table | Exception:
        try:
            with folder.fs.open_input_file(folder.path(f"{place}/{name}")) as file:
                return _parsed(file, name, schema)
        except OSError as error:
            return error

    single = [name for name in names if name not in found]
    with ThreadPoolExecutor(_THREADS) as pool:  # many small reads wait for storage
        return found | dict(zip(single, pool.map(one, single), strict=True))


def _parsed(file: Any, name: str, schema: pa.Schema) -> pa.Table | Exception:
    try:
        table = pq.ParquetFile(file).read(columns=schema.names, use_threads=_is_part(name))
        return table.select(schema.names).cast(schema).replace_schema_metadata(None)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        return error


def _read_together(folder: StudyFolder, place: str, names: Sequence[str], schema: pa.Schema) -> pa.Table | None:
    """Many small files as one table, in half the time and memory; None where one of them is damaged."""
    try:
        table = dataset.FileSystemDataset.from_paths(
            [folder.path(f"{place}/{name}") for name in names],
            schema=schema,
            format=dataset.ParquetFileFormat(),
            filesystem=folder.fs,
        ).to_table()
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    if any(column.null_count for column in table.columns):
        return None  # a column that a file lacks comes as nulls
    return table.unify_dictionaries().combine_chunks().replace_schema_metadata(None)


def _first_line(error: Exception) -> str:
    return first_line(error).rstrip(".")[:160]
