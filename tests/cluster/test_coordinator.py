"""The coordinator without Ray: every call may be repeated, and what it forgot is told to it again."""

import asyncio
from dataclasses import replace

import pyarrow as pa
import pytest

from kdtvit_ray.cluster import coordinator as module
from kdtvit_ray.cluster.coordinator import GRACE_SECONDS, Coordinator
from kdtvit_ray.cluster.health import MEMORY, STAGE, UNKNOWN, Fault
from kdtvit_ray.cluster.messages import STOP, WAIT, StageOutcome
from kdtvit_ray.errors import StorageLost
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.stage_record import Measure
from kdtvit_ray.study import asks
from kdtvit_ray.study.store import StageStore
from tests.clock import clock_of
from tests.study import made_stages

PARAMS = {"temperature": 2.0, "alpha": 0.5, "order": "40>100>200>400", "student": "micro"}


SPACE = made_stages.space().with_data("none")


def start(tmp_path, **settings):
    return Coordinator(str(tmp_path), SPACE.study["metric"], **settings)


async def join(coordinator, ask):
    """Have a trial join; its stages' keys."""
    await coordinator.join(ask.trial, ask.stages, ask.labels)
    return [stage.key for stage in ask.stages]


def trial(number=0, **params):
    return asks.searched(SPACE, number, {**PARAMS, **params})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "RESULT_SECONDS", 0.05)


def save(tmp_path, spec):
    record = made_stages.record(spec)
    StageStore(StudyFolder(str(tmp_path))).save(record, {}, pa.table({"image": []}))
    return record.summary()


def test_a_trial_is_led_through_its_stages(tmp_path):
    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        assert await join(one, trial()) == keys
        after = ""
        for index, key in enumerate(keys):
            work = await one.next_stage("1", "a", "node", 1, after)
            assert work.key == key
            again = await one.next_stage("1", "a", "node", 1, after)
            assert again.key == key, "an answer that was lost is given again"
            assert await one.progress("1", "a", key, 1, 3)
            summary = save(tmp_path, work.spec)
            await one.finished("1", "a", key, summary)
            await one.finished("1", "a", key, summary)
            told = await one.result("t0000", index)
            assert told.state == "done"
            assert told.objective == summary.objective("auc")
            after = key
        assert (await one.next_stage("1", "a", "node", 1, after)) == WAIT
        assert (await one.snapshot()).trained == 4

    asyncio.run(go())


@pytest.mark.parametrize(("metric", "told"), [("auc", 0.2), ("brier", -0.2), ("log_loss", -0.2)])
def test_a_trial_is_told_an_objective_of_which_the_larger_is_better(tmp_path, metric, told):
    async def go():
        one = Coordinator(str(tmp_path), metric)
        keys = await join(one, trial())
        work = await one.next_stage("1", "a", "node", 1, "")
        measured = (Measure(40, "validation", "image", metric, 0.2), Measure(40, "test", "image", metric, 0.7))
        record = replace(made_stages.record(work.spec), measures=measured)
        await one.finished("1", "a", keys[0], record.summary())
        assert await one.result("t0000", 0) == StageOutcome("done", told)

    asyncio.run(go())


def test_a_restarted_coordinator_gives_no_work_before_groups_could_say_what_they_run(tmp_path, monkeypatch):
    pass_seconds = clock_of("kdtvit_ray.cluster.coordinator", monkeypatch)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)

    async def go():
        one = start(tmp_path, restarted=True)
        keys = await join(one, trial())
        pass_seconds(GRACE_SECONDS - 1)
        assert await one.next_stage("2", "b", "node", 1, "") == WAIT, "group 1 may still run it"
        await one.heartbeat("1", "a", keys[0], 1, "node")
        pass_seconds(1)
        assert await one.next_stage("2", "b", "node", 1, "") == WAIT, "it does"
        other = start(tmp_path, restarted=True)
        await join(other, trial())
        pass_seconds(GRACE_SECONDS)
        assert (await other.next_stage("2", "b", "node", 1, "")).key == keys[0]
        assert (await one.next_stage("1", "a", "node", 1, "")).key == keys[0]

    asyncio.run(go())


