"""An archive is read whole or not at all: what is damaged, cut off or joined with another one is told."""

import errno
import gzip
import io
import os
import random
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtvit_ray.data.sources import scan
from kdtvit_ray.data.sources.files import files, members
from kdtvit_ray.errors import UserError

CONTENT = {f"40X/benign/p{number}/a.png": random.Random(number).randbytes(700) for number in range(6)}


def wanted(name: str) -> bool:
    return name.endswith(".png")


def tarred(content: dict[str, bytes] = CONTENT, form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, each in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(each)
            tar.addfile(entry, io.BytesIO(each))
    return file.getvalue()


def zipped(content: dict[str, bytes] = CONTENT, how: int = zipfile.ZIP_LZMA) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as packed:
        for name, each in content.items():
            packed.writestr(name, each)
    return file.getvalue()


def read(folder: Path, suffix: str, content: bytes) -> dict[str, bytes]:
    source = folder / f"set{suffix}"
    source.write_bytes(content)
    return {path: each for path, _, each in members(source, wanted)}


def told(folder: Path, suffix: str, content: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, suffix, content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def offsets(content: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [each.offset for each in tar]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_whole_tar_is_read_with_whatever_zeros_it_ends(tmp_path, form):
    whole = tarred({**CONTENT, f"{'long' * 30}/b.png": b"x"}, form)
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for zeros in (512, 1024, 10240, 3 << 20):
        assert len(read(tmp_path, ".tar", whole[:end] + bytes(zeros))) == 7
        assert len(read(tmp_path, ".tgz", gzip.compress(whole[:end] + bytes(zeros), 1))) == 7


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".zip"])
def test_an_archive_is_read_as_what_it_is_whatever_it_is_called(tmp_path, suffix):
    for packed in (tarred(), gzip.compress(tarred()), zipped()):
        assert read(tmp_path, suffix, packed) == CONTENT


@pytest.mark.parametrize(("suffix", "packed"), [(".tar", bytes), (".tar.gz", gzip.compress)])
def test_a_damaged_head_is_not_the_end_of_a_tar(tmp_path, suffix, packed):
    whole = bytearray(tarred())
    whole[offsets(whole)[4] + 150] ^= 1
    assert told(tmp_path, suffix, packed(whole)) == (
        f"Archive '{tmp_path / 'set'}{suffix}' is truncated or damaged after 4 images (bad checksum); fetch it again"
    )


def test_a_tar_that_is_cut_off_between_two_members_is_told(tmp_path):
    whole = tarred()
    for cut, reason in ((offsets(whole)[4], "it has no end"), (offsets(whole)[4] + 100, "truncated header")):
        assert f"after 4 images ({reason}); fetch it again" in told(tmp_path, ".tar", whole[:cut])
        assert f"after 4 images ({reason}); fetch it again" in told(tmp_path, ".tgz", gzip.compress(whole[:cut]))
    assert "after 0 images (it has no end); fetch it again" in told(tmp_path, ".tar", b"")


@pytest.mark.parametrize("number", [0, 2])
def test_a_head_of_zeros_is_not_the_end_of_a_tar(tmp_path, number):
    whole = bytearray(tarred())
    at = offsets(whole)[number]
    whole[at : at + 512] = bytes(512)
    assert "several archives in one file" in told(tmp_path, ".tar", bytes(whole))


def test_several_archives_in_one_file_are_told(tmp_path):
    one, two = tarred(dict(list(CONTENT.items())[:3])), tarred(dict(list(CONTENT.items())[3:]))
    for suffix, joined in (
        (".tar", one + two),
        (".tgz", gzip.compress(one) + gzip.compress(two)),
        (".tgz", gzip.compress(one + two)),
    ):
        assert told(tmp_path, suffix, joined).endswith(
            f"set{suffix}' goes on after its end: it is several archives in one file, or damaged; unpack it with 'tar "
            "-i' and name its folder, or fetch it again"
        )
    assert "is several archives in one file, of which the last alone would be read" in told(
        tmp_path, ".zip", zipped(dict(list(CONTENT.items())[:3])) + zipped(dict(list(CONTENT.items())[3:]))
    )


def test_a_zip_behind_a_program_that_unpacks_it_is_read(tmp_path):
    assert read(tmp_path, ".zip", b"#!/bin/sh\n" + zipped()) == CONTENT


@settings(deadline=None, max_examples=60)
@given(data=st.data(), form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_a_damaged_tar_is_refused_or_has_as_many_images(tmp_path_factory, data, form):
    """A flipped bit of an image's own bytes is seen when it is decoded; of a head, here."""
    whole = bytearray(tarred({**CONTENT, f"{'long' * 40}/b.png": b"x"}, form))
    at = data.draw(st.sampled_from(offsets(whole))) + data.draw(st.integers(0, 1023))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = read(tmp_path_factory.mktemp("set"), ".tar", bytes(whole))
    except UserError:
        return
    assert len(found) == 7


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
def test_a_damaged_zip_is_one_sentence_however_it_is_compressed(tmp_path_factory, data, how):
    whole = bytearray(zipped(CONTENT, how))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(UserError):
        read(tmp_path_factory.mktemp("set"), ".zip", bytes(whole))


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_file_in_a_zip_is_told_with_how_many_came_before_it(tmp_path, how):
    whole = bytearray(zipped(CONTENT, how))
    start = whole.index(b"p2/a.png") + 18
    whole[start : start + 190] = bytes(255 - each for each in whole[start : start + 190])
    assert "is truncated or damaged after 2 images" in told(tmp_path, ".zip", bytes(whole))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_an_archive_without_permission_is_not_called_damaged(tmp_path, monkeypatch, suffix):
    source = tmp_path / f"set{suffix}"
    source.touch()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError) as caught:
        list(members(source, wanted))
    assert str(caught.value) == f"Archive '{source}' cannot be read (Permission denied)"


HIDDEN = [".hidden.png", "40X/.old/b.png", "40X/._c.png", "__MACOSX/40X/d.png", ".notes/e.txt", "__MACOSX/._f.png"]


@pytest.mark.parametrize(("suffix", "packed"), [(".tar", tarred), (".zip", zipped)])
def test_images_whose_paths_lead_out_of_an_archive_are_told(tmp_path, suffix, packed):
    outside = {"../40X/a.png": b"a", "40X/../../b.png": b"b", "/40X/c.png": b"c", "../notes.txt": b"d"}
    message = told(tmp_path, suffix, packed({**CONTENT, **outside}))
    assert message.startswith(f"3 images in the archive '{tmp_path / 'set'}{suffix}' have paths that begin with / or ")
    for path in list(outside)[:3]:
        assert f"{path}: its path leads out of the archive" in message


@pytest.mark.parametrize(("suffix", "packed"), [(".tar", tarred), (".zip", zipped)])
def test_hidden_images_of_an_archive_are_passed_over_and_told_but_for_a_macs_shadows(tmp_path, suffix, packed):
    source = tmp_path / f"set{suffix}"
    source.write_bytes(packed({**CONTENT, **dict.fromkeys(HIDDEN, b"x")}))
    hidden: list[str] = []
    assert [path for path, *_ in files(source, wanted, hidden=hidden.append)] == list(CONTENT)
    assert hidden == HIDDEN[:2]


def test_hidden_images_and_folders_of_a_folder_are_passed_over_and_told(tmp_path):
    for path in (*HIDDEN, *CONTENT):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "40X/.text.txt").touch()
    hidden: list[str] = []
    found = [path for path, *_ in files(tmp_path, wanted, hidden=hidden.append)]
    assert sorted(found) == list(CONTENT)
    assert sorted(hidden) == [".hidden.png", ".notes", "40X/.old"]


