"""Checks of single values of a search space: kind, bounds and allowed words, each mistake told in one sentence."""

import math
from collections.abc import Mapping
from typing import Any

from kdtvit_ray.errors import UserError, choose, unknown
from kdtvit_ray.recipe import ALL_BLOCKS, format_order, parse_order
from kdtvit_ray.study.settings import MOST_VALUES


class ValueReader:
    """Reads values, and names `source` in its messages. Raises `UserError` for what is wrong."""

    source: str

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
        bounds = {
            "epochs": (1, math.inf),
            "batch": (1, math.inf),
            "lr": (1e-12, 1e3),
            "weight_decay": (0, 1e3),
            "warmup_epochs": (0, math.inf),
            "min_lr_ratio": (0, 1),
            "label_smoothing": (0, 0.99),
            "drop_path": (0, 0.99),
            "stain_strength": (0.001, 1),
            "variants": (1, 1000),
            "zoom": (0, 0.9),
            "clip_grad": (0, math.inf),
            "layer_decay": (0.3, 1),
            "head_lr": (0.01, 1000),
            "ema": (0, 0.99999),
            "rehearsal": (0, 0.9),
            "lora_rank": (0, 1024),
            "mixup": (0, 100),
        }
        if name == "trainable_blocks" and value != ALL_BLOCKS and value < 0:
            raise UserError(f'{self.source}: {where} is {value}; allowed: "{ALL_BLOCKS}", or 0 or more')
        if name in bounds:
            self._within(where, value, *bounds[name])

    def _chain_value(self, where: str, name: str, value: Any) -> Any:
        low, high = {"temperature": (0.05, 100.0), "alpha": (0.0, 1.0)}[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.source}: {where} is {kind_of(value)}; allowed: a number")
        self._within(where, value, low, high)
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
