"""What a tracker has after a study was published to it, read back by the tracker's own means."""

import importlib.util
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from kdtvit_ray.cli import _report_unless_stopped, main
from kdtvit_ray.cluster import tracking as meanwhile
from kdtvit_ray.deliver import tracking
from kdtvit_ray.deliver.published import Publication, Run, publication
from kdtvit_ray.deliver.trackers import to_tensorboard, to_wandb
from kdtvit_ray.deliver.tracking import publish
from kdtvit_ray.errors import UserError
from kdtvit_ray.metrics import METRICS
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.rows import TRIALS, read_rows, read_trials
from kdtvit_ray.results.study import load
from tests.cluster.real_sweeps import until
from tests.ports import free_port
from tests.results.fake_study import fake_study

ROOT = Path(__file__).parents[2]
SERVER = Path(sys.prefix) / "mlflow-server/bin/mlflow"
"""`make test-slow` installs it apart: all of MLflow asks for an older pyarrow."""


def needs(module):
    there = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not there, reason=f"{module} is not installed: pip install 'kdtvit-ray[track]'")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A small finished study with a report, in a folder of its own from which commands run."""
    monkeypatch.chdir(tmp_path)
    folder = fake_study(tmp_path / "study", trials=4, baselines=("joint", "sequential"), patients=8, images=2)
    (folder / "report/tables").mkdir(parents=True)
    (folder / "report/index.html").write_text("<p>report</p>")
    (folder / "report/tables/headline.csv").write_text("a,b\n")
    return folder


def ended(folder):
    return read_trials(StudyFolder(str(folder))).set_index("trial")


def stage(folder, key):
    return json.loads((folder / f"stages/{key}/stage.json").read_text())


def goes_on(folder):
    """One more trial than there was, as when a study is extended: a copy of t0000 under another name."""
    record = pq.read_table(folder / "trials/t0000.parquet").to_pylist()[0]
    table = pa.Table.from_pylist([{**record, "trial": "t0009", "number": 9}], schema=TRIALS)
    pq.write_table(table, folder / "trials/t0009.parquet")


# -- what is published -------------------------------------------------------------------------------------------------


def test_a_run_for_the_study_for_each_ended_trial_and_for_each_finished_stage(study):
    names = [each.name for each in publication(load(str(study))).runs]
    stages = sorted(path.name for path in (study / "stages").iterdir())
    assert names[0] == "study"
    assert sorted(names[1:]) == sorted(
        [f"trial/{each}" for each in ended(study).index] + [f"stage/{k}" for k in stages]
    )


def test_test_figures_are_those_that_the_report_shows(study):
    """Of the models of its headline table and of no other trial, with the values of the rows."""
    loaded = load(str(study))
    table = Findings(loaded).headline.long
    table = table[table["metric"].isin(METRICS)]  # those that are stored
    shown = table[(table["level"] == "image") & (table["kind"] != "reported") & (table["magnification"] != "mean")]
    runs = {each.name: each for each in publication(loaded).runs}
    with_test = {name for name, each in runs.items() if any(metric.startswith("test/") for metric in each.metrics)}
    best = Findings(loaded).best.trial
    assert {f"trial/{best}", "trial/joint", "trial/sequential"} <= with_test
    assert len(with_test) == shown["model"].nunique()
    for model, trial in (("best", best), ("joint", "joint"), ("sequential", "sequential")):
        of_model = shown[shown["model"] == model]
        expected = {
            f"test/{metric}_{magnification}": value
            for metric, magnification, value in zip(
                of_model["metric"], of_model["magnification"], of_model["value"], strict=True
            )
        }
        published = {k: v for k, v in runs[f"trial/{trial}"].metrics.items() if k.startswith("test/")}
        assert published == pytest.approx(expected, rel=1e-6)


def test_test_stays_out_of_sight_while_the_study_runs(tmp_path):
    running = fake_study(tmp_path / "study", trials=6, running=2, patients=8, images=2)
    (running / "report").mkdir()
    (running / "report/index.html").write_text("<p>what a sweep that was stopped has on test</p>")
    found = publication(load(str(running)))
    assert not [name for run in found.runs for name in run.metrics if "test" in name]
    assert not found.report
    assert not found.report_digest


def test_a_trial_tells_its_settings_and_how_it_ended(study):
    runs = {each.label: each for each in publication(load(str(study))).runs}
    records = ended(study)
    for trial in ("t0000", "t0001"):
        record, run = records.loc[trial], runs[trial]
        told = {name: run.params[name] for name in ("order", "student", "seed", "temperature", "alpha")}
        assert told == {
            **{name: record[name] for name in ("order", "student", "seed")},
            "temperature": json.loads(record["temperature"])[0],
            "alpha": json.loads(record["alpha"])[0],
        }
        assert run.metrics["objective"] == record["objective"]
    failed = records[records["state"] == "failed"].index[0]
    assert runs[failed].failed
    assert runs[failed].tags["reason"] == records.loc[failed, "reason"]


def test_settings_by_stage_have_a_parameter_each(tmp_path):
    folder = fake_study(
        tmp_path / "s", trials=5, failed=0, pruned=0, baselines=(), per_stage=True, patients=8, images=1
    )
    runs = {each.label: each.params for each in publication(load(str(folder))).runs}
    for trial, record in ended(folder).iterrows():
        values = json.loads(record["temperature"])
        if len(set(values)) > 1:
            assert [runs[trial][f"temperature.{stage}"] for stage in (2, 3, 4)] == values
        else:
            assert runs[trial]["temperature"] == values[0]


def test_credentials_of_a_storage_are_not_published(study):
    assert str(study) in (study / "study.toml").read_text()
    records = study / "trials/t0003.parquet"
    record = pq.read_table(records).to_pylist()[0] | {"reason": "s3://KEY:SECRET@bucket/x is away"}
    pq.write_table(pa.Table.from_pylist([record], schema=TRIALS), records)
    told = repr(publication(load(str(study))).runs)
    assert "s3://***@bucket/x is away" in told
    assert "SECRET" not in told


# -- TensorBoard -------------------------------------------------------------------------------------------------------


@needs("tensorboard")
def test_tensorboard_reads_curves_and_figures(study):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    publish(str(study), "tensorboard")
    last = ended(study).loc["t0000", "stages"][-1]
    read = EventAccumulator(str(study / f"tensorboard/stage/{last}")).Reload()
    for name in ("loss", "distillation", "lr", "agreement"):
        curve = [(each.step, each.value) for each in read.Scalars(name)]
        expected = [(epoch["epoch"], epoch[name]) for epoch in stage(study, last)["curves"]]
        assert curve == [(epoch, pytest.approx(value, rel=1e-6)) for epoch, value in expected]
    trial = EventAccumulator(str(study / "tensorboard/trial/t0000")).Reload()
    assert trial.Scalars("objective")[0].value == pytest.approx(ended(study).loc["t0000", "objective"], rel=1e-6)
    assert "_hparams_/session_start_info" in trial.PluginTagToContent("hparams")


def test_tensorboard_gets_what_is_new_and_nothing_twice(study, tmp_path):
    assert publish(str(study), "tensorboard", str(tmp_path / "logs")).startswith("Published to tensorboard: ")
    before = {path: path.read_bytes() for path in (tmp_path / "logs").rglob("*tfevents*")}
    assert "tensorboard: 0 of" in publish(str(study), "tensorboard", str(tmp_path / "logs"))
    assert {path: path.read_bytes() for path in (tmp_path / "logs").rglob("*tfevents*")} == before
    goes_on(study)
    assert "tensorboard: 2 of" in publish(str(study), "tensorboard", str(tmp_path / "logs"))  # it, and the study
    after = set((tmp_path / "logs").rglob("*tfevents*"))
    assert len(after) == len(before) + 1
    assert not (study / "tensorboard").exists()


def publication_of(name, study_id, value):
    """A study of one trial, with this objective."""
    trial = Run("trial/t0001", "t0001", "search", {"state": "complete"}, metrics={"objective": value}, finished=2.0)
    return Publication(study_id, name, None, [Run("study", name, "study", {"state": "finished"}), trial], {})


def objectives(logs):
    """{the study's folder: the objective of its trial} of what TensorBoard reads there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for each in logs.glob("*/trial/t0001"):
        (point,) = EventAccumulator(str(each)).Reload().Scalars("objective")
        found[each.parts[-3]] = point.value
    return found


@needs("tensorboard")
def test_studies_share_a_folder_of_tensorboard(tmp_path):
    """Also two of one name, and one whose name is no folder's."""
    logs = tmp_path / "logs"
    one, two = publication_of("demo", "1" * 32, 1.0), publication_of("demo", "2" * 32, 2.0)
    strange = publication_of("../a b/é", "3" * 32, 3.0)
    for _ in range(2):
        changed = [to_tensorboard(each, str(logs)) for each in (one, two, strange)]
        assert objectives(logs) == {"demo-11111111": 1.0, "demo-22222222": 2.0, "..-a-b-é-33333333": 3.0}
    assert changed == [0, 0, 0]
    assert [each.name for each in tmp_path.iterdir()] == ["logs"]
    assert to_tensorboard(publication_of("demo", "1" * 32, 4.0), str(logs)) == 1
    assert objectives(logs)["demo-11111111"] == 4.0


@needs("tensorboard")
@pytest.mark.parametrize("in_logdir", [True, False])
def test_files_of_others_stay_in_a_folder_of_tensorboard(tmp_path, in_logdir):
    logs = tmp_path / "logs"
    place = logs / "demo-11111111" if in_logdir else tmp_path / "study/tensorboard"
    theirs = [logs / "study/notes.txt"]
    for name in ("notes.txt", "events.out.tfevents.1700000000.host.123.0", "events.out.tfevents.1.abc.profile-empty"):
        theirs += [place / "study" / name, place / "trial/t0001" / name]
    for each in theirs:
        each.parent.mkdir(parents=True, exist_ok=True)
        each.write_text("theirs")
    for value in (1.0, 2.0):
        found = replace(publication_of("demo", "1" * 32, value), folder=StudyFolder(str(tmp_path / "study")))
        to_tensorboard(found, str(logs) if in_logdir else "")
    assert {each.read_text() for each in theirs} == {"theirs"}
    ours = {path for path in place.rglob("*") if path.is_file()} - set(theirs)
    assert len(ours) == 2, "the trial's older file was left"


# -- MLflow ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """Made once: MLflow takes seconds for its tables."""
    client = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow-skinny")
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    client.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow(empty_store, tmp_path, monkeypatch):
    """A store of its own, and a client that reads it."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(uri)


def runs_of(client):
    (experiment,) = [each for each in client.search_experiments() if each.name == "kdtvit-ray"]
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    by_name = {run.data.tags["kdtvit.run"]: run for run in found}
    assert len(by_name) == len(found)
    return by_name


def everything(client):
    return {
        name: (
            run.data.to_dictionary(),
            run.info.status,
            {metric: client.get_metric_history(run.info.run_id, metric) for metric in run.data.metrics},
        )
        for name, run in runs_of(client).items()
    }


def check_mlflow(study, client):
    publish(str(study), "mlflow")
    runs, records = runs_of(client), ended(study)
    assert runs["trial/t0000"].data.params["order"] == records.loc["t0000", "order"]
    assert runs["trial/t0000"].data.metrics["objective"] == pytest.approx(records.loc["t0000", "objective"])
    failed = records[records["state"] == "failed"].index[0]
    assert (runs[f"trial/{failed}"].info.status, runs["trial/t0000"].info.status) == ("FAILED", "FINISHED")
    parent = runs["study"].info.run_id
    assert {run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if name != "study"} == {parent}
    last = records.loc["t0000", "stages"][-1]
    history = client.get_metric_history(runs[f"stage/{last}"].info.run_id, "loss")
    assert [(each.step, each.value) for each in sorted(history, key=lambda each: each.step)] == [
        (epoch["epoch"], epoch["loss"]) for epoch in stage(study, last)["curves"]
    ]
    assert {each.path for each in client.list_artifacts(parent, "report")} == {"report/index.html", "report/tables"}
    before = everything(client)
    assert "mlflow: 0 of" in publish(str(study), "mlflow")
    assert everything(client) == before


@pytest.mark.slow
@needs("mlflow")
def test_mlflow_has_runs_curves_and_report_and_nothing_twice(study, mlflow):
    check_mlflow(study, mlflow)
    goes_on(study)
    assert "mlflow: 2 of" in publish(str(study), "mlflow")
    assert runs_of(mlflow)["trial/t0009"].data.params == runs_of(mlflow)["trial/t0000"].data.params


@pytest.mark.slow
@needs("mlflow")
def test_mlflow_is_completed_after_a_kill_in_the_middle(study, mlflow, monkeypatch):
    from mlflow import MlflowClient

    send, sent = MlflowClient.log_batch, []

    def killed(self, run_id, **values):
        sent.append(values)
        if len(sent) == 5:
            raise KeyboardInterrupt
        return send(self, run_id, **values)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(str(study), "mlflow")
    cut = len(runs_of(mlflow))
    publish(str(study), "mlflow")
    found = runs_of(mlflow)
    assert 1 < cut < len(found)
    assert set(found) == {each.name for each in publication(load(str(study))).runs}
    for each in publication(load(str(study))).runs:
        curves = {name: values[-1][1] for name, values in each.curves.items()}
        assert found[each.name].data.metrics == pytest.approx({**each.metrics, **curves})
        assert found[each.name].data.params == {name: str(value) for name, value in each.params.items()}
        for name, values in each.curves.items():
            assert len(mlflow.get_metric_history(found[each.name].info.run_id, name)) == len(values)


@pytest.mark.slow
@needs("mlflow")
def test_the_study_is_running_in_mlflow_until_it_has_finished(study, mlflow):
    status = json.loads((study / "status.json").read_text())
    for state, shown in (("running", "RUNNING"), ("finished", "FINISHED"), ("running", "RUNNING")):
        (study / "status.json").write_text(json.dumps({**status, "state": state}))
        publish(str(study), "mlflow")
        assert runs_of(mlflow)["study"].info.status == shown


@pytest.mark.slow
@needs("mlflow")
def test_a_server_that_is_away_is_one_sentence_without_its_password(study, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["track", str(study), "--to", "mlflow"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"kdtvit-ray: Publishing '{study}' to mlflow failed: ")
    assert told.count("\n") == 1
    assert "secret" not in told


@pytest.mark.skipif(not SERVER.exists(), reason=f"no MLflow server in {SERVER}: make test-slow installs it")
@pytest.mark.slow
@needs("mlflow")
def test_mlflow_has_the_same_over_http(study, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    port = free_port()
    command = [SERVER, "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", tmp_path / "files"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        while True:
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        check_mlflow(study, MlflowClient(f"http://127.0.0.1:{port}"))
    finally:
        os.killpg(server.pid, 15)
        server.wait()


# -- Weights & Biases --------------------------------------------------------------------------------------------------


def records_of(path):
    """The records of a file of W&B's offline mode: LevelDB's log format behind a header of seven bytes, which is blocks
    of 32 KiB with records of four bytes of checksum, two of length, one that says whether more of it follows."""
    content, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # too short for a record
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield part
            part = b""


def offline(folder):
    """{run's name: [(its config, what was logged, its summary) for each of its files]}"""
    from wandb.proto import wandb_internal_pb2 as proto

    found = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        name, config, history, summary = "", {}, [], {}
        for data in records_of(path):
            record = proto.Record.FromString(data)
            name = record.run.display_name or name
            for each in [*record.run.config.update, *record.config.update]:
                config[each.key or each.nested_key[0]] = json.loads(each.value_json)
            if record.HasField("history"):
                items = record.history.item
                history.append({each.key or each.nested_key[0]: json.loads(each.value_json) for each in items})
            for each in record.summary.update:
                summary[each.key or each.nested_key[0]] = json.loads(each.value_json)
        found.setdefault(name, []).append((config, history, summary))
    return found


@pytest.mark.slow
@needs("wandb")
def test_wandb_has_runs_and_curves_and_nothing_twice(study, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", ["kdtvit-ray", "track", "s3://KEY:ARGUMENT@bucket/study"])
    publish(str(study), "wandb")
    runs, records = offline(tmp_path), ended(study)
    assert all(len(each) == 1 for each in runs.values())
    assert len(runs) == len(publication(load(str(study))).runs)
    ((config, _, summary),) = runs["t0000"]
    assert config["order"] == records.loc["t0000", "order"]
    assert config["state"] == "complete"
    assert summary["objective"] == pytest.approx(records.loc["t0000", "objective"])
    last = stage(study, records.loc["t0000", "stages"][-1])
    ((_, history, _),) = runs["+".join(map(str, last["spec"]["magnifications"])) + f"X {last['key'][:8]}"]
    assert [(each["_step"], each["loss"]) for each in history] == [
        (epoch["epoch"], pytest.approx(epoch["loss"])) for epoch in last["curves"]
    ]
    assert "wandb: 0 of" in publish(str(study), "wandb")
    goes_on(study)
    assert "wandb: 1 of" in publish(str(study), "wandb")  # the study's own run comes with its next report
    assert len(offline(tmp_path)["t0009"]) == 1
    for file in tmp_path.glob("wandb/**/*"):
        assert file.is_dir() or b"ARGUMENT" not in file.read_bytes(), file


def test_wandb_gets_no_report_of_a_finished_study_that_goes_on(study, monkeypatch):
    runs = []

    @contextmanager
    def run(wandb, found, each, project):
        runs.append(each.name)
        yield SimpleNamespace(log=lambda *_, **__: None, summary={}, log_artifact=lambda _: None)

    artifact = SimpleNamespace(add_file=lambda *_: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Artifact=lambda *_, **__: artifact))
    monkeypatch.setattr("kdtvit_ray.deliver.trackers._wandb_run", run)
    found = publication(load(str(study)))
    to_wandb(found)
    assert "study" in runs
    runs.clear()
    assert to_wandb(replace(found, report={})) == 0
    assert runs == []


# -- the command, and the sweep ----------------------------------------------------------------------------------------


def test_a_missing_package_is_one_sentence_with_what_installs_it(study, monkeypatch, capsys):
    monkeypatch.setitem(tracking.PACKAGES, "mlflow", ("nothing_of_that_name", "mlflow-skinny"))
    assert main(["track", str(study), "--to", "mlflow"]) == 2
    told = "kdtvit-ray: Publishing to mlflow needs a package that is not installed: pip install mlflow-skinny\n"
    assert capsys.readouterr().err == told


def test_a_folder_that_only_has_the_name_of_a_package_is_none(study, monkeypatch):
    (study.parent / "pages_of_wandb").mkdir()
    monkeypatch.syspath_prepend(str(study.parent))
    monkeypatch.setitem(tracking.PACKAGES, "wandb", ("pages_of_wandb", "wandb"))
    with pytest.raises(UserError, match="pip install wandb"):
        publish(str(study), "wandb")


def test_a_logdir_is_for_tensorboard_alone(study, capsys):
    assert main(["track", str(study), "--to", "wandb", "--logdir", "x"]) == 2
    assert "--logdir is a folder for TensorBoard's files, and --to is wandb" in capsys.readouterr().err


def test_a_sweep_publishes_now_and_then_until_it_ends(study, tmp_path, monkeypatch):
    monkeypatch.setattr(meanwhile, "PAUSE", 0.1)
    monkeypatch.setattr(meanwhile, "SHARE", 0)
    closing, log = threading.Event(), tmp_path / "log"
    arguments = (str(study), ["tensorboard"], log, closing)
    publisher = threading.Thread(target=meanwhile.publish_meanwhile, args=arguments)
    publisher.start()
    while not list(study.glob("tensorboard/trial/t0000/*")):
        time.sleep(0.05)
    goes_on(study)
    while not list(study.glob("tensorboard/trial/t0009/*")):
        time.sleep(0.05)
    closing.set()
    publisher.join()


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    """Let a shell script publish in place of this package, with a child that outlives it, as a tracker's uploader may:
    (what writes the script with its last line, what waits until it has started, and until script and child have
    ended)."""
    held = tmp_path / "held"
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    program = tmp_path / "python"
    monkeypatch.setattr(meanwhile.sys, "executable", str(program))

    def script(last):
        program.write_text(f"#!/bin/sh\nexec 3>{held}\necho started\nsleep 600 &\n{last}\n")
        program.chmod(0o755)

    def ended():
        try:
            return os.read(reader, 1) == b""  # nobody can write any more
        except BlockingIOError:
            return False

    yield script, lambda: until(lambda: not ended()), lambda: until(ended)
    os.close(reader)


def test_publishing_that_hangs_is_stopped_and_told(tracker, tmp_path, monkeypatch):
    script, _, ends = tracker
    script("exec sleep 600")
    monkeypatch.setattr(meanwhile, "AT_END", 0.5)
    (told,) = meanwhile.publish_at_end("study", ["mlflow"], tmp_path / "log")
    assert told == (
        f"Publishing to mlflow took too long and was stopped; details in {tmp_path}/log; 'kdtvit-ray track' tries again"
    )
    ends()


@pytest.mark.parametrize(("code", "more"), [(0, ""), (2, "; details in {log}; 'kdtvit-ray track' tries again")])
def test_publishing_ends_when_its_process_does_and_leaves_no_child(tracker, tmp_path, code, more):
    script, _, ends = tracker
    script(f"echo 'How it went'; exit {code}")
    (told,) = meanwhile.publish_at_end("study", ["mlflow"], tmp_path / "log")
    assert told == "How it went" + more.format(log=tmp_path / "log")
    ends()


def test_an_interrupted_sweep_leaves_nothing_that_publishes(tracker, tmp_path, monkeypatch):
    script, starts, ends = tracker
    script("exec sleep 600")

    def interrupted(process, closing):
        starts()
        raise KeyboardInterrupt

    monkeypatch.setattr(meanwhile, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        meanwhile.publish_at_end("study", ["mlflow"], tmp_path / "log")
    ends()


def test_a_failing_tracker_is_one_line_after_the_report_and_changes_no_exit_code(study, capsys):
    settings = (study / "study.toml").read_text()
    (study / "study.toml").write_text(settings.replace("track = []", 'track = ["tensorboard"]'))
    (study / "tensorboard").write_text("a file where its folder would be")
    assert _report_unless_stopped(str(study), 0, Console(width=500)) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"Publishing '{study}' to tensorboard failed: ")
    assert last.endswith(f"; details in {study}/sweep.log; 'kdtvit-ray track' tries again")
    assert "Traceback" in (study / "sweep.log").read_text()


@pytest.mark.slow
@pytest.mark.ray
def test_a_failing_tracker_leaves_a_sweep_as_it_is(tmp_path, data, space):
    """Its exit code, its report and its trials; the failure is one line, and the log has the rest."""
    text = space.read_text().replace("trials = 5", "trials = 1")
    text = text.replace('baselines = ["joint", "sequential"]', "baselines = []")
    out, spaces = tmp_path / "study", {}
    for name, track in (("untracked", []), ("tracked", ["tensorboard"])):
        spaces[name] = tmp_path / f"{name}.toml"
        spaces[name].write_text(text.replace("trials = 1", f"trials = 1\ntrack = {json.dumps(track)}"))

    def sweep(name):
        command = ["sweep", str(spaces[name]), "--data", str(data), "--out", str(out)]
        command = [sys.executable, "-m", "kdtvit_ray", *command]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert sweep("untracked").returncode == 0
    (out / "tensorboard").write_text("a file where its folder would be")
    done = sweep("tracked")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "tensorboard" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"Publishing '{out}' to tensorboard failed: ")
    assert f"details in {out}/sweep.log" in lines[0]
    assert "Traceback" in (out / "sweep.log").read_text()
    assert (out / "report/index.html").is_file()
    assert len(read_rows(StudyFolder(str(out))))
    (out / "tensorboard").unlink()
    again = sweep("tracked")
    assert again.returncode == 0, again.stderr
    assert "Published to tensorboard: 6 of 6 runs were new or had changed" in again.stdout
