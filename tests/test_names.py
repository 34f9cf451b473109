"""Names of files that are not UTF-8: each ends in a sentence or is shown with its bytes, never in a traceback."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtvit_ray.cli import main
from kdtvit_ray.data.findings import Finding
from kdtvit_ray.data.prepared import open_prepared
from kdtvit_ray.errors import UserError, readable
from kdtvit_ray.paths import Folder

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


def test_a_folder_inside_of_one_that_is_not_utf8_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / BAD / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / BAD)
    for open_it in (Folder, lambda name: open_prepared(Path(name))):
        with pytest.raises(UserError, match=r"caf.xe9/data' is not UTF-8"):
            open_it("data")
    assert main(["prepare", "data", "out"]) == 2
    assert "is not UTF-8; allowed: a name in UTF-8" in capsys.readouterr().err
