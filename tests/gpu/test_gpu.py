"""The script for GPU machines, on a machine without one: a rehearsal, verdicts, the JSON, the tables."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from rich.console import Console
from torch import nn

from kdtvit_ray.learning.models import build
from kdtvit_ray.recipe import ModelSpec
from tests.gpu import checks, evidence, figures, machine, searches, starting, students
from tests.gpu.__main__ import main
from tests.gpu.items import ITEMS, Check, Figure, run_one
from tests.gpu.outcomes import (
    DONE,
    FAILED,
    NEEDS_GPU,
    SKIPPED,
    FigureOutcome,
    Measured,
    NeedsGpu,
    Outcome,
    Skipped,
    exit_code,
    show,
    to_plain,
    verdict,
)
from tests.gpu.setup import PATIENCE, ROOT, Setup, ended
from tests.learning.test_recorded import Imitated, recording

QUICK = [
    "cuda",
    "bf16",
    "determinism",
    "pixels",
    "out-of-memory",
    "recorded",
    "recorded-step",
    "throughput",
    "roofline",
    "teacher",
]
COMMAND = searches.command
COLUMNS = {"name", "outcome", "reason", "seconds"}


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return Setup(tmp_path_factory.mktemp("gpu"), rehearsal=True)


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command in this process: its exit code, stdout, stderr."""
    for name in (
        "CUBLAS_WORKSPACE_CONFIG",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "KDTVIT_CACHE",
    ):  # put back afterwards
        monkeypatch.setenv(name, os.environ.get(name, ":4096:8"))
    monkeypatch.setenv("COLUMNS", "80")

    def called(*arguments):
        return main(arguments), *capsys.readouterr()

    return called


def test_without_a_gpu_it_says_so_before_it_imports_more_than_torch(tmp_path):
    script = (
        "import sys\nfrom tests.gpu.__main__ import main\ncode = main([])\n"
        "print(*{'ray', 'timm', 'optuna', 'pandas', 'rich'} & set(sys.modules))\nsys.exit(code)"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "\n"), done.stderr
    assert done.stderr.startswith("There is no NVIDIA GPU that torch ")
    assert not list(tmp_path.iterdir())


def rehearsed(call, names, out):
    """gpu.json of a rehearsal, after what every one of them must hold."""
    code, printed, told = call("--rehearse", "--out", str(out), *(word for name in names for word in ("--only", name)))
    assert code == 0, printed + told
    assert max(map(len, printed.splitlines())) <= 80
    plain = json.loads(out.read_text())
    found = [*plain["checks"], *plain["figures"]]
    assert [each["name"] for each in found] == sorted(
        names, key=lambda name: (isinstance(ITEMS[name], Figure), list(ITEMS).index(name))
    )
    assert all(each["outcome"] in (DONE, NEEDS_GPU) for each in found), plain
    assert all(name in printed for name in names)
    return plain


def test_the_quick_part_works_on_a_cpu(call, tmp_path):
    plain = rehearsed(call, QUICK, tmp_path / "gpu.json")
    assert (plain["format"], plain["rehearsal"], plain["exit_code"]) == (1, True, 0)
    wanted = {"date", "device", "gpus", "driver", "cuda", "torch", "versions", "peak_bf16_tflops"}
    assert wanted <= set(plain["machine"])
    assert all(set(each) == COLUMNS for each in plain["checks"])
    more = {"unit", "peer", "aim", "value", "parts", "met"}
    assert all(set(each) == COLUMNS | more and each["met"] is None for each in plain["figures"])
    of = {each["name"]: each for each in (*plain["checks"], *plain["figures"])}
    assert {name for name in QUICK if of[name]["outcome"] == NEEDS_GPU} - {"bf16"} == {
        "out-of-memory",
        "recorded",
        "roofline",
    }
    assert of["throughput"]["aim"] == 0.9
    assert of["throughput"]["value"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_works_on_a_cpu(call, tmp_path):
    rehearsed(call, [name for name in ITEMS if name not in QUICK], tmp_path / "gpu.json")


def test_an_unknown_name_is_refused_with_the_names_that_there_are(call):
    code, _, told = call("--rehearse", "--only", "warp")
    assert code == 2
    assert "Unknown check or figure 'warp'; allowed: cuda, " in told


@pytest.mark.parametrize(
    ("value", "aim", "met"),
    [(0.9, 0.9, True), (0.95, 0.9, True), (0.899, 0.9, False), (12.0, 10, True), (0.5, None, None), (None, 0.4, None)],
)
def test_an_aim_is_the_least_that_is_wanted(value, aim, met):
    assert verdict(value, aim) is met


def raising(error):
    def run(_):
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "outcome", "reason"),
    [
        (lambda _: "seen", DONE, "seen"),
        (raising(AssertionError("other bits")), FAILED, "other bits"),
        (raising(ValueError("no\nidea")), FAILED, "ValueError: no"),
        (raising(Skipped("one GPU")), SKIPPED, "one GPU"),
        (raising(NeedsGpu("no such thing")), NEEDS_GPU, "no such thing"),
    ],
)
def test_whatever_a_check_raises_is_an_outcome(setup, run, outcome, reason):
    found = run_one("one", Check(run), setup)
    assert (found.name, found.outcome, found.reason) == ("one", outcome, reason)
    assert exit_code([Outcome("other", DONE, "", 0.0), found]) == (1 if outcome == FAILED else 0)


