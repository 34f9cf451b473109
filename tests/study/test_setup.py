"""A study bound to its data: what may not change when it is started again, and what its user is told."""

import tomllib

import pytest
import tomli_w

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import RECIPE_VERSION
from kdtvit_ray.study.setup import Bound, write_study
from kdtvit_ray.study.space import Space

DATA = {"path": "prepared", "fingerprint": "f" * 32}


def bound(text=""):
    return Bound(Space(tomllib.loads(text)), None, {}, DATA)


@pytest.fixture
def folder(tmp_path):
    return StudyFolder(str(tmp_path))


def older(folder, recipe, **training):
    """The study in the folder, as if started with another recipe and other values of [training]."""
    write_study(folder, bound())
    plain = tomllib.loads((folder.local / folder.study).read_text())
    plain["versions"]["recipe"] = recipe
    plain["training"] |= training
    (folder.local / folder.study).write_text(tomli_w.dumps(plain))


def refusal(folder, text=""):
    with pytest.raises(UserError) as caught:
        write_study(folder, bound(text))
    return str(caught.value)


def test_the_same_study_goes_on_with_more_trials(folder):
    write_study(folder, bound())
    write_study(folder, bound("[study]\ntrials = 99"))
    assert tomllib.loads((folder.local / folder.study).read_text())["study"]["trials"] == 99


def test_changed_settings_are_refused_by_name(folder):
    write_study(folder, bound())
    told = refusal(folder, "[training]\nlr = 0.5\n[chain]\nalpha = 0.1")
    assert "was started with other settings: [chain] alpha was 0.5, is 0.1; [training] lr was 0.001, is 0.5; " in told


def test_a_study_of_another_recipe_is_refused_with_what_changed(folder):
    older(folder, "1")
    assert refusal(folder) == (
        f"The study '{folder.shown}' was started by a kdtvit-ray with training recipe 1, and this one has recipe "
        f"{RECIPE_VERSION}, which gives other numbers for the same settings; allowed: a new folder with --out, or the "
        "kdtvit-ray that started it"
    )
    (folder.local / folder.study).unlink()
    older(folder, "1", warmup_epochs=1.0)
    assert "; its settings differ as well: [training] warmup_epochs was 1.0, is 0.5; allowed: " in refusal(folder)
