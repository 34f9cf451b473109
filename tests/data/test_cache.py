"""Node-local copies of a prepared set: made once, checked, never torn."""

import json
import multiprocessing
import os
import resource
import shutil
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdtvit_ray.data import cache
from kdtvit_ray.data.cache import digest_of, local_copy, local_file, publish, publish_file
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.prepared import fingerprint_of, open_prepared
from kdtvit_ray.errors import NodeFault, StorageLost, UserError
from kdtvit_ray.paths import Folder, StudyFolder


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    source = tmp_path / "images"
    source.mkdir()
    for name in ("SOB_B_A-14-1-40-001", "SOB_M_DC-14-2-40-001", "SOB_M_DC-14-2-100-001"):
        Image.fromarray(random.integers(0, 255, (46, 70, 3), dtype=np.uint8)).save(source / f"{name}.png")
    return prepare(source, tmp_path / "prepared", size=32)


def copy(location, fingerprint, folder):
    return str(local_copy("/not/on/this/node", fingerprint, location).path)


def test_a_set_that_lies_here_is_used_where_it_lies(prepared):
    assert local_copy(str(prepared.path), prepared.fingerprint).path == prepared.path
    with pytest.raises(UserError, match="use the set that the study was made for"):
        local_copy(str(prepared.path), "another")


def test_a_set_that_lies_here_and_is_damaged_is_copied_from_where_it_was_published(prepared, tmp_path):
    location = publish(prepared, Folder(str(tmp_path / "study")), "data/x")
    relabel(prepared.path / "table.parquet")
    with pytest.raises(UserError, match="changed by hand"):
        local_copy(str(prepared.path), prepared.fingerprint)
    copied = local_copy(str(prepared.path), prepared.fingerprint, location)
    assert (copied.path.parent, copied.fingerprint) == (tmp_path / "cache", prepared.fingerprint)


def test_a_published_set_is_copied_once_and_is_the_same(prepared, tmp_path):
    location = publish(prepared, Folder(str(tmp_path / "study")), "data/x")
    shutil.rmtree(prepared.path)
    made = local_copy(str(prepared.path), prepared.fingerprint, location)
    assert made.path.parent == tmp_path / "cache"
    assert fingerprint_of(made) == made.fingerprint == prepared.fingerprint
    shutil.rmtree(tmp_path / "study" / "data" / "x" / "..", ignore_errors=True)
    assert open_prepared(made.path).table.equals(made.table)


def test_processes_that_start_at_once_get_one_copy(prepared, tmp_path):
    location = publish(prepared, Folder(str(tmp_path / "study")), "data/x")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        made = pool.starmap(copy, [(location, prepared.fingerprint, "")] * 4)
    assert len(set(made)) == 1
    assert sorted(each.name for each in (tmp_path / "cache").iterdir()) == [
        prepared.fingerprint,
        f"{prepared.fingerprint}.lock",
    ]


def test_a_torn_copy_is_told_and_not_kept(prepared, tmp_path):
    location = publish(prepared, Folder(str(tmp_path / "study")), "data/x")
    images = tmp_path / "study" / "data" / "x" / "images.npy"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    with pytest.raises(UserError, match=f"set at '{location}' is damaged.*; delete it"):
        local_copy("/not/on/this/node", prepared.fingerprint, location)
    assert [each.name for each in (tmp_path / "cache").iterdir()] == [f"{prepared.fingerprint}.lock"]


def test_a_location_without_a_set_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="holds no prepared set"):
        local_copy(f"file://{tmp_path}/nothing")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """(file, its digest, the folder where it was published)."""
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "small.safetensors"
    file.write_bytes(b"weights")
    digest = digest_of(file)
    return file, digest, publish_file(file, digest, Folder(str(tmp_path / "study")), "data/weights")


def test_a_file_is_used_where_it_lies_or_copied_to_the_cache(weights, tmp_path):
    file, digest, location = weights
    assert local_file(str(file), digest, location) == file
    file.write_bytes(b"other weights")
    copied = local_file(str(file), digest, location)
    assert (copied.parent, copied.suffix, copied.read_bytes()) == (tmp_path / "cache", ".safetensors", b"weights")
    assert local_file(str(tmp_path / "gone.safetensors"), digest, location) == copied
    with pytest.raises(UserError, match="is not on this node, or is not what it was"):
        local_file(str(file), digest)


def test_a_torn_file_is_told_and_not_kept(weights, tmp_path):
    _, digest, location = weights
    (tmp_path / "study/data/weights" / f"{digest}.safetensors").write_bytes(b"weig")
    with pytest.raises(UserError, match="is damaged"):
        local_file("/not/on/this/node.safetensors", digest, location)
    assert [each.name for each in (tmp_path / "cache").iterdir()] == [f"{digest}.safetensors.lock"]


