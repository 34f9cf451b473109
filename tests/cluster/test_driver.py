"""What the driver makes of a Ray that fails. Neither Ray nor groups."""

import io
import json
import math
import shutil
import types
from dataclasses import replace

import pytest
import ray
from rich.console import Console

from kdtvit_ray.cluster import driver as module
from kdtvit_ray.cluster.actor import first_answer
from kdtvit_ray.cluster.driver import _Driver, sweep
from kdtvit_ray.cluster.messages import Snapshot
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.errors import Away
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results import rows
from kdtvit_ray.results.rows import ROWS, compact, read_rows, read_trials, set_aside
from kdtvit_ray.results.study import load
from kdtvit_ray.results.study_status import StageCounts, Status, TrialCounts
from tests.study import judged_stages, made_stages

TIMEOUT = ray.exceptions.GetTimeoutError("Get timed out: some object(s) not ready.")


class Groups:
    """No worker groups; they are waited for as `wait` says."""

    idle_note, started = "", 0

    def __init__(self, wait):
        self.wait = wait

    def wanted(self):
        return 0, ""

    def note(self, *_):
        pass


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a sweep in which the trials do what `trials` says of the driver, and groups are waited for by `wait`; the
    sweep's exit code, its last status and whether Ray was shut down."""
    up = {"ray": False}
    monkeypatch.setattr(ray, "is_initialized", lambda: up["ray"])
    monkeypatch.setattr(ray, "shutdown", lambda: up.update(ray=False))
    monkeypatch.setattr(ray, "get", lambda found, timeout=None: found)
    ended = {"status": lambda: json.loads((tmp_path / "status.json").read_text())["state"], "up": up}

    def run(trials=lambda driver: None, wait=lambda seconds: None):
        def begin(driver, terminal):
            up["ray"] = True
            driver.groups = Groups(wait)
            told = {"drain": lambda: None, "snapshot": lambda: next(run.snapshots, Snapshot())}
            remotes = {name: types.SimpleNamespace(remote=answer) for name, answer in told.items()}
            driver.coordinator = types.SimpleNamespace(**remotes)

        monkeypatch.setattr(_Driver, "_start_ray", begin)
        monkeypatch.setattr(_Driver, "_run_trials", lambda driver, terminal: trials(driver))
        bound = made_stages.bound(made_stages.space(trials=4))
        return sweep(bound, Options(out=str(tmp_path)), Console(file=io.StringIO()))

    run.status, run.up, run.snapshots = ended["status"], up, iter(())
    return run


def failing(error):
    def fail(*_):
        raise error

    return fail


def test_a_ray_that_fails_while_groups_are_waited_for_is_shut_down_and_the_study_has_ended(run):
    assert run(wait=failing(TIMEOUT)) == 0
    assert not run.up["ray"]
    assert run.status() == "finished"


def test_a_ray_that_does_not_answer_is_no_storage_that_fails(run):
    with pytest.raises(
        Away, match=r"^Ray does not answer \(Get timed out.*the log is .*sweep.log; the same command goes"
    ):
        run(trials=failing(TIMEOUT))
    assert not run.up["ray"]
    assert run.status() == "stopped"


def out_of_memory(*_):
    """Tune's error where Ray's memory monitor has killed a trial's actor."""
    try:
        raise ray.exceptions.OutOfMemoryError("6 worker(s) were killed due to the node running low on memory.\nMore.")
    except ray.exceptions.RayError as error:
        raise RuntimeError("Caught unexpected exception: 6 worker(s)") from error


def test_trials_that_ray_ended_for_want_of_memory_are_no_error_of_the_program(run, caplog):
    with pytest.raises(
        Away, match=r"^Ray ended trials on .*: 6 worker\(s\) .* on memory; the log is .*sweep.log; the same command"
    ):
        run(trials=out_of_memory)
    assert (run.status(), run.up["ray"]) == ("stopped", False)
    assert "Caught unexpected exception" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ray.exceptions.RayTaskError("step", "", ValueError())])
