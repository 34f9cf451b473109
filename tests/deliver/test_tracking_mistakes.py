"""What goes wrong before or at a tracker is told so that a user can mend it."""

import sys
from types import SimpleNamespace

import pytest

from kdtvit_ray.deliver.published import Run
from kdtvit_ray.deliver.trackers import TRACKERS, _wandb_run
from kdtvit_ray.deliver.tracking import publish
from kdtvit_ray.errors import UserError
from tests.results.fake_study import fake_study


@pytest.fixture
def study(tmp_path):
    return fake_study(tmp_path / "study", trials=1, baselines=(), patients=4, images=1)


@pytest.mark.parametrize(("state", "tags"), [("", []), (None, []), ("complete", ["complete"])])
def test_a_run_without_a_state_has_no_tag(state, tags):
    given = {}
    run = SimpleNamespace(config={}, finish=lambda exit_code: None)
    wandb = SimpleNamespace(Settings=dict, init=lambda **settings: given.update(settings) or run)
    own = Run("study", "study", "study", {} if state is None else {"state": state})
    with _wandb_run(wandb, SimpleNamespace(study_id="1", name="n"), own, "p"):
        pass
    assert given["tags"] == tags


def test_a_record_that_was_cut_off_is_named(study, monkeypatch):
    (study / "tracking.json").write_text('{"wandb": {"on')
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    monkeypatch.setattr("kdtvit_ray.deliver.tracking.missing", lambda _: [])
    with pytest.raises(UserError, match=r"to wandb failed: '.*tracking\.json' is damaged; delete it, and everything"):
        publish(str(study), "wandb")


def test_the_second_line_of_an_error_is_told_too(study, monkeypatch):
    def refuses(found, logdir):
        raise ValueError("1 validation error for Settings\nrun_tags.0\n  Value error, too short")

    monkeypatch.setitem(TRACKERS, "tensorboard", refuses)
    with pytest.raises(UserError, match=r"1 validation error for Settings run_tags\.0 Value error, too short$"):
        publish(str(study), "tensorboard")
