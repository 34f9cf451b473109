"""The files of `predict --out`: whole or as they were, nothing that is read, nothing of another run."""

import csv
import os
from pathlib import Path

import pandas as pd
import pytest

from kdtvit_ray.cli import main
from kdtvit_ray.data.findings import SHOWN, Finding
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.predict import Predictions, patients_of
from kdtvit_ray.deliver.prediction_files import Target
from kdtvit_ray.deliver.scores import numbers, scores
from kdtvit_ray.errors import UserError
from tests.deliver.pictures import names, picture

TABLE = pd.DataFrame({"name": ["a.png"], "probability": [0.25]})


def findings(count):
    return [Finding(f"{number}.png", "empty file") for number in range(count)]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_full_disk_leaves_the_files_as_they_were(tmp_path, monkeypatch, suffix):
    target, whole = Target(tmp_path / f"found{suffix}"), Path.write_bytes
    before = {path: path.name.encode() for path in target.files}
    for path, content in before.items():
        path.write_bytes(content)

    def full(path, content):
        if len(list(tmp_path.glob("*partial"))) == 1:  # the second file
            whole(path, content[:10])
            raise OSError(28, "No space left on device")
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=f"Cannot write '.*found-patients{suffix}': No space left on device"):
        target.write({"images": TABLE, "patients": TABLE}, [])
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in target.files} == before
    assert names(tmp_path) == sorted(path.name for path in before)


def test_files_of_a_run_before_that_this_one_does_not_write_are_deleted(tmp_path):
    target = Target(tmp_path / "new/found.csv")
    every = {"images": TABLE, "patients": TABLE, "metrics": TABLE}
    assert target.write(every, findings(SHOWN + 1)) == [target.path, *list(target.tables.values())[1:]]
    assert names(tmp_path / "new") == ["found-metrics.csv", "found-patients.csv", "found-unreadable.txt", "found.csv"]
    (tmp_path / "new/found-notes.txt").write_text("mine")
    target.write({"images": TABLE, "patients": TABLE[:0]}, findings(SHOWN))
    assert names(tmp_path / "new") == ["found-notes.txt", "found.csv"]


