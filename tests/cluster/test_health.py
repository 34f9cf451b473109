"""Who is at fault, a stage or a node: decided by where else the stage can be run."""

from dataclasses import replace

import pytest

from kdtvit_ray.cluster.health import DEATH, MEMORY, NODE, UNKNOWN, Fault, Health
from kdtvit_ray.cluster.probe import Probe, expected, mismatch, probe
from tests.study import made_stages

SPACE = made_stages.space().with_data("none")
WANTED = expected(SPACE.plan({})[0])
GOOD = Probe("a", "host a", WANTED.versions, WANTED.recipe, WANTED.key, "cpu")


def test_a_node_on_which_three_stages_fail_is_set_aside_where_another_works():
    health = Health()
    for key in ("one", "two", "two"):
        health.met(key, Fault(UNKNOWN, "bad", "it broke"), [{"bad"}, {"good"}])
    assert not health.aside, "two different stages"
    health.met("three", Fault(UNKNOWN, "bad", "it broke again"), [{"bad"}, {"good"}])
    assert health.aside == {"bad": "3 stages failed on it, last with: it broke again"}
    assert health.avoided(["bad"]) == {"one", "two", "three"}
    assert not health.avoided(["good"])


def test_on_a_cluster_a_node_that_never_finished_a_stage_is_set_aside_before_a_stage_fails_for_it():
    health = Health(more=True)
    for key in ("one", "two"):
        health.met(key, Fault(UNKNOWN, "a", "it broke"), [{"a"}])
        assert health.decide(key, [{"a"}], waited=0.0) is None, "others may show whether the node works"
        assert health.decide(key, [{"a"}], waited=60.0).reason == "it broke", "none did"
    health.met("three", Fault(UNKNOWN, "a", "it broke"), [{"a"}])
    assert health.aside.keys() == {"a"}
    for key in ("one", "two", "three"):
        assert health.decide(key, [{"a"}], waited=10_000.0) is None, "it waits for another node"

    proven = Health(more=True)
    proven.finished("other", ["a"])
    proven.met("one", Fault(UNKNOWN, "a", "it broke"), [{"a"}])
    assert proven.decide("one", [{"a"}], waited=0.0, to_come=True) is None
    assert proven.decide("one", [{"a"}], waited=0.0).reason == "it broke"
    for key in ("one", "two", "three"):
        proven.met(key, Fault(UNKNOWN, "a", "it broke"), [{"a"}])
    assert not proven.aside, "no other node is left"


@pytest.mark.parametrize("kind", [MEMORY, UNKNOWN])
def test_models_that_fail_anywhere_set_no_node_aside_that_has_finished_a_stage(kind):
    health = Health(more=True)
    health.finished("small", ["a", "b"])
    for key in ("one", "two", "three"):
        health.met(key, Fault(kind, "a", "it does not fit"), [{"a"}, {"b"}])
        assert health.decide(key, [{"a"}, {"b"}]) is None, "it is tried on the other node"
    assert not health.aside
    for key in ("one", "two"):
        health.met(key, Fault(NODE, "a", "no driver"), [{"a"}, {"b"}])
    assert not health.aside, "what models did counts for nothing"
    health.met("four", Fault(NODE, "a", "no driver"), [{"a"}, {"b"}])
    assert health.aside == {"a": "3 stages failed on it, last with: no driver"}


@pytest.mark.parametrize("kind", [NODE, DEATH])
def test_a_node_that_worked_is_set_aside_where_it_breaks_and_another_is_left(kind):
    health = Health(more=True)
    health.finished("small", ["a", "b"])
    for key in ("one", "two", "three"):
        assert not health.aside
        health.met(key, Fault(kind, "a", "it breaks"), [{"a"}, {"b"}])
    assert health.aside == {"a": "3 stages failed on it, last with: it breaks"}


def test_models_that_do_not_fit_on_the_only_node_fail_there_and_leave_it():
    health = Health(more=True)
    for key in ("one", "two", "three"):
        health.met(key, Fault(MEMORY, "a", "out of memory"), [{"a"}])
        assert health.decide(key, [{"a"}], waited=5.0) is None, "others may show whether the node works"
    assert not health.aside
    for key in ("one", "two", "three"):
        assert health.decide(key, [{"a"}], waited=60.0).kind == MEMORY
    other = Health(more=True)
    for key in ("one", "two", "three"):
        other.met(key, Fault(MEMORY, "a", "out of memory"), [{"a"}, {"b"}])
    assert other.aside.keys() == {"a"}, "it has finished none, and another node is left"


