"""A study's model as a folder: what plain timm and ONNX Runtime make of it, and what is refused."""

import io
import json
import math
import os
import pickle
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

from kdtvit_ray.cli import main
from kdtvit_ray.deliver import folder
from kdtvit_ray.deliver.card import OFFSETS, SNIPPET, _no_certainty
from kdtvit_ray.deliver.export import _crop_pct, export, timm_config
from kdtvit_ray.deliver.maps import mappable
from kdtvit_ray.deliver.model import TorchModel, open_model
from kdtvit_ray.deliver.model_choice import choose_model, describe, network_of
from kdtvit_ray.errors import UserError
from kdtvit_ray.report.patient_section import TITLE
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.operating import operating
from kdtvit_ray.results.patient_sentences import NO_CERTAINTY
from kdtvit_ray.results.statistics import Interval
from kdtvit_ray.results.study import load
from kdtvit_ray.results.subtypes import METRICS
from tests.deliver.conftest import SPACE, trained

SMALL_DAVIT = "{ depths = [1, 1, 1, 1], embed_dims = [8, 16, 24, 32], num_heads = [1, 1, 1, 1] }"


def inputs(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32))


def test_the_three_lines_of_the_card_load_the_model_as_printed(model, study, monkeypatch):
    card = (model / folder.CARD).read_text()
    assert SNIPPET in card
    monkeypatch.chdir(model)
    names: dict = {}
    exec(SNIPPET, names)
    own = open_model(str(study))
    assert isinstance(own, TorchModel)
    with torch.no_grad():
        assert torch.equal(names["model"](inputs(5)), own.network(inputs(5)))
    shown = names["transform"](Image.new("RGB", (36, 24)))
    assert shown.shape == (3, 16, 16)


def test_the_card_adds_the_offsets_of_class_weights_as_predict_does(study, model, tmp_path, monkeypatch):
    assert "offsets" not in (model / folder.CARD).read_text()
    shutil.copytree(study, tmp_path / "study")
    record = tmp_path / "study" / "stages" / choose_model(str(study)).key / "stage.json"
    plain = json.loads(record.read_text())
    plain["weighting"]["logit_offsets"] = [0.5, -1.0, 0.25, 0.0, 2.0, 0.0, -0.5, 1.0]
    record.write_text(json.dumps(plain))
    export(str(tmp_path / "study"), tmp_path / "model")
    card = (tmp_path / "model" / folder.CARD).read_text()
    assert card.index(SNIPPET) < card.index(OFFSETS) < card.index("The exact preprocessing")
    monkeypatch.chdir(tmp_path / "model")
    names: dict = {}
    exec(SNIPPET, names)
    logits = names["logits"] = names["model"](inputs(5)).detach()
    exec(OFFSETS, names)
    expected = open_model(".").description.probabilities(logits.numpy())
    np.testing.assert_allclose(names["probabilities"], expected, atol=1e-6)


@pytest.mark.slow
def test_a_model_that_takes_no_image_size_is_exported_and_loads_again(data, tmp_path, monkeypatch):
    made = f'name = "davit_tiny"\nargs = {SMALL_DAVIT}\nimage_size = 24\n'
    space = SPACE.partition("[models")[0].replace("folds = 2", "folds = 1").replace("trials = 2", "trials = 1")
    space += f"[models.big]\n{made}[training]\nepochs = 2\n[search]\ntemperature = [2]\n"
    study = trained(space, tmp_path, data)
    export(str(study), tmp_path / "model")
    assert "img_size" not in json.loads((tmp_path / "model" / folder.CONFIG).read_text())["model_args"]
    own, exported = (open_model(str(each)) for each in (study, tmp_path / "model"))
    images = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    assert np.array_equal(own.probabilities(images), exported.probabilities(images))
    monkeypatch.chdir(tmp_path / "model")
    names: dict = {}
    exec(SNIPPET, names)
    assert names["model"](torch.zeros(1, 3, 24, 24)).shape == (1, 8)
    with pytest.raises(UserError, match="Maps of a DaVit cannot be made"):
        mappable(exported)


@pytest.mark.parametrize(("aspect", "off"), [("squash", 0.01), ("crop", 1)])
@pytest.mark.parametrize(("size", "crop"), [(16, "none"), (16, "centre"), (24, "centre"), (49, "centre")])
def test_timms_own_preprocessing_shows_the_same_part_of_an_image(study, aspect, off, size, crop):
    chosen = choose_model(str(study))
    told = describe(chosen)
    told = replace(told, preprocessing={**told.preprocessing, "size": size, "aspect": aspect, "crop": crop})
    shades = np.add.outer(np.arange(46), np.arange(70))[..., None] * np.array([2, 1, 1.5])
    picture = Image.fromarray(shades.astype(np.uint8))
    png = io.BytesIO()
    picture.save(png, "PNG")
    how = timm_config(chosen, told, network_of(chosen))["pretrained_cfg"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=how))
    exact = told.normalised(told.pixels(png.getvalue())[None])[0]
    assert np.abs(transform(picture).numpy() - exact).mean() * 255 * told.preprocessing["std"][0] < off


