"""What a check or a figure came to, the tables of them, and the content of `gpu.json`. Knows no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

FORMAT = 1
EXIT_FAILED = 1
EXIT_NO_GPU = 3

DONE, FAILED, SKIPPED, NEEDS_GPU = "done", "failed", "skipped", "needs a GPU"


class Skipped(Exception):
    """This machine cannot run a check or a figure; the message says why."""


class NeedsGpu(Skipped):
    """A rehearsal on the CPU cannot run it."""


@dataclass(frozen=True)
class Measured:
    """A figure's `value`, what it is made of (`parts`, by name with their units), and what must be known beside it."""

    value: float
    parts: dict[str, float]
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a check or a figure ended: `outcome` is one of the four words above, `reason` why, or what was seen."""

    name: str
    outcome: str
    reason: str
    seconds: float


@dataclass(frozen=True)
class FigureOutcome(Outcome):
    """A figure: `value` in `unit` over its `peer`, None where it was not measured; `aim` is the least that is wanted,
    None where nothing is; `met` is the verdict."""

    unit: str = ""
    peer: str = ""
    aim: float | None = None
    value: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    met: bool | None = None


def verdict(value: float | None, aim: float | None) -> bool | None:
    """Whether the aim was met; None where there is none, or no value."""
    return None if value is None or aim is None else value >= aim


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0, also where an aim was missed, or 1 where something failed."""
    return EXIT_FAILED if any(each.outcome == FAILED for each in outcomes) else 0


def to_plain(
    machine: dict[str, Any], outcomes: Sequence[Outcome], *, rehearsal: bool, seconds: float
) -> dict[str, Any]:
    """The content of `gpu.json`."""
    figures = [each for each in outcomes if isinstance(each, FigureOutcome)]
    return {
        "format": FORMAT,
        "rehearsal": rehearsal,
        "seconds": seconds,
        "exit_code": exit_code(outcomes),
        "machine": machine,
        "checks": [asdict(each) for each in outcomes if not isinstance(each, FigureOutcome)],
        "figures": [asdict(each) for each in figures],
    }


def show(plain: dict[str, Any], console: Console) -> None:
    """Print the content of `gpu.json` as tables."""
    machine = plain["machine"]
    about = f"torch {machine['torch']}, CUDA {machine['cuda']}, driver {machine['driver']}"
    told = "Rehearsal on the CPU: its figures say nothing." if plain["rehearsal"] else ""
    console.print(f"{machine['device']}, {machine['date']}, {about}; {plain['seconds']:.0f} s. {told}")
    if plain["checks"]:
        table = Table("check", "outcome", "what was seen", expand=False)
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        for each in plain["checks"]:
            table.add_row(each["name"], _coloured(each["outcome"]), each["reason"])
        console.print(table)
    if plain["figures"]:
        table = Table("figure", "value", "aim", "against, and what is in it", expand=False)
        for column in table.columns[:3]:
            column.no_wrap = True
        for each in plain["figures"]:
            value = each["outcome"] if each["value"] is None else _number(each["value"], each["unit"])
            aim = "" if each["aim"] is None else _number(each["aim"], each["unit"])
            aim += {True: " met", False: " missed", None: ""}[each["met"]]
            parts = ", ".join(f"{name} {value:.4g}" for name, value in each["parts"].items())
            told = "; ".join(filter(None, (each["peer"], parts, each["reason"])))
            table.add_row(each["name"], value, aim, told)
        console.print(table)


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}x" if unit == "times" else f"{value:.2f}"


def _coloured(outcome: str) -> str:
    colour = {DONE: "green", FAILED: "red"}.get(outcome, "yellow")
    return f"[{colour}]{outcome}[/{colour}]"
