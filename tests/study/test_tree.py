"""The stage tree: random studies, with groups that finish, fail and die and trials that come and go at any moment."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kdtvit_ray.study.tree import StageTree, State


def path(*keys):
    """Stages of a trial as (key, parent), each key's parent being the one before."""
    return [(key, keys[index - 1] if index else None) for index, key in enumerate(keys)]


def test_a_stage_that_two_trials_want_runs_once():
    tree = StageTree()
    tree.join("one", path("a", "ab"))
    tree.join("two", path("a", "ac"))
    assert tree.take("g1") == "a"
    assert tree.take("g2") is None
    tree.finish("g1", "a")
    assert {tree.take("g1", after="a"), tree.take("g2")} == {"ab", "ac"}


def test_the_child_of_what_the_group_has_just_finished_comes_first_then_the_most_wanted_then_the_oldest():
    tree = StageTree()
    tree.join("old", path("o"))
    tree.join("one", path("a", "ab"))
    for trial in ("two", "three"):
        tree.join(trial, path("p"))
    assert tree.take("g1") == "p"
    assert tree.take("g2") == "o"
    assert tree.take("g3") == "a"
    tree.finish("g3", "a")
    for trial in ("four", "five"):
        tree.join(trial, path("q"))
    assert tree.take("g3", after="a") == "ab"
    assert tree.take("g4", after="a") == "q"


def test_a_stage_is_as_wanted_as_the_trials_that_are_left():
    tree = StageTree()
    for trial in ("one", "two", "three"):
        tree.join(trial, path("a"))
    for trial in ("four", "five"):
        tree.join(trial, path("b"))
    tree.leave("one")
    tree.leave("two")
    assert (tree.take("g1"), tree.take("g2")) == ("b", "a")


def test_stages_on_storage_are_not_run_again():
    tree = StageTree()
    tree.join("one", path("a", "ab", "abc"), done={"a", "ab"})
    assert tree.take("g") == "abc"
    assert tree.counts()["done"] == 2


def test_a_failed_stage_fails_what_is_below_it_and_nothing_else():
    tree = StageTree()
    tree.join("one", path("a", "ab", "abc"))
    tree.join("two", path("a", "ad"))
    tree.take("g")
    tree.finish("g", "a")
    assert tree.take("g", after="a") == "ab"
    tree.fail("ab", "non-finite loss")
    assert (tree.nodes["abc"].state, tree.nodes["abc"].reason) == (State.FAILED, "non-finite loss")
    assert tree.take("g") == "ad"
    tree.join("three", path("a", "ab", "abd"))
    assert tree.nodes["abd"].state is State.FAILED


def test_a_stage_survives_deaths_as_long_as_it_makes_progress():
    tree = StageTree(attempts=3)
    tree.join("one", path("a"))
    for epoch in range(1, 8):
        assert tree.take("g") == "a"
        assert tree.progress("a", epoch)
        tree.lose("g")
        assert tree.nodes["a"].state is State.READY
    for _ in range(2):
        assert tree.take("g") == "a"
        tree.lose("g")
    assert tree.nodes["a"].state is State.FAILED
    assert "died 3 times" in tree.nodes["a"].reason


def test_a_stage_nobody_wants_is_abandoned_unless_somebody_joins_in_time():
    tree = StageTree()
    tree.join("one", path("a", "ab"))
    tree.take("g")
    tree.leave("one")
    assert not tree.progress("a", 1)
    tree.join("two", path("a"))
    assert tree.progress("a", 2)
    tree.leave("two")
    tree.abandon("g", "a")
    assert tree.take("g") is None
    assert "ab" not in tree.nodes


def test_a_running_stage_of_a_stopped_trial_is_left_alone_when_another_wants_it():
    tree = StageTree()
    tree.join("one", path("a"))
    tree.join("two", path("a"))
    tree.take("g")
    tree.leave("one")
    assert tree.progress("a", 1)


def test_after_a_restart_a_group_takes_its_running_stage_up_again():
    tree = StageTree()
    tree.join("one", path("a"))
    assert tree.resume("g1", "a")
    assert tree.take("g2") is None
    assert not tree.resume("g2", "a")
    tree.finish("g1", "a")
    assert not tree.resume("g1", "a")


def test_a_stage_finished_by_a_group_thought_dead_counts():
    tree = StageTree()
    tree.join("one", path("a", "ab"))
    tree.take("g1")
    tree.lose("g1")
    assert tree.take("g2") == "a"
    tree.finish("g1", "a")
    assert tree.nodes["a"].state is State.DONE
    assert "g2" not in tree.running
    assert tree.take("g2") == "ab"


