"""A search space from a TOML file: what is fixed, what is searched, and the chains that follow from a suggestion.

    [study]      name, seed, trials, sampler, metric, lag, reproducible, pruner, startup, baselines,
                 baselines_searched, objective_folds, objective_repeats, racing, racing_folds, racing_confidence, choose
    [protocol]   name, fold, folds, validation, group, seed
    [chain]      teacher, student, order, temperature, alpha, loss, warm_start, head, image_size
    [training]   epochs, batch, lr, ... (`kdtvit_ray.recipe.Training`); [training.first] and [training.later]: other
                 values for the first stage, for the stages after it
    [numeric]    dtype, threads
    [models.X]   name, args, image_size, weights: gives the size or timm model X its settings
    [search]     what is searched: temperature, alpha, order, student, teacher, loss, warm_start, training.*

A searched value is a list of choices, or `{ low, high, log, step }`, or `{ per_stage = <one of these> }` for
temperature and alpha. `order` also takes "all" (every permutation) and "first" (each once before the others).
"""

import itertools
import math
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtvit_ray.chain import Chain
from kdtvit_ray.errors import UserError, relabelled, unknown
from kdtvit_ray.learning.preflight import check_stage, with_teachers
from kdtvit_ray.paths import expanded
from kdtvit_ray.recipe import DataSpec, ModelSpec, Numeric, StageSpec, Training, format_order, parse_order
from kdtvit_ray.results.out_of_fold import Part, parts_of
from kdtvit_ray.results.rows import SEARCHABLE_BASELINES, baseline_of
from kdtvit_ray.study.baselines import BASELINES, deciding
from kdtvit_ray.study.dimensions import Choices, in_order
from kdtvit_ray.study.space_schema import SpaceReader

if TYPE_CHECKING:
    from kdtvit_ray.data.dataset import Dataset

DECIDING = ("teacher", "student", "loss", "warm_start", "crop", "rehearsal_loss")
"""Words that decide together whether a chain can be trained."""
SMALL, COUNTED = 4, 500
"""The settings of a space are counted where it has up to `SMALL` times as many points as trials, or up to `COUNTED`."""


