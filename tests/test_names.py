"""Names of files that are not UTF-8: each ends in a sentence or is shown with its bytes, never in a traceback."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtvit_ray.cli import main
from kdtvit_ray.data.cache import cache_folder
from kdtvit_ray.data.findings import Finding
from kdtvit_ray.data.prepared import open_prepared
from kdtvit_ray.deliver.model import open_model
from kdtvit_ray.errors import UserError, readable
from kdtvit_ray.learning.models import weights_file
from kdtvit_ray.paths import Folder
from kdtvit_ray.recipe import ModelSpec
from kdtvit_ray.study.space import Space

BAD = os.fsdecode(b"caf\xe9")


@settings(deadline=None)
@given(st.binary())
def test_bytes_that_are_not_utf8_are_shown_as_such(name):
    assert readable(os.fsdecode(name)) == name.decode("utf-8", "backslashreplace")


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_one_that_a_file_can_hold(text):
    shown = readable(text)
    shown.encode("utf-8")
    assert readable(shown) == shown
    if not any(0xD800 <= ord(each) <= 0xDFFF for each in text):
        assert shown == text


def test_errors_and_findings_are_readable():
    assert str(UserError(f"'{BAD}' is odd")) == "'caf\\xe9' is odd"
    found = Finding(BAD, f"the same as {BAD}")
    assert (found.where, found.reason) == ("caf\\xe9", "the same as caf\\xe9")


@pytest.mark.parametrize(
    "arguments",
    [
        ["synth", BAD],
        ["prepare", "images", BAD],
        ["check", BAD],
        ["chain", "demo", "--data", BAD],
        ["sweep", "demo", "--data", "data", "--out", BAD],
        ["confirm", BAD],
        ["doctor", "--out", BAD],
        ["status", BAD],
        ["explain", BAD],
        ["explain", "model", "a.png", "--out", BAD],
        ["gc", "stages", "--studies", "a", BAD],
        ["report", BAD],
        ["track", BAD, "--to", "mlflow"],
        ["compare", "a", BAD],
        ["export", "study", BAD],
        ["predict", BAD, "a.png"],
        ["predict", "model", "a.png", "--out", f"{BAD}.parquet"],
    ],
    ids=" ".join,
)
def test_a_command_takes_no_folder_that_is_not_utf8(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(BAD).mkdir()
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("kdtvit-ray: The name 'caf\\xe9")
    assert [each.name for each in tmp_path.iterdir()] == [BAD]


NOBODY = "~nobody-of-this-name/x"


@pytest.mark.parametrize(
    "arguments",
    [
        ["synth", NOBODY],
        ["prepare", NOBODY, "out"],
        ["prepare", "images", NOBODY],
        ["check", NOBODY],
        ["check", f"{NOBODY}.toml"],
        ["chain", NOBODY, "--data", "data"],
        ["chain", "demo", "--data", NOBODY],
        ["sweep", "demo", "--data", NOBODY, "--out", "study"],
        ["status", NOBODY],
        ["report", NOBODY],
        ["compare", "a", "b", "--out", NOBODY],
        ["export", "study", NOBODY],
        ["predict", "model", NOBODY],
        ["predict", "model", "a.png", "--out", f"{NOBODY}.csv"],
        ["explain", NOBODY],
    ],
    ids=" ".join,
)
def test_the_home_of_an_unknown_user_is_told(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "begins with '~nobody-of-this-name', and this machine knows no such home folder; allowed: " in told
    assert not list(tmp_path.iterdir())


def test_what_else_an_unknown_users_home_would_hold_is_told(tmp_path, monkeypatch):
    for open_it in (Folder, open_model):
        with pytest.raises(UserError, match="knows no such home folder"):
            open_it(NOBODY)
    with pytest.raises(UserError, match="knows no such home folder"):
        weights_file(ModelSpec(name="tiny", weights=NOBODY))
    with pytest.raises(UserError, match="knows no such home folder"):
        Space({"models": {"tiny": {"weights": NOBODY}}}, base=tmp_path)
    monkeypatch.setenv("KDTVIT_CACHE", NOBODY)
    with pytest.raises(UserError, match="knows no such home folder"):
        cache_folder()


def test_a_tilde_is_the_users_home_wherever_a_path_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KDTVIT_CACHE")
    assert main(["synth", "~/drawn", "--patients", "2", "--images", "1", "--size", "32x32"]) == 0
    assert main(["prepare", "~/drawn", "~/set", "--size", "16"]) == 0
    assert main(["check", "~/set"]) == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["drawn", "set"]
    assert cache_folder() == tmp_path / ".cache" / "kdtvit_ray"


def test_a_folder_inside_of_one_that_is_not_utf8_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / BAD / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / BAD)
    for open_it in (Folder, lambda name: open_prepared(Path(name))):
        with pytest.raises(UserError, match=r"caf.xe9/data' is not UTF-8"):
            open_it("data")
    assert main(["prepare", "data", "out"]) == 2
    assert "is not UTF-8; allowed: a name in UTF-8" in capsys.readouterr().err
