"""What images `predict` and `explain` are given: each file once, with what its table or its BreakHis name tells."""

import shutil

import pandas as pd
import pytest

from kdtvit_ray.cli import main
from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.inputs import Images
from kdtvit_ray.deliver.predict import check_labels, truth_of
from kdtvit_ray.errors import UserError
from tests.deliver.pictures import picture


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


# -- the same image several times --------------------------------------------------------------------------------------


@pytest.fixture
def deep(tmp_path):
    """Three images in a folder within a folder."""
    for number in range(3):
        picture(tmp_path / f"deep/inner/{number}.png", number)
    return tmp_path / "deep"


@pytest.mark.parametrize(
    "sources",
    [
        ["{deep}/**"],
        ["{deep}", "{deep}/inner"],
        ["{deep}", "{deep}/inner/1.png"],
        ["{deep}/inner/*.png", "{deep}/../deep"],
        ["{deep}", "{link}"],
        ["{deep}", "{table}"],
        ["{zip}", "{zip}"],
        ["{table}", "{table}"],
    ],
    ids=" ".join,
)
def test_an_image_that_several_sources_lead_to_is_one(deep, tmp_path, sources):
    (tmp_path / "link").symlink_to(deep)
    (tmp_path / "t.csv").write_text("path\n" + "".join(f"deep/inner/{number}.png\n" for number in range(3)))
    shutil.make_archive(str(tmp_path / "deep"), "zip", deep)
    places = {"deep": deep, "link": tmp_path / "link", "table": tmp_path / "t.csv", "zip": tmp_path / "deep.zip"}
    images = Images([each.format(**places) for each in sources])
    assert sorted(each.name[-5:] for each in images) == ["0.png", "1.png", "2.png"]
    assert images.total in (3, None)
    assert images.notes == [f"Files that were named again, and count once: {images.repeated}"]
    assert images.findings == []


def test_images_that_are_named_again_are_predicted_once_and_copies_are_told(model, deep, tmp_path, capsys):
    shutil.copytree(deep, tmp_path / "copy")
    out = tmp_path / "found.csv"
    assert main(["predict", str(model), f"{deep}/**", str(tmp_path / "copy"), "--out", str(out)]) == 0
    shown = said(capsys)
    assert len(pd.read_csv(out)) == 6
    assert "Files that were named again, and count once: 6" in shown
    assert "Images with the pixels of an image before them, each of which counts as one of its own: 3 of 6" in shown
    assert main(["predict", str(model), str(deep)]) == 0
    shown = said(capsys)
    assert "named again" not in shown
    assert "an image before them" not in shown
    assert main(["explain", str(model), str(deep), f"{deep}/inner/0.png", "--out", str(tmp_path / "maps")]) == 0
    assert "named again, and count once: 1" in said(capsys)


# -- tables ------------------------------------------------------------------------------------------------------------


def table(place, text):
    (place / "t.csv").write_text(text)
    return Images([str(place / "t.csv")])


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("path,patients", r"unknown column 'patients' \(did you mean 'patient'\?\); allowed: path, and"),
        ("path,path", "has the column 'path' twice; allowed: once"),
        ("path,label,label", "has the column 'label' twice; allowed: once"),
        ("paths,label", r"unknown column 'paths' \(did you mean 'path'\?\)"),
        ("file,label", "has no column 'path'; found: file, label; allowed: path, and if you have them label, subtype"),
    ],
)
def test_columns_that_are_misspelt_doubled_or_missing_are_refused(tmp_path, head, told):
    with pytest.raises(UserError, match=told):
        table(tmp_path, f"{head}\na.png,b,c\n")


def test_other_columns_are_passed_over_and_named(model, tmp_path, capsys):
    picture(tmp_path / "a.png")
    images = table(tmp_path, "path,age,[red]\na.png,50,HE\n")
    assert images.notes == [f"Columns of '{tmp_path / 't.csv'}' that were passed over: age, [red]"]
    for command in ("predict", "explain"):
        out = tmp_path / ("maps" if command == "explain" else "found.csv")
        assert main([command, str(model), str(tmp_path / "t.csv"), "--out", str(out)]) == 0
        assert "that were passed over: age, [red]" in said(capsys)


