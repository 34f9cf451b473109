"""What the coordinator makes of faults: which groups get stages, where a stage is tried again, when it fails."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kdtvit_ray.cluster import coordinator as module
from kdtvit_ray.cluster import health as health_module
from kdtvit_ray.cluster.claims import AGAIN_SECONDS, DEAD_SECONDS
from kdtvit_ray.cluster.coordinator import Coordinator
from kdtvit_ray.cluster.health import MEMORY, NODE, STAGE, UNKNOWN, Fault
from kdtvit_ray.cluster.messages import GREET, STOP, WAIT
from kdtvit_ray.recipe import RECIPE_VERSION
from kdtvit_ray.study import asks
from kdtvit_ray.study.library import Claim
from tests.clock import clock_of
from tests.cluster.test_health import GOOD, SPACE, WANTED
from tests.study import made_stages


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


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
        assert f"has training recipe {RECIPE_VERSION}, the driver's 1" in await other.ready()

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
        await one.nodes({"a": "host a", "b": "host b"}, {}, "ab")
        await next_stage(one, "1", "a")
        await one.faulted("1", "1", first, Fault(UNKNOWN, "a", "RuntimeError: why"))
        assert one.tree.nodes[first].state == "ready"
        monkeypatch.setattr(health_module, "START_SECONDS", 0.0)
        await one.nodes({"a": "host a", "b": "host b"}, {}, "ab")
        assert one.tree.nodes[first].state == "failed"

    asyncio.run(go())


def test_a_stage_does_not_wait_for_a_node_that_no_group_can_have(tmp_path, monkeypatch):
    pass_seconds = clock_of("kdtvit_ray.cluster.blame", monkeypatch)

    async def go():
        one = coordinator(tmp_path, more=True)
        living = {"head": "head", "a": "host a", "b": "host b"}
        ((first, *_),) = await join(one, 0)
        for rank, node in enumerate("ab"):
            await one.greet("1", "1", rank, replace(GOOD, node=node))
        await one.nodes(living, {}, "ab")  # other groups wait for machines that do not come
        await one.next_stage("1", "1", "a", 2, "")
        await one.faulted("1", "1", first, Fault(MEMORY, "a", "out of memory"))
        pass_seconds(health_module.PROOF_SECONDS - 1)
        await one.nodes(living, {}, "ab")
        assert one.tree.nodes[first].state == "ready"
        pass_seconds(1)
        await one.nodes(living, {}, ["a", "b", "head"])
        assert one.tree.nodes[first].state == "ready", "the head can have one"
        await one.nodes(living, {}, "ab")
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
            await one.nodes({node: "host"}, {}, ())
            await one.greet("1", node, 0, replace(GOOD, node=node))
            assert (await one.next_stage("1", node, node, 1, "")).key == first
            await one.nodes({"another": "host"}, {}, ())  # the node is gone, and the group with it
            await one.gone("1")
        assert one.tree.nodes[first].losses == 0
        for number in range(3):  # a death that is seen before that of its node is forgiven
            await one.nodes({"a": "host", "b": "host"}, {}, ())
            await one.greet("1", f"i{number}", 0, replace(GOOD, node="a"))
            assert (await one.next_stage("1", f"i{number}", "a", 1, "")).key == first
            await one.gone("1")
            assert one.tree.nodes[first].losses == 1
            await one.nodes({"b": "host"}, {}, ())
            assert one.tree.nodes[first].losses == 0

    asyncio.run(go())


@pytest.mark.parametrize("told", [None, UNKNOWN, NODE])
def test_a_node_that_kills_its_workers_is_set_aside_and_not_the_others_of_its_group(tmp_path, told):
    """The worker beside it may have told that it lost the connection."""

    async def go():
        one = coordinator(tmp_path, more=True)
        for number, first in enumerate((40, 100, 200, 400)):
            order = ">".join(map(str, [first, *({40, 100, 200, 400} - {first})]))
            ask = asks.searched(SPACE, number, {"temperature": 2.0, "alpha": 0.5, "order": order, "student": "micro"})
            await one.join(ask.trial, ask.stages, ask.labels)
        await greet(one, "2", "c")
        await next_stage(one, "2", "c")
        for incarnation in "xyz":
            for rank, node in enumerate("ab"):
                assert await one.greet("1", incarnation, rank, replace(GOOD, node=node)) == ""
            assert (await one.next_stage("1", incarnation, "a", 2, "")).key
            if told:
                await one.worker_dies("1", incarnation, Fault(told, "b", "ConnectionError: reset by peer"))
            assert not await one.died("1", {0: "it was killed", 1: "ConnectionError: reset by peer"}, [0])
            await one.gone("1")
        assert one.health.aside == {"a": "3 stages failed on it, last with: it was killed"}

    asyncio.run(go())


async def dies_early(one, name, node, why="RuntimeError: CUDA error: out of memory"):
    """A worker of a group dies before it has a stage."""
    await one.placed(name, [node])
    early = await one.died(name, {0: why})
    await one.gone(name)
    return early


def test_a_node_on_which_workers_die_before_they_have_a_stage_is_set_aside_and_before_that_told(tmp_path):
    async def go():
        one = coordinator(tmp_path)
        await join(one, 0)
        await one.nodes({"a": "host a", "b": "host b"}, {}, "ab")
        assert await dies_early(one, "1", "a")
        assert not (await one.snapshot()).dying, "once is no habit"
        await dies_early(one, "1", "b")
        await greet(one, "1", "a")  # it goes further, and dies all the same
        await dies_early(one, "1", "a")
        told = "died 2 times before it had a stage, last with: RuntimeError: CUDA error: out of memory"
        assert (await one.snapshot()).dying == (f"group 1 on host a {told}",)
        await dies_early(one, "1", "a")
        snapshot = await one.snapshot()
        assert snapshot.aside == {"a": f"a worker {told.replace('2', '3')}"}
        assert not snapshot.dying

    asyncio.run(go())


def test_a_node_on_which_others_work_is_not_set_aside_for_a_group_that_cannot_start_there(tmp_path):
    async def go():
        one = coordinator(tmp_path)
        await join(one, 0)
        await greet(one, "1", "a")
        work = await next_stage(one, "1", "a")
        for _ in range(5):
            await dies_early(one, "2", "a")
        assert not one.health.aside
        (told,) = (await one.snapshot()).dying
        assert "group 2 on a died 5 times" in told
        await one.finished("1", "1", work.key, made_stages.record(work.spec).summary())
        await greet(one, "2", "a")
        await next_stage(one, "2", "a")
        assert not (await one.snapshot()).dying, "it could be started in the end"
        await one.gone("1")
        await one.gone("2")
        for _ in range(3):
            await dies_early(one, "2", "a")
        assert one.health.aside.keys() == {"a"}, "nobody works there any more"

    asyncio.run(go())


def test_a_death_in_or_after_a_stage_is_no_early_one_nor_is_one_of_which_nothing_is_known(tmp_path):
    async def go():
        one = coordinator(tmp_path)
        await join(one, 0)
        for number in range(5):
            await one.placed("1", ["a"])
            await one.greet("1", str(number), 0, GOOD)
            work = await one.next_stage("1", str(number), "a", 1, "")
            await one.finished("1", str(number), work.key, made_stages.record(work.spec).summary())
            assert not await one.died("1", {0: "its process was killed"})
            await one.gone("1")
            await join(one, number + 1)
        assert await one.died("2", {0: "why"}), "the coordinator was restarted after the group was placed"
        assert not one.health.aside

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
        await one.gone("1", "old")
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