def test_an_error_of_the_program_stays_one(run, error):
    with pytest.raises(type(error)):
        run(trials=failing(error))


def test_a_coordinator_that_does_not_start_is_told_after_a_while_and_then_waited_for_no_longer(run, monkeypatch):
    asked, answers = [], []

    def get(answer, timeout):
        asked.append(timeout)
        if not answers:
            raise TIMEOUT
        return answers.pop()

    def start(driver):
        terminal = Console(file=io.StringIO())
        driver.coordinator.ready = types.SimpleNamespace(remote=lambda: "answer")
        with monkeypatch.context() as patched:
            patched.setattr(ray, "get", get)
            try:
                assert first_answer(driver.coordinator, terminal, driver.log, 600.0) == ""
            finally:
                told.append(terminal.file.getvalue())

    told = []
    answers.append("")
    run(trials=start)
    with pytest.raises(Away, match=r"^Ray does not answer"):
        run(trials=start)
    assert asked == [60.0, 60.0, 600.0]
    assert told[0] == ""
    assert "has not started the study's coordinator on" in told[1]
    assert "sweep.log may tell what it lacks" in told[1]


def test_storage_that_fails_is_told_as_such(run):
    with pytest.raises(Away, match=r"The storage of the study .* fails: no space"):
        run(trials=failing(OSError("no space")))


def test_ctrl_c_while_groups_are_waited_for_shuts_ray_down_and_the_study_has_stopped(run):
    def interrupted(driver):
        driver.stop.interrupts = 1

    def again(seconds):
        raise KeyboardInterrupt

    assert run(trials=interrupted, wait=again) == 130
    assert not run.up["ray"]
    assert run.status() == "stopped"


def test_epochs_are_ended_after_ctrl_c_however_long_they_take(run):
    waited = []

    def interrupted(driver):
        driver.stop.interrupts = 1

    run(wait=waited.append)
    run(trials=interrupted, wait=waited.append)
    assert waited == [10.0, math.inf]


def test_a_restarted_coordinator_takes_nothing_off_what_was_trained(run):
    counts = [(5, 2), (7, 2), (0, 1), (4, 1), (4, 1)]
    run.snapshots = iter([Snapshot(trained=trained, taken_over=taken) for trained, taken in counts])
    told = []
    run(trials=lambda driver: told.extend(driver._status("running").stages for _ in counts))
    assert [(each.trained, each.taken_over) for each in told] == [(5, 2), (7, 2), (7, 3), (11, 3), (11, 3)]


