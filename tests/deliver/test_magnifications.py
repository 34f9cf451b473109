"""What a model says of the magnifications that it was trained at, and of others."""

import re

import pytest

from kdtvit_ray.cli import main
from kdtvit_ray.deliver import folder
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.export import export
from kdtvit_ray.deliver.model import open_model
from kdtvit_ray.deliver.model_choice import choose_model, describe
from kdtvit_ray.errors import UserError


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("trial", "trained"),
    [("best", [40, 100]), ("0", [40, 100]), ("joint", [40, 100]), ("per_magnification-40", [40])],
)
def test_a_model_knows_what_its_chain_was_trained_at(study, trial, trained):
    told = describe(choose_model(str(study), trial))
    assert (told.trained, told.tested) == (trained, [40, 100, 200, 400])


def test_the_card_of_a_model_of_one_magnification_claims_no_other(study, tmp_path):
    export(str(study), tmp_path / "model", "per_magnification-40")
    card = (tmp_path / "model" / folder.CARD).read_text()
    assert "One vision transformer for 40X. It is not a medical device. At 100X, 200X and 400X it was tested" in card
    assert re.search("at 40X; at 100X, 200X and 400X it was only tested, and other stains, scanners", card)


def test_predict_and_explain_say_how_many_images_are_at_other_magnifications(model, images, tmp_path, capsys):
    (tmp_path / "images.csv").write_text(
        "path,magnification\n"
        + "".join(
            f"{path},{magnification}\n"
            for path, magnification in zip(sorted(images.glob("*.png")), [40, 200, 20, 20, ""], strict=False)
        )
    )
    expected = (
        "3 of 5 images are at 200X (only tested) and 20X (not even tested); the model was trained at 40X and 100X"
    )
    for source in (model, model / folder.ONNX):
        assert main(["predict", str(source), str(tmp_path / "images.csv")]) == 0
        assert said(capsys).count(expected) == 1
    maps = ["--out", str(tmp_path / "maps")]
    assert main(["explain", str(model), str(tmp_path / "images.csv"), *maps]) == 0
    assert said(capsys).count(expected) == 1
    (tmp_path / "images.csv").write_text(f"path,magnification\n{next(images.glob('*.png'))},100\n")
    for command, options in (("predict", []), ("explain", maps)):
        assert main([command, str(model), str(tmp_path / "images.csv"), *options]) == 0
        assert "trained at" not in said(capsys)


@pytest.mark.parametrize("trained", [["x"], 40, [None]])
def test_magnifications_that_are_none_are_refused(model, trained):
    plain = {**open_model(str(model)).description.to_plain(), "trained": trained}
    with pytest.raises(UserError, match="Model 'here' does not say how it is used"):
        Description.from_plain(plain, "here")