def test_a_restarted_coordinator_learns_from_store_trials_and_groups(tmp_path):
    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        work = await one.next_stage("1", "a", "node", 1, "")
        await one.finished("1", "a", keys[0], save(tmp_path, work.spec))
        work = await one.next_stage("1", "a", "node", 1, keys[0])
        two = start(tmp_path, restarted=True, grace=0.2)
        assert (await two.result("t0000", 0)).state == "waiting"
        await join(two, trial())
        assert (await two.result("t0000", 0)).state == "done", "the store knows it"
        await two.heartbeat("1", "a", keys[1], 1, "node")
        await asyncio.sleep(0.3)
        assert (await two.next_stage("2", "b", "node", 1, "")) == WAIT, "group 1 still runs it"
        assert await two.progress("1", "a", keys[1], 2, 3)
        await two.finished("1", "a", keys[1], save(tmp_path, work.spec))
        assert (await two.next_stage("2", "b", "node", 1, "")).key == keys[2]

    asyncio.run(go())


def test_a_group_trains_the_child_of_what_it_is_saving_and_the_trial_waits_for_storage(tmp_path):
    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        other = await join(one, trial(1, temperature=8.0))
        first = await one.next_stage("1", "a", "node", 1, "")
        second = await one.next_stage("1", "a", "node", 1, keys[0], "", (keys[0],))
        assert {second.key} < {keys[1], other[1]}
        assert (await one.result("t0000", 0)).state == "waiting", "it is not on storage"
        assert await one.next_stage("2", "b", "node", 1, "") == WAIT
        await one.abandoned("1", "a", second.key)
        assert (await one.snapshot()).in_flight, "it still saves the first stage"
        assert await one.progress("1", "a", second.key, 1, 3, (keys[0],))
        await one.finished("1", "a", keys[0], save(tmp_path, first.spec))
        assert (await one.result("t0000", 0)).state == "done"
        assert (await one.snapshot()).groups[0].key == second.key, "the group runs the next one"
        assert (await one.next_stage("2", "b", "node", 1, "")).key in {keys[1], other[1]} - {second.key}

    asyncio.run(go())


def test_a_restarted_coordinator_learns_what_is_being_saved(tmp_path):
    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        two = start(tmp_path, restarted=True, grace=0.0)
        await two.heartbeat("1", "a", keys[1], 1, "node", "", (keys[0],))
        await join(two, trial())
        assert await two.next_stage("2", "b", "node", 1, "") == WAIT, "before the group speaks again"
        assert await two.progress("1", "a", keys[1], 1, 3, (keys[0],)), "its parent is not on storage yet"
        assert await two.next_stage("2", "b", "node", 1, "") == WAIT

    asyncio.run(go())


def test_what_a_dead_group_was_saving_is_trained_again_with_what_stands_on_it(tmp_path):
    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        await one.next_stage("1", "a", "node", 1, "")
        assert (await one.next_stage("1", "a", "node", 1, keys[0], "", (keys[0],))).key == keys[1]
        await one.gone("1")
        assert (await one.next_stage("2", "b", "node", 1, "")).key == keys[0]

    asyncio.run(go())


def test_what_a_group_says_it_runs_is_given_to_nobody_else_even_before_a_trial_wants_it(tmp_path):
    async def go():
        one = start(tmp_path)
        (first, *_) = await join(one, trial())
        two = start(tmp_path, restarted=True, grace=0.0)
        await two.heartbeat("1", "a", first, 1, "node", "0a1b")
        assert (await two.snapshot()).groups[0].placement_group == "0a1b"
        await join(two, trial())
        assert (await two.next_stage("2", "b", "node", 1, "")) == WAIT
        assert await two.progress("1", "a", first, 2, 3), "its epochs count"
        (group,) = (each for each in (await two.snapshot()).groups if each.name == "1")
        assert (group.epoch, group.epochs) == (2, 3)
        assert "40X" in group.stage

    asyncio.run(go())


