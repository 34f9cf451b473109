"""Predictions of image files: the study's own numbers for its own images, and an answer for every kind of file."""

import csv
import io
import os
import subprocess
import sys
import tarfile
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from kdtvit_ray.arguments import parser
from kdtvit_ray.cli import main
from kdtvit_ray.deliver import commands, folder, inputs
from kdtvit_ray.deliver.commands import predict_images
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.inputs import Images
from kdtvit_ray.deliver.model import open_model
from kdtvit_ray.deliver.model_choice import choose_model
from kdtvit_ray.deliver.predict import Predictions, patients_of, predict
from kdtvit_ray.deliver.prediction_files import Target
from kdtvit_ray.deliver.scores import METRICS, scores
from kdtvit_ray.errors import UserError
from kdtvit_ray.results.patient_sentences import NO_CERTAINTY
from kdtvit_ray.results.statistics import Interval
from tests.cluster.real_sweeps import ROOT


def base(path):
    return Path(path).name


def class_columns(names):
    return [each for each in names if each.startswith("p_")]


@pytest.fixture(scope="module")
def expected(study):
    """The chosen model's predictions of test images, as the study has stored them."""
    chosen = choose_model(str(study))
    frame = chosen.study.predictions(chosen.key)
    return frame[frame["split"] == "test"].set_index("name")


def paths(images, names):
    return [str(images / f"{name}.png") for name in names]


@pytest.mark.parametrize("count", [1, 31, 32, 65])
def test_numbers_are_the_studys_bit_for_bit_whatever_images_come_with_them(study, model, images, expected, count):
    names = list(np.random.default_rng(count).permutation(expected.index)[:count])
    for source in (study, model):
        found = predict(open_model(str(source)), Images(paths(images, names)), workers=2).table
        assert found["name"].tolist() == paths(images, names)
        assert (found["probability"].to_numpy() == expected.loc[names, "probability"].to_numpy()).all()
        for column, name in enumerate(class_columns(found)):
            assert (found[name].to_numpy() == expected.loc[names, f"p{column}"].to_numpy()).all()


def test_another_number_of_threads_changes_the_last_digits_at_most(study, images, expected):
    names = list(expected.index[:40])
    found = predict(open_model(str(study), threads=2), Images(paths(images, names))).table
    np.testing.assert_allclose(found["probability"], expected.loc[names, "probability"], atol=1e-6)


