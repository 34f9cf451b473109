"""Plain data, as of a JSON or TOML file, that lacks one of its names, or has another value there."""

from collections.abc import Iterator
from typing import Any

Place = tuple[str | int, ...]


def places(plain: Any, place: Place = ()) -> Iterator[Place]:
    """The way to each name of a table, the tables in it first, with those in the first table of a list."""
    if isinstance(plain, dict):
        for name, value in plain.items():
            yield from places(value, (*place, name))
            yield (*place, name)
    elif isinstance(plain, list) and plain and isinstance(plain[0], dict):
        yield from places(plain[0], (*place, 0))


def without(plain: Any, place: Place) -> Any:
    """The same data without the name at a place."""
    first, *rest = place
    if isinstance(plain, list):
        return [without(each, tuple(rest)) if at == first else each for at, each in enumerate(plain)]
    if not rest:
        return {name: value for name, value in plain.items() if name != first}
    return {name: without(value, tuple(rest)) if name == first else value for name, value in plain.items()}


def with_value(plain: Any, place: Place, value: Any) -> Any:
    """The same data with this value at a place."""
    if not place:
        return value
    first, *rest = place
    items = enumerate(plain) if isinstance(plain, list) else plain.items()
    found = {name: with_value(each, tuple(rest), value) if name == first else each for name, each in items}
    return list(found.values()) if isinstance(plain, list) else found
