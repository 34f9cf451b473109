"""A study as a job of a Ray cluster, with a `ray` that says how it was called, and on a real one with a token."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from kdtvit_ray.arguments import parser
from tests.cluster.real_sweeps import logged, until
from tests.clusters.commands import CLUSTERS, command, on_path, python


def submit(*arguments, **environment):
    return subprocess.run(["bash", CLUSTERS / "submit.sh", *arguments], env=environment, capture_output=True, text=True)


def test_the_job_is_a_sweep_that_the_command_line_takes(tmp_path):
    command(tmp_path / "bin", "ray", 'printf "%s\\n" "$@"')
    environment = on_path(tmp_path / "bin", RAY_ADDRESS="http://head:8265")
    done = submit("breakhis", "s3://b/data", "/shared/study", "--groups", "8", "--stages", "/lab", **environment)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:2] == ["job", "submit"]
    assert set(json.loads(words[words.index("--runtime-env-json") + 1])) == {"env_vars"}
    script, *sweep = words[words.index("--") + 2 :]
    assert (CLUSTERS / script).is_file()
    asked = parser().parse_args(sweep[1:])
    assert (asked.space, asked.data, asked.out, asked.groups) == ("breakhis", "s3://b/data", "/shared/study", 8)
    assert asked.takeover


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("breakhis", "/data"), "expected SPACE DATA STUDY; found 2 arguments"),
        (("breakhis", "data", "/study"), "'data' is relative"),
        (("breakhis", "/data", "studies/x"), "'studies/x' is relative"),
        (("mine.toml", "/data", "/study"), "'mine.toml' is relative"),
        (("breakhis", "/data", "/study", "--groups", "8", "--stages", "lab/stages"), "'lab/stages' is relative"),
        (("breakhis", "/data", "/study", "--stages=lab/stages", "--groups", "8"), "'lab/stages' is relative"),
    ],
)
def test_what_the_cluster_would_not_find_is_refused(arguments, told):
    done = submit(*arguments, **{**os.environ, "RAY_ADDRESS": "http://head:8265"})
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_an_address_is_asked_for():
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    assert "RAY_ADDRESS is not set" in submit("breakhis", "/data", "/study", **environment).stderr


@pytest.fixture
def cluster(tmp_path):
    """A Ray of this machine that asks for a token: the environment of those who have it, with the server's address."""
    pytest.importorskip("aiohttp", reason="job submission needs ray[default]: pip install '.[cluster]'")
    folder, temp = tmp_path / "bin", f"/tmp/kdtvit-submit-{os.getpid()}"
    python(folder, "ray", "ray.scripts.scripts")
    python(folder, "kdtvit-ray", "tests.clusters.noop_cli")
    known = on_path(
        folder,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN="a" * 64,
        NOOP_LOG=str(tmp_path / "stages"),
        NOOP_SECONDS="0.1",
        RAY_USAGE_STATS_ENABLED="0",
    )
    port, dashboard = 21_000 + os.getpid() % 1000, 22_000 + os.getpid() % 1000
    head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"]
    head += ["--port", str(port), "--dashboard-port", str(dashboard), "--temp-dir", temp]
    head += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
    with (tmp_path / "head").open("w") as output:
        process = subprocess.Popen(head, env=known, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{dashboard}"
    until(lambda: process.poll() is not None or answers(address))
    assert process.poll() is None, (tmp_path / "head").read_text()
    yield {**known, "RAY_ADDRESS": address}
    process.terminate()
    process.wait()
    subprocess.run(["rm", "-rf", temp], check=True)


def answers(address):
    """Whether the job server is there; it asks for a token."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    raise AssertionError("the job server answers without a token")


def jobs(environment, *arguments):
    done = subprocess.run(["ray", "job", *arguments], env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_submitted_study_finishes_also_after_a_stop_and_nobody_submits_without_the_token(cluster, tmp_path):
    out = tmp_path / "study"
    others = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH")}
    refused = submit("breakhis", "/data", str(out), **others, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "nauth" in refused.stdout + refused.stderr

    many = ("breakhis", "/data", str(out), "--trials", "14")
    done = submit(*many, **cluster)
    assert done.returncode == 0, done.stderr
    first = re.search(r"raysubmit_\w+", done.stdout)[0]
    until(lambda: len(logged(tmp_path / "stages")) >= 2)
    jobs(cluster, "stop", first)
    assert "Stopped. The same command goes on from here." in jobs(cluster, "logs", first)
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"

    done = submit(*many, **cluster)
    second = re.search(r"raysubmit_\w+", done.stdout)[0]
    told = jobs(cluster, "logs", "--follow", second)
    assert f"Job '{second}' succeeded" in told
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
