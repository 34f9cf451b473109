"""What a worker tells the coordinator of an error. Neither Ray nor a group."""

import platform
import re
import threading
import types
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from kdtvit_ray.cluster import workers
from kdtvit_ray.cluster.health import NODE
from kdtvit_ray.cluster.messages import Work
from kdtvit_ray.data.cache import digest_of, publish
from kdtvit_ray.data.prepared import open_prepared
from kdtvit_ray.learning import stage
from kdtvit_ray.learning.team import Team
from kdtvit_ray.paths import PREPARED_ABOUT, PREPARED_TABLE, Folder, StudyFolder
from kdtvit_ray.study.library import StageLibrary
from kdtvit_ray.study.store import StageStore
from tests.data.test_cache import room
from tests.study import made_stages
from tests.study.test_library import STATE, fail
from tests.study.test_store import PREDICTIONS, record


class Told:
    """A coordinator that remembers what it is told of stages: {method: arguments}."""

    def __init__(self):
        self.calls = {}

    def __getattr__(self, method):
        return types.SimpleNamespace(remote=lambda *arguments: self.calls.update({method: arguments}))


@pytest.fixture
def told(data, tmp_path, monkeypatch):
    """What a lone worker tells that runs a stage here, with `fault` in place around it, of a model with `weights`."""
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        workers,
        "ray",
        types.SimpleNamespace(
            get=lambda answer: answer,
            util=types.SimpleNamespace(get_current_placement_group=lambda: None),
            get_runtime_context=lambda: types.SimpleNamespace(get_node_id=lambda: "here"),
            exceptions=types.SimpleNamespace(RayError=ConnectionError),
        ),
    )
    prepared, study = open_prepared(data), str(tmp_path / "study")
    spec = made_stages.space().with_data(prepared.fingerprint).plan({})[0]

    def run(fault, shared="", weights=None):
        coordinator = Told()
        digest = digest_of(weights) if weights else ""
        stage = replace(spec, model=replace(spec.model, digest=digest)) if weights else spec
        worker = workers.StageWorker(
            {
                "group": "1",
                "coordinator": coordinator,
                "location": study,
                "pauses": (0.01,),
                "stages": shared,
                "mix_devices": True,
                "data": "/not/here",
                "published": publish(prepared, Folder(study), "data/x"),
                "weights": {digest: str(weights)} if weights else {},
                "published_weights": "",
                "checkpoint_seconds": 1.0,
                "gpus_per_worker": 0.0,
            },
            Team(),
        )
        try:
            with fault:
                worker._run(Work(stage))
        finally:
            worker.close()
        return coordinator.calls

    return run


@contextmanager
def before(action):
    """Something happens before the stage is run."""
    action()
    yield


def test_a_full_cache_is_the_nodes_fault_and_the_study_goes_on(told, tmp_path):
    calls = told(room(100))
    assert calls.keys() == {"faulted"}
    *_, fault = calls["faulted"]
    assert (fault.kind, fault.node) == (NODE, "here")
    assert str(tmp_path / "cache") in fault.reason
    assert "KDTVIT_CACHE" in fault.reason


@pytest.mark.parametrize("fault", ["away", "another", "damaged"])
def test_a_prepared_set_that_is_away_stops_the_study_and_fails_no_stage(told, tmp_path, fault):
    def spoil():
        there = tmp_path / "study" / "data" / "x"
        if fault == "away":
            there.rename(there.with_name("renamed"))
        elif fault == "another":
            about = there / PREPARED_ABOUT
            about.write_text(re.sub('"fingerprint": "[0-9a-f]+"', '"fingerprint": "0"', about.read_text()))
        else:
            (there / PREPARED_TABLE).unlink()

    calls = told(before(spoil))
    assert calls.keys() == {"lost_storage", "abandoned"}
    (reason,) = calls["lost_storage"]
    assert reason.startswith(f"Finding the prepared set on {platform.node()} failed 2 times, last with: ")
    assert {"away": "holds no prepared set", "another": "has fingerprint 0", "damaged": PREPARED_TABLE}[fault] in reason