# -- a copy that is no longer what it was --------------------------------------------------------------------------


def zero_the_end(file):
    content = file.read_bytes()
    file.write_bytes(content[:-500] + bytes(500))


def relabel(file):
    table = pd.read_parquet(file)
    table.loc[0, "malignant"] = not table.loc[0, "malignant"]
    table.to_parquet(file, index=False)


def rename(file):
    file.write_text(file.read_text().replace('"fingerprint": "', '"fingerprint": "0'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images.npy", zero_the_end),
        ("images.npy", lambda file: os.truncate(file, 5_000)),
        ("images.npy", lambda file: file.unlink()),
        ("table.parquet", lambda file: file.write_bytes(b"PAR1")),
        ("table.parquet", relabel),
        ("prepared.json", lambda file: file.write_text("{")),
        ("prepared.json", rename),
    ],
)
def test_a_set_in_the_cache_that_is_not_what_it_was_is_copied_again(prepared, tmp_path, caplog, name, damage):
    location = publish(prepared, Folder(str(tmp_path / "study")), "data/x")
    kept = local_copy("/not/here", prepared.fingerprint, location).path
    assert not caplog.messages
    damage(kept / name)
    again = local_copy("/not/here", prepared.fingerprint, location)
    assert again.path == kept
    assert fingerprint_of(again) == again.fingerprint == prepared.fingerprint
    assert again.table.equals(prepared.table)
    assert [f"'{kept}' in the cache of " in each for each in caplog.messages] == [True]
    assert sorted(each.name for each in kept.parent.iterdir()) == [prepared.fingerprint, f"{prepared.fingerprint}.lock"]


def test_a_process_reads_the_set_in_the_cache_once(prepared, tmp_path, monkeypatch):
    location = publish(prepared, Folder(str(tmp_path / "study")), "data/x")
    local_copy("/not/here", prepared.fingerprint, location)
    read = []
    monkeypatch.setattr(cache, "_WHOLE", set())
    monkeypatch.setattr(cache, "fingerprint_of", lambda found: read.append(found.path) or fingerprint_of(found))
    for _ in range(3):
        local_copy("/not/here", prepared.fingerprint, location)
    assert read == [tmp_path / "cache" / prepared.fingerprint]


@pytest.mark.parametrize("content", [bytes(7), b"weig", b""])
def test_a_file_in_the_cache_that_is_not_what_it_was_is_copied_again(weights, caplog, content):
    _, digest, location = weights
    kept = local_file("/not/here.safetensors", digest, location)
    kept.write_bytes(content)
    assert local_file("/not/here.safetensors", digest, location) == kept
    assert kept.read_bytes() == b"weights"
    assert [f"'{kept}' in the cache of " in each for each in caplog.messages] == [True]


# -- a node whose disk is full, and storage that is away ---------------------------------------------------------------


@contextmanager
def room(size):
    """No file grows above `size` bytes, as on a disk that has so much left: the system refuses to write more."""
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, allowed[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)


def patiently(action):
    """As a worker calls it, which waits for storage that is away."""
    return StudyFolder("/study", (0.01,)).patiently("Copying", action)


@pytest.mark.parametrize("size", [0, 5_000])
def test_a_full_disk_is_the_nodes_fault_and_its_room_is_given_back(prepared, tmp_path, size):
    location = publish(prepared, Folder(str(tmp_path / "study")), "data/x")
    assert size < (prepared.path / "images.npy").stat().st_size
    with room(size), pytest.raises(NodeFault) as told:
        patiently(lambda: local_copy("/not/here", prepared.fingerprint, location))
    assert str(told.value).startswith(f"The cache '{tmp_path / 'cache'}' on host ")
    assert " cannot be written (File too large); set KDTVIT_CACHE to a folder that can hold" in str(told.value)
    assert [each.name for each in (tmp_path / "cache").iterdir()] == [f"{prepared.fingerprint}.lock"]
    # this waits for ever where somebody still holds the place
    assert local_copy("/not/here", prepared.fingerprint, location).fingerprint == prepared.fingerprint


@pytest.mark.parametrize("size", [0, 5])
def test_a_full_disk_is_the_nodes_fault_for_a_file_as_well(weights, tmp_path, size):
    _, digest, location = weights
    with room(size), pytest.raises(NodeFault, match=r"cannot be written \(File too large\); set KDTVIT_CACHE"):
        patiently(lambda: local_file("/not/here.safetensors", digest, location))
    assert [each.name for each in (tmp_path / "cache").iterdir()] == [f"{digest}.safetensors.lock"]
    partial = tmp_path / f"cache/{digest}.safetensors.partial"
    partial.write_text("what one that was killed has left")
    assert local_file("/not/here.safetensors", digest, location).read_bytes() == b"weights"
    assert not partial.exists()


