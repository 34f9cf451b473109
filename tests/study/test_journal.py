"""The journal: a copy of the search that Optuna reads, and that stops no study."""

import json
from pathlib import Path

import optuna
import pytest

from kdtvit_ray.study.journal import Journal
from kdtvit_ray.study.search import Outcome, Search
from tests.study.test_inner_folds import finish, open_ledger, records
from tests.study.test_search import quality, space


def test_the_journal_mirrors_told_trials_once_and_optuna_reads_it(tmp_path):
    path = str(tmp_path / "journal.log")
    suggested = []
    for session in range(2):
        journal = Journal(path, "study")
        search = Search(space(trials=8), journal.add)
        if session:
            for number, params in enumerate(suggested):
                search.restore(number, params, Outcome("complete", (quality(params),)))
        suggested = []
        while found := search.suggest():
            suggested.append(found[1])
            search.end(found[0], Outcome("complete", (quality(found[1]),)))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    study = optuna.load_study(study_name="study", storage=storage)
    assert len(study.trials) == 8
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    assert study.best_value == max(trial.value for trial in study.trials)


def test_a_damaged_journal_stops_nothing(tmp_path):
    path = tmp_path / "journal.log"
    path.write_bytes(b"\x00not json\n")
    journal = Journal(str(path), "study")
    search = Search(space(trials=1, lag=1), journal.add)
    number, _ = search.suggest()
    search.end(number, Outcome("complete", (0.5,)))
    assert search.study.trials[0].value == 0.5


def copied(path, name="study"):
    """The trials in a journal, as Optuna reads them."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    return optuna.load_study(study_name=name, storage=storage).trials


STUDY = {"trials": 5, "baselines": [], "racing": False}


@pytest.fixture
def killed(tmp_path):
    """The folder of a study that was killed in the middle of its search, after some trials were copied."""
    finish(open_ledger(tmp_path / "killed", **STUDY), most=15)
    assert copied(tmp_path / "killed/optuna/journal.log", "noop")
    return tmp_path / "killed"


def test_a_study_that_was_killed_while_a_line_was_written_goes_on_and_the_journal_is_whole(killed):
    path = killed / "optuna/journal.log"
    path.write_bytes(path.read_bytes()[:-20])
    ledger = open_ledger(killed, **STUDY)
    finish(ledger)
    assert ledger.finished()
    told = records(ledger).query("kind == 'search'")
    assert [trial.value for trial in copied(path, "noop")] == list(told["objective"])


def test_a_lock_that_a_killed_session_held_stops_nothing_though_the_folder_was_moved(killed, tmp_path, monkeypatch):
    (killed / "optuna/journal.log.lock").symlink_to(killed / "optuna/journal.log")
    moved = killed.rename(tmp_path / "moved")
    monkeypatch.setattr(
        "optuna.storages.journal._file.JournalFileSymlinkLock.acquire",
        lambda lock: Path(lock._lock_file).symlink_to(lock._lock_target_file),  # raises where it would wait
    )
    ledger = open_ledger(moved, **STUDY)
    assert ledger.searches[""].search.observer.__self__.study is not None, "the journal is used"
    assert not (moved / "optuna/journal.log.lock").is_symlink()


def test_a_journal_that_cannot_be_written_any_more_is_told_once(tmp_path, caplog, monkeypatch):
    journal = Journal(str(tmp_path / "journal.log"), "study")
    monkeypatch.setattr(journal.study, "add_trial", lambda trial: (_ for _ in ()).throw(OSError("the disk is full")))
    search = Search(space(trials=2, lag=1), journal.add)
    for _ in range(2):
        number, _ = search.suggest()
        search.end(number, Outcome("complete", (0.5,)))
    assert caplog.text.count("the disk is full") == 1


def test_starting_a_study_again_adds_no_line(tmp_path):
    for _ in range(3):
        Journal(str(tmp_path / "journal.log"), "study")
        Journal(str(tmp_path / "journal.log"), "study-joint")
    lines = [json.loads(line) for line in (tmp_path / "journal.log").read_text().splitlines()]
    assert [line["study_name"] for line in lines] == ["study", "study-joint"]


def test_results_that_are_told_as_they_come_are_copied_once_each(tmp_path):
    """A later session may tell them in another order than the one that copied them."""
    path, params = str(tmp_path / "journal.log"), {}
    first = Search(space(reproducible=False, trials=3, lag=2), Journal(path, "study").add)
    for _ in range(2):
        number, params[number] = first.suggest()
    first.end(1, Outcome("complete", (0.1,)))  # and here it is killed
    later = Search(space(reproducible=False, trials=3, lag=2), Journal(path, "study").add)
    later.restore(1, params[1], Outcome("complete", (0.1,)))
    while (suggested := later.suggest()) is not None:
        later.end(suggested[0], Outcome("complete", (suggested[0] / 10,)))
    assert sorted(trial.value for trial in copied(path)) == [0.0, 0.1, 0.2]
