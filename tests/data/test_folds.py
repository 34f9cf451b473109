"""Splits: nobody on two sides, both classes everywhere, the same fold for the same question."""

import hashlib
import itertools
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kdtvit_ray.data import dealing
from kdtvit_ray.data import folds as module
from kdtvit_ray.data.dealing import deal
from kdtvit_ray.data.folds import SPLITS, Split
from kdtvit_ray.data.sources.breakhis import ImageName, breakhis, official_census
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import DataSpec

MAGNIFICATIONS, SUBTYPES = breakhis().magnifications, breakhis().classes


def split(table: pd.DataFrame, spec: DataSpec) -> Split:
    return module.split(table, spec, breakhis())


def at(table: pd.DataFrame, rows: np.ndarray, magnification: int) -> np.ndarray:
    return rows[table["magnification"].to_numpy()[rows] == magnification]


def table_of(slides: dict[str, dict[int, int]]) -> pd.DataFrame:
    """The table of a set that has `slides[folder][magnification]` images."""
    names = [
        ImageName.parse(f"SOB_{folder}-{magnification}-{sequence:03d}")
        for folder, counts in slides.items()
        for magnification, count in counts.items()
        for sequence in range(1, count + 1)
    ]
    names.sort(key=lambda each: (each.magnification, each.name))
    return pd.DataFrame(
        {
            "name": [each.name for each in names],
            "subtype": np.array([SUBTYPES.index(each.subtype) for each in names], np.int8),
            "malignant": [each.malignant for each in names],
            "magnification": np.array([each.magnification for each in names], np.int16),
            "slide": [each.folder for each in names],
            "id": [each.id for each in names],
            "stem": [each.stem for each in names],
        }
    )


CENSUS = {
    slide: {int(magnification): count for magnification, count in facts["images"].items()}
    for slide, facts in official_census()["slides"].items()
}
OFFICIAL = table_of(CENSUS)


@st.composite
def tables(draw) -> pd.DataFrame:
    """Sets of 6 to 40 slides: some slides share a number, some a whole id, some lack a magnification."""
    slides = {}
    for index in range(draw(st.integers(6, 40))):
        subtype = draw(st.sampled_from(SUBTYPES))
        number = draw(st.integers(1, index + 1))
        letters = draw(st.sampled_from(["", "", "AB", "C"]))
        counts = {each: draw(st.integers(0, 4)) for each in MAGNIFICATIONS}
        slides[f"{'BM'[SUBTYPES.index(subtype) >= 4]}_{subtype}-14-{number}{letters}"] = counts
    table = table_of(slides)
    assume(len(table) > 0)
    return table


specs = st.builds(
    DataSpec,
    protocol=st.sampled_from(["patient", "image"]),
    fold=st.integers(1, 5),
    folds=st.integers(2, 5),
    validation=st.sampled_from([0.1, 0.15, 0.3, 0.5]),
    group=st.sampled_from(DataSpec.GROUPS),
    seed=st.integers(0, 1000),
).filter(lambda spec: spec.fold <= spec.folds)


def names(table: pd.DataFrame, made: Split) -> dict[str, set[str]]:
    return {each: set(table["name"].to_numpy()[getattr(made, each)]) for each in SPLITS}


def sides(table: pd.DataFrame, made: Split, column: str) -> Counter:
    """How many sides each value of a column is on."""
    return Counter(value for each in SPLITS for value in set(table[column].to_numpy()[getattr(made, each)]))


def split_or_none(table: pd.DataFrame, spec: DataSpec) -> Split | None:
    """A random set may well have too few patients, or no images of a side; then it is told in one sentence."""
    try:
        return split(table, spec)
    except UserError as error:
        if not re.fullmatch(
            r".*(too few|leaves (train|validation|test) without|set has no \w+ images at).*", str(error)
        ):
            raise
        return None


