"""Failed trials that are run again: those that the machines are to blame for, others by name."""

import json

import pytest

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import compact, read_trials
from kdtvit_ray.study.ledger import Ledger
from kdtvit_ray.study.retries import Retried
from tests.study import judged_stages, test_inner_folds, test_ledger


def records(folder):
    return read_trials(StudyFolder(str(folder))).set_index("trial")


def failing(tmp_path):
    """A study of which two trials failed, one by the infrastructure."""
    ledger = test_ledger.open_ledger(tmp_path)
    for _ in range(50):
        ask = ledger.next()
        if ask is None:
            break
        test_ledger.train(ledger, ask)
        fault = {"t0001": "infrastructure", "t0002": "stage"}.get(ask.trial, "")
        ledger.ended(ask.trial, "failed" if fault else "complete", 1 if fault else len(ask.stages), "why", fault)
    return ledger


def test_the_two_kinds_of_failure_are_told_apart(tmp_path):
    counts = failing(tmp_path).counts()["search"]
    assert (counts.failed, counts.infrastructure) == (2, 1)
    assert dict(records(tmp_path)["fault"].loc[["t0001", "t0002", "t0003"]]) == {
        "t0001": "infrastructure",
        "t0002": "stage",
        "t0003": "",
    }
    counts = test_ledger.open_ledger(tmp_path).counts()["search"]
    assert (counts.failed, counts.infrastructure) == (2, 1), "a later session knows as well"


@pytest.mark.parametrize("merged", [False, True])
def test_what_the_infrastructure_failed_is_run_again_with_its_own_parameters(tmp_path, merged):
    before = failing(tmp_path)
    params = dict(records(tmp_path)["params"])
    if merged:
        compact(before.folder)
    again = test_ledger.open_ledger(tmp_path, retried=Retried(infrastructure=True))
    assert again.left == 1
    ask = again.next()
    assert (ask.trial, dict(ask.params)) == ("t0001", json.loads(params["t0001"]))
    again.ended(ask.trial, "complete", test_ledger.train(again, ask))
    assert again.finished()
    found = records(tmp_path)
    assert dict(found["params"]) == params
    assert dict(found["state"].loc[["t0001", "t0002"]]) == {"t0001": "complete", "t0002": "failed"}
    told = [trial.state.name for trial in again.searches[""].search.study.trials]
    assert told == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_others_are_run_again_by_name(tmp_path):
    failing(tmp_path)
    with pytest.raises(UserError, match=r"--retry names t0099, of which .* no record; allowed: t0001, t0002"):
        test_ledger.open_ledger(tmp_path, retried=Retried(named=frozenset({"t0000", "t0099"})))
    again = test_ledger.open_ledger(tmp_path, retried=Retried(named=frozenset({"t0002"})))
    assert again.next().trial == "t0002"
    assert again.next() is None
    again = test_ledger.open_ledger(tmp_path, retried=Retried(True, frozenset({"t0002"})))
    assert {again.next().trial, again.next().trial} == {"t0001", "t0002"}


def test_the_command_that_was_stopped_midway_goes_on_with_those_that_are_left(tmp_path):
    failing(tmp_path)
    retried = Retried(named=frozenset({"t0001", "t0002"}))
    first = test_ledger.open_ledger(tmp_path, retried=retried)
    assert retried.note(first.records) == ""
    ask = first.next()
    first.ended(ask.trial, "complete", test_ledger.train(first, ask))
    again = test_ledger.open_ledger(tmp_path, retried=retried)
    assert again.next().trial == "t0002"
    assert again.next() is None
    assert retried.note(again.records) == "--retry runs failed trials again, and so leaves t0001 (complete)"


def test_a_named_chain_that_is_complete_by_now_leaves_its_setting_to_be_judged_again(tmp_path):
    ledger = test_inner_folds.open_ledger(tmp_path, racing=False, trials=4)
    while asks := list(iter(ledger.next, None)):  # those in flight together
        for ask in asks:
            if ask.trial.startswith("t0001-i"):
                ledger.ended(ask.trial, "failed", 0, "out of memory", "infrastructure")
            else:
                test_inner_folds.end(ledger, ask)
    found = records(tmp_path)
    failed = sorted(each for each in found.index[found["state"] == "failed"] if each.startswith("t0001-i"))
    assert len(failed) > 1
    space, retried = judged_stages.space(racing=False, trials=4), Retried(named=frozenset({failed[0]}))
    for expected in failed:  # the driver dies after each chain
        again = Ledger(StudyFolder(str(tmp_path)), space, (), judged_stages.MAGNIFICATIONS, retried)
        ask = again.next()
        assert ask.trial == expected
        test_inner_folds.end(again, ask)


def test_of_a_setting_only_the_chain_that_failed_is_run_again(tmp_path):
    ledger = test_inner_folds.open_ledger(tmp_path, racing=False, trials=4)
    while (ask := ledger.next()) is not None:
        if ask.trial == "t0001-i2":
            ledger.ended(ask.trial, "failed", 0, "its worker died", "infrastructure")
        else:
            test_inner_folds.end(ledger, ask)
    found = records(tmp_path)
    assert tuple(found.loc["t0001", ["state", "fault"]]) == ("failed", "infrastructure")

    space = judged_stages.space(racing=False, trials=4)
    again = Ledger(StudyFolder(str(tmp_path)), space, (), judged_stages.MAGNIFICATIONS, Retried(infrastructure=True))
    ran = []
    while (ask := again.next()) is not None:
        ran.append(ask.trial)
        test_inner_folds.end(again, ask)
    assert ran[0] == "t0001-i2"
    chains = [trial for trial in ran if not trial.endswith("-refit")]
    assert set(chains) <= {"t0001-i2", "t0001-i3", "t0001-i4"}, "the one before it is kept"
    found = records(tmp_path)
    assert tuple(found.loc["t0001", ["state", "fault"]]) == ("complete", "")
    assert again.finished()
