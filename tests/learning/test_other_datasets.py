"""Chains on sets that are not BreakHis: three classes of which one is positive, and two classes."""

from dataclasses import replace

import numpy as np
import pytest

from kdtvit_ray.chain import Chain
from kdtvit_ray.data.batches import StageData
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.chain import run_chain
from kdtvit_ray.learning.evaluate import evaluation
from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.recipe import DataSpec, Training
from tests.data import other_sets
from tests.learning import toy

TRAINING = Training(epochs=12, batch=16, lr=5e-3, warmup_epochs=0.5)


@pytest.fixture(scope="module")
def scanner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scanner")
    source = other_sets.scanner(folder / "images", patients=18, images=3)
    return prepare(source, folder / "prepared", size=16, positive=["tumour"])


@pytest.fixture(scope="module")
def nerves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nerves")
    return prepare(other_sets.nerves(folder / "nerves", images=3), folder / "prepared", size=16, positive=["ill"])


def chain(prepared, **changes) -> Chain:
    model = replace(toy.MODEL, subtypes=len(prepared.dataset.classes))
    order = prepared.dataset.magnifications
    several = (2.0,) * (len(order) - 1)
    data = DataSpec(prepared.fingerprint, folds=3, validation=0.3)
    made = Chain(order, model, model, several, (0.5,) * len(several), training=TRAINING, data=data)
    return replace(made, **changes)


@pytest.mark.parametrize(("name", "outputs"), [("scanner", 3), ("nerves", 2)])
def test_a_chain_learns_the_classes_of_its_set(name, outputs, request):
    prepared = request.getfixturevalue(name)
    asked = chain(prepared)
    results = run_chain(asked.stages(), prepared)
    assert len(results) == len(prepared.dataset.magnifications)
    held = StageData(prepared, asked.data)
    for result in results:
        assert result.predictions["probabilities"].shape[1] == outputs
        assert result.state["head.weight"].shape[0] == outputs
    measures = evaluation(results[-1].predictions, held, "subtype")
    assert {each["magnification"] for each in measures} == set(prepared.dataset.magnifications)
    aucs = [
        each["value"] for each in measures if (each["split"], each["level"], each["metric"]) == ("test", "image", "auc")
    ]
    assert len(aucs) == len(prepared.dataset.magnifications)
    assert np.mean(aucs) > 0.7


def test_the_positive_share_is_that_of_the_positive_classes(scanner):
    held = StageData(scanner, chain(scanner).data)
    rows, codes = held.evaluated()
    subtype = scanner.table["subtype"].to_numpy()[rows]
    right = np.eye(3)[subtype]
    measures = evaluation({"image": rows, "split": codes, "probabilities": right}, held, "subtype")
    assert {each["value"] for each in measures if each["metric"] not in LOWER_IS_BETTER} == {1.0}
    # all mass on the wrong negative class is no mistake between the sides; on the positive one it is
    swapped = right[:, [1, 0, 2]]
    assert evaluation({"image": rows, "split": codes, "probabilities": swapped}, held, "subtype") == measures
    wrong = evaluation({"image": rows, "split": codes, "probabilities": right[:, [0, 2, 1]]}, held, "subtype")
    assert {each["value"] for each in wrong if each["metric"] == "recall"} == {0.0}


def test_a_binary_head_and_the_balance_of_sides_work_with_three_classes(scanner):
    model = replace(toy.MODEL, subtypes=3, head="binary")
    short = replace(TRAINING, epochs=1, class_weights="balanced-binary")
    binary = run_chain(chain(scanner, teacher=model, student=model, training=short).stages()[:1], scanner)[0]
    assert binary.usage["classes"] == {"names": ["negative", "tumour"], "positive": ["tumour"]}
    assert binary.predictions["probabilities"].shape[1] == 2
    subtypes = run_chain(chain(scanner, training=short).stages()[:1], scanner)[0]
    held = StageData(scanner, chain(scanner).data)
    counts = np.bincount(held.labels("subtype")[held.rows("train", (5,))])
    say = counts * np.array(subtypes.weighting["class_weights"])
    assert say[:2].sum() == pytest.approx(say[2])
    assert say[0] / say[1] == pytest.approx(counts[0] / counts[1])


def test_a_stage_says_how_to_use_its_model_without_the_prepared_set(scanner):
    short = replace(TRAINING, epochs=1, crop="centre")
    result = run_chain(chain(scanner, training=short).stages()[:1], scanner)[0]
    assert result.usage == {
        "preprocessing": {
            "size": 16,
            "aspect": "crop",
            "crop": "centre",
            "image_size": 16,
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "classes": {"names": ["atypical", "normal", "tumour"], "positive": ["tumour"]},
    }


def test_what_does_not_fit_the_set_is_told_before_anything_is_trained(scanner, nerves):
    with pytest.raises(UserError, match="predicts 8 classes and the set 'images' has 3"):
        run_chain(chain(scanner, teacher=toy.MODEL).stages(), scanner)
    with pytest.raises(
        UserError, match=r"at 40X, which the set 'images' does not have; allowed in an order: 5X, 10X, 20X"
    ):
        run_chain(chain(scanner, order=(40, 5, 10)).stages(), scanner)
    trained = []
    with pytest.raises(UserError, match=r"'dkd' cannot be used with two classes: .*; allowed: kd$"):
        run_chain(chain(nerves, loss="dkd").stages(), nerves, progress=lambda *now: trained.append(now))
    assert not trained