def test_a_damaged_stage_is_run_again_and_storage_that_keeps_damaging_stops_the_study(tmp_path):
    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        work = await one.next_stage("1", "a", "node", 1, "")
        summary = save(tmp_path, work.spec)
        file = tmp_path / "stages" / keys[0] / "stage.json"
        file.write_text("")
        two = start(tmp_path)
        await join(two, trial())
        trial_ends = asyncio.create_task(two.result("t0000", 0))
        while two.tree.counts()["done"]:
            await asyncio.sleep(0.01)
        work = await two.next_stage("1", "a", "node", 1, "")
        assert work.key == keys[0], "it is there, but it cannot be read"
        assert work.again
        save(tmp_path, work.spec)
        await two.finished("1", "a", keys[0], summary)
        assert (await trial_ends).state == "done"
        for _ in range(3):  # now its weights, as the group that runs its child finds out
            work = await two.next_stage("1", "a", "node", 1, keys[0])
            assert work.key == keys[1]
            await two.damaged("1", "a", keys[1], keys[0], "its weights are torn")
            if two.draining:
                break
            work = await two.next_stage("1", "a", "node", 1, "")
            assert (work.key, work.again) == (keys[0], True)
            await two.finished("1", "a", keys[0], summary)
        assert two.draining
        assert "its weights are torn, again after 3 repairs" in two.storage_lost

    asyncio.run(go())


def test_many_ranks_that_meet_the_same_damage_are_one_repair(tmp_path):
    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        work = await one.next_stage("1", "a", "node", 8, "")
        summary = save(tmp_path, work.spec)
        await one.finished("1", "a", keys[0], summary)
        await one.next_stage("1", "a", "node", 8, keys[0])
        for _ in range(8):
            await one.damaged("1", "a", keys[1], keys[0], "its weights are torn")
        assert not one.draining, "more ranks than repairs that are allowed"
        work = await one.next_stage("1", "b", "node", 8, "")
        assert (work.key, work.again) == (keys[0], True)
        await one.damaged("1", "a", keys[1], keys[0], "a late word of a rank that is gone")
        assert (await one.snapshot()).groups[0].key == keys[0], "the group that was restarted runs on"
        await one.finished("1", "b", keys[0], summary)
        assert (await one.next_stage("1", "b", "node", 8, keys[0])).key == keys[1]

    asyncio.run(go())


def test_a_stage_that_kills_its_workers_tells_what_they_said_last(tmp_path):
    async def go():
        one = start(tmp_path)
        await join(one, trial())
        for incarnation in "abc":
            await one.next_stage("1", incarnation, "node", 1, "")
            await one.worker_dies("1", incarnation, Fault(UNKNOWN, "n", f"AcceleratorError: CUDA error {incarnation}"))
            await one.worker_dies("1", incarnation, Fault(UNKNOWN, "n", "RuntimeError: the connection is closed"))
        await one.gone("1")
        told = await one.result("t0000", 0)
        assert (told.state, told.fault) == ("failed", "infrastructure")
        assert told.reason.endswith("last with AcceleratorError: CUDA error c")

    asyncio.run(go())


def test_the_stage_of_a_group_that_came_back_or_fell_silent_is_given_to_another(tmp_path):
    async def go():
        one = start(tmp_path, silence=1_000.0)
        keys = await join(one, trial())
        await one.next_stage("1", "a", "node", 1, "")
        work = await one.next_stage("1", "another incarnation", "node", 1, "")
        assert work.key == keys[0]
        one.roster.groups["1"].seen -= 2_000.0
        assert (await one.next_stage("2", "b", "node", 1, "")).key == keys[0]
        assert not await one.progress("1", "another incarnation", keys[0], 1, 3), "it is group 2's now"

    asyncio.run(go())


def test_a_group_that_ends_while_it_asks_for_work_is_given_none(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 60.0)

    async def go():
        one = start(tmp_path)
        asks_for_work = asyncio.create_task(one.next_stage("1", "a", "node", 1, ""))
        await asyncio.sleep(0)  # the question is open
        await one.gone("1")
        (first, *_) = await join(one, trial())
        assert await asks_for_work == STOP
        assert (await one.next_stage("2", "b", "node", 1, "")).key == first

    asyncio.run(go())


def test_a_group_that_is_silent_for_a_while_and_lives_has_not_died(tmp_path):
    async def go():
        one = start(tmp_path)
        (first, *_) = await join(one, trial())
        await one.next_stage("1", "a", "node", 1, "")
        for _ in range(5):
            one.roster.forget_silent(-1.0)  # however short it was
            assert not (await one.snapshot()).groups
            assert one.tree.nodes[first].losses == 1
            assert await one.progress("1", "a", first, 0, 3), "it goes on"
            assert one.tree.nodes[first].losses == 0

    asyncio.run(go())


