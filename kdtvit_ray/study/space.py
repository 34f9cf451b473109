"""A search space from a TOML file: what is fixed, what is searched, and the chains that follow from a suggestion.

    [study]      name, seed, trials, sampler, metric, lag, reproducible, pruner, startup, baselines
    [protocol]   name, fold, folds, validation, group, seed
    [chain]      teacher, student, order, temperature, alpha, loss, warm_start, head, image_size
    [training]   epochs, batch, lr, ... (`kdtvit_ray.recipe.Training`)
    [numeric]    dtype, threads
    [models.X]   name, args, image_size, weights: gives the size or timm model X its settings
    [search]     what is searched: temperature, alpha, order, student, teacher, loss, warm_start, training.*

A searched value is a list of choices, or `{ low, high, log, step }`, or `{ per_stage = <one of these> }` for
temperature and alpha. `order` also takes "all" (every permutation) and "first" (each magnification first, the others
ascending).
"""

import itertools
import math
import random
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdtvit_ray.errors import UserError, choose, unknown
from kdtvit_ray.recipe import (
    BASELINES,
    HEADS,
    Chain,
    DataSpec,
    Distillation,
    ModelSpec,
    Numeric,
    StageSpec,
    Training,
    field_names,
    format_order,
    parse_order,
)

SAMPLERS = ("tpe", "random", "grid", "nsga2")
PRUNERS = ("none", "asha")
METRICS = ("auc", "accuracy", "balanced_accuracy", "f1", "precision", "recall", "specificity")
SEARCHED = ("temperature", "alpha", "order", "student", "teacher", "loss", "warm_start", "training")
PER_STAGE = ("temperature", "alpha")

STUDY_DEFAULTS: dict[str, Any] = {
    "name": "", "seed": 0, "trials": 20, "sampler": "tpe", "metric": "auc", "lag": 8, "reproducible": True,
    "pruner": "none", "startup": 10, "baselines": list(BASELINES),
}  # fmt: skip
PROTOCOL_DEFAULTS: dict[str, Any] = {
    "name": "patient", "fold": 1, "folds": 5, "validation": 0.15, "group": "stem", "seed": 0,
}  # fmt: skip
CHAIN_DEFAULTS: dict[str, Any] = {
    "teacher": "micro", "student": "micro", "order": "40>100>200>400", "temperature": 4.0, "alpha": 0.5, "loss": "kd",
    "warm_start": True, "head": "subtype", "image_size": 64,
}  # fmt: skip
MODEL_DEFAULTS: dict[str, Any] = {"name": "", "args": {}, "image_size": 0, "weights": "none"}


