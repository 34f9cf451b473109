"""Who trains, who validates, who tests: one fold of one protocol, the same for the same table, seed and fold.

    patient    K folds over patients, stratified by class and by (side, magnification); validation from the rest
    official   the dataset's own train/test lists; validation carved from train, by patient
    image      random images, stratified; patients are on several sides, so every figure from it leaks

What is not test are the development patients. A spec with inner folds cuts them into as many parts, by patient and
stratified like the folds (`data.dealing`), of which one is validation; or it leaves them whole, for training alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.dealing import Pair, deal, draw
from kdtvit_ray.data.sources.files import shortened
from kdtvit_ray.errors import UserError, choose, counted
from kdtvit_ray.recipe import DataSpec

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """One fold. `train`, `validation` and `test` are sorted int64 positions in the table, disjoint.

    notes: plain sentences on what a reader of the figures has to know. leaks: whether patients are on several sides.
    groups: the patient of every row of the table (str), for statistics clustered by patient.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    groups: np.ndarray
    notes: list[str] = field(default_factory=list)
    leaks: bool = False


def split(table: pd.DataFrame, spec: DataSpec, dataset: Dataset) -> Split:
    """Split a prepared set's table. Raises `UserError` for a fold or an inner fold that does not exist, for too few
    patients, for a magnification that would lack a side in one part, and for slides that the official lists do not
    know."""
    choose("protocol", spec.protocol, DataSpec.PROTOCOLS)
    choose("group", spec.group, DataSpec.GROUPS)
    if not spec.inner_folds and not 0 < spec.validation < 1:
        raise UserError(f"Validation share {spec.validation} is not between 0 and 1; allowed: such as 0.15")
    official = spec.protocol == "official"
    if official and not dataset.folds:
        raise UserError(
            f"Protocol 'official' needs official folds, and '{dataset.name}' has none; allowed: protocol patient or "
            "image, or a table of the images with a column 'fold'"
        )
    folds = dataset.folds if official else spec.folds
    if folds < 2 and not official:
        raise UserError(f"folds = {folds} leaves nothing to train on; allowed: 2 or more")
    if not 1 <= spec.fold <= folds:
        raise UserError(f"There is no fold {spec.fold} of {folds}; allowed: 1 to {folds}")
    if spec.inner_folds > 1 and not 1 <= spec.inner <= spec.inner_folds:
        raise UserError(f"There is no inner fold {spec.inner} of {spec.inner_folds}; allowed: 1 to {spec.inner_folds}")
    made = {"patient": _patient, "official": _official, "image": _image}[spec.protocol](table, spec, dataset)
    _check(table, spec, made, dataset)
    made.notes.extend(_rare(table, made, dataset))
    return made


# ---- protocols


def _patient(table: pd.DataFrame, spec: DataSpec, dataset: Dataset) -> Split:
    groups = _groups(table, spec.group)
    # One slide id is filed under two folders; whatever a patient is called, the two stay on one side.
    units = _groups(table, "id" if spec.group == "folder" else spec.group)
    classes = _classes(table, units, dataset)
    _check_enough(units, f"{spec.folds} folds", spec.folds + 1)
    dealt = deal(classes, _images(table, units), [1 / spec.folds] * spec.folds, f"{spec.seed}")
    test = _chosen(units, dealt[spec.fold - 1])
    train, validation = _carve(table, units, ~test, spec, dataset)
    notes = []
    if spec.group == "folder" and (several := _in_several_folders(table)):
        notes.append(
            f"Slides of {shortened(several, 10)} are in several folders: each folder counts as a patient, and all of "
            "one are on one side"
        )
    return _made(train, validation, test, groups, notes)