def test_a_prepared_set_and_a_weights_file_that_are_away_for_a_moment_are_waited_for(told, tmp_path, monkeypatch):
    there, file = tmp_path / "study" / "data" / "x", tmp_path / "tiny.safetensors"
    file.write_bytes(b"weights")
    away = [(there, there.with_name("renamed")), (file, file.with_suffix(".renamed"))]

    def back(seconds):
        for place, elsewhere in away:
            if elsewhere.exists():
                elsewhere.rename(place)
                return

    monkeypatch.setattr("kdtvit_ray.paths.time.sleep", back)
    spoil = before(lambda: [place.rename(elsewhere) for place, elsewhere in away])
    with patch.object(stage, "train_stage", return_value=None) as train:
        assert told(spoil, weights=file).keys() == {"abandoned"}
    assert train.call_args.args[0].model.weights == str(file)


def test_a_weights_file_that_is_gone_stops_the_study_and_fails_no_stage(told, tmp_path):
    file = tmp_path / "tiny.safetensors"
    file.write_bytes(b"weights")
    calls = told(before(file.unlink), weights=file)
    assert calls.keys() == {"lost_storage", "abandoned"}
    assert f"The file '{file}' is not on this node" in calls["lost_storage"][0]


def test_a_worker_without_a_gpu_of_its_own_trains_on_the_cpu_whatever_it_sees(told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with patch.object(stage, "train_stage", return_value=None) as train:
        assert told(nullcontext()).keys() == {"abandoned"}
    assert train.call_args.kwargs["device"] == torch.device("cpu")


@pytest.fixture
def trained(told, monkeypatch):
    """Stages are trained at once, and their summary is a word."""
    monkeypatch.setattr(workers.StageWorker, "_train", lambda self, work: lambda: "summary")


def test_a_study_goes_on_without_its_shared_store(told, trained, tmp_path, monkeypatch, caplog):
    make = StageLibrary.__init__

    def away(self, *arguments):
        make(self, *arguments)
        fail(self)

    monkeypatch.setattr(StageLibrary, "__init__", away)
    calls = told(nullcontext(), str(tmp_path / "shared"))
    assert calls.keys() == {"finished"}
    assert calls["finished"][-1] == "summary"
    assert caplog.text.count("the study goes on without it") == 1


def test_a_stage_is_finished_before_it_is_offered_and_its_claim_given_up(told, trained, tmp_path, monkeypatch):
    """It is safe in the study's own folder, and the shared store may be slow."""
    done = []
    monkeypatch.setattr(
        Told, "finished", types.SimpleNamespace(remote=lambda *_: done.append("finished")), raising=False
    )
    for name in ("offer", "release"):
        monkeypatch.setattr(StageLibrary, name, lambda self, key, name=name: done.append(name))
    told(nullcontext(), str(tmp_path / "shared"))
    assert done == ["finished", "offer", "release"]


def test_a_stage_that_is_finished_elsewhere_before_it_is_claimed_is_not_trained_again(
    told, trained, tmp_path, monkeypatch
):
    shared, claim = str(tmp_path / "shared"), StageLibrary.claim

    def late(self, key, seize):
        other = StageLibrary(shared, StageStore(StudyFolder(str(tmp_path / "other"))))
        other.own.save(record(key), STATE, PREDICTIONS)
        other.offer(key)
        return claim(self, key, seize)

    monkeypatch.setattr(StageLibrary, "claim", late)
    calls = told(nullcontext(), shared)
    assert calls.keys() == {"taken_over", "finished"}
    assert calls["finished"][-1] == record().summary()
    assert not StudyFolder(shared).names("claims")


def test_heartbeats_go_on_while_the_shared_store_is_slow(told, trained, tmp_path, monkeypatch):
    slow, over, sent = threading.Event(), threading.Event(), threading.Semaphore(0)

    @contextmanager
    def heard():
        yield
        assert slow.wait(60)
        while sent.acquire(blocking=False):
            pass  # those from before
        assert all(sent.acquire(timeout=60) for _ in range(3))
        over.set()

    monkeypatch.setattr(workers, "HEARTBEAT_SECONDS", 0.001)
    monkeypatch.setattr(workers, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(StageLibrary, "beat", lambda self: (slow.set(), over.wait()))
    monkeypatch.setattr(Told, "heartbeat", types.SimpleNamespace(remote=lambda *_: sent.release()), raising=False)
    told(heard(), str(tmp_path / "shared"))