def test_nothing_begins_when_the_time_is_over(tmp_path):
    found = run_one("one", Check(raising(AssertionError())), Setup(tmp_path, rehearsal=True, seconds=0))
    assert (found.outcome, found.reason) == (SKIPPED, "no time was left")


def test_a_figure_carries_its_peer_its_parts_and_its_verdict(setup, monkeypatch):
    figure = Figure(lambda _: Measured(0.7, {"ours s": 2.0}, "a note"), "share", "the peer", 0.8)
    assert run_one("one", figure, setup).met is None, "a rehearsal has no verdict"
    monkeypatch.setattr(setup, "rehearsal", False)
    found = run_one("one", figure, setup)
    assert (found.value, found.met, found.peer, found.parts) == (0.7, False, "the peer", {"ours s": 2.0})
    assert exit_code([found]) == 0, "an aim that is missed is no failure"
    broken = run_one("one", Figure(raising(AssertionError("it hangs")), "share", "the peer", 0.8), setup)
    assert (broken.value, broken.met, exit_code([broken])) == (None, None, 1)


@pytest.fixture
def as_a_gpu(setup, monkeypatch):
    monkeypatch.setattr(setup, "needs_gpu", lambda: None)
    monkeypatch.setattr(checks, "RecordedSteps", Imitated)
    with recording():
        yield


def test_the_check_of_recordings_passes_where_they_are_right(setup, as_a_gpu):
    """With recordings that are imitated on the CPU."""
    assert checks.recorded(setup).endswith("10 stages, float32: the same bits, also after a recording that failed")


def test_the_check_of_recordings_fails_where_they_are_wrong(setup, as_a_gpu, monkeypatch):
    right = Imitated._record

    def wrong(self, given, batch):
        found = right(self, given, batch)
        found.given.pop("labels", None)  # of the step that was recorded, for ever
        return found

    monkeypatch.setattr(Imitated, "_record", wrong)
    with pytest.raises(AssertionError, match=r"launched in float32 with \{\}, it has other bits"):
        checks.recorded(setup)


def test_of_a_search_that_fails_the_logs_are_kept_and_it_is_not_tried_again(tmp_path, monkeypatch):
    setup = Setup(tmp_path, rehearsal=True, evidence=tmp_path / "gpu.failed")
    ray, tried = tmp_path / "ray" / "logs", []
    (ray / "old").mkdir(parents=True)
    for number, (name, text) in enumerate(
        [("old/worker-1.err", "no GPU\n"), ("raylet.out", "x" * 100 + "end"), ("empty.log", ""), ("core.bin", "no")]
    ):
        (ray / name).write_text(text)
        os.utime(ray / name, (number, number))
    monkeypatch.setattr(searches, "ray_logs_of", lambda pid: ray)
    monkeypatch.setattr(evidence, "FILE_BYTES", 50)
    monkeypatch.setattr(Setup, "large", property(lambda _: SimpleNamespace(prepared=SimpleNamespace(path="set"))))
    script = "import sys; print('word ' * 50); print('the last word'); sys.exit(3)"

    def failing(setup, *arguments, study):
        tried.append(arguments)
        study.mkdir()
        (study / "sweep.log").write_text("started\nthe group keeps dying\n")
        (study / "status.json").write_text("{}")
        return COMMAND(setup, "-c", script, "sweep", study=study)

    monkeypatch.setattr(searches, "command", failing)
    monkeypatch.setattr(searches, "start_of", lambda _: {"name of its address": 20.0, "Ray's GPUs": 0})
    for run in (searches.sweep, searches.training_share):
        found = run_one("one", Check(run), setup)
        assert found.outcome == FAILED
        assert "'sweep' ended with exit code 3: " in found.reason
        assert "the group keeps dying; its logs are in " in found.reason
    assert "before it: name of its address 20.0 s, Ray's GPUs 0" in run_one("one", Check(searches.sweep), setup).reason
    assert len(tried) == 1
    kept = {str(each.relative_to(setup.evidence)): each for each in setup.evidence.rglob("*.*")}
    names = {"command.log", "sweep.log", "status.json", "ray/worker-1.err", "ray/raylet.out"}
    assert set(kept) == {f"sweep/{name}" for name in names}
    assert kept["sweep/command.log"].read_text().endswith("the last word\n")
    assert kept["sweep/ray/raylet.out"].read_text() == "x" * 47 + "end", "the end of a long file"
    monkeypatch.setattr(evidence, "ALL_BYTES", 60)
    evidence.keep(tmp_path / "few", [], ray)
    assert {each.name for each in (tmp_path / "few").rglob("*.*")} == {"raylet.out", "worker-1.err"}
    monkeypatch.setattr(evidence, "ALL_BYTES", 50)
    evidence.keep(tmp_path / "few", [], ray)
    assert {each.name for each in (tmp_path / "few").rglob("*.*")} == {"raylet.out"}, "the last written first"