def _official(table: pd.DataFrame, spec: DataSpec, dataset: Dataset) -> Split:
    known = dataset.census.images if dataset.census else None
    if known and (foreign := sorted(set(table["slide"]) - set(known))):
        raise UserError(
            f"Protocol 'official' knows the {len(known)} slides of {dataset.name} only; the set has {len(foreign)} "
            f"others: {shortened(foreign, 10)}; allowed for this set: protocol patient or image"
        )
    ids = _groups(table, "id")
    in_test = {slide for slide, folds in dataset.test_in_fold.items() if spec.fold in folds}
    test = table["slide"].isin(in_test).to_numpy()
    notes = []
    straddling = sorted(set(ids[test]) & set(ids[~test]))
    rest = ~test & ~np.isin(ids, straddling)
    for slide in straddling:
        dropped = int((~test & (ids == slide)).sum())
        notes.append(
            f"Official fold {spec.fold} has slide {slide} in train and test; its {dropped} training images are dropped"
        )
    # Validation keeps stems together: what may be one patient is on one side of every line that is drawn here.
    train, validation = _carve(
        table, _groups(table, "id" if spec.group == "folder" else spec.group), rest, spec, dataset
    )
    if (_groups(table, spec.group) != ids).any():
        notes.append(f"The official lists are by slide, so a patient here is a slide id, not the {spec.group}")
    stems = _groups(table, "stem")
    if both := sorted(set(stems[test]) & set(stems[rest])):
        notes.append(
            "The lists go by full slide id; slides of one number, perhaps of one patient, are in test and out of it: "
            f"{', '.join(both)}"
        )
    return _made(train, validation, test, ids, notes)


def _image(table: pd.DataFrame, spec: DataSpec, dataset: Dataset) -> Split:
    test = np.zeros(len(table), bool)
    next_fold = 0
    for rows in _strata(table, ~test, f"{spec.seed}"):
        test[rows] = (next_fold + np.arange(len(rows))) % spec.folds == spec.fold - 1
        next_fold += len(rows)  # going on where the last stratum ended keeps the folds of one size
    validation = np.zeros(len(table), bool)
    owed, next_inner = 0.0, 0
    for rows in _strata(table, ~test, _carving(spec, f"{spec.seed} {spec.fold} validation")):
        if spec.inner_folds:
            validation[rows] = (next_inner + np.arange(len(rows))) % spec.inner_folds == spec.inner - 1
            next_inner += len(rows)
            continue
        owed += spec.validation * len(rows)
        take = min(max(round(owed), 1), len(rows) - 1)
        owed -= take
        validation[rows[((np.arange(take) + 0.5) * len(rows) / max(take, 1)).astype(int)]] = True
    note = "Random images: one patient's images are in train and in test, so every figure from this split leaks"
    return _made(~test & ~validation, validation, test, _groups(table, spec.group), [note], leaks=True)


def _made(
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    groups: np.ndarray,
    notes: list[str],
    leaks: bool = False,
) -> Split:
    parts = [np.flatnonzero(part).astype(np.int64) for part in (train, validation, test)]
    return Split(parts[0], parts[1], parts[2], groups, notes, leaks)