def test_a_set_says_in_a_note_what_was_hidden(tmp_path):
    source = tmp_path / "set.tar"
    sides = {f"40X/{side}/p{at}/{at}.png": b"" for at, side in enumerate(("benign", "malignant"))}
    source.write_bytes(tarred({**sides, **{f".old/{at}/a.png": b"" for at in range(4)}}))
    assert scan(source).notes == [
        "Hidden images and folders that were passed over: 4 (.old/0/a.png, .old/1/a.png, .old/2/a.png and 1 more)"
    ]
    source.write_bytes(tarred(sides))
    assert scan(source).notes == []
    source.write_bytes(tarred({".old/a.png": b"", "a.dcm": b"", "b.dcm": b""}))
    with pytest.raises(
        UserError, match=r"hidden ones, 1 \(\.old/a\.png\) and files of other kinds, 2 \.dcm \(such as a"
    ):
        scan(source)
    source.write_bytes(tarred({".old/a.png": b""}))
    with pytest.raises(UserError, match=r"holds no images but hidden ones, 1 \(\.old/a\.png\); allowed"):
        scan(source)


@pytest.mark.parametrize("packed", [False, True])
def test_a_set_says_in_a_note_what_is_no_image_by_its_suffix(tmp_path, packed):
    source = tmp_path / "set"
    sides = [f"40X/{side}/p{at}/{at}.png" for at, side in enumerate(("benign", "malignant"))]
    others = ["100X/benign/p0/b.SVS", "100X/benign/p0/a.svs", "more/200X.tar.gz", "100X/benign/p0/scan", "40X/mask.npy"]
    beside = ["labels.csv", "README", "a/Thumbs.db", "desktop.ini", "notes.TXT", "._x.svs", ".git/x.svs", "a/.x.svs"]
    for path in (*sides, *others, *beside):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).touch()
    if packed:
        source = tmp_path / "set.tar"
        with tarfile.open(source, "w") as tar:
            tar.add(tmp_path / "set", "")
    assert scan(source).notes[1:] == [
        "Files of other kinds that were passed over: 2 .svs (such as 100X/benign/p0/a.svs), 1 without a suffix (such "
        "as 100X/benign/p0/scan), 1 .npy (such as 40X/mask.npy), 1 .tar.gz (such as more/200X.tar.gz)"
    ]


def test_a_set_of_breakhis_says_what_is_none_of_it(tmp_path):
    for name in ("SOB_M_DC-14-10926-100-001.png", "overview.svs", "logo.ico"):
        (tmp_path / name).touch()
    assert scan(tmp_path).notes == ["Files of other kinds that were passed over: 1 .ico (such as logo.ico)"]
    assert [each.where for each in scan(tmp_path).findings] == ["overview.svs"]
