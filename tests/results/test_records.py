"""stage.json and status.json: what is written is read again."""

import json
import math
from dataclasses import asdict, replace

import pytest

from kdtvit_ray.paths import PREDICTIONS, WEIGHTS, StudyFolder
from kdtvit_ray.recipe import ModelSpec, StageSpec
from kdtvit_ray.results.stage_record import CURVES, Measure, NewerFormat, StageRecord
from kdtvit_ray.results.study_status import BestTrial, GroupStatus, StageCounts, Status, TrialCounts
from tests.lacking import places, with_value, without
from tests.results.fake_study import NO_FILE, PREPROCESSING
from tests.study.made_stages import COST

RECORD = StageRecord(
    key="k",
    spec=json.loads(json.dumps(StageSpec((40,), ModelSpec()).to_dict())),
    measures=(
        Measure(40, "validation", "image", "auc", 0.8),
        Measure(100, "validation", "image", "auc", 0.6),
        Measure(40, "test", "image", "auc", 0.1),
        Measure(40, "validation", "patient_vote", "auc", 0.2),
        Measure(40, "validation", "image", "accuracy", 0.3),
    ),
    cost={**COST, "parameters": 5, "train_seconds": 2.0, "evaluate_seconds": 1.0},
    curves=[dict(zip(CURVES, (1, 0.5, 0.5, None, 1e-3, None), strict=True))],
    agreement={"same_argmax": 0.9, "kl": 0.1},
    weighting={"logit_offsets": [0.0] * 8},
    preprocessing=PREPROCESSING,
    classes={"names": ["A", "B"], "positive": ["B"]},
    workers=2,
    started=1.0,
    finished=4.5,
    files=dict.fromkeys((WEIGHTS, PREDICTIONS), NO_FILE),
)


def through_json(record):
    return json.loads(json.dumps(record.to_plain(), sort_keys=True))


def test_a_stage_comes_back_as_it_was_written_and_its_measures_have_names():
    plain = through_json(RECORD)
    assert StageRecord.from_plain(plain) == RECORD
    assert plain["measures"]["metric"] == ["auc", "auc", "auc", "auc", "accuracy"]
    assert plain["measures"]["value"] == [0.8, 0.6, 0.1, 0.2, 0.3]
    assert plain["parent"] is None


def test_what_a_later_version_says_beside_is_passed_over():
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


@pytest.mark.parametrize("measured", [True, False])
def test_a_stage_without_anything_that_every_stage_has_is_damaged(measured):
    plain = through_json(RECORD)
    for place in places(plain):
        if place != ("parent",):  # it is in the spec
            with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
                StageRecord.from_plain(without(plain, place), measured)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *[(("curves", 0, name), "x") for name in CURVES],
        (("curves", 0, "loss"), None),
        *[(("cost", name), [1]) for name in ("train_seconds", "teacher_asked", "latency_1_seconds", "parameters")],
        (("agreement", "kl"), None),
        (("started",), "today"),
    ],
)
def test_a_stage_of_which_a_number_is_none_is_damaged(place, value):
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        StageRecord.from_plain(with_value(through_json(RECORD), place, value))


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


def test_a_status_without_anything_that_every_status_has_is_none():
    plain = json.loads(json.dumps(asdict(STATUS)))
    for place in places(plain):
        if len(place) == 3 and place[0] == "best":
            continue  # a name of the study's own
        with pytest.raises(ValueError, match="it is no status"):
            Status.from_plain(without(plain, place))


@pytest.mark.parametrize("plain", [[], None, "x", {"trials": 3}, {"groups": [1]}, {"best": {"by_magnification": 1}}])
def test_anything_else_is_no_status(plain):
    with pytest.raises(ValueError, match="it is no status"):
        Status.from_plain(plain)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("trials", "complete"), None),
        (("stages", "ready"), "2"),
        (("trials",), 3),
        (("elapsed",), math.inf),
        (("elapsed",), "1"),
        (("seconds_left",), math.nan),
        (("best", "objective"), None),
        (("best", "by_magnification"), {"40": "x"}),
        (("state",), 3),
        (("aside",), "abc"),
        (("dying",), [1]),
        (("groups",), [{}]),
    ],
)
def test_a_status_with_a_value_of_another_kind_is_damaged(place, value):
    plain = json.loads(json.dumps({**asdict(Status(state="running")), "version": 1}))
    assert Status.from_plain(plain) == Status(state="running")
    with pytest.raises(ValueError, match=r"it is no status|could not convert"):
        Status.from_plain(with_value(plain, place, value))
