"""The folder of an exported model: nobody else's files are touched, and an interrupted export can be repeated."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from kdtvit_ray.deliver import folder
from kdtvit_ray.errors import UserError


def contents(place):
    return {each.name: each.read_bytes() for each in place.iterdir()}


def write(model, out):
    """Export again what lies in `model`, with a card of its own."""
    config = json.loads((model / folder.CONFIG).read_text())
    own = config.pop(folder.OWN)
    files = {name: (model / name).read_bytes() for name in own["files"]} | {folder.CARD: b"another card"}
    folder.write(out, files, config, folder.description({folder.OWN: own}, model))


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": '{"architecture": "vit", "model_type": "vit"}', "model.safetensors": "theirs"},
        {"config.json": "no JSON", "model.safetensors": "theirs"},
        {"config.json": '["kdtvit_ray"]'},
        {"config.json": '{"kdtvit_ray": 1}'},
        {"model.onnx": "theirs"},
        {"config.json.kdtvit_ray-partial": "{", "notes.txt": "theirs"},
    ],
)
def test_a_model_of_somebody_else_is_no_place_for_an_export(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"holds other files \({'.*'.join(sorted(files))}\); allowed: a new or empty"):
        folder.check_target(tmp_path)


def test_an_export_goes_through_a_link_to_a_folder_that_is_not_there_yet(model, tmp_path):
    (tmp_path / "link").symlink_to("new/model")
    folder.check_target(tmp_path / "link")
    assert not (tmp_path / "new").exists()
    write(model, tmp_path / "link")
    assert folder.verified(tmp_path / "new/model", folder.ONNX)


class Killed(BaseException):
    """Nothing that is done afterwards has an effect."""


def ending(monkeypatch, below, moment, error):
    """Let the `moment`-th thing that is done to a file of the folder `below` raise `error`, with half of what is
    written there. Elsewhere a thread of another test may write."""
    before = {name: getattr(Path, name) for name in ("write_bytes", "replace", "unlink")}
    done = []

    def one(name, path, *args, **options):
        if below not in path.parents:
            return before[name](path, *args, **options)
        done.append(name)
        if len(done) == moment and name == "write_bytes":
            before[name](path, args[0][: len(args[0]) // 2])
        if len(done) == moment or (len(done) > moment and error is Killed):
            raise error
        return before[name](path, *args, **options)

    for name in before:
        monkeypatch.setattr(Path, name, lambda *args, name=name, **options: one(name, *args, **options))


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("first", [True, False])
def test_wherever_an_export_ends_it_can_be_repeated(model, tmp_path, monkeypatch, first, error):
    """The folder is then the export of before, or the new one, or refused, never a mixture; and a repetition may end as
    early."""
    write(model, tmp_path / "whole")
    ends = (Killed, KeyboardInterrupt, UserError)
    for moment in range(1, 40):
        out = tmp_path / str(moment)
        if not first:
            shutil.copytree(model, out)
            (out / folder.ONNX_INT8).write_bytes(b"of the export before")
        ended = False
        for again in (moment, 3):
            with monkeypatch.context() as patch, suppress(*ends):
                ending(patch, tmp_path, again, error)
                write(model, out)
                ended = True
            if out.exists():
                with suppress(UserError):
                    wholes = [folder.verified(each, folder.WEIGHTS) for each in (model, tmp_path / "whole")]
                    assert folder.verified(out, folder.WEIGHTS) in wholes
            folder.check_target(out)
        write(model, out)
        assert contents(out) == contents(tmp_path / "whole")
        if ended:
            break
    assert ended
    assert moment > 8


def test_a_full_disk_leaves_the_export_of_before_as_it_was(model, tmp_path, monkeypatch):
    shutil.copytree(model, tmp_path / "model")
    before, done = Path.write_bytes, []

    def full(path, content):
        done.append(path)
        if len(done) == 3:
            before(path, content[:100])
            raise OSError(28, "No space left on device")
        return before(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"Cannot write the model to .*: No space left on device"):
        write(model, tmp_path / "model")
    assert contents(tmp_path / "model") == contents(model)
