"""A whole study on an S3 endpoint, a real server on loopback, with the driver killed in the middle."""

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_rows, read_trials
from kdtvit_ray.study.store import StageStore
from tests.cluster.real_sweeps import STUDY, Sweep, same, trials, until
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def bucket(monkeypatch):
    """URI of a folder in a bucket of an S3 server that lives as long as the test."""
    server = shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if server is None:
        pytest.skip("no moto_server beside this Python")
    port = free_port()
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    process = subprocess.Popen(
        [server, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:

        def answers():
            assert process.poll() is None, "the server has ended"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(answers)
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
    assert "6 of 6 ended" in told.stdout


class Proxy:
    """Forwards connections to an S3 server; while `away` it closes them, as a network or a server that is down."""

    def __init__(self, target):
        self.target, self.away, self.refused = target, False, 0
        self.open = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.away:
                self.refused += 1
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            self.open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            self.open.discard(each)
            each.close()

    def leave(self):
        self.away = True
        for each in list(self.open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxied(bucket):
    proxy = Proxy(int(bucket.partition("127.0.0.1:")[2].partition("&")[0]))
    yield (
        proxy,
        f"s3://key:topsecret@bucket/study?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{proxy.port}",
    )
    proxy.listener.close()


def one_sentence(output):
    """The last line, once nothing else than progress stands before it."""
    assert "Traceback" not in output, output
    return output.strip().splitlines()[-1]


def test_storage_that_comes_back_is_waited_for(proxied, tmp_path):
    proxy, location = proxied
    local = tmp_path / "local"
    study = {**STUDY, "trials": 6, "baselines": ["joint"]}
    code, output = Sweep(local, study).wait()
    assert code == 0, output
    sweep = Sweep(location, study, log=tmp_path / "remote")
    sweep.until_stages(4)
    proxy.leave()
    until(lambda: proxy.refused)
    time.sleep(5)
    proxy.away = False
    code, output = sweep.wait()
    assert code == 0, output
    same(location, local)
    assert "topsecret" not in output
    assert b"topsecret" not in StudyFolder(location).read("study.toml")


def test_storage_that_stays_away_ends_the_study_in_a_sentence_without_credentials(proxied, tmp_path):
    proxy, location = proxied
    sweep = Sweep(location, {**STUDY, "trials": 6}, log=tmp_path / "remote", pauses=[0.5, 1.0])
    sweep.until_stages(3)
    proxy.leave()
    code, output = sweep.wait()
    assert code == 75, output
    told = one_sentence(output)
    assert "s3://***@bucket" in told, told
    assert "failed 3 times" in told
    assert "topsecret" not in output


def test_a_full_disk_ends_the_study_in_a_sentence_and_leaves_no_torn_stage(tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        monkeypatch.setenv("NOOP_BYTES", "1000000")
        out = small / "study"
        sweep = Sweep(out, {**STUDY, "trials": 6}, log=tmp_path / "stages", pauses=[0.2])
        code, output = sweep.wait()
        assert code == 75, output
        assert "No space left on device" in one_sentence(output)
        folder = StudyFolder(str(out))
        store = StageStore(folder)
        keys = store.keys()
        assert 1 <= len(keys) <= 8, "eight fit into 8 MiB"
        for key in keys:
            assert len(store.state(key)["ballast"]) == 1_000_000
        assert not list(out.rglob("*.partial"))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
