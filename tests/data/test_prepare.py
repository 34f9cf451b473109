"""Preparing: the stored pixels, what is refused, and that nothing is left behind when it fails."""

import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdtvit_ray.cli import main
from kdtvit_ray.data import prepare as module
from kdtvit_ray.data.decode import Decoded, decode, judge
from kdtvit_ray.data.folds import split
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.prepared import fingerprint_of, open_prepared
from kdtvit_ray.data.sources.breakhis import ImageName, breakhis
from kdtvit_ray.data.sources.files import Found, Scan
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import DataSpec

WIDTH, HEIGHT = 70, 46
A = "SOB_B_A-14-22549AB-40-001.png"
B = "SOB_B_F-14-14134-100-002.png"
C = "SOB_M_DC-14-10926-40-010.png"
D = "SOB_M_MC-15-190EF-400-003.png"


def draw(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate((A, B, C, D)):
        draw(seed).save(folder / name)
    return folder


def left(out: Path) -> list[str]:
    return sorted(each.name for each in out.iterdir()) if out.exists() else []


def refused(source: Path, out: Path, **options) -> str:
    """The message of a prepare that has to fail, after checking that it leaves nothing."""
    with pytest.raises(UserError) as caught:
        prepare(source, out, size=32, **options)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_table_and_pixels_belong_together(source, tmp_path):
    told = []
    prepared = prepare(source, tmp_path / "out", size=32, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert left(tmp_path / "out") == ["images.npy", "prepared.json", "table.parquet"]
    table = prepared.table
    assert list(table["name"] + ".png") == [A, C, B, D]  # magnification, then name
    assert list(table["magnification"]) == [40, 40, 100, 400]
    assert [breakhis().classes[each] for each in table["subtype"]] == ["A", "DC", "F", "MC"]
    assert list(table["malignant"]) == [False, True, False, True]
    assert list(table["slide"]) == ["B_A-14-22549AB", "M_DC-14-10926", "B_F-14-14134", "M_MC-15-190EF"]
    assert list(table["id"]) == ["14-22549AB", "14-10926", "14-14134", "15-190EF"]
    assert list(table["stem"]) == ["14-22549", "14-10926", "14-14134", "15-190"]
    assert list(table["sequence"]) == [1, 10, 2, 3]
    dtypes = {name: str(table[name].dtype) for name in ("subtype", "malignant", "magnification")}
    assert dtypes == {"subtype": "int8", "malignant": "bool", "magnification": "int16"}
    assert isinstance(prepared.images, np.memmap)
    assert not prepared.images.flags.writeable
    assert (prepared.images.dtype, prepared.images.shape) == (np.uint8, (4, 32, 32, 3))
    for row, name in enumerate(table["name"]):
        image = Image.open(source / f"{name}.png")
        square = image.crop(((WIDTH - HEIGHT) // 2, 0, (WIDTH + HEIGHT) // 2, HEIGHT))  # an exact crop: 24 is even
        expected = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
        inside = np.s_[2:-2, 2:-2]  # at the border the box sees the pixels beyond it, the crop does not
        assert np.abs(prepared.images[row].astype(int) - expected)[inside].max() <= 1
    assert prepared.about["counts"] == {"40": 2, "100": 1, "200": 0, "400": 1}
    assert (prepared.about["size"], prepared.about["aspect"], prepared.about["images"]) == (32, "crop", 4)
    assert any("200X has 0 benign" in each for each in prepared.about["census_differences"])


def test_squash_keeps_the_borders_that_crop_cuts():
    image = np.zeros((46, 70, 3), np.uint8)
    image[:, :10] = 255  # a white left border, outside of the central square
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    cropped, squashed = (decode(file.getvalue(), 32, aspect)[0] for aspect in ("crop", "squash"))
    assert cropped.max() == 0
    assert (squashed[:, :3] == 255).all()
    assert (squashed[:, 7:] == 0).all()


def test_any_colour_mode_ends_as_rgb():
    grey = Image.fromarray(np.full((46, 70), 77, np.uint8))
    for made in (grey, *map(grey.convert, ("RGB", "RGBA", "P", "LA")), grey.convert("LA").convert("PA")):
        file = io.BytesIO()
        made.save(file, "tiff" if made.mode == "PA" else "png")
        assert Image.open(file).mode == made.mode
        assert (decode(file.getvalue(), 16, "crop")[0] == 77).all(), made.mode
    for made in (Image.fromarray(np.full((46, 70), 60000, np.uint16)), grey.convert("F"), Image.new("LAB", (70, 46))):
        file = io.BytesIO()
        made.save(file, "tiff")
        with pytest.raises(ValueError, match=rf"not an 8-bit image in grey, RGB or CMYK \(mode {made.mode}\)"):
            decode(file.getvalue(), 16, "crop")


def test_the_fingerprint_is_of_content_not_of_paths(source, tmp_path):
    first = prepare(source, tmp_path / "a", size=32, workers=1)
    moved = tmp_path / "moved" / "deeper"
    shutil.copytree(source, moved)
    assert prepare(moved.parent, tmp_path / "b", size=32, workers=3).fingerprint == first.fingerprint
    with tarfile.open(tmp_path / "BreaKHis_v1.tar.gz", "w:gz") as tar:
        for name in (D, B, A, C):  # in another order
            tar.add(source / name, f"BreaKHis_v1/{name}")
    packed = prepare(tmp_path / "BreaKHis_v1.tar.gz", tmp_path / "c", size=32)
    assert packed.fingerprint == first.fingerprint
    assert (packed.images == first.images).all()
    assert packed.table.equals(first.table)
    prints = {first.fingerprint}
    prints.add(prepare(source, tmp_path / "d", size=48).fingerprint)
    prints.add(prepare(source, tmp_path / "e", size=32, aspect="squash").fingerprint)
    shutil.move(moved / B, moved / B.replace("002", "003"))
    prints.add(prepare(moved, tmp_path / "f", size=32).fingerprint)
    draw(99).save(source / A)
    prints.add(prepare(source, tmp_path / "g", size=32).fingerprint)
    assert len(prints) == 5


def test_a_finished_set_is_found_again_and_never_mixed_up(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = prepare(source, out, size=32)
    monkeypatch.setattr(module, "_write", lambda *_: pytest.fail("prepared again"))
    assert prepare(source, out, size=32).fingerprint == first.fingerprint
    for options, message in (({"size": 48}, "with size 32, not 48"), ({"aspect": "squash"}, "with aspect crop")):
        with pytest.raises(UserError, match=message):
            prepare(source, out, **{"size": 32, **options})
    draw(50).save(source / A)
    with pytest.raises(UserError, match="prepared from other files"):
        prepare(source, out, size=32)
    assert open_prepared(out).fingerprint == first.fingerprint


@pytest.mark.parametrize("kind", ["breakhis", "folder", "table"])
def test_a_folders_set_is_found_again_from_a_copy_of_other_times_name_and_place(tmp_path, monkeypatch, kind):
    source = tmp_path / "here" / "images"
    for seed, name in enumerate((A, B, C, D)):
        place = f"{40 + 60 * (seed % 2)}X/{'benign' if seed < 2 else 'malignant'}/p{seed}" if kind != "breakhis" else ""
        (source / place).mkdir(parents=True, exist_ok=True)
        draw(seed).save(source / place / (name if kind == "breakhis" else "a.png"))

    def listed(folder: Path) -> Path:
        if kind != "table":
            return folder
        paths = [each.relative_to(folder).parts for each in sorted(folder.rglob("*.png"))]
        rows = [
            "path,label,magnification,patient",
            *(f"{folder}/{'/'.join(each)},{each[1]},{each[0]},{each[2]}" for each in paths),
        ]
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / f"tables/{folder.name}.csv").write_text("\n".join(rows))
        return tmp_path / f"tables/{folder.name}.csv"

    first = prepare(listed(source), tmp_path / "out", size=32).fingerprint
    monkeypatch.setattr(module, "_write", lambda *_: pytest.fail("prepared again"))
    with monkeypatch.context() as patched:
        patched.setattr("kdtvit_ray.data.same_source._read", lambda found: pytest.fail("read again"))
        assert prepare(listed(source), tmp_path / "out", size=32).fingerprint == first
    copy = tmp_path / "there" / "copy"
    shutil.copytree(source, copy, copy_function=shutil.copyfile)
    assert prepare(listed(copy), tmp_path / "out", size=32).fingerprint == first
    image = max(copy.rglob("*.png"))
    content = bytearray(image.read_bytes())
    content[-20] ^= 1  # as long as it was
    image.write_bytes(content)
    with pytest.raises(UserError, match="prepared from other files than"):
        prepare(listed(copy), tmp_path / "out", size=32)


def test_a_folders_set_from_before_contents_were_kept_is_told_by_names_and_times(source, tmp_path):
    prepare(source, tmp_path / "out", size=32)
    about = tmp_path / "out/prepared.json"
    stored = json.loads(about.read_text())
    del stored["contents"]
    about.write_text(json.dumps(stored))
    assert len(prepare(source, tmp_path / "out", size=32).table) == 4
    os.utime(source / A, (1, 1))
    with pytest.raises(
        UserError, match=r"prepared from other files than '.*' now has, by their names, sizes and times;"
    ):
        prepare(source, tmp_path / "out", size=32)


def test_all_bad_images_are_listed_at_once_by_name(source, tmp_path):
    whole = (source / A).read_bytes()
    number = iter(range(100, 200))

    def name() -> str:
        return f"SOB_B_A-14-22549AB-40-{next(number)}.png"

    bad = {each: name() for each in ("cut", "bare", "empty", "text", "flipped", "tiny", "twin")}
    draw(100).save(source / bad["cut"])
    content = (source / bad["cut"]).read_bytes()
    (source / bad["cut"]).write_bytes(content[: len(content) // 2])
    (source / bad["bare"]).write_bytes(content[:-12])  # complete pixels, no end
    (source / bad["empty"]).touch()
    (source / bad["text"]).write_text("not an image")
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    (source / bad["flipped"]).write_bytes(flipped)
    draw(101, 40, 15).save(source / bad["tiny"])
    (source / bad["twin"]).write_bytes(whole)
    draw(102).save(source / "cat.png")
    draw(103, WIDTH, HEIGHT - 2).save(source / name())  # BreakHis has 700x456 among its 700x460
    message = refused(source, tmp_path / "out")
    assert message.startswith(f"8 of 13 images in '{source}' cannot be used: ")
    for key, reason in {
        "cut": "truncated or damaged",
        "bare": "truncated or damaged",
        "empty": "empty file",
        "text": "no image that can be decoded",
        "flipped": "truncated or damaged",
        "tiny": "too small (40x15 pixels, allowed: 16 a side at least)",
        "twin": f"the same pixels as {A}",
    }.items():
        assert f"{bad[key]}: {reason}" in message
    assert "cat.png: not a BreakHis name" in message
    for each in (*bad.values(), "cat.png"):
        (source / each).unlink()
    assert len(prepare(source, tmp_path / "out", size=32).table) == 5


def test_copies_that_were_resized_are_taken_with_a_note(tmp_path):
    for folder, size in (("all", (224, 224)), ("half", (350, 230))):
        (tmp_path / folder).mkdir()
        draw(0, *size).save(tmp_path / folder / A)
        draw(1, *size).save(tmp_path / folder / B)
    prepared = prepare(tmp_path / "all", tmp_path / "a", size=32)
    assert prepared.images.shape == (2, 32, 32, 3)
    resized = "The images are {} pixels, the originals 700x460: they were resized before"
    assert prepared.about["notes"] == [resized.format("224x224")]
    large = prepare(tmp_path / "half", tmp_path / "b", size=256).about["notes"]
    assert large == [
        resized.format("350x230"),
        "The images have less than 256 pixels on a side and were enlarged to 256x256",
    ]


def test_originals_are_taken_without_a_note_and_several_sizes_with_their_counts(tmp_path):
    for number, size in enumerate([(700, 460), (700, 456), (700, 460), (224, 224)], start=1):
        draw(number, *size).save(tmp_path / f"SOB_B_F-14-14134-100-{number:03d}.png")
    assert prepare(tmp_path, tmp_path / "mixed", size=32).about["notes"] == [
        "The images have several sizes: 3 of 700x460, 1 of 224x224 pixels",
        "1 of 4 images are 224x224 pixels, the originals 700x460: they were resized before",
    ]
    (tmp_path / "SOB_B_F-14-14134-100-004.png").unlink()
    assert prepare(tmp_path, tmp_path / "originals", size=32).about["notes"] == []


def test_many_findings_are_counted_and_go_to_a_file(source, tmp_path):
    for number in range(100, 125):
        (source / f"SOB_B_A-14-22549AB-40-{number}.png").touch()
    for number in range(3):
        draw(number).save(source / f"cat{number}.png")
    message = refused(source, tmp_path / "out")
    file = tmp_path / "out-findings.txt"
    assert message.startswith(
        f"28 of 32 images in '{source}' cannot be used (empty file: 25, misnamed or misplaced: 3); the first 10: "
    )
    assert message.endswith(f"; all of them are in '{file}'")
    assert message.count("empty file") == 11
    lines = file.read_text().splitlines()
    assert len(lines) == 29
    assert "SOB_B_A-14-22549AB-40-124.png: empty file" in lines
    assert "cat2.png: not a BreakHis name" in lines
    for each in (*source.glob("cat*"), *source.glob("SOB_B_A-14-22549AB-40-1*")):
        each.unlink()
    prepare(source, tmp_path / "out", size=32)
    assert not file.exists()


def test_ten_findings_are_told_without_a_file(source, tmp_path):
    for number in range(100, 110):
        (source / f"SOB_B_A-14-22549AB-40-{number}.png").touch()
    assert refused(source, tmp_path / "out").count("empty file") == 10
    assert not (tmp_path / "out-findings.txt").exists()


@pytest.mark.parametrize("make", [lambda path: path.write_text("mine\n"), os.mkfifo, Path.mkdir])
def test_findings_leave_a_users_own_file_of_that_name_alone(source, tmp_path, make):
    mine, ours = tmp_path / "out-findings.txt", tmp_path / "out-findings-2.txt"
    make(mine)
    before = mine.lstat()
    bad = [source / f"SOB_B_A-14-22549AB-40-{number}.png" for number in range(100, 112)]
    for each in bad:
        each.touch()
    for _ in range(2):  # the second time over our own
        assert refused(source, tmp_path / "out").endswith(f"; all of them are in '{ours}'")
        assert len(ours.read_text().splitlines()) == 13
    for each in bad:
        each.unlink()
    prepare(source, tmp_path / "out", size=32)
    assert not ours.exists()
    assert (mine.lstat().st_ino, mine.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_fingerprint_of_breakhis_is_what_it_always_was(tmp_path):
    # plain colours: whatever Pillow does to them when it resizes, they stay
    for index, name in enumerate((A, B, C, D)):
        Image.new("RGB", (70, 46), (10 * index, 100 + index, 255 - index)).save(tmp_path / name)
    prepared = prepare(tmp_path, tmp_path / "out", size=16)
    assert prepared.fingerprint == fingerprint_of(prepared) == "430bb916e4e93ae6a2996e7b8ffe0387"


def test_the_slide_that_is_filed_twice_is_kept_and_told(source, tmp_path):
    for subtype in ("DC", "LC"):
        draw(7).save(source / f"SOB_M_{subtype}-14-13412-100-001.png")
    prepared = prepare(source, tmp_path / "out", size=32)
    assert len(prepared.table) == 6
    assert prepared.about["notes"][1:] == [
        "Slide 14-13412 is filed under two subtypes and 1 of its images have the pixels of another one; all are kept"
    ]
    # within one folder the same pixels are a mistake still, and so they are between patients
    draw(7).save(source / "SOB_M_LC-14-13412-100-002.png")
    draw(7).save(source / "SOB_M_LC-14-12204-100-001.png")
    message = refused(source, tmp_path / "again")
    assert message.startswith(f"3 of 8 images in '{source}' cannot be used: ")
    assert "SOB_M_LC-14-13412-100-002.png: the same pixels as" in message


@pytest.mark.parametrize("complete", [False, True])
def test_equal_pixels_within_a_slide_are_kept_in_the_complete_official_set_only(complete):
    names = [ImageName.parse(f"SOB_{each}") for each in ("B_A-14-1-40-1", "B_A-14-1-40-2", "B_F-14-2-40-1")]
    images = [
        Found(f"{each.name}.png", each.name, each.subtype, 40, each.folder, each.id, each.stem, 1, 1, 1)
        for each in names
    ]
    found = Scan(Path("x"), Path("x"), breakhis(), images)
    same, other = [Decoded(0, "", 70, 46, b"a"), Decoded(1, "", 70, 46, b"a")], Decoded(2, "", 70, 46, b"b")
    if complete:
        assert judge(found, [*same, other], 32, complete)[-1:] == [
            "Slide 14-1 is complete by the official census and 1 of its images have the pixels of another one; "
            "all are kept"
        ]
    else:
        with pytest.raises(UserError, match=r"1 of 3 images .*40-2\.png: the same pixels as SOB_B_A-14-1-40-1\.png"):
            judge(found, [*same, other], 32, complete)
    with pytest.raises(UserError, match="SOB_B_F-14-2-40-1"):  # another patient's: never
        judge(found, [*same, Decoded(2, "", 70, 46, b"a")], 32, complete)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda root: root / "nowhere", {}, "There is no folder, archive or table"),
        (lambda root: root, {}, "holds no images"),
        (lambda root: draw(1).save(root / "cat.png") or root, {}, "none with a BreakHis name"),
        (lambda root: draw(1).save(root / A) or root, {"aspect": "cropp"}, "did you mean 'crop'"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_sentence(tmp_path, make, options, message):
    (tmp_path / "source").mkdir()
    assert message in refused(make(tmp_path / "source"), tmp_path / "out", **options)


def test_a_truncated_archive_is_one_sentence_and_leaves_nothing(source, tmp_path):
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as tar:
        tar.add(source, "images")
    content = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) * 2 // 3])
    assert "truncated or damaged" in refused(tmp_path / "cut.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("size", [0, 15, 4096])
def test_a_size_out_of_range_is_refused(source, tmp_path, size):
    with pytest.raises(UserError, match="allowed: a whole number of pixels from 16 to 1024"):
        prepare(source, tmp_path / "out", size=size)


def test_too_little_space_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**6, 0, 4 * 32 * 32 * 3 - 1))
    monkeypatch.setattr(module, "_write", lambda *_: pytest.fail("written"))
    assert "needs 0.02 MB, but 0.01 MB are free" in refused(source, tmp_path / "out")


@pytest.mark.parametrize(("after", "number"), [(0, errno.ENOSPC), (3, errno.ENOSPC), (2, errno.EDQUOT)])
def test_a_disk_that_fills_up_leaves_nothing(source, tmp_path, monkeypatch, after, number):
    calls = iter(range(100))
    real = os.pwrite

    def full(file, content, offset):
        if next(calls) >= after:
            raise OSError(number, os.strerror(number))
        return real(file, content, offset)

    monkeypatch.setattr(module.os, "pwrite", full)
    assert "is full" in refused(source, tmp_path / "out")
    monkeypatch.undo()
    assert len(prepare(source, tmp_path / "out", size=32).table) == 4


def test_a_disk_that_fills_up_at_the_table_leaves_nothing(source, tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pandas.DataFrame.to_parquet", full)
    assert "is full" in refused(source, tmp_path / "out")


def test_short_writes_are_completed(source, tmp_path, monkeypatch):
    expected = prepare(source, tmp_path / "a", size=32).images
    real = os.pwrite
    monkeypatch.setattr(module.os, "pwrite", lambda file, content, offset: real(file, content[:1000], offset))
    assert (prepare(source, tmp_path / "b", size=32).images == expected).all()


def test_an_interrupt_leaves_nothing(source, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", size=32, progress=stop)
    assert not (tmp_path / "out").exists()


def test_a_killed_run_starts_over(source, tmp_path):
    out = tmp_path / "out"
    program = (
        "import sys, time; from pathlib import Path; from kdtvit_ray.data.prepare import prepare\n"
        "prepare(Path(sys.argv[1]), Path(sys.argv[2]), size=32, progress=lambda *_: time.sleep(3_600))"
    )
    child = subprocess.Popen([sys.executable, "-c", program, source, out])
    try:
        while not (out / "images.npy").exists():
            assert child.poll() is None
            time.sleep(0.05)
        with pytest.raises(UserError, match="is being prepared by another process"):
            prepare(source, out, size=32)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert (out / "images.npy").exists()
    with pytest.raises(UserError, match="holds no prepared set"):
        open_prepared(out)
    # killed between the last two files, too
    (out / "prepared.json.partial").write_text("{")
    assert len(prepare(source, out, size=32).table) == 4
    assert left(out) == ["images.npy", "prepared.json", "table.parquet"]


@pytest.mark.parametrize("rival", [False, True])
def test_a_lock_that_its_owner_removes_while_it_is_waited_for_is_no_lock(source, tmp_path, monkeypatch, rival):
    """The owner of the file that was opened ends, and a third process may make a new one and hold that."""
    out, real, held = tmp_path / "out", fcntl.flock, []

    def late(file, how):
        if not held:
            (out / ".preparing").unlink()
            held.append(os.open(out / ".preparing", os.O_RDWR | os.O_CREAT) if rival else -1)
            if rival:
                real(held[0], how)
        real(file, how)

    monkeypatch.setattr(module.fcntl, "flock", late)
    if rival:
        with pytest.raises(UserError, match="is being prepared by another process"):
            prepare(source, out, size=32)
        os.close(held[0])
        assert left(out) == [".preparing"]
    else:
        assert len(prepare(source, out, size=32).table) == 4
        assert left(out) == ["images.npy", "prepared.json", "table.parquet"]


def test_other_files_in_the_way_are_left_alone(source, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(chapter.txt\)"):
        prepare(source, tmp_path / "thesis", size=32)
    assert left(tmp_path / "thesis") == ["chapter.txt"]
    with pytest.raises(UserError, match="is a file; choose a new folder"):
        prepare(source, tmp_path / "thesis" / "chapter.txt", size=32)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"'.*link' is a link to nowhere; choose a new folder"):
        prepare(source, tmp_path / "link", size=32)


@pytest.mark.parametrize("name", ["images.npy", "table.parquet", "prepared.json.partial", "notes.txt"])
def test_files_of_the_users_own_are_kept_whatever_their_names(source, tmp_path, name):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / name).write_text("mine")
    with pytest.raises(UserError, match=rf"holds other files \({name}\); choose a new folder"):
        prepare(source, mine, size=32)
    assert left(mine) == [name]
    assert (mine / name).read_text() == "mine"


def read_only(monkeypatch, *folders: Path) -> None:
    """From now on no file can be made or deleted right in these folders."""

    def refuse(path) -> None:
        if Path(path).absolute().parent in folders:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def opened(path, flags, *rest, real=os.open, **options):
        if flags & os.O_CREAT:
            refuse(path)
        return real(path, flags, *rest, **options)

    def unlinked(path, *rest, real=os.unlink, **options):
        refuse(path)
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "unlink", unlinked)


def test_a_set_is_found_again_where_nobody_can_write(source, tmp_path, monkeypatch):
    first = prepare(source, tmp_path / "out", size=32)
    read_only(monkeypatch, tmp_path, tmp_path / "out")
    assert prepare(source, tmp_path / "out", size=32).fingerprint == first.fingerprint
    with pytest.raises(UserError, match="with size 32, not 48"):
        prepare(source, tmp_path / "out", size=48)


def test_a_volume_in_a_read_only_folder_is_prepared(source, tmp_path, monkeypatch):
    (tmp_path / "volume").mkdir()
    read_only(monkeypatch, tmp_path)
    assert len(prepare(source, tmp_path / "volume", size=32).table) == 4


def test_the_working_folder_is_prepared_with_its_findings_beside_it(source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for number in range(100, 111):
        (source / f"SOB_B_A-14-22549AB-40-{number}.png").touch()
    with pytest.raises(UserError, match=f"all of them are in '{tmp_path / 'here-findings.txt'}'"):
        prepare(source, Path(), size=32)
    assert (tmp_path / "here-findings.txt").read_text().count("empty file") == 12
    assert left(tmp_path / "here") == []
    for each in source.glob("SOB_B_A-14-22549AB-40-1*"):
        each.unlink()
    assert len(prepare(source, Path(), size=32).table) == 4
    assert not (tmp_path / "here-findings.txt").exists()


@pytest.mark.parametrize("as_given", [str, Path])
@pytest.mark.parametrize("uri", ["s3://lab/breakhis", "gs://lab/breakhis", "file:///data/breakhis"])
def test_a_uri_is_refused_before_anything_is_read(source, tmp_path, monkeypatch, uri, as_given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"A set cannot be prepared in .*; allowed: a local path, so prepare it on a disk"
    ):
        prepare(tmp_path / "nowhere", as_given(uri), size=32)
    with pytest.raises(UserError, match=r"Images are not read from .*; allowed: a local path"):
        prepare(as_given(uri), tmp_path / "out", size=32)
    assert left(tmp_path) == ["images"]


def test_a_uri_is_named_as_it_was_given_but_for_its_secrets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"Images are not read from 's3://\*\*\*@lab/breakhis'"):
        prepare(Path("s3://KEY:SECRET@lab/breakhis"), Path("out"))
    assert main(["prepare", "images", "s3://KEY:SECRET@lab/breakhis"]) == 2
    assert "A set cannot be prepared in 's3://***@lab/breakhis'" in capsys.readouterr().err


def test_opening_what_is_no_prepared_set_is_one_sentence(source, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_prepared(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no prepared set"):
        open_prepared(source)


def truncate(out: Path) -> None:
    os.truncate(out / "images.npy", 5000)


def shorten(out: Path) -> None:
    np.save(out / "images.npy", np.zeros((3, 32, 32, 3), np.uint8))


def newer(out: Path) -> None:
    stored = json.loads((out / "prepared.json").read_text())
    (out / "prepared.json").write_text(json.dumps({**stored, "version": 99}))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        shorten,
        newer,
        lambda out: (out / "prepared.json").write_text("{"),
        lambda out: (out / "prepared.json").write_text("[]"),
        lambda out: (out / "prepared.json").write_text("{}"),
        lambda out: (out / "table.parquet").write_bytes(b"PAR1"),
        lambda out: (out / "images.npy").unlink(),
    ],
)
def test_a_damaged_set_is_one_sentence(source, tmp_path, damage):
    prepare(source, tmp_path / "out", size=32)
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=r"is damaged .* prepare it again"):
        open_prepared(tmp_path / "out")


@pytest.mark.parametrize(
    ("column", "value"), [("malignant", True), ("subtype", 7), ("id", "14-1"), ("magnification", 40), ("new", 1)]
)
def test_a_table_that_was_changed_by_hand_is_refused(source, tmp_path, column, value):
    out = tmp_path / "out"
    prepare(source, out, size=32)
    table = pd.read_parquet(out / "table.parquet")
    table.to_parquet(out / "table.parquet", compression=None)
    assert open_prepared(out).table.equals(table)  # the same table in another file
    table.loc[2, column] = value
    table.to_parquet(out / "table.parquet", index=False)
    for open_it in (lambda: open_prepared(out), lambda: prepare(source, out, size=32)):
        with pytest.raises(
            UserError, match=r"table.parquet' is not what .* wrote: .* changed by hand .* prepare it again"
        ):
            open_it()


@pytest.mark.skipif("KDTVIT_BREAKHIS" not in os.environ, reason="KDTVIT_BREAKHIS names no folder of real images")
def test_real_images_are_prepared(tmp_path):
    prepared = prepare(Path(os.environ["KDTVIT_BREAKHIS"]), tmp_path / "out", size=64)
    assert len(prepared.table) == len(prepared.images) > 0
    # stained tissue on a bright ground is bright, and pink: green is the darkest channel
    red, green, blue = prepared.images.mean(axis=(0, 1, 2))
    assert green < blue
    assert green < red
    assert 90 < prepared.images.mean() < 240
    assert len(np.unique(prepared.images.reshape(len(prepared.images), -1), axis=0)) == len(prepared.images)
    made = split(prepared.table, DataSpec(folds=3), prepared.dataset)
    assert not set(made.groups[made.test]) & (set(made.groups[made.train]) | set(made.groups[made.validation]))