@settings(max_examples=150, deadline=None)
@given(tables(), specs, st.randoms(use_true_random=False))
def test_a_split_is_a_partition_that_keeps_patients_whole(table, spec, random):
    made = split_or_none(table, spec)
    if made is None:
        return
    parts = [getattr(made, each) for each in SPLITS]
    assert sorted(np.concatenate(parts)) == list(range(len(table)))
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
        chosen = table.iloc[part]
        for magnification in set(table["magnification"]):
            assert set(chosen["malignant"][chosen["magnification"] == magnification]) == {True, False}
    column = {"stem": "stem", "id": "id", "folder": "slide"}[spec.group]
    assert list(made.groups) == list(table[column])
    assert made.leaks == (spec.protocol == "image")
    if spec.protocol == "patient":
        assert max(sides(table, made, column).values()) == 1
        assert max(sides(table, made, "id").values()) == 1  # filed twice or not, one slide is on one side
    else:
        assert any("leaks" in each for each in made.notes)
    # the order of the rows decides nothing
    shuffled = table.sample(frac=1, random_state=random.randrange(2**31)).reset_index(drop=True)
    assert names(shuffled, split(shuffled, spec)) == names(table, made)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["patient", "image"]), st.integers(2, 8), st.integers(0, 99), st.sampled_from(DataSpec.GROUPS))
def test_every_image_is_tested_in_exactly_one_fold(protocol, folds, seed, group):
    spec = DataSpec(protocol=protocol, folds=folds, seed=seed, group=group)
    tested = np.concatenate([split(OFFICIAL, replace(spec, fold=fold + 1)).test for fold in range(folds)])
    assert sorted(tested) == list(range(len(OFFICIAL)))


def test_seed_and_fold_decide_and_nothing_else_does():
    made = [names(OFFICIAL, split(OFFICIAL, DataSpec(seed=seed, fold=fold))) for seed in (0, 1) for fold in (1, 2)]
    assert len({frozenset(each["test"]) for each in made}) == 4
    again = split(OFFICIAL, DataSpec(seed=0, fold=1, fingerprint="another"))
    assert names(OFFICIAL, again) == made[0]


def test_the_default_folds_are_pinned():
    # A change of these numbers is a change of what a stage key means: raise recipe.RECIPE_VERSION with it.
    made = [split(OFFICIAL, DataSpec(fold=fold)) for fold in range(1, 6)]
    assert [tuple(len(getattr(each, part)) for part in SPLITS) for each in made] == [
        (5434, 947, 1528),
        (5365, 945, 1599),
        (5255, 954, 1700),
        (5402, 981, 1526),
        (5397, 956, 1556),
    ]


def content(table: pd.DataFrame, made: Split) -> str:
    hashed = hashlib.blake2b(digest_size=8)
    for part in SPLITS:
        hashed.update("\n".join([part, *sorted(table["name"].to_numpy()[getattr(made, part)])]).encode())
    hashed.update("\n".join(made.groups).encode())
    return hashed.hexdigest()


PINNED = {
    DataSpec(): "de08d3c23e33c0ea",
    DataSpec(fold=3): "a1aa4bb7c17206f4",
    DataSpec(fold=2, group="id", seed=7): "e52fb088626a3c4a",
    DataSpec(fold=5, group="folder"): "7f61665851f3db54",
    DataSpec(fold=1, folds=10, validation=0.3): "cde6fcd64988c166",
    DataSpec(protocol="official", fold=1): "4a868253f79457bd",
    DataSpec(protocol="official", fold=2): "8a3cad651c89b81a",
    DataSpec(protocol="official", fold=3): "33c1ea903c3b2b11",
    DataSpec(protocol="official", fold=4): "4c7924dfe9710b3f",
    DataSpec(protocol="official", fold=5): "4985d1648be98e55",
    DataSpec(protocol="official", fold=4, group="folder", seed=3): "f0ab4e022f4d3835",
    DataSpec(protocol="image"): "0fa69fe082089a10",
    DataSpec(protocol="image", fold=4, seed=2): "05b649c24e3c1564",
    DataSpec().refit(): "3ebeacf1a984aa76",
    DataSpec(fold=3).inner_fold(2, 4): "3691efb22cd0019e",
    DataSpec(seed=7).inner_fold(3, 3, partition=1): "b9ec037ad093fb54",
    DataSpec(protocol="official", fold=2).inner_fold(1, 3): "8d79be15649f34d4",
    DataSpec(protocol="image").inner_fold(5, 5): "44b5198324751bbd",
}


