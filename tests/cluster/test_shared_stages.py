"""Several studies with one store of stages, with real Ray."""

import shutil
import subprocess
import sys

import pytest

from tests.cluster.real_sweeps import STUDY, Sweep, same, sweep_log
from tests.cluster.test_nodes import status

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_two_sweeps_at_once_on_one_store_killed_and_resumed_train_each_stage_once(tmp_path):
    """Their baselines and first stages are the same, and they search differently."""
    studies = {
        name: {**STUDY, "trials": 6, "sampler": sampler} for name, sampler in (("one", "tpe"), ("two", "random"))
    }
    shared, log = str(tmp_path / "lab"), tmp_path / "both.stages"
    plain, needed = {}, {}
    for name, study in studies.items():
        plain[name] = Sweep(tmp_path / f"plain-{name}", study, groups=1)
        code, output = plain[name].wait()
        assert code == 0, output
        needed[name] = {key for key, _, _ in plain[name].stages()}
    both = needed["one"] & needed["two"]
    assert both, "there is something to share"

    def start(name):
        return Sweep(tmp_path / name, studies[name], seconds="0.2", log=log, groups=1, stages=shared)

    first, second = start("one"), start("two")
    first.until_stages(4)
    first.kill()  # with a claim on the stage that it trained
    again = start("one")
    for sweep in (again, second):
        code, output = sweep.wait()
        assert code == 0, output + sweep_log(sweep.out)
    for name in studies:
        same(tmp_path / name, tmp_path / f"plain-{name}")
    counted = [key for key, _, _ in again.stages()]
    assert set(counted) == needed["one"] | needed["two"]
    assert len(counted) == len(set(counted)), "nothing was trained twice"
    assert sum(status(tmp_path / name)["stages"]["taken_over"] for name in studies) >= 1

    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(tmp_path / "two", moved)
    shutil.rmtree(shared)
    code, output = Sweep(moved, {**studies["two"], "trials": 7}, groups=1).wait()
    assert code == 0, output + sweep_log(moved)
    told = subprocess.run([sys.executable, "-m", "kdtvit_ray", "status", moved], capture_output=True, text=True)
    assert "7 of 7 ended" in told.stdout
