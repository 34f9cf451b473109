"""Tables and folders of images: what they make, and that every mistake in them is told at once and by name."""

import csv
import os
import re
import tarfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from kdtvit_ray.data.findings import Refused
from kdtvit_ray.data.sources import manifest, scan
from kdtvit_ray.data.sources.breakhis import breakhis, official_census
from kdtvit_ray.data.sources.folder import compiled
from kdtvit_ray.data.sources.labelled import as_number, as_read
from kdtvit_ray.errors import UserError

HEAD = ["path", "label", "magnification", "patient"]
ROWS = [
    ["a/1.png", "benign", "40", "p1"],
    ["a/2.JPG", "malignant", "40X", "p2"],
    ["b/3.tif", "benign", "100x", "p1"],
    ["b/4.bmp", "malignant", "100", "p2"],
]


def images(root: Path, *paths: str) -> Path:
    for seed, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / path)
    return root


def table(root: Path, rows=ROWS, head=HEAD, name="set.csv", draw=True, **options) -> Path:
    if draw:
        images(root, *(row[0] for row in ROWS))
    with (root / name).open("w", newline="") as file:
        csv.writer(file, **options).writerows([head, *rows])
    return root / name


def changed(row: int, **cells: str) -> list[list[str]]:
    made = [list(each) for each in ROWS]
    for name, value in cells.items():
        made[row][HEAD.index(name)] = value
    return made


