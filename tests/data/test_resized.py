"""Images of another size: one file a node for all folds and workers, the same bits as in memory, never torn."""

import errno
import hashlib
import logging
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtvit_ray.data import resized
from kdtvit_ray.data.batches import Pixels, StageData
from kdtvit_ray.data.prepared import open_prepared
from kdtvit_ray.recipe import DataSpec


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def prepared(data):
    return open_prepared(data)


def expected(images, size):
    """All images resized one by one, by Pillow itself."""
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in images]
    )


def gathered(pixels, rows):
    pixels.make(rows)
    return pixels.gather(rows, None, np.empty((len(rows), pixels.size, pixels.size, 3), np.uint8)).copy()


def files(cache):
    return sorted(each.name for each in cache.iterdir() if each.suffix != ".lock")


def test_folds_share_one_file_of_the_bits_that_pillow_makes(prepared, cache, monkeypatch):
    wanted = expected(prepared.images, 16)
    spec = DataSpec(prepared.fingerprint, folds=3, validation=0.3)
    first = StageData(prepared, spec).pixels(16, "none")
    rows = StageData(prepared, spec).rows("train")
    assert np.array_equal(gathered(first, rows), wanted[rows])
    (name,) = files(cache)
    assert name.startswith(f"{prepared.fingerprint}-16-none")
    monkeypatch.setattr(resized, "resized", None)  # from here on an image that is made is an error
    for fold in (2, 3):
        other = StageData(open_prepared(prepared.path), replace(spec, fold=fold))
        rows, _ = other.evaluated()
        assert np.array_equal(gathered(other.pixels(16, "none"), rows), wanted[rows])
    assert files(cache) == [name]


def test_the_file_is_mapped_and_cannot_be_written(prepared, cache):
    found = resized.shared(prepared.images, prepared.fingerprint, 16, "none")
    assert isinstance(found, np.memmap)
    assert Path(found.filename).parent == cache
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_each_size_and_crop_has_a_file_of_its_own(prepared, cache):
    shown = [(16, "none"), (16, "centre"), (12, "none")]
    found = {each: gathered(Pixels(prepared.images, *each, prepared.fingerprint), np.arange(9)) for each in shown}
    assert len(files(cache)) == 3
    assert np.array_equal(found[16, "centre"], prepared.images[:9, 4:20, 4:20])
    assert np.array_equal(found[12, "none"], expected(prepared.images[:9], 12))


def test_stored_images_of_the_size_and_sets_in_memory_need_no_file(prepared, cache):
    rows = np.arange(len(prepared.images))
    assert np.array_equal(gathered(Pixels(prepared.images, 24, "none", prepared.fingerprint), rows), prepared.images)
    held = np.array(prepared.images)
    assert np.array_equal(gathered(Pixels(held, 16, "none", prepared.fingerprint), rows), expected(held, 16))
    assert not cache.exists()


def test_a_stage_on_the_shared_file_is_the_stage_in_memory(prepared):
    from kdtvit_ray.learning.stage import train_stage
    from tests.learning import toy

    spec = toy.first(data=DataSpec(prepared.fingerprint, folds=3, validation=0.3))
    mapped = train_stage(spec, StageData(prepared, spec.data), None)
    held = StageData(replace(prepared, images=np.array(prepared.images)), spec.data)
    assert np.array_equal(
        mapped.predictions["probabilities"], train_stage(spec, held, None).predictions["probabilities"]
    )


def make_and_tell(folder, makers, start):
    """Leave a file in `makers` if this process, one of several that start at once, made the pixels; and their digest
    beside it."""
    make = resized._make

    def told(*arguments):
        (makers / f"{os.getpid()}.made").touch()
        make(*arguments)

    resized._make = told
    prepared = open_prepared(folder)
    start.wait()
    found = resized.shared(prepared.images, prepared.fingerprint, 16, "none")
    (makers / f"{os.getpid()}.digest").write_text(hashlib.sha256(found.tobytes()).hexdigest())


