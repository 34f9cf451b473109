"""What is searched: a list of choices or a range of numbers, as values, as a grid and as random draws."""

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kdtvit_ray.recipe import Training
from kdtvit_ray.study.settings import MOST_VALUES


@dataclass(frozen=True)
class Choices:
    """A searched value out of a list."""

    values: tuple[Any, ...]

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def ends(self) -> tuple[Any, Any]:
        """The smallest and the largest value."""
        return min(self.values), max(self.values)

    def grid(self) -> list[Any]:
        """All values."""
        return list(self.values)

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        return rng.choice(self.values)

    def plain(self) -> Any:
        """The form that a space file has."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """A searched number between two bounds; `step` makes it a grid, `log` uniform in the logarithm."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False

    @property
    def count(self) -> int | None:
        """How many values there are, counted in decimals as Optuna does: whole numbers are their own steps. None where
        the range is continuous, or has too many values to list."""
        if not self.step:
            count = int(self.high - self.low) + 1
            return count if self.integer and count <= MOST_VALUES else None
        low, high, step = (Decimal(str(each)) for each in (self.low, self.high, self.step))
        return int((high - low) // step) + 1

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value that can be drawn. The last step is one in decimals, as Optuna's is, so
        that 0.1, 0.2, ... ends with 0.3 and not with 0.30000000000000004, which is above it."""
        count = self.count
        if not count or not self.step:
            return self.low, self.high
        return self.low, float(Decimal(str(self.low)) + (count - 1) * Decimal(str(self.step)))

    def grid(self) -> list[Any]:
        """All values of a range that can be counted."""
        assert self.count
        last = self.ends[1]
        return [self._value(index, last) for index in range(self.count)]

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        if self.step and self.count:
            return self._value(rng.choice(range(self.count)), self.ends[1])
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return round(value) if self.integer else value

    def _value(self, index: int, last: float) -> Any:
        value = min(self.low + index * (self.step or 1), last)
        return int(value) if self.integer else value

    def plain(self) -> Any:
        """The form that a space file has."""
        plain: dict[str, Any] = {"low": self.low, "high": self.high}
        if self.log:
            plain["log"] = True
        if self.step:
            plain["step"] = self.step
        return plain


Dimension = Choices | Range


def most_variants(training: Mapping[str, Any], dimensions: Mapping[str, Dimension]) -> Training:
    """The fixed training with the values, fixed or searched, that make most of the variants and take most epochs."""
    most = dict(training)
    for name in ("epochs", "variants", "zoom"):
        if each := dimensions.get(f"training.{name}"):
            most[name] = max(most[name], each.ends[1])
    for name in ("views", "stain", "stain_strength"):
        each = dimensions.get(f"training.{name}")
        default = getattr(Training, name)
        values = (most[name], *(each.values if isinstance(each, Choices) else each.ends if each else ()))
        if name == "views":
            most[name] = max(values, key=lambda word: Training.VIEWS[word])
        else:
            most[name] = next((value for value in values if value != default), default)
    return Training(**most)


def possible(dimensions: Mapping[str, Dimension], name: str, fixed: Any) -> tuple[Any, ...]:
    """The values that a setting without a range may have: those that are searched, or the one that is `fixed`."""
    searched = dimensions.get(name)
    return searched.values if isinstance(searched, Choices) else (fixed,)


def in_order(dimensions: Mapping[str, Dimension], names: Iterable[str]) -> dict[str, Dimension]:
    """The dimensions with those that are named first, in this order."""
    first = [name for name in names if name in dimensions]
    return {name: dimensions[name] for name in dict.fromkeys((*first, *dimensions))}
