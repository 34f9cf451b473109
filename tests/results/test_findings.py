"""The golden study's numbers, and each table against the rows and predictions that it is made of."""

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from kdtvit_ray.metrics import METRICS
from kdtvit_ray.report.build import assemble, print_headline
from kdtvit_ray.report.document import Text, markdown
from kdtvit_ray.report.order_section import order
from kdtvit_ray.report.style import Figure
from kdtvit_ray.results.answer import answer
from kdtvit_ray.results.confirmation import replicates_left
from kdtvit_ray.results.effects import effects
from kdtvit_ray.results.effort import (
    agreement,
    cost_by_depth,
    curves,
    depths,
    device_kind,
    sharing,
    stored_outputs,
    timeline,
    variants_told,
)
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.how_many import chosen_from, judged_in_full
from kdtvit_ray.results.models import best_by_student
from kdtvit_ray.results.rivals import Difference, rivals
from kdtvit_ray.results.statistics import Interval
from kdtvit_ray.results.study import Study, load
from kdtvit_ray.results.study_status import Status, TrialCounts
from tests.results.bulk_study import bulk_study
from tests.results.datasets import ONE, TWO
from tests.results.fake_study import FakeStudy, fake_study

pytestmark = pytest.mark.usefixtures("unrendered")

FAST = 2_000


GOLDEN = {
    "trial": "t0009",
    "objective": 0.991952,
    "auc": {
        "Best chain": 0.9696,
        "Best tiny": 0.9717,
        "One model per magnification": 0.9157,
        "Joint training on all magnifications": 0.9479,
        "Sequential fine-tuning without distillation": 0.8712,
        "Distillation without warm start": 0.9005,
        "KDTViT (reported)": 0.993,
    },
    "interval": [0.780215, 0.996517],
    "transfer": {
        "auc": [0.969576, -0.020245, 0.212381, 0.020245],
        "accuracy": [0.909515, -0.036468, 0.161090, 0.036468],
    },
    "sharing": (118, 128, 10),
    "seconds": (10954.498, 1049.836),
}
"""What the study of `fake_study(trials=12, seed=0, confirm=3)` gives, by hand-checked code: a change here is a change
of a published number."""


# -- golden ------------------------------------------------------------------------------------------------------------


def test_golden_best_chain(small: Study) -> None:
    best = Findings(small).best
    assert best.trial == GOLDEN["trial"]
    assert best.chosen_from == 10
    assert best.objective == pytest.approx(GOLDEN["objective"], abs=1e-6)


def test_golden_headline(small: Study) -> None:
    wide = Findings(small, FAST).headline.wide("auc")
    assert list(wide.columns) == ["40X", "100X", "200X", "400X", "mean"]
    assert wide["mean"].round(4).to_dict() == GOLDEN["auc"]
    found = [wide.attrs[end].loc["Best chain", "mean"] for end in ("low", "high")]
    assert found == pytest.approx(GOLDEN["interval"], abs=1e-6)


@pytest.mark.parametrize("metric", ["auc", "accuracy"])
def test_golden_transfer(small: Study, metric: str) -> None:
    found = Findings(small).transfer_of(metric)
    numbers = [found.average, found.backward, found.forward, found.forgetting]
    assert numbers == pytest.approx(GOLDEN["transfer"][metric], abs=1e-6)


def test_golden_sharing(small: Study) -> None:
    found = sharing(small)
    assert (found.distinct, found.asked, found.shared) == GOLDEN["sharing"]
    assert (found.seconds_spent, found.seconds_saved) == pytest.approx(GOLDEN["seconds"], abs=1e-3)


# -- choice and headline -----------------------------------------------------------------------------------------------


def test_the_choice_is_the_validation_mean_of_the_metric(small: Study) -> None:
    rows = small.rows[(small.rows["split"] == "validation") & (small.rows["level"] == "image")]
    rows = rows[(rows["metric"] == "auc") & (rows["stage"] == 4) & rows["trial"].str.fullmatch("t[0-9]+")]
    means = rows.groupby("trial", observed=True)["value"].mean()
    best = Findings(small).best
    assert best.trial == means.idxmax()
    assert best.objective == pytest.approx(means.max())
    per_student = best_by_student(small)
    assert {each.student for each in per_student} == {"micro", "tiny"}
    assert per_student[0].trial == best.trial
    for each in per_student:
        of_student = small.searched[small.searched["student"] == each.student]
        assert each.objective == of_student["objective"].max()
        assert each.chosen_from == len(of_student)