def test_the_onnx_file_alone_and_without_torch_gives_the_same(model, images, expected, tmp_path):
    """In a process in which torch cannot be imported, from a copy of the one file."""
    (tmp_path / "alone.onnx").write_bytes((model / folder.ONNX).read_bytes())
    code = f"""
import sys


class Without:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "timm", "torchvision", "ray", "optuna"):
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)


sys.meta_path.insert(0, Without())
from kdtvit_ray.cli import main

sys.exit(main(["predict", "alone.onnx", {str(images)!r}, "--out", "found.csv"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(tmp_path / "found.csv").set_index("name")
    names = [f"{images}/{name}.png" for name in expected.index]
    np.testing.assert_allclose(found.loc[names, "probability"], expected["probability"], atol=1e-4, rtol=0)


def test_tta_is_the_mean_over_the_eight_views(model, images, tmp_path, expected):
    path = images / f"{expected.index[0]}.png"
    square = Image.open(path).convert("RGB").resize((24, 24), Image.Resampling.BICUBIC)  # as it is prepared: all of it
    flips = [square, square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    views = []
    for number, (flip, angle) in enumerate((flip, angle) for flip in flips for angle in (0, 90, 180, 270)):
        flip.rotate(angle).save(tmp_path / f"{number}.png")
        views.append(str(tmp_path / f"{number}.png"))
    own = open_model(str(model))
    one_by_one = predict(own, Images(views)).table["probability"].mean()
    assert predict(own, Images([str(path)]), tta=True).table["probability"][0] == pytest.approx(one_by_one, abs=1e-3)


# -- files that are not what they seem ---------------------------------------------------------------------------------


def hostile(place):
    """Files by name, each with what is said of it ("" where it can be read)."""
    whole = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    png = io.BytesIO()
    whole.save(png, "PNG")
    whole.save(place / "good.png")
    whole.convert("CMYK").save(place / "cmyk.jpg")
    whole.convert("L").save(place / "grey.png")
    whole.convert("P").save(place / "palette.gif")
    Image.new("RGB", (1, 1)).save(place / "one.png")
    Image.fromarray(np.zeros((40, 60), np.uint16)).save(place / "deep.png")
    whole.save(place / "animated.gif", save_all=True, append_images=[whole.rotate(90), whole.rotate(180)])
    Image.new("1", (20_000, 20_000)).save(place / "bomb.png")
    (place / "cut.png").write_bytes(png.getvalue()[:-60])
    flipped = bytearray(png.getvalue())
    flipped[len(flipped) // 2] ^= 255
    (place / "torn.png").write_bytes(flipped)
    (place / "text.png").write_text("<svg onload=alert(1)>")
    (place / "empty.png").write_bytes(b"")
    (place / "folder.png").mkdir()
    (place / "nowhere.png").symlink_to(place / "absent.png")
    os.mkfifo(place / "pipe.png")
    return {
        "good.png": "",
        "cmyk.jpg": "",
        "grey.png": "",
        "palette.gif": "",
        "one.png": "too small",
        "deep.png": "not an 8-bit image",
        "animated.gif": "several images in one file (3 frames",
        "bomb.png": "too large",
        "cut.png": "truncated or damaged",
        "torn.png": "truncated or damaged",
        "text.png": "no image that can be decoded",
        "empty.png": "empty file",
        "nowhere.png": "a link to a file that is not there",
    }


def test_every_kind_of_file_is_predicted_or_named_with_its_reason(model, tmp_path, capsys):
    told = hostile(tmp_path)
    images = Images([str(tmp_path)])
    found = predict(open_model(str(model)), images)
    reasons = {Path(each.where).name: each.reason for each in [*images.findings, *found.unreadable]}
    assert {Path(each).name for each in found.table["name"]} == {name for name, why in told.items() if not why}
    assert reasons.keys() == {name for name, why in told.items() if why}
    for name, why in told.items():
        assert reasons.get(name, "").startswith(why), name
    single = Images([str(tmp_path / "pipe.png"), str(tmp_path / "nowhere.png"), str(tmp_path / "good.png")])
    assert [each.reason for each in predict(open_model(str(model)), single).unreadable] == ["no file", "no such file"]

    assert main(["predict", str(model), str(tmp_path), "--out", str(tmp_path / "found.parquet")]) == 1
    shown = capsys.readouterr().out
    assert "9 could not be read" in shown
    assert "bomb.png: too large" in shown
    assert len(pd.read_parquet(tmp_path / "found.parquet")) == 4


def test_names_that_are_not_utf8_are_predicted_and_shown_with_their_bytes(model, tmp_path, capsys):
    place, picture = tmp_path / "new", Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    place.mkdir()
    picture.save(place / "good.png")
    good, bad = (os.fsencode(place) + name for name in (b"/\xff\xfe.png", b"/b\xe9.png"))
    (place / "good.png").rename(os.fsdecode(good))
    Path(os.fsdecode(bad)).write_text("no image")
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as tar:
        tar.add(place, "set")
    ways = {str(place): place, str(place / "*.png"): place, str(tmp_path / "all.tar.gz"): tmp_path / "all.tar.gz/set"}
    for source, shown in ways.items():
        for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
            assert main(["predict", str(model), source, "--out", str(tmp_path / f"found{suffix}")]) == 1
            assert read(tmp_path / f"found{suffix}")["name"].tolist() == [rf"{shown}/\xff\xfe.png"]
            said = capsys.readouterr().out
            assert rf"{shown}/b\xe9.png: no image that can be decoded" in said
            assert r"\xff\xfe.png │" in said
    assert main(["explain", str(model), str(place), "--out", str(tmp_path / "maps")]) == 1
    said = capsys.readouterr().out
    assert "xff_xfe-maps.png" in said
    assert r"b\xe9.png: no image" in said


def test_an_image_that_a_camera_turned_is_read_the_way_up(model, tmp_path):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    image.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    found = predict(open_model(str(model)), Images([str(tmp_path / "upright.png"), str(tmp_path / "turned.png")])).table
    assert found["probability"][0] == found["probability"][1]


# -- where images come from --------------------------------------------------------------------------------------------


def test_archives_folders_patterns_and_tables_give_the_same(model, images, tmp_path, capsys):
    own = open_model(str(model))
    whole = predict(own, Images([str(images)])).table
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as tar:
        tar.add(images, "set")
    packed = predict(own, Images([str(tmp_path / "all.tar.gz")])).table
    by_pattern = predict(own, Images([str(images / "*.png")])).table
    for other in (packed, by_pattern):
        other["name"] = other["name"].map(base)
        sorted_whole = whole.assign(name=whole["name"].map(base)).sort_values("name", ignore_index=True)
        pd.testing.assert_frame_equal(other.sort_values("name", ignore_index=True), sorted_whole)

    assert main(["predict", str(model), str(images / "none-*.png")]) == 2
    assert "fits no file" in capsys.readouterr().err


def test_of_an_archive_that_is_cut_off_what_comes_before_is_predicted(model, tmp_path):
    random = np.random.default_rng(0)
    with tarfile.open(tmp_path / "noise.tar.gz", "w:gz") as tar:
        for number in range(8):
            noise = random.integers(0, 255, (400, 400, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / f"{number}.png")
            tar.add(tmp_path / f"{number}.png", f"{number}.png")
    content = (tmp_path / "noise.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: 9 * len(content) // 10])
    torn = Images([str(tmp_path / "cut.tar.gz")])
    before = predict(open_model(str(model)), torn).table
    assert 0 < len(before) < 8
    assert "truncated or damaged after" in torn.findings[0].reason


def test_names_in_a_table_cannot_become_formulas(model, images, tmp_path):
    name = "=cmd|' -C calc'!A0.png"
    picture = next(images.glob("*.png")).read_bytes()
    (tmp_path / name).write_bytes(picture)
    (tmp_path / "-1.png").write_bytes(picture)
    with (tmp_path / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "patient"], [name, "benign", "@SUM(A1)"], ["-1.png", "", "+2"]])
    assert main(["predict", str(model), str(tmp_path / "images.csv"), "--out", str(tmp_path / "found.csv")]) == 0
    for written in ("found.csv", "found-patients.csv"):
        with (tmp_path / written).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        risky = [cell for cell in cells if cell[:1] in "=+-@" and cell and not _number(cell)]
        assert not risky, risky
        assert any(cell.startswith("'") for cell in cells)


def _number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_an_unknown_label_is_named_before_anything_is_predicted(model, images, tmp_path, capsys):
    path = next(images.glob("*.png"))
    (tmp_path / "images.csv").write_text(f"path,label\n{path},malginant\n")
    assert main(["predict", str(model), str(tmp_path / "images.csv")]) == 2
    assert "'malginant', which the model does not know; allowed: A, F, PT" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "images.csv").write_text(f"file,label\n{path},benign\n")
    assert main(["predict", str(model), str(tmp_path / "images.csv")]) == 2
    assert "has no column 'path'; found: file, label" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("out", ["note.txt/found.csv", "note.txt/deeper/found.parquet", "/proc/found.csv"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_predicted(model, images, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("mine")
    monkeypatch.setattr("kdtvit_ray.deliver.commands.predict", lambda *_, **__: pytest.fail("images were predicted"))
    with pytest.raises(UserError, match=f"^Cannot write '{out}': "):
        predict_images(parser().parse_args(["predict", str(model), str(images), "--out", out]), Console(quiet=True))
    assert [each.name for each in tmp_path.iterdir()] == ["note.txt"]


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path):
    (tmp_path / "old.csv").write_text("before")
    for out in (tmp_path / "old.csv", tmp_path / "new/folders/found.csv"):
        Target(out).check()
    assert [each.name for each in tmp_path.iterdir()] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "before"


def test_where_nothing_can_be_read_no_table_is_written_and_that_is_said(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.png").write_text("no image")
    assert main(["predict", str(model), "bad.png", "--out", "found.csv"]) == 1
    assert "no image could be read, so 'found.csv' is not written" in capsys.readouterr().out
    assert not Path("found.csv").exists()
    assert main(["predict", str(model), "bad.png"]) == 1
    assert "no image could be read\n" in capsys.readouterr().out
    Path("images.csv").write_text("path,label\n")
    assert main(["predict", str(model), "images.csv", "--out", "found.csv"]) == 2
    assert "Table 'images.csv' has no lines but its head" in capsys.readouterr().err


def test_of_an_archive_a_few_files_are_in_memory(model):
    """Each image's `read` holds its file."""

    class File:
        def __call__(self):
            return content

    picture = io.BytesIO()
    Image.new("RGB", (36, 24)).save(picture, "PNG")
    content, files, most = picture.getvalue(), weakref.WeakSet(), 0

    def of_an_archive():
        nonlocal most
        for number in range(120):
            files.add(read := File())
            yield inputs.Image(f"{number}.png", read)
            del read
            most = max(most, len(files))

    own = open_model(str(model))
    own.batch = 4
    assert len(predict(own, of_an_archive(), workers=1).table) == 120
    assert most < 60


