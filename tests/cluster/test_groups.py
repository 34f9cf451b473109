"""How many worker groups a cluster has room for."""

import math
import os
import sys
from types import SimpleNamespace

import pytest

from kdtvit_ray.cluster.group_run import (
    LONGEST_CAUSE,
    _limit_compiling,
    cause_of,
    compile_processes,
    group_trainer,
    killed,
)
from kdtvit_ray.cluster.groups import (
    IDLE_SECONDS,
    LONGEST_PAUSE,
    MOST_FAILURES,
    STEADY_SECONDS,
    Groups,
    _Deaths,
    groups_that_fit,
)
from kdtvit_ray.cluster.messages import Snapshot
from kdtvit_ray.cluster.nodes import PATIENCE_SECONDS, Nodes, elsewhere
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.cluster.probe import Probe
from kdtvit_ray.console import status_lines
from kdtvit_ray.errors import UserError
from kdtvit_ray.results.study_status import GroupStatus, Status


@pytest.mark.parametrize(
    ("resources", "workers", "gpus", "groups"),
    [
        ({"CPU": 8.0}, 1, 0.0, 8),
        ({"CPU": 7.0}, 2, 0.0, 3),
        ({"CPU": 64.0, "GPU": 8.0}, 1, 1.0, 8),
        ({"CPU": 64.0, "GPU": 8.0}, 4, 1.0, 2),
        ({"CPU": 64.0, "GPU": 1.0}, 1, 0.25, 4),
        ({"CPU": 64.0, "GPU": 1.0}, 1, 0.1, 10),
        ({"CPU": 4.0, "GPU": 1.0}, 1, 0.1, 4),
        ({"CPU": 4.0, "GPU": 8.0}, 2, 1.0, 2),
        ({"CPU": 64.0}, 1, 1.0, 0),
        ({}, 1, 0.0, 0),
    ],
)
def test_as_many_as_the_resources_allow(resources, workers, gpus, groups):
    assert groups_that_fit(resources, workers, gpus) == groups


@pytest.mark.parametrize(
    ("workers", "gpus", "said"),
    [
        (2, 0.25, "--gpus-per-worker 0.25 with --workers 2: workers of one group cannot share a GPU"),
        (1, 1.5, "--gpus-per-worker is 1.5; allowed: a share below 1"),
        (1, float("inf"), "--gpus-per-worker is inf; allowed: 0, a share"),
        (1, float("nan"), "--gpus-per-worker is nan; allowed: 0, a share"),
        (1, -0.5, "--gpus-per-worker is -0.5; allowed: 0, a share"),
    ],
)
def test_shares_of_gpus_that_cannot_work_are_refused(workers, gpus, said):
    with pytest.raises(UserError, match=said):
        Options(out="study", workers=workers, gpus_per_worker=gpus)


@pytest.mark.parametrize(("workers", "gpus"), [(1, 0.25), (4, 1.0), (1, 2.0), (4, -1.0), (4, 0.0)])
def test_other_shares_are_taken(workers, gpus):
    assert Options(out="study", workers=workers, gpus_per_worker=gpus).gpus_per_worker == gpus


def test_a_group_that_dies_at_once_is_started_again_after_growing_pauses(monkeypatch):
    now = 1_000.0
    monkeypatch.setattr("kdtvit_ray.cluster.groups.time.monotonic", lambda: now)
    deaths = _Deaths()
    pauses = []
    for number in range(1, MOST_FAILURES + 1):
        assert deaths.over()
        deaths.started = now
        assert deaths.again() == number
        assert not deaths.over()
        pauses.append(deaths.until - now)
        now = deaths.until
    assert pauses == sorted(pauses)
    assert pauses[0] == 1.0
    assert pauses[-1] == LONGEST_PAUSE
    deaths.started, now = now, now + STEADY_SECONDS + 1
    assert deaths.again() == 1, "a group that has worked for a while is no broken one"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"groups": 99},
            r"--groups is 99; this machine has room for 2 \(each needs 1 CPU\), and this space keeps at most 8 busy; "
            "allowed: auto, or at most 2",
        ),
        ({"groups": 2, "workers": 2}, "--groups is 2; this machine has room for 1"),
        ({"groups": 2}, ""),
        ({"groups": 99, "address": "auto"}, ""),
        ({"workers": 4}, "A worker group needs 4 x 1 CPU at once; this machine has 2 CPU and 0 GPU"),
        ({"gpus_per_worker": 1.0}, "A worker group needs 1 GPU and 1 CPU; this machine has 2 CPU and 0 GPU"),
        ({"workers": 2}, ""),
        ({"workers": 4, "address": "auto"}, ""),
    ],
)
def test_what_this_machine_will_never_have_is_said_and_a_cluster_may_grow(options, said):
    groups = Groups(None, None, Options(out="study", **options), None, 8, Seen({"CPU": 2.0}))
    if said:
        with pytest.raises(UserError, match=said):
            groups._check_fits()
    else:
        groups._check_fits()