def test_headline_values_are_the_rows_of_the_last_stage(small: Study) -> None:
    long = Findings(small, FAST).headline.long
    long = long[long["metric"].isin(METRICS)]  # others are made from predictions
    rows = small.rows[(small.rows["split"] == "test") & (small.rows["stage"] == 4)]
    chosen = {"best": Findings(small).best.trial, "sequential": "sequential", "from_scratch_kd": "from_scratch_kd"}
    for model, trial in chosen.items():
        theirs = rows[rows["trial"] == trial].set_index(["level", "metric", "magnification"])["value"]
        ours = long[(long["model"] == model) & (long["magnification"] != "mean")]
        assert len(ours) == len(theirs) == 4 * 19
        for line in ours.itertuples():
            expected = theirs[line.level, line.metric, int(line.magnification[:-1])]
            assert line.value == pytest.approx(expected, abs=1e-6, nan_ok=True)
            assert math.isnan(line.low) or line.low <= line.high


def test_each_magnification_has_its_own_model_in_that_baseline(small: Study) -> None:
    wide = Findings(small, FAST).headline.wide("accuracy")
    rows = small.rows[(small.rows["split"] == "test") & (small.rows["level"] == "image")]
    rows = rows[rows["metric"] == "accuracy"]
    for magnification in small.dataset.magnifications:
        alone = rows[(rows["trial"] == f"per_magnification-{magnification}") & (rows["magnification"] == magnification)]
        assert wide.loc["One model per magnification", f"{magnification}X"] == pytest.approx(alone["value"].item())


def test_reported_results_stand_apart(small: Study) -> None:
    found = Findings(small, FAST).headline
    wide = found.wide("accuracy", "patient_rate")
    assert wide.loc["PFTAS features (Spanhol et al.)"].to_list() == pytest.approx([0.838, 0.821, 0.851, 0.823, 0.83325])
    assert wide.attrs["kind"]["PFTAS features (Spanhol et al.)"] == "reported"
    assert "patient-disjoint" in wide.attrs["note"]["PFTAS features (Spanhol et al.)"]
    reported = found.wide("auc").loc["KDTViT (reported)"]
    assert reported["mean"] == 0.993
    assert reported.iloc[:4].isna().all()
    assert "split unknown" in found.wide("auc").attrs["note"]["KDTViT (reported)"]


def test_comparisons_are_paired_with_the_headline(small: Study) -> None:
    wide = Findings(small, FAST).headline.wide("auc")
    found = Findings(small, FAST).comparisons
    assert {each.against.name for each in found} >= {"sequential", "joint", "from_scratch_kd", "per_magnification"}
    for each in found:
        difference = wide.loc["Best chain"] - wide.loc[each.against.label]
        assert each.difference.value == pytest.approx(difference["mean"])
        assert each.difference.low <= each.difference.high
        assert each.p <= each.p_holm <= 1


def test_a_leaking_protocol_is_said(tmp_path: Path) -> None:
    study = load(str(fake_study(tmp_path, trials=2, failed=0, pruned=0, protocol="image")))
    long = Findings(study, FAST).headline.long
    assert long.loc[long["kind"] != "reported", "note"].str.contains("train and test").all()
    assert any("leak" in each for each in answer(Findings(study, FAST)))


# -- settings ----------------------------------------------------------------------------------------------------------


def test_effects_are_means_over_trials(small: Study) -> None:
    found = {each.setting: each for each in effects(small.settings, small.metric)}
    assert set(found) == {"order", "first", "last", "student", "temperature", "alpha"}
    trials = small.searched
    for line in found["student"].table.itertuples():
        part = trials.loc[trials["student"] == line.value, "objective"]
        assert (line.n, line.best) == (len(part), part.max())
        assert line.mean == pytest.approx(part.mean())
    first = trials["order"].str.split(">").str[0].astype(int)
    assert found["first"].table["value"].tolist() == sorted(first.unique())
    assert found["order"].table["n"].sum() == 10
    asked = [each for name, each in found.items() if name not in ("first", "last")]
    assert all(each.p_holm >= each.p for each in asked if math.isfinite(each.p))


