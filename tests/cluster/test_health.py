"""Who is at fault, a stage or a node: decided by where else the stage can be run."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kdtvit_ray.cluster import coordinator as module
from kdtvit_ray.cluster import health as health_module
from kdtvit_ray.cluster.claims import AGAIN_SECONDS, DEAD_SECONDS
from kdtvit_ray.cluster.coordinator import Coordinator
from kdtvit_ray.cluster.health import DEATH, MEMORY, NODE, STAGE, UNKNOWN, Fault, Health
from kdtvit_ray.cluster.messages import GREET, STOP, WAIT
from kdtvit_ray.cluster.probe import Probe, expected, mismatch, probe
from kdtvit_ray.study import asks
from kdtvit_ray.study.library import Claim
from tests.study import made_stages

SPACE = made_stages.space().with_data("none")
WANTED = expected(SPACE.plan({})[0])
GOOD = Probe("a", "host a", WANTED.versions, WANTED.recipe, WANTED.key, "cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


def test_a_node_on_which_three_stages_fail_is_set_aside_where_another_works():
    health = Health()
    for key in ("one", "two", "two"):
        health.met(key, Fault(UNKNOWN, "bad", "it broke"), {"bad", "good"})
    assert not health.aside, "two different stages"
    health.met("three", Fault(UNKNOWN, "bad", "it broke again"), {"bad", "good"})
    assert health.aside == {"bad": "3 stages failed on it, last with: it broke again"}
    assert health.avoided(["bad"]) == {"one", "two", "three"}
    assert not health.avoided(["good"])


def test_on_a_cluster_a_node_that_never_finished_a_stage_is_set_aside_before_a_stage_fails_for_it():
    health = Health(more=True)
    for key in ("one", "two"):
        health.met(key, Fault(UNKNOWN, "a", "it broke"), {"a"})
        assert health.decide(key, {"a"}, waited=0.0) is None, "others may show whether the node works"
        assert health.decide(key, {"a"}, waited=60.0).reason == "it broke", "none did"
    health.met("three", Fault(UNKNOWN, "a", "it broke"), {"a"})
    assert health.aside.keys() == {"a"}
    for key in ("one", "two", "three"):
        assert health.decide(key, {"a"}, waited=10_000.0) is None, "it waits for another node"

    proven = Health(more=True)
    proven.finished("other", ["a"])
    proven.met("one", Fault(UNKNOWN, "a", "it broke"), {"a"})
    assert proven.decide("one", {"a"}, waited=0.0, to_come=True) is None
    assert proven.decide("one", {"a"}, waited=0.0).reason == "it broke"
    for key in ("one", "two", "three"):
        proven.met(key, Fault(UNKNOWN, "a", "it broke"), {"a"})
    assert not proven.aside, "no other node is left"


def test_a_stage_that_is_finished_clears_its_node():
    health = Health()
    for key in ("one", "two"):
        health.met(key, Fault(UNKNOWN, "node", "it broke"), {"node", "good"})
    health.finished("other", ["node"])
    health.met("three", Fault(UNKNOWN, "node", "it broke"), {"node", "good"})
    assert not health.aside


def test_the_only_node_is_set_aside_for_what_is_certainly_its_own_fault_alone():
    health = Health()
    for key in ("one", "two", "three"):
        health.met(key, Fault(UNKNOWN, "only", "it broke"), {"only"})
        assert health.decide(key, {"only"}) == Fault(UNKNOWN, "only", "it broke")
    assert not health.aside
    health.met("four", Fault(NODE, "only", "no driver"), {"only"})
    assert health.decide("four", {"only"}) is None, "the stage waits for another node"
    assert health.aside["only"].endswith("no driver")


def test_a_stage_that_fails_on_two_nodes_is_at_fault_itself():
    health = Health()
    health.met("stage", Fault(UNKNOWN, "a", "why"), {"a", "b"})
    assert health.decide("stage", {"a", "b"}) is None
    health.met("stage", Fault(UNKNOWN, "b", "why"), {"a", "b"})
    assert health.decide("stage", {"a", "b", "c"}).reason == "why"
    for key in ("one", "two"):
        health.met(key, Fault(UNKNOWN, "a", "why"), {"a", "b"})
    assert not health.aside, "what the stage did does not count against the node"


def test_what_is_certainly_the_nodes_never_fails_a_stage_that_no_node_could_run():
    health = Health()
    nodes = {f"n{number}" for number in range(6)}
    for node in sorted(nodes):
        health.met("stage", Fault(NODE, node, "read-only disk"), nodes)
        assert health.decide("stage", nodes) is None
    assert health.aside.keys() == nodes


def test_what_is_the_nodes_fails_a_stage_where_three_nodes_run_others():
    health = Health()
    for node in ("a", "b", "c"):
        health.met("stage", Fault(NODE, node, "no space left"), {"a", "b", "c", "d"})
        health.finished("other", [node])
    assert health.decide("stage", {"a", "b", "c", "d"}).kind == NODE
    assert not health.aside


def test_a_stage_without_memory_is_tried_elsewhere_then_alone():
    health = Health()
    health.met("big", Fault(MEMORY, "a", "out of memory"), {"a", "b"})
    assert health.decide("big", {"a", "b"}, shared=True) is None
    health.met("big", Fault(MEMORY, "b", "out of memory"), {"a", "b"})
    assert health.decide("big", {"a", "b"}, shared=True).kind == MEMORY
    other = Health()
    other.met("big", Fault(MEMORY, "a", "out of memory"), {"a"})
    assert other.decide("big", {"a"}, shared=True) is None
    assert (other.alone, other.avoided(["a"])) == ({"big"}, set())
    other.met("big", Fault(MEMORY, "a", "out of memory"), {"a"})
    assert other.decide("big", {"a"}).kind == MEMORY


def test_a_stage_in_which_a_worker_died_is_tried_elsewhere_and_where_there_is_none_there_again():
    health = Health()
    health.met("stage", Fault(DEATH, "a", "its worker died"), {"a", "b"})
    assert health.decide("stage", {"a", "b"}) is None
    assert health.avoided(["a"]) == {"stage"}
    assert health.decide("stage", {"a"}) is None
    assert not health.avoided(["a"])


def test_a_probe_of_this_process_fits_and_any_other_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path))
    found = probe("a", WANTED.spec, "s3://bucket/set")
    assert mismatch(WANTED, found) == ""
    assert "training recipe 99, the driver's" in mismatch(WANTED, replace(found, recipe=99))
    assert "computes another stage key" in mismatch(WANTED, replace(found, key="other"))
    kept = replace(WANTED, mix=False, device="NVIDIA A100")
    assert "its device is cpu, and the study keeps to NVIDIA A100" in mismatch(kept, replace(found, device="cpu"))
    assert mismatch(kept, found) == "", "a process that trains nothing names no device"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot be written (Not a directory)" in mismatch(WANTED, probe("a", WANTED.spec, "s3://bucket/set"))


def test_a_gpu_that_was_reserved_and_is_not_seen_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert (
        "A GPU was reserved for a worker on host" in probe("a", WANTED.spec, "s3://set", gpus=1.0, train=True).trouble
    )
    assert probe("a", WANTED.spec, "s3://set", train=True) == replace(GOOD, host=probe("a", WANTED.spec, "").host)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert probe("a", WANTED.spec, "s3://set", train=True).device == "cpu", "a GPU that was not reserved is another's"


def coordinator(tmp_path, **settings):
    return Coordinator(str(tmp_path), "auc", expected=WANTED, **settings)


async def join(one, *numbers):
    """Trials with other temperatures, which share their first stage."""
    joined = []
    for number in numbers:
        params = {"temperature": 1.0 + number, "alpha": 0.5, "order": "40>100>200>400", "student": "micro"}
        ask = asks.searched(SPACE, number, params)
        await one.join(ask.trial, ask.stages, ask.labels)
        joined.append([stage.key for stage in ask.stages])
    return joined


async def next_stage(one, name, node, after=""):
    return await one.next_stage(name, "1", node, 1, after)


async def greet(one, name, node):
    return await one.greet(name, "1", 0, replace(GOOD, node=node))


def test_a_group_is_asked_to_greet_and_one_of_another_recipe_gets_no_stage(tmp_path):
    async def go():
        one = coordinator(tmp_path)
        await join(one, 0)
        assert await next_stage(one, "1", "a") == GREET
        assert "training recipe 1, the driver's" in await one.greet("1", "1", 0, replace(GOOD, recipe=1))
        assert await next_stage(one, "1", "a") == STOP
        assert "training recipe" in (await one.snapshot()).aside["a"]
        assert await greet(one, "2", "a"), "nothing else runs there either"
        assert await greet(one, "3", "b") == ""
        assert (await next_stage(one, "3", "b")).spec.magnifications == (40,)

    asyncio.run(go())


def test_a_study_that_mixes_no_devices_keeps_to_the_first_that_trains(tmp_path):
    async def go():
        one = Coordinator(str(tmp_path), "auc", expected=replace(WANTED, mix=False))
        assert await greet(one, "1", "a") == ""
        refused = await one.greet("2", "1", 0, replace(GOOD, node="b", device="NVIDIA A100"))
        assert "its device is NVIDIA A100, and the study keeps to cpu" in refused
        mixed = coordinator(tmp_path)
        assert await greet(mixed, "1", "a") == ""
        assert await mixed.greet("2", "1", 0, replace(GOOD, node="b", device="NVIDIA A100")) == ""

    asyncio.run(go())


def test_a_coordinator_of_another_recipe_keeps_no_study(tmp_path):
    async def go():
        assert await coordinator(tmp_path).ready() == ""
        other = Coordinator(str(tmp_path), "auc", expected=replace(WANTED, recipe=1))
        assert "has training recipe 2, the driver's 1" in await other.ready()

    asyncio.run(go())


def test_other_versions_are_told_and_get_stages(tmp_path):
    async def go():
        one = coordinator(tmp_path)
        await join(one, 0)
        assert await one.greet("1", "1", 0, replace(GOOD, versions={**GOOD.versions, "torch": "1.0"})) == ""
        (told,) = (await one.snapshot()).differences
        assert told.startswith("host a has torch 1.0 (the driver's: ")
        assert (await next_stage(one, "1", "a")).key

    asyncio.run(go())


def test_a_stage_that_fails_on_one_node_is_given_to_another_only(tmp_path):
    async def go():
        one = coordinator(tmp_path)
        ((first, *_),) = await join(one, 0)
        for name, node in (("1", "a"), ("2", "b")):
            await greet(one, name, node)
        assert (await next_stage(one, "1", "a")).key == first
        await one.faulted("1", "1", first, Fault(UNKNOWN, "a", "RuntimeError: why"))
        assert await next_stage(one, "1", "a") == WAIT
        assert (await next_stage(one, "2", "b")).key == first
        await one.faulted("2", "1", first, Fault(UNKNOWN, "b", "RuntimeError: why"))
        told = await one.result("t0000", 0)
        assert (told.state, told.reason, told.fault) == ("failed", "RuntimeError: why", "stage")

    asyncio.run(go())


def test_a_stage_waits_for_a_group_that_is_being_started_and_fails_when_none_comes(tmp_path, monkeypatch):
    async def go():
        one = coordinator(tmp_path)
        ((first, *_),) = await join(one, 0)
        await greet(one, "1", "a")
        await one.nodes({"a": "host a", "b": "host b"}, {}, True)
        await next_stage(one, "1", "a")
        await one.faulted("1", "1", first, Fault(UNKNOWN, "a", "RuntimeError: why"))
        assert one.tree.nodes[first].state == "ready"
        monkeypatch.setattr(health_module, "START_SECONDS", 0.0)
        await one.nodes({"a": "host a", "b": "host b"}, {}, True)
        assert one.tree.nodes[first].state == "failed"

    asyncio.run(go())


def test_a_stage_without_memory_runs_alone_on_its_node(tmp_path):
    async def go():
        one = coordinator(tmp_path)
        ((first, *_),) = await join(one, 0)
        joint = next(each for each in asks.baselines(SPACE) if each.trial == "joint")
        await one.join(joint.trial, joint.stages, joint.labels)
        for name in "12":
            await greet(one, name, "a")
        assert (await next_stage(one, "1", "a")).key == first
        other = (await next_stage(one, "2", "a")).key
        await one.faulted("1", "1", first, Fault(MEMORY, "a", "Out of memory"))
        assert await next_stage(one, "1", "a") == WAIT, "the other stage still runs there"
        await one.finished("2", "1", other, made_stages.record(one.specs[other]).summary())
        assert (await next_stage(one, "1", "a")).key == first
        await join(one, 1)
        assert await next_stage(one, "2", "a") == WAIT, "it runs alone"
        await one.faulted("1", "1", first, Fault(MEMORY, "a", "Out of memory"))
        told = await one.result("t0000", 0)
        assert (told.state, told.fault) == ("failed", "infrastructure")

    asyncio.run(go())


def test_the_death_of_a_node_is_not_the_stages(tmp_path):
    async def go():
        one = coordinator(tmp_path)
        ((first, *_),) = await join(one, 0)
        for number in range(5):
            node = f"n{number}"
            await one.nodes({node: "host"}, {}, False)
            await one.greet("1", node, 0, replace(GOOD, node=node))
            assert (await one.next_stage("1", node, node, 1, "")).key == first
            await one.nodes({"another": "host"}, {}, False)  # the node is gone, and the group with it
            await one.gone("1")
        assert one.tree.nodes[first].losses == 0
        for number in range(3):  # a death that is seen before that of its node is forgiven
            await one.nodes({"a": "host", "b": "host"}, {}, False)
            await one.greet("1", f"i{number}", 0, replace(GOOD, node="a"))
            assert (await one.next_stage("1", f"i{number}", "a", 1, "")).key == first
            await one.gone("1")
            assert one.tree.nodes[first].losses == 1
            await one.nodes({"b": "host"}, {}, False)
            assert one.tree.nodes[first].losses == 0

    asyncio.run(go())


def test_a_late_word_of_processes_that_were_replaced_is_not_listened_to(tmp_path):
    async def go():
        one = coordinator(tmp_path)
        ((first, *_),) = await join(one, 0)
        await one.greet("1", "old", 0, GOOD)
        await one.next_stage("1", "old", "a", 1, "")
        await one.greet("1", "new", 0, GOOD)
        assert (await one.next_stage("1", "new", "a", 1, "")).key == first
        await one.heartbeat("1", "old", first, 1, "a")
        await one.faulted("1", "old", first, Fault(STAGE, "a", "late"))
        await one.abandoned("1", "old", first)
        assert not await one.progress("1", "old", first, 2, 3)
        assert await one.next_stage("1", "old", "a", 1, "") == STOP
        assert await one.greet("1", "old", 0, GOOD)
        assert one.tree.running == {"1": first}
        assert await one.progress("1", "new", first, 1, 3), "the group that took its place runs on"

    asyncio.run(go())


def test_trials_that_meet_the_same_torn_file_are_one_repair(tmp_path, monkeypatch):
    async def go():
        one = coordinator(tmp_path)
        (first, *_), *_ = await join(one, 0, 1, 2, 3)
        await greet(one, "1", "a")
        work = await next_stage(one, "1", "a")
        await one.finished("1", "1", first, made_stages.record(work.spec).summary())
        one._finished._summaries.clear()  # as after a restart; nothing is on storage
        monkeypatch.setattr(module, "RESULT_SECONDS", 0.05)
        await asyncio.gather(*(one.result(f"t000{number}", 0) for number in range(4)))
        assert one._finished.repairs == {first: 1}

    asyncio.run(go())


def test_a_checkpoint_of_a_stage_that_nobody_wants_is_removed(tmp_path):
    async def go():
        one = coordinator(tmp_path)
        ((first, *_),) = await join(one, 0)
        await greet(one, "1", "a")
        await next_stage(one, "1", "a")
        one.store.folder.write(one.store.folder.checkpoint(first), b"weights")
        await one.leave("t0000")
        assert not await one.progress("1", "1", first, 1, 3)
        await one.abandoned("1", "1", first)
        assert not one.store.folder.exists(f"checkpoints/{first}")

    asyncio.run(go())


def test_a_stage_that_another_study_trains_is_tried_later_and_a_dead_claim_is_seized(tmp_path, monkeypatch):
    now = 1_000.0
    monkeypatch.setattr("kdtvit_ray.cluster.claims.time", SimpleNamespace(monotonic=lambda: now))

    async def go():
        nonlocal now
        one = coordinator(tmp_path)
        ((first, *_),) = await join(one, 0)
        await greet(one, "1", "a")
        work = await next_stage(one, "1", "a")
        assert (work.key, work.seize) == (first, None)
        await one.deferred("1", "1", first, Claim("theirs", 0))
        assert await next_stage(one, "1", "a") == WAIT
        told = (await one.snapshot()).stages
        assert (told["ready"], told["elsewhere"]) == (0, 1)
        now += AGAIN_SECONDS
        assert (await next_stage(one, "1", "a")).seize is None
        assert (await one.snapshot()).stages["elsewhere"] == 0, "it is tried again"
        await one.deferred("1", "1", first, Claim("theirs", 1))  # it has beaten
        now += DEAD_SECONDS - 1
        assert (await next_stage(one, "1", "a")).seize is None
        await one.deferred("1", "1", first, Claim("theirs", 1))
        now += AGAIN_SECONDS
        work = await next_stage(one, "1", "a")
        assert (work.key, work.seize) == (first, Claim("theirs", 1))
        await one.taken_over("1", "1", first)
        await one.finished("1", "1", first, made_stages.record(one.specs[first]).summary())
        told = await one.snapshot()
        assert (told.trained, told.taken_over) == (0, 1)

    asyncio.run(go())