def test_gpus_that_torch_sees_and_ray_does_not_are_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    told = "Ray finds no GPU on this machine, and torch sees 2; allowed: --gpus-per-worker 0, which trains on the CPU"
    with pytest.raises(UserError, match=told):
        Groups(None, None, Options(out="study"), None, 8, Seen({"CPU": 2.0}))._check_fits()
    Groups(None, None, Options(out="study", gpus_per_worker=0.0), None, 8, Seen({"CPU": 2.0}))._check_fits()
    Groups(None, None, Options(out="study"), None, 8, Seen({"CPU": 2.0, "GPU": 2.0}))._check_fits()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_one_worker_makes_no_process_group_and_one_without_a_gpu_touches_none(workers, gpus):
    from ray.cloudpickle import dumps, loads  # as it travels to the workers
    from ray.train import RunConfig
    from ray.train.torch import TorchConfig

    config = {"workers": workers, "gpus_per_worker": gpus, "unfit": []}
    made = loads(dumps(group_trainer(print, config, RunConfig()).backend_config))
    plain = TorchConfig()
    begins = made.backend_cls.on_start == plain.backend_cls.on_start
    assert begins == (workers > 1)
    assert made.backend_cls.share_cuda_visible_devices == plain.backend_cls.share_cuda_visible_devices
    assert made.backend == ("nccl" if gpus else "gloo"), "where there is a process group"
    assert (made.train_func_context == plain.train_func_context) == bool(gpus)
    with made.train_func_context():
        pass


@pytest.mark.parametrize(
    ("resources", "gpus", "processes"),
    [
        ({"CPU": 128.0, "GPU": 8.0}, 1.0, 16),
        ({"CPU": 128.0, "GPU": 8.0}, 2.0, 32),
        ({"CPU": 16.0, "GPU": 1.0}, 0.25, 4),
        ({"CPU": 256.0, "GPU": 1.0}, 1.0, 32),
        ({"CPU": 4.0, "GPU": 8.0}, 1.0, 1),
        ({"CPU": 30.0, "GPU": 1.0}, 0.1, 3),
        ({"CPU": 8.0}, 1.0, 8),
    ],
)
def test_workers_of_a_node_share_its_cpus_for_compiling(monkeypatch, resources, gpus, processes):
    import ray

    assert compile_processes(resources, gpus) == processes
    variable = "TORCHINDUCTOR_COMPILE_THREADS"
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"NodeID": "b", "Resources": {}}, {"NodeID": "a", "Resources": resources}]
    )
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    monkeypatch.setattr(os, "environ", {})
    _limit_compiling(0.0)
    assert variable not in os.environ
    _limit_compiling(gpus)
    assert os.environ[variable] == str(processes)
    os.environ[variable] = "5"
    _limit_compiling(gpus)
    assert os.environ[variable] == "5", "a user's own value is kept"


class Seen(Nodes):
    """Nodes that have resources, and count how often they are asked for them."""

    def __init__(self, *resources):
        super().__init__(None, "", "")
        self.living = {f"n{number}": f"host{number}" for number in range(len(resources))}
        self._resources = {f"n{number}": each for number, each in enumerate(resources)}
        self._fit, self.hosts = set(self.living), dict(self.living)
        self.asked = 0

    def resources(self):
        self.asked += 1
        return super().resources()


def test_nodes_that_can_hold_a_worker():
    nodes = Seen({"CPU": 4.0}, {"CPU": 4.0, "GPU": 0.5}, {"CPU": 4.0, "GPU": 1.0}, {"GPU": 1.0}, {})
    assert nodes.able(-1.0) == nodes.able(0.0) == {"n0", "n1", "n2"}
    assert (nodes.able(0.5), nodes.able(1.0)) == ({"n1", "n2"}, {"n2"})


def test_a_cluster_is_asked_for_its_resources_only_where_the_number_of_groups_depends_on_them():
    def number(most=8, **options):
        nodes = Seen({"CPU": 6.0})
        groups = Groups(None, None, Options(out="study", address="auto", **options), None, most, nodes)
        return groups._number(), nodes.asked, groups._number(), nodes.asked

    assert number(groups=3, gpus_per_worker=0.0) == (3, 0, 3, 0)
    assert number(groups=3) == (3, 1, 3, 1), "once, to know whether there are GPUs"
    assert number() == (6, 1, 6, 2), "the cluster may grow"
    assert number(most=4) == (4, 1, 4, 2)
    assert number(most=4, groups=9, gpus_per_worker=0.0) == (4, 0, 4, 0), "no more than can be busy"


