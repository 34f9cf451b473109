"""The script for machines that one can log in to, with an ssh that runs commands here, in a home of each host's own,
and a ray that only says how it was called."""

import subprocess

import pytest

from tests.clusters.commands import CLUSTERS, command, on_path

SSH = """
while [[ $1 == -* ]]; do shift 2; done
mkdir -p "$HOMES/$1" && HOST=$1 HOME="$HOMES/$1" exec bash -c "$2"
"""
RAY = """
echo "$HOST: ray $*${SITE:+ in $SITE}, authentication by $RAY_AUTH_MODE" >> "$HOMES/calls"
[ "$HOST" != lost ] || exit 1
[ "$1" != get-auth-token ] || { mkdir -p ~/.ray && echo secret > ~/.ray/auth_token; }
"""


@pytest.fixture
def script(tmp_path):
    """Run the script: (finished process, the calls of ray)."""
    command(tmp_path / "bin", "ssh", SSH)
    command(tmp_path / "bin", "ray", RAY)

    def run(*arguments, **environment):
        calls = tmp_path / "calls"
        calls.write_text("")
        done = subprocess.run(
            ["bash", CLUSTERS / "ssh.sh", *arguments],
            env=on_path(tmp_path / "bin", HOMES=str(tmp_path), **environment),
            capture_output=True,
            text=True,
        )
        return done, calls.read_text().splitlines()

    return run


def test_up_starts_the_head_then_the_others_with_its_token(script, tmp_path):
    done, calls = script("up", "me@a", "me@b", "c", ENVIRONMENT="export SITE=here")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "RAY_AUTH_MODE=token kdtvit-ray sweep breakhis --data DATA --out STUDY --address a:6379\n"
    by_token = " in here, authentication by token"
    assert calls == [
        f"me@a: ray get-auth-token --generate{by_token}",
        f"me@a: ray start --head --port 6379{by_token}",
        f"me@b: ray start --address a:6379{by_token}",
        f"c: ray start --address a:6379{by_token}",
    ]
    for host in ("me@b", "c"):
        token = tmp_path / host / ".ray" / "auth_token"
        assert token.read_text() == "secret\n"
        assert token.stat().st_mode & 0o077 == 0, "others can read the token"


def test_down_stops_the_head_last(script):
    done, calls = script("down", "a", "b")
    assert done.returncode == 0, done.stderr
    assert [each.split(",")[0] for each in calls] == ["b: ray stop", "a: ray stop"]


def test_a_host_that_fails_is_named_and_ends_it(script):
    done, calls = script("up", "a", "lost", "c", KDTVIT_PORT="7000")
    assert done.returncode == 2
    assert "host lost failed" in done.stderr
    assert [each.split(",")[0] for each in calls][-1] == "lost: ray start --address a:7000"


@pytest.mark.parametrize(
    ("arguments", "told"), [(("up",), "expected up|join"), (("start", "a"), "'start' is not known")]
)
def test_what_is_not_known_is_told_with_what_is(script, arguments, told):
    done, calls = script(*arguments)
    assert (done.returncode, calls) == (2, [])
    assert told in done.stderr
