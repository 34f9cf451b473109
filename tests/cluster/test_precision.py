"""Which dtype a study gets whose space leaves it to the devices, and to which kind of device a study keeps."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kdtvit_ray.cluster import precision
from kdtvit_ray.cluster.nodes import PATIENCE_SECONDS, PROBE_SECONDS
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.cluster.precision import common, in_its_dtype
from kdtvit_ray.cluster.targets import kept_device
from kdtvit_ray.console import Terminal
from kdtvit_ray.errors import Away, UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.study.binding import dtype_of, write_study
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.store import StageStore
from tests.study import made_stages
from tests.study.test_store import PREDICTIONS, record


class Cluster:
    """In the place of Ray's nodes: their resources, and what their GPUs answer."""

    def __init__(self, monkeypatch, nodes, answers):
        import ray

        self.connected = 0
        monkeypatch.setattr(precision, "connect", self._connect)
        monkeypatch.setattr(precision, "_answers", lambda *_: answers)
        there = [{"NodeID": name, "Alive": True, "Resources": each} for name, each in nodes.items()]
        monkeypatch.setattr(ray, "nodes", lambda: there)
        monkeypatch.setattr(ray, "shutdown", lambda: None)

    def _connect(self, *_):
        self.connected += 1


def started(tmp_path, text="", address="", gpus=-1.0):
    """The space of a study that is started, in its dtype, and what its user is told."""
    folder = StudyFolder(str(tmp_path / "study"))
    options = Options(out=folder.location, address=address, gpus_per_worker=gpus)
    bound = made_stages.bound(Space({"numeric": {"dtype": text}} if text else {}))
    console = Terminal(file=io.StringIO(), width=1_000)
    bound = in_its_dtype(bound, folder, options, tmp_path / "log", console)
    write_study(folder, bound)
    return bound.space, console.file.getvalue()


@pytest.mark.parametrize(
    ("answers", "dtype"),
    [
        (["bfloat16", "bfloat16"], "bfloat16"),
        (["bfloat16", "float32"], "float32"),
        (["bfloat16"], "bfloat16"),
        ([], "float32"),
    ],
)
def test_all_gpus_that_answer_decide(answers, dtype):
    assert common(answers) == dtype


def test_a_study_keeps_the_dtype_that_its_devices_had_when_it_was_started(tmp_path, monkeypatch):
    gpus = {"a": {"CPU": 8.0, "GPU": 4.0}, "b": {"CPU": 8.0}}
    cluster = Cluster(monkeypatch, gpus, ["bfloat16"])
    space, told = started(tmp_path, address="head:6379")
    assert (space.numeric["dtype"], told, cluster.connected) == ("bfloat16", "", 1)
    assert not space.dtype_by_device
    assert dtype_of(StudyFolder(str(tmp_path / "study"))) == "bfloat16"
    assert {stage.numeric.dtype for stage in space.plan({})} == {"bfloat16"}
    again, _ = started(tmp_path, gpus=0.0)
    assert again.plan({}) == space.plan({}), "on a machine without a GPU"
    assert cluster.connected == 1, "it is not asked again"
    with pytest.raises(UserError, match=r"\[numeric\] dtype was bfloat16, is float32"):
        started(tmp_path, "float32")


@pytest.mark.parametrize("gpus", [0.0, -1.0])
def test_where_the_cpu_trains_nothing_is_asked_and_the_keys_are_those_of_float32(tmp_path, monkeypatch, gpus):
    cluster = Cluster(monkeypatch, {}, [])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    space, told = started(tmp_path, gpus=gpus)
    assert (told, cluster.connected) == ("", 0)
    named = made_stages.bound(Space({"numeric": {"dtype": "float32"}})).space
    assert [stage.key for stage in space.plan({})] == [stage.key for stage in named.plan({})]


def test_a_cluster_of_cpus_gets_float32_without_a_word(tmp_path, monkeypatch):
    Cluster(monkeypatch, {"head": {}, "a": {"CPU": 8.0}}, [])
    space, told = started(tmp_path, address="head:6379")
    assert (space.numeric["dtype"], told) == ("float32", "")


