"""Faults, by killing real processes of real sweeps on a real local Ray. Stages sleep instead of training; what they
"measure" is fixed by their key, so a disturbed study must end with the very rows of an undisturbed one."""

import os
import random
import signal
import time
from collections import Counter

import pandas as pd
import pytest

from tests.cluster.real_sweeps import STUDY, Sweep, family, logged, same, sweep_log, trials, until, wait_for_end

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "study"
    sweep = Sweep(out)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    counted = Counter(key for key, _, _ in sweep.stages())
    assert set(counted.values()) == {1}, "a stage was trained twice"
    frame = trials(out)
    assert set(counted) == {key for keys in frame["stages"] for key in keys}, "trained and distinct stages differ"
    assert sum(map(len, frame["stages"])) > len(counted)
    return out


def distinct_stages(undisturbed):
    return len({key for key, _, _ in logged(f"{undisturbed}.stages")})


def kill_in_the_middle(out, sweep):
    """Kill the driver; nothing unfinished may be visible after it."""
    assert sweep.process.poll() is None, "the study has ended: there is nothing left to kill"
    sweep.kill()
    assert not list((out / "stages").glob("*/stage.json.*"))


def test_killed_interrupted_and_interrupted_twice_it_ends_with_the_undisturbed_rows(tmp_path, undisturbed):
    """One study in four sessions: the driver is killed; Ctrl-C stops at an epoch's end; Ctrl-C twice stops at once; one
    group of workers finishes what two have begun. While the first session runs, a second one is refused."""
    out = tmp_path / "study"
    sweep = Sweep(out, seconds="0.3")
    until((out / "lock.json").exists)
    code, output = Sweep(out).wait()
    assert code == 2
    assert f"process {sweep.process.pid} on host" in output
    sweep.until_stages(1)
    kill_in_the_middle(out, sweep)

    sweep = Sweep(out, seconds="0.3")
    sweep.until_stages(len(sweep.stages()) + 2)
    others = family(sweep.process.pid)
    assert len(others) > 5
    sweep.process.send_signal(signal.SIGINT)
    code, output = sweep.wait()
    assert code == 130, output
    assert "Ctrl-C again stops at once" in output
    assert "The same command goes on" in output
    wait_for_end(others)

    sweep = Sweep(out, seconds="0.3", groups=1)
    sweep.until_stages(len(sweep.stages()) + 1)
    others = family(sweep.process.pid)
    sweep.process.send_signal(signal.SIGINT)
    sweep.process.send_signal(signal.SIGINT)
    code, output = sweep.wait()
    assert code == 130, output
    wait_for_end(others)

    sweep = Sweep(out, groups=1)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    same(out, undisturbed)
    again = len(sweep.stages()) - distinct_stages(undisturbed)
    assert again <= 3, "more than one stage per group that was stopped at once was trained again"


@pytest.mark.slow
def test_the_driver_killed_twenty_times_ends_with_the_undisturbed_rows(tmp_path, undisturbed):
    rng = random.Random(1)
    out = tmp_path / "study"
    distinct, kills = distinct_stages(undisturbed), 20
    for _ in range(kills):
        sweep = Sweep(out, seconds="0.5")
        if rng.random() < 0.8:  # else somewhere in the start
            sweep.until_stages(min(len(sweep.stages()) + 1, distinct))
        time.sleep(rng.uniform(0, 1.5))
        kill_in_the_middle(out, sweep)
    sweep = Sweep(out)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    same(out, undisturbed)
    assert len(sweep.stages()) <= distinct + 2 * kills, "more than one stage per group per kill was trained again"


def test_killed_workers_controllers_tasks_and_coordinators_change_nothing(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2}')  # with more there would be room for what is not freed
    out = tmp_path / "study"
    sweep = Sweep(out, seconds="0.2")
    sweep.until_stages(3)
    worker = sweep.stages()[-1][2]
    os.kill(worker, signal.SIGKILL)
    # what holds a group: both groups lose it, and what they had reserved has to come free
    for stages, word in (
        (8, "TrainController"),
        (13, "ray::group-"),
        (18, "TrainController"),
        (23, "CoordinatorActor"),
    ):
        sweep.until_stages(stages)
        found = [pid for pid, command in family(sweep.process.pid).items() if word in command]
        assert found, word
        os.kill(min(found), signal.SIGKILL)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    same(out, undisturbed)
    counted = Counter(key for key, _, _ in sweep.stages())
    assert set(counted.values()) == {1}, "a finished stage was run again"


@pytest.mark.slow
def test_a_stage_damaged_between_two_sessions_is_trained_again(tmp_path, undisturbed):
    out = tmp_path / "study"
    code, output = Sweep(out, {**STUDY, "trials": 4}).wait()
    assert code == 0, output
    for path in (out / "stages").glob("*/stage.json"):
        path.write_text("{")
    sweep = Sweep(out)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    assert "Traceback" not in output
    frame = trials(out)
    assert set(frame["state"]) == {"complete"}
    pd.testing.assert_frame_equal(frame, trials(undisturbed))
    retrained = [key for key, count in Counter(key for key, _, _ in sweep.stages()).items() if count > 1]
    assert retrained, "no later trial wanted a stage of the first ones"


def test_a_finished_study_is_done_in_seconds_and_an_edited_space_is_refused(undisturbed):
    before = len(logged(f"{undisturbed}.stages"))
    code, output = Sweep(undisturbed).wait()
    assert code == 0
    assert "is finished" in output
    assert len(logged(f"{undisturbed}.stages")) == before
    code, output = Sweep(undisturbed, {**STUDY, "lag": 5}).wait()
    assert code == 2
    assert "[study] lag was 4, is 5" in output
