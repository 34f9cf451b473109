"""Node-local copies of a prepared set: made once, checked, never torn."""

import multiprocessing
import shutil

import numpy as np
import pytest
from PIL import Image

from kdtvit_ray.data.cache import digest_of, local_copy, local_file, publish, publish_file
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.prepared import fingerprint_of, open_prepared
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import Folder


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
    with pytest.raises(UserError, match="is damaged"):
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
