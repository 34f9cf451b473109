"""Files that lack a name that every such file has: each reader says so in one sentence, or leaves the file out and says
that. A real study, a real export."""

import json
import shutil
import tomllib
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import tomli_w

from kdtvit_ray.cli import main
from kdtvit_ray.data.prepared import open_prepared
from kdtvit_ray.deliver import folder as export
from kdtvit_ray.deliver.model_choice import choose_model
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.report.build import assemble
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.rows import TOLD, read_trials
from kdtvit_ray.results.study import load
from kdtvit_ray.results.study_status import Status
from kdtvit_ray.study.binding import as_begun, bind, write_study
from kdtvit_ray.study.ledger import Ledger
from kdtvit_ray.study.space import load_space
from kdtvit_ray.study.store import DamagedStage, StageStore
from tests.lacking import places, without


@pytest.fixture
def own(study, tmp_path):
    """A copy of the study that a test may damage."""
    return StudyFolder(str(shutil.copytree(study, tmp_path / "study")))


def is_free(place):
    """Names in a study's file that are a study's own, or say more than a reader needs."""
    tables = (("versions",), ("search",), ("data", "digests"), ("data", "dataset", "references"))
    if any(place[: len(table)] == table and len(place) > len(table) for table in tables):
        return place != ("versions", "recipe")
    return (
        place == ("data", "dataset", "references")
        or (place[:2] == ("data", "splits") and place[-1] not in ("train", "test", "images", "patients"))
        or (place[0] == "models" and (len(place) == 2 or (place[2:3] == ("args",) and len(place) > 3)))
    )


def test_a_study_file_that_lacks_a_name_is_damaged_for_everybody(own, data, study, capsys):
    whole = tomllib.loads((own.local / own.study).read_text())
    needed = [place for place in places(whole) if not is_free(place)]
    assert {("id",), ("data", "notes"), ("models", "big", "args"), ("training", "mixup")} < set(needed)
    for place in needed:
        (own.local / own.study).write_text(tomli_w.dumps(without(whole, place)))
        with pytest.raises(UserError, match=r"The study file '.*study\.toml' is damaged: .*\b" + str(place[-1])):
            load(own.location)
    bound = bind(load_space(str(study.parent / "small.toml")), str(data))
    for reader in (
        lambda: as_begun(bound, own),
        lambda: write_study(own, bound),
        lambda: choose_model(own.location),
    ):
        with pytest.raises(UserError, match="is damaged: it has no "):
            reader()
    for command in (["report"], ["chain", "--data", str(data)], ["export", str(own.local / "out")]):
        assert main([command[0], own.location, *command[1:]]) == 2
        told = capsys.readouterr().err
        assert "is damaged: it has no " in told
        assert told.count("\n") == 1
    for place in [place for place in places(whole) if is_free(place)]:
        whole = without(whole, place) if place[:2] != ("data", "splits") or len(place) > 3 else whole
    (own.local / own.study).write_text(tomli_w.dumps(whole))
    assemble(Findings(load(own.location), 200))


def test_a_stage_that_lacks_a_name_is_left_out_and_its_model_is_damaged(own):
    study = load(own.location)
    key = choose_model(study).key
    whole, store = own.read_json(own.stage(key)), StageStore(own)
    for other in own.names(own.stages):
        if other != key:
            own.delete(f"{own.stages}/{other}")
    free = {("parent",), ("weighting", "class_weights")}
    more = {"latency_32_seconds", "steps", "images", "evaluated_images", "trainable_parameters", "workers"}
    more |= {"data_seconds", "setup_seconds"}
    for place in places(whole):
        own.write_json(own.stage(key), without(whole, place))
        if place in free or (place[0] == "cost" and place[-1] in more) or place[:-1] == ("versions",):
            assert store.record(key).key == key
            continue
        with pytest.raises(DamagedStage, match="is damaged: "):
            store.record(key)
        found = replace(study, notes=[])
        assert key not in found.stages, place
        assert found.notes == [f"stages/{key}/stage.json is damaged and was left out"]
    own.write_json(own.stage(key), {})
    assemble(Findings(load(own.location), 200))
    with pytest.raises(UserError, match="damaged"):
        choose_model(own.location)


def test_a_trials_record_that_lacks_a_name_is_left_out_and_written_anew(own, data, study):
    path = own.local / own.trials / "joint.parquet"
    whole = pq.read_table(path)
    for name in whole.column_names:
        pq.write_table(whole.drop_columns([name]), path)
        damaged = []
        assert "joint" not in set(read_trials(own, damaged)["trial"])
        assert len(damaged) == 1
        assert damaged[0].startswith("trials/joint.parquet is damaged and was left out")
    bound = bind(load_space(str(study.parent / "small.toml")), str(data))
    Ledger(own, bound.space, magnifications=(40, 100)).next()  # all its chains are there
    assert "joint" in set(read_trials(own)["trial"])
    for kind, told in TOLD.items():
        params = dict.fromkeys(told, 1)
        for name in told:
            lacking = {**whole.to_pylist()[0], "kind": kind, "params": json.dumps(without(params, (name,)))}
            pq.write_table(whole.from_pylist([lacking], schema=whole.schema), path)
            found = load(own.location)
            assert "joint" not in set(found.trials["trial"])
            assert "The record of trial joint is damaged and was left out" in found.notes[0]


def test_a_status_that_lacks_a_name_is_left_out_and_told(own, capsys):
    Status(state="finished").write(own)
    own.write_json(own.status, without(own.read_json(own.status), ("dtype",)))
    assert load(own.location).notes == ["status.json is damaged and was left out"]
    assert main(["status", own.location]) == 2
    assert "status.json' is damaged; " in capsys.readouterr().err


def test_a_prepared_set_that_lacks_a_name_is_damaged(data, tmp_path):
    path = shutil.copytree(data, tmp_path / "set") / "prepared.json"
    whole = json.loads(path.read_text())
    free = ("contents", "test_in_fold", "census", "references")  # of an archive; of some datasets
    for place in places(whole):
        if set(place) & set(free) or (place[:2] == ("about", "counts") and len(place) > 2):
            continue
        path.write_text(json.dumps(without(whole, place)))
        with pytest.raises(UserError, match=r"Prepared set '.*' is damaged \(no '.*' in it\); delete it and prepare"):
            open_prepared(path.parent)


def test_an_export_that_lacks_a_name_is_refused(model, tmp_path):
    path = shutil.copytree(model, tmp_path / "model") / export.CONFIG
    whole = json.loads(path.read_text())
    named = [(export.OWN, "description", name) for name in whole[export.OWN]["description"]]
    named += [(export.OWN, "description", "preprocessing", name) for name in ("size", "interpolation", "mean")]
    named += [(export.OWN, "files"), ("architecture",), ("num_classes",), ("model_args",)]
    for place in named:
        lacking = without(whole, place)
        lacking[export.OWN]["sha256"] = export._own_sha256(lacking)
        path.write_text(json.dumps(lacking))
        with pytest.raises(UserError, match=r"does not (say how it is used|describe a model of this program)"):
            export.description(export.verified(path.parent, export.WEIGHTS), path.parent)
    path.write_text(json.dumps(without(whole, (export.OWN, "sha256"))))
    with pytest.raises(UserError, match="does not describe a model of this program"):
        export.description(export.verified(path.parent, export.WEIGHTS), path.parent)