@pytest.mark.parametrize(("spec", "pin"), PINNED.items())
def test_the_splits_of_breakhis_are_pinned_image_by_image(spec, pin):
    # A change of these is a change of what a stage key means: raise recipe.RECIPE_VERSION with it.
    assert content(OFFICIAL, split(OFFICIAL, spec)) == pin


def test_patients_are_stratified():
    malignant = OFFICIAL["malignant"].to_numpy()
    for seed in range(10):
        for fold in range(1, 6):
            made = split(OFFICIAL, DataSpec(fold=fold, seed=seed))
            assert 13 <= len(set(made.groups[made.test])) <= 15  # of 70
            assert 8 <= len(set(made.groups[made.validation])) <= 10  # 15 % of 56
            benign = len(set(made.groups[made.test][~malignant[made.test]]))
            assert 3 <= benign <= 4  # of 16
            benign = len(set(made.groups[made.validation][~malignant[made.validation]]))
            assert 1 <= benign <= 3  # of 12 or 13, of which 15 % are 2
            assert set(OFFICIAL["subtype"].to_numpy()[made.train]) == set(range(8))
            # DC, the commonest subtype with 38 slides, has its share of 7 or 8 in every fold
            ductal = OFFICIAL["subtype"].to_numpy()[made.test] == SUBTYPES.index("DC")
            assert 7 <= len(set(made.groups[made.test][ductal])) <= 8


def test_images_are_stratified():
    made = split(OFFICIAL, DataSpec(protocol="image", fold=2))
    cells = OFFICIAL.groupby(["magnification", "subtype"]).size()
    for part, share in ((made.test, 0.2), (made.validation, 0.8 * 0.15)):
        counts = OFFICIAL.iloc[part].groupby(["magnification", "subtype"]).size()
        assert (counts - cells * share).abs().max() <= 2
        assert abs(len(part) - share * len(OFFICIAL)) <= 2


def test_the_groups_are_what_the_specification_calls_a_patient():
    counts = {group: len(set(split(OFFICIAL, DataSpec(group=group)).groups)) for group in DataSpec.GROUPS}
    assert counts == {"stem": 70, "id": 81, "folder": 82}


def test_a_slide_filed_twice_stays_on_one_side_even_by_folder():
    for seed in range(20):
        made = split(OFFICIAL, DataSpec(group="folder", seed=seed))
        assert sides(OFFICIAL, made, "id")["14-13412"] == 1
        assert "Slides of 14-13412 are in several folders: each folder counts as a patient" in made.notes[0]


@pytest.mark.parametrize(
    # Train and test images as the five official lists have them; 123 images of slide 14-13412 drop out of train.
    ("fold", "train", "test", "dropped"),
    [(1, 5005, 2904, 123), (2, 5506, 2403, 0), (3, 5332, 2577, 123), (4, 5211, 2698, 0), (5, 4826, 3083, 123)],
)
@pytest.mark.parametrize("group", DataSpec.GROUPS)
def test_official_folds(fold, train, test, dropped, group):
    made = split(OFFICIAL, DataSpec(protocol="official", fold=fold, group=group))
    assert len(made.test) == test
    assert len(made.train) + len(made.validation) == train - dropped
    for slide, facts in official_census()["slides"].items():
        assert (slide in set(OFFICIAL["slide"].to_numpy()[made.test])) == (fold in facts["test_in_fold"])
    assert max(sides(OFFICIAL, made, "id").values()) == 1
    assert list(made.groups) == list(OFFICIAL["id"])
    said = f"Official fold {fold} has slide 14-13412 in train and test; its 123 training images are dropped"
    assert (said in made.notes) == bool(dropped)
    patients = [set(OFFICIAL["stem"].to_numpy()[part]) for part in (made.train, made.validation)]
    if group == "stem":  # what is drawn here keeps stems together, whatever the lists do
        assert not patients[0] & patients[1]
    assert any("a patient here is a slide id" in each for each in made.notes) == (group != "id")
    assert "14-22549" in " ".join(each for each in made.notes if each.startswith("The lists go by full slide id"))
    assert not made.leaks


