"""The sbatch script, run by bash with an srun and a scontrol that start several Ray nodes on this machine."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import ClassVar

import pytest
import ray

from tests.cluster.real_sweeps import family, logged, processes, same, sweep_log, until
from tests.clusters.commands import CLUSTERS, ROOT, command, on_path, python


class Job:
    """A SLURM job of two nodes with one CPU each."""

    running: ClassVar[list[subprocess.Popen]] = []

    def __init__(self, folder):
        self.folder, self.out, self.bin = folder, folder / "study", folder / "bin"
        folder.mkdir(exist_ok=True)
        for name in ("srun", "scontrol"):
            python(self.bin, name, "tests.clusters.fake_slurm", name)
        python(self.bin, "ray", "ray.scripts.scripts")
        python(self.bin, "kdtvit-ray", "tests.clusters.noop_cli")
        self.number = 1_000_000 + os.getpid() * 10 + int(time.time()) % 10
        self.addresses("::1 fd00::17", ray.util.get_node_ip_address())

    def addresses(self, *found):
        (self.folder / "addresses").write_text(" ".join(found))

    def start(self, *options, **more):
        environment = on_path(
            self.bin,
            FAKE_SLURM=str(self.folder),
            SLURM_SUBMIT_DIR=str(ROOT),
            SLURM_JOB_ID=str(self.number),
            SLURM_JOB_NODELIST="n[1-2]",
            SLURM_JOB_NUM_NODES="2",
            SLURM_CPUS_PER_TASK="1",
            NOOP_LOG=str(self.folder / "stages"),
            **more,
        )
        with (self.folder / "output").open("w") as output:
            process = subprocess.Popen(
                ["bash", str(CLUSTERS / "slurm.sh"), "breakhis", "/data", str(self.out), *options],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    @classmethod
    def end_all(cls):
        """End the jobs that a failed test has left."""
        for process in cls.running:
            if process.poll() is None:
                process.terminate()
                process.wait()
        cls.running.clear()

    def left(self):
        """Ray's processes of this job, wherever they are."""
        return [words for _, words in processes().values() if f"kdtvit-{self.number}/" in words]

    def calls(self):
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def told(self):
        return (self.folder / "output").read_text() + sweep_log(self.out)


@pytest.fixture
def job(tmp_path):
    if ray.util.get_node_ip_address().startswith("127."):
        pytest.skip("this machine has no address but its own")
    yield Job(tmp_path / "job")
    Job.end_all()


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_whose_groups_need_a_gpu_of_the_second_node_finishes(job):
    code = job.start("--gpus-per-worker", "1").wait()
    assert code == 0, job.told()
    assert json.loads((job.out / "status.json").read_text())["state"] == "finished"
    steps = [" ".join(each) for each in job.calls() if "--block" in " ".join(each)]
    assert [f"--port {20_000 + job.number % 10_000}" in each for each in steps] == [True, False]
    assert f"--address {ray.util.get_node_ip_address()}:{20_000 + job.number % 10_000}" in steps[1]
    assert all("--cpus-per-task=1 --no-kill" in each for each in steps)
    assert not [each for each in job.calls() if "requeue" in each]
    until(lambda: not job.left())
    assert not Path(f"/tmp/kdtvit-{job.number}").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_whose_time_is_up_or_whose_head_dies_is_put_into_the_queue_again(job, tmp_path):
    plain = Job(tmp_path / "plain")
    assert plain.start("--trials", "8").wait() == 0, plain.told()

    first = job.start("--trials", "8", NOOP_SECONDS="0.3")
    until(lambda: len(logged(job.folder / "stages")) >= 3 or first.poll() is not None)
    first.send_signal(signal.SIGUSR1)
    assert first.wait() == 130, job.told()
    assert job.calls()[-1] == ["scontrol", "requeue", str(job.number)]

    before = len(logged(job.folder / "stages"))
    second = job.start("--trials", "8", NOOP_SECONDS="0.3")
    until(lambda: len(logged(job.folder / "stages")) >= before + 2 or second.poll() is not None)
    heads = [pid for pid, words in family(second.pid).items() if "gcs_server" in words]
    for pid in heads:
        os.kill(pid, signal.SIGKILL)
    assert heads
    assert second.wait() == 75, job.told()
    assert [each for each in job.calls() if "requeue" in each] == [["scontrol", "requeue", str(job.number)]] * 2

    third = job.start("--trials", "8", NOOP_SECONDS="0.3")
    assert third.wait() == 0, job.told()
    same(job.out, plain.out)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_left_of_a_job_that_is_cancelled(job):
    process = job.start("--trials", "8", NOOP_SECONDS="0.3")
    until(lambda: logged(job.folder / "stages") or process.poll() is not None)
    assert job.left()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130, job.told()
    until(lambda: not job.left())
    assert not [each for each in job.calls() if "requeue" in each]


def test_a_head_that_ends_or_never_answers_is_told_within_bounds(job):
    command(job.bin, "ray", "exit 1")
    assert job.start().wait() == 2
    assert "Ray's head on n1 ended before it answered" in job.told()
    command(job.bin, "ray", "exec sleep 600")
    assert job.start(KDTVIT_START_SECONDS="1").wait() == 2
    assert "Ray's head on n1 did not answer at " in job.told()
    assert "within 1 s" in job.told()


@pytest.mark.parametrize(
    ("found", "address", "joined"),
    [
        ("10.0.0.7", "10.0.0.7", "10.0.0.7:"),
        ("fe80::1 2001:db8::7 10.0.0.7 10.1.0.7", "10.0.0.7", "10.0.0.7:"),
        ("127.0.1.1 ::1 2001:db8::7 2001:db8::8", "2001:db8::7", "[2001:db8::7]:"),
    ],
)
def test_the_heads_address_is_one_that_other_nodes_reach(job, found, address, joined):
    """IPv4 before IPv6, nothing that only the node itself reaches; an IPv6 address stands in brackets before a port."""
    job.addresses(found)
    command(job.bin, "ray", 'echo "ray $*"; exec sleep 600')
    command(job.bin, "timeout", "exit 1")  # nothing is asked at these addresses
    assert job.start(KDTVIT_START_SECONDS="1").wait() == 2
    assert f"--node-ip-address {address} " in job.told()
    assert f"did not answer at {joined}" in job.told()


def test_a_node_with_no_address_for_others_is_refused(job):
    job.addresses("127.0.1.1 ::1")
    assert job.start().wait() == 2
    assert "node n1 has no address that other nodes can reach" in job.told()


def test_arguments_that_are_missing_are_told(job):
    environment = on_path(job.bin, SLURM_SUBMIT_DIR=str(ROOT))
    done = subprocess.run(["bash", CLUSTERS / "slurm.sh", "breakhis"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "slurm.sh: expected SPACE DATA STUDY; found 1 arguments\n")