def test_of_processes_that_start_at_once_one_makes_the_file(prepared, cache, tmp_path):
    makers = tmp_path / "makers"
    makers.mkdir()
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [context.Process(target=make_and_tell, args=(prepared.path, makers, start)) for _ in range(3)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    wanted = hashlib.sha256(expected(prepared.images, 16).tobytes()).hexdigest()
    assert [each.read_text() for each in makers.glob("*.digest")] == [wanted] * 3
    assert len(list(makers.glob("*.made"))) == 1
    assert len(files(cache)) == 1


KILLED = """
import itertools, os, sys
from pathlib import Path
from kdtvit_ray.data import resized
from kdtvit_ray.data.prepared import open_prepared
made, make = itertools.count(), resized.resized
def resize(*arguments, **named):
    if next(made) == 20:
        os.kill(os.getpid(), 9)
    return make(*arguments, **named)
resized.resized, resized.ROWS = resize, 8
prepared = open_prepared(Path(sys.argv[1]))
resized.shared(prepared.images, prepared.fingerprint, 16, "none")
"""


def test_what_a_killed_process_has_begun_is_not_used(prepared, cache):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(prepared.path)])
    assert ended.returncode == -9
    (left,) = files(cache)
    assert left.endswith(".partial")
    assert (cache / left).stat().st_size > 0
    found = resized.shared(prepared.images, prepared.fingerprint, 16, "none")
    assert np.array_equal(found, expected(prepared.images, 16))
    assert files(cache) == [left.removesuffix(".partial")]


@pytest.mark.parametrize("kept", [0, 50, 20_000])
def test_a_torn_file_is_made_again(prepared, cache, kept):
    resized.shared(prepared.images, prepared.fingerprint, 16, "none")
    (name,) = files(cache)
    assert (cache / name).stat().st_size > 20_000
    os.truncate(cache / name, kept)
    found = gathered(Pixels(prepared.images, 16, "none", prepared.fingerprint), np.arange(len(prepared.images)))
    assert np.array_equal(found, expected(prepared.images, 16))


@pytest.mark.parametrize("damaged", [slice(1_000, 2_000), slice(-500, None), slice(-16, None)])
def test_a_file_with_other_pixels_than_it_was_made_with_is_made_again(prepared, cache, damaged):
    resized.shared(prepared.images, prepared.fingerprint, 16, "none")
    (name,) = files(cache)
    content = bytearray((cache / name).read_bytes())
    content[damaged] = bytes(len(content[damaged]))
    (cache / name).write_bytes(content)
    found = resized.shared(prepared.images, prepared.fingerprint, 16, "none")
    assert np.array_equal(found, expected(prepared.images, 16))
    assert files(cache) == [name]


def test_a_file_that_is_whole_is_not_made_again(prepared, cache, monkeypatch):
    resized.shared(prepared.images, prepared.fingerprint, 16, "none")
    monkeypatch.setattr(resized, "_make", None)
    assert np.array_equal(
        resized.shared(prepared.images, prepared.fingerprint, 16, "none"), expected(prepared.images, 16)
    )


def test_without_a_cache_they_are_kept_in_memory_and_that_is_said(prepared, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path / "file"))
    pixels = Pixels(prepared.images, 16, "none", prepared.fingerprint)
    with caplog.at_level(logging.WARNING):
        for rows in (np.array([3, 5]), np.arange(9)):
            assert np.array_equal(gathered(pixels, rows), expected(prepared.images[rows], 16))
    (said,) = caplog.messages
    assert f"the cache '{tmp_path / 'file'}' cannot be written" in said


def test_a_full_disk_leaves_nothing_behind(prepared, cache, monkeypatch, caplog):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found = gathered(Pixels(prepared.images, 16, "none", prepared.fingerprint), np.arange(9))
    assert np.array_equal(found, expected(prepared.images[:9], 16))
    assert "No space left on device" in caplog.text
    assert files(cache) == []
