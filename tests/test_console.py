"""What a running study shows, in a terminal of 80 columns and 24 lines."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from kdtvit_ray.console import Terminal, duration, ended_words, status_lines, status_view
from kdtvit_ray.results.study_status import BestTrial, GroupStatus, StageCounts, Status, TrialCounts


def status(groups=2, wanted=2, **changes):
    counted = TrialCounts(total=1000, complete=876, failed=12, pruned=104, running=8)
    running = GroupStatus("1", "gpu-node-017", key="k", stage="40+100+200+400X small", epoch=12, epochs=20)
    best = BestTrial("t0876", 0.91234, {400: 0.9, 40: 0.911, 200: 0.95, 100: 0.873})
    told = Status(
        state="running",
        name="breakhis-with-a-long-name",
        metric="balanced_accuracy",
        dtype="bfloat16",
        elapsed=90_061.0,
        seconds_left=4_000.0,
        trials=counted,
        baselines=TrialCounts(total=4, complete=4),
        replicates=TrialCounts(total=105, complete=17, failed=1, running=8),
        best=best,
        stages=StageCounts(trained=2345, shared=1234, running=64, ready=120),
        groups=tuple(replace(running, name=str(number)) for number in range(1, groups + 1)),
        groups_wanted=wanted,
        group_needs="4 x 0.25 GPU and 1 CPU at once",
        log="/studies/breakhis/sweep.log",
    )
    return replace(told, **changes)


@pytest.mark.parametrize(("groups", "wanted"), [(0, 0), (2, 2), (3, 128), (128, 128)])
def test_nothing_is_wider_than_a_terminal_and_the_live_view_fits_into_one(groups, wanted):
    told = status(groups, wanted)
    assert max(map(len, status_lines(told))) <= 80
    screen = io.StringIO()
    Console(file=screen, width=80, highlight=False).print(status_view(told, 80))
    lines = screen.getvalue().splitlines()
    assert len(lines) <= 24
    assert "…" not in screen.getvalue(), "something was cut off"
    assert lines[-1].startswith("log "), "the log is named last"
    assert any(line.startswith("time      25 h 01 min so far, about 1 h 06 min left") for line in lines)


@pytest.mark.parametrize("text", ["cells [/mm2]", "d[v2]", "tumour [bold]G3[/bold]", "a:warning:b.png", r"run\[b]"])
def test_names_are_printed_as_they_are(text):
    screen = io.StringIO()
    terminal, table = Terminal(file=screen, width=80), Table(text, title=text)
    table.add_row(text)
    terminal.print(f"Study {text}")
    terminal.print(table)
    assert screen.getvalue().count(text) == 4


def test_stages_of_other_studies_are_told_in_one_line():
    def told(state="running", **counts):
        return [line.strip() for line in status_lines(status(state=state, stages=StageCounts(**counts)))]

    assert "1 waits for another study" in told(elsewhere=1)
    assert "4 taken over from other studies, 2 wait for another study" in told(taken_over=4, elsewhere=2)
    assert "4 taken over from other studies" in told("stopped", taken_over=4, elsewhere=2)


def test_trials_that_have_ended_are_told_by_the_way_they_ended():
    lines = status_lines(status())
    assert lines[:2] == [
        "trials    992 of 1000 ended: 876 complete, 104 pruned, 12 failed; 8 running",
        "baselines 4 of 4 ended: 4 complete",
    ]
    dropped, settings = TrialCounts(total=16, complete=4, pruned=12), TrialCounts(total=3, complete=2, running=1)
    raced = status(state="finished", trials=dropped, chains=TrialCounts(complete=20), baseline_settings=settings)
    lines = status_lines(raced)
    assert "trials    16 of 16 ended: 4 complete, 12 dropped" in lines
    assert "baselines 2 of 3 settings ended: 2 complete; 1 running" in lines
    assert "time      25 h 01 min" in lines, "a finished study goes on no more"
    assert not any(line.startswith("time") for line in status_lines(replace(raced, elapsed=0.0))), "it is not known"


def test_a_finished_study_counts_what_its_user_has_asked_for_and_no_chains_of_inner_folds():
    one = TrialCounts(total=1, complete=1)
    counts = dict.fromkeys(("baseline", "baseline_search", "confirm"), TrialCounts()) | {"inner": one, "refit": one}
    assert ended_words({**counts, "search": TrialCounts(total=16, complete=4, pruned=12)}) == "16 trials"
    assert ended_words({**counts, "search": one, "baseline": TrialCounts(2, 1, 1)}) == "1 trial, 2 baselines"


def test_magnifications_are_in_their_order():
    assert "          40X 0.911  100X 0.873  200X 0.950  400X 0.900" in status_lines(status())


def test_groups_that_wait_and_groups_that_do_not_fit_are_counted():
    lines = status_lines(status(3, 5))
    assert "groups    2 of 5 starting, or waiting for 4 x 0.25 GPU and 1 CPU at once" in lines
    assert sum(line.startswith("group ") for line in status_lines(status(128, 128), 10)) == 10
    assert "          and 118 groups more, 118 of them busy" in status_lines(status(128, 128), 10)


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (75, "1 min 15 s"), (3661, "1 h 01 min")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
