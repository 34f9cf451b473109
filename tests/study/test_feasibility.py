"""What a study can show, told beforehand: counted on BreakHis's own census, and against an independent formula."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.errors import UserError
from kdtvit_ray.results.statistics import auc_standard_error
from kdtvit_ray.study.feasibility import feasibility
from kdtvit_ray.study.space import Space, load_space
from tests.data.test_folds import OFFICIAL


@dataclass
class Set:
    table: Any
    fingerprint: str = "f"
    dataset: Dataset = field(default_factory=breakhis)


def told(protocol: dict[str, Any]) -> str:
    return "\n".join(feasibility(Space({"study": {"objective_folds": 1}, "protocol": protocol}), Set(OFFICIAL)))


def test_the_shipped_space_can_give_intervals_on_breakhis_in_every_fold():
    space = load_space("breakhis")
    for fold in range(1, space.data.folds + 1):
        lines = feasibility(Space({"protocol": {**space.protocol, "fold": fold}}), Set(OFFICIAL))
        assert any(line.startswith("test      has intervals") for line in lines), lines
        assert max(map(len, lines)) <= 80


def test_the_default_protocol_can_give_intervals_on_breakhis():
    assert "test      has intervals" in told({})


def test_five_folds_leave_too_few_benign_patients_and_it_says_what_would_do():
    text = told({"folds": 5})
    assert "test:        3 benign + 11 malignant patients" in text
    assert "has no intervals and shows no differences" in text
    assert "folds = 3 leaves enough in every fold; 'confirm --folds 1-5' judges every patient once" in text


def test_few_patients_at_one_magnification_leave_means_without_intervals():
    kept = set(OFFICIAL.drop_duplicates("stem").groupby("malignant")["stem"].head(9))
    few = OFFICIAL[(OFFICIAL["magnification"] != 400) | OFFICIAL["stem"].isin(kept)].reset_index(drop=True)
    text = "\n".join(feasibility(Space({"study": {"objective_folds": 1}}), Set(few)))
    assert "test      has no intervals of means over magnifications and shows no differences:" in text
    assert re.search(r"          400X has [1-4] benign \+ [0-9] malignant patients, it needs 5 of each", text)
    assert "100X has" not in text


@pytest.mark.parametrize(
    ("group", "of_breakhis", "of_others"),
    [
        ("stem", "by stem", "as the set names them"),
        ("id", "by id", "as the set names them"),
        ("folder", "by folder", "by slide"),
    ],
)
def test_what_a_patient_is_depends_on_the_set(group, of_breakhis, of_others):
    space = Space({"study": {"objective_folds": 1}, "protocol": {"group": group}})
    for source, words in (("breakhis", of_breakhis), ("manifest", of_others), ("folder", of_others)):
        lines = feasibility(space, Set(OFFICIAL, dataset=replace(breakhis(), source=source)))
        assert lines[0] == f"fold      1 of 3, protocol patient, patients {words}"


def test_a_split_that_leaks_shows_nothing():
    assert "nothing from it holds for new patients" in told({"name": "image"})


@pytest.mark.parametrize("auc", [0.8, 0.9])
def test_the_standard_error_is_that_of_patients_whose_images_score_alike(auc):
    rng, benign, malignant = np.random.default_rng(0), 11, 36
    shift = stats.norm.ppf(auc) * np.sqrt(2)
    below = rng.normal(0, 1, (4_000, benign))
    above = rng.normal(shift, 1, (4_000, malignant))
    found = (above[:, :, None] > below[:, None, :]).mean(axis=(1, 2)).std()
    assert auc_standard_error(auc, benign, malignant) == pytest.approx(found, rel=0.04)


def test_inner_folds_judge_all_development_patients():
    space = Space({"study": {"objective_folds": 4}, "protocol": {"folds": 3}})
    lines = feasibility(space, Set(OFFICIAL))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert "development: 11 benign + 36 malignant patients" in text
    assert "objective from 4 inner folds; the smallest leaves out 2 benign + 9 malignant" in text
    error = auc_standard_error(0.9, 11, 36)
    assert f"{error:.2f} at AUC 0.90" in text
    assert f"differ by {2 * np.sqrt(2 * 0.2) * error:.2f} at AUC 0.90" in text


def test_more_inner_folds_than_patients_of_a_class_are_one_sentence():
    with pytest.raises(UserError, match=r"take fewer inner folds \(objective_folds\)"):
        feasibility(Space({"study": {"objective_folds": 13}, "protocol": {"folds": 3}}), Set(OFFICIAL))