@pytest.mark.parametrize("blocked", ["folder", "lock", "copy"])
def test_a_cache_that_cannot_be_used_is_the_nodes_fault(prepared, weights, tmp_path, monkeypatch, blocked):
    """A file where its folder would be, and folders where files would be."""
    _, digest, published = weights
    location, name = publish(prepared, Folder(str(tmp_path / "study")), "data/x"), f"{digest}.safetensors"
    cache = tmp_path / "blocked"
    monkeypatch.setenv("KDTVIT_CACHE", str(cache))
    if blocked == "folder":
        cache.touch()
    elif blocked == "lock":
        (cache / f"{name}.lock").mkdir(parents=True)
        (cache / f"{prepared.fingerprint}.lock").mkdir()
    else:
        (cache / name / "full").mkdir(parents=True)
        cache.joinpath(prepared.fingerprint).touch()
    for action in (
        lambda: local_file("/not/here.safetensors", digest, published),
        lambda: local_copy("/not/here", prepared.fingerprint, location),
    ):
        with pytest.raises(NodeFault, match=f"The cache '{cache}' on host .*; set KDTVIT_CACHE"):
            patiently(action)


def test_storage_that_fails_is_no_fault_of_the_node(prepared, weights, tmp_path):
    _, digest, published = weights
    location = publish(prepared, Folder(str(tmp_path / "study")), "data/x")
    for broken in (tmp_path / "study/data/x/images.npy", tmp_path / f"study/data/weights/{digest}.safetensors"):
        broken.unlink()
        broken.mkdir()  # it is there, and reading it is an error
    with pytest.raises(StorageLost):
        patiently(lambda: local_copy("/not/here", prepared.fingerprint, location))
    with pytest.raises(StorageLost):
        patiently(lambda: local_file("/not/here.safetensors", digest, published))


# -- a set that was published in part ----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b'{"finger', b"[]", b"{}", b"\xff", b'{"fingerprint": "another"}'])
def test_a_published_set_that_is_not_whole_is_told_and_published_again(prepared, tmp_path, content):
    study = Folder(str(tmp_path / "study"))
    location = publish(prepared, study, "data/x")
    (tmp_path / "study/data/x/prepared.json").write_bytes(content)
    with pytest.raises(UserError, match=r"holds no prepared set|has fingerprint another"):
        local_copy("/not/here", prepared.fingerprint, location)
    assert publish(prepared, study, "data/x") == location
    assert local_copy("/not/here", prepared.fingerprint, location).fingerprint == prepared.fingerprint


@pytest.mark.parametrize("name", ["images.npy", "table.parquet"])
def test_a_file_of_a_published_set_that_was_cut_off_is_published_again(prepared, tmp_path, name):
    """By a machine that lost its power, before its disk had what was written before `prepared.json`."""
    study = Folder(str(tmp_path / "study"))
    location = publish(prepared, study, "data/x")
    (tmp_path / "study/data/x" / name).write_bytes(b"")
    publish(prepared, study, "data/x")
    assert local_copy("/not/here", prepared.fingerprint, location).fingerprint == prepared.fingerprint


def test_a_file_that_was_published_in_part_is_published_again(weights, tmp_path):
    file, digest, location = weights
    there = tmp_path / "study/data/weights" / f"{digest}.safetensors"
    there.write_bytes(b"")
    assert publish_file(file, digest, Folder(str(tmp_path / "study")), "data/weights") == location
    assert there.read_bytes() == b"weights"


def test_a_set_is_published_once(prepared, tmp_path):
    study, there = Folder(str(tmp_path / "study")), tmp_path / "study/data/x"
    publish(prepared, study, "data/x")
    made = {each.name: each.stat().st_mtime_ns for each in there.iterdir()}
    publish(prepared, study, "data/x")
    assert {each.name: each.stat().st_mtime_ns for each in there.iterdir()} == made


def test_the_file_that_makes_it_a_set_comes_whole_or_not_at_all(prepared, tmp_path):
    about = json.loads((prepared.path / "prepared.json").read_text())
    about["about"]["notes"] = ["long"] * 10_000
    (prepared.path / "prepared.json").write_text(json.dumps(about))
    with room(50_000), pytest.raises(OSError, match="File too large"):
        publish(prepared, Folder(str(tmp_path / "study")), "data/x")
    assert sorted(each.name for each in (tmp_path / "study/data/x").iterdir()) == ["images.npy", "table.parquet"]
