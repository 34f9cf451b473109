"""Datasets that are not BreakHis, for studies that are not either."""

from kdtvit_ray.data.dataset import Dataset, Reference

SLIDES = Dataset(
    name="colon_slides",
    source="manifest",
    magnifications=(5, 10, 20),
    classes=("normal", "adenoma", "carcinoma"),
    positives=("carcinoma",),
    negative="negative",
    positive="carcinoma",
    references=(
        Reference(
            "Others (reported)", "image", "auc", {"5X": 0.9, "10X": 0.92}, "patient-disjoint, own split", "No journal"
        ),
    ),
)
"""Three magnifications of a slide scanner, three classes, one of them positive; a reference that lacks one of them."""

TWO = Dataset(
    name="patches",
    source="folder",
    magnifications=(10, 40),
    classes=("0", "1"),
    positives=("1",),
)
"""Two magnifications, two classes without words, nothing published."""

SEVEN = Dataset(
    name="every_zoom",
    source="manifest",
    magnifications=(1, 2, 4, 10, 20, 40, 100),
    classes=("stroma", "necrosis", "inflammation", "invasive carcinoma of no special type", "carcinoma in situ"),
    positives=("invasive carcinoma of no special type", "carcinoma in situ"),
    negative="benign",
    positive="malignant",
)
"""Seven magnifications and a long name of a class."""

ONE = Dataset(name="one_lens", source="folder", magnifications=(20,), classes=("0", "1"), positives=("1",))
"""One magnification: a chain is one stage."""
