"""Nodes that live and are wrong, or small, on a real Ray cluster in processes of this machine."""

import re
import subprocess
import sys

import pytest

from kdtvit_ray.recipe import RECIPE_VERSION
from tests.cluster.real_sweeps import ROOT, STUDY, Sweep, same, sweep_log, until
from tests.cluster.test_nodes import Nodes, status

STUDY_HERE = {**STUDY, "trials": 6, "baselines": ["joint"]}
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

MISSING = """
import sys


class Missing:
    def find_spec(self, name, *_):
        if name == "kdtvit_ray":
            raise ModuleNotFoundError("No module named 'kdtvit_ray'", name=name)


sys.meta_path.insert(0, Missing())
"""
OLD = """
import kdtvit_ray.recipe

kdtvit_ray.recipe.RECIPE_VERSION = 1
"""


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name, code in (("bare", MISSING), ("old", OLD)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sitecustomize.py").write_text(code)
    started = Nodes(NOOP_SECONDS="0.1", NOOP_LOG=str(tmp_path / "study.stages"), PYTHONPATH=str(ROOT))
    yield started
    if started.process.poll() is None:
        started.close()


BAD = ("bare", "old", "sick")


def add_bad_nodes(nodes, tmp_path):
    """A node without the package, one with an older recipe, one on which every stage fails."""
    nodes.tell("add", "bare", 1, 0, f"PYTHONPATH={tmp_path / 'bare'}:{ROOT}")
    nodes.tell("add", "old", 1, 0, f"PYTHONPATH={tmp_path / 'old'}:{ROOT}")
    nodes.tell("add", "sick", 1, 0, "NOOP_SICK=node", f"PYTHONPATH={ROOT}")


def start(nodes, out, **more):
    """A sweep that has joined the cluster. It joins by any node of its host, so the head has to be the only one."""
    sweep = Sweep(out, STUDY_HERE, seconds="0.1", address=nodes.address, groups=0, **more)
    until(lambda: status(out).get("groups_wanted") or sweep.process.poll() is not None)
    return sweep


def test_bad_nodes_are_set_aside_with_their_reasons_and_the_table_is_the_same(nodes, tmp_path):
    plain = tmp_path / "plain"
    code, output = Sweep(plain, STUDY_HERE, groups=1).wait()
    assert code == 0, output

    out = tmp_path / "study"
    sweep = start(nodes, out)
    add_bad_nodes(nodes, tmp_path)
    nodes.tell("add", "good", 1, 0)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    same(out, plain)
    told = " ".join(status(out)["aside"])
    assert "No module named 'kdtvit_ray'" in told
    assert "its kdtvit-ray has training recipe 1, the driver's" in told
    assert re.search(r"\d stages failed on it, last with: RuntimeError: node is broken", told)
    shown = subprocess.run([sys.executable, "-m", "kdtvit_ray", "status", out], capture_output=True, text=True)
    assert "node is broken" in shown.stdout


def test_a_study_without_a_node_that_works_stops_with_the_reasons_and_goes_on_when_one_joins(nodes, tmp_path):
    out = tmp_path / "study"
    sweep = start(nodes, out, node_wait=5.0)
    add_bad_nodes(nodes, tmp_path)
    code, output = sweep.wait()
    assert code == 75, output
    assert "No node works: " in output
    assert "Traceback" not in output
    for name in BAD:
        nodes.tell("kill", name)
    (out / "status.json").unlink()
    again = start(nodes, out)
    add_bad_nodes(nodes, tmp_path)
    until(lambda: len(status(out).get("aside", ())) == 3)
    nodes.tell("add", "good", 1, 0)
    code, output = again.wait()
    assert code == 0, output + sweep_log(out)


def test_a_cluster_that_runs_in_another_environment_than_the_command_is_told(nodes, tmp_path):
    nodes.close()
    old = Nodes(PYTHONPATH=f"{tmp_path / 'old'}:{ROOT}")
    try:
        code, output = Sweep(tmp_path / "study", STUDY_HERE, address=old.address, groups=1).wait()
    finally:
        old.close()
    assert code == 2, output
    other = f"its kdtvit-ray has training recipe 1, the driver's {RECIPE_VERSION}"
    assert f"runs in another environment than this command: {other}" in output


def test_more_than_fifty_trials_in_flight_leave_a_cluster_of_one_cpu_to_its_group(nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("NOOP_OPEN", "60")  # as with 30 groups
    out = tmp_path / "study"
    study = {**STUDY_HERE, "trials": 60, "lag": 60, "startup": 60, "sampler": "random", "baselines": []}
    nodes.tell("add", "only", 1, 0)
    sweep = Sweep(out, study, seconds="0.1", address=nodes.address, groups=1)
    flown = 0

    def ended():
        nonlocal flown
        flown = max(flown, status(out).get("trials", {}).get("running", 0))
        return sweep.process.poll() is not None

    until(ended)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    assert flown > 50
