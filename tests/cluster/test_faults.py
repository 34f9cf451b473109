"""Faults, by killing real processes of real sweeps on a real local Ray. Stages sleep instead of training; what they
"measure" is fixed by their key, so a disturbed study must end with the very rows of an undisturbed one."""

import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter

import pandas as pd
import pytest

from tests.cluster import real_sweeps
from tests.cluster.real_sweeps import (
    Sweep,
    family,
    in_terminal,
    logged,
    same,
    sweep_log,
    trials,
    until,
    wait_for_end,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

STUDY = {**real_sweeps.STUDY, "lag": 2}  # every trial that may run at once is a process of Ray's more


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """(folder, what the terminal showed) of an undisturbed sweep of one group."""
    out = tmp_path_factory.mktemp("undisturbed") / "study"
    command = (sys.executable, "-m", "tests.cluster.noop", str(out), json.dumps(STUDY), json.dumps({"groups": 1}))
    code, written = in_terminal(*command, NOOP_SECONDS="0.05", NOOP_LOG=f"{out}.stages")
    assert code == 0, written + sweep_log(out)
    return out, written


@pytest.fixture(scope="module")
def undisturbed(shown):
    out, _ = shown
    counted = Counter(key for key, _, _ in logged(f"{out}.stages"))
    assert set(counted.values()) == {1}, "a stage was trained twice"
    frame = trials(out)
    assert set(counted) == {key for keys in frame["stages"] for key in keys}, "trained and distinct stages differ"
    assert sum(map(len, frame["stages"])) > len(counted)
    return out


def test_a_terminal_shows_the_live_view_and_nothing_of_rays(shown):
    out, written = shown
    assert "Started training worker group" in (out / "sweep.log").read_text(), "Ray had nothing to say"
    plain = re.sub(r"\x1b\[[0-9;?]*m", "", written)  # colours; what moves the cursor begins another line
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", plain)
    told = {line.strip() for line in plain.replace("\r", "").splitlines()} - {""}
    ours = {"Study", "noop", "trials", "baselines", "stages", "best", "40X", "groups", "group", "dtype", "time", "log"}
    path = str(out / "sweep.log")
    strange = [line for line in told if line.split()[0] not in ours and line not in path]
    assert not strange
    assert any("14 of 14 ended" in line for line in told)


def distinct_stages(undisturbed):
    return len({key for key, _, _ in logged(f"{undisturbed}.stages")})


def kill_in_the_middle(out, sweep):
    """Kill the driver; nothing unfinished may be visible after it."""
    assert sweep.process.poll() is None, "the study has ended: there is nothing left to kill"
    sweep.kill()
    assert not list((out / "stages").glob("*/stage.json.*"))


def kill_the_eldest(sweep, word):
    """Kill the oldest of the sweep's processes with this word in their command."""
    found = [pid for pid, command in family(sweep.process.pid).items() if word in command]
    assert found, word
    os.kill(min(found), signal.SIGKILL)


@pytest.mark.parametrize(
    "killed",
    [
        ("CoordinatorActor",),
        pytest.param(("TrainController", "ray::group-", "TrainController", "CoordinatorActor"), marks=pytest.mark.slow),
    ],
    ids=["once", "twice"],
)
def test_killed_and_interrupted_it_ends_with_the_undisturbed_rows(tmp_path, undisturbed, monkeypatch, killed):
    """One study in several sessions, on storage that takes as long as half of a stage. In the first one a worker dies
    while it saves a stage beside the next one, a worker and the coordinator are killed, in the slow form controllers
    and tasks too, and Ctrl-C stops it at an epoch's end; the driver is killed; in the slow form Ctrl-C twice stops a
    third one at once; the last one ends by itself. While the first session runs, a second one is refused. Two groups of
    workers begin what one finishes."""
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2}')  # with more there would be room for what is not freed
    monkeypatch.setenv("NOOP_SAVE_SECONDS", "0.3")
    monkeypatch.setenv("NOOP_DIES_SAVING", str(tmp_path / "died"))
    out = tmp_path / "study"
    sweep = Sweep(out, STUDY, seconds="0.2")
    until((out / "lock.json").exists)
    code, output = Sweep(out, STUDY).wait()
    assert code == 2
    assert f"process {sweep.process.pid} on host" in output

    sweep.until_stages(3)
    assert (tmp_path / "died").exists()
    worker = sweep.stages()[-1][2]
    os.kill(worker, signal.SIGKILL)
    # in the slow form what holds a group, both: what they had reserved has to come free
    for number, word in enumerate(killed):
        sweep.until_stages(8 + 5 * number)
        kill_the_eldest(sweep, word)
    sweep.until_stages(6 + 5 * len(killed))
    counted = Counter(key for key, _, _ in sweep.stages())
    assert set(counted.values()) == {1}, "a finished stage was run again"
    slow = len(killed) > 1
    if slow:
        others = family(sweep.process.pid)
        assert len(others) > 5
        sweep.process.send_signal(signal.SIGINT)
        code, output = sweep.wait()
        assert code == 130, output
        assert "Ctrl-C again stops at once" in output
        assert "The same command goes on" in output
        wait_for_end(others)
        counted = Counter(key for key, _, _ in sweep.stages())
        assert set(counted.values()) == {1}, "a finished stage was run again"
        sweep = Sweep(out, STUDY, seconds="0.2", groups=1)
        sweep.until_stages(len(sweep.stages()) + 1)
    kill_in_the_middle(out, sweep)

    if slow:
        sweep = Sweep(out, STUDY, seconds="0.2", groups=1)
        sweep.until_stages(len(sweep.stages()) + 1)
        others = family(sweep.process.pid)
        sweep.process.send_signal(signal.SIGINT)
        sweep.process.send_signal(signal.SIGINT)
        code, output = sweep.wait()
        assert code == 130, output
        wait_for_end(others)

    sweep = Sweep(out, STUDY, groups=1)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    same(out, undisturbed)
    again = len(sweep.stages()) - distinct_stages(undisturbed)
    assert again <= 2, "more than one stage per group that was stopped at once was trained again"


@pytest.mark.slow
def test_the_driver_killed_twenty_times_ends_with_the_undisturbed_rows(tmp_path, undisturbed):
    rng = random.Random(1)
    out = tmp_path / "study"
    distinct, kills = distinct_stages(undisturbed), 20
    for _ in range(kills):
        sweep = Sweep(out, STUDY, seconds="0.5")
        if rng.random() < 0.8:  # else somewhere in the start
            sweep.until_stages(min(len(sweep.stages()) + 1, distinct))
        time.sleep(rng.uniform(0, 1.5))
        kill_in_the_middle(out, sweep)
    sweep = Sweep(out, STUDY)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    same(out, undisturbed)
    assert len(sweep.stages()) <= distinct + 2 * kills, "more than one stage per group per kill was trained again"


@pytest.mark.slow
def test_a_stage_damaged_between_two_sessions_is_trained_again(tmp_path, undisturbed):
    out = tmp_path / "study"
    code, output = Sweep(out, {**STUDY, "trials": 4}).wait()
    assert code == 0, output
    for path in (out / "stages").glob("*/stage.json"):
        path.write_text("{")
    sweep = Sweep(out, STUDY)
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
    code, output = Sweep(undisturbed, STUDY).wait()
    assert code == 0
    assert "is finished" in output
    assert len(logged(f"{undisturbed}.stages")) == before
    code, output = Sweep(undisturbed, {**STUDY, "lag": 3}).wait()
    assert code == 2
    assert "[study] lag was 2, is 3" in output