def unnormalised(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def told(source: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        scan(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- tables


def test_a_table_is_its_images_and_their_dataset(tmp_path):
    found = scan(table(tmp_path))
    assert found.dataset.to_plain() == {
        "name": "set",
        "source": "manifest",
        "magnifications": [40, 100],
        "classes": ["benign", "malignant"],
        "positives": ["malignant"],
        "negative": "benign",
        "positive": "malignant",
        "folds": 0,
    }
    assert [(each.name, each.label, each.magnification, each.id, each.stem, each.slide) for each in found.images] == [
        ("a/1", "benign", 40, "p1", "p1", "p1"),
        ("a/2", "malignant", 40, "p2", "p2", "p2"),
        ("b/3", "benign", 100, "p1", "p1", "p1"),
        ("b/4", "malignant", 100, "p2", "p2", "p2"),
    ]
    contents = {found.images[at].path: read() for at, read in found.contents()}
    assert contents == {row[0]: (tmp_path / row[0]).read_bytes() for row in ROWS}


@pytest.mark.parametrize(
    ("name", "options"), [("a.tsv", {"delimiter": "\t"}), ("a.csv", {"delimiter": ";"}), ("a.CSV", {})]
)
def test_tables_of_other_kinds_are_the_same_set(tmp_path, name, options):
    source = table(tmp_path, name=name, **options)
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes().replace(b"path", b" Path ", 1) + b"\r\n\r\n")
    assert scan(source).images == scan(table(tmp_path, draw=False)).images
    source.write_bytes(source.read_bytes().replace(b"\r\n", b"\r"))
    assert scan(source).images == scan(table(tmp_path, draw=False)).images


@pytest.mark.parametrize(
    ("name", "delimiter", "before"),
    [
        ("a.csv", "\t", ""),
        ("a.csv", "|", ""),
        ("a.tsv", ",", ""),
        ("a.csv", ";", "sep=;\r\n"),
        ("a.csv", ";", '"sep=;"\n'),
        ("a.csv", "\t", "sep=\t\n"),
        ("a.csv", ";", "\n"),
        ("a.csv", ";", ";;;;\r\n"),
    ],
)
def test_what_stands_between_the_cells_is_found_in_the_head(tmp_path, name, delimiter, before):
    head, rows = [*HEAD, "a, b, c, d, e, f"], [[*row, "1"] for row in ROWS]
    source = table(tmp_path, rows, head, name=name, delimiter=delimiter)
    source.write_text(before + source.read_text())
    assert scan(source).images == scan(table(tmp_path, draw=False)).images
    source.write_text(source.read_text().replace("malignant", ""))
    assert f"line {3 + bool(before)}: label is empty" in told(source)


def test_a_table_of_paths_alone_may_have_commas_in_them_where_tabs_are_meant(tmp_path):
    (tmp_path / "a.tsv").write_text("path\na,b.png\n")
    assert manifest.read(tmp_path / "a.tsv") == (["path"], [(2, ["a,b.png"])])


@pytest.mark.parametrize("word", ["NA", "nan", "<NA>", "#N/A", "None"])
def test_what_says_that_a_value_is_missing_is_no_word(tmp_path, word):
    head = [*HEAD, "slide", "fold"]
    rows = [[*row, slide, fold] for row, slide, fold in zip(ROWS, [word, "s2"] * 2, [word, "1"] * 2, strict=True)]
    found = scan(table(tmp_path, rows, head))
    assert [each.slide for each in found.images] == ["p1", "s2", "p1", "s2"]
    assert dict(found.dataset.test_in_fold) == {"s2": (1,)}
    missing = f"('{word}' says that a value is missing: write another word)"
    for column in ("label", "patient"):
        assert f"line 2: {column} is empty {missing}" in told(table(tmp_path, changed(0, **{column: word}), draw=False))
    both = table(tmp_path, changed(0, label=word, patient=""), draw=False)
    assert f"line 2: label and patient are empty {missing}" in told(both)
    (tmp_path / word).parent.mkdir(exist_ok=True)
    (tmp_path / ROWS[0][0]).rename(tmp_path / word)
    assert len(scan(table(tmp_path, changed(0, path=word), draw=False)).images) == 4


def test_a_parquet_table_is_the_same_set(tmp_path):
    source = table(tmp_path)
    frame = pd.read_csv(source).assign(magnification=[40.0, 40.0, 100.0, 100.0], slide=[None, "s2", None, "s2"])
    frame.to_parquet(tmp_path / "set.parquet")
    found = scan(tmp_path / "set.parquet")
    assert [each.slide for each in found.images] == ["p1", "s2", "p1", "s2"]
    assert found.dataset.magnifications == (40, 100)


def test_subtypes_are_the_classes_and_labels_their_sides(tmp_path):
    rows = [[*row, subtype] for row, subtype in zip(ROWS, ["F", "MC", "A", "DC"], strict=True)]
    found = scan(table(tmp_path, rows, [*HEAD, "subtype"]))
    assert found.dataset.classes == ("A", "F", "DC", "MC")
    assert found.dataset.positives == ("DC", "MC")
    assert found.dataset.words == ("benign", "malignant")
    rows[2][-1] = "MC"
    assert told(table(tmp_path, rows, [*HEAD, "subtype"], draw=False)) == (
        f"1 finding in the 4 lines of '{tmp_path / 'set.csv'}': subtype MC: more than one label: "
        "malignant (1, first line 3), benign (1, first line 4)"
    )


def test_labels_are_positive_as_everybody_knows_or_as_the_user_says(tmp_path):
    source = table(tmp_path, [[path, str(int(label == "malignant")), *rest] for path, label, *rest in ROWS])
    assert scan(source).dataset.positives == ("1",)
    assert scan(source, positive=["0"]).dataset.classes == ("1", "0")
    assert scan(source, positive=["0.0"]).dataset.classes == ("1", "0")
    three = table(tmp_path, changed(0, label="normal"), draw=False)
    assert "name those that count as positive with --positive LABEL" in told(three)
    assert scan(three, positive=["malignant", "benign"]).dataset.classes == ("normal", "benign", "malignant")
    assert told(three, positive=["malign"]) == (
        "--positive: Unknown label 'malign' (did you mean 'malignant'?); allowed: benign, malignant, normal"
    )
    assert "--positive names all labels" in told(three, positive=["malignant", "benign", "normal"])
    one = table(tmp_path, [[row[0], "benign", *row[2:]] for row in ROWS], draw=False)
    assert "have the label 'benign'; allowed: one negative and one positive at least" in told(one)


COMMAS = ("carcinoma", "carcinoma, NOS", "NOS", "ductal")


@pytest.mark.parametrize(
    ("positive", "chosen"),
    [
        (["carcinoma, NOS"], {"carcinoma, NOS"}),
        ([" carcinoma, NOS "], {"carcinoma, NOS"}),
        (["carcinoma,NOS"], {"carcinoma", "NOS"}),
        (["ductal, NOS"], {"ductal", "NOS"}),
        (["carcinoma, NOS", "ductal"], {"carcinoma, NOS", "ductal"}),
    ],
)
def test_a_positive_label_may_have_commas(tmp_path, positive, chosen):
    rows = [[row[0], label, *row[2:]] for row, label in zip(ROWS, COMMAS, strict=True)]
    assert set(scan(table(tmp_path, rows), positive=positive).dataset.positives) == chosen


def test_part_of_a_label_with_commas_is_no_label(tmp_path):
    rows = [[row[0], label, *row[2:]] for row, label in zip(ROWS, ("carcinoma, NOS", "a", "b", "c"), strict=True)]
    assert "Unknown label 'carcinoma'" in told(table(tmp_path, rows), positive=["carcinoma, a"])


def test_official_folds_are_those_of_a_slide(tmp_path):
    head = [*HEAD, "slide", "fold"]
    rows = [[*row, slide, fold] for row, slide, fold in zip(ROWS, "xyxy", ["1;2", "3", "2 | 1", "3.0"], strict=True)]
    found = scan(table(tmp_path, rows, head))
    assert (found.dataset.folds, dict(found.dataset.test_in_fold)) == (3, {"x": (1, 2), "y": (3,)})
    rows[0][-1] = ""
    assert "slide x: more than one fold: none (1, first line 2), 1;2 (1, first line 4)" in told(
        table(tmp_path, rows, head)
    )
    rows[0][-1], rows[1][-1], rows[3][-1] = "1;2", "4", "4"
    assert "folds up to 4, but nothing is tested in fold 3" in told(table(tmp_path, rows, head))
    rows = [[*row, slide, fold] for row, slide, fold in zip(ROWS, "xyxy", ["2", "3", "2", "3"], strict=True)]
    assert "folds up to 3, but nothing is tested in fold 1" in told(table(tmp_path, rows, head))
    for wrong in ("0", "test", "-1"):
        rows[1][-1] = wrong
        assert f"line 3: '{wrong}' is no fold; allowed: the number from 1 on" in told(table(tmp_path, rows, head))


def test_a_patient_without_slides_has_no_name_of_another_patients_slide(tmp_path):
    # the official folds go by slide: those of the slide p1 would be those of patient p1 too
    head = [*HEAD, "slide", "fold"]
    rows = [
        [*row, slide, fold] for row, slide, fold in zip(ROWS, ["", "p1", "", "p1"], ["", "1", "", "1"], strict=True)
    ]
    message = told(table(tmp_path, rows, head))
    assert "slide p1: more than one patient: p1 (2, first line 2), p2 (2, first line 3)" in message
    assert "slide p1: more than one fold: none (2, first line 2), 1 (2, first line 3)" in message
    rows[1][4] = rows[3][4] = "s1"
    assert dict(scan(table(tmp_path, rows, head)).dataset.test_in_fold) == {"s1": (1,)}
    rows[0][5] = "1"
    assert "patient p1: more than one fold: 1 (1, first line 2), none (1, first line 4)" in told(
        table(tmp_path, rows, head)
    )


@pytest.mark.parametrize(
    ("column", "one", "other", "words"),
    [
        ("patient", "p1", "P1", "'p1' (1, first line 2), 'P1' (1, first line 4)"),
        ("patient", "p 1", "p  1", "'p 1' (1, first line 2), 'p  1' (1, first line 4)"),
        ("patient", "p 1", "p\xa01", r"'p 1' (1, first line 2), 'p\xa01' (1, first line 4)"),
        ("patient", "p1", "p\u200b1", r"'p1' (1, first line 2), 'p\u200b1' (1, first line 4)"),
        ("patient", "Mu\u0308ller", "M\xfcller", r"'Mu\u0308ller' (1, first line 2), 'M\xfcller' (1, first line 4)"),
        ("slide", "s1", "S1", "'s1' (1, first line 2), 'S1' (1, first line 4)"),
        ("label", "benign", "Benign", "'benign' (1, first line 2), 'Benign' (1, first line 4)"),
        ("subtype", "TA", "ta", "'TA' (1, first line 2), 'ta' (1, first line 4)"),
    ],
)
def test_one_name_in_two_spellings_is_told(tmp_path, column, one, other, words):
    head = HEAD if column in HEAD else [*HEAD, column]
    rows = [[*row, *(["x"] if column not in HEAD else [])] for row in ROWS]
    rows[0][head.index(column)], rows[2][head.index(column)] = one, other
    assert f"{column} {one}: more than one spelling: {words}; write it in one way" in told(table(tmp_path, rows, head))


def test_folders_of_one_patient_in_two_spellings_are_told(tmp_path):
    images(tmp_path, "40X/benign/p1/a.png", "100X/benign/P1/b.png", "40X/malignant/p2/c.png", "100X/malignant/p2/d.png")
    assert told(tmp_path).endswith(
        ": patient P1: more than one spelling: 'P1' (1, first 100X/benign/P1/b.png), "
        "'p1' (1, first 40X/benign/p1/a.png); write it in one way"
    )


@settings(deadline=None)
@given(st.text(), st.sampled_from([str.upper, str.lower, str.title, lambda text: f" {text}\xa0", unnormalised]))
def test_names_are_alike_whatever_their_capitals_blanks_and_composition(name, written):
    assume(as_read(name.upper()) == as_read(name.lower()))  # not so for a few letters, such as the dotless i
    assert as_read(written(name)) == as_read(name)
    assert as_read(f"{name}1") != as_read(f"{name}2")


@pytest.mark.parametrize("column", ["patient", "slide"])
@pytest.mark.parametrize(("one", "other"), [("7", "007"), ("12", "12.0"), ("0", "000"), ("\uff17", "7.00")])
def test_a_number_in_two_spellings_is_told(tmp_path, column, one, other):
    head = [*HEAD, "slide"]
    rows = [[*row, f"s{at}"] for at, row in enumerate(ROWS)]
    rows[0][head.index(column)], rows[2][head.index(column)] = one, other
    words = f"'{one}' (1, first line 2), '{other}' (1, first line 4)"
    assert f"{column} {one}: more than one spelling: {words}; write it in one way" in told(table(tmp_path, rows, head))


@pytest.mark.parametrize(
    ("one", "other"), [("7", "70"), ("7", "0.7"), ("7", "7.5"), ("7", "p07"), ("1", "1-0"), ("0", "o")]
)
def test_other_numbers_are_other_patients(tmp_path, one, other):
    rows = changed(0, patient=one)
    rows[2][3] = other
    assert {each.id for each in scan(table(tmp_path, rows)).images} == {one, other, "p2"}


@settings(deadline=None)
@given(st.integers(0), st.integers(0, 5), st.integers(0, 5))
def test_a_number_is_the_same_whatever_its_zeros(number, before, behind):
    assert as_number("0" * before + str(number) + "." * bool(behind) + "0" * behind) == str(number)


def test_no_two_names_of_breakhis_are_alike():
    slides = official_census()["slides"]
    for names in (slides, {each.partition("-")[2] for each in slides}, breakhis().classes):
        assert len({as_read(each) for each in names}) == len(names)


def test_a_patient_of_both_sides_is_kept_and_told(tmp_path):
    found = scan(table(tmp_path, changed(3, patient="p1")))
    assert found.notes == [
        "Patients with benign and malignant images: 1 of 2 (p1); where patients are counted, they count as malignant"
    ]


def test_names_are_plain_and_unique(tmp_path):
    rows = [
        ["c d/ä.png", *ROWS[0][1:]],
        ["c d/ö.png", *ROWS[1][1:]],
        ["a/1.tif", *ROWS[2][1:]],
        ["a/1.png", *ROWS[3][1:]],
    ]
    images(tmp_path, *(row[0] for row in rows))
    names = [each.name for each in scan(table(tmp_path, rows, draw=False)).images]
    assert len(set(names)) == 4
    assert {"a/1", "a/1.tif", "c_d/_"} < set(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._/-]+", each) for each in names)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (["path", "label", "magnificaton", "patient"], "unknown column 'magnificaton' (did you mean 'magnification'?)"),
        (["file path", "label", "magnification", "patient"], "unknown column 'file path' (did you mean 'path'?)"),
        (["path", "lebal", "magnification", "patient"], "unknown column 'lebal' (did you mean 'label'?)"),
        ([*HEAD, "subtypes"], "unknown column 'subtypes' (did you mean 'subtype'?)"),
        (
            ["path", "label", "magnification", "x"],
            "has no column 'patient'; found: path, label, magnification, x; allowed",
        ),
        ([*HEAD, "label"], "has the column 'label' twice"),
        ([], "has no column 'path' and no column 'label' and"),
    ],
)
def test_a_column_that_is_missing_or_misspelt_is_named(tmp_path, head, message):
    rows = [[*row, "1"][: len(head)] for row in ROWS]
    assert message in told(table(tmp_path, rows, head))