@dataclass(frozen=True)
class Choices:
    """A searched value out of a list."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A searched number between two bounds; `step` makes it a grid, `log` uniform in the logarithm."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False


Dimension = Choices | Range


class Space:
    """One study's search space with everything that is fixed. Raises `UserError` for whatever is wrong in `plain`.

    `source` names the file in messages; weights files are looked up relative to `base`.
    """

    def __init__(self, plain: Mapping[str, Any], source: str = "space", base: Path | None = None) -> None:
        self.source = source
        tables = ("study", "protocol", "chain", "training", "numeric", "models", "search")
        # a resolved study.toml carries these as well; they tell of the study and decide nothing here
        told = ("data", "versions", "command", "version")
        for name in plain:
            if name not in tables + told:
                raise UserError(f"{source}: {unknown('table', name, tables)}")
        training_defaults = {name: getattr(Training(), name) for name in field_names(Training)}
        numeric_defaults = {name: getattr(Numeric(), name) for name in field_names(Numeric)}
        self.study = self._table(plain, "study", STUDY_DEFAULTS)
        self.protocol = self._table(plain, "protocol", PROTOCOL_DEFAULTS)
        self.chain = self._table(plain, "chain", CHAIN_DEFAULTS)
        self.training = self._table(plain, "training", training_defaults)
        self.numeric = self._table(plain, "numeric", numeric_defaults)
        self._check_values()
        self.models = self._models(plain.get("models", {}), base)
        self.dimensions = dict(self._dimensions(plain.get("search", {})))
        if self.study["sampler"] == "grid":
            continuous = [name for name, each in self.dimensions.items() if isinstance(each, Range) and not each.step]
            if continuous:
                raise UserError(
                    f"{source}: sampler 'grid' needs lists or steps, but [search] {continuous[0]} is continuous; "
                    "allowed: a list of values, or step = ... beside low and high"
                )
        if self.study["sampler"] == "nsga2" and self.study["pruner"] == "asha":
            raise UserError(
                f"{source}: pruner 'asha' works with one objective, and sampler 'nsga2' has two (quality, parameters); "
                'allowed: pruner = "none" with nsga2, or another sampler'
            )
        self.data = DataSpec(protocol=self.protocol["name"], **{k: v for k, v in self.protocol.items() if k != "name"})
        # every chain that can be asked for must unroll: a broken fixed part is told before anything starts
        self.plan(next(self.samples(random.Random(0))))

    # -- what follows from the space -------------------------------------------------------------------------------

    def plan(self, params: Mapping[str, Any]) -> tuple[StageSpec, ...]:
        """The stages of the trial with these suggested values; anything that is not suggested is the space's own."""
        return self._chain(params).stages()

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a chain amounts to in words: order, teacher, student, temperature, alpha, loss, warm_start."""
        chain = self._chain(params)
        return {
            "order": format_order(chain.order), "teacher": self._pick(params, "teacher"),
            "student": self._pick(params, "student"), "temperature": list(chain.temperature),
            "alpha": list(chain.alpha), "loss": chain.loss, "warm_start": chain.warm_start,
        }  # fmt: skip

    def baselines(self) -> dict[str, tuple[StageSpec, ...]]:
        """The baseline trials by name, from the fixed values of `[chain]` alone."""
        chain = self._chain({})
        zeros = (0.0,) * (len(chain.order) - 1)
        made: dict[str, tuple[StageSpec, ...]] = {}
        for name in self.study["baselines"]:
            if name == "per_magnification":
                for magnification in chain.order:
                    alone = replace(chain, order=(magnification,), teacher=chain.student, temperature=(), alpha=())
                    made[f"{name}-{magnification}"] = alone.stages()
            elif name == "joint":
                made[name] = chain.joint()
            elif name == "sequential":
                # every stage in the student's architecture: plain fine-tuning hands weights over, nothing else
                made[name] = replace(chain, teacher=chain.student, alpha=zeros).stages()
            else:
                made[name] = replace(chain, warm_start=False).stages()
        return made

    def with_models(self, models: Mapping[str, ModelSpec]) -> "Space":
        """The same space with its models' initial-weights digests filled in."""
        other = object.__new__(Space)
        other.__dict__.update(self.__dict__)
        other.models = dict(models)
        return other

    def with_data(self, fingerprint: str) -> "Space":
        """The same space, bound to one prepared set."""
        other = object.__new__(Space)
        other.__dict__.update(self.__dict__)
        other.data = replace(self.data, fingerprint=fingerprint)
        return other

    def samples(self, rng: random.Random) -> Iterator[dict[str, Any]]:
        """Suggestions drawn at random, without end: for dry runs, not for the search."""
        while True:
            yield {name: _draw(each, rng) for name, each in self.dimensions.items()}

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of a space without continuous values, shuffled by the study's seed."""
        axes = {name: _grid(each) for name, each in self.dimensions.items()}
        points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        random.Random(self.study["seed"]).shuffle(points)
        return points

    def plain(self) -> dict[str, Any]:
        """The resolved space as tables for `study.toml`; `Space(plain)` gives the same space again."""
        models = {
            name: {
                "name": spec.name, "args": dict(spec.args), "image_size": spec.image_size, "weights": spec.weights,
            }
            for name, spec in self.models.items()
        }  # fmt: skip
        search: dict[str, Any] = {}
        for name, each in self.dimensions.items():
            value: Any = list(each.values) if isinstance(each, Choices) else _range_plain(each)
            base, _, rest = name.partition(".")
            if base == "training":
                search.setdefault("training", {})[rest] = value
            elif rest:
                search[base] = {"per_stage": value}
            else:
                search[name] = value
        return {
            "study": dict(self.study), "protocol": dict(self.protocol), "chain": dict(self.chain),
            "training": dict(self.training), "numeric": dict(self.numeric), "models": models, "search": search,
        }  # fmt: skip

    # -- reading ---------------------------------------------------------------------------------------------------

    def _table(self, plain: Mapping[str, Any], table: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
        given = plain.get(table, {})
        if not isinstance(given, Mapping):
            raise UserError(f"{self.source}: '{table}' is {_kind(given)}; allowed: a table [{table}]")
        for name in given:
            if name not in defaults:
                raise UserError(f"{self.source}: {unknown(f'key in [{table}]', name, defaults)}")
        return {name: self._typed(f"[{table}] {name}", given.get(name, default), default)
                for name, default in defaults.items()}  # fmt: skip

    def _typed(self, where: str, value: Any, like: Any) -> Any:
        if isinstance(like, bool):
            fits = isinstance(value, bool)
        elif isinstance(like, float):
            fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            value = float(value) if fits else value
        else:
            fits = isinstance(value, type(like)) and not isinstance(value, bool)
        if not fits:
            raise UserError(f"{self.source}: {where} is {_kind(value)}; allowed: {_kind(like, 'name only')}")
        return value

    def _check_values(self) -> None:
        study, protocol, chain, training = self.study, self.protocol, self.chain, self.training
        word = self._word
        word("[study] sampler", study["sampler"], SAMPLERS)
        word("[study] pruner", study["pruner"], PRUNERS)
        word("[study] metric", study["metric"], METRICS)
        for name in study["baselines"]:
            word("[study] baseline", name, BASELINES)
        word("[protocol] name", protocol["name"], DataSpec.PROTOCOLS)
        word("[protocol] group", protocol["group"], DataSpec.GROUPS)
        word("[chain] head", chain["head"], HEADS)
        word("[chain] loss", chain["loss"], Distillation.LOSSES)
        word("[numeric] dtype", self.numeric["dtype"], Numeric.DTYPES)
        for name, allowed in Training.CHOICES.items():
            word(f"[training] {name}", training[name], allowed)
        within = self._within
        within("[study] trials", study["trials"], 0, math.inf)
        within("[study] lag", study["lag"], 1, math.inf)
        within("[study] startup", study["startup"], 1, math.inf)
        folds = 5 if protocol["name"] == "official" else protocol["folds"]
        within("[protocol] folds", protocol["folds"], 2, 100)
        within("[protocol] fold", protocol["fold"], 1, folds)
        within("[protocol] validation", protocol["validation"], 0.01, 0.9)
        within("[chain] image_size", chain["image_size"], 8, 4096)
        within("[numeric] threads", self.numeric["threads"], 1, 1024)
        for name, value in training.items():
            self._training_value(f"[training] {name}", name, value)
        self._chain_value("[chain] temperature", "temperature", chain["temperature"])
        self._chain_value("[chain] alpha", "alpha", chain["alpha"])
        self._order("[chain] order", chain["order"])

    def _training_value(self, where: str, name: str, value: Any) -> None:
        bounds = {
            "epochs": (1, math.inf), "batch": (1, math.inf), "lr": (1e-12, 1e3), "weight_decay": (0, 1e3),
            "warmup_epochs": (0, math.inf), "min_lr_ratio": (0, 1), "label_smoothing": (0, 0.99),
            "drop_path": (0, 0.99), "clip_grad": (0, math.inf),
        }  # fmt: skip
        if name in bounds:
            self._within(where, value, *bounds[name])

    def _chain_value(self, where: str, name: str, value: Any) -> Any:
        low, high = {"temperature": (0.05, 100.0), "alpha": (0.0, 1.0)}[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.source}: {where} is {_kind(value)}; allowed: a number")
        self._within(where, value, low, high)
        return float(value)

    def _word(self, where: str, value: Any, allowed: Any) -> None:
        try:
            choose(f"value of {where}", value, allowed)
        except UserError as error:
            raise UserError(f"{self.source}: {error}") from None

    def _within(self, where: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
            raise UserError(f"{self.source}: {where} is {value}; allowed: {bounds}")

    def _order(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            raise UserError(f'{self.source}: {where} is {_kind(value)}; allowed: text such as "40>100>200>400"')
        try:
            return format_order(parse_order(value))
        except UserError as error:
            raise UserError(f"{self.source}: {where}: {error}") from None

    def _models(self, tables: Any, base: Path | None) -> dict[str, ModelSpec]:
        if not isinstance(tables, Mapping):
            raise UserError(f"{self.source}: 'models' is {_kind(tables)}; allowed: tables [models.NAME]")
        made: dict[str, ModelSpec] = {}
        for label, given in tables.items():
            table = self._table({f"models.{label}": given}, f"models.{label}", MODEL_DEFAULTS)
            weights = table["weights"]
            if weights not in ("none", "hub") and base is not None:
                weights = str((base / Path(weights).expanduser()).resolve())
            made[label] = ModelSpec(
                name=table["name"] or label,
                args=tuple(sorted((name, _tuples(value)) for name, value in table["args"].items())),
                image_size=table["image_size"] or self.chain["image_size"],
                head=self.chain["head"],
                weights=weights,
            )
        for label in (self.chain["teacher"], self.chain["student"]):
            made.setdefault(label, self._plain_model(label))
        return made

    def _plain_model(self, label: str) -> ModelSpec:
        return ModelSpec(name=label, image_size=self.chain["image_size"], head=self.chain["head"])

    def _dimensions(self, search: Any) -> Iterator[tuple[str, Dimension]]:
        if not isinstance(search, Mapping):
            raise UserError(f"{self.source}: 'search' is {_kind(search)}; allowed: a table [search]")
        for name, value in search.items():
            where = f"[search] {name}"
            if name not in SEARCHED:
                raise UserError(f"{self.source}: {unknown('key in [search]', name, SEARCHED)}")
            if name == "training":
                yield from self._training_dimensions(value)
            elif name == "order":
                yield name, self._order_choices(where, value)
            elif name in PER_STAGE and isinstance(value, Mapping) and "per_stage" in value:
                for stage in range(2, len(parse_order(self.chain["order"])) + 1):
                    yield f"{name}.{stage}", self._dimension(where, name, value["per_stage"])
            else:
                dimension = self._dimension(where, name, value)
                if name in ("student", "teacher") and isinstance(dimension, Choices):
                    for label in dimension.values:
                        self.models.setdefault(label, self._plain_model(label))
                yield name, dimension

    def _training_dimensions(self, tables: Any) -> Iterator[tuple[str, Dimension]]:
        if not isinstance(tables, Mapping):
            raise UserError(f"{self.source}: [search] training is {_kind(tables)}; allowed: training.NAME = [values]")
        for name, value in tables.items():
            if name not in self.training:
                raise UserError(f"{self.source}: {unknown('key in [search.training]', name, self.training)}")
            yield f"training.{name}", self._dimension(f"[search] training.{name}", f"training.{name}", value)

    def _dimension(self, where: str, name: str, value: Any) -> Dimension:
        like = self._like(name)
        if isinstance(value, list):
            if not value:
                raise UserError(f"{self.source}: {where} is an empty list; allowed: at least one value")
            typed = tuple(self._value(where, name, self._typed(where, each, like)) for each in value)
            if len(set(typed)) != len(typed):
                raise UserError(f"{self.source}: {where} lists a value twice: {value}; allowed: different values")
            return Choices(typed)
        numeric = isinstance(like, int | float) and not isinstance(like, bool)
        if isinstance(value, Mapping) and numeric:
            for key in value:
                if key not in ("low", "high", "log", "step"):
                    raise UserError(f"{self.source}: {unknown(f'key in {where}', key, ('low', 'high', 'log', 'step'))}")
            if "low" not in value or "high" not in value:
                raise UserError(
                    f"{self.source}: {where} needs both low and high; found: {', '.join(value) or 'nothing'}"
                )
            low = self._value(where, name, self._typed(f"{where}.low", value["low"], like))
            high = self._value(where, name, self._typed(f"{where}.high", value["high"], like))
            log = self._typed(f"{where}.log", value.get("log", False), False)
            step = value.get("step")
            if not low < high or (log and (low <= 0 or step is not None)) or (step is not None and not step > 0):
                raise UserError(
                    f"{self.source}: {where} is {dict(value)}; allowed: low < high, and either log = true with "
                    "low > 0 or step > 0, not both"
                )
            return Range(low, high, log, step, isinstance(like, int))
        shape = "a list of values, or { low, high, log, step }" if numeric else "a list of values"
        raise UserError(f"{self.source}: {where} is {_kind(value)}; allowed: {shape}")

    def _like(self, name: str) -> Any:
        base, _, rest = name.partition(".")
        return self.training[rest] if base == "training" else self.chain[base]

    def _value(self, where: str, name: str, value: Any) -> Any:
        base, _, rest = name.partition(".")
        if base in PER_STAGE:
            return self._chain_value(where, base, value)
        if base == "loss":
            self._word(where, value, Distillation.LOSSES)
        if base == "training":
            if rest in Training.CHOICES:
                self._word(where, value, Training.CHOICES[rest])
            self._training_value(where, rest, value)
        return value

    def _order_choices(self, where: str, value: Any) -> Choices:
        stages = parse_order(self.chain["order"])
        if value == "all":
            return Choices(tuple(format_order(order) for order in itertools.permutations(sorted(stages))))
        if value == "first":
            ascending = sorted(stages)
            return Choices(tuple(format_order([m, *(o for o in ascending if o != m)]) for m in ascending))
        if isinstance(value, list) and value:
            return Choices(tuple(self._order(where, each) for each in value))
        raise UserError(
            f'{self.source}: {where} is {value!r}; allowed: "all", "first", or a list such as ["40>100>200>400"]'
        )

    def _pick(self, params: Mapping[str, Any], name: str) -> Any:
        return params.get(name, self.chain[name])

    def _chain(self, params: Mapping[str, Any]) -> Chain:
        order = parse_order(self._pick(params, "order"))
        distilled = range(2, len(order) + 1)

        def per_stage(name: str) -> tuple[float, ...]:
            shared = self._pick(params, name)
            return tuple(float(params.get(f"{name}.{stage}", shared)) for stage in distilled)

        training = {name: params.get(f"training.{name}", value) for name, value in self.training.items()}
        return Chain(
            order=order,
            teacher=self.models[self._pick(params, "teacher")],
            student=self.models[self._pick(params, "student")],
            temperature=per_stage("temperature"),
            alpha=per_stage("alpha"),
            loss=self._pick(params, "loss"),
            warm_start=self._pick(params, "warm_start"),
            training=Training(**training),
            seed=self.study["seed"],
            data=self.data,
            numeric=Numeric(**self.numeric),
        )


def load_space(name: str) -> Space:
    """Read a space from a path, or a shipped one by its name. Raises `UserError` naming the file and the key."""
    path = Path(name).expanduser()
    if path.suffix != ".toml" and not path.is_file():
        path = shipped_folder() / f"{name}.toml"
        if not path.is_file():
            shipped = sorted(each.stem for each in shipped_folder().glob("*.toml"))
            raise UserError(f"{unknown('space', name, shipped)}, or a path to a .toml file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"Cannot read the space '{path}': {reason}") from None
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    space = Space(plain, source=str(path), base=path.parent)
    space.study["name"] = space.study["name"] or path.stem
    return space


def shipped_folder() -> Path:
    """Where the shipped spaces are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def _kind(value: Any, only: str = "") -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list",
             dict: "a table"}  # fmt: skip
    name = names.get(type(value), type(value).__name__)
    return name if only else f"{value!r} ({name})"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _grid(dimension: Dimension) -> list[Any]:
    if isinstance(dimension, Choices):
        return list(dimension.values)
    assert dimension.step
    count = math.floor((dimension.high - dimension.low) / dimension.step + 1e-9) + 1
    values = [dimension.low + index * dimension.step for index in range(count)]
    return [int(value) for value in values] if dimension.integer else values


def _draw(dimension: Dimension, rng: random.Random) -> Any:
    if isinstance(dimension, Choices):
        return rng.choice(dimension.values)
    if dimension.step:
        return rng.choice(_grid(dimension))
    if dimension.log:
        value = math.exp(rng.uniform(math.log(dimension.low), math.log(dimension.high)))
    else:
        value = rng.uniform(dimension.low, dimension.high)
    return round(value) if dimension.integer else value


def _range_plain(dimension: Range) -> dict[str, Any]:
    plain: dict[str, Any] = {"low": dimension.low, "high": dimension.high}
    if dimension.log:
        plain["log"] = True
    if dimension.step:
        plain["step"] = dimension.step
    return plain
