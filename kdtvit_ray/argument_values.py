"""How values of the command line are read. Each reader raises `argparse.ArgumentTypeError`, which names what was found
and what is allowed."""

import argparse
import math
from collections.abc import Sequence

from kdtvit_ray.study.settings import SEEDS


def whole(text: str) -> int:
    """`-3`: a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number; allowed: such as 7") from None


def count(text: str) -> int:
    """`12`: a whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a count; allowed: a whole number from 1")
    return value


def counts(parts: Sequence[str], text: str, wanted: str) -> list[int]:
    """The whole numbers from 1 that `parts` of a text are; `wanted` says in the message what the text is to be."""
    try:
        return [count(each) for each in parts]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}") from None


def number(text: str, wanted: str = "a number; allowed: such as 2 or 0.5") -> float:
    """`0.5`: a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
    return value


def seconds(text: str) -> float:
    """`90`: a time in seconds, above 0."""
    wanted = "a time in seconds; allowed: a number above 0"
    if (value := number(text, wanted)) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
    return value


def share(text: str) -> float:
    """`0.25`: what a worker takes of a GPU, or how many; which of them can work, `cluster.options` says."""
    wanted = "a share of a GPU; allowed: 0, a share such as 0.25, or a whole number"
    if (value := number(text, wanted)) < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
    return value


def seed(text: str) -> int:
    """`7`: a seed that a study can have."""
    first, last = SEEDS
    try:
        value = int(text)
    except ValueError:
        value = last + 1
    if not first <= value <= last:
        raise argparse.ArgumentTypeError(f"'{text}' is not a seed; allowed: a whole number from {first} to {last}")
    return value


def folds(text: str) -> list[int]:
    """`1-3,5`: numbers and ranges, each number once."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = counts([first, last if dash else first], text, "a list of folds; allowed: such as 1-5 or 1,3")
        numbers = range(ends[0], ends[1] + 1)
        if not numbers:
            raise argparse.ArgumentTypeError(f"'{part}' holds no fold; allowed: a range such as 1-5")
        found += numbers
    return list(dict.fromkeys(found))


def words(text: str) -> list[str]:
    """`a,b`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def groups(text: str) -> int:
    """A number of worker groups; 0 for `auto`."""
    wanted = "a number of worker groups; allowed: auto, or a whole number from 1"
    return 0 if text == "auto" else counts([text], text, wanted)[0]


def size(text: str) -> tuple[int, int]:
    """`700x460`: width and height in pixels."""
    sides = text.partition("x")[::2]
    width, height = counts(sides, text, "WIDTHxHEIGHT in pixels; allowed: such as 700x460")
    return width, height
