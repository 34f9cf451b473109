"""What chains learned, kept and lost: the four numbers by hand, in every metric, and where accuracy hides the loss."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdtvit_ray.metrics import LOWER_IS_BETTER, METRICS, measure
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.report.build import write_report
from kdtvit_ray.report.escaping import MISSING
from kdtvit_ray.results.answer import answer
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.study import Study, load
from kdtvit_ray.results.transfer import constant_answer, transfer_metrics, transfer_numbers
from tests.results.fake_study import fake_study
from tests.results.measured import table_of

pytestmark = pytest.mark.usefixtures("unrendered")

FAST = 200


# -- the four numbers --------------------------------------------------------------------------------------------------


def test_transfer_by_hand() -> None:
    R = [[0.9, 0.6, 0.5], [0.8, 0.7, 0.65], [0.85, 0.6, 0.75]]
    found = transfer_numbers(np.array(R), [0.5, 0.55, 0.6])
    assert found["average"] == pytest.approx((0.85 + 0.6 + 0.75) / 3)
    assert found["backward"] == pytest.approx(((0.85 - 0.9) + (0.6 - 0.7)) / 2)
    assert found["forward"] == pytest.approx(((0.6 - 0.55) + (0.65 - 0.6)) / 2)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.85) + (0.7 - 0.6)) / 2)


def test_forgetting_looks_at_the_best_stage_before_the_last_even_before_it_was_trained() -> None:
    found = transfer_numbers(np.array([[0.9, 0.95, 0], [0.9, 0.7, 0], [0.9, 0.6, 0]]), [0, 0, 0])
    assert found["forgetting"] == pytest.approx((0 + 0.35) / 2)


def test_a_lower_brier_score_is_a_gain() -> None:
    R, b = np.array([[0.10, 0.20, 0.22], [0.14, 0.08, 0.18], [0.16, 0.05, 0.06]]), np.array([0.2, 0.21, 0.22])
    found = transfer_numbers(R, b, lower_is_better=True)
    assert found["average"] == pytest.approx((0.16 + 0.05 + 0.06) / 3)
    assert found["backward"] == pytest.approx(((0.10 - 0.16) + (0.08 - 0.05)) / 2)
    assert found["forward"] == pytest.approx(((0.21 - 0.20) + (0.22 - 0.18)) / 2)
    assert found["forgetting"] == pytest.approx(((0.16 - 0.10) + (0.05 - 0.08)) / 2)
    # the same chain told as 1 - Brier score, which is better the higher it is
    mirrored = transfer_numbers(1 - R, 1 - b)
    assert {name: found[name] for name in ("backward", "forward", "forgetting")} == pytest.approx(
        {name: mirrored[name] for name in ("backward", "forward", "forgetting")}
    )
    assert LOWER_IS_BETTER == ("brier", "log_loss")


@pytest.mark.parametrize("malignant", [0, 3, 5, 7, 10])
def test_a_constant_answer_reaches_what_the_metrics_measure_of_it(malignant: int) -> None:
    """Of ten images: the more frequent class with certainty, for the Brier score and the log loss the share as a
    probability, which no other constant beats; every image the same score has AUC 0.5."""
    truth, share = np.arange(10) < malignant, malignant / 10
    guessed = measure(truth, np.full(10, float(share >= 0.5)))
    guessed |= {each: measure(truth, np.full(10, share))[each] for each in LOWER_IS_BETTER}
    for metric in METRICS:
        assert constant_answer(metric, share) == pytest.approx(guessed[metric], nan_ok=True), metric
    for metric in LOWER_IS_BETTER:
        others = [measure(truth, np.full(10, each))[metric] for each in np.linspace(0, 1, 21)]
        assert constant_answer(metric, share) <= min(others) + 1e-12


def test_where_the_share_of_malignant_images_is_unknown_only_ranks_have_a_constant_answer() -> None:
    found = {metric: constant_answer(metric, math.nan) for metric in METRICS}
    assert found.pop("auc") == found.pop("balanced_accuracy") == 0.5
    assert all(math.isnan(value) for value in found.values())


# -- of a study --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_the_matrix_is_the_rows(small: Study, metric: str) -> None:
    found = Findings(small).transfer_of(metric)
    rows = small.rows[(small.rows["trial"] == found.trial) & (small.rows["split"] == "test")]
    rows = rows[(rows["level"] == "image") & (rows["metric"] == metric)]
    assert len(rows) == found.matrix.size
    for line in rows.itertuples():
        name = f"{line.stage}: {found.order[line.stage - 1]}X"
        assert found.matrix.loc[name, f"{line.magnification}X"] == pytest.approx(line.value, nan_ok=True)


def test_backward_transfer_has_an_interval_over_patients(small: Study) -> None:
    findings = Findings(small, FAST)
    for metric, found in findings.transfer.items():
        assert findings.backward_over_patients[metric].interval.value == pytest.approx(found.backward)


def test_the_study_s_metric_comes_first_and_accuracy_last(small: Study) -> None:
    assert transfer_metrics(small) == ("auc", "balanced_accuracy", "accuracy")
    assert (
        Findings(small).transfer_of(small.metric).metric
        == Findings(small).mean_transfer_of(small.metric).metric
        == "auc"
    )
    test = small.predictions(Findings(small).best.keys[-1]).query("split == 'test' and magnification == 40")
    share = test["malignant"].value_counts(normalize=True).max()
    assert Findings(small).transfer_of("accuracy").constant["40X"] == pytest.approx(share)
    assert Findings(small).transfer_of(small.metric, "joint") is None
    assert Findings(small).transfer_of(small.metric, "t0000").trial == "t0000"


@pytest.mark.parametrize("metric", ["auc", "accuracy", "brier"])
def test_the_mean_matrix_is_the_mean_of_the_matrices(small: Study, metric: str) -> None:
    found = Findings(small).mean_transfer_of(metric)
    each = [Findings(small).transfer_of(metric, trial) for trial in small.settings["trial"]]
    assert found.chains == len(each) == 10
    aligned = [one.matrix[[f"{m}X" for m in one.order]].to_numpy() for one in each]
    np.testing.assert_allclose(found.by_stage.to_numpy(), np.mean(aligned, axis=0))
    for magnification in small.dataset.magnifications:
        after = [one.matrix.iloc[one.order.index(magnification)].to_numpy() for one in each]
        np.testing.assert_allclose(found.by_magnification.loc[f"after {magnification}X"], np.mean(after, axis=0))
    for name in ("average", "backward", "forward", "forgetting"):
        assert getattr(found, name).value == pytest.approx(np.mean([getattr(one, name) for one in each]))


# -- where accuracy hides the loss -------------------------------------------------------------------------------------


def chain_of_two(location: Path, second: np.ndarray, truth: np.ndarray) -> Study:
    """A study with one chain 200 > 100: its first stage ranks the 200X test images perfectly, its second gives them the
    probabilities `second`. What the rows say of 200X is what the metrics measure."""
    fake_study(location, trials=1, failed=0, pruned=0, orders=("200>100",), students=("micro",), baselines=())
    study = load(str(location))
    first = np.where(truth, 0.9, 0.6) + np.arange(len(truth)) / 1_000
    rows = study.rows.astype(dict.fromkeys(("study", "trial", "key", "trained", "split", "level", "metric"), str))
    for stage, probability in ((1, first), (2, second)):
        here = (rows["stage"] == stage) & (rows["magnification"] == 200)
        here &= (rows["split"] == "test") & (rows["level"] == "image")
        rows.loc[here, "value"] = rows.loc[here, "metric"].map(measure(truth, probability))
        write_shares(study, study.trial("t0000")["stages"][stage - 1], truth, probability)
    folder = StudyFolder(str(location))
    (name,) = folder.names(folder.rows)
    sink = pa.BufferOutputStream()
    pq.write_table(table_of(rows), sink)
    folder.write(f"{folder.rows}/{name}", sink.getvalue().to_pybytes())
    return load(str(location))


def write_shares(study: Study, key: str, truth: np.ndarray, probability: np.ndarray) -> None:
    """Predictions of a stage with these test images at 200X."""
    frame = study.predictions(key)
    others = frame[(frame["split"] != "test") | (frame["magnification"] != 200)]
    like = frame[(frame["split"] == "test") & (frame["magnification"] == 200)].iloc[[0] * len(truth)]
    like = like.assign(malignant=truth, probability=probability.astype(frame["probability"].dtype))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(pd.concat([others, like], ignore_index=True)), sink)
    study.folder.write(study.folder.predictions(key), sink.getvalue().to_pybytes())


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """69 of 100 test images are malignant, and both stages call all of them so; the second one ranks them at random."""
    truth = np.arange(100) < 69
    scores = np.random.default_rng(3).permutation(np.linspace(0.55, 0.95, 100))
    return chain_of_two(tmp_path_factory.mktemp("hidden") / "study", scores, truth)


def test_forgetting_that_accuracy_hides_is_seen_in_the_study_s_metric(hidden: Study) -> None:
    accuracy, auc = (Findings(hidden).transfer_of(metric) for metric in ("accuracy", "auc"))
    assert accuracy.matrix["200X"].tolist() == [0.69, 0.69]
    assert accuracy.forgetting == accuracy.backward == 0
    assert auc.matrix["200X"].iloc[0] == 1
    lost = 1 - auc.matrix["200X"].iloc[1]
    assert lost > 0.3
    assert Findings(hidden).transfer_of(hidden.metric).forgetting == pytest.approx(lost)
    assert Findings(hidden).transfer_of(hidden.metric).backward == pytest.approx(-lost)
    assert Findings(hidden).mean_transfer_of(hidden.metric).forgetting.value == pytest.approx(lost)
    (told,) = [each for each in answer(Findings(hidden, FAST)) if "backward transfer" in each]
    assert f"the chain's AUC at the magnifications of earlier stages is {100 * lost:.1f} points worse" in told
    assert "is above zero on average also where nothing is lost" in told
    (beside,) = [each for each in answer(Findings(hidden, FAST)) if "threshold 0.5 forgetting" in each]
    assert beside == "At the threshold 0.5 forgetting is 0.0 points in balanced accuracy and 0.0 points in accuracy."


def test_the_report_shows_that_forgetting(hidden: Study) -> None:
    write_report(Findings(hidden, FAST))
    report = Path(hidden.folder.root) / "report"
    lost = Findings(hidden).transfer_of(hidden.metric).forgetting
    lines = (report / "tables/transfer.csv").read_text().splitlines()
    (auc,) = [line for line in lines if line.startswith("best chain,AUC,")]
    (accuracy,) = [line for line in lines if line.startswith("best chain,accuracy,")]
    column = lines[0].split(",").index("forgetting")
    assert float(auc.split(",")[column]) == pytest.approx(lost)
    assert float(accuracy.split(",")[column]) == 0
    assert "Forgetting matrix: test AUC" in (report / "report.md").read_text()
    matrix = (report / "tables/forgetting-auc.csv").read_text().splitlines()
    assert float(matrix[2].split(",")[3]) == pytest.approx(1 - lost)
    assert matrix[3] == "constant answer,0.5,0.5,0.5,0.5"


def test_test_images_of_one_class_give_no_number_and_a_reason(tmp_path: Path) -> None:
    """Where test holds malignant images alone at 200X, AUC says nothing there; accuracy still does."""
    study = chain_of_two(tmp_path / "study", np.full(10, 0.4), np.full(10, True))
    auc = Findings(study).transfer_of(study.metric)
    assert auc.matrix["200X"].isna().all()
    assert math.isnan(auc.constant["200X"])
    assert all(math.isnan(getattr(auc, name)) for name in ("average", "backward", "forgetting"))
    assert auc.notes == (
        "AUC is undefined at 200X, where test has images of one class only: numbers that need it are missing.",
    )
    mean = Findings(study).mean_transfer_of(study.metric)
    assert math.isnan(mean.forgetting.value)
    assert Findings(study).transfer_of("accuracy").forgetting == 1
    text = " ".join(answer(Findings(study, FAST)))
    assert "What the chain forgot cannot be told in AUC. AUC is undefined at 200X" in text
    assert "the chain's accuracy at the magnifications of earlier stages is 100.0 points worse" in text
    write_report(Findings(study, FAST))
    page = (tmp_path / "study/report/report.md").read_text()
    assert "AUC is undefined at 200X, where test has images of one class only" in page
    assert f"| best chain | AUC | {MISSING} | {MISSING} |" in page


def test_precision_is_undefined_where_nothing_is_called_malignant(tmp_path: Path) -> None:
    study = chain_of_two(tmp_path / "study", np.full(10, 0.1), np.arange(10) < 7)
    found = Findings(study).transfer_of("precision")
    assert math.isnan(found.forgetting)
    assert found.notes[0] == (
        "precision is undefined at 200X after stage 2, where no image is called malignant: numbers that need it are "
        "missing."
    )
    assert Findings(study).mean_transfer_of("precision").notes == ()


def test_chains_with_an_undefined_value_are_left_out_of_the_mean_and_counted(small: Study) -> None:
    whole = Findings(small).mean_transfer_of(small.metric)
    trial = small.settings["trial"].iloc[0]
    gone = (small.rows["trial"] == trial) & (small.rows["metric"] == "auc") & (small.rows["split"] == "test")
    small.rows = small.rows.assign(value=small.rows["value"].mask(gone))
    found = Findings(small).mean_transfer_of(small.metric)
    assert (whole.chains, found.chains) == (10, 9)
    assert found.notes == ("The mean leaves out 1 of 10 chains: AUC is undefined somewhere in their matrices.",)
    rest = [
        Findings(small).transfer_of(small.metric, each).backward for each in small.settings["trial"] if each != trial
    ]
    assert found.backward.value == pytest.approx(np.mean(rest))


def test_without_predictions_accuracy_has_no_forward_transfer_and_ranks_have(tmp_path: Path) -> None:
    study = load(str(fake_study(tmp_path / "study", trials=3, failed=0, pruned=0, predictions=False)))
    assert math.isfinite(Findings(study).transfer_of(study.metric).forward)
    accuracy = Findings(study).transfer_of("accuracy")
    assert math.isnan(accuracy.forward)
    assert math.isfinite(accuracy.forgetting)
    assert accuracy.notes == (
        "There is no forward transfer in accuracy over a constant answer: predictions are missing, so it is unknown.",
    )
