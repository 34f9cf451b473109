"""Real BreakHis images through a model that was trained on drawn ones: every file is read, whatever it is worth."""

import os
from pathlib import Path

import pytest

import kdtvit_ray as kd
from kdtvit_ray.cli import main

pytestmark = pytest.mark.skipif("KDTVIT_BREAKHIS" not in os.environ, reason="KDTVIT_BREAKHIS names no folder of images")


def test_every_real_image_is_predicted_alike_by_all_ways(study, model, tmp_path):
    folder = Path(os.environ["KDTVIT_BREAKHIS"])
    whole = kd.predict(model, folder)
    assert len(whole) == len(list(folder.rglob("SOB_*.png")))
    assert whole.attrs["unreadable"] == []
    assert (kd.predict(study, folder)["probability"] == whole["probability"]).all()
    onnx = kd.predict(model / "model.onnx", folder)
    assert (onnx["probability"] - whole["probability"]).abs().max() < 1e-4
    assert main(["predict", str(model), str(folder), "--out", str(tmp_path / "found.csv")]) == 0