def test_official_folds_by_magnification():
    made = split(OFFICIAL, DataSpec(protocol="official", fold=1))
    assert [len(at(OFFICIAL, made.test, each)) for each in MAGNIFICATIONS] == [745, 760, 744, 655]


def test_the_official_protocol_takes_parts_of_breakhis_and_nothing_else():
    part = table_of({slide: dict.fromkeys(MAGNIFICATIONS, 2) for slide in CENSUS})
    assert len(split(part, DataSpec(protocol="official", fold=2)).test) == 28 * 8
    other = table_of({**CENSUS, "B_A-99-1": {40: 1}})
    with pytest.raises(UserError, match=r"knows the 82 slides of BreakHis only; the set has 1 others: B_A-99-1"):
        split(other, DataSpec(protocol="official"))


def few(benign: int, malignant: int, **sparse: dict[int, int]) -> pd.DataFrame:
    full = dict.fromkeys(MAGNIFICATIONS, 3)
    slides = {f"B_F-14-{100 + each}": full for each in range(benign)}
    slides |= {f"M_DC-14-{200 + each}": full for each in range(malignant)}
    return table_of(slides | {name.replace("_", "-").replace("-", "_", 1): counts for name, counts in sparse.items()})


@pytest.mark.parametrize("folds", [3, 4, 5])
def test_seventeen_slides_at_four_magnifications_split_by_patient(folds):
    """Sixteen patients, seven of them benign, with some images at every magnification: a small but usable set."""
    sixes = "B_A-14-22549AB B_A-14-22549G B_F-14-14134E B_F-14-23060CD B_F-14-29960AB B_PT-14-21998AB B_PT-14-29315EF "
    sixes += "M_DC-14-12312 M_DC-14-13412 M_DC-14-14926 M_LC-14-12204 M_MC-14-10147 M_MC-14-13413 M_PC-14-12465 "
    counts = dict.fromkeys([*sixes.split(), "M_PC-14-15704"], 6) | {"B_F-14-25197": 1, "M_DC-14-10926": 4}
    table = table_of({slide: dict.fromkeys(MAGNIFICATIONS, count) for slide, count in counts.items()})
    assert len(table) == 380
    for seed in range(5):
        for fold in range(1, folds + 1):
            made = split(table, DataSpec(fold=fold, folds=folds, seed=seed))
            assert len(set(made.groups[made.test])) >= 3


@pytest.mark.parametrize(("benign", "malignant", "folds"), [(3, 3, 3), (6, 9, 3), (6, 9, 5), (5, 5, 5)])
def test_few_patients_are_enough_where_each_part_gets_one_of_each_class(benign, malignant, folds):
    table = few(benign, malignant)
    for seed in range(10):
        for fold in range(1, folds + 1):
            split(table, DataSpec(fold=fold, folds=folds, seed=seed))


def test_a_rare_magnification_is_dealt_first():
    # only 3 benign and 3 malignant patients have 400X: each of 3 folds can have one of both, and is given it
    only_40 = {f"{each}_14_{number}": {40: 5} for each in ("B_F", "M_DC") for number in range(300, 310)}
    table = few(3, 3, **only_40)
    for seed in range(10):
        for fold in (1, 2, 3):
            made = split(table, DataSpec(fold=fold, folds=3, seed=seed))
            assert all(len(at(table, getattr(made, each), 400)) for each in SPLITS)


