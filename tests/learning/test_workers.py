"""Two gloo processes compute what one process computes."""

import gc
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.team import ALONE, Team
from kdtvit_ray.learning.warm import WarmModels
from tests.learning import toy
from tests.learning.test_recorded import Imitated, recording
from tests.ports import free_port


class Stop:
    every_seconds = 0.0

    def __init__(self, content=None):
        self.content = content

    def load(self):
        return self.content

    def save(self, content):
        self.content = content


def cases():
    """Specs whose global batches split unevenly: 19 images over two workers, and one image at a time."""
    first = toy.first(training=replace(toy.TRAINING, batch=19, lr=1e-3))
    tiny = replace(toy.TRAINING, epochs=1, warmup_epochs=0.5, batch=1, lr=1e-4)
    return {
        "first": first,
        "kd": toy.second(first),
        "dist": toy.second(first, loss="dist"),
        "variants": toy.second(first, training=replace(toy.TRAINING, batch=19, stain="hed", variants=2, zoom=0.2)),
        "one by one": toy.second(first, training=tiny),
        "frozen": toy.second(first, warm=True, model=first.model, training=replace(first.training, trainable_blocks=1)),
        "rehearsal": toy.second(
            first,
            training=replace(first.training, rehearsal=0.4, rehearsal_loss="distillation"),
            earlier=(40,),
        ),
        "mixup": replace(first, training=replace(first.training, mixup=0.5)),
        "probe": toy.second(
            first,
            warm=True,
            model=first.model,
            training=replace(first.training, trainable_blocks=0, drop_path=0, ema=0.5),
        ),
        "average": toy.second(first, training=replace(first.training, ema=0.8)),
        "low rank": toy.second(
            first, warm=True, model=first.model, training=replace(first.training, lora_rank=3, ema=0.5)
        ),
        "layer decay": toy.second(first, training=replace(first.training, layer_decay=0.6, head_lr=3.0)),
    }


def parent():
    return toy.untrained(cases()["first"])


def run(spec, team=ALONE, **more):
    data = StageData(toy.prepared(images=3), toy.DATA)
    return train_stage(spec, data, parent() if spec.parent else None, device="cpu", team=team, **more)


def worker(rank, world, port, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    team, found, models = Team(rank, world), {}, WarmModels()  # kept between stages, as a worker of a group does
    for name, spec in cases().items():
        result = run(spec, team, models=models)
        found[name] = (
            {key: value.numpy() for key, value in result.state.items()},
            result.predictions,
            result.curves,
            result.agreement,
        )
    # the case that has most to remember
    checkpoint = Stop()
    kept = {"models": models, "checkpoint": checkpoint}
    stopped = run(cases()["average"], team, on_epoch=lambda _: rank == 1, **kept)  # rank 0 decides
    found["stopped"] = stopped is None, checkpoint.content
    resumed = run(cases()["average"], team, **kept)
    found["resumed"] = {key: value.numpy() for key, value in resumed.state.items()}
    made = []
    gc.collect()
    gc.disable()
    with recording(made):
        for name in ("kd", "low rank", "mixup"):
            found[f"{name}, recorded"] = {key: value.numpy() for key, value in run(cases()[name], team).state.items()}
            assert Imitated.played > 3
            assert [each() for each in made] == [None] * len(made), "what was recorded went with its stage"
    gc.enable()
    values = torch.arange(6.0).view(2, 3).t() * (rank + 1)
    team.same([values])
    found["same"] = values.tolist()
    queue.put((rank, found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two():
    port = free_port()
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    workers = [spawn.Process(target=worker, args=(rank, 2, port, queue), daemon=True) for rank in range(2)]
    for each in workers:
        each.start()
    found = dict(queue.get() for _ in workers)
    for each in workers:
        each.join()
    return found


@pytest.mark.parametrize("name", list(cases()))
def test_two_workers_give_what_one_gives(two, name):
    alone = run(cases()[name])
    state, predictions, curves, agreement = two[0][name]
    for key, value in alone.state.items():
        theirs = torch.from_numpy(state[key])
        if key.endswith("qkv.bias"):  # a bias of the keys has no effect: its gradient is rounding error, scaled up
            width = len(value) // 3
            value, theirs = (torch.cat((each[:width], each[2 * width :])) for each in (value, theirs))
        assert torch.allclose(value, theirs, atol=1e-4), key
    assert np.array_equal(predictions["image"], alone.predictions["image"])
    assert np.allclose(predictions["probabilities"], alone.predictions["probabilities"], atol=1e-4)
    for mine, ours in zip(curves, alone.curves, strict=True):
        assert mine.keys() == ours.keys()
        for each, value in ours.items():
            assert mine[each] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-6)), each
    assert agreement == (pytest.approx(alone.agreement, rel=1e-2) if alone.agreement else None)


@pytest.mark.parametrize("name", list(cases()))
def test_both_workers_hold_the_same_result(two, name):
    (state, predictions, curves, agreement), other = two[0][name], two[1][name]
    assert all(np.array_equal(value, other[0][key]) for key, value in state.items())
    assert np.array_equal(predictions["probabilities"], other[1]["probabilities"])
    assert (curves, agreement) == other[2:]


@pytest.mark.parametrize("name", ["kd", "low rank", "mixup"])
def test_recorded_steps_of_two_workers_are_their_steps(two, name):
    for rank in (0, 1):
        assert all(np.array_equal(value, two[0][name][0][key]) for key, value in two[rank][f"{name}, recorded"].items())


def test_what_is_made_the_same_is_rank_0s(two):
    assert two[0]["same"] == two[1]["same"] == [[0, 3], [1, 4], [2, 5]]


def test_two_workers_stop_together_on_rank_0s_word_and_go_on_bit_for_bit(two):
    for rank in (0, 1):
        stopped, content = two[rank]["stopped"]
        assert stopped
        assert (content is not None) == (rank == 0)
        assert all(np.array_equal(value, two[0]["average"][0][key]) for key, value in two[rank]["resumed"].items())


def test_a_checkpoint_of_two_workers_is_one_workers_too(two):
    resumed = run(cases()["average"], checkpoint=Stop(two[0]["stopped"][1]))
    alone = run(cases()["average"])
    assert np.allclose(resumed.predictions["probabilities"], alone.predictions["probabilities"], atol=1e-4)
