"""What a study's ledger says of its state, and the status of a study of which nothing is left to run."""

import os
import platform
from dataclasses import replace
from pathlib import Path

from kdtvit_ray.results.study_status import COUNTS, StageCounts, Status
from kdtvit_ray.study.ledger import Ledger


def status_of(ledger: Ledger) -> Status:
    """The status of a study as far as its ledger knows it, without a state."""
    counts = ledger.counts()
    return Status(
        name=ledger.name,
        metric=ledger.metric,
        judged_on="out of fold" if ledger.space.parts else "on validation",
        dtype=ledger.space.numeric["dtype"],
        host=platform.node(),
        pid=os.getpid(),
        trials=counts["search"],
        baselines=counts["baseline"],
        baseline_settings=counts["baseline_search"],
        chains=counts["inner"],
        refits=counts["refit"],
        replicates=counts["confirm"],
        best=ledger.best,
        stages=StageCounts(shared=ledger.shared_uses),
    )


def write_finished(ledger: Ledger, confirming: bool, log: Path) -> None:
    """Write the status of a study of which nothing is left to run, unless the last one says as much. The driver of the
    last trial may have been killed before it wrote that, the file may be lost or damaged, and the study may ask for
    fewer trials or baselines than before. A sweep leaves what a confirmation said of its replicates. Raises `OSError`
    where storage fails."""
    try:
        last = Status.read(ledger.folder).without_running()
    except (FileNotFoundError, ValueError):
        last = Status()
    now = status_of(ledger)
    if not confirming and last.replicates.total:
        now = replace(now, replicates=last.replicates)
    same = last.best.trial == now.best.trial and all(getattr(last, name) == getattr(now, name) for name in COUNTS)
    if last.state == "finished" and same:
        return
    stages = replace(now.stages, trained=last.stages.trained, taken_over=last.stages.taken_over, done=last.stages.done)
    replace(now, state="finished", elapsed=last.elapsed, stages=stages, log=str(log)).write(ledger.folder)
