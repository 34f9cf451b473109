"""What `status` says of a study, from its folder alone."""

import io
import platform
import re

import pytest
from rich.console import Console

from kdtvit_ray.console import progress_lines
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.study_status import StageCounts, Status, TrialCounts
from kdtvit_ray.study.asks import replicate
from kdtvit_ray.study.binding import write_study
from kdtvit_ray.study.ledger import Ledger
from kdtvit_ray.study.ledger_status import status_of, write_finished
from kdtvit_ray.study.status import print_status
from tests.study import judged_stages, made_stages
from tests.study.test_lock import OTHER


@pytest.mark.parametrize(
    ("state", "told"), [("running", "interrupted; the same command goes on"), ("stopped", "stopped")]
)
def test_of_a_sweep_that_runs_no_more_nothing_runs(tmp_path, state, told):
    folder = StudyFolder(str(tmp_path))
    write_study(folder, made_stages.bound(judged_stages.space()))
    some = TrialCounts(total=9, complete=1, running=3)
    kinds = dict.fromkeys(("trials", "baselines", "baseline_settings", "chains", "refits", "replicates"), some)
    Status(state=state, stages=StageCounts(running=2), **kinds).write(folder)
    if state == "running":  # its process is gone and has left its lock
        folder.write_json(folder.lock, {**OTHER, "host": platform.node(), "pid": 2**22 + 1})
    out = io.StringIO()
    print_status(str(tmp_path), Console(file=out, width=200))
    assert told in out.getvalue()
    assert not re.search(r"[1-9]\d* running", out.getvalue())
    assert "1 of 9" in out.getvalue()


def test_the_log_is_the_one_beside_a_study_wherever_the_study_lies_now(tmp_path):
    folder = StudyFolder(str(tmp_path / "moved"))
    write_study(folder, made_stages.bound(judged_stages.space()))
    Status(state="stopped", log="/before/sweep.log").write(folder)

    def told():
        out = io.StringIO()
        print_status(folder.location, Console(file=out, width=200))
        return out.getvalue().splitlines()[-1]

    assert told() == "log       /before/sweep.log"
    folder.write(folder.log, b"")
    assert told() == f"log       {tmp_path}/moved/sweep.log"


def test_beside_replicates_the_status_still_tells_of_the_refits(tmp_path):
    study = {"trials": 2, "racing": False}
    folder = StudyFolder(str(judged_stages.finished(tmp_path, **study)))
    ledger = Ledger(folder, judged_stages.space(**study), magnifications=judged_stages.MAGNIFICATIONS)
    assert ledger.finished()
    write_finished(ledger, confirming=False, log=tmp_path / folder.log)
    (told,) = (line for line in progress_lines(Status.read(folder)) if line.startswith("chains"))
    assert told == "chains    12 on inner folds done, 0 running; refits 2 of 2"
    again = [replicate(ledger.space, "joint", {}, fold=1, seed=0)]
    confirming = Ledger(folder, ledger.space, again, judged_stages.MAGNIFICATIONS)
    assert told in progress_lines(status_of(confirming))
