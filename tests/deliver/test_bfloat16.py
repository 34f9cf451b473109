"""The model of a study that computed in bfloat16: ONNX is held against float32, and what that changes is told."""

import json
import shutil

import pandas as pd
import pytest
import torch

from kdtvit_ray.cli import main
from kdtvit_ray.deliver import folder
from kdtvit_ray.deliver.export import AGREEMENT, export
from kdtvit_ray.deliver.model import TorchModel, open_model
from kdtvit_ray.deliver.model_choice import choose_model, describe, network_of

SHIFT = 0.02


@pytest.fixture
def rounded(study, tmp_path, monkeypatch):
    """A study that says it computed in bfloat16, whose probabilities are `SHIFT` off, on a device that has bfloat16."""
    shutil.copytree(study, tmp_path / "study")
    stage = tmp_path / "study" / "stages" / choose_model(str(study)).key
    plain = json.loads((stage / "stage.json").read_text())
    plain["spec"]["numeric"]["dtype"] = "bfloat16"
    (stage / "stage.json").write_text(json.dumps(plain))
    frame = pd.read_parquet(stage / "predictions.parquet")
    frame.assign(probability=frame["probability"] + SHIFT).to_parquet(stage / "predictions.parquet")
    monkeypatch.setattr("kdtvit_ray.learning.numeric.has_bfloat16", lambda device: True)
    return tmp_path / "study"


def test_onnx_is_held_against_float32_and_the_studys_own_probabilities_against_both(rounded, tmp_path, capsys):
    chosen = choose_model(str(rounded))
    told = describe(chosen)
    pixels = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8).numpy()
    both = [TorchModel(network_of(chosen), each, device="cpu").logits(pixels) for each in (told, told.in_float32())]
    assert abs(both[0] - both[1]).max() > 2 * AGREEMENT, "this device computes bfloat16"

    assert main(["export", str(rounded), str(tmp_path / "model"), "--int8"]) == 0
    assert "The study computed in bfloat16: its own numbers differ by at most 0.02 in a probability" in (
        " ".join(capsys.readouterr().out.split())
    )
    card = (tmp_path / "model" / folder.CARD).read_text()
    assert "the probability of malignant differs by up to 0.020" in card
    note = "computes in float32: its probabilities of malignant differ from the study's by up to 0.02 on test images"
    assert note in open_model(str(tmp_path / "model" / folder.ONNX)).notes[0]
    assert not open_model(str(tmp_path / "model")).notes


def test_where_it_was_not_measured_that_is_said(rounded, tmp_path, monkeypatch):
    monkeypatch.setattr("kdtvit_ray.deliver.export.prepared_of", lambda *_: None)
    assert export(str(rounded), tmp_path / "model").compared.bfloat16 is None
    assert "How much that changes was not measured" in (tmp_path / "model" / folder.CARD).read_text()
    monkeypatch.setattr("kdtvit_ray.learning.numeric.has_bfloat16", lambda device: False)
    for source in ("model", f"model/{folder.ONNX}", "study"):
        assert "was not measured" in open_model(str(tmp_path / source)).notes[0]


def test_a_study_in_float32_has_no_such_notes(model):
    assert not open_model(str(model / folder.ONNX)).notes
    assert "bfloat16" not in (model / folder.CARD).read_text()
