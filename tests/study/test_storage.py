"""A whole study on an S3 endpoint, a real server on loopback, with the driver killed in the middle."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_rows, read_trials
from tests.study.test_faults import STUDY, Sweep, same, trials

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def bucket(monkeypatch):
    """URI of a folder in a bucket of an S3 server that lives as long as the test."""
    server = shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if server is None:
        pytest.skip("no moto_server beside this Python")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    process = subprocess.Popen(
        [server, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end
            time.sleep(0.1)
        from pyarrow import fs

        options = {"endpoint_override": f"127.0.0.1:{port}", "scheme": "http"}
        fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir("bucket")
        yield f"s3://bucket/study?endpoint_override={options['endpoint_override']}&scheme=http"
    finally:
        process.kill()
        process.wait()


def test_a_study_on_s3_killed_in_the_middle_ends_with_the_rows_of_a_local_one(bucket, tmp_path):
    local = tmp_path / "local"
    study = {**STUDY, "trials": 6, "baselines": ["joint"]}
    sweep = Sweep(local, study)
    code, output = sweep.wait()
    assert code == 0, output

    log = tmp_path / "remote"
    sweep = Sweep(bucket, study, log=log)
    sweep.until_stages(4)
    sweep.kill()
    folder = StudyFolder(bucket)
    assert folder.names("stages"), "nothing of the killed study is there"
    sweep = Sweep(bucket, study, log=log)
    code, output = sweep.wait()
    assert code == 0, output
    same(bucket, local)
    assert len(read_rows(folder)) > 0
    pd.testing.assert_frame_equal(trials(bucket), trials(local))
    assert set(read_trials(folder)["state"]) == {"complete"}
    told = subprocess.run(
        [sys.executable, "-m", "kdtvit_ray", "status", bucket], capture_output=True, text=True, check=True
    )
    assert "6 of 6 done" in told.stdout