def made(labels, patients=("p", "q")):
    """The tables of two images, with a label of the first where `labels` is true."""
    told = Description({}, classes=["a", "b"], positive=["b"], words=["benign", "malignant"])
    table = pd.DataFrame({"name": ["a.png", "b.png"], "patient": patients, "probability": [0.2, 0.9]})
    found = Predictions(table, [False if labels else None, None], [b"1", b"2"], [], 1.0)
    metrics = numbers(scores(found, told, frozenset([b"1"])), told)
    return {"images": table, "patients": patients_of(found, told), "metrics": metrics}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_run_may_write_over_what_another_one_wrote(tmp_path, suffix):
    target = Target(tmp_path / f"found{suffix}")
    for tables in (made(True), made(False), made(True), made(True, ("", ""))):
        target.check()
        target.write(tables, findings(SHOWN + 1))
    target.check()
    target.write({"images": TABLE}, [])
    assert names(tmp_path) == [f"found{suffix}"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("name", ["found-patients{}", "found-metrics{}", "found-unreadable.txt"])
@pytest.mark.parametrize("table", [True, False])
def test_a_file_beside_that_is_of_others_is_refused_before(tmp_path, suffix, name, table):
    place = tmp_path / name.format(suffix)
    mine = pd.DataFrame({"patient": ["p"], "images": [3], "age": [50]})
    if not table:
        place.write_bytes(b"my notes\xff\n")
    elif place.suffix == ".parquet":
        mine.to_parquet(place)
    else:
        mine.to_csv(place, index=False)
    before = place.read_bytes()
    with pytest.raises(UserError, match=f"would replace or delete '{place}', which 'predict' has not written"):
        Target(tmp_path / f"found{suffix}").check()
    assert place.read_bytes() == before


def test_a_file_of_metrics_says_at_which_threshold_and_of_how_many_development_images(tmp_path):
    target = Target(tmp_path / "found.csv")
    target.write(made(True), [])
    metrics = pd.read_csv(target.tables["metrics"]).set_index("what")
    assert metrics.loc["images", ["threshold_name", "threshold", "development_images"]].tolist() == ["half", 0.5, 1]
    table = made(True)["images"]
    found = Predictions(table, [True, False], [b"1", b"2"], [], 1.0)
    told = Description({}, classes=["a", "b"], positive=["b"], words=["benign", "malignant"])
    assert numbers(scores(found, told), told)["development_images"].isna().all()


@pytest.mark.parametrize("name", ["found.csv", "found-metrics.csv", "link.csv"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path, name):
    os.mkfifo(tmp_path / name.replace("link", "pipe"))
    (tmp_path / "link.csv").symlink_to("pipe.csv")
    out = tmp_path / name.replace("-metrics", "")
    with pytest.raises(UserError, match=rf"'{tmp_path / name}' is a device or a pipe; give the name of a file"):
        Target(out).check()


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "found.csv").symlink_to("there/real.csv")
    target = Target(tmp_path / "found.csv")
    target.check()
    target.write({"images": TABLE}, [])
    assert (tmp_path / "found.csv").is_symlink()
    assert len(pd.read_csv(tmp_path / "there/real.csv")) == 1


def test_names_in_a_csv_are_those_of_the_files(tmp_path):
    names = ["two  blanks.png", " before and after ", "a\nline", "a\r", 'a "quote", b', "tab\there", "", "-1", "5%"]
    written = Target(tmp_path / "found.csv").write({"images": pd.DataFrame({"name": names, "p": 0.5})}, [])
    with written[0].open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == names
    assert pd.read_csv(written[0], keep_default_na=False, dtype={"name": str})["name"].tolist() == names
    formulas = ["=1+1", "+a", "-b  c", "@SUM(A1)", " =1", "\t=1", "\r=1"]
    Target(tmp_path / "found.csv").write({"images": pd.DataFrame({"name": formulas})}, [])
    assert pd.read_csv(tmp_path / "found.csv")["name"].tolist() == [f"'{each}" for each in formulas]


@pytest.mark.parametrize(
    ("out", "read"), [("t.csv", "t.csv"), ("in/../t.csv", "t.csv"), ("link.csv", "t.csv"), ("t.csv", "t-metrics.csv")]
)
def test_a_table_that_is_read_is_not_written(model, tmp_path, monkeypatch, capsys, out, read):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in/a.png")
    labels = "path,label\nin/a.png,benign\n"
    (tmp_path / read).write_text(labels)
    (tmp_path / "link.csv").symlink_to("t.csv")
    assert main(["predict", str(model), read, "--out", out]) == 2
    over = read if out == "t.csv" else out
    said = (
        "write over '{}', which is read" if over == out else "replace or delete '{}', which 'predict' has not written"
    )
    assert f"--out '{out}' would {said.format(over)}; choose another name" in capsys.readouterr().err
    assert (tmp_path / read).read_text() == labels


def test_a_place_beside_that_cannot_be_written_is_told_before(tmp_path):
    (tmp_path / "found-metrics.csv").mkdir()
    with pytest.raises(UserError, match=r"'.*found-metrics\.csv' is a folder; give the name of a file"):
        Target(tmp_path / "found.csv").check()


def test_many_unreadable_images_and_a_new_folder(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(SHOWN + 2):
        (tmp_path / f"in/bad{number:02d}.png").write_text("no image")
    ask = ["predict", str(model), str(tmp_path / "in"), "--out", str(tmp_path / "out/p.csv")]
    assert main(ask) == 1
    shown = capsys.readouterr().out
    assert shown.count("no image that can be decoded") == SHOWN + 2
    assert "p-unreadable.txt" not in shown
    assert names(tmp_path) == ["in"]
    picture(tmp_path / "in/good.png")
    assert main(ask) == 1
    shown = capsys.readouterr().out
    assert shown.count("no image that can be decoded") == SHOWN
    assert f"all of them are in {tmp_path / 'out/p-unreadable.txt'}" in shown
    listed = (tmp_path / "out/p-unreadable.txt").read_text().splitlines()
    assert listed[0] == f"{SHOWN + 2} could not be read:"
    assert len(listed) == 1 + SHOWN + 2
    assert names(tmp_path / "out") == ["p-unreadable.txt", "p.csv"]