def test_settings_by_stage_and_training_settings(tmp_path: Path) -> None:
    study = load(str(fake_study(tmp_path, trials=14, per_stage=True, searched_lr=True, predictions=False)))
    names = {each.setting for each in effects(study.settings, study.metric)}
    assert {"temperature.2", "temperature.4", "alpha.3", "training.lr"} <= names
    assert "temperature" not in names


def test_confirmed_chains_are_those_of_kind_confirm(small: Study) -> None:
    found = Findings(small).confirmed
    assert set(found["chain"]) == {"t0000", "t0001", "sequential"}
    assert set(found["runs"]) == {6}
    assert set(found["level"]) == {"image", "patient_rate", "patient_vote"}
    record = small.trial("t0001")
    alpha = json.loads(record["alpha"])[0]
    (label,) = set(found.loc[found["chain"] == "t0001", "label"])
    temperature = json.loads(record["temperature"])[0]
    assert label == f"t0001 ({record['order']}, T {temperature:g}, alpha {alpha:g}, {record['student']})"


def test_confirmed_chains_are_compared_with_the_best_on_validation_whatever_test_says(small: Study) -> None:
    for better in ("t0000", "t0001"):
        small.trials.loc[small.trials["trial"].isin(["t0000", "t0001"]), "objective"] = 0.5
        small.trials.loc[small.trials["trial"] == better, "objective"] = 0.6
        found = Findings(small).confirmed
        assert found["chain"].iloc[0] == better
        assert found.loc[found["chain"] == better, "p"].isna().all()
        assert found.loc[(found["chain"] != better) & (found["metric"] == "log_loss"), "p"].notna().all()


def test_a_confirmation_that_was_interrupted_says_how_far_it_came(small: Study) -> None:
    assert replicates_left(small) == (0, 0)
    small.status = Status(replicates=TrialCounts(total=12, complete=4, failed=1, running=2))
    assert replicates_left(small) == (5, 12)


# -- effort ------------------------------------------------------------------------------------------------------------


def test_nothing_is_called_a_difference_with_few_patients(tmp_path: Path) -> None:
    study = load(str(fake_study(tmp_path / "study", patients=16, trials=6)))
    found = Findings(study, FAST).comparisons
    assert all(each.few and not each.shown and math.isnan(each.difference.low) for each in found)
    long = Findings(study, FAST).headline.long
    assert long["low"].isna().all(), "four patients a class have no interval"
    text = " ".join(answer(Findings(study, FAST)))
    assert "too few patients to tell, 4 of a class at some magnification" in text
    assert "There is no interval: test has too few patients" in text
    assert "a difference that the data show" not in text


