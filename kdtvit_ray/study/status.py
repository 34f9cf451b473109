"""How a study is going, from its folder alone: no Ray, no torch."""

from dataclasses import replace

from rich.console import Console

from kdtvit_ray.console import status_lines
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.study_status import Status
from kdtvit_ray.study.lock import BEAT_SECONDS, StudyLock


def print_status(study: str, console: Console) -> None:
    """Print a study's state. Raises `UserError` where there is no study."""
    folder = StudyFolder(study)
    if not folder.exists(folder.study):
        raise UserError(
            f"'{folder.shown}' is not a study: it has no {folder.study}; allowed: a folder that a sweep has written"
        )
    lock = StudyLock.read(folder)
    alive = StudyLock.alive_here(lock) if lock else False
    try:
        status = Status.read(folder)
    except FileNotFoundError:
        console.print(f"{folder.shown}: not started yet")
        return
    except ValueError:
        raise UserError(
            f"'{folder.path(folder.status)}' is damaged; the command that runs the study writes it anew"
        ) from None
    if alive is False and status.state == "running":
        words = "interrupted; the same command goes on"
        status = replace(status.without_running(), groups=(), groups_wanted=0)
    elif lock and status.state == "running":
        words = f"running: process {lock['pid']} on {lock['host']} since {lock['since']}"
        if alive is None:
            words += f", as its lock says, whose beat grows every {BEAT_SECONDS:g} s: now {lock['beat']}"
    else:
        words, status = status.state, status.without_running()
    console.print(f"{folder.shown}: {words}", soft_wrap=True)
    for line in status_lines(status):
        console.print(line, soft_wrap=True)
    if status.fatal:
        console.print(f"reason    {status.fatal}", soft_wrap=True)
    here = folder.exists(folder.log)  # also where the study was copied, or is seen from another machine
    console.print(f"log       {folder.inside(folder.log) if here else status.log}", soft_wrap=True)
