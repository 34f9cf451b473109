"""What a dataset is, written and read again, and what follows from it."""

import json
import subprocess
import sys
import tomllib

import pytest
import tomli_w

from kdtvit_ray.data.dataset import Dataset, in_order, sides
from kdtvit_ray.data.sources.breakhis import breakhis, official_census

THREE = Dataset(
    "slides",
    "manifest",
    (5, 10, 20),
    ("normal", "atypical", "tumour"),
    ("tumour",),
    "negative",
    "tumour",
    2,
    {"s1": (1,), "s2": (1, 2)},
)


@pytest.mark.parametrize("dataset", [breakhis(), THREE], ids=["BreakHis", "three"])
def test_a_dataset_is_the_same_after_json_and_after_toml(dataset):
    assert Dataset.from_plain(json.loads(json.dumps(dataset.to_plain()))) == dataset
    assert Dataset.from_plain(tomllib.loads(tomli_w.dumps(dataset.to_plain()))) == dataset


def test_breakhis_is_what_its_census_says():
    known, slides = breakhis(), official_census()["slides"]
    assert (known.name, known.magnifications, known.folds) == ("BreakHis", (40, 100, 200, 400), 5)
    assert known.classes == ("A", "F", "PT", "TA", "DC", "LC", "MC", "PC")
    assert (known.words, known.first_positive) == (("benign", "malignant"), 4)
    assert known.is_positive == (False,) * 4 + (True,) * 4
    assert sum(sum(counts.values()) for counts in known.census.images.values()) == 7909
    assert {slide: list(folds) for slide, folds in known.test_in_fold.items()} == {
        slide: facts["test_in_fold"] for slide, facts in slides.items()
    }
    assert {each.metric for each in known.references if each.label == "KDTViT (reported)"} == {
        "accuracy",
        "precision",
        "recall",
        "f1",
        "auc",
    }
    spanhol = next(each for each in known.references if "Spanhol" in each.label)
    assert spanhol.values == {"40X": 0.838, "100X": 0.821, "200X": 0.851, "400X": 0.823}


def test_outputs_are_the_classes_or_the_two_sides():
    assert THREE.outputs("subtype") == ("normal", "atypical", "tumour")
    assert THREE.first_positive_output("subtype") == 2
    assert THREE.outputs("binary") == ("negative", "tumour")
    assert THREE.first_positive_output("binary") == 1


def test_what_a_study_keeps_says_nothing_of_single_slides():
    kept = breakhis().without_slides()
    assert "M_DC-14-10926" not in json.dumps(kept.to_plain())
    assert (kept.classes, kept.folds, kept.references) == (breakhis().classes, 5, breakhis().references)


@pytest.mark.parametrize(
    ("magnifications", "classes", "positives"),
    [
        ((10, 5), ("a", "b"), ("b",)),
        ((5, 5), ("a", "b"), ("b",)),
        ((5,), ("b", "a"), ("b",)),
        ((5,), ("a", "b"), ("a", "b")),
        ((5,), ("a", "b"), ()),
    ],
)
def test_what_is_no_dataset_is_refused(magnifications, classes, positives):
    with pytest.raises(ValueError, match=r"magnifications|classes"):
        Dataset("x", "folder", magnifications, classes, positives)


def test_sides_are_named_by_their_only_label_if_that_is_a_word():
    assert sides({"benign", "malignant"}, {"malignant"}) == ("benign", "malignant")
    assert sides({"0", "1"}, {"1"}) == ("negative", "positive")
    assert sides({"a", "b", "c", "d"}, {"c", "d"}) == ("negative", "positive")
    assert sides({"normal", "grade 2", "grade 3"}, {"grade 2", "grade 3"}) == ("normal", "positive")


def test_names_are_ordered_as_people_count_them():
    assert in_order(["b", "10", "A", "2", "a", "B"]) == ["2", "10", "A", "a", "B", "b"]


def test_a_dataset_is_read_without_anything_heavy():
    script = (
        "import sys\nfrom kdtvit_ray.data.sources.breakhis import breakhis\nbreakhis()\n"
        "sys.exit(str({'torch', 'numpy', 'pandas', 'PIL', 'isal', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
