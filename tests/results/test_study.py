"""Reading a study: whole, partial, damaged, foreign."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from kdtvit_ray.console import progress_lines
from kdtvit_ray.errors import UserError
from kdtvit_ray.report import build
from kdtvit_ray.results import study as summary_study
from kdtvit_ray.results.answer import answer
from kdtvit_ray.results.choice import different_settings, ranked
from kdtvit_ray.results.effects import effects
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.study import Study, importance, load
from kdtvit_ray.results.study_status import Status, TrialCounts
from tests.results.fake_study import fake_study

pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture
def copied(small_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_folder, tmp_path / "copy"))


def test_a_finished_study(small: Study) -> None:
    assert (small.name, small.metric, small.protocol, small.planned) == ("fake", "auc", "patient", 12)
    assert small.finished
    assert not small.leaks
    assert small.notes == []
    assert small.trials["kind"].value_counts().to_dict() == {"search": 12, "baseline": 7, "confirm": 18}
    assert small.trials["state"].value_counts().to_dict() == {"complete": 35, "failed": 1, "pruned": 1}
    assert set(small.rows["trial"]) == set(small.trials["trial"])
    assert set(small.stages) == {key for keys in small.trials["stages"] for key in keys}
    assert small.trial("nothing") is None


def test_the_records_decide_where_no_status_says_finished(copied: Path) -> None:
    (copied / "status.json").unlink()
    assert load(str(copied)).finished
    (copied / "trials" / "joint.parquet").unlink()
    study = load(str(copied))
    assert not study.finished
    assert "joint" not in set(study.rows["trial"])  # killed between rows and record: the trial has not ended


def test_a_space_with_fewer_settings_than_trials_is_finished_when_all_were_tried(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "small", trials=4, failed=0)
    path = folder / "study.toml"
    path.write_text(path.read_text().replace("trials = 4\n", "trials = 20\n"))
    study = load(str(folder))
    assert study.plain["study"]["trials"] == 20
    assert (study.planned, study.finished) == (4, True)
    assert "finished: 4 of 4 searched trials have ended" in answer(Findings(study, 200))[0]
    # a confirmation's status says nothing of the sweep, so the records have to be enough
    study.status = replace(study.status, replicates=TrialCounts(total=6, complete=6))
    assert study.finished
    study.status = Status()
    assert (study.planned, study.finished) == (20, False)


def test_a_study_that_asks_for_fewer_trials_than_it_has_is_finished_with_those(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "small", trials=4, failed=0)
    path = folder / "study.toml"
    path.write_text(path.read_text().replace("trials = 4\n", "trials = 2\n"))
    study = load(str(folder))
    study.status = replace(study.status, trials=TrialCounts(total=2, complete=4))
    assert "finished: 4 of 4 searched trials have ended" in answer(Findings(study, 200))[0]
    assert progress_lines(study.status)[0] == "trials    4 of 4 ended: 4 complete"


def test_a_running_study(tmp_path: Path) -> None:
    study = load(str(fake_study(tmp_path, trials=8, running=3, failed=0)))
    assert not study.finished
    assert len(study.searched) == 4
    assert Findings(study).best.chosen_from == 4
    assert len(Findings(study, 200).headline.wide("auc")) > 2
    assert "not finished" in answer(Findings(study, 200))[0]


def test_no_folder_and_a_folder_of_something_else(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"is not a study: it has no study\.toml; allowed"):
            load(str(place))


def test_a_study_of_a_newer_version_is_read_as_far_as_it_is_known_and_goes_on_nowhere(copied: Path) -> None:
    text = (copied / "study.toml").read_text().replace("\nversion = 1\n", "\n").replace("version = 1\n", "", 1)
    (copied / "study.toml").write_text("version = 2\n" + text)
    study = load(str(copied))
    assert "format 2 by a newer version" in study.notes[0]
    assert len(Findings(study, 200).headline.wide("auc")) > 2
    with pytest.raises(UserError, match="format 2 by a newer version"):
        summary_study.settings_of(study.folder)


@pytest.mark.parametrize("line", ["study = 3", "data = 3", "chain = []", "training = ''"])
def test_settings_of_a_wrong_kind_are_told(copied: Path, line: str) -> None:
    kept = {name: {} for name in ("study", "protocol") if not line.startswith(name)}
    tables = "".join(f"[{name}]\n" for name in kept)
    (copied / "study.toml").write_text(f"version = 1\n{line}\n{tables}")
    with pytest.raises(UserError, match="damaged"):
        load(str(copied))


@pytest.mark.parametrize("lost", ["curves", "cost", "spec.distillation", "spec.model", "spec.magnifications"])
def test_a_stage_that_lacks_something_is_left_out(copied: Path, lost: str) -> None:
    (copied / "status.json").write_text("[]")
    key = Findings(load(str(copied))).best.keys[-1]
    path = copied / "stages" / key / "stage.json"
    about = json.loads(path.read_text())
    part, _, name = lost.rpartition(".")
    del (about[part] if part else about)[name]
    path.write_text(json.dumps(about))
    study = load(str(copied))
    assert key not in study.stages
    assert study.notes == [
        "status.json is damaged and was left out",
        f"stages/{key}/stage.json is damaged and was left out",
    ]


def test_a_study_whose_best_trial_has_lost_its_last_stage_is_reported(copied: Path) -> None:
    (copied / "stages" / Findings(load(str(copied))).best.keys[-1] / "stage.json").write_text("{}")
    build.assemble(Findings(load(str(copied)), 200))


def test_a_damaged_settings_file_is_told(copied: Path) -> None:
    (copied / "study.toml").write_text("[study\n")
    with pytest.raises(UserError, match="damaged"):
        load(str(copied))


def test_an_emptied_settings_file_is_damaged_and_no_patient_split(copied: Path) -> None:
    (copied / "study.toml").write_text("")
    with pytest.raises(UserError, match="damaged: it has no version"):
        load(str(copied))


def test_a_confirmation_that_has_finished_does_not_finish_the_sweep(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "study", trials=12, running=4, confirm=2)
    path = folder / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "finished", "replicates": {"total": 2}}))
    assert not load(str(folder)).finished


def test_whatever_else_is_damaged_is_noted_and_left_out(copied: Path) -> None:
    before = load(str(copied))
    key = Findings(before).best.keys[-1]
    other = next(each for each in before.stages if each != key)
    (copied / "rows" / "t0001.parquet").write_bytes(b"PAR1")
    (copied / "status.json").write_text("{")
    (copied / "importance.json").write_text("[1]")
    (copied / "stages" / other / "stage.json").write_text("{")
    (copied / "stages" / key / "predictions.parquet").write_bytes(b"")
    study = load(str(copied))
    assert [note.split()[0] for note in study.notes] == ["status.json", "rows/t0001.parquet", "The"]
    assert other not in study.stages
    assert importance(study) == {}
    wide = Findings(study, 200).headline.wide("auc")  # without predictions the rows still have the values
    expected = Findings(before, 200).headline.wide("auc").loc["Best chain"]
    assert wide.loc["Best chain"].to_list() == pytest.approx(expected.to_list(), abs=1e-6)
    assert wide.attrs["low"].loc["Best chain"].isna().all()
    assert Findings(study, 200).comparisons == []
    assert any("Its test figures" in each or "reaches AUC" in each for each in answer(Findings(study, 200)))
    text = " ".join(study.notes)
    for name in (f"stages/{other}/stage.json", f"stages/{key}/predictions.parquet", "importance.json"):
        assert name in text


def test_a_stage_of_a_newer_version_is_left_out(copied: Path) -> None:
    key = next(iter(load(str(copied)).stages))
    path = copied / "stages" / key / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 3}))
    study = load(str(copied))
    assert key not in study.stages
    assert "newer version" in study.notes[-1]


def test_unfinished_stages_do_not_exist(copied: Path) -> None:
    (copied / "stages" / ("0" * 32)).mkdir()
    study = load(str(copied))
    assert "0" * 32 not in study.stages
    assert study.notes == []


def test_importance_is_what_the_file_says(small: Study) -> None:
    assert importance(small)["fanova"]["student"] == 0.44


def test_a_setting_that_was_tried_again_counts_once(small_folder: Path, tmp_path: Path) -> None:
    study = load(str(small_folder))
    before = {each.setting: each for each in effects(study.settings, study.metric)}
    chain, transfer = Findings(study).best, Findings(study).mean_transfer_of(study.metric)
    again = study.searched.iloc[[0, 0, 0, 3, 5, 5]].assign(
        trial=[f"t01{number:02d}" for number in range(6)], number=range(100, 106)
    )
    rows = [
        study.rows[study.rows["trial"] == old].assign(trial=new)
        for old, new in zip(study.searched.iloc[[0, 0, 0, 3, 5, 5]]["trial"], again["trial"], strict=True)
    ]
    study.trials = pd.concat([study.trials, again], ignore_index=True)
    study.rows = pd.concat([study.rows, *rows], ignore_index=True).astype({"trial": "category"})
    assert len(study.searched) == len(study.settings) + 6
    after = {each.setting: each for each in effects(study.settings, study.metric)}
    assert after.keys() == before.keys()
    for name, effect in after.items():
        assert (effect.p, effect.p_holm, effect.tried) == pytest.approx(
            (before[name].p, before[name].p_holm, before[name].tried), nan_ok=True
        )
        pd.testing.assert_frame_equal(effect.table, before[name].table)
    assert Findings(study).best == chain
    assert Findings(study).mean_transfer_of(study.metric).average == transfer.average
    assert (
        f"from {chain.chosen_from + 1} different settings, 1 of which was stopped early (6 more trials repeat one)"
        in " ".join(answer(Findings(study, 200)))
    )


def test_the_best_settings_come_first_and_each_of_them_once(small: Study) -> None:
    found = small.searched.assign(objective=[0.5, 0.9, 0.9, 0.7, *[0.1] * 6])
    order = found["trial"].tolist()
    assert ranked(found, "auc")["trial"].tolist()[:4] == [order[1], order[2], order[3], order[0]]
    again = found.iloc[[1]].assign(trial="t0099", number=99)
    twice = pd.concat([found, again])
    assert "t0099" in ranked(twice, "auc")["trial"].tolist()[:3]
    assert ranked(different_settings(twice), "auc")["trial"].tolist() == ranked(found, "auc")["trial"].tolist()
