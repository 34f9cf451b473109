"""The names for notebooks, and the page that shows them: its code runs as it is printed."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import kdtvit_ray as kd
from kdtvit_ray.errors import UserError
from tests.cluster.real_sweeps import ROOT


def code():
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/notebook.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_runs_as_printed(study, images, tmp_path, monkeypatch):
    """Where `make demo` has been: here its images and its study are small ones."""
    (tmp_path / "demo/images").mkdir(parents=True)
    for path in images.glob("*.png"):  # four of eight classes, two of four magnifications
        if re.search(r"_(A|F|DC|LC)-14-\d+-(40|100)-", path.name):
            shutil.copy(path, tmp_path / "demo/images")
    shutil.copytree(study, tmp_path / "demo/study")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in code():
        exec(block, names)
    assert names["measured"]["stage"].max() == 2
    assert set(names["measured"]["trained"]) == {"100", "40"}
    assert len(names["table"]) == len(list((tmp_path / "demo/images").glob("*-40-*.png")))
    assert names["table"].attrs["unreadable"] == []
    assert isinstance(names["study"].headline("auc"), pd.DataFrame)


def test_what_a_study_says_is_what_its_folder_has(study):
    opened = kd.open_study(str(study))
    assert set(opened.trials["kind"]) == {"search", "baseline", "inner", "refit"}
    assert len(opened.stages) == len(list((study / "stages").iterdir()))
    wide, rows = opened.headline("accuracy"), opened.rows
    last = rows[(rows["key"] == opened.best.keys[-1]) & (rows["split"] == "test") & (rows["level"] == "image")]
    last = last[last["metric"] == "accuracy"].drop_duplicates("magnification").set_index("magnification")["value"]
    for magnification, value in last.items():
        assert wide.loc["Best chain", f"{magnification}X"] == pytest.approx(value)
    assert opened.figure("roc")._repr_svg_().lstrip().startswith("<?xml")
    assert opened.answer[0] in opened._repr_html_().replace("&#x27;", "'")
    with pytest.raises(UserError, match=r"Unknown figure 'rok' \(did you mean 'roc'"):
        opened.figure("rok")


def test_mistakes_are_sentences_and_unreadable_images_are_told(study, tmp_path):
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        kd.run_chain("demo", tmp_path, temprature=3)
    with pytest.raises(UserError):
        kd.open_study(tmp_path / "nothing")
    with pytest.raises(AttributeError, match="no attribute 'sweeep'"):
        _ = kd.sweeep
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    found = kd.predict(study, [tmp_path / "good.png", tmp_path / "bad.png"], trial="joint", threshold="0.2")
    assert len(found) == 1
    assert found.attrs["unreadable"] == [(str(tmp_path / "bad.png"), "no image that can be decoded")]