def rewrite_predictions(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    for path in folder.glob("stages/*/predictions.parquet"):
        change(pd.read_parquet(path)).to_parquet(path)


def test_few_patients_at_one_magnification_leave_that_and_the_mean_without_interval(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "study", trials=4, baselines=("joint",), patients=40)

    def one_of_each_at_400(frame: pd.DataFrame) -> pd.DataFrame:
        few = frame.loc[frame["split"] == "test"].drop_duplicates("malignant")["patient"]
        return frame[(frame["magnification"] != 400) | (frame["split"] != "test") | frame["patient"].isin(few)]

    rewrite_predictions(folder, one_of_each_at_400)
    findings = Findings(load(str(folder)), FAST)
    low = findings.headline.wide("auc").attrs["low"].dropna(how="all")
    assert low[["40X", "100X", "200X"]].notna().all(axis=None)
    assert low[["400X", "mean"]].isna().all(axis=None)
    assert all(each.few and math.isnan(each.p) and math.isnan(each.p_holm) for each in findings.comparisons)
    assert findings.comparisons[0].patients == 1
    note = "So few are at 400X (1 benign, 1 malignant), and a mean over magnifications rests on the fewest"
    assert any(note in each for each in findings.headline.notes)
    text = " ".join(answer(findings))
    assert "too few patients to tell, 1 of a class at some magnification" in text
    assert "The mean has no interval: test has too few patients for one at some magnification" in text
    assert "a difference that the data show" not in text


def test_patients_with_images_of_both_classes_are_counted_once(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "study", trials=2, failed=0, pruned=0, baselines=())

    def first_image_is_benign(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(malignant=frame["malignant"] & frame.duplicated(["split", "patient"]))

    rewrite_predictions(folder, first_image_is_benign)
    findings = Findings(load(str(folder)), FAST)
    sides = "12 with benign images, 6 with malignant ones, 6 of them with both"
    assert any(f"of the 12 test patients ({sides})" in note for note in findings.headline.notes)


def test_fewer_magnifications_have_means_and_comparisons_over_those(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "study", trials=4, orders=("40>100", "100>40"), baselines=("joint",))
    for path in (folder / "rows").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.less(table["magnification"], 200)), path)
    for path in folder.glob("stages/*/predictions.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.less(table["magnification"], 200)), path)
    study = load(str(folder))
    assert study.magnifications == (40, 100)
    found = Findings(study, FAST).headline
    wide = found.wide("auc")
    assert wide.loc["Best chain", "mean"] == pytest.approx(wide.loc["Best chain", ["40X", "100X"]].mean())
    accuracy = found.wide("accuracy", "patient_rate")
    (pftas,) = [label for label in accuracy.index if label.startswith("PFTAS")]
    assert accuracy.loc[pftas, "mean"] == pytest.approx((0.8380 + 0.8210) / 2)
    assert "Means are over 40X and 100X: test has no images of other magnifications" in found.notes
    assert all(math.isfinite(each.difference.value) for each in Findings(study, FAST).comparisons)
    assert any("as the mean over 40X and 100X; 40X 0." in each for each in answer(Findings(study, FAST)))


def test_shared_stages_are_counted_from_the_records(small: Study) -> None:
    found = sharing(small)
    cost = {key: each.cost["train_seconds"] + each.cost["evaluate_seconds"] for key, each in small.stages.items()}
    keys = [key for keys in small.trials["stages"] for key in keys]
    assert found.seconds_spent == pytest.approx(sum(cost[key] for key in set(keys)))
    assert found.seconds_spent + found.seconds_saved == pytest.approx(sum(cost[key] for key in keys))
    assert found.seconds_spent + found.seconds_saved == pytest.approx(small.trials["cost_seconds"].sum())
    table = cost_by_depth(small)
    assert table["stages"].sum() == found.distinct
    assert table["device_seconds"].sum() == pytest.approx(found.seconds_spent)
    assert device_kind(small) == "CPU"
    for key, each in small.stages.items():
        small.stages[key] = replace(each, workers=4)
        each.cost["device_type"] = "cuda"
    assert cost_by_depth(small)["device_seconds"].sum() == pytest.approx(4 * found.seconds_spent)
    assert device_kind(small) == "GPU"


def test_stages_of_chains_that_have_not_ended_are_as_deep_as_their_parents(small: Study) -> None:
    before = depths(small)
    small.trials = small.trials[:0]
    assert depths(small) == {key: before[key] for key in small.stages}
    assert set(before.values()) == {1, 2, 3, 4}
    for key, about in small.stages.items():
        assert before[key] == (before[about.parent] + 1 if about.parent else 1)


def test_what_stored_teacher_outputs_saved_is_counted_at_each_teachers_speed(small: Study) -> None:
    found = stored_outputs(small)
    taught = [each for each in small.stages.values() if each.cost["teacher_asked"]]
    assert found.asked == 2_560 * len(taught)
    assert found.computed == 640 * len(taught)
    assert found.seconds == pytest.approx(sum(each.cost["teacher_seconds"] for each in taught))
    assert found.seconds_saved == pytest.approx(3 * found.seconds)  # three of four were stored, whoever taught
    first = taught[0].cost
    by_micro = [each for each in taught if small.stages[each.parent].spec["model"]["name"] == "micro"]
    assert 0 < len(by_micro) < len(taught)
    first["teacher_computed"] = first["teacher_asked"]  # one stage more that found nothing stored: faster, less saved
    assert stored_outputs(small).seconds_saved < found.seconds_saved
    for each in small.stages.values():
        each.cost["teacher_asked"] = 0
    assert stored_outputs(small) is None


def test_the_timeline_shows_each_group_doing_one_thing_at_a_time(small: Study) -> None:
    table = timeline(small)
    assert table["started"].min() == 0
    assert set(table["group"]) == {"group-0", "group-1"}
    for _, part in table.groupby("group"):
        assert (part["started"].to_numpy()[1:] >= part["finished"].to_numpy()[:-1] - 1e-6).all()


def test_curves_and_agreement_of_the_best_chain(small: Study) -> None:
    keys = Findings(small).best.keys
    table = curves(small, keys)
    assert table.groupby("stage")["epoch"].apply(list).to_dict() == {stage: [1, 2, 3, 4] for stage in (1, 2, 3, 4)}
    assert table.loc[table["stage"] == 1, "distillation"].isna().all()
    assert table.loc[table["stage"] > 1, "distillation"].notna().all()
    assert agreement(small, keys)["stage"].tolist() == [2, 3, 4]
    assert curves(small, ["missing"]).empty


# -- sentences ---------------------------------------------------------------------------------------------------------


def test_sentences_carry_the_numbers(small: Study) -> None:
    sentences = answer(Findings(small, FAST))
    best = Findings(small).best
    wide = Findings(small, FAST).headline.wide("auc")
    assert "12 of 12 searched trials" in sentences[0]
    assert "10 complete, 1 failed, 1 pruned" in sentences[0]
    assert best.trial in sentences[1]
    assert f"{best.objective:.3f}" in sentences[1]
    assert "chosen on validation from 11 different settings, 1 of which was stopped early, is" in sentences[1]
    assert f"AUC {wide.loc['Best chain', 'mean']:.3f} (95 % CI" in sentences[2]
    (sequential,) = [each for each in Findings(small, FAST).comparisons if each.against.name == "sequential"]
    (told,) = [
        each
        for each in sentences
        if "sequential fine-tuning without distillation (95 %" in each and "searched chain" in each
    ]
    assert f"{100 * abs(sequential.difference.value):.1f} points of AUC" in told
    assert f"95 % CI {100 * sequential.difference.low:.1f} to {100 * sequential.difference.high:.1f}" in told
    assert any(each.startswith("1 trial failed: t0011 (The loss is not finite") for each in sentences)
    assert all(each.endswith(".") for each in sentences)
    assert not re.search(r"\bnan\b", " ".join(sentences))


def test_the_corrected_comparisons_are_those_that_have_a_p_value(small: Study) -> None:
    study = load(small.folder.root)
    study.trials.loc[study.trials["trial"] == "per_magnification-400", "state"] = "failed"
    findings = Findings(study, FAST)
    compared = findings.comparisons
    known = [each for each in compared if math.isfinite(each.p)]
    assert len(known) == len(compared) - 1, "the baseline that lacks a magnification"
    shown = replace(known[0], difference=Interval(0.05, 0.01, 0.09), p=0.01, p_holm=0.01 * len(known))
    findings.__dict__["comparisons"] = [shown if each is known[0] else each for each in compared]
    assert f"after Holm's correction for {len(known)} comparisons" in " ".join(rivals(findings))


def test_lower_is_better_is_said_of_effects(tmp_path: Path) -> None:
    for metric in ("brier", "auc"):
        study = load(str(fake_study(tmp_path / metric, metric=metric, orders=["40>100>200>400"], baselines=())))
        (told,) = [each for each in answer(Findings(study, FAST)) if each.startswith("Student size")]
        assert ("Brier score (lower is better) above" in told) == (metric == "brier")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 1, "failed": 0, "pruned": 0}, "the only setting tried"),
        ({"trials": 6, "failed": 0, "pruned": 5}, "6 different settings, 5 of which were stopped early"),
        ({"trials": 6, "failed": 5, "pruned": 0}, "the only setting that has an objective"),
        ({"trials": 6, "failed": 2, "pruned": 0}, "4 different settings"),
    ],
)
def test_what_the_best_chain_was_chosen_from(tmp_path: Path, options: dict, words: str) -> None:
    study = load(str(fake_study(tmp_path / "study", baselines=(), **options)))
    findings = Findings(study, FAST)
    assert f"chosen on validation from {words}, is {findings.best.trial}" in answer(findings)[1]


