"""The coordinator without Ray: every call may be repeated, and what it forgot is told to it again."""

import asyncio

import pyarrow as pa
import pytest

from kdtvit_ray.cluster import coordinator as module
from kdtvit_ray.cluster.coordinator import Coordinator
from kdtvit_ray.errors import StorageLost
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.study.stage_results import summary_of
from kdtvit_ray.study.store import StageStore
from tests.study import made_stages

PARAMS = {"temperature": 2.0, "alpha": 0.5, "order": "40>100>200>400", "student": "micro"}


@pytest.fixture
def space():
    return made_stages.space().with_data("none")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)


def save(tmp_path, plain):
    spec = StageSpec.from_dict(plain)
    StageStore(StudyFolder(str(tmp_path))).save(spec.key, made_stages.about_of(spec), {}, pa.table({"image": []}))
    return summary_of(made_stages.about_of(spec))


def test_a_trial_is_led_through_its_stages(tmp_path, space):
    async def go():
        one = Coordinator(str(tmp_path), space)
        keys = await one.join("t0000", "search", PARAMS)
        assert await one.join("t0000", "search", PARAMS) == keys
        after = ""
        for index, key in enumerate(keys):
            order = await one.next_stage("1", "a", "node", 1, after)
            assert order["key"] == key
            again = await one.next_stage("1", "a", "node", 1, after)
            assert again["key"] == key, "an answer that was lost is given again"
            assert await one.progress("1", "a", key, 1, 3)
            measured = save(tmp_path, order["spec"])
            await one.finished("1", "a", key, measured)
            await one.finished("1", "a", key, measured)
            told = await one.result("t0000", index)
            assert told["state"] == "done"
            assert told["objective"] == measured["objectives"]["auc"]
            after = key
        assert (await one.next_stage("1", "a", "node", 1, after))["action"] == "wait"
        assert (await one.snapshot())["trained"] == 4

    asyncio.run(go())


def test_a_restarted_coordinator_learns_from_store_trials_and_groups(tmp_path, space):
    async def go():
        one = Coordinator(str(tmp_path), space)
        keys = await one.join("t0000", "search", PARAMS)
        order = await one.next_stage("1", "a", "node", 1, "")
        await one.finished("1", "a", keys[0], save(tmp_path, order["spec"]))
        order = await one.next_stage("1", "a", "node", 1, keys[0])
        two = Coordinator(str(tmp_path), space, restarted=True, grace=0.2)
        assert (await two.result("t0000", 0))["state"] == "unknown"
        await two.join("t0000", "search", PARAMS)
        assert (await two.result("t0000", 0))["state"] == "done", "the store knows it"
        await two.heartbeat("1", "a", keys[1], 1, "node")
        await asyncio.sleep(0.3)
        assert (await two.next_stage("2", "b", "node", 1, ""))["action"] == "wait", "group 1 still runs it"
        assert await two.progress("1", "a", keys[1], 2, 3)
        await two.finished("1", "a", keys[1], save(tmp_path, order["spec"]))
        assert (await two.next_stage("2", "b", "node", 1, ""))["key"] == keys[2]

    asyncio.run(go())


def test_what_a_group_says_it_runs_is_given_to_nobody_else_even_before_a_trial_wants_it(tmp_path, space):
    async def go():
        one = Coordinator(str(tmp_path), space)
        (first, *_) = await one.join("t0000", "search", PARAMS)
        two = Coordinator(str(tmp_path), space, restarted=True, grace=0.0)
        await two.heartbeat("1", "a", first, 1, "node", "0a1b")
        assert (await two.snapshot())["groups"][0]["placement_group"] == "0a1b"
        await two.join("t0000", "search", PARAMS)
        assert (await two.next_stage("2", "b", "node", 1, ""))["action"] == "wait"
        assert await two.progress("1", "a", first, 2, 3), "its epochs count"
        (group,) = (each for each in (await two.snapshot())["groups"] if each["name"] == "1")
        assert (group["epoch"], group["epochs"]) == (2, 3)
        assert "40X" in group["stage"]
        assert group["busy_since"] < 60

    asyncio.run(go())


def test_a_damaged_stage_is_run_again_and_storage_that_keeps_damaging_stops_the_study(tmp_path, space):
    async def go():
        one = Coordinator(str(tmp_path), space)
        keys = await one.join("t0000", "search", PARAMS)
        order = await one.next_stage("1", "a", "node", 1, "")
        measured = save(tmp_path, order["spec"])
        file = tmp_path / "stages" / keys[0] / "stage.json"
        file.write_text("")
        two = Coordinator(str(tmp_path), space)
        await two.join("t0000", "search", PARAMS)
        trial = asyncio.create_task(two.result("t0000", 0))
        while two.tree.counts()["done"]:
            await asyncio.sleep(0.01)
        order = await two.next_stage("1", "a", "node", 1, "")
        assert order["key"] == keys[0], "it is there, but it cannot be read"
        assert order["again"]
        save(tmp_path, order["spec"])
        await two.finished("1", "a", keys[0], measured)
        assert (await trial)["state"] == "done"
        for _ in range(3):  # now its weights, as the group that runs its child finds out
            order = await two.next_stage("1", "a", "node", 1, keys[0])
            assert order["key"] == keys[1]
            await two.damaged("1", keys[1], keys[0], "its weights are torn")
            if two.draining:
                break
            order = await two.next_stage("1", "a", "node", 1, "")
            assert (order["key"], order["again"]) == (keys[0], True)
            await two.finished("1", "a", keys[0], measured)
        assert two.draining
        assert "its weights are torn, again after 3 repairs" in two.fatal

    asyncio.run(go())


