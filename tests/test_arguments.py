"""How values of the command line are read."""

import pytest

from kdtvit_ray.arguments import parser
from kdtvit_ray.study.settings import SEEDS

COMMANDS = (["chain", "demo", "--data", "x"], ["sweep", "demo", "--data", "x", "--out", "y"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_a_seed_is_one_that_a_study_can_have(command, capsys):
    for seed in (*SEEDS, 0, 7):
        assert parser().parse_args([*command, f"--seed={seed}"]).seed == seed
    for text in (str(SEEDS[0] - 1), str(SEEDS[1] + 1), "1e3", "one"):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args([*command, f"--seed={text}"])
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert f"'{text}' is not a seed; allowed: a whole number from {SEEDS[0]} to {SEEDS[1]}" in told


def refusal(capsys, words):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["prepare", "x", "y", "--sise", "64"],
            "Unknown option of prepare '--sise' (did you mean '--size'?); allowed: ",
        ),
        (["doctor", "--spce=demo"], "Unknown option of doctor '--spce' (did you mean '--space'?); allowed: "),
        (["sweep", "demo", "--dta", "x", "--out", "y"], "Unknown option of sweep '--dta' (did you mean '--data'?); "),
        (["sweeep", "demo"], "Unknown command 'sweeep' (did you mean 'sweep'?); allowed: synth, prepare, "),
        (["--verison"], "Unknown option '--verison' (did you mean '--version'?); allowed: --help, --version"),
    ],
)
def test_a_misspelt_option_or_command_is_answered_with_the_nearest_one(capsys, words, told):
    output = refusal(capsys, words)
    assert output.startswith(f"kdtvit-ray: {told}")
    assert output.count("\n") == 1


def test_what_no_argument_takes_is_told_with_the_usage_of_its_command(capsys):
    output = refusal(capsys, ["status", "x", "y", "-z"])
    assert output.startswith("usage: kdtvit-ray status ")
    assert "unrecognized arguments: y -z" in output


def test_beginnings_of_options_and_values_that_look_like_them_are_taken():
    asked = parser().parse_args(["prepare", "x", "y", "--si", "64", "--pattern=--{label} {rest}"])
    assert (asked.size, asked.pattern) == (64, "--{label} {rest}")
    assert parser().parse_args(["predict", "model", "--", "--odd.png"]).images == ["--odd.png"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check", "demo", "--seconds", "-3"], "'-3' is not a time in seconds; allowed: a number above 0"),
        (["check", "demo", "--seconds=nan"], "'nan' is not a time in seconds; allowed: a number above 0"),
        (["chain", "demo", "--data", "x", "--alpha", "inf"], "'inf' is not a number; allowed: such as 2 or 0.5"),
        *[
            (["doctor", f"--gpus-per-worker={text}"], f"'{text}' is not a share of a GPU; allowed: 0, a share such as")
            for text in ("nan", "-1", "inf", "0.3.1")
        ],
        (["synth", "x", "--size", "64"], "'64' is not WIDTHxHEIGHT in pixels; allowed: such as 700x460"),
        (["synth", "x", "--size", "64x64x3"], "'64x64x3' is not WIDTHxHEIGHT in pixels"),
        (["synth", "x", "--seed", "a"], "'a' is not a whole number; allowed: such as 7"),
        (["confirm", "x", "--folds", "1,a"], "'1,a' is not a list of folds; allowed: such as 1-5 or 1,3"),
        (["doctor", "--groups", "0"], "'0' is not a number of worker groups; allowed: auto, or a whole number from 1"),
    ],
)
def test_values_that_no_option_can_have_are_told_in_its_own_words(capsys, words, told):
    assert told in refusal(capsys, words)
