"""The checks before a sweep: what is red and what to do, from made-up nodes, and on real Rays."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from kdtvit_ray.cluster import common_storage, diagnosis
from kdtvit_ray.cluster.common_storage import CommonStorage
from kdtvit_ray.cluster.diagnosis import GB, Cell, Diagnosis, Found, Needs
from kdtvit_ray.cluster.examination import Request, Sight, examine
from kdtvit_ray.cluster.probe import Probe, expected
from kdtvit_ray.data.prepared import open_prepared
from tests.cluster.real_sweeps import ROOT
from tests.cluster.test_bad_nodes import MISSING
from tests.cluster.test_nodes import Nodes
from tests.study import made_stages

WANTED = expected(made_stages.space().with_data("none").plan({})[0])
PROBE = Probe("a" * 56, "gpu-1.cluster.example", WANTED.versions, WANTED.recipe, WANTED.key)
SIGHT = Sight(PROBE, "/cache", 50 * GB, 20 * GB, storage_free=70 * GB, fingerprint="fits")
GOOD = Found(PROBE.node, PROBE.host, True, SIGHT, device=replace(PROBE, device="H100"), object_store=10.0 * GB)
NEEDS = Needs("fits", 5 * GB, storage=True)


def cells(found=GOOD, wanted=WANTED, needs=NEEDS, **seen):
    return diagnosis.of_node(wanted, replace(found, sight=replace(found.sight, **seen)) if seen else found, needs)


def reds(told):
    return {check: cell.trouble for check, cell in told.items() if cell.trouble}


def test_nothing_of_a_good_node_is_red():
    told = cells()
    assert not reds(told)
    assert [told[check].text for check in diagnosis.CHECKS] == [
        WANTED.versions["kdtvit-ray"],
        "H100",
        "50 GB",
        "70 GB",
        "here",
        "20 GB",
    ]
    assert not diagnosis.sets_aside(told)


OTHER_TORCH = {**WANTED.versions, "torch": "1.0"}


@pytest.mark.parametrize(
    ("check", "told", "trouble", "advice", "aside"),
    [
        (
            "package",
            cells(replace(GOOD, sight=None, error="ModuleNotFoundError: No module named 'kdtvit_ray'")),
            "No module named",
            f"pip install the driver's kdtvit-ray {WANTED.versions['kdtvit-ray']} there",
            True,
        ),
        ("package", cells(replace(GOOD, sight=None, error="no answer within 5 s")), "within 5 s", "start Ray", True),
        ("package", cells(probe=replace(PROBE, recipe=1)), "training recipe 1", "pip install the driver's kdt", True),
        ("package", cells(probe=replace(PROBE, key="another")), "another stage key", "pip install the driver's", True),
        (
            "package",
            cells(probe=replace(PROBE, versions=OTHER_TORCH)),
            "it has torch 1.0",
            f"pip install the driver's torch {WANTED.versions['torch']} there",
            False,
        ),
        ("device", cells(replace(GOOD, device=None, device_error="no answer")), "no answer", "ray status", True),
        (
            "device",
            cells(replace(GOOD, device=replace(PROBE, trouble="it sees none"))),
            "it sees none",
            "install a torch there that its driver can run",
            True,
        ),
        (
            "device",
            cells(wanted=replace(WANTED, mix=False, device="A100")),
            "its device is H100, and the study keeps to A100",
            "mix_devices = true",
            True,
        ),
        ("cache", cells(probe=replace(PROBE, trouble="no cache"), fingerprint=""), "no cache", "KDTVIT_CACHE", True),
        ("storage", cells(storage="it does not see it"), "it does not see it", "mount one folder", False),
        ("storage", cells(replace(GOOD, storage="nor does the driver")), "nor does", "s3://", False),
        ("storage", cells(storage_free=GB - 1), "has 1000 MB free; it needs 1.0 GB", "another --out", False),
        ("data", cells(data="it is damaged", fingerprint=""), "it is damaged", "delete it on that node", False),
        (
            "data",
            cells(fingerprint="other", cache_free=4 * GB),
            "the set takes 5.0 GB and its cache /cache has 4.0 GB free",
            "free some space",
            False,
        ),
        (
            "/dev/shm",
            cells(shared_memory=64 * 10**6),
            "has 64 MB, and Ray and torch want 10 GB",
            "--shm-size=11g",
            False,
        ),
        (
            "/dev/shm",
            cells(replace(GOOD, object_store=0.0), shared_memory=GB - 1),
            "want 1.0 GB",
            "emptyDir with medium: Memory",
            False,
        ),
    ],
)
def test_each_red_has_its_reason_and_its_advice(check, told, trouble, advice, aside):
    assert list(reds(told)) == [check]
    assert trouble in told[check].trouble
    assert advice in told[check].advice
    assert bool(diagnosis.sets_aside(told)) == aside


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        ({"fingerprint": ""}, "copied"),
        ({"fingerprint": "other"}, "copied"),
        ({"fingerprint": "", "cached": True}, "cached"),
    ],
)
def test_a_set_that_does_not_lie_on_a_node_is_copied_there(seen, text):
    told = cells(**seen)
    assert not reds(told)
    assert told["data"].text == text


def test_what_was_not_asked_for_and_what_no_worker_needs_is_not_red():
    told = cells(replace(GOOD, trains=False, device=None), needs=Needs(), shared_memory=None, fingerprint="")
    assert not reds(told)
    assert [told[check].text for check in ("device", "storage", "data")] == ["no room", "-", "-"]


def test_a_study_that_mixes_no_devices_keeps_to_what_most_nodes_have():
    devices = ["A100", "H100", "H100"]
    assert diagnosis.kept_device([replace(GOOD, device=replace(PROBE, device=each)) for each in devices]) == "H100"
    assert diagnosis.kept_device([replace(GOOD, device=None)]) == ""


@pytest.mark.parametrize(
    ("fit", "wanted", "most", "red", "words"),
    [
        (0, 0, 8, True, "none fits"),
        (4, 0, 8, False, "4 fit, of 1 CPU each; 8 can have work, so there will be 4"),
        (4, 0, 3, False, "3 can have work, so there will be 3"),
        (1, 0, 0, False, "1 fits, of 1 CPU each; how many can have work depends on --space"),
        (4, 2, 8, False, "so there will be 2"),
        (4, 5, 8, True, "4 fit"),
    ],
)
def test_how_many_groups_there_will_be(fit, wanted, most, red, words):
    cell = diagnosis.of_groups(fit, wanted, most, "1 CPU")
    assert words in cell.text
    assert bool(cell.trouble) == bool(cell.advice) == red


def test_an_all_reduce_that_fails_is_red_with_the_reason():
    assert diagnosis.of_reduction(2, "connection refused", asked=True).trouble == "connection refused"
    assert diagnosis.of_reduction(2, "connection refused", asked=True).advice
    assert not diagnosis.of_reduction(2, "", asked=True).trouble
    assert not diagnosis.of_reduction(2, "", asked=False).trouble


def test_the_table_fits_80_columns_and_tells_red_without_colour():
    bad = replace(
        GOOD, node="b" * 56, host="a-very-long-host-name-17", storage="it does not see the driver's file " * 5
    )
    called = diagnosis.names([GOOD, bad])
    told = Diagnosis({called[each.node]: cells(each) for each in (GOOD, bad)}, {"all-reduce": Cell("right")})
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(diagnosis.view(told, colour=False))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line.startswith("gpu-1 aaaaaaaa ")]
    (row,) = (line for line in lines if line.startswith("a-very-long… bbbbbbbb "))
    assert "! other" in row
    assert [line for line in lines if line.startswith("  -> mount one folder")]
    assert lines[-1] == "1 red"


# -- storage -----------------------------------------------------------------------------------------------------------


def test_storage_is_the_same_where_both_sides_see_what_the_other_wrote(tmp_path):
    with CommonStorage(str(tmp_path / "new" / "study")) as common:
        location = common.folder.location
        assert common_storage.answer(location, common.token, "node") == ""
        assert common.answered("node") == ""
        assert "the driver does not see what the node wrote" in common.answered("silent")
        assert "it does not see what the driver wrote" in common_storage.answer(
            f"{tmp_path}/local", common.token, "node"
        )
    assert not common.trouble
    assert list(tmp_path.iterdir()) == [], "something is left behind"


def test_a_late_node_leaves_nothing_and_a_study_stays(tmp_path):
    (tmp_path / "study.toml").write_text("")
    with pytest.raises(RuntimeError), CommonStorage(str(tmp_path)) as common:
        raise RuntimeError("something else fails")
    assert "it does not see" in common_storage.answer(str(tmp_path), common.token, "node")
    assert [each.name for each in tmp_path.iterdir()] == ["study.toml"]


def test_storage_that_the_driver_cannot_write_is_told():
    with CommonStorage("/dev/null/study") as common:
        assert common.trouble == "the driver cannot write to /dev/null/study (Not a directory)"


# -- a node ------------------------------------------------------------------------------------------------------------


def test_a_node_tells_the_set_that_lies_there_and_a_damaged_one(data, tmp_path):
    seen = examine("node", Request(WANTED.spec, str(data)))
    assert seen.fingerprint == open_prepared(data).fingerprint
    assert (seen.data, seen.probe.trouble, seen.cached) == ("", "", False)
    assert seen.cache_free == pytest.approx(shutil.disk_usage(data).free, rel=0.5)
    damaged = shutil.copytree(data, tmp_path / "damaged")
    (damaged / "images.npy").write_bytes(b"")
    assert "is damaged" in examine("node", Request(WANTED.spec, str(damaged))).data
    assert examine("node", Request(WANTED.spec, str(tmp_path))).fingerprint == ""


# -- real Rays ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def doctor():
    """Runs the command: its exit code, and what it printed with single spaces between its words. Of its temporary files
    only the log may stay."""
    # not pytest's own folder: Ray's sockets lie there, and their paths may have 107 bytes
    with tempfile.TemporaryDirectory(prefix="kd", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        yield partial(run_doctor, TMPDIR=temporary)
        assert {each.suffix for each in Path(temporary).glob("kdtvit-ray-doctor-*")} == {".log"}


def run_doctor(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "kdtvit_ray", "doctor", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_an_address_that_nothing_answers_at_is_told(doctor):
    code, output = doctor("--address", "127.0.0.1:1")
    assert code == 75, output
    assert "Cannot reach the Ray cluster at '127.0.0.1:1'" in output
    assert "Traceback" not in output


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(
    (examine("node", Request(WANTED.spec)).shared_memory or GB) < GB, reason="shared memory that is rightly red"
)
def test_this_machine_is_fit_for_the_demo(doctor, data, tmp_path):
    code, output = doctor(
        "--out", tmp_path / "new" / "study", "--data", data, "--space", "demo", "--gpus-per-worker", 0
    )
    assert code == 0, output
    assert "Nothing is red." in output
    assert "8 can have work" in output
    assert "all-reduce right, 1 worker by itself" in output
    assert list(tmp_path.iterdir()) == [], "something is left behind"


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    started = Nodes(PYTHONPATH=str(ROOT))
    yield started
    started.close()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bad_nodes_of_a_cluster_are_red_and_the_others_add_up(doctor, cluster, data, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(MISSING)
    cluster.tell("add", "bare", 1, 0, f"PYTHONPATH={tmp_path / 'bare'}:{ROOT}")
    cluster.tell("add", "locked", 1, 0, "KDTVIT_CACHE=/dev/null/cache", f"PYTHONPATH={ROOT}")
    cluster.tell("add", "good", 2, 0)
    before = sorted(tmp_path.iterdir())
    asked = ("--out", tmp_path / "study", "--data", f"file://{data}", "--workers", 2, "--gpus-per-worker", 0)
    code, output = doctor("--address", cluster.address, *asked)
    assert code == 1, output
    assert "package: ModuleNotFoundError: No module named 'kdtvit_ray' -> pip install the driver's kdtvit-ray" in output
    assert "cache: its cache /dev/null/cache cannot be written (Not a directory)" in output
    assert "KDTVIT_CACHE" in output
    assert output.endswith("2 red")
    assert "all-reduce right, between 2 workers" in output
    assert "groups 1 fits, of 2 x (1 CPU) each" in output
    assert "copied: the set is copied to that node" in output
    assert sorted(tmp_path.iterdir()) == before, "something is left behind"
