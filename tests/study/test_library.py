"""A stage store that several studies share."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from kdtvit_ray.cli import main
from kdtvit_ray.errors import StorageLost, UserError
from kdtvit_ray.paths import PAUSES, StudyFolder
from kdtvit_ray.results.rows import ROWS, TrialRecord, write_trial
from kdtvit_ray.results.stage_record import VERSION
from kdtvit_ray.study.library import AWAY_SECONDS, StageLibrary, remove, unreachable
from kdtvit_ray.study.store import StageStore
from tests.clock import clock_of
from tests.study import made_stages
from tests.study.test_store import PREDICTIONS, record

STATE = {"weight": torch.arange(6.0)}


def library(tmp_path, study):
    return StageLibrary(str(tmp_path / "lab"), StageStore(StudyFolder(str(tmp_path / study))))


def trained(tmp_path, study, key="k1", **more):
    """A study's own store with a stage that it has trained and offered."""
    shared = library(tmp_path, study)
    shared.own.save(replace(record(key), **more), STATE, PREDICTIONS)
    shared.offer(key)
    return shared


class Failing:
    """A file system of which some methods fail, or all where none is named; `calls` counts them."""

    def __init__(self, real, names, path=""):
        self.real, self.names, self.path, self.calls = real, names, path, 0

    def __getattr__(self, name):
        def fails(*arguments, **options):
            if self.path not in str(arguments[0]):
                return getattr(self.real, name)(*arguments, **options)
            self.calls += 1
            raise OSError(5, "Input/output error")

        return fails if name in self.names or not self.names else getattr(self.real, name)


WRITES = ("create_dir", "open_output_stream", "delete_file")


def fail(shared, *names, path=""):
    """Let a library's shared store fail, with each of these methods, on paths that contain `path`. Returns what lets it
    work again."""
    folder = shared.folder
    real, folder.fs, folder.local = folder.fs, Failing(folder.fs, names, path), None  # nothing is linked

    def mend():
        folder.fs = real

    return mend


@pytest.fixture
def pass_seconds(monkeypatch):
    return clock_of("kdtvit_ray.study.library", monkeypatch)


def test_what_one_study_has_trained_another_takes_over_whole(tmp_path):
    one, two = trained(tmp_path, "one"), library(tmp_path, "two")
    assert two.take_over("k2") is None
    found = two.take_over("k1")
    assert found == one.own.record("k1") == two.own.verified("k1")
    assert torch.equal(two.own.state("k1")["weight"], STATE["weight"])
    assert not list(tmp_path.rglob("*.partial"))


def test_on_one_disk_the_files_are_linked_and_a_study_that_replaces_its_own_leaves_the_others(tmp_path):
    trained(tmp_path, "one")
    two = library(tmp_path, "two")
    two.take_over("k1")
    weights = [tmp_path / place / "stages/k1/weights.safetensors" for place in ("one", "lab", "two")]
    assert len({path.stat().st_ino for path in weights}) == 1
    two.own.save(record("k1"), {"weight": torch.zeros(6)}, PREDICTIONS)
    assert torch.equal(library(tmp_path, "one").own.state("k1")["weight"], STATE["weight"])
    assert torch.equal(two.shared.state("k1")["weight"], STATE["weight"])


def test_where_files_cannot_be_linked_they_are_copied(tmp_path, monkeypatch):
    def on_another_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", on_another_disk)
    trained(tmp_path, "one")
    two = library(tmp_path, "two")
    two.take_over("k1")
    assert torch.equal(two.own.state("k1")["weight"], STATE["weight"])
    assert (tmp_path / "two/stages/k1/weights.safetensors").stat().st_nlink == 1


@pytest.mark.parametrize("after", range(1, 8))
def test_a_stage_that_is_deleted_there_while_it_is_taken_over_is_whole_or_not_taken_over(tmp_path, monkeypatch, after):
    """`gc --delete` after any file that was read is no fault of the machine."""
    trained(tmp_path, "one")
    two, read, reads = library(tmp_path, "two"), StudyFolder.read, []

    def counted(self, name):
        found = read(self, name)
        reads.append(name)
        if len(reads) == after:
            remove(str(tmp_path / "lab"), ["k1"])
        return found

    monkeypatch.setattr(StudyFolder, "read", counted)
    found = two.take_over("k1")
    assert not two.shared.has("k1")
    assert two.own.has("k1") == (found is not None) == (after == 7), "all is read by then"
    if found:
        assert two.own.contents("k1")