@pytest.mark.parametrize(
    ("nodes", "gpus"),
    [({"head": {}}, -1.0), ({"a": {"CPU": 8.0, "GPU": 1.0}}, -1.0), ({"a": {"CPU": 8.0}}, 0.5)],
)
def test_where_no_gpu_has_answered_float32_is_taken_and_told(tmp_path, monkeypatch, nodes, gpus):
    Cluster(monkeypatch, nodes, [])
    space, told = started(tmp_path, address="head:6379", gpus=gpus)
    assert space.numeric["dtype"] == "float32"
    assert told.startswith('No GPU has answered yet, so dtype "auto" is float32; ')
    assert '[numeric] dtype = "bfloat16" asks for it by name' in told


@pytest.mark.parametrize(("answer", "dtype"), [("bfloat16", "bfloat16"), ("float32", "float32"), (None, "float32")])
def test_the_gpus_of_one_machine_are_asked_without_ray(tmp_path, monkeypatch, answer, dtype):
    cluster = Cluster(monkeypatch, {}, [])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(precision, "of_this_machine", lambda: [answer] if answer else [])
    space, told = started(tmp_path)
    assert (space.numeric["dtype"], cluster.connected) == (dtype, 0)
    assert told.startswith("No GPU has answered yet") == (answer is None)


def test_another_process_answers_for_this_machine(tmp_path, monkeypatch, capfd):
    if torch.cuda.is_available():
        assert precision.of_this_machine() == [precision.of_this_process()]
    else:
        assert precision.of_this_machine() == []
        assert "A GPU was reserved for a worker" in capfd.readouterr().err, "the reason, for the log"
    python = tmp_path / "python"
    monkeypatch.setattr(precision.sys, "executable", str(python))
    assert precision.of_this_machine() == [], "it cannot be run"
    python.write_text("#!/bin/sh\necho a word of torch\necho bfloat16\n")
    python.chmod(0o755)
    assert precision.of_this_machine() == ["bfloat16"]
    monkeypatch.setattr(precision, "PROBE_SECONDS", 0.1)
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    with pytest.raises(Away, match="the GPUs of this machine whether they have bfloat16, and they have not answered"):
        precision.of_this_machine()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["bfloat16", "late", "float32"], ["bfloat16", "float32"]),
        (["broken", "bfloat16"], ["bfloat16"]),
        (["broken", "broken"], []),
        (["late", "bfloat16", "late"], ["bfloat16"]),
        (["broken", "late"], None),
    ],
)
def test_nodes_of_a_cluster_that_are_late_or_broken_are_left_out_and_silence_decides_nothing(
    monkeypatch, answers, expected
):
    """`late` nodes never answer; they are waited for the longer as long as nobody has."""
    import ray

    waited, nodes = [], {f"{number} {answer}": {"GPU": 1.0} for number, answer in enumerate(answers)}

    def get(task, timeout):
        waited.append(timeout)
        if task.endswith("late"):
            raise ray.exceptions.GetTimeoutError
        if task.endswith("broken"):
            raise ray.exceptions.RayError
        return task.partition(" ")[2]

    monkeypatch.setattr(precision, "task_on", lambda node, *_: SimpleNamespace(remote=lambda: node))
    monkeypatch.setattr(precision.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", lambda *_, **__: None)
    if expected is None:
        with pytest.raises(Away, match="the GPUs of the cluster whether they have bfloat16"):
            precision._answers(nodes)
    else:
        assert precision._answers({**nodes, "no GPU": {"CPU": 8.0}}) == expected
    first = next((number for number, answer in enumerate(answers) if answer.endswith("16")), len(answers) - 1)
    assert waited == [PROBE_SECONDS] * (first + 1) + [PATIENCE_SECONDS] * (len(answers) - first - 1)


def test_a_study_that_mixes_no_devices_keeps_to_that_of_its_stages_and_refuses_two(tmp_path):
    store = StageStore(StudyFolder(str(tmp_path)))
    assert kept_device(store) == ""
    store.save(record("k1"), {"w": torch.ones(1)}, PREDICTIONS)
    assert kept_device(store) == "cpu"
    gpu = replace(record("k2", device_type="cuda"), device="NVIDIA A100")
    store.save(gpu, {"w": torch.ones(1)}, PREDICTIONS)
    assert store.devices() == {"NVIDIA A100": 1, "cpu": 1}
    told = r"several kinds of device, NVIDIA A100 \(1 stage\) and cpu \(1 stage\), and \[study\] mix_devices is false; "
    with pytest.raises(UserError, match=f"{told}allowed: mix_devices = true"):
        kept_device(store)
    (tmp_path / "stages/k2/stage.json").write_text("{}")
    assert kept_device(store) == "cpu", "a damaged stage is trained again"