def test_columns_of_the_users_own_are_passed_over_and_told(tmp_path):
    found = scan(table(tmp_path, [[*row, "61"] for row in ROWS], [*HEAD, "age"]))
    assert found.notes == ["Columns of the table that were passed over: age"]


def test_a_path_that_no_file_can_have_is_a_bad_line(tmp_path):
    images(tmp_path, *(row[0] for row in ROWS))
    rows = [*ROWS, ["a\0.png", "benign", "40", "p1"]]
    assert told(table(tmp_path, rows, draw=False)).endswith(
        r"in the 5 lines of '%s': line 6: no file can have the name 'a\x00.png'" % (tmp_path / "set.csv")
    )


@pytest.mark.parametrize("column", ["label", "patient"])
def test_a_word_with_a_line_break_is_a_bad_line(tmp_path, column):
    assert (
        f"line 3: {column} 'p\\nb0' has a line break or another control character; allowed: text of one line"
        in told(table(tmp_path, changed(0, **{column: "p\nb0"})))
    )


def test_folders_without_a_name_are_told(tmp_path):
    images(tmp_path, *LAYOUT, "40X/benign/ /e.png", "100X/ /p4/f.png", "40X/benign/p\n5/g.png")
    message = told(tmp_path)
    assert "40X/benign/ /e.png: patient is empty" in message
    assert "100X/ /p4/f.png: label is empty" in message
    assert r"40X/benign/p\n5/g.png: patient 'p\n5' has a line break or another control character" in message