def test_of_more_groups_than_can_be_busy_the_rest_is_not_waited_for():
    groups = Groups(None, None, Options(out="study", address="auto", groups=99), None, 4, Seen({"CPU": 2.0}))
    assert groups.wanted()[0] == 4, "also before there is a node that says whether there are GPUs"
    assert groups._number() == 4
    assert groups.idle_note == "4 of 99 asked for are started: chains are bound by lag"


def test_a_group_that_dies_of_an_error_without_words_keeps_dying_all_the_same(monkeypatch):
    import ray

    def died(task):
        raise ray.exceptions.RayTaskError("run_group", "", AssertionError())

    monkeypatch.setattr(ray, "wait", lambda tasks, **_: (tasks, []))
    monkeypatch.setattr(ray, "get", died)
    coordinator = SimpleNamespace(gone=SimpleNamespace(remote=lambda name: None))
    groups = Groups(None, None, Options(out="study"), coordinator, 8, Seen({"CPU": 2.0}))
    told = ""
    while not told:
        groups._tasks, groups._deaths["1"] = {"1": "task"}, groups._deaths.get("1", _Deaths(started=math.inf))
        told = groups.tend(more=False)
    assert told == "Worker group 1 keeps dying, last with: AssertionError"


@pytest.mark.parametrize("early", [True, False])
def test_a_group_whose_workers_died_is_started_anew_after_a_pause_where_they_had_no_stage(monkeypatch, early):
    import ray

    monkeypatch.setattr(ray, "wait", lambda tasks, **_: (tasks, []))
    monkeypatch.setattr(ray, "get", lambda task: early)
    coordinator = SimpleNamespace(gone=SimpleNamespace(remote=lambda name: None))
    groups = Groups(None, None, Options(out="study"), coordinator, 8, Seen({"CPU": 2.0}))
    for _ in range(MOST_FAILURES + 1):
        groups._tasks, groups._deaths["1"] = {"1": "task"}, groups._deaths.get("1", _Deaths(started=math.inf))
        assert groups.tend(more=False) == "", "the coordinator decides when it is enough"
    assert groups._deaths["1"].over() != early


def test_the_cause_of_a_death_is_told_in_one_line():
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

    raised = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported\n")
    for each in (raised, UserExceptionWithTraceback(raised, "Traceback")):
        assert cause_of(each) == "RuntimeError: CUDA error: out of memory"
    seen = RayError("The actor died unexpectedly.\n  pid: 1\nIts worker process was killed.\n")
    assert cause_of(WorkerHealthCheckFailedError("A worker is not healthy", seen)) == "Its worker process was killed."
    assert cause_of(ValueError()) == "ValueError: ValueError"
    assert len(cause_of(RayError("It may be this or that. " * 50))) <= LONGEST_CAUSE


def test_a_process_that_ended_is_told_from_one_that_raised_an_error():
    from ray.exceptions import RayActorError, RayTaskError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

    lost = UserExceptionWithTraceback(ConnectionError("reset by peer"), "Traceback")
    ended = WorkerHealthCheckFailedError("A worker is not healthy", RayActorError())
    unread = WorkerHealthCheckFailedError("A worker is not healthy", RayTaskError("poll", "", ValueError()))
    assert killed({0: lost, 1: ended, 2: unread}) == (1,)


class Clock:
    """Seconds that pass when Ray is waited for; `in_flight` until `ends`, with a group that never ends."""

    def __init__(self, ends, group):
        self.now, self.ends, self.groups = 0.0, ends, (GroupStatus("1"),) if group else ()
        self.snapshot = self

    def monotonic(self):
        return self.now

    def wait(self, tasks, **options):
        self.now += 0.5
        return [], tasks

    def remote(self):
        return Snapshot(groups=self.groups, in_flight=self.now < self.ends)

    def get(self, found, timeout):
        return found