def test_an_own_folder_that_cannot_be_written_is_lost_storage_and_no_fault_of_the_machine(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    trained(tmp_path, "one")
    two = StageLibrary(str(tmp_path / "lab"), StageStore(StudyFolder(str(tmp_path / "two"), (0.0,))))
    monkeypatch.setattr(os, "link", read_only)
    for name in ("mkdir", "unlink"):
        monkeypatch.setattr(Path, name, read_only)
    monkeypatch.setattr(StudyFolder, "_write", read_only)
    with pytest.raises(StorageLost, match=r"two failed 2 times, last with: .*Read-only file system"):
        two.take_over("k1")


@pytest.mark.parametrize("name", ["weights.safetensors", "predictions.parquet", "stage.json"])
@pytest.mark.parametrize("same_size", [False, True])
def test_a_stage_that_is_damaged_there_is_not_taken_over_and_is_replaced_by_the_next(tmp_path, name, same_size):
    trained(tmp_path, "one")
    path = tmp_path / "lab" / "stages" / "k1" / name
    content = path.read_bytes()
    path.unlink()  # the link alone
    path.write_bytes(b"x" * len(content) if same_size else content[:-2])
    two = library(tmp_path, "two")
    assert two.take_over("k1") is None
    assert not two.own.has("k1")
    two.own.save(record(), STATE, PREDICTIONS)
    two.offer("k1")
    assert library(tmp_path, "three").take_over("k1") is not None


def test_a_stage_that_a_newer_version_has_put_there_is_trained_here_and_stays_there(tmp_path, caplog):
    trained(tmp_path, "one")
    path = tmp_path / "lab/stages/k1/stage.json"
    newer = json.dumps({**json.loads(path.read_text()), "version": VERSION + 1})
    path.unlink()  # the link alone
    path.write_text(newer)
    two = library(tmp_path, "two")
    assert two.take_over("k1") is None
    assert two.take_over("k1") is None
    assert caplog.text.count(f"written in format {VERSION + 1} by a newer version") == 1
    two.own.save(record("k1"), STATE, PREDICTIONS)
    two.offer("k1")
    assert path.read_text() == newer


def test_a_stage_of_another_kind_of_device_is_taken_over_only_where_that_is_allowed(tmp_path):
    trained(tmp_path, "one", cost={**made_stages.COST, "device_type": "cuda"}, device="NVIDIA A100")
    two = library(tmp_path, "two")
    assert two.take_over("k1", "cpu") is None
    assert two.take_over("k1", "NVIDIA A100") is not None
    assert library(tmp_path, "three").take_over("k1") is not None


def test_a_stage_is_claimed_by_one_study_at_a_time(tmp_path):
    one, two = library(tmp_path, "one"), library(tmp_path, "two")
    assert one.claim("k1") is None
    first = two.claim("k1")
    assert first.beat == 0
    one.beat()
    second = two.claim("k1")
    assert (second.token, second.beat) == (first.token, 1), "its holder lives"
    two.release("k1")
    assert two.claim("k1") == second, "only the holder releases it"
    one.release("k1")
    assert two.claim("k1") is None


def test_a_claim_whose_holder_is_dead_is_seized(tmp_path):
    one, two = library(tmp_path, "one"), library(tmp_path, "two")
    one.claim("k1")
    dead = two.claim("k1")
    assert two.claim("k1", seize=replace(dead, token="another")) == dead
    assert two.claim("k1", seize=dead) is None
    one.release("k1")
    assert one.claim("k1") is not None, "it is the other's now"


def test_a_claim_whose_holder_has_beaten_since_it_seemed_dead_stands(tmp_path):
    one, two = library(tmp_path, "one"), library(tmp_path, "two")
    one.claim("k1")
    met = two.claim("k1")
    one.beat()
    assert two.claim("k1", seize=met) == replace(met, beat=1)


def test_a_damaged_claim_names_nobody(tmp_path):
    (tmp_path / "lab/claims").mkdir(parents=True)
    (tmp_path / "lab/claims/k1.json").write_text("{")
    assert library(tmp_path, "one").claim("k1") is None


def test_only_stages_that_no_study_has_are_deleted_and_only_when_asked(tmp_path, capsys):
    for number, study in enumerate(("one", "two", "gone")):
        trained(tmp_path, study, f"k{number}")
        (tmp_path / study / "study.toml").write_text("")
    lab, studies = str(tmp_path / "lab"), ["--studies", str(tmp_path / "one"), str(tmp_path / "two")]
    assert list(unreachable(lab, studies[1:])) == ["k2"]
    assert main(["gc", lab, *studies]) == 0
    assert "1 stage, " in capsys.readouterr().out
    shared = library(tmp_path, "one").shared
    assert shared.keys() == {"k0", "k1", "k2"}
    assert main(["gc", lab, *studies, "--delete"]) == 0
    assert "were deleted" in capsys.readouterr().out
    assert shared.keys() == {"k0", "k1"}
    assert StageStore(StudyFolder(str(tmp_path / "gone"))).state("k2"), "a study keeps its own"


def test_the_outer_folds_of_a_study_are_its_own(tmp_path):
    trained(tmp_path, "one", "k0")
    (tmp_path / "one/study.toml").touch()
    trained(tmp_path, "one/outer/fold-2", "k1")
    assert unreachable(str(tmp_path / "lab"), [str(tmp_path / "one")]) == {}
    assert list(unreachable(str(tmp_path / "lab"), [])) == ["k0", "k1"]


@pytest.mark.parametrize("place", ["", "outer/fold-2"])
@pytest.mark.parametrize("lost", ["stage.json", ""])
def test_a_stage_that_a_study_has_lost_and_needs_is_kept_for_it(tmp_path, place, lost):
    for key in ("k1", "k2"):
        trained(tmp_path, f"one/{place}", key=key)
    study = StudyFolder(str(tmp_path / "one" / place))
    for folder in (study, StudyFolder(str(tmp_path / "one"))):
        folder.write(folder.study, b"")
    write_trial(study, TrialRecord("t0000", stages=["k1", "k2"]), ROWS.empty_table())
    study.delete(f"stages/k2/{lost}")
    of = str(tmp_path / "lab"), [str(tmp_path / "one")]
    assert unreachable(*of) == {}
    study.write("trials/t0000.parquet", b"")
    with pytest.raises(UserError, match=r"needs of the stages cannot be told: trials/t0000.parquet is damaged"):
        unreachable(*of)


def test_what_is_no_store_and_no_study_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is no store of stages: it has no folder stages"):
        unreachable(str(tmp_path), [])
    trained(tmp_path, "one")
    with pytest.raises(UserError, match=r"is not a study: it has no study\.toml"):
        unreachable(str(tmp_path / "lab"), [str(tmp_path / "one")])


def test_a_study_is_no_store_whose_stages_may_be_deleted(tmp_path):
    for name in ("one", "other"):
        trained(tmp_path, name)
        (tmp_path / name / "study.toml").touch()
    with pytest.raises(UserError, match=r"one' is a study, whose stages are its own"):
        unreachable(str(tmp_path / "one"), [str(tmp_path / "other")])


def test_stages_of_a_real_study_fit(tmp_path):
    """As workers write them: a record of a spec, whose key is the store's."""
    spec = made_stages.space().with_data("none").plan({})[0]
    one = library(tmp_path, "one")
    one.own.save(made_stages.record(spec), STATE, pa.table({"image": []}))
    one.offer(spec.key)
    assert library(tmp_path, "two").take_over(spec.key).summary() == one.own.record(spec.key).summary()


def test_a_store_that_is_away_ends_no_study_delays_no_stage_and_gets_the_stages_when_it_is_back(
    tmp_path, caplog, pass_seconds
):
    trained(tmp_path, "one")
    two = library(tmp_path, "two")
    mend = fail(two)

    def use():
        for key in ("k2", "k3"):
            assert two.take_over("k1") is None
            assert two.claim(key) is None
            two.own.save(record(key), STATE, PREDICTIONS)
            two.offer(key)
            two.beat()
            two.release(key)

    use()
    assert two.folder.fs.calls == 1, "it is left alone for a while"
    pass_seconds(AWAY_SECONDS)
    use()
    assert two.folder.fs.calls == 2
    assert caplog.text.count("the study goes on without it") == 1
    mend()
    pass_seconds(AWAY_SECONDS)
    assert two.take_over("k1") is not None
    two.offer_owed()
    assert two.shared.keys() == {"k1", "k2", "k3"}


def test_a_store_that_fails_slowly_is_left_alone_for_longer(tmp_path, pass_seconds, monkeypatch):
    def slow(_):
        pass_seconds(30)
        raise OSError(110, "Connection timed out")

    trained(tmp_path, "one")
    two = library(tmp_path, "two")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(two.shared, "has", slow)
        two.take_over("k1")
    pass_seconds(9 * 30 - 1)
    assert two.take_over("k1") is None
    pass_seconds(1)
    assert two.take_over("k1") is not None


def test_from_a_store_that_can_only_be_read_stages_are_taken_over(tmp_path, caplog, pass_seconds):
    trained(tmp_path, "one")
    two = library(tmp_path, "two")
    mend = fail(two, *WRITES)
    for key in ("k2", "k3"):
        assert two.claim(key) is None
        two.own.save(record(key), STATE, PREDICTIONS)
        two.offer(key)
    assert two.take_over("k1") is not None
    assert caplog.text.count("the study goes on without it") == 2, "once of claims, once of stages"
    mend()
    two.beat()
    assert not two.folder.names("claims"), "what could not be claimed is never claimed later"
    pass_seconds(AWAY_SECONDS)
    two.offer("k1")
    assert two.shared.keys() == {"k1", "k2", "k3"}


def test_a_stage_that_a_store_never_takes_keeps_no_other_from_it(tmp_path, pass_seconds):
    two = library(tmp_path, "two")
    fail(two, *WRITES, path="k1")
    for key in ("k1", "k2", "k3"):
        two.own.save(record(key), STATE, PREDICTIONS)
        two.offer(key)
    pass_seconds(AWAY_SECONDS)
    two.offer_owed()
    assert two.shared.keys() == {"k2", "k3"}


def test_a_claim_beats_again_as_soon_as_the_store_is_back(tmp_path, pass_seconds):
    one, two = library(tmp_path, "one"), library(tmp_path, "two")
    one.claim("k1")
    mend = fail(one)
    one.beat()
    mend()
    one.beat()
    assert two.claim("k1").beat == 1


def test_the_shared_store_is_waited_for_shortly(tmp_path):
    own = StageStore(StudyFolder(str(tmp_path / "one"), PAUSES))
    assert sum(StageLibrary(str(tmp_path / "lab"), own).folder.pauses) < 2 < sum(PAUSES)