def test_a_column_of_floats_is_one_of_whole_numbers(tmp_path):
    rows = [[*row, "fold"] for row in ROWS]
    for row, label, subtype in zip(rows, ("0.0", "1.0", "0.0", "1.00"), ("3.0", "4.5", "3.0", "4.5"), strict=True):
        row[1], row[4] = label, subtype
    found = scan(table(tmp_path, rows, [*HEAD, "subtype"]))
    assert (found.dataset.classes, found.dataset.positives) == (("3", "4.5"), ("4.5",))
    assert found.dataset.words == ("negative", "positive")
    numbers = scan(table(tmp_path, [row[:4] for row in rows], draw=False)).dataset
    assert (numbers.classes, numbers.positives, numbers.words) == (("0", "1"), ("1",), ("negative", "positive"))


def test_paths_with_backslashes_are_told_what_is_allowed(tmp_path):
    message = told(table(tmp_path, changed(1, path="a\\2.JPG")))
    assert message.endswith(r"line 3: there is no file 'a\2.JPG'; allowed: / between folders, not \ ".strip())


def test_absolute_paths_below_the_tables_folder_are_relative_to_it(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")
    plain = scan(table(tmp_path / "set"))
    elsewhere = images(tmp_path / "else", "5.png") / "5.png"
    rows = [[str(tmp_path / "set" / row[0]), *row[1:]] for row in ROWS]
    table(tmp_path / "set", rows, draw=False)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "set/set.csv", tmp_path / "link/set.csv", Path("set/set.csv")):
        found = scan(source)
        assert found.images == plain.images
        assert [read() for _, read in found.contents()] == [read() for _, read in plain.contents()]
    rows[0][0] = str(elsewhere)
    rows[1][0] = f"{tmp_path}/set/../set/{ROWS[1][0]}"
    paths = {each.path for each in scan(table(tmp_path / "set", rows, draw=False)).images}
    assert paths == {rows[0][0], rows[1][0], ROWS[2][0], ROWS[3][0]}
    rows[0] = ROWS[2]
    assert "line 4: the same file as line 2" in told(table(tmp_path / "set", rows, draw=False))


