"""A machine that loses its power: what makes a set or a copy of it one is written after all of it is on disk."""

import os
from pathlib import Path

import pytest

from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.paths import sync


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


def test_a_folder_that_cannot_be_put_on_disk_is_no_error_and_a_file_is(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError("Invalid argument")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")