@pytest.mark.parametrize(
    ("ends", "group", "address", "most", "waited"),
    [
        (0, False, "", 10, 0.5),
        (0, True, "", 300, IDLE_SECONDS),
        (0, False, "auto", 300, IDLE_SECONDS),
        (100, True, "", 300, 100 + IDLE_SECONDS - 0.5),
        (1_000, True, "auto", 300, 300),
        (1_000, True, "auto", math.inf, 1_000 + IDLE_SECONDS - 0.5),
    ],
    ids=["none has greeted", "one is starting", "controllers end", "stages are saved", "one hangs", "long epochs"],
)
def test_a_study_that_stops_waits_for_stages_and_not_for_groups_that_run_none(
    monkeypatch, ends, group, address, most, waited
):
    clock = Clock(ends, group)
    monkeypatch.setitem(sys.modules, "ray", clock)
    monkeypatch.setattr("kdtvit_ray.cluster.groups.time", clock)
    groups = Groups(None, None, Options(out="study", address=address), clock, 8, Seen({"CPU": 2.0}))
    groups._tasks = {"1": "a task"}
    groups.wait(most)
    assert clock.now == waited


def test_a_cluster_that_would_mostly_idle_is_told():
    groups = Groups(None, None, Options(out="study", address="auto"), None, 4, Seen({"CPU": 60.0}))
    groups._number()
    assert groups.idle_note == "4 of 60 that fit are started: chains are bound by lag"
    told = status_lines(Status(state="running", idle_note=groups.idle_note))
    assert "groups    4 of 60 that fit are started: chains are bound by lag" in told


def test_a_cluster_without_nodes_gets_no_groups_yet():
    nodes = Seen({"memory": 1.0})
    assert Groups(None, None, Options(out="study", address="auto", groups=3), None, 8, nodes)._number() == 0
    assert not nodes.none_works, "its nodes are still to come"


def test_nodes_that_are_set_aside_have_no_groups_and_a_study_without_others_has_none():
    nodes = Seen({"CPU": 4.0}, {"CPU": 2.0}, {"memory": 1.0})
    groups = Groups(None, None, Options(out="study", address="auto"), None, 8, nodes)
    assert groups._number() == 6
    nodes.set_aside({"n0": "its cache cannot be written"})
    assert groups._number() == 2
    assert elsewhere(nodes.unfit) == {"ray.io/node-id": "!in(n0)"}
    assert not nodes.none_works
    nodes.set_aside({"n1": "no driver", "n0": "another reason"})
    assert (groups._number(), nodes.none_works) == (0, True), "the head has no CPU"
    assert nodes.told_aside() == ("host0: its cache cannot be written", "host1: no driver")
    dying = ("group 2 on host0 died 2 times before it had a stage, last with: it broke",)
    told = status_lines(Status(state="running", aside=nodes.told_aside(), dying=dying))
    assert "set aside host1: no driver" in told
    assert f"dying     {dying[0]}" in told


def test_no_group_is_started_to_keep_off_a_node_that_has_not_answered_yet(monkeypatch):
    now = 1_000.0
    monkeypatch.setattr("kdtvit_ray.cluster.nodes.time.monotonic", lambda: now)
    nodes = Seen({"CPU": 4.0}, {"CPU": 4.0})
    nodes._fit.discard("n1")
    assert nodes.asking
    nodes._asked["n1"] = None, now
    assert nodes.asking
    now += PATIENCE_SECONDS
    assert not nodes.asking
    assert nodes.unfit == {"n1"}, "the others need not wait any longer"
    nodes._fit.add("n1")
    assert not nodes.unfit


@pytest.mark.parametrize("crashes", [1, 2])
def test_a_node_is_set_aside_when_a_second_probe_of_it_breaks_off(monkeypatch, crashes):
    import ray

    expected = SimpleNamespace(spec=None, recipe=2, key="key", mix=True, device="", versions={})
    answers = [ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory")] * crashes
    answers.append(Probe("n0", "host0", recipe=2, key="key"))

    def answer(asked):
        if isinstance(asked, Exception):
            raise asked
        return asked

    asked = SimpleNamespace(remote=lambda *_: answers.pop(0))
    alive = {"NodeID": "n0", "NodeManagerHostname": "host0", "Alive": True, "Resources": {"CPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [alive])
    monkeypatch.setattr(ray, "wait", lambda tasks, timeout: (tasks, []))
    monkeypatch.setattr(ray, "get", answer)
    monkeypatch.setattr("kdtvit_ray.cluster.nodes.task_on", lambda *_: asked)
    nodes = Nodes(expected, "", "auto")
    for _ in range(4):
        nodes.look()
    if crashes == 1:
        assert (nodes.fit, nodes.aside) == ({"n0": "host0"}, {})
    else:
        assert nodes.aside == {"n0": "Task was killed due to the node running low on memory"}


def test_nobody_is_kept_off_where_all_nodes_are_fit():
    assert elsewhere(()) == {}
