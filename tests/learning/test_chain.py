from dataclasses import replace

import numpy as np
import pytest
import torch

from kdtvit_ray.chain import Chain
from kdtvit_ray.data.batches import StageData
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.chain import run_chain
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.teacher import Parent
from tests.learning import toy


@pytest.fixture(scope="module")
def chain():
    three = (3.0, 3.0, 3.0)
    return Chain((40, 200, 100, 400), toy.TEACHER, toy.MODEL, three, (0.5,) * 3, training=toy.TRAINING, data=toy.DATA)


def test_a_chain_is_its_stages_by_hand(chain):
    prepared = toy.prepared()
    seen = []
    results = run_chain(chain.stages(), prepared, progress=lambda number, spec, now: seen.append((number, now.epoch)))
    assert seen == [(stage, epoch) for stage in (1, 2, 3, 4) for epoch in (1, 2)]
    data, parent = StageData(prepared, toy.DATA), None
    for spec, result in zip(chain.stages(), results, strict=True):
        alone = train_stage(spec, data, parent)
        assert all(torch.equal(value, alone.state[name]) for name, value in result.state.items())
        assert np.array_equal(result.predictions["probabilities"], alone.predictions["probabilities"])
        assert (result.agreement is None) == (spec.distillation is None)
        parent = Parent(spec, alone.state)
    assert [result.spec.warm for result in results] == [False, False, True, True]


def test_stored_outputs_of_an_averaged_teacher_are_those_of_its_stored_weights(chain):
    """First and later stages of their own, in a chain that keeps teachers' outputs and stage by stage without them."""
    tuned = replace(
        chain,
        student=chain.teacher,
        first=replace(toy.TRAINING, epochs=3, label_smoothing=0.0, ema=0.9),
        later=replace(toy.TRAINING, ema=0.8, trainable_blocks=1, layer_decay=0.7),
    )
    prepared, parent = toy.prepared(), None
    stages = tuned.stages()
    assert [len(each.curves) for each in run_chain(stages[:2], prepared)] == [3, 2]
    # a second student of the same teacher finds all of its outputs in memory
    again = replace(tuned, later=replace(tuned.later, head_lr=2.0)).stages()
    kept = run_chain([*stages[:2], *again[:2]], prepared)[-1]
    assert kept.cost["teacher_computed"] == 0
    for spec in again[:2]:
        alone = train_stage(spec, StageData(toy.prepared(), toy.DATA), parent)
        parent = Parent(spec, alone.state)
    assert all(torch.equal(value, alone.state[name]) for name, value in kept.state.items())
    assert kept.curves == alone.curves


def test_a_stage_that_occurs_twice_is_trained_once(chain):
    stages = chain.stages()[:2]
    sequential = replace(chain, alpha=(0.0,) * 3).stages()[:2]  # a cold student: a root of its own
    assert sequential[1].parent is None
    results = run_chain([*stages, stages[0], *sequential], toy.prepared())
    assert results[2] is results[0] is results[3]
    assert len(results) == 5


def test_another_set_than_the_studys_is_refused(chain):
    with pytest.raises(UserError, match="fingerprint toy1"):
        run_chain(replace(chain, data=replace(toy.DATA, fingerprint="toy0")).stages(), toy.prepared(seed=1))


def test_a_chain_on_all_development_patients_has_no_validation_and_the_same_test(chain):
    refit = replace(chain, data=toy.DATA.refit())
    whole, parts = run_chain(refit.stages(), toy.prepared()), run_chain(chain.stages(), toy.prepared())
    for ours, theirs in zip(whole, parts, strict=True):
        assert set(ours.predictions["split"]) == {1}, "test alone"
        tested = theirs.predictions["split"] == 1
        assert np.array_equal(ours.predictions["image"], theirs.predictions["image"][tested])
        assert ours.agreement is None
        assert ours.cost["images"] > theirs.cost["images"]


def test_inner_folds_are_judged_by_chains_that_were_not_trained_on_them(chain):
    prepared, judged = toy.prepared(), []
    for inner in (1, 2):
        data = toy.DATA.inner_fold(inner, 2)
        last = run_chain(replace(chain, data=data).stages(), prepared)[-1]
        left_out = last.predictions["image"][last.predictions["split"] == 0]
        assert not set(left_out) & set(StageData(prepared, data).rows("train"))
        judged.append(left_out)
    assert np.array_equal(np.sort(np.concatenate(judged)), StageData(prepared, toy.DATA.refit()).rows("train"))
