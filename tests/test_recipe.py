"""Stage keys: what they are for ever, and that settings can be added without changing them."""

from dataclasses import replace

import pytest

from kdtvit_ray import recipe
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import Chain, DataSpec, ModelSpec, Numeric, StageSpec, Training, parse_order

PLAIN = Chain((40, 100, 200, 400), ModelSpec("tiny"), ModelSpec(), (4.0,) * 3, (0.5,) * 3)
SPECIAL = Chain(
    (400, 40),
    ModelSpec("tiny", (("patch_size", 8),), 64, "binary", "x", "d1"),
    ModelSpec(),
    (2.0,),
    (0.9,),
    "dkd",
    False,
    Training(epochs=3, crop="centre"),
    5,
    DataSpec("abc", "official", 2),
    Numeric("bfloat16", 2),
)

PINNED = {
    1: (
        [
            "f0b8cbf38e04c9210ca66711db68871c",
            "f1950658c95d7f2c23bb4702bcdd1f24",
            "5dee99d11b23d50cde13411c9530e49e",
            "c736fdbba6659c0e7de58fdd38a10199",
            "1d2ca6e9d37d3c40f85b9518512cb518",
        ],
        ["ce668a76737f53c45099c6583e95f5e0", "c1e0a3293252a03e68efd692cac7dee3", "273c7f322bc6c0e5b105536504ca20c5"],
    ),
}
"""Keys by recipe version. A new recipe gets a line of its own (`pins` makes it); an old line never changes."""


def pins() -> tuple[list[str], ...]:
    return tuple([stage.key for stage in (*chain.stages(), *chain.joint())] for chain in (PLAIN, SPECIAL))


def test_keys_are_pinned_for_ever():
    assert recipe.RECIPE_VERSION in PINNED, f"pin the keys of recipe {recipe.RECIPE_VERSION}: {pins()}"
    assert pins() == PINNED[recipe.RECIPE_VERSION]


def test_a_setting_that_was_added_later_is_in_the_key_only_where_it_is_not_as_it_was():
    spec = StageSpec((40,), ModelSpec())
    assert replace(spec, model=ModelSpec(subtypes=8)).key == spec.key
    other = replace(spec, model=ModelSpec(subtypes=3))
    assert other.key != spec.key
    assert StageSpec.from_dict(other.to_dict()) == other


def test_a_spec_from_before_a_setting_is_read_with_the_value_that_it_had():
    plain = SPECIAL.stages()[1].to_dict()
    before = {**plain, "model": {name: value for name, value in plain["model"].items() if name != "subtypes"}}
    assert StageSpec.from_dict(before) == SPECIAL.stages()[1]
    assert "subtypes" not in before["model"]  # what was handed in is left as it is


def test_a_default_may_change_without_changing_old_keys(monkeypatch):
    """As if `clip_grad` had been added later, when nothing was clipped: an old spec says nothing of it."""
    spec = StageSpec((40,), ModelSpec(), Training(clip_grad=0.0))
    plain = spec.to_dict()
    monkeypatch.setitem(recipe.ADDED_LATER, ("training", "clip_grad"), 0.0)
    before = {**plain, "training": {name: value for name, value in plain["training"].items() if name != "clip_grad"}}
    assert StageSpec.from_dict(before) == spec
    assert StageSpec.from_dict(before).key == spec.key != StageSpec((40,), ModelSpec()).key


def test_every_setting_that_was_added_later_exists():
    spec = SPECIAL.stages()[1].to_dict()
    assert all(name in spec[part] for part, name in recipe.ADDED_LATER)


@pytest.mark.parametrize(
    ("text", "order"),
    [("40>100", (40, 100)), ("20X > 5x", (20, 5)), ("7", (7,)), ("1>2>3>4>5>6>7", (1, 2, 3, 4, 5, 6, 7))],
)
def test_an_order_is_any_magnifications(text, order):
    assert parse_order(text) == order


@pytest.mark.parametrize("text", ["", "40>", "40>40", "0>40", "-40>100", "40,100", "40>1e2", "4²>40", "forty"])
def test_what_is_no_order_is_told(text):
    with pytest.raises(UserError, match="not a sequence of different magnifications"):
        parse_order(text)