# -- against labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", ["half", "0.3"])
def test_metrics_are_scikit_learns_at_the_chosen_threshold(model, images, threshold):
    own = open_model(str(model))
    own.description = told = own.description.deciding_by(threshold)
    found = predict(own, Images([str(images)]))
    truth = np.array(found.positive, dtype=bool)
    score = found.table["probability"].to_numpy()
    called = score >= told.threshold
    measured = scores(found, told).set_index("what")
    at_40 = (found.table["magnification"] == 40).to_numpy()
    for what, rows in (("images", np.ones(len(truth), bool)), ("40X", at_40)):
        expected = {
            "auc": roc_auc_score(truth[rows], score[rows]),
            "accuracy": accuracy_score(truth[rows], called[rows]),
            "recall": recall_score(truth[rows], called[rows]),
            "specificity": recall_score(~truth[rows], ~called[rows]),
        }
        for metric in METRICS:
            assert measured.loc[what, metric].value == pytest.approx(expected[metric]), metric
            assert measured.loc[what, metric].bounded

    patients = patients_of(found, told)
    by_hand = found.table.groupby("patient")["probability"].mean()
    assert patients["probability"].tolist() == pytest.approx(by_hand.tolist())
    positive = (patients["label"] == "malignant").to_numpy()
    assert measured.loc["patients", "auc"].value == pytest.approx(roc_auc_score(positive, patients["probability"]))
    mean_called = (patients["probability"] >= told.threshold).to_numpy()
    assert measured.loc["patients", "accuracy"].value == pytest.approx(accuracy_score(positive, mean_called))


