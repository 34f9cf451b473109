"""The folder of an exported model: its files, what `config.json` says of them, and whether they are whole.

OUT/
  model.safetensors   weights, as the stage has stored them
  config.json         timm's own keys, so that `timm.create_model("local-dir:OUT", pretrained=True)` loads the model,
                      and under `kdtvit_ray` the description, the checksums of the other files, and its own
  model.onnx          the same model with the description inside (metadata `kdtvit_ray`)
  model.int8.onnx     the same with weights of eight bits, where it was asked for
  MODEL_CARD.md       what the model is, for people

No file is ever unpickled.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kdtvit_ray.data.findings import SHOWN
from kdtvit_ray.data.sources.files import shortened
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.errors import UserError, first_line, readable
from kdtvit_ray.paths import try_to_make

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
ONNX_INT8 = "model.int8.onnx"
CARD = "MODEL_CARD.md"
FILES = (WEIGHTS, ONNX, ONNX_INT8, CARD, CONFIG)
PARTIAL = ".kdtvit_ray-partial"
"""What the name of a file ends in that is not complete yet."""
OWN = "kdtvit_ray"
"""The key in `config.json` under which everything is that timm does not read."""
ONNX_KEY = "kdtvit_ray"
"""The metadata of an ONNX file that holds the description as JSON."""


def write(out: Path, files: Mapping[str, bytes], config: Mapping[str, Any], description: Description) -> None:
    """Write an export: `files` by name, and `config.json` with `config`, timm's keys. What was exported there before is
    replaced. All files are complete beside their places before the first one is put there, and `config.json` is the
    last: whoever is interrupted leaves the export of before, none, or one that is refused, and can repeat it. Raises
    `UserError` where the folder cannot be written."""
    listed = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in sorted(files.items())}
    own: dict[str, Any] = {"description": description.to_plain(), "files": listed}
    whole = {**config, OWN: own}
    own["sha256"] = _own_sha256(whole)
    last = (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode()
    try:
        Path(os.path.realpath(out)).mkdir(parents=True, exist_ok=True)  # a link may lead to a folder that is not there
        try:
            for name, content in {CONFIG: last, **files}.items():  # the first one marks the folder as ours
                (out / f"{name}{PARTIAL}").write_bytes(content)
            for name in FILES:
                if name in files or name == CONFIG:
                    (out / f"{name}{PARTIAL}").replace(out / name)
                else:
                    (out / name).unlink(missing_ok=True)
        finally:
            _clean(out)
    except OSError as error:
        raise _cannot_write(out, error) from None


def _clean(out: Path) -> None:
    """Delete what is not complete; that of `config.json` stays where the folder would else be nobody's."""
    for name in FILES:
        if name != CONFIG:
            (out / f"{name}{PARTIAL}").unlink(missing_ok=True)
    if (out / CONFIG).exists() or not any((out / name).exists() for name in FILES):
        (out / f"{CONFIG}{PARTIAL}").unlink(missing_ok=True)


def check_target(out: Path) -> None:
    """Raise `UserError` unless a model can be exported to `out`: a new or empty folder, or one with an export, which
    may have been interrupted."""
    allowed = "a new or empty folder, or one with a model that 'kdtvit-ray export' has written"
    if out.is_file():
        raise UserError(f"'{out}' is a file; allowed: {allowed}")
    try:
        names = sorted(each.name for each in out.iterdir()) if out.is_dir() else []
    except OSError as error:
        raise UserError(f"Cannot read folder '{out}': {error.strerror or error}") from None
    if names and not _is_own(out) and not _is_interrupted(names):
        shown = shortened(map(readable, names), SHOWN)
        raise UserError(f"Folder '{out}' holds other files ({shown}); allowed: {allowed}")
    try:
        try_to_make(out / CONFIG)
    except OSError as error:
        raise _cannot_write(out, error) from None


def _cannot_write(out: Path, error: OSError) -> UserError:
    return UserError(f"Cannot write the model to '{out}': {error.strerror or error}")


def _is_own(out: Path) -> bool:
    """Whether the folder's `config.json` is that of an export. Models of others have a file of this name too."""
    try:
        config = json.loads((out / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and isinstance(config.get(OWN), dict)


def _is_interrupted(names: Collection[str]) -> bool:
    """Whether a folder with these files is a first export that was interrupted before its `config.json` was there."""
    own = {f"{each}{PARTIAL}" for each in FILES}
    return CONFIG not in names and f"{CONFIG}{PARTIAL}" in names and own.union(FILES).issuperset(names)


def verified(path: Path, used: str) -> dict[str, Any]:
    """`config.json` of an export that is as it was written, and so is its file `used`. The others may be missing, and
    the card is for people to complete. Raises `UserError`."""
    config = _read(path)
    own = config[OWN]
    if own["sha256"] != _own_sha256(config):
        raise UserError(f"Model '{path}': {CONFIG} was changed after the export; export the model again")
    if used not in own["files"]:
        raise UserError(f"Model '{path}': {CONFIG} does not tell of {used}; export the model again")
    _check(path / used, own["files"][used])
    return config


def description(config: Mapping[str, Any], path: Path) -> Description:
    return Description.from_plain(config[OWN]["description"], path)


def parsed(text: str, where: Path) -> Description:
    """The description inside an ONNX file."""
    try:
        plain = json.loads(text)
    except ValueError:
        plain = None
    if not isinstance(plain, dict):
        raise UserError(f"Model '{where}' does not say how it is used: its metadata is no JSON table")
    return Description.from_plain(plain, where)


def onnx_content(path: Path) -> bytes:
    """The bytes of an ONNX file; held against the checksum where the `config.json` of an export lies beside it."""
    if path.name in (ONNX, ONNX_INT8) and _is_own(path.parent):
        told = _read(path.parent)[OWN]["files"].get(path.name)
        if told:
            return _check(path, told)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read model '{path}': {error.strerror or error}") from None


def network(path: Path, config: Mapping[str, Any]) -> Any:
    """The model in PyTorch, with its weights."""
    import timm
    from safetensors.torch import load_file

    try:
        made = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
        made.load_state_dict(load_file(path / WEIGHTS))
    except Exception as error:  # timm and safetensors raise kinds of their own
        raise UserError(f"Model '{path}' cannot be loaded: {first_line(error)}") from None
    return made


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_text())
        config["architecture"], config["num_classes"], dict(config["model_args"])
        config[OWN]["files"].items(), config[OWN]["description"], config[OWN]["sha256"]
    except OSError as error:
        raise UserError(f"Cannot read '{path / CONFIG}': {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"'{path / CONFIG}' does not describe a model of this program; allowed: the folder that 'kdtvit-ray "
            "export' has written"
        ) from None
    return config


def _check(path: Path, told: Mapping[str, Any]) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"Model '{path.parent}' lacks its file {path.name}; export it again") from None
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}") from None
    if _sha256(content) != told["sha256"]:
        raise UserError(
            f"Model '{path.parent}': {path.name} is not the file that was exported ({len(content):,} bytes, "
            f"{told['bytes']:,} were written); its checksum in {CONFIG} differs. Export the model again"
        )
    return content


def _own_sha256(config: Mapping[str, Any]) -> str:
    """The checksum of `config.json` without itself."""
    own = {name: value for name, value in config[OWN].items() if name != "sha256"}
    return _sha256(json.dumps({**config, OWN: own}, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
