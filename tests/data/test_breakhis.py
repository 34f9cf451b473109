"""Names, sources and census of BreakHis."""

import io
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtvit_ray.data.sources import scan
from kdtvit_ray.data.sources.breakhis import (
    OTHER_IMAGES,
    ImageName,
    breakhis,
    census,
    census_differences,
    official_census,
)
from kdtvit_ray.errors import UserError

MAGNIFICATIONS, SUBTYPES = breakhis().magnifications, breakhis().classes

OFFICIAL_TREE = "BreaKHis_v1/histology_slides/breast/malignant/SOB/ductal_carcinoma/SOB_M_DC_14-10926/100X"


def census_table() -> pd.DataFrame:
    rows = [
        (slide, int(magnification))
        for slide, facts in official_census()["slides"].items()
        for magnification, count in facts["images"].items()
        for _ in range(count)
    ]
    return pd.DataFrame(rows, columns=["slide", "magnification"])


@given(
    st.integers(0, 7),
    st.from_regex(r"[0-9]{2}", fullmatch=True),
    st.from_regex(r"[0-9]{2,5}[A-G]{0,2}", fullmatch=True).filter(str.isascii),
    st.sampled_from(MAGNIFICATIONS),
    st.integers(1, 999),
    st.sampled_from(["", ".png", ".PNG", ".jpg", ".tif", ".tiff"]),
)
def test_a_name_is_read_as_it_is_written(subtype, year, slide, magnification, sequence, suffix):
    letter = "BM"[subtype >= 4]
    text = f"SOB_{letter}_{SUBTYPES[subtype]}-{year}-{slide}-{magnification}-{sequence:03d}"
    name = ImageName.parse(text + suffix)
    assert (name.name, name.subtype, name.malignant) == (text, SUBTYPES[subtype], subtype >= 4)
    assert (name.year, name.slide, name.magnification, name.sequence) == (year, slide, magnification, sequence)
    assert name.folder == f"{letter}_{SUBTYPES[subtype]}-{year}-{slide}"
    assert name.id == f"{year}-{slide}"
    assert name.stem == f"{year}-{slide.rstrip('ABCDEFG')}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cat.png", "not a BreakHis name"),
        ("SOB_M_DC_14-10926-100-001.png", "not a BreakHis name"),  # the directories' underscore
        ("SOB_M_DC-14-10926-100-001.png.png", "not a BreakHis name"),
        ("SOB_M_DC-14-10926-100-.png", "not a BreakHis name"),
        ("SOB_M_DC-14-10926-100-001 (1).png", "not a BreakHis name"),
        ("SOB_M_DC-2014-10926-100-001.png", "not a BreakHis name"),
        ("SOB_M_XX-14-10926-100-001.png", "unknown subtype XX"),
        ("SOB_B_DC-14-10926-100-001.png", "DC is malignant, but the name says B"),
        ("SOB_M_PT-14-10926-100-001.png", "PT is benign, but the name says M"),
        ("SOB_M_DC-14-10926-150-001.png", "unknown magnification 150"),
        ("SOB_M_DC-14-10926-0100-001.png", "unknown magnification 0100"),
    ],
)
def test_a_foreign_name_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        ImageName.parse(text)


def test_the_patient_is_wider_from_folder_to_id_to_stem():
    names = [ImageName.parse(f"SOB_{each}-40-001") for each in ("M_DC-14-13412", "M_LC-14-13412")]
    assert names[0].folder != names[1].folder
    assert names[0].id == names[1].id
    stems = {ImageName.parse(f"SOB_B_A-14-{each}-40-001").stem for each in ("22549AB", "22549CD", "22549G")}
    assert stems == {"14-22549"}