def test_a_stage_that_kills_its_workers_tells_what_they_said_last(tmp_path, space):
    async def go():
        one = Coordinator(str(tmp_path), space)
        await one.join("t0000", "search", PARAMS)
        for incarnation in "abc":
            await one.next_stage("1", incarnation, "node", 1, "")
            await one.last_error("1", "AcceleratorError: CUDA error: an illegal memory access was encountered")
        await one.gone("1")
        told = await one.result("t0000", 0)
        assert told["state"] == "failed"
        assert told["reason"].endswith(
            "last with AcceleratorError: CUDA error: an illegal memory access was encountered"
        )

    asyncio.run(go())


def test_the_stage_of_a_group_that_came_back_or_fell_silent_is_given_to_another(tmp_path, space):
    async def go():
        one = Coordinator(str(tmp_path), space, silence=0.1)
        keys = await one.join("t0000", "search", PARAMS)
        await one.next_stage("1", "a", "node", 1, "")
        order = await one.next_stage("1", "another incarnation", "node", 1, "")
        assert order["key"] == keys[0]
        await asyncio.sleep(0.15)
        assert (await one.next_stage("2", "b", "node", 1, ""))["key"] == keys[0]
        assert not await one.progress("1", "another incarnation", keys[0], 1, 3), "it is group 2's now"

    asyncio.run(go())


def test_a_failed_stage_fails_its_trials_with_the_reason(tmp_path, space):
    async def go():
        one = Coordinator(str(tmp_path), space)
        keys = await one.join("t0000", "search", PARAMS)
        await one.join("joint", "baseline", {})
        await one.next_stage("1", "a", "node", 1, "")
        await one.failed("1", "a", keys[0], "The loss is not finite in epoch 1, step 2")
        told = await one.result("t0000", 3)
        assert told == {"state": "failed", "reason": "The loss is not finite in epoch 1, step 2"}
        order = await one.next_stage("1", "a", "node", 1, "")
        assert order["spec"]["magnifications"] == (40, 100, 200, 400)

    asyncio.run(go())


def test_draining_stops_trials_and_groups_at_the_next_epoch(tmp_path, space):
    async def go():
        one = Coordinator(str(tmp_path), space)
        keys = await one.join("t0000", "search", PARAMS)
        await one.next_stage("1", "a", "node", 1, "")
        waiting = asyncio.create_task(one.result("t0000", 0))
        await asyncio.sleep(0.05)
        await one.lost_storage("storage is away")
        assert (await waiting)["state"] == "stopped"
        assert not await one.progress("1", "a", keys[0], 1, 3)
        await one.abandoned("1", "a", keys[0])
        assert (await one.next_stage("1", "a", "node", 1, ""))["action"] == "stop"
        assert (await one.snapshot())["fatal"] == "storage is away"

    asyncio.run(go())


def test_storage_lost_at_the_start_or_on_a_later_read_stops_the_study_with_its_reason(tmp_path, space, monkeypatch):
    def away(*_):
        raise StorageLost("Listing the stages failed 8 times, last with: no route to host")

    async def go():
        one = Coordinator(str(tmp_path), space)
        keys = await one.join("t0000", "search", PARAMS)
        await one.next_stage("1", "a", "node", 1, "")
        measured = summary_of(made_stages.about_of(one.specs[keys[0]]))
        await one.finished("1", "a", keys[0], measured)
        one._results.clear()  # as after a restart
        monkeypatch.setattr(StageStore, "about", away)
        assert await one.result("t0000", 0) == {"state": "stopped"}
        assert "no route to host" in (await one.snapshot())["fatal"]

        monkeypatch.setattr(StageStore, "keys", away)
        other = Coordinator(str(tmp_path), space)
        assert (await other.next_stage("1", "a", "node", 1, ""))["action"] == "stop"
        assert "no route to host" in (await other.snapshot())["fatal"]

    asyncio.run(go())


def test_a_worker_without_memory_fails_the_stage_before_its_group_restarts(tmp_path, space):
    async def go():
        one = Coordinator(str(tmp_path), space)
        await one.join("t0000", "search", PARAMS)
        order = await one.next_stage("1", "a", "node", 2, "")
        await one.fail("1", order["key"], "Out of memory in epoch 2")
        await one.gone("1")
        assert await one.result("t0000", 0) == {"state": "failed", "reason": "Out of memory in epoch 2"}

    asyncio.run(go())


def test_a_trial_that_leaves_takes_its_stage_along_unless_another_wants_it(tmp_path, space):
    async def go():
        one = Coordinator(str(tmp_path), space)
        keys = await one.join("t0000", "search", PARAMS)
        await one.join("t0001", "search", {**PARAMS, "temperature": 8.0})
        await one.next_stage("1", "a", "node", 1, "")
        await one.leave("t0000")
        assert await one.progress("1", "a", keys[0], 1, 3), "t0001 begins alike"
        await one.leave("t0001")
        assert not await one.progress("1", "a", keys[0], 2, 3)

    asyncio.run(go())


def test_the_objective_is_the_mean_over_magnifications_on_validation_images_alone():
    measures = [
        [40, "validation", "image", "auc", 0.8], [100, "validation", "image", "auc", 0.6],
        [40, "test", "image", "auc", 0.1], [40, "validation", "patient_vote", "auc", 0.2],
        [40, "validation", "image", "accuracy", 0.3],
    ]  # fmt: skip
    cost = {"parameters": 5, "train_seconds": 2.0, "evaluate_seconds": 1.0}
    summary = summary_of({"measures": measures, "cost": cost})
    assert summary["objectives"]["auc"] == pytest.approx(0.7)
    assert summary["cost"] == 3.0