def without_objective(study: Study, trials: list[str]) -> None:
    """The metric of these trials' last stage is undefined at 100X and 400X."""
    study.trials.loc[study.trials["trial"].isin(trials), "objective"] = math.nan
    last = study.rows["stage"] == 4
    at = study.rows["trial"].isin(trials) & last & study.rows["magnification"].isin([100, 400])
    study.rows.loc[at & (study.rows["metric"] == study.metric), "value"] = math.nan


def test_a_complete_trial_without_an_objective_is_told_apart(tmp_path: Path) -> None:
    study = load(str(fake_study(tmp_path / "study", trials=4, failed=0, pruned=0, baselines=(), metric="precision")))
    without_objective(study, ["t0002"])
    findings = Findings(study, FAST)
    sentences = answer(findings)
    assert "(4 complete, 1 of them without an objective)" in sentences[0]
    assert "from 4 different settings, 1 of which has no objective, is" in sentences[1]
    assert judged_in_full(study) == "the 3 settings that have an objective (of 4)"
    why = "precision is undefined at 100X and 400X"
    assert f"1 complete trial has no objective: t0002 ({why})." in sentences
    page = markdown(assemble(findings)).replace("\\", "")
    assert "4 searched trials complete, 1 of them without an objective" in page
    assert why in page.split("Failures")[-1]


