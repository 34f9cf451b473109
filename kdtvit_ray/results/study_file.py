"""What `study.toml` says of a study: its settings, its data, what made it. How it is read, and what it has to hold."""

import tomllib
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import Numeric, Training, field_names, with_added_later
from kdtvit_ray.results.words import joined

VERSION = 1
"""The newest format of `study.toml` that can be read."""

NUMBER = int | float
NEEDED: Mapping[str, Mapping[str, type | UnionType]] = {
    "study": {
        **dict.fromkeys(("name", "sampler", "metric", "pruner", "choose"), str),
        **dict.fromkeys(("seed", "trials", "lag", "startup"), int),
        **dict.fromkeys(("objective_folds", "objective_repeats", "racing_folds"), int),
        **dict.fromkeys(("reproducible", "baselines_searched", "racing", "mix_devices"), bool),
        "racing_confidence": NUMBER,
        **dict.fromkeys(("baselines", "track"), list),
    },
    "protocol": {
        **dict.fromkeys(("name", "group"), str),
        **dict.fromkeys(("fold", "folds", "seed"), int),
        "validation": NUMBER,
    },
    "chain": {
        **dict.fromkeys(("teacher", "student", "order", "loss", "head"), str),
        **dict.fromkeys(("temperature", "alpha"), NUMBER),
        "warm_start": bool,
        "image_size": int,
    },
    "training": dict.fromkeys(field_names(Training), int | float | str),
    "numeric": {name: str if name == "dtype" else int for name in field_names(Numeric)},
    "models": {},
    "search": {},
    "data": {
        **dict.fromkeys(("path", "fingerprint"), str),
        **dict.fromkeys(("images", "patients"), int),
        "leaks": bool,
        **dict.fromkeys(("notes", "census"), list),
        **dict.fromkeys(("splits", "dataset", "digests"), dict),
    },
    "versions": {"recipe": str},
}
"""The tables of a study's file, with the names in them that every file has."""
NEEDED_BESIDE: Mapping[str, type] = {"id": str, "command": str, "dimensions": list}
NEEDED_OF_MODELS: Mapping[str, type] = {"name": str, "args": dict, "image_size": int, "weights": str}


def read_study(folder: StudyFolder, notes: list[str] | None = None) -> dict[str, Any] | None:
    """The resolved study.toml of a folder, with all that is `NEEDED`; None where there is none. Raises `UserError`
    where it is damaged. A file of a newer version raises it as well, unless `notes` are given: then a note says so, and
    the caller reads what it knows."""
    damaged = f"The study file '{folder.path(folder.study)}' is damaged"
    try:
        plain = tomllib.loads(folder.read(folder.study).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{damaged}: {error}") from None
    version = plain.get("version")
    if not isinstance(version, int):
        raise UserError(f"{damaged}: it has no version")
    plain = with_added_later(plain)
    lacking = list(_lacking(plain))
    if version > VERSION:
        told = f"written in format {version} by a newer version of kdtvit-ray; this one reads formats up to {VERSION}"
        if notes is None or lacking:
            raise UserError(f"The study '{folder.shown}' was {told}")
        notes.append(f"it was {told}, so that what it does not know may be missing or misread")
    if lacking:
        raise UserError(f"{damaged}: it has no {joined(lacking)}")
    try:
        Dataset.from_plain(plain["data"]["dataset"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{damaged}: [data.dataset] describes no dataset ({error})") from None
    return plain


def settings_of(folder: StudyFolder, notes: list[str] | None = None) -> dict[str, Any]:
    """The resolved study.toml of a folder that has to be a study. Raises `UserError` where it is none, or cannot be
    read; `notes` as in `read_study`."""
    plain = read_study(folder, notes)
    if plain is None:
        raise UserError(
            f"'{folder.shown}' is not a study: it has no {folder.study}; allowed: a folder that a sweep has written"
        )
    return plain


def _lacking(plain: Mapping[str, Any]) -> Iterator[str]:
    """What the file of a study has to hold and does not, or not of the right kind."""
    yield from _names(plain, NEEDED_BESIDE, "")
    for table, names in NEEDED.items():
        if isinstance(plain.get(table), Mapping):
            yield from _names(plain[table], names, f"[{table}] ")
        else:
            yield f"[{table}]"
    models = _table(plain, "models")
    for label in models:
        yield from _names(_table(models, label), NEEDED_OF_MODELS, f"[models.{label}] ")
    splits = _table(_table(plain, "data"), "splits")
    yield from _names(splits, dict.fromkeys(("train", "test"), dict), "[data.splits] ")
    for split in splits:
        yield from _names(_table(splits, split), {"images": int, "patients": int}, f"[data.splits.{split}] ")


def _table(plain: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = plain.get(name)
    return found if isinstance(found, Mapping) else {}


def _names(table: Mapping[str, Any], names: Mapping[str, type | UnionType], where: str) -> Iterator[str]:
    return (f"{where}{name}" for name, kind in names.items() if not isinstance(table.get(name), kind))
