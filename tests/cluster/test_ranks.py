"""Errors in a worker group of several ranks: whoever they happen to, no rank waits for ever, the trials concerned end
as they should with the reason, and the group goes on with the next stage."""

import math

import pytest
import torch

from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.losses import Objective
from kdtvit_ray.paths import Folder
from kdtvit_ray.study import asks
from kdtvit_ray.study.binding import bind
from kdtvit_ray.study.space import load_space
from tests.cluster.ranks import Group

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def bound(data, space):
    study = load_space(str(space))
    return bind(study, str(data))


@pytest.fixture
def run(bound, tmp_path):
    """Run a chain of two stages and a baseline, with faults; (group, the chain's outcomes, the baseline's)."""
    groups = []

    def run(*faults, **settings):
        group = Group(tmp_path, bound, faults, **settings)
        groups.append(group)
        chain = asks.searched(bound.space, 0, {"order": "40>100"})
        joint = next(each for each in asks.baselines(bound.space) if each.trial == "joint")
        found = group.outcomes([chain, joint])
        return group, found["t0000"], found["joint"]

    yield run
    for group in groups:
        group.close()


def states(outcomes):
    return [each.state for each in outcomes]


class On:
    """A fault of one rank, or of all (`rank` None): `patch` puts it in place when a stage with a parent is trained."""

    def __init__(self, patch, rank=None):
        self.patch, self.rank = patch, rank

    def __call__(self, rank):
        if self.rank in (None, rank):
            self.patch()


def replace_in_distilled_stages(kind, method, broken):
    """Let `kind.method` be `broken` in stages that have a parent."""
    from kdtvit_ray.learning import stage

    whole = getattr(kind, method)
    train = stage.train_stage

    def train_stage(spec, data, parent, **more):
        setattr(kind, method, broken(whole) if parent else whole)
        try:
            return train(spec, data, parent, **more)
        finally:
            setattr(kind, method, whole)

    stage.train_stage = train_stage


def raising(error):
    def broken(whole):
        def call(*arguments, **more):
            raise error

        return call

    return broken


def not_finite():
    def broken(whole):
        def call(self, *arguments):
            total, hard, soft = whole(self, *arguments)
            return total * math.nan, hard, soft

        return call

    replace_in_distilled_stages(Objective, "__call__", broken)


def without_memory():
    replace_in_distilled_stages(Feed, "__call__", raising(torch.OutOfMemoryError("CUDA out of memory")))


def broken():
    replace_in_distilled_stages(Feed, "__call__", raising(RuntimeError("device-side assert")))


def other_data():
    replace_in_distilled_stages(Feed, "__init__", raising(UserError("The prepared set is not on this node")))


class Unreadable:
    """Weights cannot be read: storage is away, but not for what is small."""

    def __init__(self, name):
        self.name = name

    def __call__(self):
        read, write = Folder.read, Folder._write

        def failing_read(folder, name):
            if self.name == "reading" and name.endswith("weights.safetensors"):
                return folder.patiently("Reading the weights", lambda: (_ for _ in ()).throw(OSError("no route")))
            return read(folder, name)

        def failing_write(folder, target, content, *more):
            if self.name == "writing" and target.endswith("weights.safetensors"):
                raise OSError("no route")
            return write(folder, target, content, *more)

        Folder.read, Folder._write = failing_read, failing_write


def test_without_a_fault_all_ends_well(run):
    group, chain, joint = run()
    assert (states(chain), states(joint), group.starts) == (["done", "done"], ["done"], 1)


def test_a_loss_that_is_not_finite_on_one_rank_fails_the_stage_on_all_and_nobody_is_restarted(run):
    group, chain, joint = run(On(not_finite, rank=1))
    assert (states(chain), states(joint), group.starts) == (["done", "failed"], ["done"], 1)
    assert "The loss is not finite in epoch 1, step 1" in chain[1].reason


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [(without_memory, "Out of memory on "), (other_data, "The prepared set is not on this node")],
    ids=["memory", "user's mistake"],
)
def test_what_one_rank_cannot_do_fails_the_stage_at_once_and_its_group_goes_on(run, fault, reason, rank):
    group, chain, joint = run(On(fault, rank))
    assert (states(chain), states(joint), group.starts) == (["done", "failed"], ["done"], 2)
    assert reason in chain[1].reason


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_dies_of_an_error_is_restarted_and_the_stage_is_trained(run, rank):
    group, chain, joint = run(On(broken, rank))
    assert (states(chain), states(joint), group.starts) == (["done", "done"], ["done"], 2)


@pytest.mark.slow
def test_a_rank_that_dies_of_an_error_each_time_fails_the_stage_with_that_error(run):
    fault = On(broken, rank=1)
    group, chain, joint = run(fault, fault, fault)
    assert (states(chain), states(joint), group.starts) == (["done", "failed"], ["done"], 4)
    assert chain[1].reason == (
        "its worker died 3 times in it without finishing an epoch between, last with RuntimeError: device-side assert"
    )


def test_a_damaged_parent_is_trained_again_and_counts_once_though_each_rank_says_so(run, tmp_path):
    damaged = []

    def damage(start):
        if not damaged:
            (path,) = tmp_path.glob("stages/*/weights.safetensors")
            path.write_bytes(b"torn")
            damaged.append(path.parent.name)

    # the first start ends in the second stage, so that the ranks of the next have to read the first one's weights
    group, chain, joint = run(On(broken, rank=1), before_restart=damage)
    assert (states(chain), states(joint)) == (["done", "done"], ["done"])
    assert group.served.repairs() == {damaged[0]: 1}
    assert group.store.state(damaged[0]), "it is whole again"
    assert group.starts == 3


@pytest.mark.parametrize(
    ("fault", "rank"),
    [
        (Unreadable("reading"), 1),
        pytest.param(Unreadable("reading"), 0, marks=pytest.mark.slow),
        (Unreadable("writing"), 0),
    ],
)
def test_storage_that_one_rank_has_lost_stops_the_study_with_the_reason(run, fault, rank):
    # reading is needed by a fresh group only: the one that has trained the parent has it in memory
    faults = (On(fault, rank),) if fault.name == "writing" else (On(broken, rank=1), On(fault, rank))
    group, chain, _ = run(*faults)
    assert chain[-1].state == "stopped"
    lost = group.served.call("snapshot").lost_storage
    assert "failed 2 times, last with: no route" in lost
    assert not list(group.folder.glob("stages/*/*.partial"))
