"""Models that are kept between stages: the same bits as fresh ones, whatever was trained before, in bounded memory."""

import gc
import random
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.errors import StageFailed, UserError
from kdtvit_ray.learning import compiling, stage, warm
from kdtvit_ray.learning.outputs import StoredOutputs
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.teacher import Parent
from kdtvit_ray.learning.warm import WarmModels
from kdtvit_ray.recipe import Training
from tests.learning import toy

CPU = torch.device("cpu")
QUICK = Training(epochs=1, batch=48, lr=2e-3, drop_path=0.0, warmup_epochs=0.0)


@pytest.fixture(scope="module")
def data():
    return StageData(toy.prepared(images=2, patients=4), toy.DATA)


def specs(weights):
    """Stages of two architectures, with every setting that changes a module, and with each kind of parent."""
    root = toy.first(training=QUICK)
    other = toy.first(training=QUICK, model=toy.MODEL, seed=3)
    pretrained = replace(toy.MODEL, weights=str(weights), digest="d")
    made = [(root, None), (other, None), (toy.first(training=QUICK, model=pretrained), None)]
    for changes in (
        {"drop_path": 0.3},
        {"ema": 0.9},
        {"layer_decay": 0.5, "head_lr": 2.0},
        {"trainable_blocks": 1},
        {"trainable_blocks": 0},
        {"lora_rank": 2},
    ):
        training = replace(QUICK, **changes)
        made.append((toy.second(root, training=training, model=toy.TEACHER, warm=True), root))
    made.append((toy.second(root, training=QUICK), root))
    made.append((toy.second(other, training=replace(QUICK, drop_path=0.3), warm=True), other))
    return made


def train(spec, parent, data, **kept):
    above = Parent(parent, toy.untrained(parent).state) if parent else None
    return train_stage(spec, data, above, **kept)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    weights = tmp_path_factory.mktemp("warm") / "weights.safetensors"
    save_file(toy.untrained(toy.first(model=toy.MODEL)).state, weights)
    return specs(weights)


@pytest.fixture
def as_it_is():
    pass


@pytest.fixture
def compiled(monkeypatch):
    """Every stage is compiled, but for the kernels."""
    monkeypatch.setattr(warm, "repaid", lambda *_: True)
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["as_it_is", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_stage_on_kept_models_is_the_stage_on_fresh_ones(data, stages, how, request):
    request.getfixturevalue(how)
    cold = [train(spec, parent, data) for spec, parent in stages]
    models, order = WarmModels(), [*range(len(stages))] * 3
    random.Random(5).shuffle(order)
    for count, number in enumerate(order):
        spec, parent = stages[number]
        if count % 5 == 0:  # what is broken off leaves nothing behind
            train(spec, parent, data, models=models, on_epoch=lambda _: False)
        if count % 7 == 0:
            with pytest.raises(StageFailed):
                train(replace(spec, training=replace(spec.training, lr=1e30)), parent, data, models=models)
        result = train(spec, parent, data, models=models, outputs=StoredOutputs())
        for name, value in cold[number].state.items():
            assert torch.equal(result.state[name], value), (spec.training, name)
        assert (result.predictions["probabilities"] == cold[number].predictions["probabilities"]).all()


@pytest.mark.usefixtures("compiled")
def test_a_model_whose_evaluation_fails_leaves_no_compiled_code_behind(data, monkeypatch):
    models = WarmModels()
    train_stage(toy.first(training=QUICK), data, None, models=models)
    assert models._compiled._kept
    monkeypatch.setattr(stage, "predict", lambda *_: np.full((4, 8), np.nan))
    with pytest.raises(StageFailed, match="outputs are not finite"):
        train_stage(toy.first(training=QUICK), data, None, models=models)
    assert not models._compiled._kept
    assert not models._idle


def test_a_module_is_built_once_and_lent_to_one_stage_at_a_time(monkeypatch):
    built, real = [], warm.build
    monkeypatch.setattr(warm, "build", lambda *told, **how: built.append(told) or real(*told, **how))
    models, parent = WarmModels(), toy.untrained(toy.first())
    student = models.lend(toy.TEACHER, 0, CPU)
    teacher = models.lend(toy.TEACHER, 0, CPU, parent.state)
    assert student is not teacher
    assert len(built) == 2
    models.take_back(student)
    models.take_back(teacher)
    again = models.lend(toy.TEACHER, 0, CPU)
    assert {again, models.lend(toy.TEACHER, 9, CPU, parent.state)} == {student, teacher}
    assert len(built) == 2
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), real(toy.TEACHER, 0).parameters(), strict=True))
    models.lend(toy.MODEL, 0, CPU)
    models.lend(toy.MODEL, 1, CPU)
    assert len(built) == 4, "another architecture; initial weights of another seed"


def test_a_module_that_looks_otherwise_than_built_is_not_lent_again():
    models = WarmModels()
    model = models.lend(toy.MODEL, 0, CPU)
    model.norm = nn.Identity()
    models.take_back(model)
    assert models.lend(toy.MODEL, 0, CPU) is not model


def test_kept_modules_and_weights_are_bounded(monkeypatch):
    models = WarmModels()
    bytes_of_one = sum(each.nbytes for each in toy.untrained(toy.first(model=toy.MODEL)).state.values())
    monkeypatch.setattr(warm, "IDLE_BYTES", 2 * bytes_of_one)
    monkeypatch.setattr(warm, "INITIAL_BYTES", 2 * bytes_of_one)
    lent = [models.lend(toy.MODEL, seed, CPU) for seed in range(5)]
    for each in lent:
        models.take_back(each)
    assert models.lend(toy.MODEL, 4, CPU) is lent[3], "those that were used last are kept"
    assert models.lend(toy.MODEL, 0, CPU) not in lent, "its initial weights are not kept"
    models.clear()
    assert models.lend(toy.MODEL, 4, CPU) not in lent


def test_a_model_that_cannot_be_made_is_told_and_nothing_is_kept():
    models = WarmModels()
    with pytest.raises(UserError, match="unheard"):
        models.lend(replace(toy.MODEL, name="unheard"), 0, CPU)


def living():
    gc.collect()
    return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())


def passes(count, data, stages):
    """Train all stages so many times on one set of models; living tensors and the most memory, in MB, after each."""
    gc.collect()
    models, outputs, told = WarmModels(), StoredOutputs(), []
    for _ in range(count):
        for spec, parent in stages:
            train(spec, parent, data, models=models, outputs=outputs)
        told.append((living(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    return told


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_a_thousand_stages(data, stages):
    told = passes(100, data, stages)
    assert len({tensors for tensors, _ in told}) == 1
    assert told[-1][1] - told[9][1] < 10, told


def test_no_tensor_is_left_behind(data, stages):
    told = passes(3, data, stages)
    assert told[1][0] == told[2][0], told
