"""Rows and records on storage: nothing is lost, nothing comes twice, damage is named."""

import dataclasses
import math
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import ROWS, TRIALS, TrialRecord, compact, read_rows, read_trials, write_trial
from tests.results.measured import table_of

WORDS = [each.name for each in ROWS if str(each.type).startswith("dictionary")]


def rows_of(trial: str, shift: float = 0.0, metrics: tuple[str, ...] = ("auc", "accuracy")) -> pd.DataFrame:
    lines = [
        ("s", trial, stage, f"key{stage}", "40", magnification, split, "image", metric, shift + stage + magnification)
        for stage in (1, 2)
        for magnification in (40, 100)
        for split in ("validation", "test")
        for metric in metrics
    ]
    return pd.DataFrame(lines, columns=list(ROWS.names))


def write(folder: StudyFolder, trial: str, shift: float = 0.0, **fields: object) -> None:
    number = int(trial[1:]) if trial[1:].isdigit() else -1
    record = TrialRecord(trial, number, stages=("key1", "key2"), objective=0.5, **fields)  # type: ignore[arg-type]
    write_trial(folder, record, table_of(rows_of(trial, shift)))


def canonical(frame: pd.DataFrame) -> pd.DataFrame:
    plain = frame.astype(dict.fromkeys(WORDS, str))
    return plain.sort_values(list(ROWS.names)).reset_index(drop=True)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = StudyFolder(str(tmp_path))
    record = TrialRecord(
        "t0003",
        3,
        "search",
        "pruned",
        "why",
        "40>100",
        "tiny",
        "micro",
        "[4.0]",
        "[0.5]",
        "kd",
        False,
        7,
        2,
        99,
        '{"a": 1}',
        0.25,
        ("x", "y"),
        1.5,
        2.0,
        3.0,
    )
    write_trial(folder, record, table_of(rows_of("t0003")))
    write_trial(folder, TrialRecord("joint", kind="baseline", state="failed"), ROWS.empty_table())
    trials = read_trials(folder)
    assert list(trials.columns) == TRIALS.names
    assert list(trials["trial"]) == ["t0003", "joint"]
    read = trials.iloc[0].to_dict()
    assert {**dataclasses.asdict(record), "stages": ["x", "y"]} == read
    assert math.isnan(trials.iloc[1]["objective"])
    assert trials.iloc[1]["stages"] == []
    pd.testing.assert_frame_equal(canonical(read_rows(folder)), canonical(rows_of("t0003")), check_dtype=False)


def test_an_empty_folder_has_typed_empty_tables(tmp_path: Path) -> None:
    folder = StudyFolder(str(tmp_path))
    assert list(read_rows(folder).columns) == ROWS.names
    assert list(read_trials(folder).columns) == TRIALS.names
    compact(folder)
    assert folder.names() == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.one_of(st.integers(0, 5), st.sampled_from(["compact", "killed"])), max_size=10))
def test_reading_gives_each_trial_once_whatever_was_merged_or_killed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | str]
) -> None:
    folder = StudyFolder(str(tmp_path_factory.mktemp("study")))
    expected: dict[str, float] = {}
    for step, each in enumerate(steps):
        if isinstance(each, int):
            expected[f"t{each}"] = float(step)
            write(folder, f"t{each}", float(step))
        elif each == "compact":
            compact(folder)
        else:  # a compaction that was killed before it deleted anything
            kept = tmp_path_factory.mktemp("kept")
            for place in (folder.rows, folder.trials):
                source = Path(folder.path(place))
                if source.exists():
                    shutil.copytree(source, kept / place)
            compact(folder)
            shutil.copytree(kept, folder.root, dirs_exist_ok=True)
    wanted = [rows_of(trial, shift) for trial, shift in expected.items()]
    found = canonical(read_rows(folder))
    pd.testing.assert_frame_equal(
        found, canonical(pd.concat(wanted) if wanted else rows_of("x").head(0)), check_dtype=False
    )
    assert sorted(read_trials(folder)["trial"]) == sorted(expected)


def test_compaction_leaves_one_file_with_the_same_rows(tmp_path: Path) -> None:
    folder = StudyFolder(str(tmp_path))
    for number in range(5):
        write(folder, f"t{number}", number / 10)
    before, records = canonical(read_rows(folder)), read_trials(folder)
    compact(folder)
    assert folder.names("rows") == folder.names("trials") == ["part-000001.parquet"]
    pd.testing.assert_frame_equal(canonical(read_rows(folder)), before)
    pd.testing.assert_frame_equal(read_trials(folder), records)
    write(folder, "t5")
    compact(folder)
    assert folder.names("rows") == ["part-000001.parquet", "t5.parquet"]  # a single file is not worth a part
    compact(folder, at_least=1)
    assert folder.names("rows") == ["part-000001.parquet", "part-000002.parquet"]


@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize("damage", [b"", b"PAR1 not parquet PAR1", None])
def test_a_damaged_file_is_named_and_the_rest_is_read(tmp_path: Path, damage: bytes | None, count: int) -> None:
    folder = StudyFolder(str(tmp_path))
    for number in range(count):
        write(folder, f"t{number}")
    others = {f"t{number}" for number in range(count)} - {"t1"}
    for place in ("rows", "trials"):
        path = tmp_path / place / "t1.parquet"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is None else damage)
    notes: list[str] = []
    assert set(read_rows(folder, notes)["trial"]) == others
    assert set(read_trials(folder, notes)["trial"]) == others
    assert [note.split()[0] for note in notes] == ["rows/t1.parquet", "trials/t1.parquet"]
    compact(folder)
    for place in ("rows", "trials"):  # damaged files are left for the user
        assert folder.names(place) == ["part-000001.parquet", "t1.parquet"]
    assert set(read_rows(folder)["trial"]) == others


def test_many_small_files_are_read_together_as_they_are_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StudyFolder(str(tmp_path))
    for number in range(30):
        write(folder, f"t{number}", shift=number)
    monkeypatch.setattr("kdtvit_ray.results.rows._TOGETHER", 12)  # the last six are too few to be read so
    together = canonical(read_rows(folder)), read_trials(folder)
    monkeypatch.setattr("kdtvit_ray.results.rows._read_together", lambda *_: None)
    pd.testing.assert_frame_equal(together[0], canonical(read_rows(folder)))
    pd.testing.assert_frame_equal(together[1], read_trials(folder))


@pytest.mark.parametrize("others", [["t0"], [f"t{number}" for number in range(2, 30)]])
def test_a_file_of_another_schema_counts_as_damaged(tmp_path: Path, others: list[str]) -> None:
    folder = StudyFolder(str(tmp_path))
    for other in others:
        write(folder, other)
    pq.write_table(table_of(rows_of("t1")).select(["trial", "value"]), tmp_path / "rows" / "t1.parquet")
    notes: list[str] = []
    assert set(read_rows(folder, notes)["trial"]) == set(others)
    assert len(notes) == 1


def test_rows_of_another_trial_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="t1"):
        write_trial(StudyFolder(str(tmp_path)), TrialRecord("t0"), table_of(rows_of("t1")))
