"""Zip archives are read in place as tar archives are, and what cannot be read of them is told in a sentence."""

import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtvit_ray.data.findings import Refused
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.data.sources import scan
from kdtvit_ray.deliver.inputs import Images
from kdtvit_ray.errors import UserError

PATHS = [
    f"{at}X/{side}/p{patient}/{at}.png" for at in (40, 100) for patient, side in enumerate(("benign", "malignant"))
]


@pytest.fixture
def tree(tmp_path) -> Path:
    for seed, path in enumerate(PATHS):
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / path)
    return tmp_path / "set"


def zipped(tree: Path, name: str = "set.zip", how: int = zipfile.ZIP_DEFLATED, separator: str = "/") -> Path:
    """The tree as a Mac packs it, with a shadow of each file."""
    with zipfile.ZipFile(tree.parent / name, "w", how) as packed:
        packed.writestr("40X/", b"")
        for path in PATHS:
            entry = zipfile.ZipInfo(path)
            entry.filename = path.replace("/", separator)
            entry.compress_type = how
            packed.writestr(entry, (tree / path).read_bytes())
            packed.writestr(f"__MACOSX/{Path(path).parent}/._{Path(path).name}", b"shadow")
    return tree.parent / name


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_makes_the_set_that_its_folder_makes(tree, tmp_path, how):
    whole = prepare(tree, tmp_path / "a", size=16)
    packed = prepare(zipped(tree, "Set.ZIP", how), tmp_path / "b", size=16)
    assert packed.fingerprint == whole.fingerprint
    assert packed.about["images"] == len(PATHS)


def test_paths_that_windows_wrote_are_read(tree):
    assert sorted(each.path for each in scan(zipped(tree, separator="\\")).images) == sorted(PATHS)


def test_images_of_a_zip_are_predicted_in_its_order(tree):
    found = list(Images([str(zipped(tree))]))
    assert [each.name for each in found] == [f"{tree.parent}/set.zip/{path}" for path in PATHS]
    assert [each.read() for each in found] == [(tree / path).read_bytes() for path in PATHS]


def test_what_cannot_be_read_of_a_zip_is_told(tree):
    source = zipped(tree)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"'.*set.zip' is truncated or damaged after 0 images .*; fetch it again"):
        scan(source)
    at = whole.index((tree / PATHS[2]).name.encode(), whole.index(PATHS[2].encode())) + 60
    source.write_bytes(whole[:at] + bytes(255 - each for each in whole[at : at + 20]) + whole[at + 20 :])
    with pytest.raises(UserError, match=r"'.*set.zip' is truncated or damaged after 2 images"):
        prepare(source, tree.parent / "out", size=16)
    central = whole.rindex(b"PK\x01\x02")
    encrypted = bytearray(whole)
    encrypted[central + 8] |= 1
    source.write_bytes(encrypted)
    with pytest.raises(UserError, match=r"'.*set.zip' is encrypted; unpack it and name its folder"):
        scan(source)
    with zipfile.ZipFile(source, "w") as packed:
        for path in PATHS:
            packed.write(tree / path, path)
    unknown = bytearray(source.read_bytes())
    for head, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = unknown.index(head) + offset
        unknown[at : at + 2] = (97).to_bytes(2, "little")
    source.write_bytes(unknown)
    with pytest.raises(UserError, match=r"'.*set.zip': .*compression.*; unpack it and name its folder"):
        prepare(source, tree.parent / "out", size=16)


def test_links_in_a_zip_are_told(tree):
    source = zipped(tree)
    with zipfile.ZipFile(source, "a") as packed:
        link = zipfile.ZipInfo("40X/benign/p0/link.png")
        link.create_system = 3
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "../40.png")
    with pytest.raises(Refused, match=r"pack it again with 'zip -r', without -y\): .*link.png: a link to ../40.png"):
        scan(source)
