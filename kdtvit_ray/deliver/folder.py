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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdtvit_ray.deliver.description import Description
from kdtvit_ray.errors import UserError, first_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
ONNX_INT8 = "model.int8.onnx"
CARD = "MODEL_CARD.md"
OWN = "kdtvit_ray"
"""The key in `config.json` under which everything is that timm does not read."""
ONNX_KEY = "kdtvit_ray"
"""The metadata of an ONNX file that holds the description as JSON."""


def write(out: Path, files: Mapping[str, bytes], config: Mapping[str, Any], description: Description) -> None:
    """Write an export: `files` by name, then `config.json`, which is the last, so that a folder without it is none.
    `config` are timm's keys. What was exported there before is replaced."""
    listed = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in sorted(files.items())}
    own: dict[str, Any] = {"description": description.to_plain(), "files": listed}
    whole = {**config, OWN: own}
    own["sha256"] = _own_sha256(whole)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG).unlink(missing_ok=True)
        for name in (WEIGHTS, ONNX, ONNX_INT8, CARD):
            if name not in files:
                (out / name).unlink(missing_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
        (out / CONFIG).write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write the model to '{out}': {error.strerror or error}") from None


def check_target(out: Path) -> None:
    """Raise `UserError` unless a model can be exported to `out`: a new or empty folder, or one with an export."""
    if out.is_file():
        raise UserError(f"'{out}' is a file; choose a new folder for the model")
    if out.is_dir() and any(out.iterdir()) and not (out / CONFIG).is_file():
        raise UserError(f"Folder '{out}' holds other files; choose a new folder for the model")


def verified(path: Path) -> dict[str, Any]:
    """`config.json` of an export whose files are all there and as they were written. Raises `UserError`."""
    config = _read(path)
    own = config[OWN]
    if own.get("sha256") != _own_sha256(config):
        raise UserError(f"Model '{path}': {CONFIG} was changed after the export; export the model again")
    for name, told in own["files"].items():
        _check(path / name, told)
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
    """The bytes of an ONNX file; held against the checksum where its `config.json` lies beside it."""
    if (path.parent / CONFIG).is_file() and path.name in (ONNX, ONNX_INT8):
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
        made = timm.create_model(
            config["architecture"], num_classes=config["num_classes"], **dict(config.get("model_args", {}))
        )
        made.load_state_dict(load_file(path / WEIGHTS))
    except Exception as error:  # timm and safetensors raise kinds of their own
        raise UserError(f"Model '{path}' cannot be loaded: {first_line(error)}") from None
    return made


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_text())
        config["architecture"], config["num_classes"], config[OWN]["files"].items(), config[OWN]["description"]
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
