"""The command `explain`: a PNG for each slide whatever the files are called, maps of a study's test images, and the
report that shows them."""

import io
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtvit_ray.cli import main
from kdtvit_ray.deliver import explain_study, overlays
from kdtvit_ray.deliver.explain import MOST, explain
from kdtvit_ray.deliver.inputs import Images
from kdtvit_ray.deliver.maps import Maps
from kdtvit_ray.deliver.model import open_model
from kdtvit_ray.deliver.overlays import Pane, file_name, gradient_over, rollout_over, slide_png
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.report import chain_sections
from kdtvit_ray.report.document import Document, Section, Text, Thumbnails
from kdtvit_ray.report.explanation_maps import explained
from kdtvit_ray.report.html import page
from kdtvit_ray.results import explanations
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.study import load
from tests.deliver.pictures import names, picture

HOSTILE = (
    "a $x_1$ b",
    "$\\frac{",
    "<b>&amp;",
    "[red]bold[/]",
    "\u7d44\u7e54",
    "-",
    "x..png",
    " spaced  out ",
    "a\nline",
    "50%",
)


@pytest.fixture(scope="module")
def opened(study):
    return open_model(str(study))


def panes_of(monkeypatch):
    """What the slides that are drawn from now on hold: (slide, panes)."""
    seen = []

    def drawn(slide, model, words, panes):
        seen.append((slide, list(panes)))
        return b"png"

    monkeypatch.setattr("kdtvit_ray.deliver.explain.slide_png", drawn)
    return seen


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(model, tmp_path, monkeypatch):
    monkeypatch.setattr("kdtvit_ray.deliver.explain.pixels_of", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(UserError, match=r"^Cannot write maps to '/proc/maps': "):
        explain(open_model(str(model)), Images([str(picture(tmp_path / "a.png"))]), "/proc/maps")


def test_a_slide_is_one_png_with_its_magnifications_side_by_side(opened, tmp_path, monkeypatch):
    for magnification in (400, 40, 100):
        picture(tmp_path / f"in/deep/SOB_M_DC-14-10926-{magnification}-001.png")
    picture(tmp_path / "in/SOB_B_F-14-25197-40-023.png", 1)
    picture(tmp_path / "in/mine.PNG", 2)
    (tmp_path / "in/notes.txt").write_text("no image")
    seen = panes_of(monkeypatch)
    made = explain(opened, Images([str(tmp_path / "in")]), str(tmp_path / "out"))
    assert [name for name, _ in seen] == ["mine", "B_F-14-25197", "M_DC-14-10926"]
    assert sorted(each.magnification for each in seen[2][1]) == [40, 100, 400]
    assert seen[0][1][0].magnification is None
    assert [each.truth for _, panes in seen for each in panes[:1]] == [
        "true class not known",
        "true class: F, benign",
        "true class: DC, malignant",
    ]
    assert [Path(each).name for each in made.files] == [
        "mine-maps.png",
        "B_F-14-25197-maps.png",
        "M_DC-14-10926-maps.png",
    ]
    assert names(tmp_path / "out") == sorted(Path(each).name for each in made.files)
    told = opened.description
    pixels = told.pixels((tmp_path / "in/mine.PNG").read_bytes())
    share = told.positive_probability(opened.probabilities(pixels[None]))[0]
    assert seen[0][1][0].told == f"malignant: {share:.2f}"


def test_an_image_that_is_named_twice_is_shown_once(opened, tmp_path, monkeypatch):
    picture(tmp_path / "a/SOB_M_DC-14-10926-40-001.png")
    picture(tmp_path / "b/SOB_M_DC-14-10926-40-001.png")
    for each in ("a/x.png", "b/x.png"):  # may be two images
        picture(tmp_path / each)
    seen = panes_of(monkeypatch)
    made = explain(opened, Images([str(tmp_path), str(tmp_path / "a/x.png")]), str(tmp_path / "out"))
    assert [(name, len(panes), panes[0].count) for name, panes in seen] == [("x", 1, 1)] * 2 + [("M_DC-14-10926", 1, 1)]
    assert made.left_out == 0
    assert len(set(made.files)) == 3


def test_a_table_tells_slide_magnification_and_class(opened, tmp_path, monkeypatch):
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("path,label,slide,magnification\na.png,malignant,s1,20\nb.png,benign,s1,5\n")
    seen = panes_of(monkeypatch)
    explain(opened, Images([str(tmp_path / "t.csv")]), str(tmp_path / "out"))
    ((slide, panes),) = seen
    assert slide == "s1"
    assert [(each.magnification, each.truth) for each in panes] == [
        (20, "true class: malignant"),
        (5, "true class: benign"),
    ]


def test_images_of_a_slide_may_have_the_same_name_in_several_folders(opened, tmp_path, monkeypatch):
    lines = [f"{at}X/001.png,p1,s1,{at}" for at in (40, 100, 400)]
    for seed, line in enumerate(lines):
        picture(tmp_path / line.partition(",")[0], seed)
    (tmp_path / "t.csv").write_text("\n".join(["path,patient,slide,magnification", *lines]))
    seen = panes_of(monkeypatch)
    made = explain(opened, Images([str(tmp_path / "t.csv")]), str(tmp_path / "out"))
    assert [(slide, sorted(each.magnification for each in panes)) for slide, panes in seen] == [("s1", [40, 100, 400])]
    assert made.left_out == 0


def test_a_slide_is_one_of_a_patient_and_a_patient_without_slides_is_one(opened, tmp_path, monkeypatch):
    lines = ["a,p1,s1", "b,p2,s1", "c,p2,s2", "d,p3,", "e,p3,", "f,,", "g,,"]
    for seed, line in enumerate(lines):
        picture(tmp_path / f"{line[0]}.png", seed)
    (tmp_path / "t.csv").write_text("path,patient,slide\n" + "".join(f"{line[0]}.png{line[1:]}\n" for line in lines))
    seen = panes_of(monkeypatch)
    made = explain(opened, Images([str(tmp_path / "t.csv")]), str(tmp_path / "out"))
    shown = {slide: "".join(each.name for each in panes) for slide, panes in seen}
    assert shown == {"p1 s1": "a", "p2 s1": "b", "s2": "c", "p3": "de", "f": "f", "g": "g"}
    assert len(set(made.files)) == len(seen)


def test_a_class_that_the_model_does_not_know_is_no_truth(opened, tmp_path, monkeypatch):
    from dataclasses import replace

    path = picture(tmp_path / "SOB_M_DC-14-10926-40-001.png")
    monkeypatch.setattr(
        opened,
        "description",
        replace(opened.description, words=["normal", "tumour"], classes=["n", "t"], positive=["t"]),
    )
    seen = panes_of(monkeypatch)
    explain(opened, Images([str(path)]), str(tmp_path / "out"))
    assert seen[0][1][0].truth == "true class not known"
    assert seen[0][1][0].told.startswith("tumour: ")


def test_more_images_than_fit_are_counted_and_unreadable_ones_make_room(opened, tmp_path, monkeypatch):
    for number in range(MOST + 3):
        picture(tmp_path / f"SOB_M_DC-14-10926-40-{number:03d}.png", number)
    (tmp_path / "SOB_M_DC-14-10926-40-000.png").write_bytes(b"no image")
    seen = panes_of(monkeypatch)
    made = explain(opened, Images([str(tmp_path)]), str(tmp_path / "out"))
    assert [each.name[-3:] for each in seen[0][1]] == ["001", "002", "003", "004"]
    assert seen[0][1][0].count == MOST + 2
    assert made.left_out == 2
    assert [Path(each.where).name for each in made.unreadable] == ["SOB_M_DC-14-10926-40-000.png"]


def test_hostile_names_stay_in_the_folder_and_are_no_markup(opened, tmp_path, capsys, study):
    for number, name in enumerate(HOSTILE):
        picture(tmp_path / "in" / f"{name}.png", number)
    (tmp_path / "in" / os.fsdecode(b"\xff[x].png")).write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        code = main(["explain", str(study), str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert code == 1
    *written, count, unreadable = capsys.readouterr().out.splitlines()
    assert count == "1 could not be read:"
    assert "[x].png: no image" in unreadable
    made = names(tmp_path / "out")
    assert len(made) == len(HOSTILE)
    assert all(each.isascii() and each.endswith("-maps.png") and each[0] not in ".-" for each in made)
    assert sorted(Path(line).name for line in written) == made
    assert names(tmp_path) == ["in", "out"]
    assert Image.open(tmp_path / "out" / made[0]).format == "PNG"


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("../../etc/passwd", "etc_passwd-maps.png"),
        ("/root/x", "root_x-maps.png"),
        ("..", "image-maps.png"),
        ("", "image-maps.png"),
        ("M_DC-14-10926", "M_DC-14-10926-maps.png"),
        ("a\\b:c", "a_b_c-maps.png"),
        ("x" * 300, "x" * 80 + "-maps.png"),
    ],
)
def test_file_names_are_safe(name, made):
    assert file_name(name, set()) == made


def test_file_names_differ_where_slides_do():
    taken: set[str] = set()
    assert [file_name(each, taken) for each in ("Slide", "slide", "sl?ide", "sl*ide")] == [
        "Slide-maps.png",
        "slide-2-maps.png",
        "sl_ide-maps.png",
        "sl_ide-2-maps.png",
    ]


def test_no_given_image_is_overwritten(opened, tmp_path):
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "a-maps.png", 1)
    victim = picture(tmp_path / "elsewhere/victim.png", 2)
    (tmp_path / "a-2-maps.png").symlink_to(victim)
    before = [each.read_bytes() for each in (first, second, victim)]
    made = explain(opened, Images([str(first), str(second)]), str(tmp_path))
    assert [each.read_bytes() for each in (first, second, victim)] == before
    assert [Path(each).name for each in made.files] == ["a-3-maps.png", "a-maps-maps.png"]
    again = explain(opened, Images([str(first), str(second)]), str(tmp_path))
    assert again.files == made.files, "its own PNGs are replaced"


