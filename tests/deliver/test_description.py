"""What outputs of a model become: probabilities, decisions, what is said of patients. By hand, without a study."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax

from kdtvit_ray.deliver import export
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.inputs import Image
from kdtvit_ray.deliver.predict import Predictions, patients_of, predict
from kdtvit_ray.errors import UserError
from tests.results.fake_study import PREPROCESSING

TOLD = Description(
    preprocessing={**PREPROCESSING, "size": 8, "image_size": 8, "aspect": "squash"},
    classes=["A", "F", "DC"],
    positive=["DC"],
    words=["benign", "malignant"],
    logit_offsets=[0.5, -1.0, 2.0],
    temperature=2.0,
    thresholds={"half": 0.5, "sensitive": 0.25},
    decision="sensitive",
    trained=[40, 100],
    tested=[40, 100, 200],
    provenance={"study": "s", "trial": "t0001"},
)


def test_probabilities_are_those_of_logits_and_offsets_and_the_threshold_itself_is_positive():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    found = TOLD.probabilities(logits)
    np.testing.assert_allclose(found, softmax(logits.astype(float) + np.array([0.5, -1.0, 2.0]), axis=1))
    np.testing.assert_allclose(TOLD.positive_probability(found), found[:, 2])
    plain = replace(TOLD, logit_offsets=()).probabilities(logits)
    np.testing.assert_allclose(plain, softmax(logits, axis=1), rtol=1e-6)
    assert [TOLD.decides(each) for each in (0.2499, 0.25, 0.4)] == ["benign", "malignant", "malignant"]
    assert TOLD.deciding_by("half").decides(0.4) == "benign"


def test_what_is_predicted_follows_the_description(monkeypatch):
    """Of 5 images in batches of 2; the third one cannot be read."""
    scores = iter([0.1, 0.25, 0.3, 0.9])

    def probabilities(images):
        assert len(images) <= 2
        return np.array([[1 - each, 0.0, each] for _, each in zip(images, scores, strict=False)])

    def pixels(_, content):
        if not content:
            raise ValueError("empty file")
        return np.full((8, 8, 3), content[0], np.uint8)

    monkeypatch.setattr(Description, "pixels", pixels)
    images = [Image(name, lambda name=name: b"" if name == "c" else name.encode()) for name in "abcde"]
    found = predict(SimpleNamespace(description=TOLD, batch=2, probabilities=probabilities), images, workers=2)
    assert found.table["name"].tolist() == ["a", "b", "d", "e"]
    assert [(each.where, each.reason) for each in found.unreadable] == [("c", "empty file")]
    assert found.table["probability"].tolist() == [0.1, 0.25, 0.3, 0.9]
    np.testing.assert_allclose(found.table["calibrated"], expit(logit([0.1, 0.25, 0.3, 0.9]) / 2))
    assert found.table["decision"].tolist() == ["benign", "malignant", "malignant", "malignant"]
    assert found.table["class"].tolist() == ["A", "A", "A", "DC"]


def test_a_patient_is_decided_by_her_mean_at_the_models_threshold_and_sick_with_one_positive_image():
    table = pd.DataFrame({"patient": ["p", "q", "p", "q", ""], "probability": [0.1, 0.2, 0.5, 0.2, 0.9]})
    found = patients_of(Predictions(table, [False, False, True, None, True], [], [], 0.0), TOLD).set_index("patient")
    assert found["probability"].to_dict() == pytest.approx({"p": 0.3, "q": 0.2})
    assert found["images"].to_dict() == {"p": 2, "q": 2}
    assert found["decision"].to_dict() == {"p": "malignant", "q": "benign"}
    assert found["label"].to_dict() == {"p": "malignant", "q": "benign"}


def test_images_at_magnifications_that_a_model_was_not_trained_at_are_counted():
    told = TOLD.untrained([0, 40, 100, 200, 400, 400])
    assert told == (
        "3 of 6 images are at 200X (only tested) and 400X (not even tested); the model was trained at 40X and 100X"
    )
    assert TOLD.untrained([0, 40, 100]) == ""


def test_a_description_whose_positive_classes_do_not_stand_last_is_refused():
    plain = TOLD.to_plain()
    assert Description.from_plain(plain, "here") == replace(TOLD, **plain)
    for change in ({"positive": ["F"]}, {"classes": ["DC", "A", "F"]}, {"words": ["benign"]}):
        with pytest.raises(UserError, match="positive classes that do not stand last"):
            Description.from_plain({**plain, **change}, "here")


def test_two_models_differ_in_a_decision_where_one_of_them_reaches_the_threshold():
    found = export._difference(TOLD, np.array([0.2, 0.25, 0.3, 0.6]), np.array([0.3, 0.24, 0.4, 0.9]))
    assert (found.decisions, found.probability) == (2, pytest.approx(0.3))


def test_models_are_compared_on_test_images_alone(monkeypatch):
    frame = pd.DataFrame({"split": ["validation", "test", "test"], "image": [0, 9, 4], "probability": [0.1, 0.2, 0.3]})
    chosen = SimpleNamespace(key="key", study=SimpleNamespace(predictions=lambda key: frame))
    monkeypatch.setattr(export, "pixels_of", lambda prepared, rows, told: rows)
    rows, probability = export._test_images(chosen, TOLD, "a prepared set")
    assert (rows.tolist(), probability.tolist()) == ([4, 9], [0.3, 0.2])
