"""The way of two sets that are not BreakHis: prepared, split, looked at, from the command line where a user would."""

import io
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from kdtvit_ray.cli import main
from kdtvit_ray.data.batches import StageData
from kdtvit_ray.data.folds import SPLITS, split
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.prepared import fingerprint_of, open_prepared
from kdtvit_ray.data.sources import scan
from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import DataSpec
from tests.data import other_sets


@pytest.fixture(scope="module")
def scanner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scanner")
    return prepare(
        other_sets.scanner(folder / "images"), folder / "prepared", size=32, aspect="squash", positive=["tumour"]
    )


@pytest.fixture(scope="module")
def nerves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nerves")
    source = other_sets.nerves(folder / "nerves", magnifications=(2, 5, 10, 20, 40, 63, 100), patients=12, images=1)
    return prepare(source, folder / "prepared", size=32, positive=["ill"])


def test_a_table_of_a_scanner_is_prepared(scanner):
    assert scanner.dataset.magnifications == (5, 10, 20)
    assert scanner.dataset.classes == ("atypical", "normal", "tumour")
    assert scanner.dataset.words == ("negative", "tumour")
    table = scanner.table
    assert len(table) == (9 + 2 * 9) * 3 * 2
    assert list(scanner.about["counts"].values()) == [54, 54, 54]
    assert scanner.about["census_differences"] == scanner.about["notes"] == []
    assert set(table["malignant"][table["subtype"] == 2]) == {True}
    assert set(table["malignant"][table["subtype"] < 2]) == {False}
    assert (table["id"] == table["stem"]).all()
    assert table["id"].nunique() == 18
    assert table["slide"].nunique() == 27
    assert table["name"].is_unique
    assert list(table["name"]) == sorted(table["name"], key=lambda name: (int(name.split("x")[0]), name))
    # the stored pixels are those of the file: JPEG and TIFF alike
    assert scanner.images.std(axis=(1, 2, 3)).min() > 5


def test_seven_magnifications_and_two_classes_are_prepared(nerves):
    assert nerves.dataset.magnifications == (2, 5, 10, 20, 40, 63, 100)
    assert nerves.dataset.classes == nerves.dataset.words == ("healthy", "ill")
    assert nerves.images.shape == (12 * 7, 32, 32, 3)


@pytest.mark.parametrize("name", ["scanner", "nerves"])
@pytest.mark.parametrize(
    "spec", [DataSpec(folds=3), DataSpec(folds=3, group="folder", fold=2), DataSpec(protocol="image")]
)
def test_they_are_split_with_every_patient_on_one_side(name, spec, request):
    prepared = request.getfixturevalue(name)
    made = split(prepared.table, spec, prepared.dataset)
    parts = [getattr(made, each) for each in SPLITS]
    assert sorted(np.concatenate(parts)) == list(range(len(prepared.table)))
    patients = [set(prepared.table["id"].to_numpy()[part]) for part in parts]
    if spec.protocol == "patient":
        assert not patients[0] & patients[1]
        assert not patients[2] & (patients[0] | patients[1])
    for part in parts:
        chosen = prepared.table.iloc[part]
        for magnification in prepared.dataset.magnifications:
            assert set(chosen["malignant"][chosen["magnification"] == magnification]) == {True, False}


