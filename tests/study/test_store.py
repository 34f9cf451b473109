"""The stage store: nothing half-written is ever visible, storage that fails is tried again."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import fs

from kdtvit_ray.cli import main
from kdtvit_ray.errors import RemoteFailed, StorageLost, UserError
from kdtvit_ray.paths import Folder, StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.rows import TrialRecord, write_trial
from kdtvit_ray.study.stage_reader import StageReader
from kdtvit_ray.study.stage_results import trial_rows
from kdtvit_ray.study.store import DamagedStage, EpochCheckpoint, StageStore
from tests.study import made_stages

PREDICTIONS = pa.table({"image": pa.array([1, 2], pa.int32())})


def record(key="k1", **cost):
    spec = made_stages.space().plan({})[0]
    return replace(made_stages.record(spec), key=key, cost={**made_stages.COST, "train_seconds": 1.5, **cost})


def store(tmp_path, pauses=(0.0, 0.0)):
    return StageStore(StudyFolder(str(tmp_path), pauses))


def test_a_stage_comes_back_as_it_was_saved(tmp_path):
    kept = store(tmp_path)
    state = {"weight": torch.arange(6.0).reshape(2, 3).t(), "bias": torch.ones(3, dtype=torch.float64)}
    kept.save(record(), state, PREDICTIONS)
    assert kept.keys() == {"k1"}
    assert kept.has("k1")
    assert not kept.has("k2")
    found = kept.record("k1")
    assert replace(found, files={}, spec={}) == replace(record(), spec={})
    assert StageSpec.from_dict(found.spec) == StageSpec.from_dict(record().spec)
    again = kept.state("k1")
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    described = found.files["weights.safetensors"]
    assert described["bytes"] == (tmp_path / "stages/k1/weights.safetensors").stat().st_size


@pytest.mark.parametrize("at", ["weights.safetensors", "predictions.parquet", "stage.json"])
def test_a_save_that_breaks_off_leaves_no_stage_and_no_partial_file(tmp_path, monkeypatch, at):
    kept = store(tmp_path)
    write = Folder._write

    def broken(self, name, content, before_others):
        if name.endswith(at):
            raise OSError(28, "No space left on device")
        write(self, name, content, before_others)

    monkeypatch.setattr(Folder, "_write", broken)
    with pytest.raises(StorageLost, match="No space left on device"):
        kept.save(record(), {"w": torch.ones(2)}, PREDICTIONS)
    assert kept.keys() == set()
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    kept.save(record(), {"w": torch.ones(2)}, PREDICTIONS)
    assert kept.keys() == {"k1"}


def test_a_full_disk_leaves_no_partial_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Folder(str(tmp_path)).write("a/b.json", b"{}", before_others=True)
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]


def test_what_a_stage_or_a_record_stands_for_is_on_the_disk_before_it(tmp_path, monkeypatch):
    """Without power a disk forgets what was not synchronised, and may remember what was written after it."""
    happened, sync, replaced = [], os.fsync, Path.replace

    def note(what, path):
        if tmp_path in Path(path).parents:  # other threads write elsewhere
            happened.append((what, Path(path).name.split(".")[0]))

    def synchronise(descriptor):
        note("on disk", Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    def replace_by(self, target):
        note("there", target)
        return replaced(self, target)

    monkeypatch.setattr(os, "fsync", synchronise)
    monkeypatch.setattr(Path, "replace", replace_by)
    kept = store(tmp_path)
    kept.save(record(), {"w": torch.ones(2)}, PREDICTIONS)
    first = [("on disk", "weights"), ("there", "weights"), ("on disk", "predictions"), ("there", "predictions")]
    assert happened == [*first, ("there", "stage")]
    happened.clear()
    write_trial(kept.folder, TrialRecord("t0000"), trial_rows("study", "t0000", [record()]))
    assert happened == [("on disk", "t0000"), ("there", "t0000"), ("there", "t0000")], "rows, then the record"


class Away:
    """A file system that fails `times` times, then answers as the real one does; counts what it was asked."""

    def __init__(self, real, times):
        self.real, self.times, self.asked = real, times, 0

    def __getattr__(self, name):
        def answer(*arguments, **more):
            self.asked += 1
            if self.asked <= self.times:
                raise OSError("away")
            return getattr(self.real, name)(*arguments, **more)

        return answer


CALLS = {
    "read": lambda folder: folder.read("a/b"),
    "write": lambda folder: folder.write("a/c", b"x"),
    "exists": lambda folder: folder.exists("a/b"),
    "names": lambda folder: folder.names("a"),
    "delete": lambda folder: folder.delete("a/b"),
    "keys": lambda folder: StageStore(folder).keys(),
}


@pytest.mark.parametrize("call", list(CALLS))
def test_storage_that_comes_back_is_waited_for_and_storage_that_stays_away_is_told(tmp_path, call):
    def folder(times, pauses):
        made = StudyFolder(str(tmp_path), pauses)
        made.write("a/b", b"content")
        made.fs = Away(made.fs, times)
        return made

    CALLS[call](folder(2, (0.0, 0.0)))
    with pytest.raises(StorageLost, match=r"failed 3 times, last with: away"):
        CALLS[call](folder(9, (0.0, 0.0)))
    impatient = folder(1, ())
    with pytest.raises(OSError, match=r"^away$"):
        CALLS[call](impatient)
    assert impatient.fs.asked == 1


def test_a_file_that_is_not_there_is_an_answer(tmp_path):
    patient = StudyFolder(str(tmp_path), (60.0,))
    with pytest.raises(FileNotFoundError):
        patient.read("none")
    with pytest.raises(DamagedStage, match=r"stages/k is damaged: it has no stage\.json"):
        StageStore(patient).record("k")


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"{}"])
def test_a_stage_file_that_says_nothing_is_told_as_damaged(tmp_path, damage):
    kept = store(tmp_path)
    kept.save(record(), {"w": torch.ones(1)}, PREDICTIONS)
    (tmp_path / "stages/k1/stage.json").write_bytes(damage)
    with pytest.raises(DamagedStage, match="stages/k1 is damaged") as told:
        kept.record("k1")
    assert pickle.loads(pickle.dumps(told.value)).key == "k1", "it crosses processes"


@pytest.mark.parametrize("damage", [None, b"", b"x" * 80])
def test_weights_that_are_not_those_that_were_saved_are_told_as_damaged(tmp_path, damage):
    kept = store(tmp_path)
    kept.save(record(), {"w": torch.ones(1)}, PREDICTIONS)
    path = tmp_path / "stages/k1/weights.safetensors"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(DamagedStage, match="weights"):
        kept.state("k1")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("predictions.parquet", b"PAR1 torn", "its predictions, 9 bytes, do not have the hash"),
        ("predictions.parquet", None, "it has no predictions"),
        ("weights.safetensors", b"torn", "its weights have 4 bytes, not"),
        ("weights.safetensors", None, "its weights have 0 bytes, not"),
    ],
)
def test_a_stage_is_whole_when_it_is_verified_and_a_torn_file_is_noticed(tmp_path, name, content, said):
    kept = store(tmp_path)
    kept.save(record(), {"weight": torch.ones(3)}, PREDICTIONS)
    assert kept.verified("k1") == kept.record("k1")
    path = tmp_path / "stages" / "k1" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(DamagedStage, match=said):
        kept.verified("k1")


def test_a_stage_of_a_newer_version_is_refused(tmp_path):
    kept = store(tmp_path)
    kept.save(record(), {"w": torch.ones(1)}, PREDICTIONS)
    path = tmp_path / "stages/k1/stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(UserError, match="newer version"):
        kept.record("k1")


def test_a_reader_keeps_the_stages_that_were_asked_for_last(tmp_path, monkeypatch):
    monkeypatch.setattr("kdtvit_ray.study.stage_reader.KEPT", 3)
    store = StageStore(StudyFolder(str(tmp_path)))
    for key in "abcd":
        store.save(record(key), {"w": torch.zeros(1)}, PREDICTIONS)
    reader, read = StageReader(store), []
    monkeypatch.setattr(store, "record", lambda key: read.append(key) or record(key))
    for key in "abcadbd":
        reader.record(key)
    assert "".join(read) == "abcdb"


def test_checkpoints_come_and_go(tmp_path):
    checkpoint = EpochCheckpoint(StudyFolder(str(tmp_path)), "k1")
    assert checkpoint.load() is None
    checkpoint.save(b"one")
    checkpoint.save(b"two")
    assert checkpoint.load() == b"two"
    checkpoint.clear()
    assert checkpoint.load() is None


class Bucket:
    """What pyarrow opens: an S3 bucket, after it has failed so often with these words."""

    def __init__(self, times, words):
        self.times, self.words = times, words

    def from_uri(self, location):
        if self.times:
            self.times -= 1
            raise OSError(self.words)
        return fs.S3FileSystem(region="eu-central-1", anonymous=True), "bucket/study"


NO_NETWORK = "When resolving region for bucket 'bucket': AWS Error NETWORK_CONNECTION during HeadBucket operation"


@pytest.fixture
def s3(monkeypatch):
    """Let pyarrow fail to open storage so often."""
    return lambda times, words=NO_NETWORK: monkeypatch.setattr(fs, "FileSystem", Bucket(times, words))


def test_a_bucket_whose_region_nobody_tells_just_now_is_away_and_one_that_does_not_exist_is_a_mistake(s3):
    s3(2)
    found = StudyFolder("s3://bucket/study", (0.0, 0.0))
    assert (found.shown, found.location) == ("s3://bucket/study", "s3://bucket/study?region=eu-central-1")
    s3(9)
    with pytest.raises(StorageLost, match="Opening 's3://bucket/study' failed 3 times, last with: When resolving"):
        StudyFolder("s3://bucket/study", (0.0, 0.0))
    with pytest.raises(RemoteFailed, match="Opening 's3://bucket/study' failed: When resolving"):
        StudyFolder("s3://bucket/study")
    s3(1, "Bucket 'bucket' not found")
    with pytest.raises(UserError, match="Cannot open storage 's3://bucket/study': Bucket 'bucket' not found"):
        StudyFolder("s3://bucket/study", (60.0,))


@pytest.mark.parametrize("option", ["region=eu-central-1", "endpoint_override=localhost:9000"])
def test_a_location_that_says_where_it_is_stays_as_it_is(s3, option):
    s3(0)
    assert StudyFolder(f"s3://bucket/study?{option}").location == f"s3://bucket/study?{option}"
    assert StudyFolder("s3://bucket/study?scheme=http").location.endswith("?scheme=http&region=eu-central-1")


@pytest.mark.parametrize(
    "command",
    [
        ["status", "s3://bucket/study"],
        ["report", "s3://bucket/study"],
        ["sweep", "demo", "--data", "s3://bucket/prepared", "--out", "study"],
        ["confirm", "s3://bucket/study"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_ends_with_75_where_storage_is_away_and_with_2_where_it_does_not_exist(s3, command, capsys):
    s3(1)
    assert main(command) == 75
    assert capsys.readouterr().err.startswith("kdtvit-ray: Opening 's3://bucket/")
    s3(1, "Bucket 'bucket' not found")
    assert main(command) == 2


def test_remote_storage_that_fails_at_one_attempt_is_told_from_a_disk(tmp_path):
    remote = StudyFolder(str(tmp_path))
    remote.fs, remote.local = Away(remote.fs, 9), None
    for call in CALLS.values():
        with pytest.raises(RemoteFailed, match=r"failed: away$"):
            call(remote)


def test_an_unknown_storage_is_one_sentence():
    with pytest.raises(UserError, match="Cannot open storage 'nope://x'"):
        StudyFolder("nope://x")
