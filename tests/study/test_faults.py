"""Faults, by killing real processes of real sweeps on a real local Ray. Stages sleep instead of training; what they
"measure" is fixed by their key, so a disturbed study must end with the very rows of an undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_rows, read_trials

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

STUDY = {"trials": 14, "lag": 4, "seed": 3, "startup": 4}
ROOT = Path(__file__).parents[2]


class Sweep:
    """One sweep in a process of its own, in a session of its own, as from a shell."""

    def __init__(self, out, study=STUDY, *, seconds="0.05", log=None, **options):
        self.out = out
        self.log = Path(log or f"{out}.stages")
        environment = {**os.environ, "NOOP_SECONDS": seconds, "NOOP_LOG": str(self.log), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.study.noop", str(out), json.dumps(study),
             json.dumps({"groups": 2, "checkpoint_seconds": 0.0, "silence": 15.0, **options})],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def wait(self, timeout=240):
        output, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, output

    def stages(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def until_stages(self, count, timeout=120):
        end = time.monotonic() + timeout
        while len(self.stages()) < count:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end, f"only {len(self.stages())} stages: {sweep_log(self.out)}"
            time.sleep(0.05)

    def kill(self):
        others = family(self.process.pid)
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        wait_for_end(others, agents=False)


def sweep_log(out):
    path = Path(out) / "sweep.log"
    return path.read_text()[-3000:] if path.exists() else ""


def processes():
    """{pid: (parent's pid, command)} of all processes that live."""
    found = {}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            fields = (each / "stat").read_text().rpartition(")")[2].split()
            command = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(each.name)] = (int(fields[1]), command)
    return found


def family(pid):
    """{pid: command} of a process's descendants."""
    everyone, found = processes(), {pid: ""}
    while True:
        more = {
            child: command for child, (parent, command) in everyone.items() if parent in found and child not in found
        }
        if not more:
            return {child: command for child, command in found.items() if child != pid}
        found |= more


def wait_for_end(family, agents=True, timeout=60):
    """After a SIGKILL of the driver Ray's two agents notice the death of their raylet only after a minute; they hold
    nothing of a study."""

    def left():
        alive = processes()
        return [pid for pid in family if pid in alive and (agents or "Agent" not in alive[pid][1])]

    end = time.monotonic() + timeout
    while left() and time.monotonic() < end:
        time.sleep(0.2)
    assert not left(), "processes are left behind"


def table(out):
    """Rows of a study without what may differ: nothing may, save the times and costs that are not in rows."""
    frame = read_rows(StudyFolder(str(out)))
    text = {name: frame[name].astype(str) for name in ("study", "trial", "key", "trained", "split", "level", "metric")}
    return frame.assign(**text).sort_values(list(frame.columns)).reset_index(drop=True)


def trials(out):
    frame = read_trials(StudyFolder(str(out)))
    return frame.drop(columns=["started", "finished", "cost_seconds"])


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


def same(out, undisturbed):
    pd.testing.assert_frame_equal(table(out), table(undisturbed))
    pd.testing.assert_frame_equal(trials(out), trials(undisturbed))


def disturb_driver(tmp_path, undisturbed, kills, seed, seconds):
    rng = random.Random(seed)
    out = tmp_path / "study"
    distinct = len({key for key, _, _ in stages_of(undisturbed)})
    for kill in range(kills):
        sweep = Sweep(out, seconds=seconds)
        if rng.random() < 0.8:  # else somewhere in the start
            sweep.until_stages(min(len(sweep.stages()) + 1, distinct))
        time.sleep(rng.uniform(0, 1.5))
        assert sweep.process.poll() is None, f"the study ended after {kill} kills: there is nothing left to kill"
        sweep.kill()
        assert not list((out / "stages").glob("*/stage.json.*")), kill
    sweep = Sweep(out)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    same(out, undisturbed)
    assert len(sweep.stages()) <= distinct + 2 * kills, "more than one stage per group per kill was trained again"


def stages_of(out):
    path = Path(out).parent / f"{Path(out).name}.stages"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_driver_killed_twice_ends_with_the_undisturbed_rows(tmp_path, undisturbed):
    disturb_driver(tmp_path, undisturbed, kills=2, seed=0, seconds="0.2")


@pytest.mark.slow
def test_the_driver_killed_twenty_times_ends_with_the_undisturbed_rows(tmp_path, undisturbed):
    disturb_driver(tmp_path, undisturbed, kills=20, seed=1, seconds="0.5")


def test_a_killed_worker_and_a_killed_coordinator_change_nothing(tmp_path, undisturbed):
    out = tmp_path / "study"
    sweep = Sweep(out, seconds="0.2")
    sweep.until_stages(3)
    worker = sweep.stages()[-1][2]
    os.kill(worker, signal.SIGKILL)
    sweep.until_stages(8)
    coordinators = [pid for pid, command in family(sweep.process.pid).items() if "CoordinatorActor" in command]
    assert coordinators
    for pid in coordinators:
        os.kill(pid, signal.SIGKILL)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    same(out, undisturbed)
    counted = Counter(key for key, _, _ in sweep.stages())
    assert set(counted.values()) == {1}, "a finished stage was run again"


def test_ctrl_c_stops_at_an_epoch_and_twice_at_once_and_both_go_on(tmp_path, undisturbed):
    out = tmp_path / "study"
    sweep = Sweep(out, seconds="0.3")
    sweep.until_stages(2)
    others = family(sweep.process.pid)
    assert len(others) > 5
    sweep.process.send_signal(signal.SIGINT)
    code, output = sweep.wait()
    assert code == 130, output
    assert "Ctrl-C again stops at once" in output
    assert "The same command goes on" in output
    wait_for_end(others)
    first = len(sweep.stages())

    sweep = Sweep(out, seconds="0.3")
    sweep.until_stages(first + 1)
    others = family(sweep.process.pid)
    sweep.process.send_signal(signal.SIGINT)
    sweep.process.send_signal(signal.SIGINT)
    code, output = sweep.wait()
    assert code == 130, output
    wait_for_end(others)

    sweep = Sweep(out)
    code, output = sweep.wait()
    assert code == 0, output
    same(out, undisturbed)


def test_a_second_sweep_on_the_same_study_is_refused_by_name(tmp_path):
    out = tmp_path / "study"
    first = Sweep(out)
    end = time.monotonic() + 60
    while not (out / "lock.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    code, output = Sweep(out).wait()
    assert code == 2
    assert f"process {first.process.pid} on host" in output
    first.kill()


def test_a_finished_study_is_done_in_seconds_and_an_edited_space_is_refused(undisturbed):
    before = len(stages_of(undisturbed))
    code, output = Sweep(undisturbed).wait()
    assert code == 0
    assert "is finished" in output
    assert len(stages_of(undisturbed)) == before
    code, output = Sweep(undisturbed, {**STUDY, "lag": 5}).wait()
    assert code == 2
    assert "[study] lag was 4, is 5" in output