def _carve(
    table: pd.DataFrame, units: np.ndarray, rest: np.ndarray, spec: DataSpec, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) masks of the units of `rest`, the development patients: one inner fold of them is validation,
    or none, or a share with one unit of each label at least."""
    if spec.inner_folds == 1:
        return rest, np.zeros_like(rest)
    classes = _classes(table[rest], units[rest], dataset)
    parts = spec.inner_folds or 2
    what = f"{parts} inner folds" if spec.inner_folds else "train and validation"
    _check_enough(units[rest], what, parts)
    shares = [1 / parts] * parts if spec.inner_folds else [spec.validation, 1 - spec.validation]
    seed = _carving(spec, f"{spec.seed} {spec.protocol} {spec.fold} validation")
    dealt = deal(classes, _images(table[rest], units[rest]), shares, seed)
    validation = rest & _chosen(units, dealt[max(spec.inner - 1, 0)])
    return rest & ~validation, validation


def _carving(spec: DataSpec, single: str) -> str:
    """What the development patients are dealt by: one seed for all inner folds of a partition, another for the single
    validation part."""
    return f"{single} {spec.inner_folds} {spec.partition}" if spec.inner_folds else single


def _classes(table: pd.DataFrame, units: np.ndarray, dataset: Dataset) -> dict[str, set[str]]:
    """The classes of each unit."""
    classes: dict[str, set[str]] = {}
    for unit, subtype in zip(units, table["subtype"], strict=True):
        classes.setdefault(str(unit), set()).add(dataset.classes[subtype])
    return classes


def _images(table: pd.DataFrame, units: np.ndarray) -> dict[str, dict[Pair, int]]:
    """How many images each unit has of each (malignant, magnification) pair."""
    images: dict[str, dict[Pair, int]] = {}
    for unit, malignant, magnification in zip(units, table["malignant"], table["magnification"], strict=True):
        its = images.setdefault(str(unit), {})
        pair = (bool(malignant), int(magnification))
        its[pair] = its.get(pair, 0) + 1
    return images


def _strata(table: pd.DataFrame, mask: np.ndarray, seed: str) -> list[np.ndarray]:
    """Rows of each (magnification, side), class after class and shuffled within each: taking them at even steps takes
    every class in its share."""
    rows_of: dict[tuple[int, bool], list[tuple[int, int, str, int]]] = {}
    columns = (table["magnification"], table["malignant"], table["subtype"], table["name"])
    for row, (magnification, malignant, subtype, name) in enumerate(zip(*columns, strict=True)):
        if mask[row]:
            rows_of.setdefault((magnification, malignant), []).append((subtype, draw(seed, name), name, row))
    return [np.array([each[-1] for each in sorted(rows)]) for _, rows in sorted(rows_of.items())]


def _groups(table: pd.DataFrame, group: str) -> np.ndarray:
    return table["slide" if group == "folder" else group].to_numpy(dtype=object).astype(str)


def _chosen(units: np.ndarray, names: Iterable[str]) -> np.ndarray:
    return np.isin(units, sorted(names))


def _in_several_folders(table: pd.DataFrame) -> list[str]:
    folders = table.groupby("id")["slide"].nunique()
    return sorted(folders[folders > 1].index)


# ---- checks


def _check_enough(units: np.ndarray, what: str, needed: int) -> None:
    if len(found := set(units)) < needed:
        are = "is" if len(found) == 1 else "are"
        raise UserError(
            f"{counted(len(found), 'patient')} {are} too few for {what}, which need {needed}: "
            f"{shortened(sorted(found), 10)}"
        )


def _check(table: pd.DataFrame, spec: DataSpec, made: Split, dataset: Dataset) -> None:
    """Raise `UserError` for a group on two sides, and for a magnification that lacks a side in a part."""
    if not made.leaks:
        for groups in (made.groups, _groups(table, "id")):
            sides: dict[str, str] = {}
            for name in SPLITS:
                for group in sorted(set(groups[getattr(made, name)])):
                    if sides.setdefault(group, name) != name:
                        raise UserError(f"Patient {group} is in {sides[group]} and in {name} of fold {spec.fold}")
    for magnification in sorted(set(table["magnification"])):
        for malignant, word in enumerate(dataset.words):
            has = ((table["magnification"] == magnification) & (table["malignant"] == malignant)).to_numpy()
            for name in SPLITS:
                if name == "validation" and spec.inner_folds == 1:
                    continue  # there is none
                if not has[getattr(made, name)].any():
                    if not has.any():
                        raise UserError(
                            f"The set has no {word} images at {magnification}X, so no part of fold {spec.fold} has "
                            f"any; add such images, or prepare the set without its {magnification}X images"
                        )
                    patients = len(set(made.groups[has]))
                    have = "has" if patients == 1 else "have"
                    inner = f"Inner fold {spec.inner} of {spec.inner_folds} in fold" if spec.inner_folds > 1 else "Fold"
                    raise UserError(
                        f"{inner} {spec.fold} of protocol '{spec.protocol}' leaves {name} without {word} images at "
                        f"{magnification}X, which {counted(patients, 'patient')} of the set {have} "
                        f"({counted(int(has.sum()), 'image')}); "
                        f"{_advice(spec, patients)}"
                    )


def _rare(table: pd.DataFrame, made: Split, dataset: Dataset) -> list[str]:
    """Notes on classes that nothing is learned of in this fold, or that one patient has alone."""
    subtype, notes = table["subtype"].to_numpy(), []
    for index, name in enumerate(dataset.classes):
        patients = set(made.groups[subtype == index])
        if not patients:
            continue
        owners = counted(len(patients), "patient")
        if not (subtype[made.train] == index).any():
            notes.append(f"Class {name} has {owners} and no training images in this fold: no model can learn it")
        elif len(patients) == 1 and not made.leaks:
            notes.append(f"Class {name} has 1 patient, in train: nothing tells how well it is learned")
    return notes


def _advice(spec: DataSpec, patients: int) -> str:
    if spec.inner_folds > 1:
        return "take fewer inner folds (objective_folds), fewer folds, or add images of other patients"
    if spec.protocol == "official":
        return "take another official fold, protocol patient, or a more complete set"
    if patients < 3 and spec.protocol == "patient":
        return "train, validation and test need one each, so add images of other patients"
    return "take fewer folds, another fold or seed, or add images of other patients"