@pytest.mark.parametrize(
    ("table", "spec", "message"),
    [
        (few(9, 2), {}, "leaves .* without malignant images at 40X, which 2 patients of the set have"),
        (
            few(0, 9),
            {},
            "^The set has no benign images at 40X, so no part of fold 1 has any; add such images, or prepare the set "
            "without its 40X images$",
        ),
        (few(2, 2), {}, "4 patients are too few for 5 folds, which need 6: 14-100, 14-101, 14-200, 14-201"),
        (few(9, 9, M_DC_14_999={40: 1}), {"folds": 20}, "19 patients are too few for 20 folds, which need 21"),
        (few(9, 9), {"folds": 5, "fold": 6}, "There is no fold 6 of 5; allowed: 1 to 5"),
        (few(9, 9), {"protocol": "official", "fold": 6}, "There is no fold 6 of 5"),
        (few(9, 9), {"fold": 0}, "There is no fold 0 of 5"),
        (few(9, 9), {"folds": 1}, "allowed: 2 or more"),
        (few(9, 9), {"validation": 0.0}, "Validation share 0.0 is not between 0 and 1"),
        (few(9, 9), {"validation": 1.0}, "Validation share 1.0 is not between 0 and 1"),
        (few(9, 9), {"protocol": "patients"}, "did you mean 'patient'"),
        (few(9, 9), {"group": "stems"}, "did you mean 'stem'"),
        (few(1, 1), {"protocol": "image", "folds": 5}, "images of the set|without|leaves"),
    ],
)
def test_what_cannot_be_split_is_one_sentence(table, spec, message):
    with pytest.raises(UserError, match=message):
        split(table, DataSpec(**spec))


def test_the_sentence_names_the_magnification_and_the_part():
    slides = {f"{kind}-14-{number}": {40: 2, 100: 2, 200: 2} for number in range(6) for kind in ("B_F", "M_DC")}
    slides["B_F-14-0"] = dict.fromkeys(MAGNIFICATIONS, 2)
    slides["M_DC-14-0"] = dict.fromkeys(MAGNIFICATIONS, 2)
    with pytest.raises(UserError) as caught:
        split(table_of(slides), DataSpec(folds=3))
    assert re.match(
        r"Fold 1 of protocol 'patient' leaves (train|validation|test) without \w+ images at 400X", str(caught.value)
    )


def test_the_sentence_names_an_inner_fold_only_where_there_are_such():
    table, spec = few(9, 1), DataSpec(folds=3)
    for fold in (1, 2, 3):  # of a refit, the one malignant patient is in train or in test
        with pytest.raises(UserError, match=rf"^Fold {fold} of protocol 'patient' leaves (train|test) without malig"):
            split(table, replace(spec, fold=fold).refit())
    with pytest.raises(UserError, match=r"^Inner fold 2 of 4 in fold 1 of protocol 'patient' leaves "):
        split(table, spec.inner_fold(2, 4))


@given(st.integers(2, 6), st.integers(0, 60), st.integers(0, 60), st.integers(0, 9))
@example(5, 3, 2, 0)
def test_dealing_gives_every_part_its_share_of_every_label(parts, many, few_units, seed):
    classes = {
        **{f"a{each}": {"common"} for each in range(many)},
        **{f"b{each}": {"rare"} for each in range(few_units)},
    }
    images = {unit: {(its == {"common"}, 40): 1} for unit, its in classes.items()}
    dealt = deal(classes, images, [1 / parts] * parts, str(seed))
    assert sorted(unit for part in dealt for unit in part) == sorted(classes)
    for letter, count in (("a", many), ("b", few_units)):
        counts = [sum(unit.startswith(letter) for unit in part) for part in dealt]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == count


@st.composite
def patients(draw):
    """(classes, images) of up to 60 patients, as `deal` takes them: some of two classes, some lack a magnification."""
    classes, images = {}, {}
    for index in range(draw(st.integers(2, 60))):
        its = draw(st.sets(st.sampled_from(["A", "F", "DC", "LC"]), min_size=1, max_size=2))
        sides = {each in ("DC", "LC") for each in its}
        zooms = draw(st.sets(st.sampled_from([40, 100]), min_size=1))
        images[str(index)] = {(side, zoom): draw(st.integers(1, 40)) for side in sides for zoom in zooms}
        classes[str(index)] = its
    return classes, images