def test_an_error_that_nobody_expects_does_not_end_the_watch_over_a_study(run, monkeypatch, caplog):
    monkeypatch.setattr(module, "STATUS_SECONDS", 0.0)
    seen = []

    def watched(driver):
        def tend():
            seen.append(driver)
            if len(seen) == 1:
                raise IndexError("list index out of range")
            driver.closing.set()

        driver._tend_nodes, driver._tend_groups = tend, lambda: None
        driver._watch(Console(file=io.StringIO()))

    assert run(trials=watched) == 0
    assert len(seen) == 2
    assert "IndexError: list index out of range" in caplog.text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of which every trial has its record."""
    return judged_stages.finished(tmp_path_factory.mktemp("whole"), trials=3)


def again(folder, out, **study):
    """The same sweep once more, without Ray: nothing is left to run."""
    images = types.SimpleNamespace(table={"magnification": judged_stages.MAGNIFICATIONS}, dataset=breakhis())
    bound = replace(made_stages.bound(judged_stages.space(**study)), prepared=images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Driver, "run", failing(AssertionError("trials would run")))
        return sweep(bound, Options(out=folder.location), Console(file=out))


@pytest.mark.parametrize("left", ["killed", "damaged", "lost", "of more trials", "of a confirmation"])
def test_a_study_of_which_nothing_is_left_to_run_gets_a_last_status(whole, tmp_path, left):
    folder = StudyFolder(str(shutil.copytree(whole, tmp_path / "study")))
    study, out = {"trials": 2 if left == "of more trials" else 3}, io.StringIO()
    ended = TrialCounts(total=4, complete=3, running=1)
    before = Status(state="running", elapsed=60.0, trials=ended, stages=StageCounts(trained=7))
    replicates = TrialCounts(total=2, complete=2)
    {
        "killed": lambda: before.write(folder),
        "damaged": lambda: folder.write(folder.status, b"{"),
        "lost": lambda: None,
        "of more trials": lambda: replace(before, state="finished").write(folder),
        "of a confirmation": lambda: replace(before, state="finished", replicates=replicates).write(folder),
    }[left]()
    assert again(folder, out, **study) == 0
    status = Status.read(folder)
    assert (status.state, status.best.trial != "") == ("finished", True)
    assert (status.trials.total, status.trials.ended) == (study["trials"], 3)
    assert (status.refits.complete, status.chains.complete) == (2, 4 * 4)
    assert (status.elapsed, status.stages.trained) == ((0.0, 0) if left in ("damaged", "lost") else (60.0, 7))
    assert status.replicates == (replicates if left == "of a confirmation" else TrialCounts())
    replace(status, pid=7).write(folder)
    assert again(folder, out, **study) == 0
    assert Status.read(folder).pid == 7, "the last status stands"


def sentences(out):
    return out.getvalue().replace("\n", " ")


def test_rows_that_are_lost_are_told_and_written_anew_by_the_next_sweep(whole, tmp_path):
    folder, out = StudyFolder(str(shutil.copytree(whole, tmp_path / "study"))), io.StringIO()
    before = read_rows(folder).sort_values(list(ROWS.names), ignore_index=True).astype(str)
    assert load(folder.location).notes == []
    folder.delete(folder.rows)
    (told,) = load(folder.location).notes
    assert told.startswith("The rows of 18 trials are lost (joint-i1, ")
    assert again(folder, out, trials=3) == 0
    assert "The rows of 18 trials were lost or damaged and were written anew from their stages." in sentences(out)
    assert load(folder.location).notes == []
    assert read_rows(folder).sort_values(list(ROWS.names), ignore_index=True).astype(str).equals(before)


@pytest.mark.parametrize("place", ["rows", "trials"])
def test_a_damaged_part_is_set_aside_when_its_trials_are_there_again(whole, tmp_path, place):
    folder, out = StudyFolder(str(shutil.copytree(whole, tmp_path / "study"))), io.StringIO()
    records = {name: folder.read(f"trials/{name}") for name in folder.names(folder.trials)}
    compact(folder)
    part = f"{place}/part-000001.parquet"
    content = folder.read(part)[:-9]
    folder.write(part, content)
    assert "damaged" in load(folder.location).notes[0]
    for name, record in records.items():  # as after the chains have run again
        folder.write(f"trials/{name}", record)
    assert again(folder, out, trials=3) == 0
    assert f"A damaged file was set aside as {part}.damaged" in sentences(out)
    assert folder.read(f"{part}.damaged") == content
    assert load(folder.location).notes == []
    assert len(load(folder.location).rows) > 0


def test_of_rows_whose_stages_are_lost_too_the_damaged_part_stays(whole, tmp_path):
    folder, out = StudyFolder(str(shutil.copytree(whole, tmp_path / "study"))), io.StringIO()
    record = read_trials(folder).query("kind == 'inner'").iloc[-1]
    compact(folder)
    folder.write("rows/part-000001.parquet", b"")
    folder.delete(f"stages/{record['stages'][1]}")
    assert again(folder, out, trials=3) == 0
    damaged, lost = load(folder.location).notes
    assert damaged.startswith("rows/part-000001.parquet is damaged and was left out")
    assert record["trial"] in lost


def test_storage_that_fails_while_a_file_is_read_sets_no_file_aside(whole, tmp_path, monkeypatch):
    folder = StudyFolder(str(shutil.copytree(whole, tmp_path / "study")))
    compact(folder)
    monkeypatch.setattr(rows, "_read_files", lambda *of: dict.fromkeys(of[2], OSError(5, "Input/output error")))
    assert set_aside(folder, "rows") == set_aside(folder, "trials") == []
