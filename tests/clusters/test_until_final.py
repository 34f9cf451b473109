"""Which exit codes of a command are final, and that a stop reaches it."""

import argparse
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from kdtvit_ray.arguments import parser
from tests.cluster.real_sweeps import until
from tests.clusters.commands import CLUSTERS, command, on_path

SCRIPT = str(CLUSTERS / "until_final.sh")
SWEEP = ("kdtvit-ray", "sweep", "breakhis", "--data", "/data", "--out", "/study", "--address", "auto")


@pytest.fixture
def ends(tmp_path):
    """Run the script with a `kdtvit-ray` that ends with these codes in turn: (exit code, number of runs, output)."""

    def run(*codes, state="finished", command_line=SWEEP):
        runs = tmp_path / "runs"
        runs.write_text("")
        body = f"""
            if [ "$1" = status ]; then echo "$2" > {tmp_path}/asked; echo "$2: {state}"; exit 0; fi
            echo run >> {runs}
            codes=({" ".join(map(str, codes))})
            exit "${{codes[$(wc -l < {runs}) - 1]}}"
        """
        command(tmp_path / "bin", "kdtvit-ray", body)
        environment = on_path(tmp_path / "bin", KDTVIT_PAUSE="0", KDTVIT_ATTEMPTS="4")
        done = subprocess.run(["bash", SCRIPT, *command_line], env=environment, capture_output=True, text=True)
        return done.returncode, len(runs.read_text().split()), done.stdout + done.stderr

    return run


@pytest.mark.parametrize(
    ("codes", "exit_code"),
    [
        ((0,), 0),
        ((1,), 0),
        ((2,), 2),
        ((130,), 130),
        ((137, 139, 0), 0),
        ((75, 70, 0), 0),
        ((137, 2), 2),
        ((137, 1), 0),
    ],
)
def test_a_driver_that_died_is_started_again_and_all_else_is_final(ends, codes, exit_code):
    assert ends(*codes)[:2] == (exit_code, len(codes))


def test_a_driver_that_keeps_dying_is_given_up_with_its_code(ends):
    code, runs, told = ends(137, 137, 137, 137, 137)
    assert (code, runs) == (137, 4)
    assert "the driver ended with code 137, attempt 4 of 4" in told


def test_nothing_is_started_again_when_the_process_it_depends_on_is_gone(ends, monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv("KDTVIT_WHILE_PID", str(gone.pid))
    assert ends(75, 0)[:2] == (75, 1)
    monkeypatch.setenv("KDTVIT_WHILE_PID", str(os.getpid()))
    assert ends(75, 0)[:2] == (0, 2)


@pytest.mark.parametrize("state", ["stopped", "interrupted; the same command goes on"])
@pytest.mark.parametrize(
    "command_line",
    [
        SWEEP,
        ("kdtvit-ray", "sweep", "breakhis", "--out=/my study", "--data=/data"),
        ("kdtvit-ray", "sweep", "breakhis", "--data=/data", "--out=/a=b"),
        ("kdtvit-ray", "sweep", "breakhis", "--data", "/data", "--out", "/study"),
        ("kdtvit-ray", "confirm", "/study", "--top", "3"),
        ("kdtvit-ray", "confirm", "--folds", "1-3", "--search", "--retry=t0001", "--takeover", "/study"),
    ],
)
def test_code_1_of_a_study_that_is_not_finished_is_a_driver_that_died(ends, tmp_path, state, command_line):
    """Python ends with 1 after a traceback, as `kdtvit-ray` does where trials failed."""
    assert ends(1, 0, state=state, command_line=command_line)[:2] == (0, 2)
    assert ends(1, 0, command_line=command_line)[:2] == (0, 1), "it is finished"
    assert (tmp_path / "asked").read_text() in ("/study\n", "/my study\n", "/a=b\n")


def test_the_study_of_a_command_is_asked_for_by_its_whole_name(ends, tmp_path):
    for written in (("--out", "/my study=1"), ("--out=/my study=1",)):
        ends(1, command_line=("kdtvit-ray", "sweep", "breakhis", *written, "--data", "/data"))
        assert (tmp_path / "asked").read_text() == "/my study=1\n"
        (tmp_path / "asked").unlink()


def test_the_script_knows_the_options_that_have_no_value():
    (commands,) = (each.choices for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    actions = [each for name in ("sweep", "confirm") for each in commands[name]._actions if each.nargs == 0]
    known = {name for each in actions for name in each.option_strings} - {"-h", "--help"}
    (told,) = re.findall(r"--\*=\* \| (.*)\) ;;", Path(SCRIPT).read_text())
    assert set(told.split(" | ")) == known


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_the_command_once_and_nothing_is_started_again(tmp_path, sent):
    """SIGTERM goes to the script alone, SIGINT to all processes, as `ray job stop` sends it."""
    runs, stops = tmp_path / "runs", tmp_path / "stops"
    command(
        tmp_path / "bin",
        "kdtvit-ray",
        f"""exec python3 -c '
import signal, sys, time
def stop(*_):
    open("{stops}", "a").write("stop\\n")
    time.sleep(0.5)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
open("{runs}", "a").write("run\\n")
time.sleep(60)
'""",
    )
    process = subprocess.Popen(
        ["bash", SCRIPT, *SWEEP],
        env=on_path(tmp_path / "bin"),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    until(runs.exists)
    if sent == signal.SIGTERM:
        process.send_signal(sent)
    else:
        os.killpg(process.pid, sent)
    assert process.wait() == 130
    assert (runs.read_text(), stops.read_text()) == ("run\n", "stop\n")


def test_no_command_is_refused():
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "until_final.sh")