def files(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def archive(path: Path, *members: str) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for each in members:
            info = tarfile.TarInfo(each)
            info.size = len(each.encode())
            tar.addfile(info, io.BytesIO(each.encode()))
    return path


NAMES = ("SOB_M_DC-14-10926-100-001.png", "SOB_M_DC-14-10926-100-010.png", "SOB_B_A-14-22549AB-40-002.png")


def test_a_tree_a_flat_folder_and_an_archive_hold_the_same_images(tmp_path):
    tree = [f"{OFFICIAL_TREE}/{NAMES[0]}", f"{OFFICIAL_TREE}/{NAMES[1]}", f"x/benign/SOB_B_A_14-22549AB/40X/{NAMES[2]}"]
    noise = ("README.txt", "x/.SOB_B_A-14-1-40-001.png", f"x/._{NAMES[0]}", ".cache/cat.png")
    scans = [
        scan(files(tmp_path / "tree", *tree, *noise)),
        scan(files(tmp_path / "flat", *NAMES)),
        scan(archive(tmp_path / "a.tar.gz", *tree, *noise)),
        scan(archive(tmp_path / "a.tgz", *(f"./{each}" for each in tree))),
        scan(archive(tmp_path / "a.tar", *NAMES)),
    ]
    for each in scans:
        # by magnification, then by name: 40X first
        assert [image.name + ".png" for image in each.images] == [NAMES[2], NAMES[0], NAMES[1]]
        assert each.findings == []
        read = {position: reader() for position, reader in each.contents()}
        assert {position: Path(content.decode()).as_posix() for position, content in read.items()} == {
            position: image.path for position, image in enumerate(each.images)
        }
    assert [each.root.is_file() for each in scans] == [False, False, True, True, True]


def test_misnamed_misplaced_and_twice_filed_images_are_all_listed(tmp_path):
    root = files(
        tmp_path,
        NAMES[0],
        f"again/{NAMES[0]}",
        f"40X/{NAMES[1]}",
        f"SOB_M_DC_14-10927/{NAMES[1]}",
        f"benign/{NAMES[1]}",
        "cat.jpg",
        "SOB_M_DC-14-10926-100-003.gif",
        "SOB_M_DC-14-10926-100-004.png.part",
    )
    found = scan(root)
    assert [image.path for image in found.images] == [NAMES[0]]
    reasons = {each.where: each.reason for each in found.findings}
    assert reasons == {
        f"again/{NAMES[0]}": f"the same name as {NAMES[0]}",
        f"40X/{NAMES[1]}": "the name contradicts its folder 40X",
        f"SOB_M_DC_14-10927/{NAMES[1]}": "the name contradicts its folder SOB_M_DC_14-10927",
        f"benign/{NAMES[1]}": "the name contradicts its folder benign",
        "cat.jpg": "not a BreakHis name",
        "SOB_M_DC-14-10926-100-003.gif": "not one of .png, .jpg, .jpeg, .tif, .tiff",
        "SOB_M_DC-14-10926-100-004.png.part": "not one of .png, .jpg, .jpeg, .tif, .tiff",
    }


def test_linked_folders_are_followed_but_for_loops(tmp_path):
    files(tmp_path / "real", NAMES[0])
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    assert [image.path for image in scan(tmp_path / "source").images] == [f"link/{NAMES[0]}"]
    (tmp_path / "source" / NAMES[1]).symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match="is a link to a file that is not there"):
        scan(tmp_path / "source")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nowhere", "There is no folder, archive or table"),
        (lambda root: root, "holds no images"),
        (lambda root: files(root, "notes.txt"), "holds no images"),
        (
            lambda root: files(root, "cat.png"),
            r"1 image, but none with a BreakHis name, and none in folders magnification/class/patient .*: cat\.png; "
            "allowed: --pattern",
        ),
        (
            lambda root: files(root, "SOB_M_DC-14-10926-150-001.png", "sob_1.png"),
            r"2 images, but none with a BreakHis name such as SOB_.*\(unknown magnification 150\), sob_1\.png \(not a",
        ),
        (lambda root: files(root, "a.rar") / "a.rar", "no archive of images or table"),
        (lambda root: files(root, "a.tar.gz") / "a.tar.gz", "truncated or damaged"),
        (lambda root: archive(root / "a.tar.gz", "notes.txt"), "Archive .* holds no images"),
    ],
)
def test_a_source_without_images_is_one_sentence(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as caught:
        scan(make(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_a_cut_off_archive_is_told_apart_from_a_short_one(tmp_path, share):
    noise = bytes(range(256)) * 40
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for number in range(1, 20):
            info = tarfile.TarInfo(f"SOB_M_DC-14-10926-100-{number:03d}.png")
            info.size = len(noise)
            tar.addfile(info, io.BytesIO(noise))
    whole = (tmp_path / "a.tar.gz").read_bytes()
    assert len(scan(tmp_path / "a.tar.gz").images) == 19
    (tmp_path / "b.tar.gz").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="truncated or damaged"):
        scan(tmp_path / "b.tar.gz")
    changed = bytearray(whole)
    changed[-6] ^= 1  # in the stream's own checksum
    (tmp_path / "c.tar.gz").write_bytes(changed)
    with pytest.raises(UserError, match="truncated or damaged"):
        scan(tmp_path / "c.tar.gz")


def test_the_census_holds_the_published_totals():
    official = official_census()
    table = census_table()
    assert len(table) == official["total"] == 7909
    malignant = table["slide"].str.startswith("M")
    counted = {
        each: (
            int((~malignant & (table["magnification"] == each)).sum()),
            int((malignant & (table["magnification"] == each)).sum()),
        )
        for each in MAGNIFICATIONS
    }
    # Spanhol et al. 2016, table 1; the lab's page has 652 for 625
    assert counted == {40: (625, 1370), 100: (644, 1437), 200: (623, 1390), 400: (588, 1232)}
    assert sum(map(len, ([s for s in official["slides"] if s[0] == each] for each in "BM"))) == 82
    by_subtype = table.groupby([table["slide"].str.extract(r"_([A-Z]+)-")[0], "magnification"]).size()
    for subtype, counts in official["images_per_subtype_and_magnification"].items():
        assert {int(each): count for each, count in counts.items()} == by_subtype[subtype].to_dict()


def test_census_differences_name_what_differs_and_nothing_else():
    table = census_table()
    assert census_differences(table) == []
    assert census(table)["B_A-14-22549AB"] == {40: 29, 100: 30, 200: 32, 400: 30}
    without = table[table["slide"] != "M_LC-14-13412"].drop(index=0)
    extra = pd.DataFrame({"slide": ["M_DC-99-1"], "magnification": [400]})
    sentences = census_differences(pd.concat([without, extra], ignore_index=True))
    assert f"40X has {1370 - 32:,} malignant images, the official set 1,370" in sentences
    assert f"400X has {1232 - 26 + 1:,} malignant images, the official set 1,232" in sentences
    assert "40X has 624 benign images, the official set 625" in sentences
    assert "slides absent: 1 of 82 (M_LC-14-13412)" in sentences
    assert "slides that the official set has not: 1 (M_DC-99-1)" in sentences
    assert "slides with another number of images: 1 (B_A-14-22549AB has 120 of 121)" in sentences


def test_a_set_without_a_slide_of_breakhis_is_not_taken_for_it(tmp_path):
    own, drawn = NAMES[0], "SOB_M_DC-99-1-100-001.png"
    for names, name in (((own,), "BreakHis"), ((own, drawn), "BreakHis"), ((drawn,), OTHER_IMAGES)):
        found = scan(archive(tmp_path / "a.tar", *names)).dataset
        assert found.name == name
        assert bool(found.references) == (name == "BreakHis")
        assert found.census == breakhis().census
    table = pd.DataFrame({"slide": ["M_DC-99-1"] * 3, "magnification": [40, 100, 100]})
    assert census_differences(table) == ["none of its 1 slides is one of the 82 of BreakHis: these are other images"]