def test_a_stage_in_which_every_group_falls_silent_fails_and_says_so(tmp_path):
    async def go():
        one = start(tmp_path)
        (first, *_) = await join(one, trial())
        for name in "123":
            assert (await one.next_stage(name, "a", "node", 1, "")).key == first
            one.roster.groups[name].seen -= 1_000.0
            one.roster.forget_silent(60.0)
        told = await one.result("t0000", 0)
        assert (told.state, told.fault) == ("failed", "infrastructure")
        assert told.reason.endswith("last with no word for 60 s")

    asyncio.run(go())


def test_a_silent_group_whose_processes_were_replaced_is_not_listened_to(tmp_path):
    async def go():
        one = start(tmp_path)
        (first, *_) = await join(one, trial())
        await one.next_stage("1", "old", "node", 1, "")
        one.roster.forget_silent(-1.0)
        assert (await one.next_stage("1", "new", "node", 1, "")).key == first
        assert await one.next_stage("1", "old", "node", 1, "") == STOP
        assert one.tree.running == {"1": first}

    asyncio.run(go())


def test_a_failed_stage_fails_its_trials_with_the_reason(tmp_path):
    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        await join(one, next(each for each in asks.baselines(SPACE) if each.trial == "joint"))
        await one.next_stage("1", "a", "node", 1, "")
        await one.faulted("1", "a", keys[0], Fault(STAGE, "n", "The loss is not finite in epoch 1, step 2"))
        told = await one.result("t0000", 3)
        assert told == StageOutcome("failed", reason="The loss is not finite in epoch 1, step 2", fault="stage")
        work = await one.next_stage("1", "a", "node", 1, "")
        assert work.spec.magnifications == (40, 100, 200, 400)

    asyncio.run(go())


def test_draining_stops_trials_and_groups_at_the_next_epoch(tmp_path):
    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        await one.next_stage("1", "a", "node", 1, "")
        waiting = asyncio.create_task(one.result("t0000", 0))
        await asyncio.sleep(0.05)
        await one.lost_storage("storage is away")
        assert (await waiting).state == "stopped"
        assert not await one.progress("1", "a", keys[0], 1, 3)
        await one.abandoned("1", "a", keys[0])
        assert (await one.next_stage("1", "a", "node", 1, "")) == STOP
        assert (await one.snapshot()).lost_storage == "storage is away"

    asyncio.run(go())


def test_storage_lost_at_the_start_or_on_a_later_read_stops_the_study_with_its_reason(tmp_path, monkeypatch):
    def away(*_):
        raise StorageLost("Listing the stages failed 8 times, last with: no route to host")

    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        await one.next_stage("1", "a", "node", 1, "")
        summary = made_stages.record(one.specs[keys[0]]).summary()
        await one.finished("1", "a", keys[0], summary)
        one._finished._summaries.clear()  # as after a restart
        monkeypatch.setattr(StageStore, "record", away)
        assert await one.result("t0000", 0) == StageOutcome("stopped")
        assert "no route to host" in (await one.snapshot()).lost_storage

        monkeypatch.setattr(StageStore, "keys", away)
        other = start(tmp_path)
        assert (await other.next_stage("1", "a", "node", 1, "")) == STOP
        assert "no route to host" in (await other.snapshot()).lost_storage

    asyncio.run(go())


def test_a_worker_without_memory_fails_the_stage_before_its_group_restarts(tmp_path):
    async def go():
        one = start(tmp_path)
        await join(one, trial())
        work = await one.next_stage("1", "a", "node", 2, "")
        await one.faulted("1", "a", work.key, Fault(MEMORY, "n", "Out of memory in epoch 2"))
        await one.gone("1")
        told = await one.result("t0000", 0)
        assert told == StageOutcome("failed", reason="Out of memory in epoch 2", fault="infrastructure")

    asyncio.run(go())


def test_a_trial_that_leaves_takes_its_stage_along_unless_another_wants_it(tmp_path):
    async def go():
        one = start(tmp_path)
        keys = await join(one, trial())
        await join(one, trial(1, temperature=8.0))
        await one.next_stage("1", "a", "node", 1, "")
        await one.leave("t0000")
        assert await one.progress("1", "a", keys[0], 1, 3), "t0001 begins alike"
        await one.leave("t0001")
        assert not await one.progress("1", "a", keys[0], 2, 3)

    asyncio.run(go())