def test_a_damaged_stage_is_run_again_before_what_is_below_it():
    tree = StageTree()
    tree.join("one", path("a", "ab"))
    tree.join("two", path("a", "ac"))
    tree.take("g1")
    tree.finish("g1", "a")
    assert tree.take("g1") == "ab"
    tree.reopen("a")
    assert tree.nodes["ac"].state is State.WAITING
    assert tree.take("g2") == "a"
    tree.lose("g1")
    assert tree.nodes["ab"].state is State.WAITING, "what it stood on is not there"
    assert tree.take("g1") is None
    tree.reopen("a")  # said twice it changes nothing: it is running
    tree.finish("g2", "a")
    assert {tree.take("g1"), tree.take("g2")} == {"ab", "ac"}


def test_a_late_word_of_a_group_about_another_stage_changes_nothing():
    tree = StageTree()
    tree.join("one", path("a"))
    tree.join("two", path("b"))
    key = tree.take("g1")
    other = "b" if key == "a" else "a"
    assert not tree.resume("g1", other)
    assert tree.nodes[other].state is State.READY
    assert tree.take("g2") == other


def test_a_group_goes_on_with_the_child_of_what_it_is_saving_and_no_other_group_does():
    tree = StageTree()
    tree.join("one", path("a", "ab"))
    tree.join("two", path("a", "ac"))
    assert tree.take("g1") == "a"
    tree.trained("g1", "a")
    tree.trained("g1", "a")
    assert tree.take("g2") is None
    assert tree.counts()["running"] == 1
    assert tree.take("g1", after="a") == "ab"
    assert tree.counts() == {"waiting": 1, "ready": 0, "elsewhere": 0, "running": 2, "done": 0, "failed": 0}
    tree.finish("g1", "a")
    tree.trained("g1", "a")  # a late word
    assert tree.nodes["a"].state is State.DONE
    assert tree.running == {"g1": "ab"}
    assert tree.take("g2") == "ac"


def test_a_group_that_dies_loses_what_it_was_saving_and_what_stands_on_it():
    tree = StageTree(attempts=2)
    tree.join("one", path("a", "ab"))
    tree.take("g1")
    tree.trained("g1", "a")
    tree.take("g1", after="a")
    tree.lose("g1")
    assert (tree.nodes["a"].state, tree.nodes["ab"].state) == (State.READY, State.WAITING)
    assert tree.nodes["a"].losses == 0, "the death counts against the stage that ran"
    assert tree.take("g2") == "a"
    for group in ("g2", "g1"):
        tree.trained(group, "a")
        tree.lose(group)
        tree.take("g1")
    assert tree.nodes["a"].state is State.FAILED, "it dies of being saved, again and again"
    tree.finish("g1", "a")
    assert tree.nodes["ab"].state is State.FAILED


def test_after_a_restart_a_group_goes_on_saving_and_with_the_child():
    tree = StageTree()
    tree.join("one", path("a", "ab", "abc"))
    assert not tree.resume("g1", "abc")
    for key in ("a", "ab"):
        tree.trained("g1", key)
    assert not tree.resume("g2", "abc")
    assert tree.resume("g1", "abc")
    tree.trained("g2", "a")
    assert tree.take("g2") is None
    for key in ("a", "ab", "abc"):
        tree.finish("g1", key)
    assert tree.counts()["done"] == 3


