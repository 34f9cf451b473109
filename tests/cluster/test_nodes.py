"""Several nodes, on a real Ray cluster in processes of this machine: nodes that vanish and nodes that join."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from safetensors.torch import save_file

from kdtvit_ray.learning.models import build
from kdtvit_ray.paths import PREPARED_ABOUT
from kdtvit_ray.study.space import load_space
from tests.cluster.real_sweeps import ROOT, STUDY, Sweep, family, same, sweep_log, until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


class Nodes:
    """A cluster whose head has no CPU; commands wait until they are carried out."""

    def __init__(self, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.cluster_nodes"],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "RAY_AUTH_MODE": "disabled", **environment},
        )
        self.address = self._answer("address")[1]

    def _answer(self, word):
        for line in self.process.stdout:
            if line.startswith(word):
                return line.split()
        raise AssertionError("the cluster has ended")

    def tell(self, *command):
        self.process.stdin.write(" ".join(map(str, command)) + "\n")
        self.process.stdin.flush()
        self._answer("done")

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def crash(self):
        """Every process of the cluster is gone at once, its head included."""
        everyone = [*family(self.process.pid), self.process.pid]
        for pid in everyone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    started = []

    def start_one():
        # workers have the environment of the cluster's own processes
        started.append(Nodes(NOOP_SECONDS="0.3", NOOP_LOG=str(tmp_path / "study.stages"), PYTHONPATH=str(ROOT)))
        return started[-1]

    yield start_one
    for cluster in started:
        if cluster.process.poll() is None:
            cluster.close()


@pytest.fixture
def nodes(start):
    return start()


def status(out):
    path = out / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_a_study_outlives_its_nodes_waits_without_any_and_takes_new_ones(nodes, tmp_path):
    """One node dies, then the last one: the study waits, says so, and goes on when nodes join."""
    study = {**STUDY, "trials": 8, "baselines": ["joint"]}
    plain = tmp_path / "plain"
    code, output = Sweep(plain, study).wait()
    assert code == 0, output

    nodes.tell("add", "one", 1, 0)
    nodes.tell("add", "two", 1, 0)
    out = tmp_path / "study"
    sweep = Sweep(out, study, seconds="0.3", address=nodes.address, groups=0)
    sweep.until_stages(2)
    nodes.tell("kill", "one")
    count = len(sweep.stages())
    sweep.until_stages(count + 2)
    nodes.tell("kill", "two")
    until(lambda: not any(group["key"] for group in status(out)["groups"]))  # dead groups are shown no longer
    assert sweep.process.poll() is None, sweep_log(out)
    until(lambda: status(out)["groups_wanted"] > len(status(out)["groups"]))
    assert "1 CPU" in status(out)["group_needs"]
    nodes.tell("add", "three", 2, 0)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    same(out, plain)


def test_with_room_for_one_group_of_two_the_other_waits_and_the_study_ends(nodes, tmp_path):
    """Three CPUs, two groups of two workers each: half-placed groups must not hold each other up."""
    nodes.tell("add", "one", 3, 0)
    out = tmp_path / "study"
    study = {**STUDY, "trials": 4, "baselines": ["joint"]}
    sweep = Sweep(out, study, seconds="0.3", address=nodes.address, groups=2, workers=2)
    sweep.until_stages(2)
    told = status(out)
    assert (told["groups_wanted"], len(told["groups"])) == (2, 1)
    assert told["group_needs"] == "2 x 1 CPU at once"
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    assert {name for _, name, _ in sweep.stages()} == {told["groups"][0]["name"]}


def test_a_study_whose_whole_cluster_was_lost_goes_on_with_the_same_command_on_a_new_one(start, tmp_path):
    """Head and nodes die at once: the sweep ends by itself and says why; on another cluster it goes on."""
    study = {**STUDY, "trials": 6, "baselines": ["joint"]}
    plain = tmp_path / "plain"
    code, output = Sweep(plain, study).wait()
    assert code == 0, output

    first = start()
    first.tell("add", "one", 2, 0)
    out = tmp_path / "study"
    sweep = Sweep(out, study, seconds="0.3", address=first.address, groups=2)
    sweep.until_stages(3)
    trained = len(sweep.stages())
    first.crash()
    code, output = sweep.wait()
    assert code == 75, output
    assert f"kdtvit-ray: Ray's head at {first.address} has not answered for 30 s" in output
    assert "Traceback" not in output
    told = subprocess.run([sys.executable, "-m", "kdtvit_ray", "status", out], capture_output=True, text=True)
    assert "has not answered" in told.stdout
    second = start()
    second.tell("add", "one", 2, 0)
    sweep = Sweep(out, study, seconds="0.3", address=second.address, groups=2)
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    same(out, plain)
    assert len(sweep.stages()) <= len({key for key, _, _ in sweep.stages()}) + 2, "finished stages were trained again"
    assert trained >= 3


def test_four_groups_share_a_gpu(nodes, tmp_path):
    """As far as Ray's books go: a node that says it has a GPU, and stages that need none."""
    nodes.tell("add", "one", 4, 1)
    out = tmp_path / "study"
    study = {**STUDY, "trials": 30, "lag": 8, "sampler": "random", "baselines": ["joint"]}
    sweep = Sweep(out, study, address=nodes.address, groups=0, gpus_per_worker=0.25)
    sweep.until_stages(1)
    told = status(out)
    assert (told["groups_wanted"], told["group_needs"]) == (4, "0.25 GPU and 1 CPU")
    code, output = sweep.wait()
    assert code == 0, output + sweep_log(out)
    assert {name for _, name, _ in sweep.stages()} == {"1", "2", "3", "4"}


def test_each_node_copies_data_and_weights_once_for_all_its_groups(nodes, data, space, tmp_path):
    """Two nodes of two groups each, which do not see the folder that the sweep was started with."""
    here, plain, out = tmp_path / "here", tmp_path / "plain", tmp_path / "study"
    shutil.copytree(data, here / "prepared")
    save_file(build(load_space(str(space)).models["big"], seed=5).state_dict(), here / "big.safetensors")
    weights = '[models.big]\nweights = "big.safetensors"'
    (here / "small.toml").write_text(space.read_text().replace("[models.big]", weights))
    command = [sys.executable, "-m", "kdtvit_ray", "sweep", here / "small.toml", "--trials", "12", "--data"]
    command += [here / "prepared", "--out"]
    subprocess.run([*command, plain, "--groups", "2"], cwd=ROOT, check=True, capture_output=True)

    sweep = subprocess.Popen(
        [*command, out, "--address", nodes.address],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    until(lambda: list(out.glob("data/weights/*.safetensors")))
    until(lambda: status(out).get("group_needs") == "a node with CPUs or GPUs")
    here.rename(tmp_path / "elsewhere")
    for name in ("one", "two"):
        nodes.tell("add", name, 2, 0, f"KDTVIT_CACHE={tmp_path / name}")
    output, _ = sweep.communicate()
    assert sweep.returncode == 0, output + sweep_log(out)
    same(out, plain)
    copied = {each.parent.name for each in out.glob(f"data/*/{PREPARED_ABOUT}")}
    copied |= {each.name for each in out.glob("data/weights/*")}
    assert len(copied) == 2
    for name in ("one", "two"):
        there = {each.name for each in (tmp_path / name).iterdir()}
        (resized,) = {each for each in there if each.endswith(".npy")}  # one size, for all groups and folds
        assert there - {resized, f"{resized}.lock"} == copied | {f"{each}.lock" for each in copied}
