"""Whole searches under Ray: a sweep that must end well, the share of its time that it trains, and the documented
pattern beside it."""

import json
import subprocess
import sys
import time
import tomllib
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import tomli_w
import torch

from kdtvit_ray.cluster.environment import RAY_ENVIRONMENT
from kdtvit_ray.data.synthetic import synthesise
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.study import load
from kdtvit_ray.study.binding import dtype_of
from tests.benchmarks.documented_pattern import shared_settings
from tests.gpu.evidence import keep, ray_logs_of
from tests.gpu.outcomes import Measured, Skipped
from tests.gpu.setup import PATIENCE, ROOT, TOY, Setup, ended, environment, last_lines

PEER_STAGES = 2
"""The peer trains so many stages of its first trial. It shares nothing between trials, runs one at a time and is slow
(36 s a stage on an H100), so what it would take for the others is counted: its trials are alike but for numbers."""


def command(setup: Setup, *arguments: str, plain: bool = False, study: Path | None = None) -> float:
    """Seconds of a Python command that must end with exit code 0 in the time that is left. A `plain` one runs Ray as it
    comes. Where it does not end well, its log, that of its `study` with its status, and Ray's are kept."""
    variables = environment(setup.folder / "searches")
    if plain:
        variables = {name: value for name, value in variables.items() if name not in RAY_ENVIRONMENT}
    name = "the peer" if plain else arguments[2]
    started, log = time.perf_counter(), setup.folder / "command.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT, text=True
        )
        try:
            ended(process, setup, name, log, patience=setup.left)
            assert process.returncode == 0, f"'{name}' ended with exit code {process.returncode}: {last_lines(log)}"
        except (AssertionError, Skipped) as error:
            files = [log, *([study / "sweep.log", *study.glob("status*")] if study else [])]
            into = setup.evidence / name.replace(" ", "-")
            keep(into, files, ray_logs_of(process.pid))
            told = [last_lines(each) for each in files if each.name == "sweep.log" and each.exists()]
            raise type(error)("; ".join((str(error), *told, f"its logs are in {into}"))) from None
    return time.perf_counter() - started