def test_absolute_paths_give_the_same_names_wherever_the_images_lie(tmp_path):
    found = {}
    for place in ("a", "b/c"):
        where = images(tmp_path / place, *(row[0] for row in ROWS), "near.png")
        rows = [[str(where / row[0]), *row[1:]] for row in ROWS]
        (tmp_path / place / "tables").mkdir()
        images(tmp_path / place / "tables", "a/1.png")
        rows.append(["a/1.png", "benign", "40", "p3"])
        found[place] = scan(table(tmp_path / place / "tables", rows, draw=False))
        contents = {found[place].images[at].path: read() for at, read in found[place].contents()}
        assert contents[rows[1][0]] == (where / ROWS[1][0]).read_bytes()
    one, other = ([replace(each, path="", modified=0) for each in each.images] for each in found.values())
    assert one == other
    assert [each.name for each in one] == ["a/1", "a/1.png", "a/2", "b/3", "b/4"]


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    images(tmp_path / "home/im", "1.png")
    (tmp_path / "~").mkdir()
    images(tmp_path / "~", "1.png")
    rows = [["~/im/1.png", *ROWS[0][1:]], ["~/1.png", *ROWS[2][1:]], *(ROWS[at] for at in (1, 3))]
    assert {each.path for each in scan(table(tmp_path, rows)).images} == {
        "home/im/1.png",  # below the table's folder
        "~/1.png",
        *(ROWS[at][0] for at in (1, 3)),
    }
    assert "there is no file '~no-one/1.png'" in told(table(tmp_path, changed(0, path="~no-one/1.png")))