def test_official_folds_are_those_of_the_table(scanner, nerves):
    tested = []
    for fold in (1, 2, 3):
        made = split(scanner.table, DataSpec(protocol="official", fold=fold), scanner.dataset)
        patients = set(scanner.table["id"].to_numpy()[made.test])
        assert patients == {f"p{each:02d}" for each in range(18) if each // 3 % 3 == fold - 1}
        assert made.notes == []
        tested.append(made.test)
    assert sorted(np.concatenate(tested)) == list(range(len(scanner.table)))
    with pytest.raises(UserError, match="There is no fold 4 of 3; allowed: 1 to 3"):
        split(scanner.table, DataSpec(protocol="official", fold=4), scanner.dataset)
    with pytest.raises(UserError, match="'nerves' has none; allowed: protocol patient or image, or a table"):
        split(nerves.table, DataSpec(protocol="official"), nerves.dataset)


def test_slides_of_one_patient_in_test_and_train_drop_out_of_train(scanner):
    folds = {**scanner.dataset.test_in_fold, "s01b": (2,)}
    made = split(scanner.table, DataSpec(protocol="official"), replace(scanner.dataset, test_in_fold=folds))
    assert "Official fold 1 has slide p01 in train and test; its 6 training images are dropped" in made.notes[0]


def test_a_class_that_one_patient_has_is_told(scanner):
    table, dataset = scanner.table, scanner.dataset
    normal = table["subtype"] == 1
    alone = table[~normal | (table["id"] == "p00")].reset_index(drop=True)
    notes = [split(alone, DataSpec(folds=3, fold=fold), dataset).notes for fold in (1, 2, 3)]
    assert sorted(each for note in notes for each in note) == sorted(
        ["Class normal has 1 patient and no training images in this fold: no model can learn it"]
        + ["Class normal has 1 patient, in train: nothing tells how well it is learned"] * 2
    )
    few = table[(table["subtype"] < 2) | (table["id"] == "p02")].reset_index(drop=True)
    with pytest.raises(UserError, match=r"leaves \w+ without tumour images at 5X, which 1 patient of the set has"):
        split(few, DataSpec(folds=3), dataset)


def test_the_fingerprint_holds_what_the_names_do_not_say(tmp_path):
    source = other_sets.scanner(tmp_path / "images", patients=6, images=1)
    lines = source.read_text().splitlines()
    prints = set()

    def fingerprint(lines, **options):
        source.write_text("\n".join(lines) + "\n")
        prepared = prepare(source, tmp_path / str(len(prints)), size=16, **{"positive": ["tumour"], **options})
        assert fingerprint_of(prepared) == prepared.fingerprint
        prints.add(prepared.fingerprint)
        (tmp_path / str(len(prints) - 1)).rename(tmp_path / f"done {len(prints)}")

    fingerprint(lines)
    fingerprint([each.replace(",normal,", ",tumour,").replace("p00", "p02") for each in lines])  # class
    fingerprint([each.replace(",p00,", ",p01,") for each in lines])  # patient
    fingerprint([each.replace(",s01b,", ",s01a,") for each in lines])  # slide
    fingerprint([each.replace(",10X,", ",11X,") for each in lines])  # magnification
    fingerprint([each.rpartition(",")[0] for each in lines])  # official folds
    fingerprint(lines, positive=["tumour", "atypical"])
    assert len(prints) == 7


def test_a_change_of_the_table_is_not_taken_for_the_same_set(tmp_path):
    source = other_sets.scanner(tmp_path / "images", patients=6, images=1)
    first = prepare(source, tmp_path / "out", size=16, positive=["tumour"])
    assert prepare(source, tmp_path / "out", size=16, positive=["tumour"]).fingerprint == first.fingerprint
    with pytest.raises(UserError, match="prepared from other files"):
        prepare(source, tmp_path / "out", size=16, positive=["tumour", "atypical"])
    source.write_text(source.read_text().replace(",p00,", ",p01,"))
    with pytest.raises(UserError, match="prepared from other files"):
        prepare(source, tmp_path / "out", size=16, positive=["tumour"])


def test_equal_pixels_of_two_patients_or_classes_are_refused_and_of_one_patient_told(tmp_path):
    source = other_sets.nerves(tmp_path / "set", patients=4, images=2)
    for target in ("10X/healthy/patient 0/1.png", "10X/ill/patient 1/0.png", "40X/healthy/patient 0/0.png"):
        (source / target).write_bytes((source / "10X/healthy/patient 0/0.png").read_bytes())
    with pytest.raises(UserError) as caught:
        prepare(source, tmp_path / "out", size=32, positive=["ill"])
    told = str(caught.value)
    assert told.startswith("2 of 16 images")
    assert (
        "10X/ill/patient 1/0.png: the same pixels as 10X/healthy/patient 0/0.png, of another patient and class" in told
    )
    assert (
        "40X/healthy/patient 0/0.png: the same pixels as 10X/healthy/patient 0/0.png, of another magnification" in told
    )
    for target, other in (("10X/ill/patient 1/0.png", "10X/ill/patient 1/1.png"), ("40X/healthy/patient 0/0.png",) * 2):
        if target == other:
            (source / target).unlink()
        else:
            (source / target).write_bytes((source / other).read_bytes())
    assert prepare(source, tmp_path / "out", size=32, positive=["ill"]).about["notes"] == [
        "2 images of 2 patients have the pixels of another image of the same patient"
    ]


def test_a_folder_with_another_magnifications_link_to_it_is_read_under_both(tmp_path):
    source = other_sets.nerves(tmp_path / "set", magnifications=(40, 100), patients=4, images=1)
    (source / "200X").symlink_to("40X")
    (source / "40X" / "healthy" / "above").symlink_to(source)
    assert len(scan(source, positive=["ill"]).images) == 12
    with pytest.raises(UserError, match=r"4 of 12 images .*200X/.* of another magnification"):
        prepare(source, tmp_path / "out", size=32, positive=["ill"])


def test_the_command_line_prepares_and_shows_any_set(tmp_path, capsys):
    source = other_sets.scanner(tmp_path / "lab", patients=6, images=1)
    out = str(tmp_path / "prepared")
    assert main(["prepare", str(source), out, "--size", "32"]) == 2
    assert "name those that count as positive with --positive" in capsys.readouterr().err
    assert main(["prepare", str(source), out, "--size", "32", "--positive", "tumour, atypical"]) == 0
    told = capsys.readouterr().out
    assert "images: 5X, 10X, 20X; negative: normal; positive: atypical, tumour" in told
    assert main(["check", out]) == 0
    told = capsys.readouterr().out
    assert "images: 27 images of 6 patients" in told
    for line in (
        "class counts as 5X 10X 20X patients",
        "normal negative 3 3 3 2",
        "tumour positive 3 3 3 2",
        "all 9 9 9 6",
    ):
        assert line in [" ".join(each.translate(BARS).split()) for each in told.splitlines()]
    assert "reports say 'normal' for negative" in told
    assert "official folds: 2" in told
    assert "census" not in told
    images = other_sets.nerves(tmp_path / "nerves", patients=4, images=1)
    pattern = "{magnification}X/{label}/patient {patient}/{rest}.png"
    arguments = ["prepare", str(images), str(tmp_path / "b"), "--size", "32", "--positive", "ill", "--pattern", pattern]
    assert main(arguments) == 0
    assert set(open_prepared(tmp_path / "b").table["id"]) == {"0", "1", "2", "3"}


def test_names_with_brackets_are_shown_as_they_are(tmp_path, capsys, monkeypatch):
    source = other_sets.scanner(tmp_path / "lab", patients=6, images=1)
    head, *lines = source.read_text().replace(",tumour,", ",tumour[/G3],").splitlines()
    source.write_text("\n".join([f"{head},cells [/mm2]", *(f"{line},1" for line in lines)]))
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", str(source), "d[v2]", "--size", "32", "--positive", "tumour[/G3]"]) == 0
    told = capsys.readouterr().out
    for each in ("27 images prepared in d[v2],", "positive: tumour[/G3]", "passed over: cells [/mm2]"):
        assert each in told
    assert main(["check", "d[v2]"]) == 0
    told = capsys.readouterr().out
    for each in ("tumour[/G3]", "cells [/mm2]"):
        assert each in told


def test_many_names_that_are_not_utf8_are_listed_beside_the_set(tmp_path, capsys):
    source = other_sets.nerves(tmp_path / "nerves", patients=12, images=1)
    for folder in [each for each in source.rglob("patient *") if each.is_dir()]:
        folder.rename(os.fsdecode(os.fsencode(folder) + b"\xfc"))
    assert main(["prepare", str(source), str(tmp_path / "out"), "--size", "32", "--positive", "ill"]) == 2
    assert "a name that is not UTF-8: 24" in capsys.readouterr().err
    listed = (tmp_path / "out-findings.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 25
    assert r"10X/healthy/patient 0\xfc/0.png: its name is not UTF-8; rename it" in listed


def test_a_terminal_without_a_names_letters_ends_no_command(tmp_path, monkeypatch):
    source = other_sets.nerves(tmp_path / "神経", patients=4, images=1)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["prepare", str(source), str(tmp_path / "out"), "--size", "32", "--positive", "ill"]) == 0
    terminal.flush()
    assert rb"\u795e\u7d4c: 10X, 40X" in terminal.buffer.getvalue()


BARS = str.maketrans("│┃", "  ")


def test_positive_labels_with_commas_are_named_one_by_one(tmp_path, capsys):
    source = other_sets.scanner(tmp_path / "lab", patients=6, images=1)
    text = source.read_text().replace(",tumour,", ',"carcinoma, NOS",').replace(",atypical,", ',"sarcoma, NOS",')
    source.write_text(text)
    arguments = ["prepare", str(source), str(tmp_path / "out"), "--size", "32", "--positive", "carcinoma, NOS"]
    assert main([*arguments, "--positive", "sarcoma, NOS"]) == 0
    assert open_prepared(tmp_path / "out").dataset.positives == ("carcinoma, NOS", "sarcoma, NOS")
    assert main(arguments) == 2
    assert "prepared from other files" in capsys.readouterr().err


def test_a_set_is_the_same_with_a_folder_around_it(tmp_path):
    source = other_sets.nerves(tmp_path / "in" / "nerves", patients=6, images=1)
    with tarfile.open(tmp_path / "nerves.tgz", "w:gz") as tar:
        tar.add(source, "nerves")
    made = [
        prepare(each, tmp_path / f"out {number}", size=16, positive=["ill"]).fingerprint
        for number, each in enumerate((source, source.parent, tmp_path / "nerves.tgz"))
    ]
    assert made == made[:1] * 3


def test_an_archives_set_is_found_again_by_its_positive_labels(tmp_path):
    source = other_sets.nerves(tmp_path / "nerves", patients=6, images=1)
    with tarfile.open(tmp_path / "nerves.tar", "w") as tar:
        tar.add(source, "")
    made = prepare(tmp_path / "nerves.tar", tmp_path / "out", size=16, positive=["ill"])
    signature = json.loads((tmp_path / "out/prepared.json").read_text())["signature"]
    assert signature.endswith(', read as ["", ["ill"]]')
    assert (
        prepare(tmp_path / "nerves.tar", tmp_path / "out", size=16, positive=["ill,"]).fingerprint == made.fingerprint
    )
    with pytest.raises(UserError, match="prepared from other files"):
        prepare(tmp_path / "nerves.tar", tmp_path / "out", size=16, positive=["healthy"])


def test_an_archives_set_is_found_again_from_a_copy_and_in_other_words(tmp_path, monkeypatch):
    source, folder = tmp_path / "set.tar", other_sets.nerves(tmp_path / "nerves", patients=6, images=1)
    pattern = "{magnification}X/*/patient {patient}/{label}.png"
    for number, image in enumerate(sorted(folder.rglob("*.png"))):
        image.rename(image.parent / f"{'abc'[number % 3]}.png")
    with tarfile.open(source, "w") as tar:
        tar.add(folder, "")

    def made(source=source, positive=("a", "b"), pattern=pattern):
        return prepare(source, tmp_path / "out", size=16, pattern=pattern, positive=positive).fingerprint

    first = made()
    with monkeypatch.context() as patched:
        patched.setattr("kdtvit_ray.data.sources.scan", lambda *_, **__: pytest.fail("read again"))
        assert made(positive=["b", " a"]) == first
    with monkeypatch.context() as patched:
        patched.setattr("kdtvit_ray.data.prepare._write", lambda *_: pytest.fail("prepared again"))
        assert made(positive=["b,a"]) == made(pattern=pattern.replace("*", "{rest}")) == first
        copy = tmp_path / "copy.tar"
        copy.write_bytes(source.read_bytes())
        os.utime(copy, (1, 1))
        assert made(copy) == first
        for other in ({"positive": ["a"]}, {"positive": ["a", "c"]}):
            with pytest.raises(UserError, match="prepared from other files"):
                made(copy, **other)
        content = bytearray(source.read_bytes())
        content[content.index(b"IDAT") + 10] ^= 1  # as long, and with the names that it had
        source.write_bytes(content)
        with pytest.raises(UserError, match="prepared from other files"):
            made()


def test_check_tells_of_breakhis_what_its_census_says(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("B_A-14-22549AB-40-001", "M_DC-14-10926-40-010")):
        other_sets.drawn(np.random.default_rng(number), number, 1.0, np.zeros(3)).save(
            tmp_path / "in" / f"SOB_{name}.png"
        )
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "32"]) == 0
    assert "The images are 48x40 pixels, the originals 700x460: they were resized before" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["check", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "BreakHis: 2 images of 2 slides" in told
    assert "DC positive 1 0 0 0 1" in [" ".join(each.translate(BARS).split()) for each in told.splitlines()]
    assert "reports say 'benign' for negative and 'malignant' for positive" in told
    assert "differences from the official census: 1" in told
    assert "notes: 1" in told


def test_the_stored_dataset_is_what_open_prepared_gives(scanner):
    assert open_prepared(scanner.path).dataset == scanner.dataset != breakhis()
    stored = json.loads((scanner.path / "prepared.json").read_text())
    assert stored["about"]["dataset"]["test_in_fold"]["s03a"] == [2]
    held = StageData(scanner, DataSpec(folds=3))
    assert held.dataset == scanner.dataset
    assert set(held.labels("subtype")) == {0, 1, 2}
    assert set(held.labels("binary")) == {0, 1}


def test_a_prepared_set_with_a_damaged_dataset_is_one_sentence(tmp_path):
    source = other_sets.nerves(tmp_path / "set", patients=4, images=1)
    prepare(source, tmp_path / "out", size=32, positive=["ill"])
    stored = json.loads((tmp_path / "out" / "prepared.json").read_text())
    stored["about"]["dataset"]["positives"] = ["healthy"]
    (tmp_path / "out" / "prepared.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"is damaged .*do not end with the positive ones"):
        open_prepared(tmp_path / "out")
