"""A model without the checksums of its development images says that it cannot know them again."""

import re
import shutil

from kdtvit_ray.cli import main
from kdtvit_ray.deliver import folder


def test_a_model_whose_prepared_set_was_not_at_hand_says_that_it_cannot_tell(study, model, images, tmp_path, capsys):
    elsewhere = tmp_path / "study"
    shutil.copytree(study, elsewhere)
    (elsewhere / "study.toml").write_text(
        re.sub('path = ".*"', f'path = "{tmp_path}/gone"', (elsewhere / "study.toml").read_text())
    )
    assert main(["export", str(elsewhere), str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    assert f"is not at '{tmp_path}/gone': checksums of development images are missing" in said
    assert "checksums of its development images are missing" in (tmp_path / "model" / folder.CARD).read_text()
    for source in (elsewhere, tmp_path / "model", tmp_path / "model" / folder.ONNX):
        assert main(["predict", str(source), str(images)]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "against the labels" in said
        assert "cannot be told whether any of 384 labelled images is a development image of this model" in said
    assert "checksums" not in (model / folder.CARD).read_text().partition("Intended use")[2]
