"""The whole search again in other outer folds: what all test patients together say."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.report import build, confirmation_section
from kdtvit_ray.report.build import write_report
from kdtvit_ray.results import nested as nested_module
from kdtvit_ray.results.answer import answer
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models import predictions_on_test
from kdtvit_ray.results.study import load
from tests.study import judged_stages

pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    location = tmp_path_factory.mktemp("nested")
    judged_stages.finished(location, trials=4)
    for fold in (2, 3):
        judged_stages.finished(location / "outer" / f"fold-{fold}", fold=fold, trials=4)
    return location


def test_every_choice_meets_its_own_test_patients_and_all_of_them_together_make_the_value(study):
    findings = Findings(load(str(study)), 300)
    found = findings.nested
    assert list(found.folds["fold"]) == [1, 2, 3]
    together = []
    for line in found.folds.itertuples():
        place = study if line.fold == 1 else study / "outer" / f"fold-{line.fold}"
        each = load(str(place))
        settings = each.settings
        assert line.trial == settings.loc[settings["objective"].idxmax(), "trial"]
        frame = each.predictions(each.refit(line.trial)["stages"][-1])
        together.append(frame[frame["split"] == "test"])
        by_magnification = [
            roc_auc_score(part["malignant"], part["probability"]) for _, part in together[-1].groupby("magnification")
        ]
        assert line.test == pytest.approx(np.mean(by_magnification))
    everyone = pd.concat(together)
    assert found.patients.patients == everyone["patient"].nunique() == 3 * judged_stages.TEST_PATIENTS
    pooled = [roc_auc_score(part["malignant"], part["probability"]) for _, part in everyone.groupby("magnification")]
    assert found.value.value == pytest.approx(np.mean(pooled))
    assert found.value.low < found.value.value < found.value.high
    assert [each.trial for each in found.baselines] == ["joint"]
    assert found.unpaired == ()
    told = " ".join(answer(findings))
    assert "for these trained models: chance in training is not in it): what a search with this space gives" in told
    assert "differences allow for other patients and for chance in training" in told
    caption = confirmation_section.together(findings, found).caption
    assert "AUC of the choices' predictions, pooled over the folds, as mean over magnifications" in caption
    assert caption.endswith("so a pooled AUC may lie below the mean of the folds' own.")


def test_a_baseline_that_lacks_a_patient_is_not_compared_and_that_is_said(study, monkeypatch):
    def one_patient_fewer(study, model):
        frame = predictions_on_test(study, model)
        return frame[frame["patient"] != frame["patient"].iloc[0]] if model.name == "joint" else frame

    monkeypatch.setattr(nested_module, "predictions_on_test", one_patient_fewer)
    findings = Findings(load(str(study)), 300)
    assert (findings.nested.baselines, findings.nested.unpaired) == ((), ("joint",))
    (told,) = (each for each in answer(findings) if "is not compared with" in each)
    assert told.endswith("joint training on all magnifications, whose predictions are not of the same patients.")


def test_few_patients_at_one_magnification_give_no_interval_and_no_p(study, monkeypatch):
    def few_at_400(study, model):
        frame = predictions_on_test(study, model)
        kept = None if frame is None else frame.drop_duplicates("malignant")["patient"]
        return None if frame is None else frame[(frame["magnification"] != 400) | frame["patient"].isin(kept)]

    monkeypatch.setattr(nested_module, "predictions_on_test", few_at_400)
    found = Findings(load(str(study)), 300).nested
    assert found.patients.enough, "over all magnifications"
    assert np.isfinite(found.value.value)
    assert not found.value.bounded
    assert [(each.tested, each.difference.bounded) for each in found.baselines] == [(False, False)]


def test_the_report_tells_of_it(study):
    findings = Findings(load(str(study)), 300)
    assert any("With the whole search repeated in 3 outer folds" in each for each in answer(findings))
    write_report(findings)
    assert {"outer-folds.csv", "outer-folds-together.csv"} <= set(findings.study.folder.names("report/tables"))


def test_the_terminal_tells_of_it(study):
    findings, out = Findings(load(str(study)), 300), io.StringIO()
    build.print_headline(findings, Console(file=out, width=80))
    text, value = " ".join(out.getvalue().split()), findings.nested.value
    patients = findings.nested.patients.patients
    assert f"The whole search in 3 outer folds, AUC on all {patients} test patients, mean over magnifications" in text
    assert f"chosen by each search {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]" in text
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_a_study_without_outer_folds_has_none(study):
    assert Findings(load(str(study / "outer" / "fold-2")), 50).nested is None


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://bucket/study?region=x", "s3://bucket/study/outer/fold-2?region=x"),
        ("s3://bucket/s", "s3://bucket/s/outer/fold-2"),
    ],
)
def test_an_outer_fold_lies_in_the_study_s_folder_on_any_storage(location, expected, monkeypatch):
    folder = StudyFolder.__new__(StudyFolder)
    folder.location = location
    assert folder.inside("outer/fold-2") == expected


def test_a_question_mark_in_a_local_name_begins_no_query(tmp_path):
    inside = StudyFolder(str(tmp_path / "which?one")).inside("outer/fold-2")
    assert inside == str(tmp_path / "which?one/outer/fold-2")
    assert StudyFolder(inside).location == inside