def test_where_no_trial_has_an_objective_it_is_not_said_that_none_is_complete(tmp_path: Path) -> None:
    study = load(str(fake_study(tmp_path / "study", trials=2, failed=0, pruned=0, baselines=(), metric="precision")))
    without_objective(study, ["t0000", "t0001"])
    findings = Findings(study, FAST)
    nothing = "No complete searched trial has an objective (precision is undefined), so there is"
    assert answer(findings)[1].startswith(nothing)
    page = markdown(assemble(findings)).replace("\\", "")
    assert nothing in page
    assert "No searched trial is complete" not in page
    assert "No chain of several stages" not in page
    assert f"{nothing} no forgetting matrix." in page


def test_settings_without_an_objective_are_no_settings_that_were_stopped_early(tmp_path: Path) -> None:
    study = load(str(fake_study(tmp_path / "study", trials=9, failed=0, baselines=())))
    without_objective(study, ["t0001", "t0002"])
    findings = Findings(study, FAST)
    assert len(study.settings) == 6
    assert (
        chosen_from(study, findings.best)
        == "9 different settings, 1 of which was stopped early and 2 of which have no objective"
    )
    assert judged_in_full(study) == "the 6 settings that were not stopped early and that have an objective (of 9)"
    first, second = (study.trials.index[study.trials["trial"] == each][0] for each in ("t0001", "t0002"))
    study.trials.at[second, "stages"] = study.trials.at[first, "stages"]
    assert judged_in_full(study).endswith("(of 8)"), "a setting that was tried again counts once"


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "words"),
    [
        (-0.006, 0.015, 0.5, "not distinguishable from zero."),
        (0.001, 0.015, 0.01, "a difference that the data show, p = 0.010 after Holm's correction for 4 comparisons."),
        (0.001, 0.015, 0.08, "not distinguishable from zero, p = 0.080 after Holm's correction for 4"),
        (math.nan, math.nan, math.nan, "how sure that is cannot be told."),
    ],
)
def test_a_difference_is_claimed_only_where_it_shows(low: float, high: float, p_holm: float, words: str) -> None:
    found = Difference("auc", Interval(0.004, low, high), p_holm / 4, p_holm, 4)
    told = found.against("sequential fine-tuning")
    assert told.startswith("adds 0.4 points of AUC over sequential fine-tuning")
    assert words in told


