"""What images `predict` and `explain` are given: each file once, with what its table or its BreakHis name tells."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdtvit_ray.cli import main
from kdtvit_ray.deliver.inputs import Images


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


# -- the same image several times --------------------------------------------------------------------------------------


@pytest.fixture
def deep(tmp_path):
    """Three images in a folder within a folder."""
    for number in range(3):
        picture(tmp_path / f"deep/inner/{number}.png", number)
    return tmp_path / "deep"


@pytest.mark.parametrize(
    "sources",
    [
        ["{deep}/**"],
        ["{deep}", "{deep}/inner"],
        ["{deep}", "{deep}/inner/1.png"],
        ["{deep}/inner/*.png", "{deep}/../deep"],
        ["{deep}", "{link}"],
        ["{deep}", "{table}"],
        ["{zip}", "{zip}"],
        ["{table}", "{table}"],
    ],
    ids=" ".join,
)
def test_an_image_that_several_sources_lead_to_is_one(deep, tmp_path, sources):
    (tmp_path / "link").symlink_to(deep)
    (tmp_path / "t.csv").write_text("path\n" + "".join(f"deep/inner/{number}.png\n" for number in range(3)))
    shutil.make_archive(str(tmp_path / "deep"), "zip", deep)
    places = {"deep": deep, "link": tmp_path / "link", "table": tmp_path / "t.csv", "zip": tmp_path / "deep.zip"}
    images = Images([each.format(**places) for each in sources])
    assert sorted(each.name[-5:] for each in images) == ["0.png", "1.png", "2.png"]
    assert images.total in (3, None)
    assert images.notes == [f"Files that were named again, and count once: {images.repeated}"]
    assert images.findings == []


def test_images_that_are_named_again_are_predicted_once_and_copies_are_told(model, deep, tmp_path, capsys):
    shutil.copytree(deep, tmp_path / "copy")
    out = tmp_path / "found.csv"
    assert main(["predict", str(model), f"{deep}/**", str(tmp_path / "copy"), "--out", str(out)]) == 0
    shown = said(capsys)
    assert len(pd.read_csv(out)) == 6
    assert "Files that were named again, and count once: 6" in shown
    assert "Images with the pixels of an image before them, each of which counts as one of its own: 3 of 6" in shown
    assert main(["predict", str(model), str(deep)]) == 0
    shown = said(capsys)
    assert "named again" not in shown
    assert "an image before them" not in shown
    assert main(["explain", str(model), str(deep), f"{deep}/inner/0.png", "--out", str(tmp_path / "maps")]) == 0
    assert "named again, and count once: 1" in said(capsys)