def test_all_bad_lines_are_told_at_once(tmp_path):
    (tmp_path / "folder").mkdir(parents=True)
    rows = [
        *ROWS,
        ["none.png", "benign", "40", "p1"],
        ["a/1.png", "benign", "fourty", "p1"],
        ["a/1.png", "", "40", ""],
        ["a/1.png", "benign", "40"],
        ["./a/1.png", "benign", "40", "p1"],
        ["folder", "benign", "40", "p1"],
        ["a/1.png", "benign", "2.5", "p1"],
        ["a/1.png", "benign", "0", "p1"],
        ["a/1.png", "benign", "1.000", "p1"],
    ]
    assert told(table(tmp_path, rows)) == (
        f"9 findings in the 13 lines of '{tmp_path / 'set.csv'}': line 6: there is no file 'none.png'; "
        "line 7: 'fourty' is no magnification; allowed: a whole number such as 40 or 40X; "
        "line 8: label and patient are empty; line 9: 3 cells, where the head has 4; "
        "line 10: the same file as line 2 (./a/1.png); line 11: 'folder' is no file; "
        "line 12: '2.5' is no magnification; allowed: a whole number such as 40 or 40X; "
        "line 13: '0' is no magnification; allowed: a whole number such as 40 or 40X; "
        "line 14: '1.000' is no magnification; allowed: a whole number such as 40 or 40X"
    )
    many = table(tmp_path, [*ROWS, *(["a/1.png", "benign", "x", "p1"] for _ in range(20))], draw=False)
    with pytest.raises(
        Refused, match=r"20 findings in the 24 lines of .* \(no magnification: 20\); the first 10: "
    ) as caught:
        scan(many)
    assert len(caught.value.findings) == 20


UTF8 = "it is not UTF-8 text; allowed: UTF-8 text, which spreadsheets save as 'CSV UTF-8'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'path'"),
        (b"path,label,magnification,patient\n", "has no lines but its head"),
        (b"path,label,magnification,patient\n\xff\xfe", UTF8),
        ("path,label,magnification,patient\n".encode("utf-16"), UTF8),
        ("path,label,magnification,patient\n".encode("utf-16-le"), UTF8),
        (b"PK\x03\x04\x14\0\x06\0path", "it is an Excel file or an archive; allowed: UTF-8 text, which spreadsheets"),
        (b'path,label,magnification,patient\n"a', "Cannot read the table"),
        (b"path," + b"a" * 200_000, "line 1: field larger than field limit"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path, content, message):
    (tmp_path / "set.csv").write_bytes(content)
    assert message in told(tmp_path / "set.csv")
    (tmp_path / "set.parquet").write_bytes(content)
    assert "Cannot read the table" in told(tmp_path / "set.parquet")
    assert "takes no --pattern" in told(tmp_path / "set.csv", pattern="{label}")


def test_a_table_names_no_file_that_cannot_be(tmp_path):
    assert "line 3: no file can have the name" in told(table(tmp_path, changed(1, path="a/\0.png")))
    binary = pa.array([b"a/\xff.png", b"a/2.JPG"])
    text = pa.StringArray.from_buffers(2, binary.buffers()[1], binary.buffers()[2])  # as careless programs write it
    columns = {name: ["40", "100"] for name in HEAD[1:]}
    parquet.write_table(pa.table({"path": text, **columns}), tmp_path / "set.parquet")
    assert told(tmp_path / "set.parquet").endswith("set.parquet': it is not UTF-8 text")


# ---- folders


LAYOUT = ("40X/benign/p 1/a.png", "40X/malignant/p2/deep/b.jpg", "100x/benign/p 1/c.tif", "100x/malignant/p2/d.png")


def test_a_folder_of_magnification_class_and_patient(tmp_path):
    (images(tmp_path / "set", *LAYOUT) / "notes.txt").write_text("mine")
    found = scan(tmp_path / "set")
    assert (found.dataset.name, found.dataset.source, found.dataset.magnifications) == ("set", "folder", (40, 100))
    assert [(each.path, each.label, each.id) for each in found.images] == [
        ("40X/benign/p 1/a.png", "benign", "p 1"),
        ("40X/malignant/p2/deep/b.jpg", "malignant", "p2"),
        ("100x/benign/p 1/c.tif", "benign", "p 1"),
        ("100x/malignant/p2/d.png", "malignant", "p2"),
    ]
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "set", "set")
    packed = scan(tmp_path / "set.tar.gz", pattern="set/{magnification}/{label}/{patient}/**")
    assert [each.label for each in packed.images] == [each.label for each in found.images]
    contents = {packed.images[at].path: read() for at, read in packed.contents()}
    assert contents["set/40X/benign/p 1/a.png"] == (tmp_path / "set" / LAYOUT[0]).read_bytes()
    images(tmp_path / "set", "40X/e.png", "new/benign/p3/f.png")
    assert told(tmp_path / "set") == (
        f"2 findings in the 6 images of '{tmp_path / 'set'}': "
        "40X/e.png: in 1 folder, not in the three of magnification/class/patient; "
        "new/benign/p3/f.png: 'new' is no magnification; allowed: a folder such as 40 or 40X"
    )


