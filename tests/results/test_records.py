"""stage.json and status.json: what is written is read again, of this format and of the one before."""

import json
import math
from dataclasses import replace

import pytest

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.stage_record import Measure, NewerFormat, StageRecord
from kdtvit_ray.results.study_status import BestTrial, GroupStatus, StageCounts, Status, TrialCounts

SPEC = {
    "magnifications": [40],
    "model": {"name": "micro", "args": [], "image_size": 16, "head": "subtype", "weights": "none", "digest": ""},
    "training": {"epochs": 1},
    "distillation": None,
    "parent": None,
    "warm": False,
    "seed": 0,
    "data": {"fingerprint": "f"},
    "numeric": {"dtype": "float32", "threads": 1},
}
RECORD = StageRecord(
    key="k",
    spec=SPEC,
    measures=(
        Measure(40, "validation", "image", "auc", 0.8),
        Measure(100, "validation", "image", "auc", 0.6),
        Measure(40, "test", "image", "auc", 0.1),
        Measure(40, "validation", "patient_vote", "auc", 0.2),
        Measure(40, "validation", "image", "accuracy", 0.3),
    ),
    cost={"parameters": 5, "train_seconds": 2.0, "evaluate_seconds": 1.0},
    curves=[{"epoch": 1, "loss": 0.5}],
    workers=2,
    started=1.0,
    finished=4.5,
)
OLD = """{"agreement": null, "cost": {"evaluate_seconds": 1.0, "parameters": 5, "train_seconds": 2.0},
 "curves": [{"epoch": 1, "loss": 0.5}], "device": "", "files": {}, "finished": 4.5, "group": "", "host": "",
 "key": "k", "measures": [[40, "validation", "image", "auc", 0.8], [100, "validation", "image", "auc", 0.6],
 [40, "test", "image", "auc", 0.1], [40, "validation", "patient_vote", "auc", 0.2],
 [40, "validation", "image", "accuracy", 0.3]], "parent": null, "spec": SPEC, "started": 1.0, "version": 1,
 "versions": {}, "workers": 2}""".replace("SPEC", json.dumps(SPEC))


def through_json(record):
    return json.loads(json.dumps(record.to_plain(), sort_keys=True))


def test_a_stage_comes_back_as_it_was_written_and_its_measures_have_names():
    plain = through_json(RECORD)
    assert StageRecord.from_plain(plain) == RECORD
    assert plain["measures"]["metric"] == ["auc", "auc", "auc", "auc", "accuracy"]
    assert plain["measures"]["value"] == [0.8, 0.6, 0.1, 0.2, 0.3]
    assert plain["parent"] is None


def test_a_stage_of_the_first_format_is_the_same_stage():
    assert StageRecord.from_plain(json.loads(OLD)) == RECORD
    assert StageRecord.from_plain({**through_json(RECORD), "of a later version": 1}) == RECORD


def test_a_value_that_is_undefined_stays_so():
    record = replace(RECORD, measures=(Measure(40, "test", "image", "auc", math.nan),))
    (measure,) = StageRecord.from_plain(through_json(record)).measures
    assert math.isnan(measure.value)


def test_the_objective_is_the_mean_over_magnifications_on_validation_images_alone():
    summary = RECORD.summary()
    assert summary.objective("auc") == pytest.approx(0.7)
    assert math.isnan(summary.objective("f1"))
    assert (summary.parameters, summary.train_seconds, summary.seconds) == (5, 2.0, 3.0)
    assert RECORD.values("validation", "image", "auc") == {40: 0.8, 100: 0.6}


@pytest.mark.parametrize("lost", ["measures", "cost", "curves", "spec", "version"])
def test_a_stage_without_something_that_is_relied_on_is_damaged(lost):
    plain = through_json(RECORD)
    del plain[lost]
    with pytest.raises((KeyError, TypeError, ValueError)):
        StageRecord.from_plain(plain)


def test_columns_of_unequal_length_are_damaged():
    plain = through_json(RECORD)
    plain["measures"]["value"].pop()
    with pytest.raises(ValueError, match="shorter"):
        StageRecord.from_plain(plain)


def test_a_newer_format_is_told():
    with pytest.raises(NewerFormat, match="format 3 by a newer version"):
        StageRecord.from_plain({**through_json(RECORD), "version": 3})


STATUS = Status(
    state="running",
    name="small",
    metric="auc",
    elapsed=2.5,
    seconds_left=7.0,
    trials=TrialCounts(5, 1, 1, 0, 2),
    best=BestTrial("t0001", 0.9, {40: 0.8, 400: 1.0}, {"order": "40>400", "alpha": [0.5]}),
    stages=StageCounts(done=3, trained=2, shared=1),
    groups=(GroupStatus("1", "node", key="k", stage="40X micro", epoch=1, epochs=2, placement_group="0a"),),
    groups_wanted=2,
    group_needs="1 CPU",
    log="sweep.log",
)


def test_a_status_comes_back_as_it_was_written(tmp_path):
    folder = StudyFolder(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        Status.read(folder)
    STATUS.write(folder)
    assert Status.read(folder) == STATUS


def test_a_status_of_an_earlier_version_is_read_as_far_as_it_goes():
    group = {"name": "1", "incarnation": "x", "key": "", "room": "0a", "trouble": "", "seen": 1.0, "busy_since": 0.0}
    found = Status.from_plain({"state": "stopped", "groups": [group], "stages": {"done": 3}, "version": 1})
    assert found == Status(state="stopped", groups=(GroupStatus("1"),), stages=StageCounts(done=3))


@pytest.mark.parametrize("plain", [[], None, "x", {"trials": 3}, {"groups": [1]}, {"best": {"by_magnification": 1}}])
def test_anything_else_is_no_status(plain):
    with pytest.raises(ValueError, match="it is no status"):
        Status.from_plain(plain)