class Space:
    """One study's search space with everything that is fixed. Raises `UserError` for whatever is wrong in `plain`.

    `source` names the file in messages; weights files are looked up relative to `base`. `baseline` is set in the space
    of a searched baseline (`searched_baselines`), whose suggestions are settings of that baseline.
    """

    baseline = ""

    def __init__(self, plain: Mapping[str, Any], source: str = "space", base: Path | None = None) -> None:
        read = SpaceReader(plain, source, base)
        self.source = source
        self.study, self.protocol, self.chain = read.study, read.protocol, read.chain
        self.training, self.training_of, self.numeric = read.training, read.training_of, read.numeric
        self.models, self.dimensions = read.models, read.dimensions
        self.dtype_by_device = read.dtype_by_device
        self.rehearses = max(read.of_later("rehearsal")) > 0
        self.data = DataSpec(protocol=self.protocol["name"], **{k: v for k, v in self.protocol.items() if k != "name"})
        self.check()

    def check(self, dataset: "Dataset | None" = None, stored: int = 0) -> None:
        """Raise a `UserError` where a chain that can be asked for cannot be trained: on this dataset and these prepared
        images (`stored` pixels a side), or at all."""
        for stages in self.demanding():
            for stage, teacher in with_teachers(stages):
                try:
                    check_stage(stage, teacher, dataset, stored)
                except UserError as error:
                    told = relabelled(error, stage.model.name, self.label(stage.model))
                    raise UserError(f"{self.source}: {told}") from None

    def demanding(self) -> Iterator[tuple[StageSpec, ...]]:
        """Chains among which there is one that cannot be trained, if any chain of the space cannot."""
        for space in (self, *self.searched_baselines().values()):
            for params in space._corners():
                yield space.plan(params)
        yield from self.baselines().values()

    def _corners(self) -> Iterator[dict[str, Any]]:
        """Suggestions among which there is one that cannot be trained, if any suggestion of the space cannot: all
        combinations of what depends on one another, with the most demanding value of everything else."""
        orders: dict[frozenset[int], str] = {}  # of several over the same magnifications, one
        rest: dict[str, Any] = {}
        axes: dict[str, tuple[Any, ...]] = {}
        for name, each in self.dimensions.items():
            if name == "order" and isinstance(each, Choices):
                orders |= {frozenset(parse_order(value)): value for value in reversed(each.values)}
                axes[name] = tuple(orders.values())
            elif isinstance(each, Choices) and name.rpartition(".")[2] in DECIDING:
                axes[name] = each.values
            elif name.endswith(".trainable_blocks"):  # "all" cannot be compared with a number
                axes[name] = each.values if isinstance(each, Choices) else each.ends
            elif name.endswith(".head_lr"):
                axes[name] = each.ends
            else:
                largest = (".warmup_epochs", ".batch", ".rehearsal", ".lora_rank", ".drop_path", ".mixup")
                rest[name] = each.ends[name.startswith("alpha") or name.endswith(largest)]
        for values in itertools.product(*axes.values()):
            yield {**rest, **dict(zip(axes, values, strict=True))}

    # -- what follows from the space -------------------------------------------------------------------------------

    def plan(self, params: Mapping[str, Any]) -> tuple[StageSpec, ...]:
        """The stages of the trial with these suggested values; anything that is not suggested is the space's own."""
        return self.stages_of(self.baseline, params)

    def stages_of(self, trial: str, params: Mapping[str, Any]) -> tuple[StageSpec, ...]:
        """The stages of a trial by its name and its suggested values: of a baseline or of a setting of a searched one,
        as `baseline_of` tells, else of a distilled chain."""
        name, chain = baseline_of(trial), self._chain(params)
        if not name:
            return chain.stages()
        made = BASELINES[name](chain)
        return made[name] if name in made else made[trial]

    def without_rehearsal(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """The same suggestion without rehearsal; None where none of its stages rehearses."""
        if not any(stage.earlier for stage in self.plan(params)):
            return None
        return {**params, "training.rehearsal": 0.0, "training.later.rehearsal": 0.0}

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a chain amounts to in words: order, teacher, student, temperature, alpha, loss, warm_start."""
        chain = self._chain(params)
        return {
            "order": format_order(chain.order),
            "teacher": self._pick(params, "teacher"),
            "student": self._pick(params, "student"),
            "temperature": list(chain.temperature),
            "alpha": list(chain.alpha),
            "loss": chain.loss,
            "warm_start": chain.warm_start,
        }

    def baselines(self) -> dict[str, tuple[StageSpec, ...]]:
        """The baseline trials by name that are not searched, from the fixed values of `[chain]` alone."""
        chain = self._chain({})
        made: dict[str, tuple[StageSpec, ...]] = {}
        for name in self.study["baselines"]:
            if name not in self._searched_too:
                made |= BASELINES[name](chain)
        return made

    def searched_baselines(self) -> dict[str, "Space"]:
        """The space of each baseline that is searched, by the baseline: the same settings and budget, and of what is
        searched that which decides something for the baseline. A suggestion is a setting of the baseline."""
        made = {}
        for name in self._searched_too:
            made[name] = self._with(baseline=name, dimensions=deciding(name, self.dimensions))
        return made

    @property
    def _searched_too(self) -> tuple[str, ...]:
        """The baselines that are searched, in the order of [study]."""
        wanted = self.study["baselines"] if self.study["baselines_searched"] else ()
        return tuple(dict.fromkeys(name for name in wanted if name in SEARCHABLE_BASELINES))

    @property
    def trials(self) -> int:
        """How many trials the search has: no more than the space has different settings, where these are counted."""
        planned: int = self.study["trials"]
        if not self.is_counted:
            return planned
        settings = self._grid if self.study["sampler"] == "grid" else self._different()
        return sum(1 for _ in itertools.islice(settings, planned))

    @property
    def is_counted(self) -> bool:
        """Whether the points are few enough to tell how many different settings they are."""
        small = self._size is not None and self._size <= max(SMALL * self.study["trials"], COUNTED)
        return small or self.study["sampler"] == "grid"

    @cached_property
    def _size(self) -> int | None:
        """Number of points of the grid; None where a value is continuous."""
        counts = [each.count for each in self.dimensions.values()]
        return None if None in counts else math.prod(each for each in counts if each)

    def setting(self, params: Mapping[str, Any]) -> str:
        """What tells two suggestions apart: the key of the last stage, which stands for the whole chain. Suggestions
        that differ in nothing that counts (the temperature where alpha is 0) are one setting."""
        return self.plan(params)[-1].key

    @property
    def two_objectives(self) -> bool:
        """Whether the number of parameters is an objective beside the quality."""
        return self.study["sampler"] == "nsga2"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The inner folds that a setting is judged on; () where that is one validation part."""
        return parts_of(self.study)

    @property
    def racing(self) -> bool:
        """Whether settings that are clearly behind get no further inner folds. With two objectives there is no single
        best setting to race against."""
        return bool(self.parts) and self.study["racing"] and not self.two_objectives

    def inner_fold(self, part: Part) -> "Space":
        """The same space with one inner fold left out. Each repeat has a training seed of its own."""
        data = self.data.inner_fold(part.inner, self.study["objective_folds"], part.repeat - 1)
        return self._with(data=data, study={**self.study, "seed": self.study["seed"] + part.repeat - 1})

    def refit(self) -> "Space":
        """The same space with all development patients for training."""
        return self._with(data=self.data.refit())

    def at_fold(self, fold: int) -> "Space":
        """The same space at another outer fold."""
        study = {**self.study, "name": f"{self.study['name']}-fold-{fold}"}
        return self._with(data=replace(self.data, fold=fold), protocol={**self.protocol, "fold": fold}, study=study)

    def replicate(self, fold: int, seed: int) -> "Space":
        """The same space at another fold and another training seed, with all development patients for training where
        the objective is over inner folds."""
        other = self.refit() if self.parts else self
        return other._with(data=replace(other.data, fold=fold), study={**self.study, "seed": seed})

    def in_order_of(self, names: Sequence[str]) -> "Space":
        """The same space with its dimensions in another order, on which suggestions depend: those that are named first,
        then the others."""
        return self._with(dimensions=in_order(self.dimensions, names))

    def with_dtype(self, dtype: str) -> "Space":
        """The same space in the dtype that its devices have decided on; where `dtype_by_device`, they have not yet."""
        return self._with(numeric={**self.numeric, "dtype": dtype}, dtype_by_device=False)

    def with_models(self, models: Mapping[str, ModelSpec]) -> "Space":
        """The same space with its models' initial-weights digests filled in."""
        return self._with(models=dict(models))

    def with_data(self, fingerprint: str, classes: int = 8) -> "Space":
        """The same space, bound to one prepared set, whose dataset has so many classes."""
        models = {label: replace(spec, subtypes=classes) for label, spec in self.models.items()}
        return self._with(data=replace(self.data, fingerprint=fingerprint), models=models)

    def label(self, model: ModelSpec) -> str:
        """What this space calls a model of its stages."""
        return next((label for label, each in self.models.items() if each == model), model.name)

    def samples(self, rng: random.Random) -> Iterator[dict[str, Any]]:
        """Random suggestions without end, for dry runs. The search draws its own."""
        while True:
            yield {name: each.draw(rng) for name, each in self.dimensions.items()}

    def points(self) -> Iterator[dict[str, Any]]:
        """All combinations of a space, one after the other; none where a value is continuous."""
        if self._size is None:
            return
        axes = {name: each.grid() for name, each in self.dimensions.items()}
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True))

    def neighbours(self, params: Mapping[str, Any], rng: random.Random) -> Iterator[dict[str, Any]]:
        """All other points of a space: first those that differ in one value, in random order, then in two, and so on.
        None where a value is continuous."""
        if self._size is None:
            return
        values = {name: [each for each in of.grid() if each != params[name]] for name, of in self.dimensions.items()}
        for changed in range(1, len(values) + 1):
            near = [
                {**params, **dict(zip(names, chosen, strict=True))}
                for names in itertools.combinations(values, changed)
                for chosen in itertools.product(*(values[name] for name in names))
            ]
            rng.shuffle(near)
            yield from near

    def grid(self) -> list[dict[str, Any]]:
        """All different settings of a space without continuous values, shuffled by the study's seed."""
        return list(self._grid)

    @cached_property
    def _grid(self) -> tuple[dict[str, Any], ...]:
        """What `grid` lists: telling settings apart takes a while where there are many."""
        return tuple(self._different())

    def _different(self) -> Iterator[dict[str, Any]]:
        points, seen = list(self.points()), set()
        random.Random(self.study["seed"]).shuffle(points)
        for each in points:
            if (setting := self.setting(each)) not in seen:
                seen.add(setting)
                yield each

    def plain(self) -> dict[str, Any]:
        """The resolved space as tables for `study.toml`; `Space(plain)` gives the same space again."""
        models = {
            name: {
                "name": spec.name,
                "args": dict(spec.args),
                "image_size": spec.image_size,
                "weights": spec.weights,
            }
            for name, spec in self.models.items()
        }
        search: dict[str, Any] = {}
        for name, each in self.dimensions.items():
            value: Any = each.plain()
            base, _, rest = name.partition(".")
            if base == "training":
                place, _, rest = rest.rpartition(".")
                table = search.setdefault("training", {})
                (table.setdefault(place, {}) if place else table)[rest] = value
            elif rest:
                search[base] = {"per_stage": value}
            else:
                search[name] = value
        return {
            "study": dict(self.study),
            "protocol": dict(self.protocol),
            "chain": dict(self.chain),
            "training": {**self.training, **{place: dict(own) for place, own in self.training_of.items() if own}},
            "numeric": dict(self.numeric),
            "models": models,
            "search": search,
            "dimensions": list(self.dimensions),  # a file of tables does not keep their order
        }

    def _with(self, **changes: Any) -> "Space":
        other = copy(self)
        for known in ("_size", "_grid"):  # of the space as it was
            vars(other).pop(known, None)
        vars(other).update(changes)
        return other

    def _pick(self, params: Mapping[str, Any], name: str) -> Any:
        return params.get(name, self.chain[name])

    def _chain(self, params: Mapping[str, Any]) -> Chain:
        order = parse_order(self._pick(params, "order"))
        distilled = range(2, len(order) + 1)

        def per_stage(name: str) -> tuple[float, ...]:
            shared = self._pick(params, name)
            return tuple(float(params.get(f"{name}.{stage}", shared)) for stage in distilled)

        return Chain(
            order=order,
            teacher=self.models[self._pick(params, "teacher")],
            student=self.models[self._pick(params, "student")],
            temperature=per_stage("temperature"),
            alpha=per_stage("alpha"),
            loss=self._pick(params, "loss"),
            warm_start=self._pick(params, "warm_start"),
            training=self._training(params),
            seed=self.study["seed"],
            data=self.data.settled(),
            numeric=Numeric(**self.numeric),
            first=self._training(params, "first"),
            later=self._training(params, "later"),
        )

    def _training(self, params: Mapping[str, Any], place: str = "") -> Training:
        """The training settings of all stages, or of those at a place (`settings.PLACES`)."""
        values = {name: params.get(f"training.{name}", value) for name, value in self.training.items()}
        if place:
            values |= self.training_of[place]
            values = {name: params.get(f"training.{place}.{name}", value) for name, value in values.items()}
        return Training(**values).settled()


def load_space(name: str) -> Space:
    """Read a space from a path, or a shipped one by its name. Raises `UserError` naming the file and the key."""
    path = expanded(name)
    if path.suffix.lower() != ".toml":
        path = shipped_folder() / f"{name}.toml"
        if not path.is_file():
            if expanded(name).is_file():
                raise UserError(f"The file '{name}' is not named like a space; allowed: a path to a .toml file")
            shipped = sorted(each.stem for each in shipped_folder().glob("*.toml"))
            raise UserError(f"{unknown('space', name, shipped)}, or a path to a .toml file")
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"Cannot read the space '{path}': {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    if not plain:  # every key has a default, but a file without any is a mistake
        raise UserError(f"{path}: it is empty; allowed: tables such as [chain], what is fixed, and [search]")
    space = Space(plain, source=str(path), base=path.parent)
    space.study["name"] = space.study["name"] or path.stem
    return space


def shipped_folder() -> Path:
    """Where the shipped spaces are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"