def test_the_same_images_give_the_same_bytes(opened, tmp_path):
    path = picture(tmp_path / "SOB_M_DC-14-10926-40-001.png")
    one, other = (explain(opened, Images([str(path)]), str(tmp_path / name)).files[0] for name in ("one", "other"))
    assert Path(one).read_bytes() == Path(other).read_bytes()


def test_mistakes_are_one_sentence(study, model, tmp_path, capsys):
    def told(*arguments):
        assert main(["explain", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").write_text("x")
    image = picture(tmp_path / "a.png")
    assert "holds no images" in told(study, empty)
    assert "'nowhere.png' does not exist" in told(study, "nowhere.png")
    assert "is a file; choose a folder" in told(study, image, "--out", tmp_path / "file")
    assert "exported model, which has no test images" in told(model)
    assert "--data is for a study's test images" in told(study, image, "--data", tmp_path)
    assert "maps of a study's test images lie in the study" in told(study, "--out", tmp_path)
    assert "ONNX does not give; allowed: a study" in told(model / "model.onnx", image)


# -- overlays ----------------------------------------------------------------------------------------------------------


def test_overlays_colour_by_the_map_alone_and_symmetrically():
    white = np.full((2, 2, 3), 255, np.uint8)
    most, least = rollout_over(white, np.array([[0.0, 1.0], [2.0, 1.0]]))[[1, 0], [0, 0]].astype(int)
    assert most[0] > least[0]  # yellow has more red than viridis' dark blue
    assert most[1] > least[1]
    for_, none, against = gradient_over(white, np.array([[1.0, 0.0], [-1.0, 0.0]]))[[0, 0, 1], [0, 1, 0]].astype(int)
    assert for_[0] > for_[2]  # brown
    assert against[2] > against[0]  # purple
    assert (none == 255).all()  # the image shows through
    tinted = np.array([[[200, 0, 0], [0, 200, 0]]], np.uint8)
    grey = gradient_over(tinted, np.zeros((1, 2)))
    assert (grey == grey[:, :, :1]).all()  # without its stain
    assert rollout_over(white, np.ones((2, 2))).shape == (2, 2, 3)  # a map without any contrast


def test_a_slide_says_what_it_shows(monkeypatch):
    written = []
    plain = overlays.Axes.text
    monkeypatch.setattr(
        overlays.Axes, "text", lambda self, x, y, text, **how: (written.append(text), plain(self, x, y, text, **how))[1]
    )
    flat, map_ = np.full((8, 8), 1.02, np.float32), np.linspace(-0.5, 0.25, 64).reshape(8, 8)
    pixels = np.zeros((8, 8, 3), np.uint8)
    panes = [
        Pane("second", None, "malignant: 0.12", "", pixels, Maps(flat * 2, map_)),
        Pane("first", 40, "malignant: 0.91", "true class: DC, malignant", pixels, Maps(flat, map_), 9),
    ]
    png = slide_png("M_DC-$1", "model t0003 of study a", ["benign", "malignant"], panes)
    assert Image.open(io.BytesIO(png)).format == "PNG"
    assert {"M_DC-$1", "40X (1 of 9)", "magnification unknown", "first", "malignant: 0.91"} <= set(written)
    assert {"attention\nrollout", "gradient \u00d7\nactivation", "towards benign", "towards malignant"} <= set(written)
    assert written.index("40X (1 of 9)") < written.index("magnification unknown"), "the smallest magnification is first"
    assert "1.02 to 1.02 times the mean: nearly even" in written
    assert "2.04 to 2.04 times the mean" in written
    assert "up to \u00b10.5 log odds for each patch" in written
    assert "Maps show where the output is sensitive, not why it is right." in " ".join(written)


# -- a study's test images, and its report -----------------------------------------------------------------------------


@pytest.fixture
def own(study, tmp_path):
    """A copy of the trained study."""
    return shutil.copytree(study, tmp_path / "study")


def explained_of(folder):
    section = Section("errors", "Errors")
    explained(Findings(load(str(folder)), 50), section)
    return section


def test_a_studys_surest_test_images_are_explained(own, capsys):
    assert main(["explain", str(own)]) == 0
    lines = capsys.readouterr().out.split("\n")[:-1]
    found = explanations.read(StudyFolder(str(own)))
    assert lines == [str(own / "explanations" / each.file) for each in found.images]
    chosen = load(str(own))
    from kdtvit_ray.results.models import best

    assert (found.trial, found.stage) == (best(chosen).trial, best(chosen).keys[-1])
    test = chosen.predictions(found.stage)
    test = test[test["split"] == "test"].set_index("name")
    for right in (True, False):
        group = [each for each in found.images if each.right == right]
        called = (test["probability"] >= 0.5) == test["malignant"]
        part = test[called == right]
        confidence = np.maximum(part["probability"], 1 - part["probability"])
        assert len(group) == min(3, len(part))
        assert [part.loc[each.name, "probability"] for each in group] == [each.probability for each in group]
        assert sorted(confidence[each.name] for each in group) == sorted(confidence)[-3:]
        assert all(bool(part.loc[each.name, "malignant"]) == each.positive for each in group)
    for each in found.images:
        with Image.open(own / "explanations" / each.file) as strip:
            assert strip.size == (3 * explain_study.SIDE + 8, explain_study.SIDE)


def test_another_trials_maps_replace_them_and_the_report_says_so(own):
    explain_study.explain_study(str(own))
    (own / "explanations/mine.png").write_bytes(b"mine")
    explain_study.explain_study(str(own), "joint")
    found = explanations.read(StudyFolder(str(own)))
    assert found.trial == "joint"
    there = set(names(own / "explanations"))
    assert there == {each.file for each in found.images} | {"explanations.json", "mine.png"}
    (told,) = explained_of(own).blocks
    assert isinstance(told, Text)
    assert "are those of another model, joint" in told.text


def test_the_report_shows_the_maps(own):
    assert explained_of(own).blocks == []
    explain_study.explain_study(str(own))
    about = own / "explanations/explanations.json"
    plain = json.loads(about.read_text())
    plain["images"][0]["name"] = "<script>$x$"
    about.write_text(json.dumps(plain))
    (own / "explanations" / plain["images"][1]["file"]).write_bytes(b"no image")
    section = chain_sections.errors(Findings(load(str(own)), 50))
    shown = [each for each in section.blocks if isinstance(each, Thumbnails) and each.wide]
    assert len(shown) == 1
    assert [each.title for each in shown[0].items] == [
        each["name"] for place, each in enumerate(plain["images"]) if place != 1
    ]
    assert all(Image.open(io.BytesIO(each.data)).format == "JPEG" for each in shown[0].items)
    first = plain["images"][0]
    assert shown[0].items[0].text.startswith(f"{first['magnification']}X, right: is {first['class_name']}, ")
    assert shown[0].items[0].text.endswith(f"; P(malignant) {first['probability']:.2f}")
    text = page(Document("title", "", [], [section]))
    assert text.count('<div class="thumbs wide">') == 1
    assert "&lt;script&gt;$x$" in text
    assert "not why it is right" in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version": 99}',
        b'{"version": 1, "trial": "t", "stage": "s", "images": [{"file": "../x"}]}',
    ],
)
def test_a_damaged_list_of_maps_is_left_out(own, content):
    (own / "explanations").mkdir()
    (own / "explanations/explanations.json").write_bytes(content)
    assert explanations.read(StudyFolder(str(own))) is None
    assert explained_of(own).blocks == []