@pytest.mark.parametrize("around", ["set", "my/set", "40X", "2024", "2024/5"])
def test_folders_around_the_whole_set_are_left_out(tmp_path, around):
    images(tmp_path / "bare" / "set", *LAYOUT)
    images(tmp_path / "in" / "set" / around, *LAYOUT)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "in" / "set", "")
    bare = scan(tmp_path / "bare/set")
    for source in (tmp_path / "in/set", tmp_path / "set.tar"):
        found = scan(source)
        assert found.dataset == bare.dataset
        assert [(each.path, each.name, each.sequence) for each in found.images] == [
            (each.path, each.name, each.sequence) for each in bare.images
        ]
        contents = {found.images[at].path: read() for at, read in found.contents()}
        assert contents == {path: (tmp_path / "bare/set" / path).read_bytes() for path in LAYOUT}
    images(tmp_path / "in" / "set" / around, "mask.png")
    assert told(tmp_path / "in/set").endswith(
        f": {around}/mask.png: in 0 folders, not in the three of magnification/class/patient"
    )


def test_folders_that_are_not_around_the_whole_set_stay(tmp_path):
    images(tmp_path / "set", *(f"a/{path}" for path in LAYOUT), "b/40X/benign/p3/e.png")
    assert "none in folders magnification/class/patient" in told(tmp_path / "set")
    one = images(tmp_path / "one", "40X/benign/p1/a.png", "40X/malignant/p2/b.png")
    assert [each.path for each in scan(one).images] == ["40X/benign/p1/a.png", "40X/malignant/p2/b.png"]
    numbers = images(tmp_path / "numbers", "40/0/7/s1/a.png", "40/1/8/s2/b.png")
    assert [(each.label, each.id) for each in scan(numbers).images] == [("0", "7"), ("1", "8")]


@pytest.mark.parametrize("packed", [False, True])
def test_names_that_are_not_utf8_are_told_all_at_once(tmp_path, packed):
    images(tmp_path / "set", *LAYOUT, "new/benign/p3/f.png")
    for patient in ("40X/benign/p 1", "100x/benign/p 1"):
        (tmp_path / "set" / patient).rename(os.fsdecode(os.fsencode(tmp_path / "set" / patient) + b"\xfc"))
    source = tmp_path / "set"
    if packed:
        source = tmp_path / "set.tar.gz"
        with tarfile.open(source, "w:gz") as tar:
            tar.add(tmp_path / "set", "")
    assert told(source).split(": ", 1) == [
        f"3 findings in the 5 images of '{source}'",
        r"100x/benign/p 1\xfc/c.tif: its name is not UTF-8; rename it; "
        r"40X/benign/p 1\xfc/a.png: its name is not UTF-8; rename it; "
        "new/benign/p3/f.png: 'new' is no magnification; allowed: a folder such as 40 or 40X",
    ]


def test_images_that_were_appended_to_an_archive_again_are_told(tmp_path):
    images(tmp_path / "set", *LAYOUT)
    source = tmp_path / "set.tar"
    for mode in ("w", "a"):
        with tarfile.open(source, mode) as tar:
            for path in LAYOUT if mode == "w" else LAYOUT[1:3]:
                tar.add(tmp_path / "set" / path, f"./{path}" if mode == "a" else path)
    twice = "twice in the archive (pack it anew: appending to it keeps the old file)"
    assert told(source) == (
        f"2 findings in the 6 images of '{source}': 100x/benign/p 1/c.tif: {twice}; "
        f"40X/malignant/p2/deep/b.jpg: {twice}"
    )
    with tarfile.open(tmp_path / "breakhis.tar", "w") as tar:
        for _ in range(2):
            tar.add(tmp_path / "set" / LAYOUT[0], "SOB_M_DC-14-10926-100-001.png")
    assert [each.reason for each in scan(tmp_path / "breakhis.tar").findings] == [twice]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_images_that_are_links_in_an_archive_are_told(tmp_path, link):
    images(tmp_path / "set", *LAYOUT)
    (tmp_path / "set/200X/benign/p 1").mkdir(parents=True)
    for name in ("e.png", "f.png", ".hidden.png", "notes.txt"):
        link(tmp_path / "set" / LAYOUT[0], tmp_path / "set/200X/benign/p 1" / name)
    for suffix in (".tar", ".tar.gz"):
        source = tmp_path / f"set{suffix}"
        with tarfile.open(source, f"w:{suffix[5:]}") as tar:
            for path in (*LAYOUT, "200X"):
                tar.add(tmp_path / "set" / path, path)
        message = told(source)
        assert message.startswith(
            f"2 images in the archive '{source}' are links, which cannot be followed there (pack it again with 'tar "
            "--dereference --hard-dereference'): "
        )
        for name in ("e.png", "f.png"):
            assert re.search(rf"200X/benign/p 1/{name}: a link to \S*40X/benign/p 1/a\.png", message)
    with tarfile.open(tmp_path / "followed.tar", "w", dereference=True) as tar:
        tar.add(tmp_path / "set", "")
    assert len(scan(tmp_path / "followed.tar").images) == 6