def test_a_group_over_two_nodes_is_no_other_place_for_a_stage_that_failed_on_one_of_them():
    for kind in (MEMORY, UNKNOWN):
        health = Health(more=True)
        health.met("stage", Fault(kind, "a", "why"), [{"a", "b"}])
        assert health.avoided("ab") == {"stage"}
        assert health.decide("stage", [{"a", "b"}, {"b", "c"}]) is None, "the second group can run it"
        assert health.decide("stage", [{"a", "b"}, {"b", "c"}], waited=60.0) is None
        assert health.decide("stage", [{"a", "b"}], waited=60.0).reason == "why", "it has left"
    health = Health(more=True)
    health.met("stage", Fault(DEATH, "a", "its worker died"), [{"a", "b"}])
    assert health.decide("stage", [{"a", "b"}]) is None
    assert not health.avoided("ab"), "it may run there again"


def test_for_want_of_memory_no_node_is_set_aside_that_every_group_needs():
    health = Health(more=True)
    for key in ("one", "two", "three"):
        health.met(key, Fault(MEMORY, "a", "out of memory"), [{"a", "b"}, {"a", "c"}])
    assert not health.aside
    health.met("three", Fault(MEMORY, "a", "out of memory"), [{"a", "b"}, {"b", "c"}])
    assert health.aside.keys() == {"a"}


def test_a_stage_that_is_finished_clears_its_node():
    health = Health()
    for key in ("one", "two"):
        health.met(key, Fault(UNKNOWN, "node", "it broke"), [{"node"}, {"good"}])
    health.finished("other", ["node"])
    health.met("three", Fault(UNKNOWN, "node", "it broke"), [{"node"}, {"good"}])
    assert not health.aside


def test_the_only_node_is_set_aside_for_what_is_certainly_its_own_fault_alone():
    health = Health()
    for key in ("one", "two", "three"):
        health.met(key, Fault(UNKNOWN, "only", "it broke"), [{"only"}])
        assert health.decide(key, [{"only"}]) == Fault(UNKNOWN, "only", "it broke")
    assert not health.aside
    health.met("four", Fault(NODE, "only", "no driver"), [{"only"}])
    assert health.decide("four", [{"only"}]) is None, "the stage waits for another node"
    assert health.aside["only"].endswith("no driver")


def test_a_stage_that_fails_on_two_nodes_is_at_fault_itself():
    health = Health()
    health.met("stage", Fault(UNKNOWN, "a", "why"), [{"a"}, {"b"}])
    assert health.decide("stage", [{"a"}, {"b"}]) is None
    health.met("stage", Fault(UNKNOWN, "b", "why"), [{"a"}, {"b"}])
    assert health.decide("stage", [{"a"}, {"b"}, {"c"}]).reason == "why"
    for key in ("one", "two"):
        health.met(key, Fault(UNKNOWN, "a", "why"), [{"a"}, {"b"}])
    assert not health.aside, "what the stage did does not count against the node"


def test_what_is_certainly_the_nodes_never_fails_a_stage_that_no_node_could_run():
    health = Health()
    nodes = [f"n{number}" for number in range(6)]
    groups = [{node} for node in nodes]
    for node in nodes:
        health.met("stage", Fault(NODE, node, "read-only disk"), groups)
        assert health.decide("stage", groups) is None
    assert list(health.aside) == nodes


def test_what_is_the_nodes_fails_a_stage_where_three_nodes_run_others():
    health = Health()
    for node in ("a", "b", "c"):
        health.met("stage", Fault(NODE, node, "no space left"), [{"a"}, {"b"}, {"c"}, {"d"}])
        health.finished("other", [node])
    assert health.decide("stage", [{"a"}, {"b"}, {"c"}, {"d"}]).kind == NODE
    assert not health.aside


def test_a_stage_without_memory_is_tried_elsewhere_then_alone():
    health = Health()
    health.met("big", Fault(MEMORY, "a", "out of memory"), [{"a"}, {"b"}])
    assert health.decide("big", [{"a"}, {"b"}], shared=True) is None
    health.met("big", Fault(MEMORY, "b", "out of memory"), [{"a"}, {"b"}])
    assert health.decide("big", [{"a"}, {"b"}], shared=True).kind == MEMORY
    other = Health()
    other.met("big", Fault(MEMORY, "a", "out of memory"), [{"a"}])
    assert other.decide("big", [{"a"}], shared=True) is None
    assert (other.alone, other.avoided(["a"])) == ({"big"}, set())
    other.met("big", Fault(MEMORY, "a", "out of memory"), [{"a"}])
    assert other.decide("big", [{"a"}]).kind == MEMORY


def test_a_stage_in_which_a_worker_died_is_tried_elsewhere_and_where_there_is_none_there_again():
    health = Health()
    health.met("stage", Fault(DEATH, "a", "its worker died"), [{"a"}, {"b"}])
    assert health.decide("stage", [{"a"}, {"b"}]) is None
    assert health.avoided(["a"]) == {"stage"}
    assert health.decide("stage", [{"a"}]) is None
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
