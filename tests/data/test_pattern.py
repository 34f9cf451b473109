"""Naming patterns: a path is read in the one way in which it fits, and refused where there are several."""

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtvit_ray.cli import main
from kdtvit_ray.data.sources import scan
from kdtvit_ray.data.sources.folder import compiled
from kdtvit_ray.errors import UserError
from tests.data.test_sources import images

SET = [
    f"{at}/{side}/{number}_{at}_{side[0]}2.png"
    for at in (40, 100)
    for side in ("benign", "malignant")
    for number in (0, 1)
]


def test_a_path_that_fits_in_two_ways_is_refused_with_both(tmp_path):
    images(tmp_path, *SET)
    pattern = "{magnification}/{label}/{rest}_{patient}.png"
    with pytest.raises(UserError) as caught:
        scan(tmp_path, pattern=pattern)
    assert str(caught.value).startswith(f"8 findings in the 8 images of '{tmp_path}': 100/benign/0_100_b2.png: ")
    assert (
        f"40/malignant/1_40_m2.png: fits '{pattern}' in two ways, patient '40_m2' or 'm2'; allowed: a pattern that it "
        "fits in one, such as with a {rest} for each piece of the name that does not matter" in str(caught.value)
    )
    found = scan(tmp_path, pattern="{magnification}/{label}/{rest}_{rest}_{patient}.png")
    assert {each.id for each in found.images} == {"b2", "m2"}


@pytest.mark.parametrize(
    ("pattern", "path", "one_way"),
    [
        ("{magnification}/{label}/{patient}/**", "40X/benign/p_1/a/b_c.png", True),
        ("{magnification}/{label}/{patient}/{rest}_{rest}.png", "40X/benign/p1/a_b_c.png", True),
        ("**/{magnification}/{label}/{patient}/*", "a/b/40/benign/p1/c.png", True),
        ("{magnification}x/{label}/{patient}_{rest}.png", "40x/benign/p1_2.png", True),
        ("{magnification}x/{label}/{patient}_{rest}.png", "40x/benign/p1_2_3.png", False),
        ("{magnification}/{label}/*_{patient}.png", "40/benign/a_b_c.png", False),
        ("{magnification}/{label}/**/{patient}_*", "40/benign/a/b/c_d.png", True),
        ("{magnification}_{label}_{patient}-{slide}.png", "40_no_tumour_p1-s1.png", False),
    ],
)
def test_only_parts_that_matter_have_to_be_read_in_one_way(pattern, path, one_way):
    first, last = (compiled(pattern, each).fullmatch(path) for each in (False, True))
    assert (first.groupdict() == last.groupdict()) == one_way


@settings(deadline=None)
@given(st.lists(st.sampled_from(["{rest}", "*", "{slide}"]), max_size=3, unique=True), st.text("ab_", max_size=9))
def test_the_first_and_the_last_way_are_the_same_where_there_is_one(others, name):
    """Held against all ways to cut a name at its underscores."""
    parts = [*others, "{patient}"]
    pattern = "{magnification}/{label}/" + "_".join(parts)
    pieces = name.split("_")
    ways = {
        tuple("_".join(pieces[at:to]) for at, to in pairwise(cuts))
        for cuts in product(*[range(len(pieces) + 1)] * (len(parts) + 1))
        if cuts[0] == 0 and cuts[-1] == len(pieces) and list(cuts) == sorted(set(cuts))
    }
    needed = [at for at, part in enumerate(parts) if part in ("{slide}", "{patient}")]
    ways = {each for each in ways if all(each[at] for at in needed)}
    first, last = (compiled(pattern, each).fullmatch(f"4/x/{name}") for each in (False, True))
    assert bool(first) == bool(last) == bool(ways)
    if len(ways) == 1:
        assert first.groupdict() == last.groupdict()
    if len({each[-1] for each in ways}) > 1 and len(parts) == 2:
        assert first["patient"] != last["patient"]


def test_the_patients_of_a_set_are_counted_and_named(tmp_path, capsys):
    source = images(
        tmp_path / "set", *(f"40/{side}/p{number}/a.png" for number, side in enumerate(["benign", "malignant"] * 4))
    )
    assert main(["prepare", str(source), str(tmp_path / "out"), "--size", "16"]) == 0
    assert "8 patients: p0, p1, p2, p3, p4 and 3 more" in capsys.readouterr().out.splitlines()
