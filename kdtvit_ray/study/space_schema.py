"""Reading a search space: every table, key and value checked, every mistake one sentence that names it."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdtvit_ray.errors import UserError, unknown
from kdtvit_ray.learning.preflight import check_warmup
from kdtvit_ray.paths import expanded
from kdtvit_ray.recipe import (
    BASELINES,
    DataSpec,
    Distillation,
    ModelSpec,
    Numeric,
    Training,
    check_variants,
    field_names,
    parse_order,
    with_added_later,
)
from kdtvit_ray.study.dimensions import Choices, Dimension, Range, in_order, most_variants
from kdtvit_ray.study.settings import (
    AUTO,
    CHAIN_DEFAULTS,
    CHOOSE,
    DTYPES,
    IMAGE_SIZES,
    METRICS,
    MODEL_DEFAULTS,
    NUMERIC_DEFAULTS,
    ONLY_LATER,
    PER_STAGE,
    PLACES,
    PROTOCOL_DEFAULTS,
    PRUNERS,
    SAME_IN_ALL_STAGES,
    SAMPLERS,
    SEARCHED,
    SEEDS,
    STUDY_DEFAULTS,
    TRACKERS,
)
from kdtvit_ray.study.space_values import ValueReader, kind_of


class SpaceReader(ValueReader):
    """The tables of one space file, checked: `study`, `protocol`, `chain`, `training`, `training_of` (by place, what
    [training.first] and [training.later] set), `numeric`, `models`, `dimensions`; `dtype_by_device` says whether the
    devices decide [numeric] dtype, which is float32 until they have. Raises `UserError` for whatever is wrong; `source`
    names the file in messages, and weights files are looked up relative to `base`."""

    TABLES = ("study", "protocol", "chain", "training", "numeric", "models", "search")
    TOLD = ("data", "versions", "command", "version", "id", "dimensions")
    """Tables that a resolved study.toml carries as well: they tell of the study and decide nothing."""

    def __init__(self, plain: Mapping[str, Any], source: str, base: Path | None) -> None:
        self.source = source
        for name in plain:
            if name not in self.TABLES + self.TOLD:
                raise UserError(f"{source}: {unknown('table', name, self.TABLES)}")
        training_defaults = {name: getattr(Training(), name) for name in field_names(Training)}
        if "versions" in plain:  # a study's own: what it does not say came later
            plain = with_added_later(plain)
        self.study = self._table(plain, "study", STUDY_DEFAULTS)
        self.protocol = self._table(plain, "protocol", PROTOCOL_DEFAULTS)
        self.chain = self._table(plain, "chain", CHAIN_DEFAULTS)
        training = plain.get("training", {})
        own = {place: training[place] for place in PLACES if isinstance(training, Mapping) and place in training}
        if own:
            training = {name: value for name, value in training.items() if name not in PLACES}
        self.training = self._table({"training": training}, "training", training_defaults)
        self.numeric = self._table(plain, "numeric", NUMERIC_DEFAULTS)
        self._check_values()
        self.dtype_by_device = self.numeric["dtype"] == AUTO
        if self.dtype_by_device:
            self.numeric["dtype"] = Numeric.dtype
        self.training_of = {place: self._training_of(place, own.get(place, {})) for place in PLACES}
        self.models = self._models(plain.get("models", {}), base)
        self.dimensions = in_order(
            dict(self._dimensions(plain.get("search", {}))), plain.get("dimensions", ()) if "versions" in plain else ()
        )
        self._check_warmup()
        self._check_variants()
        self._check_sampler()
        self._check_places()
        self._check_rehearsal()

    def _check_warmup(self) -> None:
        """Refuse a warm-up as long as its stage: among the fixed values (the baselines') and in the searched pair whose
        epochs are fewest and whose warm-up is longest."""
        names = {name: f"[training] {name}" for name in ("epochs", "warmup_epochs")}
        values = {name: self.training[name] for name in names}
        try:
            check_warmup(**values, epochs_name=names["epochs"], warmup_name=names["warmup_epochs"])
            for name, end in (("epochs", 0), ("warmup_epochs", 1)):
                if f"training.{name}" in self.dimensions:
                    names[name] = f"[search] training.{name}"
                    values[name] = self.dimensions[f"training.{name}"].ends[end]
            check_warmup(**values, epochs_name=names["epochs"], warmup_name=names["warmup_epochs"])
        except UserError as error:
            raise UserError(f"{self.source}: {error}") from None

    def _check_places(self) -> None:
        """Refuse a search over what no stage of a distilled chain would use."""
        joint = self.study["baselines_searched"] and "joint" in self.study["baselines"]
        for name in self.training:
            places = PLACES[1:] if name in ONLY_LATER else PLACES
            own = [name in self.training_of[each] or f"training.{each}.{name}" in self.dimensions for each in places]
            if f"training.{name}" in self.dimensions and all(own):
                alone = ", and nothing is searched for the baseline 'joint' alone" * (joint and name not in ONLY_LATER)
                raise UserError(
                    f"{self.source}: [search] training.{name} decides nothing for chains, since {' and '.join(places)} "
                    f"stages have a {name} of their own{alone}; allowed: training.{name} without one of these, or no "
                    "search over it"
                )

    def _check_rehearsal(self) -> None:
        """Refuse a loss of rehearsed images that no trial can use. Where it is searched, a trial that cannot use it is
        one that has none (`Training.settled`, `Chain.stages`)."""
        words = self.of_later("rehearsal_loss")
        if words == {Training.rehearsal_loss}:
            return
        if max(self.of_later("rehearsal")) == 0:
            raise UserError(
                f"{self.source}: rehearsal_loss is 'distillation', but rehearsal is 0, so no image is rehearsed and it "
                "changes nothing; allowed: rehearsal above 0 and up to 0.9, or rehearsal_loss = 'full'"
            )
        alphas = [each.ends[1] for name, each in self.dimensions.items() if name.partition(".")[0] == "alpha"]
        if words == {"distillation"} and max(alphas or [self.chain["alpha"]]) == 0:
            raise UserError(
                f"{self.source}: rehearsal_loss is 'distillation', but alpha is 0, so there is no teacher to learn the "
                "rehearsed images from; allowed: alpha above 0, or rehearsal_loss = 'full'"
            )

    def of_later(self, name: str) -> set[Any]:
        """The values of a training setting that later stages of searched chains can have; of a range its two ends."""
        for where, fixed in (
            (f"training.later.{name}", self.training_of["later"]),
            (f"training.{name}", self.training),
        ):
            if each := self.dimensions.get(where):
                return set(each.values if isinstance(each, Choices) else each.ends)
            if name in fixed:
                return {fixed[name]}
        raise KeyError(name)

    def _check_variants(self) -> None:
        """Refuse settings of the variants that change nothing in any trial. Where they are searched, a trial in which
        they change nothing is one without variants (`Training.settled`)."""
        for place in ("", *PLACES):
            own = self.training_of.get(place, {})
            searched = {
                name.replace(f"training.{place}.", "training.") if place else name: each
                for name, each in self.dimensions.items()
                if name.removeprefix("training.") not in own
            }
            try:
                check_variants(most_variants({**self.training, **own}, searched))
            except UserError as error:
                raise UserError(f"{self.source}: [training{f'.{place}' if place else ''}] {error}") from None

    def _check_sampler(self) -> None:
        if self.study["sampler"] == "grid":
            continuous = [name for name, each in self.dimensions.items() if each.count is None]
            if continuous:
                raise UserError(
                    f"{self.source}: sampler 'grid' needs lists or steps, but [search] {continuous[0]} is continuous; "
                    "allowed: a list of values, or step = ... beside low and high"
                )
        if self.study["objective_folds"] > 1 and self.study["pruner"] == "asha":
            raise UserError(
                f"{self.source}: pruner 'asha' stops single chains, and objective_folds = "
                f'{self.study["objective_folds"]} judges a setting by several; allowed: pruner = "none" (racing drops '
                "settings that are clearly behind), or objective_folds = 1"
            )
        if self.study["objective_repeats"] > 1 and self.study["objective_folds"] == 1:
            raise UserError(
                f"{self.source}: objective_repeats is {self.study['objective_repeats']} and objective_folds is 1; "
                "allowed: objective_repeats = 1, or objective_folds of 2 or more"
            )
        if self.study["sampler"] == "nsga2" and self.study["pruner"] == "asha":
            raise UserError(
                f"{self.source}: pruner 'asha' works with one objective, and sampler 'nsga2' has two (quality, "
                'parameters); allowed: pruner = "none" with nsga2, or another sampler'
            )

    def _check_values(self) -> None:
        study, protocol, chain, training = self.study, self.protocol, self.chain, self.training
        word = self._word
        word("[study] sampler", study["sampler"], SAMPLERS)
        word("[study] pruner", study["pruner"], PRUNERS)
        word("[study] metric", study["metric"], METRICS)
        for name in study["baselines"]:
            word("[study] baseline", name, BASELINES)
        word("[study] choose", study["choose"], CHOOSE)
        if study["baselines_searched"] and not study["trials"]:
            raise UserError(
                f"{self.source}: [study] baselines_searched is true and trials is 0, so that a searched baseline would "
                "try no setting; allowed: trials of 1 or more, or baselines_searched = false"
            )
        for name in study["track"]:
            word("[study] track", name, TRACKERS)
        word("[protocol] name", protocol["name"], DataSpec.PROTOCOLS)
        word("[protocol] group", protocol["group"], DataSpec.GROUPS)
        word("[chain] head", chain["head"], ModelSpec.HEADS)
        word("[chain] loss", chain["loss"], Distillation.LOSSES)
        word("[numeric] dtype", self.numeric["dtype"], DTYPES)
        for name, allowed in Training.CHOICES.items():
            word(f"[training] {name}", training[name], allowed)
        within = self._within
        within("[study] trials", study["trials"], 0, math.inf)
        within("[study] seed", study["seed"], *SEEDS)
        within("[study] lag", study["lag"], 1, math.inf)
        # of NSGA-II it is the population, of which two have a child
        within("[study] startup", study["startup"], 2 if study["sampler"] == "nsga2" else 1, math.inf)
        within("[study] objective_folds", study["objective_folds"], 1, 100)
        within("[study] objective_repeats", study["objective_repeats"], 1, 100)
        within("[study] racing_folds", study["racing_folds"], 1, math.inf)
        within("[study] racing_confidence", study["racing_confidence"], 0.5, 1)
        within("[protocol] folds", protocol["folds"], 2, 100)
        # how many official folds there are is a fact of the dataset
        within("[protocol] fold", protocol["fold"], 1, 100 if protocol["name"] == "official" else protocol["folds"])
        within("[protocol] validation", protocol["validation"], 0.01, 0.9)
        within("[chain] image_size", chain["image_size"], *IMAGE_SIZES)
        within("[numeric] threads", self.numeric["threads"], 1, 1024)
        for name, value in training.items():
            self._training_value(f"[training] {name}", name, value)
        self._chain_value("[chain] temperature", "temperature", chain["temperature"])
        self._chain_value("[chain] alpha", "alpha", chain["alpha"])
        self._order("[chain] order", chain["order"])

    def _training_of(self, place: str, given: Any) -> dict[str, Any]:
        """The settings of [training.first] or [training.later]: those that are given, and no others."""
        if not isinstance(given, Mapping):
            raise UserError(
                f"{self.source}: [training] {place} is {kind_of(given)}; allowed: a table [training.{place}]"
            )
        found = {}
        for name, value in given.items():
            where = f"[training.{place}] {name}"
            self._check_own(place, f"[training.{place}]", where, name)
            found[name] = self._value(where, f"training.{name}", self._typed(where, value, getattr(Training(), name)))
        return found

    def _check_own(self, place: str, table: str, where: str, name: str) -> None:
        """Raise a `UserError` for what is no training setting, or none that a single stage may have."""
        if name not in self.training:
            raise UserError(f"{self.source}: {unknown(f'key in {table}', name, self.training)}")
        if name in SAME_IN_ALL_STAGES:
            raise UserError(
                f"{self.source}: {where} is set, but all stages of a chain have the same {name}, because "
                f"{SAME_IN_ALL_STAGES[name]}; allowed: [training] {name}"
            )
        if place == "first" and name in ONLY_LATER:
            raise UserError(
                f"{self.source}: {where} is set, but a first stage has no magnifications before it to rehearse; "
                f"allowed: [training] {name} or [training.later] {name}"
            )

    def _models(self, tables: Any, base: Path | None) -> dict[str, ModelSpec]:
        if not isinstance(tables, Mapping):
            raise UserError(f"{self.source}: 'models' is {kind_of(tables)}; allowed: tables [models.NAME]")
        made: dict[str, ModelSpec] = {}
        for label, given in tables.items():
            table = self._table({f"models.{label}": given}, f"models.{label}", MODEL_DEFAULTS)
            if table["image_size"]:
                self._within(f"[models.{label}] image_size", table["image_size"], *IMAGE_SIZES)
            weights = table["weights"]
            if weights not in ("none", "hub") and base is not None:
                weights = str((base / expanded(weights)).resolve())
            made[label] = ModelSpec(
                name=table["name"] or label,
                args=self._arguments(f"[models.{label}] args", table["args"]),
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
            raise UserError(f"{self.source}: 'search' is {kind_of(search)}; allowed: a table [search]")
        for name, value in search.items():
            where = f"[search] {name}"
            if name not in SEARCHED:
                raise UserError(f"{self.source}: {unknown('key in [search]', name, SEARCHED)}")
            if name == "training":
                yield from self._training_dimensions(value)
            elif name == "order":
                yield name, self._order_choices(where, value)
            elif name in PER_STAGE and isinstance(value, Mapping) and "per_stage" in value:
                yield from self._per_stage(name, value, self._most_stages(search))
            else:
                dimension = self._dimension(where, name, value)
                if name in ("student", "teacher") and isinstance(dimension, Choices):
                    for label in dimension.values:
                        self.models.setdefault(label, self._plain_model(label))
                yield name, dimension

    def _per_stage(self, name: str, value: Mapping[str, Any], stages: int) -> Iterator[tuple[str, Dimension]]:
        """One dimension for each distilled stage of a chain of so many."""
        where = f"[search] {name}"
        for key in value:
            if key != "per_stage":
                raise UserError(
                    f"{self.source}: {where} has per_stage and {key}; allowed: {{ per_stage = ... }} alone, with "
                    "low, high, log and step inside it"
                )
        dimension = self._dimension(f"{where}.per_stage", name, value["per_stage"])
        for stage in range(2, stages + 1):
            yield f"{name}.{stage}", dimension

    def _most_stages(self, search: Mapping[str, Any]) -> int:
        """Of the longest chain that can be asked for."""
        listed = search.get("order")
        orders = [self._order("[search] order", each) for each in (listed if isinstance(listed, list) else ())]
        return max(len(parse_order(each)) for each in (self.chain["order"], *orders))

    def _training_dimensions(self, tables: Any) -> Iterator[tuple[str, Dimension]]:
        if not isinstance(tables, Mapping):
            raise UserError(f"{self.source}: [search] training is {kind_of(tables)}; allowed: training.NAME = [values]")
        for name, value in tables.items():
            if name in PLACES:
                if not isinstance(value, Mapping):
                    raise UserError(
                        f"{self.source}: [search] training.{name} is {kind_of(value)}; "
                        f"allowed: training.{name}.NAME = [values]"
                    )
                for own, values in value.items():
                    where, whole = f"[search] training.{name}.{own}", f"training.{name}.{own}"
                    self._check_own(name, f"[search.training.{name}]", where, own)
                    yield whole, self._dimension(where, whole, values)
                continue
            if name not in self.training:
                raise UserError(f"{self.source}: {unknown('key in [search.training]', name, self.training)}")
            yield f"training.{name}", self._dimension(f"[search] training.{name}", f"training.{name}", value)

    def _dimension(self, where: str, name: str, value: Any) -> Dimension:
        like = self._like(name)
        if isinstance(value, list):
            if not value:
                raise UserError(f"{self.source}: {where} is an empty list; allowed: at least one value")
            typed = tuple(self._value(where, name, self._typed(where, each, like)) for each in value)
            return Choices(self._different(where, value, typed))
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
            step = self._step(where, value, like, high - low)
            if not low < high or (log and (low <= 0 or step is not None)) or (step is not None and not step > 0):
                raise UserError(
                    f"{self.source}: {where} is {dict(value)}; allowed: low < high, and either log = true with "
                    "low > 0 or step > 0, not both"
                )
            return Range(low, high, log, step, isinstance(like, int))
        shape = "a list of values, or { low, high, log, step }" if numeric else "a list of values"
        raise UserError(f"{self.source}: {where} is {kind_of(value)}; allowed: {shape}")

    def _like(self, name: str) -> Any:
        base, _, rest = name.partition(".")
        return getattr(Training(), rest.rpartition(".")[2]) if base == "training" else self.chain[base]

    def _value(self, where: str, name: str, value: Any) -> Any:
        base, _, rest = name.partition(".")
        if base in PER_STAGE:
            return self._chain_value(where, base, value)
        if base == "loss":
            self._word(where, value, Distillation.LOSSES)
        if base == "training":
            rest = rest.rpartition(".")[2]
            if rest in Training.CHOICES:
                self._word(where, value, Training.CHOICES[rest])
            self._training_value(where, rest, value)
        return value
