"""How Ray is started on this machine."""

from pathlib import Path

import pytest

from kdtvit_ray.cluster.connection import connect
from kdtvit_ray.errors import Away


@pytest.fixture
def attempts(monkeypatch):
    """What `ray.init` was given, each time. It writes into that, as Ray does, and fails as often as is asked for."""
    import ray

    given, failing = [], [1]

    def init(**arguments):
        runtime = arguments["runtime_env"]
        assert callable(runtime["worker_process_setup_hook"]), "written into by an earlier attempt"
        assert "hook" not in runtime["env_vars"]
        given.append(arguments)
        runtime["worker_process_setup_hook"], runtime["env_vars"]["hook"] = "hush", "1"
        if len(given) <= failing[0]:
            raise RuntimeError("the raylet is late")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return given, failing


def test_a_second_attempt_is_given_what_the_first_one_was(attempts):
    given, _ = attempts
    connect("", Path("sweep.log"))
    assert len(given) == 2


def test_after_two_attempts_the_reason_is_told(attempts):
    given, failing = attempts
    failing[0] = 2
    with pytest.raises(Away, match=r"Cannot start Ray: the raylet is late; the log is sweep\.log"):
        connect("", Path("sweep.log"))
    assert len(given) == 2