def test_a_png_outside_of_the_folder_is_not_read(own):
    explain_study.explain_study(str(own))
    about = own / "explanations/explanations.json"
    plain = json.loads(about.read_text())
    plain["images"][0]["file"] = "../../x.png"
    about.write_text(json.dumps(plain))
    assert explanations.read(StudyFolder(str(own))) is None


def test_the_end_of_a_sweep_makes_maps_once_and_never_fails(own, monkeypatch, capsys):
    from kdtvit_ray import cli

    console = cli._console()
    cli._explain_test_images(str(own), console)
    first = (own / "explanations/explanations.json").stat().st_mtime_ns
    cli._explain_test_images(str(own), console)
    assert (own / "explanations/explanations.json").stat().st_mtime_ns == first
    assert capsys.readouterr().out == ""
    shutil.rmtree(own / "explanations")
    monkeypatch.setattr(explain_study, "_explained", lambda *_, **__: 1 / 0)
    cli._explain_test_images(str(own), console)
    assert capsys.readouterr().out == "The report shows no maps of test images: division by zero\n"
    assert not (own / "explanations").exists()


def test_a_study_whose_prepared_set_is_away_has_no_maps(own, data, tmp_path, capsys):
    text = (own / "study.toml").read_text()
    assert str(data) in text
    (own / "study.toml").write_text(text.replace(str(data), str(tmp_path / "away")))
    explain_study.explain_if_new(str(own))
    assert not (own / "explanations").exists()
    with pytest.raises(UserError, match=r"is not at '.*away'; say with --data where it lies, or name images"):
        explain_study.explain_study(str(own))
    assert main(["explain", str(own), "--data", str(data)]) == 0
    assert (own / "explanations/explanations.json").is_file()


def test_a_study_without_a_finished_trial_has_no_maps(own):
    for each in (own / "trials").iterdir():
        each.unlink()
    explain_study.explain_if_new(str(own))
    assert not (own / "explanations").exists()
