"""Every way says in its head what it gives, how to go about it and what was tried; the scripts are sound."""

import re
import shlex
import subprocess

import pytest
import yaml

from kdtvit_ray.arguments import parser
from tests.clusters.commands import CLUSTERS, tool

SCRIPTS = sorted(CLUSTERS.glob("*.sh"))
WAYS = [each for each in [*SCRIPTS, *CLUSTERS.rglob("*.yaml")] if each.name != "until_final.sh"]


def head(path):
    """The comment that a file begins with, without its marks."""
    lines = path.read_text().splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    end = next(number for number, line in enumerate(lines) if not line.startswith("#") or line.startswith("#SBATCH"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


@pytest.mark.parametrize("path", WAYS, ids=lambda path: path.name)
def test_the_head_says_what_one_needs(path):
    text = head(path)
    for word in ("Gives", "Edit", "Launch", "Watch", "Resume", "End"):
        assert re.search(rf"^{word} +\S", text, flags=re.M), word
    tried = text.split("\nTried: ")[1]
    assert re.search(r"\b(not|never)\b", tried), "no way was tried with all that it is for"


def test_every_file_is_in_the_folders_table():
    table = (CLUSTERS / "README.md").read_text()
    files = [each.relative_to(CLUSTERS) for each in CLUSTERS.rglob("*") if each.is_file() and each.name != "README.md"]
    assert [str(each) for each in files if f"[{each}]({each})" not in table] == []


def test_the_scripts_pass_shellcheck():
    done = subprocess.run([tool("shellcheck"), *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_scripts_in_skypilots_file_pass_shellcheck_and_call_the_command_line_as_it_is(tmp_path):
    task = yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text())
    for name in ("setup", "run"):
        path = tmp_path / f"{name}.sh"
        # what SkyPilot and `envs` set
        known = "export SKYPILOT_NODE_IPS SKYPILOT_NODE_RANK SKYPILOT_NUM_GPUS_PER_NODE " + " ".join(task["envs"])
        path.write_text(f"#!/usr/bin/env bash\n{known}\n{task[name]}")
        done = subprocess.run([tool("shellcheck"), "--exclude", "SC1090,SC1091", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    (python,) = re.findall(r"--python (\S+)", task["setup"])  # not the one that an image happens to have
    assert f'"Programming Language :: Python :: {python}"' in (CLUSTERS.parent / "pyproject.toml").read_text()
    sweep = next(line for line in task["run"].splitlines() if "kdtvit-ray sweep" in line)
    assert parser().parse_args(shlex.split(sweep.split("kdtvit-ray ")[1])).takeover