def start_of(setup: Setup) -> dict[str, float]:
    """What the start of a search depends on, in a fresh process; nothing where that process fails, since the search is
    what counts."""
    call, patience = [sys.executable, "-m", "tests.gpu.starting"], max(min(setup.left, PATIENCE), 1.0)
    variables = environment(setup.folder / "searches")
    try:
        told = subprocess.run(
            call, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, timeout=patience, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return found


def space_of_sweep(setup: Setup) -> dict[str, Any]:
    """A study of as many images as BreakHis: ViT-S/16 at 224 px, one chain a trial."""
    plain: dict[str, Any] = {
        "study": {"sampler": "random", "trials": setup.sizes.sweep_trials, "objective_folds": 1, "baselines": []},
        "protocol": {"folds": 3, "validation": 0.3},
        "chain": {"teacher": "small", "student": "small", "image_size": setup.sizes.large_side},
        "training": {"epochs": setup.sizes.sweep_epochs, "batch": 64, "lr": 3e-4},
        "search": {"temperature": [1, 4], "order": ["40>100>200>400", "400>200>100>40"]},
    }
    if setup.rehearsal:
        plain["chain"] |= {"teacher": "toy", "student": "toy"}
        plain["models"] = {"toy": {"name": TOY.name, "args": dict(TOY.args)}}
    return plain


@cache
def _swept(setup: Setup) -> Path | AssertionError | Skipped:
    """The folder of the study, or why there is none."""
    folder = setup.folder / "sweep"
    folder.mkdir()
    (folder / "space.toml").write_text(tomli_w.dumps(space_of_sweep(setup)))
    data, study = str(setup.studied.prepared.path), folder / "study"
    call = ("-m", "kdtvit_ray", "sweep", f"{folder}/space.toml", "--data", data, "--out", f"{study}", "--groups", "1")
    try:
        command(setup, *call, study=study)
    except (AssertionError, Skipped) as error:
        return error
    return study


def swept(setup: Setup) -> Path:
    """The folder of a sweep with one worker group, on one GPU where there is one. One that fails is not tried again."""
    found = _swept(setup)
    if isinstance(found, Exception):
        raise type(found)(str(found))
    return found


def sweep(setup: Setup) -> str:
    """A small sweep under Ray with one group ends with exit code 0, and its report names the GPU. A stage that was
    trained on a GPU says that Ray has reserved it: else the CPU trains."""
    start = start_of(setup)
    told = ", ".join(
        f"{name} {value:g}" if "GPUs" in name else f"{name} {value:.1f} s" for name, value in start.items()
    )
    print(f"before the sweep: {told}", file=sys.stderr)
    try:
        assert setup.rehearsal or start.get("Ray's GPUs", 1), "Ray finds no GPU on this machine"
        study = swept(setup)
        name = "CPU" if setup.rehearsal else torch.cuda.get_device_name(setup.device)
        report = (study / "report" / "report.md").read_text()
        assert name in report, f"the report does not name {name}"
        trained = load(str(study)).stages
        kinds = {each.cost["device_type"] for each in trained.values()}
        assert kinds == {setup.device.type}, f"stages ran on {', '.join(kinds)}"
        dtype = dtype_of(StudyFolder(str(study)))
        assert dtype == setup.numeric.dtype, f"the study computes in {dtype}, and not in {setup.numeric.dtype}"
    except (AssertionError, Skipped) as error:
        raise type(error)(f"{error}; before it: {told}") from None
    seen = f"{setup.sizes.sweep_trials} trials, {len(trained)} stages in {dtype}; exit code 0; the report names {name}"
    return f"{seen}; before it: {told}"


def training_share(setup: Setup) -> Measured:
    """Seconds that stages trained over the group's time, from its first stage's start to its last one's end."""
    stages = load(str(swept(setup))).stages.values()
    wall = max(each.finished for each in stages) - min(each.started for each in stages)
    training = sum(each.train_seconds for each in stages)
    teachers = sum(each.cost["teacher_seconds"] for each in stages)
    parts = {
        "stages": len(stages),
        "group s": wall,
        "training s": training,
        "of them teachers' outputs s": teachers,
        "evaluation s": sum(each.evaluate_seconds for each in stages),
    }
    note = "training: the epochs' own clocks, which include compiling, teachers' outputs and waits for the host"
    return Measured(training / wall, parts, note)


def pattern(setup: Setup) -> Measured:
    """Seconds of the documented pattern over ours, for the same search from PNG files to AUC."""
    folder, rehearsal = setup.folder / "pattern", setup.rehearsal
    folder.mkdir()
    plain = tomllib.loads((ROOT / "tests" / "benchmarks" / "micro.toml").read_text())
    plain["study"] |= {"trials": setup.sizes.pattern_trials}
    if rehearsal:
        plain["training"] |= {"epochs": 2}
    space, images, prepared = folder / "space.toml", folder / "images", folder / "prepared"
    space.write_text(tomli_w.dumps(plain))
    size = (96, 64) if rehearsal else (700, 460)
    synthesise(images, patients=24 if rehearsal else 48, per_magnification=2 if rehearsal else 6, size=size)

    call = ("-m", "kdtvit_ray", "prepare", f"{images}", f"{prepared}", "--size", "64", "--aspect", "squash")
    preparing = command(setup, *call)
    study = folder / "study"
    call = ("-m", "kdtvit_ray", "sweep", f"{space}", "--data", f"{prepared}", "--out", f"{study}")
    ours = preparing + command(setup, *call, "--groups", "1", study=study)
    stages = len(StudyFolder(str(study)).names("stages"))

    shared = shared_settings(space, prepared, images, study, gpus=0 if rehearsal else 1)
    trials = len(shared["trials"])
    dtypes = {stage["numeric"]["dtype"] for trial in shared["trials"] for stage in trial}
    assert dtypes == {setup.numeric.dtype}, f"the peer would compute in {', '.join(dtypes)}"
    stages_each = len(shared["trials"][0])
    shared["trials"] = [shared["trials"][0][:PEER_STAGES]]
    (folder / "shared.json").write_text(json.dumps(shared))
    (folder / "peer").mkdir()
    code = "from tests.benchmarks.documented_pattern import peer; import sys; peer(*sys.argv[1:])"
    command(setup, "-c", code, f"{folder}/shared.json", f"{folder}/peer", plain=True)
    first, *later = json.loads((folder / "peer" / "seconds.json").read_text())[0]
    theirs = trials * (first + (stages_each - 1) * mean(later))
    parts = {
        "trials": trials,
        "ours s": ours,
        "our stages": stages,
        "peer's first stage s": first,
        "peer's next s": mean(later),
        "peer s": theirs,
    }
    note = (
        f"the peer ran {PEER_STAGES} stages of a trial, from which its {trials} trials are counted, without its own "
        "start; it decodes PNG files in the process that trains, as the guide does"
    )
    return Measured(theirs / ours, parts, note)
