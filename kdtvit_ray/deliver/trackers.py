"""How runs get to MLflow, Weights & Biases and TensorBoard. Each function publishes what its tracker lacks and returns
how many runs were new or changed; publishing again, or after a kill in the middle, doubles nothing.

What is there already is known from
    MLflow          the tracker itself, asked by tags: a run that somebody deletes there comes again
    TensorBoard     the files' names, which hold a digest of what is in them
    W&B             `tracking.json` in the study's folder, since in offline mode there is nobody to ask
"""

import hashlib
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdtvit_ray.deliver.published import STUDY, Publication, Run
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import Folder, StudyFolder

PROJECT = "kdtvit-ray"
"""MLflow's experiment and W&B's project unless their environment variables name another."""
MLFLOW_ENVIRONMENT = {
    # MLflow's own default, 7, waits for minutes where there is no server
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # two lines a run, and the address may hold a password
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What is not set is set so."""
BATCH = {"metrics": 800, "params": 100, "tags": 100}
"""MLflow's limits of a request, which may hold 1,000 of all three together."""
SAVE_EVERY = 25
"""runs, between writes of `tracking.json`."""
OURS = re.compile(r"events\.out\.tfevents\.\d+\.[0-9a-f]{32}")
"""Files of `to_tensorboard`: when the run ended, in unix seconds, and the digest of what is in it."""


# -- MLflow ------------------------------------------------------------------------------------------------------------


def to_mlflow(found: Publication, logdir: str = "") -> int:
    """Runs of one experiment; trials and stages are nested in the study's run, which has the report as artifact."""
    os.environ.update({name: os.environ.get(name, value) for name, value in MLFLOW_ENVIRONMENT.items()})
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = _experiment(client)
    there = {run.data.tags["kdtvit.run"]: run for run in _runs_there(client, experiment, found.study_id)}
    parent, changed = "", 0
    for each in found.runs:
        run, new = there.get(each.name), each.name not in there
        if run is None:
            tags = {"kdtvit.study": found.study_id, "kdtvit.run": each.name}
            if parent:
                tags["mlflow.parentRunId"] = parent
            start = int(1000 * each.started) or None
            run = client.create_run(experiment, start_time=start, tags=tags, run_name=each.label)
        added = _add(client, run, each)
        if each.name == STUDY:
            parent = run.info.run_id
            added = _add_report(client, run, found) or added
        changed += added or new
    return changed


def _experiment(client: Any) -> str:
    if os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    there = client.get_experiment_by_name(name)
    return there.experiment_id if there else client.create_experiment(name)


def _runs_there(client: Any, experiment: str, study_id: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs(
            [experiment], f"tags.`kdtvit.study` = '{study_id}'", max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _add(client: Any, run: Any, each: Run) -> bool:
    """Add to a run of MLflow what it lacks. A value that is there at the same time and step is not added twice, so a
    curve that was cut off is sent again as a whole."""
    from mlflow.entities import Metric, Param, RunTag

    data, when = run.data, int(1000 * each.finished)
    metrics = [
        Metric(name, value, when, each.progress)
        for name, value in each.metrics.items()
        if not _same(data.metrics.get(name), value)
    ]
    for name, curve in each.curves.items():
        if not _same(data.metrics.get(name), curve[-1][1]):
            metrics += [Metric(name, value, when, epoch) for epoch, value in curve]
    # a parameter of MLflow cannot be changed: a later value, as of a study that was extended, is left out
    params = [Param(name, str(value)) for name, value in each.params.items() if name not in data.params]
    tags = [
        RunTag(f"kdtvit.{name}", text) for name, text in each.tags.items() if data.tags.get(f"kdtvit.{name}") != text
    ]
    left = {"metrics": metrics, "params": params, "tags": tags}
    while any(left.values()):
        client.log_batch(run.info.run_id, **{what: values[: BATCH[what]] for what, values in left.items()})
        left = {what: values[BATCH[what] :] for what, values in left.items()}
    status = {"failed": "FAILED", "running": "RUNNING"}.get(each.tags.get("state", ""), "FINISHED")
    if run.info.status != status and status == "RUNNING":  # the study goes on
        client.update_run(run.info.run_id, status)
    elif run.info.status != status:
        client.set_terminated(run.info.run_id, status, when or None)
    return bool(metrics or params or tags)


def _same(there: float | None, value: float) -> bool:
    return there is not None and math.isclose(there, value, rel_tol=1e-9)


def _add_report(client: Any, run: Any, found: Publication) -> bool:
    if not found.report or run.data.tags.get("kdtvit.report") == found.report_digest:
        return False
    with _local_report(found) as folder:
        client.log_artifacts(run.info.run_id, str(folder), "report")
    client.set_tag(run.info.run_id, "kdtvit.report", found.report_digest)
    return True


@contextmanager
def _local_report(found: Publication) -> Iterator[Path]:
    """A copy of the report on this machine: the study's folder may be an object store."""
    with tempfile.TemporaryDirectory() as made:
        for name in found.report:
            target = Path(made, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(found.folder.read(name))
        yield Path(made, found.folder.report)


# -- Weights & Biases --------------------------------------------------------------------------------------------------


def to_wandb(found: Publication, logdir: str = "") -> int:
    """Runs of one project in a group with the study's name. The study's own run comes with its report."""
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    target = "/".join(os.environ.get(f"WANDB_{name}", "") for name in ("MODE", "BASE_URL", "ENTITY")) + f"/{project}"
    record = _read_record(found.folder)
    done: dict[str, str] = record.setdefault("wandb", {}).setdefault(target, {})
    changed = 0
    try:
        for each in found.runs:
            # offline every change is one more folder: the study's own run is written when its report is, not meanwhile
            digest = found.report_digest if each.name == STUDY else each.digest
            if not digest or digest == done.get(each.name):
                continue
            with _wandb_run(wandb, found, each, project) as run:
                if each.name not in done:
                    for epoch, values in _by_epoch(each):
                        run.log(values, step=epoch)
                run.summary.update(dict(each.metrics))
                if each.name == STUDY:
                    artifact = wandb.Artifact(f"report-{found.study_id[:12]}", type="report")
                    with _local_report(found) as folder:
                        for name in found.report:
                            artifact.add_file(str(folder.parent / name), name)
                    run.log_artifact(artifact)
            done[each.name] = digest
            changed += 1
            if changed % SAVE_EVERY == 0:
                found.folder.write_json(found.folder.tracking, record)
    finally:
        if changed:
            found.folder.write_json(found.folder.tracking, record)
    return changed


def _read_record(folder: StudyFolder) -> dict[str, Any]:
    try:
        return folder.read_json(folder.tracking)
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(
            f"'{folder.path(folder.tracking)}' is damaged; delete it, and everything is published again"
        ) from None


@contextmanager
def _wandb_run(wandb: Any, found: Publication, each: Run, project: str) -> Iterator[Any]:
    """A run of W&B without what it collects by itself: this process's arguments, packages, console and machine say
    nothing of the run, and the arguments may hold the credentials of a storage."""
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=project,
        id=hashlib.blake2b(f"{found.study_id} {each.name}".encode(), digest_size=8).hexdigest(),
        resume="allow",
        name=each.label,
        group=found.name,
        job_type=each.kind,
        tags=[each.tags["state"]] if each.tags.get("state") else [],
        settings=settings,
        reinit="finish_previous",
    )
    try:
        run.config.update({**each.params, **each.tags}, allow_val_change=True)
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish(exit_code=int(each.failed))


def _by_epoch(each: Run) -> list[tuple[int, dict[str, float]]]:
    found: dict[int, dict[str, float]] = {}
    for name, curve in each.curves.items():
        for epoch, value in curve:
            found.setdefault(epoch, {})[name] = value
    return sorted(found.items())


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def to_tensorboard(found: Publication, logdir: str = "") -> int:
    """One event file for each run, in `STUDY/tensorboard/` or in a folder of the study's own in `logdir`, which others
    may share. A run that has changed gets a new file in place of the old one; other files are left alone."""
    if logdir:
        own = re.sub(r"[^\w.]+", "-", f"{found.name}-{found.study_id[:8]}")  # studies may have one name
        folder = Folder(Folder(logdir).inside(own))
    else:
        folder = Folder(found.folder.inside(found.folder.tensorboard))
    there: dict[str, list[str]] = {}
    for name in folder.files():
        run, _, file = name.rpartition("/")
        if OURS.fullmatch(file):
            there.setdefault(run, []).append(name)
    changed = 0
    for each in found.runs:
        # TensorBoard takes files of a folder in the order of their names
        name = f"{each.name}/events.out.tfevents.{int(each.finished)}.{each.digest}"
        if name in there.get(each.name, ()):
            continue
        folder.write(name, _events(each))
        for older in there.get(each.name, ()):
            folder.delete(older)
        changed += 1
    return changed


def _events(each: Run) -> bytes:
    """An event file: trials as sessions of the HPARAMS page, with their metrics as scalars; curves as scalars."""
    from tensorboardX import summary
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter

    events = [Event(wall_time=each.finished, file_version="brain.Event:2")]
    if each.name.startswith("trial/"):
        # without the summary of an experiment, TensorBoard has a column for whatever some trial has
        _, *session = summary.hparams({**each.params, "kind": each.kind, "state": each.tags["state"]}, {})
        events += [Event(wall_time=each.finished, summary=part) for part in session]
    points = [(name, each.progress, value) for name, value in each.metrics.items()]
    points += [(name, epoch, value) for name, curve in each.curves.items() for epoch, value in curve]
    for name, step, value in points:
        events.append(Event(wall_time=each.finished, step=step, summary=summary.scalar(name, value)))
    with tempfile.TemporaryDirectory() as made:
        path = Path(made, "events")
        writer = RecordWriter(str(path))
        for event in events:
            writer.write(event.SerializeToString())
        writer.close()
        return path.read_bytes()


TRACKERS: Mapping[str, Callable[[Publication, str], int]] = {
    "mlflow": to_mlflow,
    "wandb": to_wandb,
    "tensorboard": to_tensorboard,
}
PACKAGES = {"mlflow": ("mlflow", "mlflow-skinny"), "wandb": ("wandb", "wandb"), "tensorboard": ("tensorboardX",) * 2}
"""What each tracker's module is called, and what brings it."""
