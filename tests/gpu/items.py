"""All checks and figures in their order, and how they are run: one that fails does not keep the others from running."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kdtvit_ray.errors import first_line
from kdtvit_ray.learning.numeric import empty_caches
from tests.gpu import checks, figures, searches, students
from tests.gpu.machine import describe
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
from tests.gpu.setup import Setup


@dataclass(frozen=True)
class Check:
    run: Callable[[Setup], str]


@dataclass(frozen=True)
class Figure:
    """A ratio in `unit` (`times`, or `share` of a whole) over its `peer`; `aim` is the least that is wanted."""

    run: Callable[[Setup], Measured]
    unit: str
    peer: str
    aim: float | None = None


ITEMS: dict[str, Check | Figure] = {
    **{name: Check(run) for name, run in checks.CHECKS.items()},
    "recorded-step": Figure(
        figures.recorded, "times", "a small student's step launched kernel by kernel over recorded"
    ),
    "compiled-step": Figure(figures.compiled, "times", "a recorded step over the same compiled, ViT-S/16 at 224"),
    "throughput": Figure(
        figures.throughput, "share", "stage's training loop over the bare compiled step, data on the device", 0.9
    ),
    "roofline": Figure(
        figures.roofline, "share", "model FLOPs of the bare step over the GPU's dense bf16 peak, ViT-S/16 at 224", 0.4
    ),
    "sweep": Check(searches.sweep),
    "training-share": Figure(searches.training_share, "share", "seconds in training over a group's, in a sweep", 0.8),
    "teacher": Figure(figures.teacher, "times", "step with a live teacher over one with stored outputs"),
    "set-up": Figure(figures.set_up, "times", "a cold stage's set-up (model, compiling) over a warm one's"),
    "students-fused": Figure(students.fused, "times", "4 fused small students over one after another"),
    "students-fractional": Figure(students.fractional, "times", "4 processes of 0.25 GPU over one after another"),
    "pattern": Figure(
        searches.pattern, "times", "one TorchTrainer a trial, live teacher, PNG DataLoader, over ours", 10
    ),
}
"""By name, in the order in which they run: what matters less, or takes long, comes last."""


def run_all(names: list[str], folder: Path, out: Path, *, rehearsal: bool, seconds: float) -> int:
    """Run the items, print the tables, write `out`, and beside it, in a folder, what tells of searches that failed.
    Returns the exit code."""
    told, failed = Console(stderr=True, highlight=False), out.with_suffix(".failed")
    setup = Setup(folder, rehearsal=rehearsal, seconds=seconds, evidence=failed)
    machine, started, outcomes = describe(setup.device), time.monotonic(), []
    for name in names:
        with told.status(name):
            outcomes.append(run_one(name, ITEMS[name], setup))
        told.print(f"{time.monotonic() - started:4.0f} s  {name}: {outcomes[-1].outcome}")
        plain = to_plain(machine, outcomes, rehearsal=rehearsal, seconds=time.monotonic() - started)
        out.write_text(json.dumps(plain, indent=1))  # after each, so that a crash leaves what was found
    show(plain, Console(highlight=False))
    return exit_code(outcomes)


def run_one(name: str, item: Check | Figure, setup: Setup) -> Outcome:
    """Run one item, whatever it raises."""
    started = time.monotonic()
    value: float | None = None
    parts: dict[str, float] = {}
    try:
        setup.check_time()
        found = item.run(setup)
        outcome, reason = DONE, found if isinstance(found, str) else found.note
        if isinstance(found, Measured):
            value, parts = found.value, found.parts
    except NeedsGpu as error:
        outcome, reason = NEEDS_GPU, str(error)
    except Skipped as error:
        outcome, reason = SKIPPED, str(error)
    except AssertionError as error:
        outcome, reason = FAILED, str(error)
    except Exception as error:
        outcome, reason = FAILED, f"{type(error).__name__}: {first_line(error)}"
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()  # compiled code holds memory of the GPU, which the next one may need
    empty_caches(after_error=True)
    seconds = round(time.monotonic() - started, 2)
    if isinstance(item, Check):
        return Outcome(name, outcome, reason, seconds)
    met = None if setup.rehearsal else verdict(value, item.aim)  # figures of a rehearsal say nothing
    return FigureOutcome(name, outcome, reason, seconds, item.unit, item.peer, item.aim, value, parts, met)