def test_a_search_may_take_all_the_time_that_is_left(tmp_path):
    """And is then a failure, unless it had less than any process of its own may take."""

    class Hanging:
        def __init__(self):
            self.waited = []

        def communicate(self, timeout=None):
            self.waited.append(timeout)
            if len(self.waited) == 1:
                raise subprocess.TimeoutExpired("it", timeout)

        def terminate(self):
            pass

    log = tmp_path / "log"
    log.write_text("its last words\n")
    for seconds, patience, waited, error in (
        (500, 500, 500, AssertionError),
        (500, PATIENCE, PATIENCE, AssertionError),
        (100, 100, 100, Skipped),
        (100, PATIENCE, 100, Skipped),
    ):
        setup, process = Setup(tmp_path, rehearsal=True, seconds=seconds), Hanging()
        setup.rehearsal = False
        with pytest.raises(error):
            ended(process, setup, "it", log, patience=patience)
        assert waited - 60 < process.waited[0] <= waited


def test_what_a_start_depends_on_is_seen(setup, monkeypatch):
    monkeypatch.setattr(searches.sys, "executable", "/not/here")
    assert searches.start_of(setup) == {}, "nothing is known, and the search goes on"
    found = starting.seen()
    assert found["torch's GPUs"] == torch.cuda.device_count()
    assert {"host's name", "name of its address", "import ray", "import torch", "import timm", "Ray's GPUs"} < set(
        found
    )

    def unknown():
        raise OSError

    assert starting.seconds_of(unknown) >= 0


def test_the_tables_fit_into_80_columns_and_tell_verdicts():
    about = {"device": "NVIDIA H100 80GB HBM3", "date": "2030-01-01", "torch": "2.6.0", "cuda": "12.4", "driver": "550"}
    long = "word " * 60
    outcomes = [
        Outcome("out-of-memory", FAILED, long, 1.0),
        Outcome("all-reduce", SKIPPED, "one GPU", 1.0),
        FigureOutcome("throughput", DONE, "", 1.0, "share", long, 0.9, 0.912, {"stage images/s": 3000.0}, True),
        FigureOutcome("training-share", DONE, "", 1.0, "share", "peer", 0.8, 0.7, {}, False),
        FigureOutcome("students-fractional", DONE, "", 1.0, "times", "peer", None, 2.5, {}, None),
        FigureOutcome("pattern", SKIPPED, "no time was left", 1.0, "times", "peer", 10, None, {}, None),
    ]
    file = io.StringIO()
    show(to_plain(about, outcomes, rehearsal=False, seconds=300.0), Console(file=file, width=80))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("H100", "550", "one GPU", "0.90 met", "0.80 missed", "2.50x", "10.00x", "skipped", "failed"):
        assert words in text


def test_the_peak_of_a_gpu_is_its_sheets_without_sparsity_and_a_part_of_one_is_unknown():
    assert machine.peak_tflops("NVIDIA H100 80GB HBM3") == 1979 / 2
    assert machine.peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    assert machine.peak_tflops("NVIDIA A100-SXM4-40GB MIG 1g.5gb") is None
    assert machine.peak_tflops("Tesla T4") is None


def test_flops_are_those_of_the_architecture():
    """Forward, twice that backward, save for the gradient of the image, which nobody needs."""
    width, depth, tokens, patches = 384, 12, 197, 196
    embedding = patches * 16 * 16 * 3 * width
    block = tokens * width * width * 12 + 2 * tokens * tokens * width  # qkv, projection, MLP; attention
    forward = embedding + depth * block + 8 * width
    expected = 2 * (3 * forward - embedding)
    assert figures.training_flops(ModelSpec("small", image_size=224)) == pytest.approx(expected, rel=1e-3)


def test_fused_students_run_torch_s_own_products_for_attention(setup):
    """The other ways failed on a GPU, where alone that can be seen."""
    step = figures.Step(students.spec_of(setup), setup.small, setup.device)
    with patch("torch.nn.functional.scaled_dot_product_attention", side_effect=AssertionError):
        assert students.Fused(step, 2)().isfinite().all()
        with pytest.raises(AssertionError):
            step()  # as a student alone does not


def test_fused_students_learn_what_each_learns_alone(setup):
    spec = students.spec_of(setup)
    step = figures.Step(spec, setup.small, setup.device)
    step.objective.smoothing, step.given["rates"] = 0.0, torch.tensor([0.5])
    fused = students.Fused(step, 3)
    # plain descent, in which a wrong gradient or norm shows, as it does not in AdamW's first steps
    fused.optimizer = torch.optim.SGD(fused.parameters.values(), lr=0.5)
    found = torch.stack([fused() for _ in range(4)])
    for seed in range(3):
        model = build(spec.model, seed)
        step.model, step.optimizer = model, torch.optim.SGD(model.parameters(), lr=0.5)
        for expected in found[:, seed]:
            with torch.no_grad():
                loss = nn.functional.cross_entropy(model(step.inputs), step.labels)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
            step()
    assert (found[-1] < found[0]).all()