def unevenness(parts, images, shares):
    """Chi-squared distance of the parts' shares of the images, summed over pairs: written anew."""
    table = pd.DataFrame(images).fillna(0)
    table = table.div(table.sum(axis=1), axis=0)
    got = np.array([table[sorted(part)].sum(axis=1) for part in parts])
    return ((got - np.array(shares)[:, None]) ** 2 / np.array(shares)[:, None]).sum()


@given(patients(), st.sampled_from([(0.5, 0.5), (1 / 3,) * 3, (0.15, 0.85), (0.25,) * 4]), st.integers(0, 9))
def test_exchanges_even_out_images_and_leave_the_dealing_of_patients_as_even(patients, shares, seed):
    classes, images = patients
    after = deal(classes, images, shares, str(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dealing, "_even_out", lambda *args: None)
        before = deal(classes, images, shares, str(seed))
    labels = {unit: {*its, *images[unit]} for unit, its in classes.items()}
    assert [len(part) for part in after] == [len(part) for part in before]

    def count(parts, label):
        return [sum(label in labels[unit] for unit in part) for part in parts]

    for label in {each for its in labels.values() for each in its}:
        if isinstance(label, tuple):
            assert count(after, label) == count(before, label)
        else:
            # what Webster's method makes small: a part's units, less 1/2, in proportion to its share
            worst = [max((2 * np.array(count(each, label)) - 1) / shares) for each in (before, after)]
            assert worst[1] <= worst[0] + 1e-9
    assert unevenness(after, images, shares) <= unevenness(before, images, shares) + 1e-9


def variation(parts):
    """Coefficient of variation over parts of the images of each (side, magnification), their mean; and the largest
    difference between two parts in patients of a class."""
    counts = np.array([OFFICIAL.iloc[part].groupby(["malignant", "magnification"]).size() for part in parts])
    patients = [
        OFFICIAL.iloc[part].groupby("subtype")["stem"].nunique().reindex(range(8), fill_value=0) for part in parts
    ]
    return (counts.std(axis=0) / counts.mean(axis=0)).mean(), np.ptp(np.array(patients), axis=0).max()


def test_folds_of_breakhis_are_as_even_as_those_of_scikit_learn():
    """Its groups are even in images alone; the classes of ours are so as well."""
    from sklearn.model_selection import StratifiedGroupKFold

    pairs = OFFICIAL["malignant"].astype(int) * 1000 + OFFICIAL["magnification"]
    ours, theirs = [], []
    for seed in range(5):
        folds = StratifiedGroupKFold(3, shuffle=True, random_state=seed).split(pairs, pairs, OFFICIAL["stem"])
        theirs.append(variation([test for _, test in folds]))
        ours.append(variation([split(OFFICIAL, DataSpec(folds=3, fold=fold, seed=seed)).test for fold in (1, 2, 3)]))
    (images, classes), (their_images, their_classes) = np.mean(ours, axis=0), np.mean(theirs, axis=0)
    assert images < their_images < 0.05
    assert classes <= 1 < their_classes


def test_a_set_of_thousands_of_patients_is_dealt_in_bounded_steps(monkeypatch):
    rng = np.random.default_rng(0)
    images = {str(unit): {(unit % 3 > 0, 40): int(count)} for unit, count in enumerate(rng.geometric(0.02, 2000))}
    classes = {unit: {"DC" if (True, 40) in its else "A"} for unit, its in images.items()}
    parts = deal(classes, images, [0.2] * 5, "0")
    monkeypatch.setattr(dealing, "EXCHANGE_ROUNDS", 0)
    before = deal(classes, images, [0.2] * 5, "0")
    assert unevenness(parts, images, [0.2] * 5) < unevenness(before, images, [0.2] * 5) / 1000


# ---- inner folds


def inner_specs(spec, inner_folds, partition=0):
    return [spec.inner_fold(inner, inner_folds, partition) for inner in range(1, inner_folds + 1)]


@pytest.mark.parametrize("group", DataSpec.GROUPS)
@pytest.mark.parametrize(
    ("protocol", "inner_folds"), [("patient", 2), ("patient", 4), ("official", 3), ("image", 5), ("official", 5)]
)
def test_inner_folds_judge_every_development_image_once_and_share_no_patient(protocol, inner_folds, group):
    spec = DataSpec(protocol=protocol, fold=1, folds=3, group=group)
    whole = split(OFFICIAL, spec.refit())
    assert len(whole.validation) == 0
    parts = [split(OFFICIAL, each) for each in inner_specs(spec, inner_folds)]
    together = np.concatenate([part.validation for part in parts])
    np.testing.assert_array_equal(np.sort(together), whole.train)
    sizes = [len(set(part.groups[part.validation])) for part in parts]
    for part in parts:
        np.testing.assert_array_equal(part.test, whole.test)
        np.testing.assert_array_equal(np.sort(np.concatenate([part.train, part.validation])), whole.train)
        if protocol != "image":
            assert not set(part.groups[part.train]) & set(part.groups[part.validation])
    if protocol != "image":
        assert max(sizes) - min(sizes) <= 3


def test_inner_folds_are_stratified_by_class():
    spec = DataSpec(protocol="patient", fold=1, folds=3)
    malignant = OFFICIAL["malignant"].to_numpy()
    counts = []
    for each in inner_specs(spec, 4):
        part = split(OFFICIAL, each)
        counts.append([len(set(part.groups[part.validation][malignant[part.validation] == side])) for side in (0, 1)])
    assert np.ptp(np.array(counts), axis=0).tolist() <= [1, 2], counts


def test_another_partition_cuts_the_same_patients_anew():
    spec = DataSpec(protocol="patient", fold=2, folds=3)
    first, second = (
        [frozenset(split(OFFICIAL, each).validation) for each in inner_specs(spec, 3, partition)]
        for partition in (0, 1)
    )
    assert frozenset.union(*first) == frozenset.union(*second)
    assert not set(first) & set(second)


def test_the_validation_share_is_no_part_of_the_key_of_an_inner_fold():
    one, two = (replace(DataSpec(validation=share), fold=2) for share in (0.15, 0.4))
    assert one.inner_fold(1, 3) == two.inner_fold(1, 3)
    assert one.refit() == two.refit()


def alike(one, two):
    """Whether two splits are one: the same images on the same sides, and the same patients."""
    return all(np.array_equal(getattr(one, each), getattr(two, each)) for each in (*SPLITS, "groups"))


FOLDS = {
    "one part": lambda spec: spec,
    "an inner fold": lambda spec: spec.inner_fold(2, 3, 1),
    "refit": lambda spec: spec.refit(),
}


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("protocol", DataSpec.PROTOCOLS)
def test_specs_are_settled_alike_exactly_where_they_are_one_split(protocol, fold):
    first = DataSpec("f", protocol, fold=2, folds=3)
    changes = ({}, {"folds": 5}, {"validation": 0.3}, {"group": "id"}, {"group": "folder"}, {"seed": 1})
    specs = [FOLDS[fold](replace(first, **each)) for each in changes]
    splits = {each: split(OFFICIAL, each) for each in {*specs, *(spec.settled() for spec in specs)}}
    for spec in specs:
        assert spec.settled().settled() == spec.settled()
        assert alike(splits[spec.settled()], splits[spec])
    for one, other in itertools.combinations(specs, 2):
        assert (one.settled() == other.settled()) == alike(splits[one], splits[other]), (one, other)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DataSpec(folds=3).inner_fold(5, 4), "There is no inner fold 5 of 4; allowed: 1 to 4"),
        (DataSpec(folds=3).inner_fold(1, 90), r"patients are too few for 90 inner folds, which need 90"),
        (
            DataSpec(folds=3).inner_fold(1, 40),
            r"without malignant images at .*take fewer inner folds \(objective_folds\)",
        ),
    ],
)
def test_inner_folds_that_cannot_be_made_are_one_sentence(spec, message):
    with pytest.raises(UserError, match=message):
        split(OFFICIAL, spec)
