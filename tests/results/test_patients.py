"""Decisions on patients over all magnifications against pandas and scikit-learn; sentences that claim no more than is
shown."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from kdtvit_ray.report.patient_section import added_tables
from kdtvit_ray.results.bootstrap import percentile, resample
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models import predictions_on_test
from kdtvit_ray.results.patient_sentences import adds, decided
from kdtvit_ray.results.patients import added, metrics_of, patients, votes
from kdtvit_ray.results.study import load
from tests.results.fake_study import fake_study
from tests.results.null_study import null_patients

pytestmark = pytest.mark.usefixtures("unrendered")

WORDS = ("benign", "malignant")


def by_hand(frame):
    """Metrics of one decision a patient."""
    of_patient = (
        frame.astype({"probability": float}).groupby("patient").agg({"malignant": "max", "probability": "mean"})
    )
    truth, score = of_patient["malignant"].to_numpy(bool), of_patient["probability"].to_numpy()
    called = score >= 0.5
    return {
        "auc": sk.roc_auc_score(truth, score),
        "accuracy": sk.accuracy_score(truth, called),
        "recall": sk.recall_score(truth, called),
        "specificity": sk.recall_score(~truth, ~called),
        "brier": sk.brier_score_loss(truth, score),
    }


def test_every_model_is_scikit_learns_over_all_images_of_a_patient(small):
    findings = Findings(small, 200)
    found = findings.patients
    assert [each.model.name for each in found.models] == [each.name for each in findings.models]
    assert (found.negative, found.positive, found.left_out) == (6, 6, ())
    for each in found.models:
        expected = by_hand(predictions_on_test(small, each.model))
        assert {name: value.value for name, value in each.values.items()} == pytest.approx(expected, abs=1e-12)


def test_a_patient_s_decision_is_the_mean_over_its_images_by_hand():
    frame = pd.DataFrame(
        {
            "patient": ["b", "a", "a", "a"],
            "magnification": [40, 40, 400, 400],
            "malignant": [False, False, True, True],
            "probability": np.array([0.25, 0.5, 0.25, 0.75], dtype=np.float32),
        }
    )
    assert votes(frame).to_dict("list") == {
        "patient": ["a", "b"],
        "malignant": [True, False],
        "probability": [0.5, 0.25],
    }


def test_subsets_and_their_differences_are_those_by_hand():
    frame = null_patients(np.random.default_rng(3), 9, 14, 1.5)
    found = added(frame, [1, 2, 3, 4], "auc", 60)
    kept = {each.name: each.magnifications for each in found.subsets}
    assert kept["all magnifications"] == (1, 2, 3, 4)
    assert (kept["2X alone"], kept["all without 2X"], len(kept)) == ((2,), (1, 3, 4), 9)
    together = votes(frame)
    drawn = resample(together["patient"].to_numpy(), together["malignant"].to_numpy(), 60)

    def drawn_aucs(of_patient):
        truth, score = of_patient["malignant"].to_numpy(bool), of_patient["probability"].to_numpy()
        return np.array([sk.roc_auc_score(truth, score, sample_weight=each) for each in drawn.weights])

    for each in found.subsets:
        part = frame[frame["magnification"].isin(each.magnifications)]
        assert {name: value.value for name, value in each.values.items()} == pytest.approx(by_hand(part), abs=1e-12)
        if each.gain is not None:
            apart = drawn_aucs(together) - drawn_aucs(votes(part))
            value = by_hand(frame)["auc"] - by_hand(part)["auc"]
            expected = percentile(value, apart, patients=9)
            interval = each.gain.interval
            assert (interval.value, interval.low, interval.high) == pytest.approx(
                (expected.value, expected.low, expected.high), abs=1e-12
            )
            assert each.p_holm >= each.gain.p


def test_two_magnifications_are_compared_alone_and_one_with_nothing():
    frame = null_patients(np.random.default_rng(0), 6, 6, 1.0)
    names = [each.name for each in added(frame, [1, 4], "auc", 50).subsets]
    assert names == ["all magnifications", "1X alone", "4X alone"]
    captions = [added_tables(added(frame, each, "auc", 50))[0].caption for each in ([1, 4], [1, 2, 4])]
    assert ["without one" in each for each in captions] == [False, True]
    assert len(added(frame, [1], "auc", 50).subsets) == 1
    assert added(frame, [1, 7], "auc", 50) is None


def test_patients_without_images_at_a_magnification_are_left_out_of_the_comparison():
    frame = null_patients(np.random.default_rng(0), 7, 8, 1.0)
    gone = frame[~(frame["patient"].isin(["p000", "p014"]) & (frame["magnification"] == 2))]
    found, rest = added(gone, [1, 2, 3, 4], "auc", 100), frame[~frame["patient"].isin(["p000", "p014"])]
    assert (found.negative, found.positive, found.left) == (6, 7, 2)
    alone = added(rest, [1, 2, 3, 4], "auc", 100)
    assert [(each.name, each.values, each.gain) for each in found.subsets] == [
        (each.name, each.values, each.gain) for each in alone.subsets
    ]


def test_too_few_patients_have_no_interval_and_nothing_is_claimed(tmp_path):
    found = added(null_patients(np.random.default_rng(0), 4, 30, 3.0, 0.0), [1, 2, 3, 4], "auc", 200)
    assert not any(each.values["auc"].bounded or each.shown for each in found.subsets)
    assert found.subsets[0].values["recall"].bounded  # it rests on malignant patients alone
    told = adds(found, WORDS)
    assert "cannot be told: test has 4 benign and 30 malignant patients" in told
    study = load(str(fake_study(tmp_path / "few", trials=3, patients=12)))
    sentences = list(decided(Findings(study, 100)))
    assert len(sentences) == 2
    assert "cannot be told: test has 3 benign and 3 malignant" in sentences[1]
    assert "CI" not in "".join(sentences)


def test_a_true_difference_is_told_with_its_direction():
    frame = null_patients(np.random.default_rng(1), 60, 90, 1.0, 9.0)
    found = added(frame, [1, 2, 3, 4], "auc", 500)
    told = adds(found, WORDS)
    assert told.startswith("In AUC that decision is better than from 1X alone by ")
    assert "all without 4X by " in told
    lines = {each.name: each for each in found.subsets}
    assert lines["all without 4X"].shown
    assert "4X alone" not in told.split("better")[0]
    # the lower the better: the same order of the same decisions
    brier = added(frame, [1, 2, 3, 4], "brier", 500)
    assert {each.name: each for each in brier.subsets}["all without 4X"].gain.interval.value < 0
    assert adds(brier, WORDS).startswith("In Brier score that decision is better than from ")
    noise = frame.assign(probability=frame["probability"].where(frame["magnification"] == 4, 1 - frame["probability"]))
    assert "worse than from 4X alone by " in adds(added(noise, [1, 2, 3, 4], "auc", 500), WORDS)


@pytest.mark.parametrize("signal", [0.0, 2.08])
def test_a_magnification_that_adds_nothing_is_seldom_said_to(signal):
    """At 5 %: in 40 studies it is more than 6 of them with a chance of 0.3 %."""
    rng, claimed = np.random.default_rng(5), 0
    for _ in range(40):
        found = added(null_patients(rng, 10, 20, signal), [1, 2, 3, 4], "auc", 200)
        lines = {each.name: each.shown for each in found.subsets}
        claimed += lines["all without 4X"] if signal else any(lines.values())
    assert claimed <= 6


def test_the_study_s_metric_is_told_first_and_models_without_predictions_are_named(small, monkeypatch):
    assert metrics_of("f1")[0] == "f1"
    assert metrics_of("brier") == metrics_of("auc")
    findings = Findings(small, 50)
    missing = findings.models[1].finals[40]
    kept = {model.name for model in findings.models if missing not in model.finals.values()}
    read = type(small).predictions
    monkeypatch.setattr(type(small), "predictions", lambda study, key: None if key == missing else read(study, key))
    found = patients(small, findings.models, 50)
    assert {each.model.name for each in found.models} == kept
    assert findings.models[1].label in found.left_out
    monkeypatch.setattr(type(small), "predictions", lambda study, key: None)
    assert patients(small, findings.models, 50) is None
    assert list(decided(Findings(small, 50))) == []