def test_timm_resizes_to_the_size_before_the_cut():
    for size in range(1, 600):
        assert all(math.floor(cut / _crop_pct(cut, size)) == size for cut in range(1, size + 1))


@pytest.mark.parametrize("batch", [1, 2, 37])
def test_onnx_agrees_with_pytorch_at_any_batch(model, batch):
    session = onnxruntime.InferenceSession(str(model / folder.ONNX), providers=["CPUExecutionProvider"])
    own = open_model(str(model))
    with torch.no_grad():
        expected = own.network(inputs(batch)).numpy()
    found = session.run(None, {"input": inputs(batch).numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_exporting_twice_gives_the_same_bytes_and_replaces_what_was_there(model, study, tmp_path):
    again = tmp_path / "again"
    export(str(study), again, int8=True)
    assert (again / folder.ONNX_INT8).stat().st_size < (again / folder.ONNX).stat().st_size
    export(str(study), again)
    names = sorted(each.name for each in model.iterdir())
    assert sorted(each.name for each in again.iterdir()) == names
    for name in names:
        assert (again / name).read_bytes() == (model / name).read_bytes(), name
    content = (model / folder.ONNX).read_bytes()
    assert os.fsencode(Path.cwd()) not in content
    assert b"site-packages" not in content


def test_a_file_that_is_used_and_is_missing_or_was_changed_is_named(model, tmp_path, monkeypatch):
    """The card is for people to complete, and git changes the ends of its lines; other files may be left out."""
    files = json.loads((model / folder.CONFIG).read_text())[folder.OWN]["files"]
    assert set(files) == {folder.WEIGHTS, folder.ONNX, folder.CARD}
    for name in files:
        for change in ("gone", "changed"):
            broken = tmp_path / f"{name}-{change}"
            shutil.copytree(model, broken)
            if change == "gone":
                (broken / name).unlink()
            else:
                content = bytearray((broken / name).read_bytes())
                content[len(content) // 2] ^= 1
                (broken / name).write_bytes(bytes(content))
            for torch_is_there, used in ((True, folder.WEIGHTS), (False, folder.ONNX)):
                monkeypatch.setattr("kdtvit_ray.deliver.model._has_torch", lambda there=torch_is_there: there)
                refused = pytest.raises(UserError, match=re.escape(name)) if name == used else nullcontext()
                with refused:
                    open_model(str(broken))
    monkeypatch.undo()
    broken = tmp_path / "config"
    shutil.copytree(model, broken)
    config = json.loads((broken / folder.CONFIG).read_text())
    config[folder.OWN]["description"]["thresholds"]["half"] = 0.1
    (broken / folder.CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json was changed"):
        open_model(str(broken))
    (broken / folder.ONNX).write_bytes(b"something else")
    with pytest.raises(UserError, match=r"model\.onnx is not the file"):
        open_model(str(broken / folder.ONNX))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
def test_no_file_is_ever_unpickled(model, tmp_path, name):
    broken, mark = tmp_path / "broken", tmp_path / "mark"
    shutil.copytree(model, broken)
    content = pickle.dumps(Bomb(str(mark)))
    (broken / name).write_bytes(content)
    config = json.loads((broken / folder.CONFIG).read_text())
    own = config[folder.OWN]
    own["files"][name] = {"bytes": len(content), "sha256": folder._sha256(content)}
    own["sha256"] = folder._own_sha256(config)
    (broken / folder.CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"cannot be (read|loaded)"):
        open_model(str(broken if name == folder.WEIGHTS else broken / name))
    assert not mark.exists()


def numbers(line):
    """Value, low and high of each cell of a table's line in Markdown."""
    return [[float(each) for each in re.findall(r"\d+\.\d+", cell)] for cell in line.split("|")]


def test_the_card_has_the_figures_and_intervals_of_the_report(model, study):
    card = (model / folder.CARD).read_text()
    findings = Findings(load(str(study)))
    wide = findings.headline.wide("auc").loc["Best chain"]
    (line,) = re.findall(r"^\| AUC \|(.*)\|$", card, re.MULTILINE)
    columns = [*(f"{each}X" for each in findings.study.magnifications), "mean"]
    low, high = (findings.headline.wide("auc").attrs[end].loc["Best chain"] for end in ("low", "high"))
    assert numbers(line) == [[round(part[column], 3) for part in (wide, low, high)] for column in columns]
    assert findings.best is not None
    for word in (findings.best.keys[-1], "not a medical device", "10.1038/s41598-026-49792-6", "backward transfer"):
        assert word in card
    assert findings.patients is not None
    assert findings.patients.added is not None
    for each in findings.patients.added.subsets:
        line, *comparison = re.findall(rf"^\| {each.name} \|(.*)\|$", card, re.MULTILINE)
        assert len(comparison) == (each.gain is not None)
        ours = [[round(part, 3) for part in (of.value, of.low, of.high)] for of in each.values.values()]
        assert numbers(line)[: len(ours)] == ours
    for sentence in ("cannot be told from it", "temperature"):
        assert sentence in card
    subtypes = findings.subtypes["best"]
    (line,) = re.findall(r"^Called the most probable of the 8 classes, .*$", card, re.MULTILINE)
    for metric, name in METRICS.items():
        assert f" {name} {subtypes.metric(metric, 'mean').value:.3f}" in line


def test_the_card_says_what_an_interval_without_width_is_worth(model):
    card = (model / folder.CARD).read_text()
    for title in ("What it reaches on test patients", TITLE):
        part = card.split(f". {title}\n")[1].split("\n## ")[0]
        low_and_high = [cell[1:] for line in part.splitlines() for cell in numbers(line) if line.startswith("|")]
        assert any(len(each) == 2 and each[0] == each[1] for each in low_and_high), title
        assert NO_CERTAINTY in part, title
    assert _no_certainty([Interval(0.5, 0.4, 0.6), Interval(1.0)]) == ""


def test_the_card_names_the_magnifications_that_a_mean_is_over(model):
    """The chain's order is 40>100, and the set has four magnifications."""
    card = (model / folder.CARD).read_text()
    assert "as the mean over the chain's own magnifications, 40X and 100X, after the last stage" in card


def test_the_card_names_the_set_as_a_name(model, study):
    assert f"images like those of the set '{load(str(study)).dataset.name}' at" in (model / folder.CARD).read_text()


def test_decisions_of_a_setting_that_racing_dropped_rest_on_the_folds_that_judged_it(study):
    best, raced = choose_model(str(study)).trial, load(str(study))
    dropped = "t0001" if best == "t0000" else "t0000"
    raced.trials = raced.trials[raced.trials["trial"] != f"{dropped}-i2"].reset_index(drop=True)
    told = {trial: operating(raced, trial, choose_model(raced, trial).key, 10).judged_on for trial in (best, dropped)}
    assert told == {
        best: "out-of-fold predictions",
        dropped: "out-of-fold predictions of the 1 of 2 inner folds that judged it",
    }


def test_a_trial_is_chosen_by_name_number_or_baseline(study):
    best = choose_model(str(study))
    assert best.is_best
    assert best.refit
    other = choose_model(str(study), "1" if best.trial == "t0000" else "0")
    assert (other.is_best, other.refit, other.chain.endswith("-i1")) == (False, False, True)
    joint = choose_model(str(study), "joint")
    assert joint.record.trained == "40+100"
    assert choose_model(str(study), "per_magnification-40").record.trained == "40"
    with pytest.raises(UserError, match=r"one model for each magnification.*per_magnification-100, per_magn"):
        choose_model(str(study), "per_magnification")
    with pytest.raises(UserError, match="did you mean 'joint'"):
        choose_model(str(study), "jiont")


def test_what_cannot_be_exported_is_told(study, tmp_path, capsys):
    broken = tmp_path / "study"
    shutil.copytree(study, broken)
    weights = broken / "stages" / choose_model(str(broken)).key / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert main(["export", str(broken), str(tmp_path / "out")]) == 2
    assert "do not have the hash" in capsys.readouterr().err
    assert main(["export", str(study), str(study)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert main(["export", str(study), str(tmp_path / "out"), "--int8", "--data", str(tmp_path)]) == 2
    assert "holds no prepared set" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["/proc/model", "note.txt/model"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_exported(study, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("mine")
    monkeypatch.setattr("kdtvit_ray.deliver.export.choose_model", lambda *_: pytest.fail("the study was read"))
    with pytest.raises(UserError, match=f"^Cannot write the model to '{out}': "):
        export(str(study), Path(out))


def test_what_is_no_model_is_told(model, study, tmp_path):
    with pytest.raises(UserError, match=r"Model '.*/mdel' does not exist; allowed: the folder of an export, its"):
        open_model(str(model.with_name("mdel")))
    shutil.copytree(model, tmp_path / "half", ignore=shutil.ignore_patterns(folder.CONFIG))
    with pytest.raises(UserError, match=r"Model '.*/half' lacks config\.json; copy the whole folder"):
        open_model(str(tmp_path / "half"))
    with pytest.raises(
        UserError, match=r"holds neither config\.json nor study\.toml; allowed: the folder of an export"
    ):
        open_model(str(study / "stages"))


def test_an_onnx_file_beside_a_model_of_another_program_is_read_alone(model, tmp_path):
    shutil.copy(model / folder.ONNX, tmp_path)
    (tmp_path / folder.CONFIG).write_text('{"model_type": "vit"}')
    assert open_model(str(tmp_path / folder.ONNX)).description == open_model(str(model)).description


def test_only_what_can_be_chosen_is_allowed(study):
    opened = load(str(study))
    opened.trials = opened.trials[:0]
    with pytest.raises(UserError, match=r"Unknown trial of '.*' '0'; allowed: none, no trial has ended yet"):
        choose_model(opened, "0")


def test_the_command_says_what_it_wrote(study, tmp_path, capsys):
    assert main(["export", str(study), str(tmp_path / "out"), "--int8"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "differ by at most" in told
    assert re.search(r"in a probability, and in \d+ decisions", told)
    assert "model.int8.onnx" in told
