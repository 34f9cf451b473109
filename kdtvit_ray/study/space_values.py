"""Checks of single values of a search space: kind, bounds and allowed words, each mistake told in one sentence."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from kdtvit_ray.errors import UserError, choose, unknown
from kdtvit_ray.recipe import ALL_BLOCKS, format_order, parse_order
from kdtvit_ray.study.dimensions import Choices
from kdtvit_ray.study.settings import ALL_ORDERS_UP_TO, CHAIN_BOUNDS, MOST_VALUES, TRAINING_BOUNDS


class ValueReader:
    """Reads values, and names `source` in its messages. Raises `UserError` for what is wrong."""

    source: str
    chain: dict[str, Any]

    def _table(self, plain: Mapping[str, Any], table: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
        given = plain.get(table, {})
        if not isinstance(given, Mapping):
            raise UserError(f"{self.source}: '{table}' is {kind_of(given)}; allowed: a table [{table}]")
        for name in given:
            if name not in defaults:
                raise UserError(f"{self.source}: {unknown(f'key in [{table}]', name, defaults)}")
        return {
            name: self._typed(f"[{table}] {name}", given.get(name, default), default)
            for name, default in defaults.items()
        }

    def _typed(self, where: str, value: Any, like: Any) -> Any:
        if isinstance(like, bool):
            fits = isinstance(value, bool)
        elif isinstance(like, float):
            fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            value = float(value) if fits else value
        elif like == ALL_BLOCKS:
            fits = value == ALL_BLOCKS or (isinstance(value, int) and not isinstance(value, bool))
        else:
            fits = isinstance(value, type(like)) and not isinstance(value, bool)
        if not fits:
            allowed = f'"{ALL_BLOCKS}" or a whole number' if like == ALL_BLOCKS else kind_of(like, "name only")
            raise UserError(f"{self.source}: {where} is {kind_of(value)}; allowed: {allowed}")
        return value

    def _training_value(self, where: str, name: str, value: Any) -> None:
        if name == "trainable_blocks" and value != ALL_BLOCKS and value < 0:
            raise UserError(f'{self.source}: {where} is {value}; allowed: "{ALL_BLOCKS}", or 0 or more')
        if name in TRAINING_BOUNDS:
            self._within(where, value, *TRAINING_BOUNDS[name])

    def _chain_value(self, where: str, name: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.source}: {where} is {kind_of(value)}; allowed: a number")
        self._within(where, value, *CHAIN_BOUNDS[name])
        return float(value)

    def _arguments(self, where: str, table: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """A model's arguments as sorted pairs, of values that can be hashed and written as JSON."""
        return tuple(sorted((name, self._argument(f"{where}.{name}", value)) for name, value in table.items()))

    def _argument(self, where: str, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self._argument(where, each) for each in value)
        if not isinstance(value, bool | int | float | str):
            raise UserError(
                f"{self.source}: {where} holds {kind_of(value)}; allowed: a number, text, true or false, or a list of "
                "these"
            )
        return value

    def _step(self, where: str, value: Mapping[str, Any], like: Any, width: float) -> Any:
        """The step of a range so wide; None where it has none."""
        if "step" not in value:
            return None
        step = self._typed(f"{where}.step", value["step"], like)
        if step > 0 and width / step >= MOST_VALUES:
            raise UserError(f"{self.source}: {where} has a step of {step:g}; allowed: up to {MOST_VALUES:,} values")
        return step

    def _different(self, where: str, value: Any, typed: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(typed)) != len(typed):
            raise UserError(f"{self.source}: {where} lists a value twice: {value}; allowed: different values")
        return typed

    def _word(self, where: str, value: Any, allowed: Any) -> None:
        try:
            choose(f"value of {where}", value, allowed)
        except UserError as error:
            raise UserError(f"{self.source}: {error}") from None

    def _within(self, where: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            first, last = (each if isinstance(each, int) else f"{each:g}" for each in (low, high))
            bounds = f"from {first} to {last}" if math.isfinite(high) else f"{first} or more"
            raise UserError(f"{self.source}: {where} is {value}; allowed: {bounds}")

    def _order(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            raise UserError(f'{self.source}: {where} is {kind_of(value)}; allowed: text such as "40>100>200>400"')
        try:
            return format_order(parse_order(value))
        except UserError as error:
            told = str(error).removeprefix("Order ")  # `where` says that it is one
            raise UserError(f"{self.source}: {where} {told}") from None

    def _order_choices(self, where: str, value: Any) -> Choices:
        stages = parse_order(self.chain["order"])
        if value == "all" and len(stages) > ALL_ORDERS_UP_TO:
            raise UserError(
                f'{self.source}: {where} is "all", but {len(stages)} magnifications have '
                f'{math.factorial(len(stages)):,} orders; allowed: "all" of up to {ALL_ORDERS_UP_TO}, "first", a list'
            )
        if value == "all":
            return Choices(tuple(format_order(order) for order in itertools.permutations(sorted(stages))))
        if value == "first":
            ascending = sorted(stages)
            return Choices(tuple(format_order([m, *(o for o in ascending if o != m)]) for m in ascending))
        if isinstance(value, list) and value:
            return Choices(self._different(where, value, tuple(self._order(where, each) for each in value)))
        raise UserError(
            f'{self.source}: {where} is {value!r}; allowed: "all", "first", or a list such as ["40>100>200>400"]'
        )


def kind_of(value: Any, only: str = "") -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a table",
    }
    name = names.get(type(value), type(value).__name__)
    return name if only else f"{value!r} ({name})"
