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
