"""What a user sees: our own lines on the terminal; what Ray and the workers print goes to a named log file."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kdtvit_ray.results.study_status import Status, TrialCounts
from kdtvit_ray.results.words import counted, duration

MOST_GROUPS = 10
"""Of the live view, which has to fit into a terminal."""


class Terminal(Console):
    """A console that prints every text as it is: names of files, labels and columns may have brackets or colons, which
    are no markup of rich. It falls silent when nobody reads it any more, so that the command still reaches its exit
    code."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        if self.file is sys.stdout:  # Python flushes it at its end, which must not fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def quiet(log: Path) -> Iterator[Console]:
    """Send this process's and its children's stdout and stderr to `log`; yields a console on the real terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    terminal = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield Terminal(file=terminal, force_terminal=terminal.isatty())
    finally:
        for stream in (sys.stdout, sys.stderr, terminal):
            with suppress(OSError):  # nobody may be reading any more
                stream.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in (*kept, target):
            os.close(descriptor)


def progress_lines(status: Status) -> list[str]:
    """How far a study is, in plain lines of at most 80 columns."""
    trials, baselines, replicates, stages = status.trials, status.baselines, status.replicates, status.stages
    chains, refits = status.chains, status.refits
    judged = bool(chains.ended or chains.running)
    stopped = "dropped" if judged else "pruned"
    lines = [f"trials    {_ended(trials, stopped)}"]
    if baselines.total:
        lines.append(f"baselines {_ended(baselines, stopped)}")
    searched = status.baseline_settings
    if searched.total:
        lines.append(f"baselines {_ended(searched, stopped, 'settings ')}")
    infrastructure = sum(each.infrastructure for each in (trials, baselines, searched, refits, replicates))
    if infrastructure:
        lines.append(f"failed    {infrastructure} by the infrastructure, not of its own: --retry-failed runs it again")
    if judged:
        refit = f"; refits {refits.complete} of {refits.total}" if refits.total else ""
        lines.append(f"chains    {chains.complete} on inner folds done, {chains.running} running{refit}")
    if replicates.total:
        lines.append(
            f"confirm   {replicates.complete} of {replicates.total} replicates done, {replicates.running} running, "
            f"{replicates.failed} failed"
        )
    if status.idle_note:
        lines.append(f"groups    {status.idle_note}")
    lines += [f"set aside {each}" for each in status.aside]
    lines += [f"dying     {each}" for each in status.dying]
    lines.append(
        f"stages    {stages.trained} trained now, {stages.shared} shared uses, {stages.running} running, "
        f"{stages.ready} ready"
    )
    others = [f"{stages.taken_over} taken over from other studies"] if stages.taken_over else []
    if stages.elsewhere and status.state == "running":
        others.append(f"{stages.elsewhere} {'wait' if stages.elsewhere > 1 else 'waits'} for another study")
    if others:
        lines.append(f"          {', '.join(others)}")
    best = status.best
    if best.trial:
        lines.append(f"best      {best.trial}: {status.metric} {best.objective:.4f} {status.judged_on}")
        values = [f"{magnification}X {value:.3f}" for magnification, value in sorted(best.by_magnification.items())]
        if values:
            lines.append(f"          {'  '.join(values)}")
    return lines


def _ended(counts: TrialCounts, stopped: str, what: str = "") -> str:
    """How many trials of a kind have ended and in which way; `stopped` is the word for those that were pruned."""
    ways = [(counts.complete, "complete"), (counts.pruned, stopped), (counts.failed, "failed")]
    told = ", ".join(f"{number} {word}" for number, word in ways if number)
    running = f"; {counts.running} running" if counts.running else ""
    planned = max(counts.total, counts.ended)  # more have ended where the study asked for more before
    return f"{counts.ended} of {planned} {what}ended{f': {told}' if told else ''}{running}"


def ended_words(counts: Mapping[str, TrialCounts]) -> str:
    """How many trials of a finished study have ended, of those kinds of `results.rows` that its user has asked for."""
    kinds = {"search": "trial", "baseline": "baseline", "baseline_search": "baseline setting", "confirm": "replicate"}
    ended = {word: counts[kind].ended for kind, word in kinds.items()}
    return ", ".join(counted(number, word) for word, number in ended.items() if number)


def waiting_line(status: Status) -> str:
    """How many worker groups are not there yet, and what each takes; empty where all are."""
    waiting = status.groups_wanted - len(status.groups)
    if waiting <= 0 or status.state != "running":
        return ""
    return f"groups    {waiting} of {status.groups_wanted} starting, or waiting for {status.group_needs}"


def status_lines(status: Status, most_groups: int = 1_000) -> list[str]:
    """The state of a study in plain lines of at most 80 columns (long names apart), one for each worker group up to
    `most_groups` of them."""
    lines = progress_lines(status)
    waiting = waiting_line(status)
    if waiting:
        lines.append(waiting)
    for group in status.groups[:most_groups]:
        doing = f"{group.stage} epoch {group.epoch}/{group.epochs}" if group.key else "idle"
        lines.append(f"group {group.name:<3} {doing} on {group.node}")
    others = status.groups[most_groups:]
    if others:
        lines.append(f"          and {len(others)} groups more, {sum(bool(each.key) for each in others)} of them busy")
    lines.append(f"dtype     {status.dtype}")
    left = status.seconds_left if status.state == "running" else None
    spent = duration(status.elapsed) + ("" if status.state == "finished" else " so far")
    if status.elapsed or status.state != "finished":  # else the status that knew it is lost
        lines.append(f"time      {spent}" + (f", about {duration(left)} left" if left is not None else ""))
    return lines


def status_view(status: Status, width: int) -> RenderableType:
    """The live view of a running sweep: a bar, then the status lines."""
    kinds = (status.trials, status.baselines, status.baseline_settings, status.replicates)
    total = sum(each.total for each in kinds)
    ended = sum(each.ended for each in kinds)
    length = max(min(width, 80) - 24, 10)
    filled = round(length * ended / total) if total else length
    name, done, open_ = (f"{status.name[:14]:<15}", "bold"), ("█" * filled, "green"), ("░" * (length - filled), "dim")
    bar = Text.assemble(name, done, open_, f" {ended}/{total}")
    lines = Table.grid()
    for line in status_lines(status, MOST_GROUPS):
        lines.add_row(Text(line, overflow="ellipsis", no_wrap=True))
    return Group(bar, lines, Text(f"log       {status.log}", style="dim", overflow="fold"))


class _Rate(ProgressColumn):
    """`123 images/s`."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} {self._unit}/s")


class Bar:
    """A progress bar of our own work; silent where the output is not a terminal. With a `unit` it shows how many of
    them are done in a second."""

    def __init__(self, console: Console, words: str, unit: str = "") -> None:
        columns = [TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        if unit:
            columns.insert(3, _Rate(unit))
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(words, total=None)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, done: int, total: int | None) -> None:
        self._progress.update(self._task, completed=done, total=total)
