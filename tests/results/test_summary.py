"""The golden study's numbers, and each table against the rows and predictions that it is made of."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kdtvit_ray.recipe import MAGNIFICATIONS
from kdtvit_ray.results import summary
from kdtvit_ray.results.study_status import Status, TrialCounts
from tests.results.fake_study import bulk_study, fake_study

FAST = 2_000


GOLDEN = {
    "trial": "t0009",
    "objective": 0.991952,
    "auc": {
        "Best chain": 0.9696, "Best tiny": 0.9717, "One model per magnification": 0.9157,
        "Joint training on all": 0.9479, "Sequential fine-tuning, no distillation": 0.8712,
        "Distillation from scratch, no warm start": 0.9005, "KDTViT (reported)": 0.993,
    },
    "interval": [0.881312, 1.0],
    "transfer": [0.909515, -0.036468, 0.161090, 0.036468],
    "sharing": (118, 128, 10, 0),
    "seconds": (10954.498, 1049.836),
}  # fmt: skip
"""What the study of `fake_study(trials=12, seed=0, confirm=3)` gives, by hand-checked code: a change here is a change
of a published number."""


# -- golden ------------------------------------------------------------------------------------------------------------


def test_golden_best_chain(small: summary.Study) -> None:
    best = summary.best(small)
    assert best.trial == GOLDEN["trial"]
    assert best.chosen_from == 10
    assert best.objective == pytest.approx(GOLDEN["objective"], abs=1e-6)


def test_golden_headline(small: summary.Study) -> None:
    wide = summary.headline(small, FAST).wide("auc")
    assert list(wide.columns) == ["40X", "100X", "200X", "400X", "mean"]
    assert wide["mean"].round(4).to_dict() == GOLDEN["auc"]
    found = [wide.attrs[end].loc["Best chain", "mean"] for end in ("low", "high")]
    assert found == pytest.approx(GOLDEN["interval"], abs=1e-6)


def test_golden_transfer(small: summary.Study) -> None:
    found = summary.forgetting(small)
    numbers = [found.average, found.backward, found.forward, found.forgetting]
    assert numbers == pytest.approx(GOLDEN["transfer"], abs=1e-6)


def test_golden_sharing(small: summary.Study) -> None:
    found = summary.sharing(small)
    assert (found.distinct, found.asked, found.shared, found.unknown) == GOLDEN["sharing"]
    assert (found.seconds_spent, found.seconds_saved) == pytest.approx(GOLDEN["seconds"], abs=1e-3)


# -- choice and headline -----------------------------------------------------------------------------------------------


def test_the_choice_is_the_validation_mean_of_the_metric(small: summary.Study) -> None:
    rows = small.rows[(small.rows["split"] == "validation") & (small.rows["level"] == "image")]
    rows = rows[(rows["metric"] == "auc") & (rows["stage"] == 4) & rows["trial"].str.fullmatch("t[0-9]+")]
    means = rows.groupby("trial", observed=True)["value"].mean()
    best = summary.best(small)
    assert best.trial == means.idxmax()
    assert best.objective == pytest.approx(means.max())
    per_student = summary.best_by_student(small)
    assert {each.student for each in per_student} == {"micro", "tiny"}
    assert per_student[0].trial == best.trial
    for each in per_student:
        of_student = small.searched[small.searched["student"] == each.student]
        assert each.objective == of_student["objective"].max()
        assert each.chosen_from == len(of_student)


def test_headline_values_are_the_rows_of_the_last_stage(small: summary.Study) -> None:
    long = summary.headline(small, FAST).long
    rows = small.rows[(small.rows["split"] == "test") & (small.rows["stage"] == 4)]
    chosen = {"best": summary.best(small).trial, "sequential": "sequential", "from_scratch_kd": "from_scratch_kd"}
    for model, trial in chosen.items():
        theirs = rows[rows["trial"] == trial].set_index(["level", "metric", "magnification"])["value"]
        ours = long[(long["model"] == model) & (long["magnification"] != "mean")]
        assert len(ours) == len(theirs) == 4 * 17
        for line in ours.itertuples():
            expected = theirs[line.level, line.metric, int(line.magnification[:-1])]
            assert line.value == pytest.approx(expected, abs=1e-6, nan_ok=True)
            assert math.isnan(line.low) or line.low <= line.high


def test_each_magnification_has_its_own_model_in_that_baseline(small: summary.Study) -> None:
    wide = summary.headline(small, FAST).wide("accuracy")
    rows = small.rows[(small.rows["split"] == "test") & (small.rows["level"] == "image")]
    rows = rows[rows["metric"] == "accuracy"]
    for magnification in MAGNIFICATIONS:
        alone = rows[(rows["trial"] == f"per_magnification-{magnification}") & (rows["magnification"] == magnification)]
        assert wide.loc["One model per magnification", f"{magnification}X"] == pytest.approx(alone["value"].item())


def test_reported_results_stand_apart(small: summary.Study) -> None:
    found = summary.headline(small, FAST)
    wide = found.wide("accuracy", "patient_rate")
    assert wide.loc["PFTAS features (Spanhol et al.)"].to_list() == pytest.approx([0.838, 0.821, 0.851, 0.823, 0.83325])
    assert wide.attrs["kind"]["PFTAS features (Spanhol et al.)"] == "reported"
    assert "patient-disjoint" in wide.attrs["note"]["PFTAS features (Spanhol et al.)"]
    reported = found.wide("auc").loc["KDTViT (reported)"]
    assert reported["mean"] == 0.993
    assert reported.iloc[:4].isna().all()
    assert "split unknown" in found.wide("auc").attrs["note"]["KDTViT (reported)"]


def test_comparisons_are_paired_with_the_headline(small: summary.Study) -> None:
    wide = summary.headline(small, FAST).wide("auc")
    found = summary.comparisons(small, FAST)
    assert {each.against.name for each in found} >= {"sequential", "joint", "from_scratch_kd", "per_magnification"}
    for each in found:
        difference = wide.loc["Best chain"] - wide.loc[each.against.label]
        assert each.difference == pytest.approx(difference["mean"])
        assert {column: value.value for column, value in each.values.items()} == pytest.approx(difference.to_dict())
        assert each.low <= each.high
        assert each.p <= each.p_holm <= 1


def test_a_leaking_protocol_is_said(tmp_path: Path) -> None:
    study = summary.load(str(fake_study(tmp_path, trials=2, failed=0, pruned=0, protocol="image")))
    long = summary.headline(study, FAST).long
    assert long.loc[long["kind"] != "reported", "note"].str.contains("train and test").all()
    assert any("leak" in each for each in summary.answer(study, FAST))


# -- transfer ----------------------------------------------------------------------------------------------------------


def test_transfer_by_hand() -> None:
    from kdtvit_ray.results.transfer import transfer_numbers

    R = [[0.9, 0.6, 0.5], [0.8, 0.7, 0.65], [0.85, 0.6, 0.75]]
    found = transfer_numbers(np.array(R), [0.5, 0.55, 0.6])
    assert found["average"] == pytest.approx((0.85 + 0.6 + 0.75) / 3)
    assert found["backward"] == pytest.approx(((0.85 - 0.9) + (0.6 - 0.7)) / 2)
    assert found["forward"] == pytest.approx(((0.6 - 0.55) + (0.65 - 0.6)) / 2)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.85) + (0.7 - 0.6)) / 2)


def test_forgetting_looks_at_the_best_stage_before_the_last_even_before_it_was_trained() -> None:
    from kdtvit_ray.results.transfer import transfer_numbers

    found = transfer_numbers(np.array([[0.9, 0.95, 0], [0.9, 0.7, 0], [0.9, 0.6, 0]]), [0, 0, 0])
    assert found["forgetting"] == pytest.approx((0 + 0.35) / 2)


def test_a_chain_of_one_stage_has_an_average_only() -> None:
    from kdtvit_ray.results.transfer import transfer_numbers

    found = transfer_numbers(np.array([[0.9]]), [0.5])
    assert found["average"] == 0.9
    assert all(math.isnan(found[name]) for name in ("backward", "forward", "forgetting"))


def test_the_matrix_is_the_rows(small: summary.Study) -> None:
    found = summary.forgetting(small)
    rows = small.rows[(small.rows["trial"] == found.trial) & (small.rows["split"] == "test")]
    rows = rows[(rows["level"] == "image") & (rows["metric"] == "accuracy")]
    for line in rows.itertuples():
        name = f"{line.stage}: {found.order[line.stage - 1]}X"
        assert found.accuracy.loc[name, f"{line.magnification}X"] == line.value
    test = small.predictions(summary.best(small).keys[-1]).query("split == 'test' and magnification == 40")
    assert found.chance["40X"] == pytest.approx(test["malignant"].value_counts(normalize=True).max())
    assert summary.forgetting(small, "joint") is None
    assert summary.forgetting(small, "t0000").trial == "t0000"


def test_the_mean_matrix_is_the_mean_of_the_matrices(small: summary.Study) -> None:
    found = summary.mean_forgetting(small)
    each = [summary.forgetting(small, trial) for trial in small.searched["trial"]]
    assert found.chains == len(each) == 10
    aligned = [one.accuracy[[f"{m}X" for m in one.order]].to_numpy() for one in each]
    np.testing.assert_allclose(found.by_stage.to_numpy(), np.mean(aligned, axis=0))
    for magnification in MAGNIFICATIONS:
        after = [one.accuracy.iloc[one.order.index(magnification)].to_numpy() for one in each]
        np.testing.assert_allclose(found.by_magnification.loc[f"after {magnification}X"], np.mean(after, axis=0))
    for name in ("average", "backward", "forward", "forgetting"):
        assert getattr(found, name).value == pytest.approx(np.mean([getattr(one, name) for one in each]))


# -- settings ----------------------------------------------------------------------------------------------------------


def test_effects_are_means_over_trials(small: summary.Study) -> None:
    found = {each.setting: each for each in summary.effects(small)}
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


def test_the_grid_is_means_over_trials(small: summary.Study) -> None:
    table = summary.grid(small)
    settings = summary.settings_of(small).assign(objective=small.searched["objective"])
    means = settings.groupby(["temperature", "alpha"])["objective"].agg(["mean", "count"])
    for (temperature, alpha), line in means.iterrows():
        assert table.loc[temperature, alpha] == pytest.approx(line["mean"])
        assert table.attrs["n"].loc[temperature, alpha] == line["count"]
    assert table.attrs["n"].to_numpy().sum() == 10


def test_settings_by_stage_and_training_settings(tmp_path: Path) -> None:
    study = summary.load(str(fake_study(tmp_path, trials=14, per_stage=True, searched_lr=True, predictions=False)))
    names = {each.setting for each in summary.effects(study)}
    assert {"temperature.2", "temperature.4", "alpha.3", "training.lr"} <= names
    assert "temperature" not in names
    assert summary.grid(study) is None


def test_confirmed_chains_are_those_of_kind_confirm(small: summary.Study) -> None:
    found = summary.confirmed(small)
    assert set(found["chain"]) == {"t0000", "t0001", "sequential"}
    assert set(found["runs"]) == {6}
    assert set(found["level"]) == {"image", "patient_rate", "patient_vote"}
    record = small.trial("t0001")
    alpha = json.loads(record["alpha"])[0]
    (label,) = set(found.loc[found["chain"] == "t0001", "label"])
    temperature = json.loads(record["temperature"])[0]
    assert label == f"t0001 ({record['order']}, T {temperature:g}, alpha {alpha:g}, {record['student']})"


def test_confirmed_chains_are_compared_with_the_best_on_validation_whatever_test_says(small: summary.Study) -> None:
    for better in ("t0000", "t0001"):
        small.trials.loc[small.trials["trial"].isin(["t0000", "t0001"]), "objective"] = 0.5
        small.trials.loc[small.trials["trial"] == better, "objective"] = 0.6
        found = summary.confirmed(small)
        assert found["chain"].iloc[0] == better
        assert found.loc[found["chain"] == better, "p"].isna().all()
        assert found.loc[(found["chain"] != better) & (found["metric"] == "auc"), "p"].notna().all()


def test_a_confirmation_that_was_interrupted_says_how_far_it_came(small: summary.Study) -> None:
    assert summary.replicates_left(small) == (0, 0)
    small.status = Status(replicates=TrialCounts(total=12, complete=4, failed=1, running=2))
    assert summary.replicates_left(small) == (5, 12)


# -- effort ------------------------------------------------------------------------------------------------------------


def test_nothing_is_called_a_difference_with_few_patients(tmp_path: Path) -> None:
    study = summary.load(str(fake_study(tmp_path / "study", patients=16, trials=6)))
    found = summary.comparisons(study, FAST)
    assert all(each.few and not each.shown and math.isnan(each.low) for each in found)
    long = summary.headline(study, FAST).long
    assert long["low"].isna().all(), "four patients a class have no interval"
    text = " ".join(summary.answer(study, FAST))
    assert "too few patients to tell, 4 in the smaller class" in text
    assert "There is no interval: test has too few patients" in text
    assert "a difference that the data show" not in text


def test_fewer_magnifications_have_means_and_comparisons_over_those(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "study", trials=4, orders=("40>100", "100>40"), baselines=("joint",))
    for path in (folder / "rows").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.less(table["magnification"], 200)), path)
    for path in folder.glob("stages/*/predictions.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.less(table["magnification"], 200)), path)
    study = summary.load(str(folder))
    assert study.magnifications == (40, 100)
    found = summary.headline(study, FAST)
    wide = found.wide("auc")
    assert wide.loc["Best chain", "mean"] == pytest.approx(wide.loc["Best chain", ["40X", "100X"]].mean())
    accuracy = found.wide("accuracy", "patient_rate")
    (pftas,) = [label for label in accuracy.index if label.startswith("PFTAS")]
    assert accuracy.loc[pftas, "mean"] == pytest.approx((0.8380 + 0.8210) / 2)
    assert "Means are over 40X and 100X: test has no images of other magnifications" in found.notes
    assert all(math.isfinite(each.difference) for each in summary.comparisons(study, FAST))
    assert any("as the mean over 40X and 100X; 40X 0." in each for each in summary.answer(study, FAST))


def test_shared_stages_are_counted_from_the_records(small: summary.Study) -> None:
    found = summary.sharing(small)
    cost = {key: each.cost["train_seconds"] + each.cost["evaluate_seconds"] for key, each in small.stages.items()}
    keys = [key for keys in small.trials["stages"] for key in keys]
    assert found.seconds_spent == pytest.approx(sum(cost[key] for key in set(keys)))
    assert found.seconds_spent + found.seconds_saved == pytest.approx(sum(cost[key] for key in keys))
    assert found.seconds_spent + found.seconds_saved == pytest.approx(small.trials["cost_seconds"].sum())
    table = summary.cost_by_depth(small)
    assert table["stages"].sum() == found.distinct
    assert table["device_seconds"].sum() == pytest.approx(found.seconds_spent)
    assert summary.device_kind(small) == "CPU"
    for key, each in small.stages.items():
        small.stages[key] = replace(each, workers=4)
        each.cost["device_type"] = "cuda"
    assert summary.cost_by_depth(small)["device_seconds"].sum() == pytest.approx(4 * found.seconds_spent)
    assert summary.device_kind(small) == "GPU"


def test_stages_of_chains_that_have_not_ended_are_as_deep_as_their_parents(small: summary.Study) -> None:
    before = summary.depths(small)
    small.trials = small.trials[:0]
    assert summary.depths(small) == {key: before[key] for key in small.stages}
    assert set(before.values()) == {1, 2, 3, 4}
    for key, about in small.stages.items():
        assert before[key] == (before[about.parent] + 1 if about.parent else 1)


def test_what_stored_teacher_outputs_saved_is_counted_at_each_teachers_speed(small: summary.Study) -> None:
    found = summary.stored_outputs(small)
    taught = [each for each in small.stages.values() if each.cost["teacher_asked"]]
    assert found.asked == 2_560 * len(taught)
    assert found.computed == 640 * len(taught)
    assert found.seconds == pytest.approx(sum(each.cost["teacher_seconds"] for each in taught))
    assert found.seconds_saved == pytest.approx(3 * found.seconds)  # three of four were stored, whoever taught
    first = taught[0].cost
    by_micro = [each for each in taught if small.stages[each.parent].spec["model"]["name"] == "micro"]
    assert 0 < len(by_micro) < len(taught)
    first["teacher_computed"] = first["teacher_asked"]  # one stage more that found nothing stored: faster, less saved
    assert summary.stored_outputs(small).seconds_saved < found.seconds_saved
    for each in small.stages.values():
        del each.cost["teacher_asked"]
    assert summary.stored_outputs(small) is None


def test_the_timeline_shows_each_group_doing_one_thing_at_a_time(small: summary.Study) -> None:
    table = summary.timeline(small)
    assert table["started"].min() == 0
    assert set(table["group"]) == {"group-0", "group-1"}
    for _, part in table.groupby("group"):
        assert (part["started"].to_numpy()[1:] >= part["finished"].to_numpy()[:-1] - 1e-6).all()


def test_curves_and_agreement_of_the_best_chain(small: summary.Study) -> None:
    keys = summary.best(small).keys
    table = summary.curves(small, keys)
    assert table.groupby("stage")["epoch"].apply(list).to_dict() == {stage: [1, 2, 3, 4] for stage in (1, 2, 3, 4)}
    assert table.loc[table["stage"] == 1, "distillation"].isna().all()
    assert table.loc[table["stage"] > 1, "distillation"].notna().all()
    assert summary.agreement(small, keys)["stage"].tolist() == [2, 3, 4]
    assert summary.curves(small, ["missing"]).empty


# -- sentences ---------------------------------------------------------------------------------------------------------


def test_sentences_carry_the_numbers(small: summary.Study) -> None:
    sentences = summary.answer(small, FAST)
    best = summary.best(small)
    wide = summary.headline(small, FAST).wide("auc")
    assert "12 of 12 searched trials" in sentences[0]
    assert "10 complete, 1 failed, 1 pruned" in sentences[0]
    assert best.trial in sentences[1]
    assert f"{best.objective:.3f}" in sentences[1]
    assert "chosen on validation from 10 different settings" in sentences[1]
    assert f"AUC {wide.loc['Best chain', 'mean']:.3f} (95 % CI" in sentences[2]
    (sequential,) = [each for each in summary.comparisons(small, FAST) if each.against.name == "sequential"]
    (told,) = [each for each in sentences if "sequential fine-tuning (95 %" in each and "searched chain" in each]
    assert f"{100 * abs(sequential.difference):.1f} points of AUC" in told
    assert f"95 % CI {100 * sequential.low:.1f} to {100 * sequential.high:.1f}" in told
    assert any(each.startswith("1 trial failed: t0011 (The loss is not finite") for each in sentences)
    assert all(each.endswith(".") for each in sentences)
    assert "nan" not in " ".join(sentences).replace("finance", "")


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
    from kdtvit_ray.results.answer import _Against, _difference

    found = _Against("auc", summary.Interval(0.004, low, high), p_holm / 4, p_holm, 4)
    told = _difference(found, "sequential fine-tuning")
    assert told.startswith("adds 0.4 points of AUC over sequential fine-tuning")
    assert words in told


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
    study = summary.load(str(fake_study(tmp_path, **options)))
    best = summary.best(study)
    keys = best.keys if best else ()
    assert (best is None) == (len(study.searched) == 0)
    headline = summary.headline(study, 200)
    for metric in ("auc", "accuracy", "precision"):
        assert isinstance(headline.wide(metric), pd.DataFrame)
    summary.comparisons(study, 200)
    summary.forgetting(study)
    summary.mean_forgetting(study)
    summary.effects(study)
    summary.grid(study)
    summary.confirmed(study)
    assert summary.sharing(study).factor >= 1
    for table in (summary.cost_by_depth(study), summary.timeline(study)):
        assert isinstance(table, pd.DataFrame)
    summary.curves(study, keys)
    summary.agreement(study, keys)
    text = " ".join(summary.answer(study, 200))
    assert not re.search(r"\bnan\b|\binf\b|None", text), text
    if best is None:
        assert "nothing to conclude" in text


def test_a_thousand_trials_take_seconds(tmp_path: Path) -> None:
    import time

    location = str(bulk_study(tmp_path, trials=1_000))
    started = time.perf_counter()
    study = summary.load(location)
    summary.mean_forgetting(study)
    summary.effects(study)
    summary.answer(study, 200)
    assert len(study.rows) == 1_000 * 4 * 4 * 2 * 17
    assert time.perf_counter() - started < 5


def test_distillation_alone_keeps_order_student_and_training(tmp_path: Path) -> None:
    options = {"orders": ("40>100>200>400",), "students": ("micro",), "trials": 5, "failed": 0, "pruned": 0}
    study = summary.load(str(fake_study(tmp_path / "same", **options)))
    found = {each.against.name: each for each in summary.comparisons(study, FAST)}
    assert found["sequential"].trial == summary.best(study).trial
    assert not any(each.alike for each in found.values()), "the best chain itself differs in nothing else"
    (told,) = [each for each in summary.answer(study, FAST) if each.startswith("Distillation ")]
    assert "over sequential fine-tuning" in told or "against sequential fine-tuning" in told

    study = summary.load(str(fake_study(tmp_path / "other", **options | {"searched_lr": True, "trials": 14})))
    best = study.trial(summary.best(study).trial)
    others = study.trials["trial"] != best["trial"]
    for lr, chosen in ((3e-3, ~others), (1e-3, others)):  # the baseline has 1e-3: the best trial alone has another one
        study.trials.loc[chosen, "params"] = [
            json.dumps({**json.loads(each), "training.lr": lr}) if json.loads(each) else each
            for each in study.trials.loc[chosen, "params"]
        ]
    found = summary.comparisons(study, FAST)
    (alone,) = [each for each in found if each.alike]
    second = study.searched[study.searched["trial"] != best["trial"]].sort_values("objective").iloc[-1]
    assert alone.trial == second["trial"]
    assert alone.p_holm >= alone.p
    text = summary.answer(study, FAST)
    assert any("differs in more than distillation (training.lr 0.001 against 0.003)" in each for each in text)
    assert any(f"distillation (trial {alone.trial})" in each for each in text)