def test_a_breakhis_name_tells_what_a_table_has_no_column_for(tmp_path):
    name = "in/SOB_M_DC-14-10926-100-001.png"
    (image,) = table(tmp_path, f"path\n{name}\n")
    assert (image.labels, image.patient, image.slide) == (("DC", "malignant"), "14-10926", "M_DC-14-10926")
    assert image.magnification == 100
    (image,) = table(tmp_path, f"path,label,patient,magnification\n{name},benign,,40\n")
    assert (image.labels, image.patient, image.slide) == (("benign",), "", "M_DC-14-10926")
    assert image.magnification == 40
    (image,) = table(tmp_path, f"path,label,patient,magnification\n{name},NA,nan,NA\n")
    assert (image.labels, image.patient, image.magnification) == ((), "", 0)
    (image,) = table(tmp_path, "path,patient\nother.png,p1\n")
    assert (image.labels, image.patient, image.slide, image.magnification) == ((), "p1", "", 0)


def test_whole_numbers_that_a_data_frame_with_gaps_wrote_lose_their_points(tmp_path):
    frame = pd.DataFrame({"path": ["a.png", "b.png"], "label": [0, None], "patient": [90001, None], "slide": [7, None]})
    assert "0.0,90001.0,7.0" in frame.to_csv(index=False)
    images = table(tmp_path, frame.to_csv(index=False))
    assert [(each.labels, each.patient, each.slide) for each in images] == [(("0",), "90001", "7"), ((), "", "")]
    check_labels(images.of_tables, described(["0", "1"], ["1"], ["0", "1"]))


def test_lines_that_cannot_be_used_are_told_with_their_numbers(tmp_path):
    images = table(tmp_path, "path,label\na.png,benign\n,malignant\n./a.png,malignant\nb.png,x,y\nc.png,\n")
    assert [each.name for each in images] == ["a.png", "c.png"]
    assert [(each.where, each.reason) for each in images.findings] == [
        (f"{tmp_path / 't.csv'}, line 3", "path is empty"),
        (f"{tmp_path / 't.csv'}, line 4", "the same file as line 2 (./a.png)"),
        (f"{tmp_path / 't.csv'}, line 5", "3 cells, where the head has 2"),
    ]


@pytest.mark.parametrize("name", ["t.xlsx", "T.ODS"])
def test_a_spreadsheet_is_no_image(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(
        UserError, match=rf"{name}' is a spreadsheet; allowed: a table that is saved as \.csv, \.tsv or"
    ):
        Images([str(tmp_path / name)])


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_does_not_exist(name):
    with pytest.raises(UserError, match="does not exist; allowed: images"):
        Images([name])


# -- labels ------------------------------------------------------------------------------------------------------------


def described(classes, positive, words):
    return Description({}, classes=classes, positive=positive, words=words)


BREAKHIS = described(breakhis().classes, breakhis().positives, breakhis().words)


def test_labels_that_contradict_each_other_are_refused(model, tmp_path, capsys):
    lines = "path,subtype,label\na.png,F,benign\nb.png,{},{}\n"
    for subtype, label in (("A", "malignant"), ("DC", "benign"), ("dc", "Benign")):
        images = table(tmp_path, lines.format(subtype, label))
        with pytest.raises(UserError, match=f"Image 'b.png' has the labels '{subtype}' .* and '{label}' "):
            check_labels(images.of_tables, BREAKHIS)
    for subtype, label in (("DC", "malignant"), ("A", ""), ("", "malignant"), ("other", "benign")):
        check_labels(table(tmp_path, lines.format(subtype, label)).of_tables, BREAKHIS)
    table(tmp_path, lines.format("A", "malignant"))
    assert main(["predict", str(model), str(tmp_path / "t.csv")]) == 2
    assert (
        "Image 'b.png' has the labels 'A' (benign) and 'malignant' (malignant); allowed: a subtype of its label"
        in " ".join(capsys.readouterr().err.split())
    )


@pytest.mark.parametrize(
    ("told", "benign", "malignant"),
    [
        (BREAKHIS, False, True),
        (described(["benign", "malignant"], ["malignant"], ["benign", "malignant"]), False, True),
        (described(["n", "mc", "f"], ["f"], ["benign", "malignant"]), False, True),
        (described(["a", "b", "f", "mc"], ["f", "mc"], ["negative", "positive"]), None, None),
        (described(["f", "dc"], ["f"], ["dc", "f"]), None, None),
    ],
)
def test_what_breakhis_names_tell_is_no_class_of_another_dataset(tmp_path, told, benign, malignant):
    names = ["SOB_B_F-14-25197-40-001.png", "SOB_M_MC-14-10926-40-001.png"]
    files = Images([str(picture(tmp_path / name)) for name in names])
    lines = table(tmp_path, "path\n" + "\n".join(names))
    check_labels(lines.of_tables, told)
    for images in (files, lines):
        assert [truth_of(each, told) for each in images] == [benign, malignant]