def test_a_set_of_which_no_name_is_utf8_is_told_so(tmp_path):
    images(tmp_path / "set", "40X/benign/p1/a.png")
    (tmp_path / "set/40X").rename(os.fsdecode(os.fsencode(tmp_path / "set") + b"/\xd740"))
    assert told(tmp_path / "set").endswith(r"\xd740/benign/p1/a.png: its name is not UTF-8; rename it")


def test_breakhis_in_a_folder_that_is_not_utf8_is_told(tmp_path):
    names = [f"SOB_B_A-14-22549AB-40-00{number}.png" for number in (1, 2)]
    images(tmp_path / "set", names[0], f"x/{names[1]}")
    (tmp_path / "set/x").rename(os.fsdecode(os.fsencode(tmp_path / "set") + b"/\xe1"))
    found = scan(tmp_path / "set")
    assert [each.path for each in found.images] == [names[0]]
    assert [(each.where, each.reason) for each in found.findings] == [
        (rf"\xe1/{names[1]}", "its name is not UTF-8; rename it")
    ]


def test_a_source_whose_own_name_is_not_utf8_is_read(tmp_path):
    source = images(tmp_path / os.fsdecode(b"caf\xe9"), *LAYOUT)
    assert scan(source).dataset.name == r"caf\xe9"


def test_a_pattern_says_how_paths_are_named(tmp_path):
    images(tmp_path, "x/20x_ill_p1-s1_3_007.PNG", "y/5X_healthy_p2-s1_1_008.png")
    pattern = "{magnification}x_{label}_{patient}-{slide}_{fold}_{rest}.png"
    assert "slide s1: more than one patient: p1 (1, first x/20x" in told(tmp_path, pattern=pattern, positive=["ill"])
    (tmp_path / "y/5X_healthy_p2-s1_1_008.png").rename(tmp_path / "y/5X_healthy_p2-s2_1_008.png")
    images(tmp_path, "y/10X_healthy_p3-s3_2_008.png")
    found = scan(tmp_path, pattern=pattern, positive=["ill"])
    assert [(each.magnification, each.label, each.id, each.slide) for each in found.images] == [
        (5, "healthy", "p2", "s2"),
        (10, "healthy", "p3", "s3"),
        (20, "ill", "p1", "s1"),
    ]
    assert dict(found.dataset.test_in_fold) == {"s1": (3,), "s2": (1,), "s3": (2,)}
    assert "none fits the pattern" in told(tmp_path, pattern="{magnification}/{label}/{patient}")
    images(tmp_path, "z/mask.png")
    assert "1 finding in the 4 images of" in told(tmp_path, pattern=pattern, positive=["ill"])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{magnificaton}/{label}/{patient}", "Unknown part 'magnificaton' (did you mean 'magnification'?)"),
        ("{label}/{patient}.png", "lacks {magnification}; allowed: such as {magnification}x/"),
        ("{magnification}{label}/{patient}", "nothing between {magnification} and {label}"),
        ("{label}/{patient}*{magnification}", "nothing between {patient} and *"),
        ("{label}/{patient}/{label}/{magnification}", "has the part {label} twice"),
        ("{magnification}/{label/{patient}", "has a single '{'"),
        ("{magnification}/label}/{patient}", "has a single '}'"),
        ("{}/{label}/{patient}", "Unknown part ''"),
    ],
)
def test_a_pattern_that_cannot_be_read_is_one_sentence(pattern, message):
    with pytest.raises(UserError) as caught:
        compiled(pattern)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_literal_in_a_pattern_is_taken_literally():
    assert compiled("a.b+({magnification})/{label}/{patient}").fullmatch("A.B+(40x)/c/d")
    assert not compiled("a.b+({magnification})/{label}/{patient}").fullmatch("axb+(40x)/c/d")
    assert not compiled("{magnification}/{label}/{patient}").fullmatch("40/a/b/c")


def test_breakhis_takes_neither_a_table_nor_options(tmp_path):
    images(tmp_path, "SOB_M_DC-14-10926-100-001.png")
    assert "of which it is known which are malignant; leave out --positive" in told(tmp_path, positive=["malignant"])
    assert scan(tmp_path).dataset.name == "BreakHis"
