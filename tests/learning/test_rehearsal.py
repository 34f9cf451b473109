"""Rehearsal of earlier magnifications: which images a stage sees, with which loss, what a teacher computes for them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdtvit_ray.chain import Chain
from kdtvit_ray.data.batches import BLOCK, StageData, block_views, epoch_batches, mixed_batches, rehearsed, shuffled
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning import losses, stage
from kdtvit_ray.learning.chain import run_chain
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.outputs import StoredOutputs
from kdtvit_ray.learning.preflight import check_stage
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.recipe import Distillation
from tests.learning import toy
from tests.learning.test_stage import assert_resumes, by_hand, equal, without

EARLIER, SHARE = (40, 200), 0.3


@pytest.fixture(scope="module")
def prepared():
    return toy.prepared()


@pytest.fixture(scope="module")
def data(prepared):
    return StageData(prepared, toy.DATA)


@pytest.fixture(scope="module")
def parent():
    return toy.untrained(toy.first())


def uneven(prepared):
    """The set in which most patients of one subtype lack the magnification 100."""
    table = prepared.table
    few = (table["subtype"] == 0) & (table["stem"].str[-1].astype(int) >= 3)
    return without(prepared, few & (table["magnification"] == 100))


def rehearsing(parent, loss="full", share=SHARE, **changes):
    training = replace(changes.pop("training", toy.TRAINING), rehearsal=share, rehearsal_loss=loss)
    return toy.second(parent.spec, training=training, earlier=EARLIER, **changes)


def test_an_epoch_rehearses_different_images_in_few_blocks_and_all_of_them_before_one_again():
    pool, count = 10 * BLOCK, 70
    drawn = [rehearsed(pool, count, 3, epoch) for epoch in range(400)]
    assert all(len(set(each)) == count for each in drawn)
    assert all(len(set(each // BLOCK)) == math.ceil(count / BLOCK) for each in drawn)
    times = np.bincount(np.concatenate(drawn), minlength=pool)  # 400 * 70 / 320 = 87.5 each
    assert abs(times - 87.5).max() < 5 * np.sqrt(87.5), "no image is favoured, also not within a block that is cut"
    assert abs(np.mean([each[: count // 2].mean() for each in drawn]) - (pool - 1) / 2) < 10
    assert np.array_equal(drawn[7], rehearsed(pool, count, 3, 7))
    assert set(drawn[7]) != set(drawn[8])
    assert set(drawn[7]) != set(rehearsed(pool, count, 4, 7))
    twice = np.bincount(rehearsed(50, 130, 3, 0), minlength=50)
    assert sorted(twice) == [2] * 20 + [3] * 30


@pytest.mark.parametrize(("images", "pool", "count", "batch"), [(100, 300, 43, 24), (7, 3, 7, 4), (91, 50, 819, 32)])
def test_every_batch_has_its_share_of_rehearsed_images(images, pool, count, batch):
    batches = mixed_batches(images, pool, count, batch, 0, 1)
    assert len(batches) == math.ceil((images + count) / batch)
    assert max(map(len, batches)) <= batch
    shown = np.concatenate(batches)
    assert sorted(shown[shown < images]) == list(range(images)), "each of its own images once"
    others = [int((each >= images).sum()) for each in batches]
    assert sum(others) == count
    assert shown.max() < images + pool
    assert max(others) - min(others) <= 1


def test_without_rehearsal_batches_are_what_they_were():
    found = zip(mixed_batches(50, 0, 0, 8, 2, 3), epoch_batches(50, 8, 2, 3), strict=True)
    assert all(np.array_equal(one, two) for one, two in found)


def test_a_stage_really_sees_the_earlier_images(monkeypatch, data, parent):
    seen = []

    class Watched(stage.Feed):
        def __call__(self, rows, views=None):
            if views is not None:
                seen.append(rows)
            return super().__call__(rows, views)

    monkeypatch.setattr(stage, "Feed", Watched)
    spec = rehearsing(parent)
    result = train_stage(spec, data, parent)
    own, pool = data.rows("train", (100,)), data.rows("train", EARLIER)
    others = round(len(own) * 0.3 / 0.7)
    assert result.cost["steps"] == len(seen) == 2 * math.ceil((len(own) + others) / 24)
    assert result.cost["images"] == 2 * (len(own) + others) == sum(map(len, seen))
    assert result.cost["rehearsed_images"] == 2 * others
    steps = len(seen) // 2
    for epoch in (seen[:steps], seen[steps:]):
        shown = np.concatenate(epoch)
        assert np.array_equal(np.sort(shown[np.isin(shown, own)]), own)
        assert np.isin(shown[~np.isin(shown, own)], pool).all()
        assert all(abs(np.isin(batch, pool).mean() - 0.3) < 0.06 for batch in epoch)
    assert result.cost["teacher_asked"] < sum(map(len, seen)) + 2 * 2 * BLOCK + len(data.rows("validation", (100,)))


@pytest.mark.parametrize("loss", ["full", "distillation"])
def test_class_weights_are_those_of_the_labels_that_an_epoch_shows(prepared, parent, loss):
    data = StageData(uneven(prepared), toy.DATA)
    settings = replace(toy.TRAINING, epochs=1, warmup_epochs=0.5, class_weights="balanced")
    found = train_stage(rehearsing(parent, loss, training=settings), data, parent).weighting["class_weights"]
    own, pool = (
        np.bincount(data.table["subtype"].to_numpy()[data.rows("train", each)], minlength=8)
        for each in ((100,), EARLIER)
    )
    counted = own + (loss == "full") * pool * round(own.sum() * 0.3 / 0.7) / pool.sum()
    assert found == pytest.approx((counted.sum() / (8 * counted)).tolist(), rel=1e-5)
    assert max(found) > 1.2


@pytest.mark.parametrize("loss", ["full", "distillation"])
def test_an_epochs_loss_is_the_formula_over_its_own_and_the_rehearsed_images(prepared, data, parent, loss):
    """A step of size zero leaves the initial weights, so that the epoch can be computed from the contract."""
    settings = replace(
        toy.TRAINING, epochs=1, warmup_epochs=0.5, lr=0.0, weight_decay=0.0, drop_path=0.0, class_weights="balanced"
    )
    T, alpha = 3.0, 0.6
    spec = rehearsing(parent, loss, training=settings, alpha=alpha, temperature=T, seed=5)
    line = train_stage(spec, data, parent).curves[0]

    own, pool = data.rows("train", (100,)), shuffled(data.rows("train", EARLIER), 5)
    count = round(len(own) * 0.3 / 0.7)
    drawn = rehearsed(len(pool), count, 5, 0)
    view_of = [np.repeat(block_views(-(-len(each) // BLOCK), 8, 5, 0), BLOCK)[: len(each)] for each in (own, pool)]
    rows = np.concatenate((own, pool[drawn]))
    views = np.concatenate((view_of[0], view_of[1][drawn]))
    student, teacher = build(toy.MODEL, 5).eval(), build(parent.spec.model, 0).eval()
    teacher.load_state_dict(parent.state)
    s, t = (by_hand(model, prepared.images, rows, views) for model in (student, teacher))
    subtype = torch.from_numpy(data.table["subtype"].to_numpy().astype(int))
    counted = torch.bincount(subtype[own], minlength=8).double()
    if loss == "full":
        counted += torch.bincount(subtype[pool], minlength=8) * count / len(pool)
    weights = counted.sum() / (8 * counted)
    hard = weights[subtype[rows]] * F.cross_entropy(s, subtype[rows], reduction="none", label_smoothing=0.1)
    hard = (hard if loss == "full" else hard[: len(own)]).sum() / len(rows)
    p, q = (t / T).softmax(1), (s / T).softmax(1)
    soft = T * T * (p * (p / q).log()).sum(1).mean()
    assert line["cross_entropy"] == pytest.approx(hard.item(), rel=1e-4)
    assert line["distillation"] == pytest.approx(soft.item(), rel=1e-3)
    assert line["loss"] == pytest.approx(((1 - alpha) * hard + alpha * soft).item(), rel=1e-4)
    assert line["agreement"] == pytest.approx((s.argmax(1) == t.argmax(1)).float().mean().item())


def test_labels_of_images_that_are_not_labelled_play_no_part():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    labelled = torch.tensor([1.0, 0.0, 1.0, 0.0])
    objective = losses.Objective(Distillation(2.0, 0.5), torch.ones(3), 0.1)
    found = [
        objective(student, teacher, torch.tensor(labels), 4, labelled=labelled)
        for labels in ([0, 1, 2, 0], [0, 2, 2, 1])
    ]
    assert (
        found[0][1]
        == found[1][1]
        == losses.cross_entropy(student, torch.tensor([0, 1, 2, 0]), torch.ones(3), 0.1)[[0, 2]].sum() / 4
    )
    assert found[0][2] == losses.kd(student, teacher, 2.0).mean()


def test_stored_outputs_are_those_computed_now_and_a_sibling_shares_them(data, parent):
    outputs = StoredOutputs()
    plain = toy.second(parent.spec)
    before = train_stage(plain, data, parent, outputs=outputs)
    specs = [rehearsing(parent, alpha=alpha) for alpha in (0.3, 0.9)]
    shared = [train_stage(spec, data, parent, outputs=outputs) for spec in specs]
    alone = [train_stage(spec, data, parent) for spec in specs]
    assert all(equal(one, two) for one, two in zip(shared, alone, strict=True))
    drawn = round(len(data.rows("train", (100,))) * 0.3 / 0.7)
    blocks = 2 * (drawn // BLOCK + 2)  # an epoch's blocks are whole, and the last block of the pool may be a short one
    assert 0 < shared[0].cost["teacher_computed"] <= blocks * BLOCK, "its own images' were there already"
    assert shared[1].cost["teacher_computed"] == 0
    assert alone[0].cost["teacher_computed"] == before.cost["teacher_computed"] + shared[0].cost["teacher_computed"]


@pytest.mark.parametrize("loss", ["full", "distillation"])
def test_interrupted_and_resumed_it_is_bit_for_bit_the_same(data, parent, loss):
    spec = rehearsing(parent, loss, training=replace(toy.TRAINING, epochs=3), share=0.6)
    assert_resumes(spec, data, parent)


def test_what_is_rehearsed_is_forgotten_less(prepared):
    """Two stages without a teacher, at 40X and at 400X, whose images have the colours of the two classes exchanged: the
    second task contradicts the first, so only rehearsal keeps anything of it."""
    changed = toy.prepared()
    late = (changed.table["magnification"] == 400).to_numpy()
    positive = changed.table["malignant"].to_numpy()
    changed.images[late & positive, :, :, 0] -= 100
    changed.images[late & ~positive, :, :, 0] += 100
    model, training = replace(toy.MODEL, head="binary"), replace(toy.TRAINING, epochs=8, lr=5e-3, drop_path=0.0)
    kept = {}
    for share in (0.0, 0.5):
        chain = Chain(
            (40, 400), model, model, (1.0,), (0.0,), training=replace(training, rehearsal=share), data=toy.DATA
        )
        last = run_chain(chain.stages(), changed)[-1]
        image = last.predictions["image"]
        at = (changed.table["magnification"].to_numpy()[image] == 40) & (last.predictions["split"] == 1)
        right = (last.predictions["probabilities"][at, 1] > 0.5) == positive[image[at]]
        kept[share] = right.mean()
    assert kept[0.5] > kept[0.0] + 0.1


def test_dkd_needs_the_labels_that_rehearsal_by_distillation_leaves_out(parent):
    spec = toy.second(
        parent.spec,
        loss="dkd",
        training=replace(toy.TRAINING, rehearsal=0.2, rehearsal_loss="distillation"),
        earlier=EARLIER,
    )
    with pytest.raises(UserError, match=r"'dkd' needs the labels .*; allowed: rehearsal_loss = 'full'"):
        check_stage(spec, parent.spec.model)
    check_stage(replace(spec, training=replace(spec.training, rehearsal_loss="full")), parent.spec.model)


def test_there_must_be_images_to_rehearse(prepared, parent):
    alone = toy.prepared()
    kept = alone.table["magnification"].to_numpy() == 100
    alone.table, alone.images = alone.table[kept].reset_index(drop=True), alone.images[kept]
    with pytest.raises(UserError, match="no training images at 40X or 200X to rehearse"):
        train_stage(rehearsing(parent), StageData(alone, toy.DATA), parent)