@pytest.mark.parametrize(
    ("metric", "value", "low", "high", "words"),
    [
        ("brier", -0.05, -0.08, -0.02, "is 5.0 points of Brier score better than joint (95 % CI 2.0 to 8.0): "),
        ("log_loss", 0.05, -0.02, 0.08, "is 0.050 nats of log loss worse than joint (95 % CI -0.020 to 0.080): not"),
        ("auc", -0.05, -0.08, 0.02, "loses 5.0 points of AUC against joint (95 % CI -2.0 to 8.0): not"),
    ],
)
def test_a_difference_is_told_as_better_or_worse(
    metric: str, value: float, low: float, high: float, words: str
) -> None:
    assert Difference(metric, Interval(value, low, high), 0.01, 0.01, 2).against("joint").startswith(words)


def test_of_two_settings_it_is_said_that_they_are_too_few(tmp_path: Path) -> None:
    study = load(str(fake_study(tmp_path, trials=2, failed=0, pruned=0, baselines=())))
    told = answer(Findings(study, 200))
    few = "For temperature and alpha there are too few settings or patients to say whether they matter."
    assert few in told
    assert not any("no difference can be shown" in each for each in told)


def test_a_finished_study_of_failures_is_not_called_interim(tmp_path: Path) -> None:
    findings, out = Findings(load(str(fake_study(tmp_path, trials=2, failed=2, pruned=0))), 200), io.StringIO()
    print_headline(findings, Console(file=out, width=200))
    assert "best      none in study fake. No searched trial is complete.\n" in out.getvalue()
    assert "chains were chosen" not in markdown(assemble(findings))


def test_with_one_magnification_a_value_is_told_once_and_equal_chains_are_named(tmp_path: Path) -> None:
    findings = Findings(
        load(str(fake_study(tmp_path, trials=3, failed=0, pruned=0, dataset=ONE, students=("micro",)))), 200
    )
    told = " ".join(answer(findings))
    assert findings.study.columns == ("20X",)
    assert "at 20X. " in told
    assert "as the mean over" not in told
    assert "trained the same stages as" in told
    assert "adds 0.0 points" not in told
    assert not {each.against.name for each in findings.comparisons} & findings.same_stages.keys()
    # one stage has nothing to forget: no matrix of one cell, and no table of dashes
    said = [block.text for block in order(findings).blocks if isinstance(block, Text)]
    assert said[-1] == "Chains have one stage only, which leaves nothing to forget, so there is no forgetting matrix."
    assert not any(isinstance(block, Figure) for block in order(findings).blocks)
    out = io.StringIO()
    print_headline(findings, Console(file=out, width=80))
    assert "forgetting" not in out.getvalue()


def test_what_is_said_of_intervals_without_width_holds_where_half_of_the_patients_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FakeStudy._predict
    monkeypatch.setattr(FakeStudy, "_predict", lambda *given: own(*given).assign(probability=np.float32(0.6)))
    for dataset, value in ((ONE, "specificity 0.000 (95 % CI 0.000 to 0.000)"), (TWO, "accuracy 0.500 (95 % CI 0.500")):
        location = tmp_path / dataset.name
        study = load(str(fake_study(location, trials=2, failed=0, pruned=0, baselines=(), dataset=dataset)))
        told = answer(Findings(study, 200))
        assert value in " ".join(told)
        (caveat,) = [each for each in told if "without width" in each]
        assert "no draw of these patients gives another value" in caveat