CHAIN = st.lists(st.integers(0, 2), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(trials=st.lists(CHAIN, min_size=1, max_size=12), seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 5))
def test_under_any_interleaving_no_stage_runs_twice_and_every_trial_ends(trials, seed, groups):
    """Chains over a small alphabet share many prefixes; groups and trials misbehave at random."""
    rng = random.Random(seed)
    tree = StageTree(attempts=3)
    wanted = {
        f"t{n}": path(*("".join(map(str, chain[: k + 1])) for k in range(len(chain)))) for n, chain in enumerate(trials)
    }
    waiting, live, stopped = list(wanted), set(), set()
    running: dict[str, str] = {}
    saving: dict[str, list[str]] = {}
    finished: dict[str, str] = {}
    last: dict[str, str] = {}
    poison = {key for stages in wanted.values() for key, _ in stages if rng.random() < 0.1}

    for _ in range(20_000):
        over = [t for t in live if all(tree.nodes[k].state in (State.DONE, State.FAILED) for k, _ in wanted[t])]
        for trial in over:
            live.discard(trial)
            tree.leave(trial)
            stopped.add(trial)
        if not waiting and not live:
            break
        action = rng.random()
        if waiting and action < 0.2:
            trial = waiting.pop()
            tree.join(trial, wanted[trial])
            tree.join(trial, wanted[trial])  # saying it twice changes nothing
            live.add(trial)
        elif live and action < 0.23:
            trial = rng.choice(sorted(live))
            tree.leave(trial)
            live.discard(trial)
            stopped.add(trial)
        else:
            group = f"g{rng.randrange(groups)}"
            unsaved = saving.setdefault(group, [])
            if unsaved and rng.random() < 0.3:
                tree.finish(group, unsaved[0])
                finished[unsaved.pop(0)] = group
            elif group not in running:
                key = tree.take(group, last.get(group))
                if key is not None:
                    assert key not in running.values(), "a stage runs in two groups"
                    assert not any(key in each for each in saving.values()), "a stage is run while it is saved"
                    assert key not in finished, "a finished stage is run again"
                    parent = key[:-1]
                    assert not parent or parent in finished or parent in unsaved, "a stage runs before its parent"
                    running[group] = key
            else:
                key = running.pop(group)
                event = rng.random()
                late = rng.choice(sorted(tree.nodes))
                assert late == key or not tree.resume(group, late), "a group runs two stages"
                if event < 0.15:
                    tree.lose(group)
                    unsaved.clear()
                    last.pop(group, None)
                elif event < 0.25 and key[:-1] in finished:  # its parent turns out to be damaged
                    tree.abandon(group, key)
                    tree.reopen(key[:-1])
                    del finished[key[:-1]]
                elif key in poison:
                    tree.fail(key, "poison")
                elif not tree.progress(key, 1):
                    tree.abandon(group, key)
                else:
                    if unsaved or rng.random() < 0.5:  # what is trained first is on storage first
                        tree.trained(group, key)
                        unsaved.append(key)
                    else:
                        tree.finish(group, key)
                        finished[key] = group
                    last[group] = key
    assert not waiting
    assert not live, "a trial never ended"
    assert stopped == set(wanted)
    assert not tree.running or set(tree.running.values()) <= set(running.values())


def simulate(
    trials: int, groups: int, seed: int, settings_of_a_stage: int = 12, death: float = 0.01
) -> dict[str, float]:
    """A study on simulated groups with stage times of 1 to 2 units: makespan, utilisation, stages saved."""
    import heapq
    import itertools

    rng = random.Random(seed)
    orders = ["".join(order) for order in itertools.permutations("1248")]
    tree = StageTree(attempts=10)
    ends: list[tuple[float, str, str]] = []
    idle, now, busy, trained, asked, started = [f"g{n}" for n in range(groups)], 0.0, 0.0, 0, 0, 0
    last: dict[str, str] = {}
    waits: dict[str, list[str]] = {}
    in_flight = 0

    def join() -> None:
        nonlocal started, in_flight, asked
        order, setting = rng.choice(orders), rng.randrange(settings_of_a_stage)
        keys = [order[: k + 1] + (f"/{setting}/{rng.randrange(2)}" if k else "") for k in range(4)]
        for k in range(2, 4):
            keys[k] = keys[k - 1] + "|" + keys[k]
        tree.join(f"t{started}", path(*keys))
        waits.setdefault(keys[-1], []).append(f"t{started}")
        started, in_flight, asked = started + 1, in_flight + 1, asked + 4
        settle(keys[-1])

    def settle(key: str) -> None:
        nonlocal in_flight
        if key in waits and tree.nodes[key].state in (State.DONE, State.FAILED):
            for trial in waits.pop(key):
                tree.leave(trial)
                in_flight -= 1

    while started < trials or in_flight:
        while started < trials and in_flight < 2 * groups:
            join()
        still = []
        for group in idle:
            key = tree.take(group, last.get(group))
            if key is None:
                still.append(group)
                continue
            heapq.heappush(ends, (now + rng.uniform(1.0, 2.0), group, key))
        idle = still
        if not ends:
            break
        before, (now, group, key) = now, heapq.heappop(ends)
        busy += (groups - len(idle)) * (now - before)
        idle.append(group)
        if rng.random() < death:
            tree.lose(group)
            last.pop(group, None)
        else:
            tree.progress(key, 1)
            tree.finish(group, key)
            last[group] = key
            trained += 1
            settle(key)
    return {
        "makespan": now,
        "utilisation": busy / (now * groups),
        "trained": trained,
        "saved": asked - trained,
        "distinct": tree.counts()["done"],
        "left": in_flight,
    }


def test_a_simulated_study_with_deaths_trains_each_distinct_stage_once():
    told = simulate(trials=400, groups=20, seed=1)
    assert told["left"] == 0
    assert told["trained"] == told["distinct"]
    assert told["saved"] > 0


def test_ten_thousand_trials_on_a_thousand_groups(capsys):
    told = simulate(trials=10_000, groups=1_000, seed=0, settings_of_a_stage=600)
    assert told["left"] == 0
    assert told["trained"] == told["distinct"]
    with capsys.disabled():
        print(f"\n10,000 trials on 1,000 groups: {told}")
