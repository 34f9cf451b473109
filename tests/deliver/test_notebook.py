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
from tests.data import other_sets


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


def test_a_number_stands_for_a_trial_as_on_the_command_line(study, data, images):
    opened = kd.open_study(str(study))
    pd.testing.assert_frame_equal(opened.predictions(1), opened.predictions("t0001"))
    picture = next(images.glob("*.png"))
    by_name, by_number = (kd.predict(study, picture, trial=each) for each in ("t0000", 0))
    pd.testing.assert_frame_equal(by_name, by_number)
    for ask in (opened.predictions, lambda trial: kd.run_chain(study, data, trial=trial)):
        with pytest.raises(UserError, match=r"Unknown trial of '.*' '(t00)?99'"):
            ask(99)


def test_a_trial_of_a_study_is_run_again_by_its_number(study, data):
    opened = kd.open_study(str(study))
    last = opened.rows[opened.rows["key"] == opened.best.keys[-1]]  # its refit, as the chain of a trial is
    names = ["split", "level", "metric", "magnification"]
    measured = (
        kd.run_chain(study, data, trial=int(opened.best.trial[1:]))
        .query("stage == 2")
        .set_index(names)["value"]
        .sort_index()
    )
    expected = last.drop_duplicates(names).set_index(names)["value"].reindex(measured.index)
    np.testing.assert_allclose(measured, expected, rtol=1e-6)


def test_predictions_come_with_what_the_command_says(study, images, tmp_path):
    chosen = kd.open_study(study).predictions()
    splits = chosen.drop_duplicates("name").set_index("name")["split"]
    test = [images / f"{name}.png" for name in splits.index[splits == "test"][:3]]
    others = [each for each in sorted(images.glob("*.png")) if splits.get(each.stem) != "test"][:2]
    shutil.copy(test[0], tmp_path / "copy.png")
    found = kd.predict(study, [*test, *others, test[1], tmp_path / "copy.png"])
    assert len(found) == 6
    assert found.attrs["development"] == 2
    assert found.attrs["notes"] == [
        "Files that were named again, and count once: 1",
        "Images with the pixels of an image before them, each of which counts as one of its own: 1 of 6",
    ]
    found.to_parquet(tmp_path / "kept.parquet")
    (tmp_path / "t.csv").write_text(f"path,label\n{test[0]},malginant\n")
    with pytest.raises(UserError, match="has the label 'malginant', which the model does not know"):
        kd.predict(study, tmp_path / "t.csv")


def test_a_model_that_does_not_know_its_images_counts_none_and_other_magnifications_are_noted(
    study, images, tmp_path, monkeypatch
):
    monkeypatch.setattr("kdtvit_ray.deliver.study_images.prepared_of", lambda chosen: None)
    (tmp_path / "t.csv").write_text(f"path,magnification\n{next(images.glob('*-40-*.png'))},7\n")
    found = kd.predict(study, tmp_path / "t.csv")
    assert found.attrs["development"] is None
    assert [note for note in found.attrs["notes"] if note.startswith("1 of 1 image is at 7X")]


@pytest.mark.parametrize("threshold", [0.0, 0, 0.3, np.float64(0.3), 1.0])
def test_a_threshold_is_a_number_too(model, images, threshold):
    found = kd.predict(model, images, threshold=threshold)
    called = found["probability"] >= threshold
    assert (found["decision"] == called.map({True: "malignant", False: "benign"})).all()
    with pytest.raises(UserError, match=r"Threshold '1.5' is not known; allowed: .*, or a number from 0 to 1"):
        kd.predict(model, images, threshold=1.5)


def test_options_of_prepare_are_taken_and_refused_in_words(tmp_path):
    source = other_sets.nerves(tmp_path / "nerves", patients=4, images=1)
    assert kd.prepare(source, tmp_path / "out", size=16, positive="ill").dataset.positives == ("ill",)
    with pytest.raises(UserError, match=r"Size '32' cannot be stored; allowed: a whole number of pixels from 16"):
        kd.prepare(source, tmp_path / "other", size="32", positive="ill")
    with pytest.raises(UserError, match=r"Unknown option of prepare 'sise' \(did you mean 'size'"):
        kd.prepare(source, tmp_path / "other", sise=32)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"workers": -1}, "-1 is no number of workers; allowed: a whole number from 0 on"),
        ({"workers": "2"}, "'2' is no number of workers"),
        ({"positive": 1}, "1 is no positive label; allowed: a text, or several"),
        ({"positive": ["ill", 2]}, r"\['ill', 2\] is no positive label"),
    ],
)
def test_options_of_prepare_of_other_types_are_refused(tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        kd.prepare(tmp_path, tmp_path / "out", **options)


@pytest.mark.parametrize("seed", ["x", 1.5, True])
def test_what_is_no_seed_is_refused(tmp_path, seed):
    with pytest.raises(UserError, match="is no seed; allowed: a whole number"):
        kd.run_chain("demo", tmp_path, seed=seed)


def test_numbers_of_numpy_are_numbers(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("kdtvit_ray.study.local.run_local", lambda *each: given.append(each) or [])
    kd.run_chain("demo", tmp_path, seed=np.int64(3), temperature=np.float32(2), order="40>100")
    *_, settings, seed, _ = given[0]
    assert (settings, seed, type(settings["temperature"]), type(seed)) == (
        {"temperature": 2.0, "order": "40>100"},
        3,
        float,
        int,
    )


@pytest.mark.parametrize(
    ("images", "told"),
    [(None, "type NoneType"), (np.zeros((4, 4, 3)), "type ndarray"), ([b"a"], "type list"), ([], "found none")],
)
def test_images_that_are_no_paths_are_refused(images, told):
    with pytest.raises(
        UserError, match=f"Images are given by their paths; found .*{told.split()[-1]}, allowed: a path"
    ):
        kd.predict("model", images)


def test_a_headline_of_no_metric_or_level_is_refused(study):
    opened = kd.open_study(str(study))
    assert len(opened.headline("accuracy", "patient_rate"))
    with pytest.raises(UserError, match=r"Unknown metric at the level image 'AUC'; allowed: accuracy, .*auc"):
        opened.headline("AUC")
    with pytest.raises(UserError, match=r"Unknown level 'patient'.*allowed: image, patient_rate, patient_vote"):
        opened.headline("auc", "patient")
    with pytest.raises(UserError, match="Unknown metric at the level patient_rate 'auc'; allowed: accuracy"):
        opened.headline("auc", "patient_rate")