@pytest.mark.parametrize(
    "options",
    [
        {"trials": 0, "failed": 0, "pruned": 0, "baselines": ()},
        {"trials": 0, "failed": 0, "pruned": 0},
        {"trials": 1, "failed": 0, "pruned": 0, "baselines": ()},
        {"trials": 1, "failed": 0, "pruned": 0, "baselines": ("sequential",), "head": "binary", "metric": "accuracy"},
        {"trials": 2, "failed": 2, "pruned": 0},
        {"trials": 3, "failed": 0, "pruned": 3, "baselines": ("joint",)},
        {"trials": 4, "failed": 0, "pruned": 0, "running": 4, "baselines": ("joint",)},
        {"trials": 3, "failed": 0, "pruned": 0, "predictions": False},
        {"trials": 3, "failed": 0, "pruned": 0, "orders": ("40>400",), "students": ("micro",), "baselines": ("joint",)},
        {"trials": 3, "failed": 0, "pruned": 0, "orders": ("200",), "students": ("micro",)},
        {"trials": 3, "failed": 0, "pruned": 0, "patients": 4, "images": 1},
    ],
)
def test_every_table_works_for_studies_of_any_state(tmp_path: Path, options: dict) -> None:
    study = load(str(fake_study(tmp_path, **options)))
    best = Findings(study).best
    keys = best.keys if best else ()
    assert (best is None) == (len(study.searched) == 0)
    headline = Findings(study, 200).headline
    for metric in ("auc", "accuracy", "precision"):
        assert isinstance(headline.wide(metric), pd.DataFrame)
    findings = Findings(study, 200)
    for each in (findings.comparisons, findings.transfer, findings.mean_transfer, findings.effects):
        assert isinstance(each, list | dict)
    assert isinstance(findings.confirmed, pd.DataFrame)
    assert sharing(study).factor >= 1
    for table in (cost_by_depth(study), timeline(study)):
        assert isinstance(table, pd.DataFrame)
    curves(study, keys)
    agreement(study, keys)
    text = " ".join(answer(Findings(study, 200)))
    assert not re.search(r"\bnan\b|\binf\b|None", text), text
    if best is None:
        assert "nothing to conclude" in text


def test_a_thousand_trials_take_seconds(tmp_path: Path) -> None:
    import time

    location = str(bulk_study(tmp_path, trials=1_000))
    started = time.process_time()  # of this process alone, whatever else the machine does
    study = load(location)
    Findings(study).mean_transfer_of(study.metric)
    answer(Findings(study, 200))
    assert len(study.rows) == 1_000 * 4 * 4 * 2 * 19
    assert time.process_time() - started < 20


def test_distillation_alone_keeps_order_student_and_training(tmp_path: Path) -> None:
    options = {"orders": ("40>100>200>400",), "students": ("micro",), "trials": 5, "failed": 0, "pruned": 0}
    study = load(str(fake_study(tmp_path / "same", **options)))
    found = {each.against.name: each for each in Findings(study, FAST).comparisons}
    assert found["sequential"].trial == Findings(study).best.trial
    assert not any(each.matched for each in found.values()), "the best chain itself differs in nothing else"
    (told,) = [each for each in answer(Findings(study, FAST)) if each.startswith("Distillation ")]
    assert "over sequential fine-tuning" in told or "against sequential fine-tuning" in told

    study = load(str(fake_study(tmp_path / "other", **options | {"searched_lr": True, "trials": 14})))
    best = study.trial(Findings(study).best.trial)
    others = study.trials["trial"] != best["trial"]
    for lr, chosen in ((3e-3, ~others), (1e-3, others)):  # the baseline has 1e-3: the best trial alone has another one
        study.trials.loc[chosen, "params"] = [
            json.dumps({**json.loads(each), "training.lr": lr}) if json.loads(each) else each
            for each in study.trials.loc[chosen, "params"]
        ]
    found = Findings(study, FAST).comparisons
    (alone,) = [each for each in found if each.matched]
    second = study.searched[study.searched["trial"] != best["trial"]].sort_values("objective").iloc[-1]
    assert alone.trial == second["trial"]
    assert alone.p_holm >= alone.p
    text = answer(Findings(study, FAST))
    assert any("differs in more than distillation (training.lr 0.001 against 0.003)" in each for each in text)
    assert any(f"distillation (trial {alone.trial})" in each for each in text)


def test_what_variants_cost_is_told_of_the_stage_whose_teacher_computes_most(small: Study) -> None:
    assert variants_told(small) == ""
    taught = [each for each in small.stages.values() if each.spec["distillation"]]
    alone = next(each for each in small.stages.values() if not each.spec["distillation"])
    taught[0].spec["training"].update(variants=3, stain="hed", epochs=20)
    taught[1].spec["training"].update(variants=2, stain="hed", epochs=30)
    alone.spec["training"].update(variants=9, stain="hed", epochs=90)  # no teacher, no passes
    assert variants_told(small) == (
        "24 of an image (3 variants, each in 8 of the square's views); a teacher computes at most 20 passes over a "
        "stage's images, one a view and no more than the 20 epochs"
    )