def test_the_patients_metrics_follow_from_the_patients_table():
    """Each positive patient has a labelled image that is low, and two that are high and have no label."""
    told = Description({}, classes=["a", "b"], positive=["b"], words=["benign", "malignant"])
    one = {"patient": "n", "positive": False, "probability": 0.1}
    high = {"patient": "m", "positive": None, "probability": 0.9}
    low = {"patient": "m", "positive": True, "probability": 0.2}
    lines = [each | {"patient": f"{each['patient']}{n}"} for n in range(6) for each in (one, low, high, high)]
    lines += [{"patient": "", "positive": True, "probability": 0.1}, {"patient": "x", "positive": None}]
    table = pd.DataFrame(lines).fillna({"probability": 0.5})
    positive = [each["positive"] for each in lines]
    found = Predictions(table.drop(columns="positive"), positive, [b""] * len(table), [], 1.0)
    patients = patients_of(found, told)
    labelled = patients[patients["label"] != ""]
    measured = scores(found, told).set_index("what").loc["patients"]
    assert measured["accuracy"].value == (labelled["label"] == labelled["decision"]).mean() == 1
    assert (measured["images"], measured["patients"]) == (labelled["images"].sum(), len(labelled)) == (24, 12)


def test_an_interval_without_width_is_no_certainty(model, images, expected, capsys):
    """At the threshold 0 every image is called positive, in every draw of the patients."""
    table = expected.assign(path=paths(images, expected.index))
    places = [group["path"].iloc[0] for _, group in table.groupby("patient")]
    assert main(["predict", str(model), *places, "--threshold", "0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1.00 (1.00-1.00)" in shown
    assert NO_CERTAINTY in shown
    assert main(["predict", str(model), *places[:2]]) == 0
    assert NO_CERTAINTY not in " ".join(capsys.readouterr().out.split())


def test_the_tables_fit_into_eighty_columns(model, images, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["predict", str(model), str(images), "--threshold", "balanced"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "P(malignant)" in shown
    assert "…" not in shown.partition("patients, by")[2]
    for word in ("AUC", "specificity", "patients 48", "images/s"):
        assert word in shown
    assert main(["predict", str(model), str(images), "--threshold", "often"]) == 2
    assert "allowed: balanced" in capsys.readouterr().err


def test_images_that_the_model_was_developed_on_are_counted_beside_the_figures(
    study, model, images, expected, tmp_path, capsys
):
    def told(source, given):
        assert main(["predict", str(source), *given]) == 0
        said = " ".join(capsys.readouterr().out.split())
        return said.partition("specificity")[2]

    test = paths(images, expected.index)
    whole = len(list(images.rglob("*.png")))
    development = sorted({str(each) for each in images.rglob("*.png")} - set(test))
    for source in (study, model, model / folder.ONNX):
        assert f"{whole - len(test):,} of {whole:,} labelled images are development images" in told(
            source, [str(images)]
        )
    assert f"All {len(development)} labelled images are development images" in told(model, development)
    told(model, [str(images), "--out", str(tmp_path / "found.csv")])
    assert pd.read_csv(tmp_path / "found.csv")["development"].sum() == whole - len(test)
    of_all = pd.read_csv(tmp_path / "found-metrics.csv")
    assert of_all["development_images"].iloc[[0, -1]].tolist() == [whole - len(test)] * 2
    assert "development images" not in told(model, test)


@pytest.mark.parametrize("checksums", ["AAAA", "no base64!", 7])
def test_checksums_that_are_none_are_refused(model, checksums):
    plain = {**open_model(str(model)).description.to_plain(), "development": checksums}
    with pytest.raises(UserError, match="Model 'here' does not say how it is used"):
        Description.from_plain(plain, "here")


def test_scores_of_many_images_fit_into_a_terminal():
    each = dict.fromkeys(METRICS, Interval(0.912, 0.812, 0.962))
    measured = pd.DataFrame([{"what": "images", "images": 123_456, "patients": 48, **each}])
    screen = io.StringIO()
    Console(file=screen, width=80).print(commands._scores(measured))
    assert screen.getvalue().count("0.91 (0.81-0.96)") == len(METRICS)
