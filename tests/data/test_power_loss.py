"""A machine that loses its power: what makes a set or a copy of it one is written after all of it is on disk."""

import os
from pathlib import Path

import numpy as np
import pytest

from kdtvit_ray.data import resized
from kdtvit_ray.data.cache import digest_of, kept_file, local_copy, local_file, publish, publish_file
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.prepared import open_prepared
from kdtvit_ray.paths import Folder, sync


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch):
    monkeypatch.setenv("KDTVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def synced(monkeypatch):
    """Inodes that were put on disk, in their order, with the names of what was renamed in between."""
    happened, real = [], os.fsync

    def note(opened):
        real(opened)
        happened.append(os.fstat(opened).st_ino)

    def noting(move):
        def noted(path, target):
            happened.append(Path(target).name)
            return move(path, target)

        return noted

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", noting(Path.rename))
    monkeypatch.setattr(Path, "replace", noting(Path.replace))
    return happened


def in_order(synced, *wanted):
    """Whether each of `wanted`, a path or the name of a rename, happened after the one before it."""
    found = iter(synced)
    return all((each if isinstance(each, str) else each.stat().st_ino) in found for each in wanted)


def test_a_set_is_on_disk_before_its_mark_is(images, tmp_path, synced):
    out = tmp_path / "set"
    prepare(images, out, size=16)
    for name in ("images.npy", "table.parquet", "prepared.json"):
        assert in_order(synced, out / name, "prepared.json", out)


def test_a_copy_of_a_set_is_on_disk_before_it_has_its_place(data, tmp_path, node, synced):
    prepared, study = open_prepared(data), Folder(str(tmp_path / "study"))
    location = publish(prepared, study, "data/x")
    for name in ("images.npy", "table.parquet"):
        assert in_order(synced, tmp_path / "study/data/x" / name, "prepared.json")
    copy = local_copy("/not/here", prepared.fingerprint, location).path
    for name in ("images.npy", "table.parquet", "prepared.json"):
        assert in_order(synced, copy / name, copy, prepared.fingerprint, node)


def test_weights_are_on_disk_before_they_have_their_place(tmp_path, node, synced):
    file = tmp_path / "small.safetensors"
    file.write_bytes(b"weights")
    digest = digest_of(file)
    location = publish_file(file, digest, Folder(str(tmp_path / "study")), "data/weights")
    name = f"{digest}.safetensors"
    assert in_order(synced, tmp_path / "study/data/weights" / name, name)
    for made in (local_file("/not/here.safetensors", digest, location), kept_file(b"hub", "other.safetensors")):
        assert in_order(synced, made, made.name, node)


def test_resized_images_are_on_disk_before_they_have_their_place(node, synced):
    resized.shared(np.zeros((3, 32, 32, 3), np.uint8), "print", 16, "none")
    (made,) = node.glob("*.npy")
    assert in_order(synced, made, made.name, node)


def test_a_folder_that_cannot_be_put_on_disk_is_no_error_and_a_file_is(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError("Invalid argument")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")
