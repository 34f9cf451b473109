"""A study's folder without a study: the exact layout, filled with seeded random numbers. No torch, no Ray.

    fake_study(folder)                           12 searched trials, the baselines, one failed, one pruned: about a
                                                 second
    fake_study(folder, trials=40, running=3)     a study that still runs

Stages are real `StageSpec`s with real keys, so that trials share stages as they would. What a stage "predicts" follows
from its settings (a larger student, T near 4 and alpha near 0.5 are better, magnifications seen long ago fade) plus
noise by patient and by image, and its rows follow from its predictions by `kdtvit_ray.metrics`.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

from kdtvit_ray.chain import Chain
from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.metrics import measure_levels, positive_share
from kdtvit_ray.paths import PREDICTIONS, WEIGHTS, StudyFolder
from kdtvit_ray.recipe import (
    BASELINES,
    DataSpec,
    ModelSpec,
    Numeric,
    StageSpec,
    Training,
    format_order,
    parse_order,
)
from kdtvit_ray.results.rows import ROWS, TrialRecord, write_trial
from kdtvit_ray.results.stage_record import Measure, StageRecord
from kdtvit_ray.results.study_file import VERSION
from kdtvit_ray.results.study_status import StageCounts, Status, TrialCounts
from kdtvit_ray.study.settings import CHAIN_DEFAULTS, PER_STAGE, PROTOCOL_DEFAULTS, STUDY_DEFAULTS

ORDERS = tuple(format_order(order) for order in itertools.permutations(breakhis().magnifications))
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
STUDENTS = ("micro", "tiny")
PARAMETERS = {"micro": 364_232, "tiny": 1_437_512, "small": 5_526_152}
SKILL = {"micro": 0.0, "tiny": 0.25, "small": 0.4}
START = 1_790_000_000.0
NO_FILE = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
PREPROCESSING = {
    "size": 64,
    "aspect": "crop",
    "crop": "none",
    "image_size": 64,
    "interpolation": "bicubic",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}


def fake_study(
    location: Path | str,
    *,
    trials: int = 12,
    seed: int = 0,
    failed: int = 1,
    pruned: int = 1,
    running: int = 0,
    baselines: Sequence[str] = BASELINES,
    orders: Sequence[str] = (),
    dataset: Dataset | None = None,
    students: Sequence[str] = STUDENTS,
    per_stage: bool = False,
    searched_lr: bool = False,
    confirm: int = 0,
    patients: int = 24,
    images: int = 5,
    head: str = "subtype",
    protocol: str = "patient",
    metric: str = "auc",
    epochs: int = 4,
    groups: int = 2,
    predictions: bool = True,
    name: str = "fake",
    importance: bool = True,
) -> Path:
    """Write a study's folder and return it. The last `failed` and the `pruned` trials before them ended so; with
    `running` > 0 the study goes on: that many searched trials have no record yet, and status.json says "running".
    Without a `dataset` the study is one of BreakHis; `orders` are all orders of
    the magnifications unless they are given. `patients` (validation and test, half each) have `images` images at every
    magnification; `confirm` repeats the first two trials and the baseline `sequential` at folds 1 and 2 with that many
    other seeds."""
    folder = StudyFolder(str(location))
    rng = np.random.default_rng([seed, 1])
    fake = FakeStudy(folder, seed, patients, images, head, protocol, epochs, groups, predictions, name, metric, dataset)
    magnifications = fake.dataset.magnifications
    orders = orders or [format_order(order) for order in itertools.permutations(magnifications)]
    chosen = fake.chosen(rng, trials, orders, students, per_stage, searched_lr)
    written = trials - running
    for number, params in enumerate(chosen[:written]):
        state = "complete"
        if number >= written - failed:
            state = "failed"
        elif number >= written - failed - pruned:
            state = "pruned"
        fake.trial(f"t{number:04d}", number, "search", state, fake.chain(params), params)
    base = fake.chain({})
    for baseline, stages in fake.baseline_stages(base, baselines if not running else baselines[:1]).items():
        fake.trial(baseline, -1, "baseline", "complete", base, {}, stages, baseline)
    again = {f"t{number:04d}": params for number, params in enumerate(chosen[: min(2, written)])}
    if "sequential" in baselines:
        again["sequential"] = {}
    for fold in (1, 2):
        for seed in range(1, confirm + 1):
            for of, params in again.items():
                chain = fake.chain(params, seed=10 * fold + seed)
                stages = fake.baseline_stages(chain, [of])[of] if of == "sequential" else None
                told = {"of": of, "params": params, "fold": fold, "seed": seed}
                fake.trial(f"{of}-f{fold}-s{seed}", -1, "confirm", "complete", chain, told, stages)
    fake.about(trials, baselines, orders, students, per_stage, searched_lr)
    fake.status("running" if running else "finished", trials, running, failed, pruned)
    if importance:
        values = {"order": 0.21, "student": 0.44, "alpha": 0.2, "temperature": 0.15}
        folder.write_json("importance.json", {"fanova": values, "ped-anova": {k: v / 2 for k, v in values.items()}})
    return Path(folder.root)


def study_file(**changes: Any) -> dict[str, Any]:
    """A study.toml as plain data, whole, with other values of its tables, or beside them."""
    plain: dict[str, Any] = {
        "study": {**STUDY_DEFAULTS, "name": "s", "objective_folds": 1},
        "protocol": dict(PROTOCOL_DEFAULTS),
        "chain": dict(CHAIN_DEFAULTS),
        "training": vars(Training()),
        "numeric": vars(Numeric()),
        "models": {},
        "search": {},
        "data": {
            "path": "/data",
            "fingerprint": "f" * 32,
            "images": 0,
            "patients": 0,
            "leaks": False,
            "notes": [],
            "splits": {each: {"images": 1, "patients": 1} for each in ("train", "test")},
            "census": [],
            "digests": {},
            "dataset": breakhis().without_slides().to_plain(),
        },
        "versions": {"python": "3.11.9", "torch": "2.10.0", "recipe": "1"},
        "command": "kdtvit-ray sweep space.toml",
        "version": VERSION,
        "id": "5" * 32,
        "dimensions": [],
    }
    assert changes.keys() <= plain.keys()
    return {
        name: {**old, **changes.get(name, {})} if isinstance(old, dict) else changes.get(name, old)
        for name, old in plain.items()
    }


class FakeStudy:
    """What is fixed over one fake study, and the stages written so far."""

    def __init__(
        self,
        folder: StudyFolder,
        seed: int,
        patients: int,
        images: int,
        head: str,
        protocol: str,
        epochs: int,
        groups: int,
        predictions: bool,
        name: str,
        metric: str,
        dataset: Dataset | None = None,
    ) -> None:
        self.dataset = dataset or breakhis()
        self.folder, self.seed, self.head, self.name, self.metric = folder, seed, head, name, metric
        self.id = hashlib.blake2b(folder.location.encode(), digest_size=16).hexdigest()
        self.data = DataSpec(hashlib.blake2b(b"fake", digest_size=16).hexdigest(), protocol)
        self.training = Training(epochs=epochs)
        self.groups, self.with_predictions = groups, predictions
        self.table = _images(np.random.default_rng([seed, 2]), patients, images, self.dataset)
        self.skills: dict[str, dict[int, float]] = {}
        self.measured: dict[str, list[list[Any]]] = {}
        self.costs: dict[str, dict[str, Any]] = {}
        self.finished: dict[str, float] = {}
        self.lineage: dict[str, str] = {}
        self.free = [START + 30.0] * max(groups, 1)

    def chosen(
        self,
        rng: np.random.Generator,
        trials: int,
        orders: Sequence[str],
        students: Sequence[str],
        per_stage: bool,
        searched_lr: bool,
    ) -> list[dict[str, Any]]:
        made = []
        for _ in range(trials):
            params: dict[str, Any] = {"order": str(rng.choice(orders)), "student": str(rng.choice(students))}
            for name, grid in (("temperature", TEMPERATURES), ("alpha", ALPHAS)):
                for each in [f"{name}.{stage}" for stage in (2, 3, 4)] if per_stage else [name]:
                    params[each] = float(rng.choice(grid))
            if searched_lr:
                params["training.lr"] = float(rng.choice([3e-4, 1e-3, 3e-3]))
            made.append(params)
        return made

    def chain(self, params: dict[str, Any], seed: int = 0) -> Chain:
        order = parse_order(params.get("order", format_order(self.dataset.magnifications)))
        student = params.get("student", "micro")

        def values(name: str, fixed: float) -> tuple[float, ...]:
            return tuple(params.get(f"{name}.{stage}", params.get(name, fixed)) for stage in range(2, len(order) + 1))

        training = Training(epochs=self.training.epochs, lr=params.get("training.lr", self.training.lr))
        return Chain(
            order,
            ModelSpec("tiny", head=self.head, subtypes=len(self.dataset.classes)),
            ModelSpec(student, head=self.head, subtypes=len(self.dataset.classes)),
            values("temperature", 4.0),
            values("alpha", 0.5),
            training=training,
            seed=seed,
            data=self.data,
        )

    def baseline_stages(self, base: Chain, names: Sequence[str]) -> dict[str, tuple[StageSpec, ...]]:
        from dataclasses import replace

        made: dict[str, tuple[StageSpec, ...]] = {}
        for name in names:
            if name == "per_magnification":
                for magnification in base.order:
                    alone = replace(base, order=(magnification,), teacher=base.student, temperature=(), alpha=())
                    made[f"{name}-{magnification}"] = alone.stages()
            elif name == "joint":
                made[name] = base.joint()
            elif name == "sequential":
                made[name] = replace(base, teacher=base.student, alpha=(0.0,) * (len(base.order) - 1)).stages()
            else:
                made[name] = replace(base, warm_start=False).stages()
        return made

    def trial(
        self,
        trial: str,
        number: int,
        kind: str,
        state: str,
        chain: Chain,
        params: dict[str, Any],
        stages: Sequence[StageSpec] | None = None,
        baseline: str = "",
    ) -> None:
        stages = chain.stages() if stages is None else stages
        done = {"complete": len(stages), "pruned": 2, "failed": 1}[state]
        parent = None
        keys = [spec.key for spec in stages[:done]]
        for depth, (spec, key) in enumerate(zip(stages, keys, strict=False), 1):
            self.stage(spec, depth, parent)
            parent = key
        objective = float("nan")
        if state != "failed":
            wanted = ["validation", "image", self.metric]
            objective = float(np.mean([value for m, *what, value in self.measured[keys[-1]] if what == wanted]))
        distilled = [spec.distillation for spec in stages if spec.distillation]
        order = format_order(chain.order)
        if baseline:
            order = ">".join("+".join(map(str, spec.magnifications)) for spec in stages)
        record = TrialRecord(
            trial=trial,
            number=number,
            kind=kind,
            state=state,
            reason={
                "failed": f"The loss is not finite in epoch 2, step 3 of 17 (stage 2, trial {trial})",
                "pruned": "Stopped after stage 2: below the median",
            }.get(state, ""),
            order=order,
            teacher=stages[0].model.name,
            student=chain.student.name,
            temperature=json.dumps([each.temperature for each in distilled]),
            alpha=json.dumps([each.alpha for each in distilled] or [0.0] * (len(stages) - 1)),
            loss=chain.loss,
            warm_start=any(spec.warm for spec in stages),
            seed=chain.seed,
            fold=chain.data.fold,
            parameters=PARAMETERS[stages[done - 1].model.name],
            params=json.dumps(params, sort_keys=True),
            objective=objective,
            stages=keys,
            cost_seconds=sum(self.costs[key]["train_seconds"] + self.costs[key]["evaluate_seconds"] for key in keys),
            started=START + 40 * max(number, 0),
            finished=max(self.finished[key] for key in keys),
            fault="stage" if state == "failed" else "",
        )
        rows = [
            (self.name, trial, depth, key, "+".join(map(str, spec.magnifications)), *measure)
            for depth, (spec, key) in enumerate(zip(stages, keys, strict=False), 1)
            for measure in self.measured[key]
        ]
        columns = list(zip(*rows, strict=True))
        write_trial(self.folder, record, pa.table(dict(zip(ROWS.names, map(list, columns), strict=True)), schema=ROWS))

    def stage(self, spec: StageSpec, depth: int, parent: str | None) -> None:
        key = spec.key
        if key in self.measured:
            return
        distillation = spec.distillation
        # not from the key: what is in it may change, and the numbers that tests pin must not change with it
        told = f"{spec.magnifications} {spec.model.name} {distillation} {spec.training.lr} {spec.seed} {spec.warm}"
        told += self.lineage.get(spec.parent or "", "")
        self.lineage[key] = hashlib.blake2b(told.encode(), digest_size=6).hexdigest()
        rng = np.random.default_rng([self.seed, int(self.lineage[key], 16)])
        skill = 1.0 + SKILL.get(spec.model.name, 0.2) + rng.normal(0, 0.12)
        if distillation:
            skill += 0.25 - 0.06 * abs(np.log2(distillation.temperature / 4)) - 0.3 * abs(distillation.alpha - 0.5)
        skill += -0.1 * abs(np.log10(spec.training.lr / 1e-3))
        before = self.skills.get(parent or "", dict.fromkeys(self.dataset.magnifications, 0.2))
        keep = 0.75 if spec.parent else 0.3
        self.skills[key] = {
            each: skill if each in spec.magnifications else keep * before[each] + 0.15 * skill
            for each in self.dataset.magnifications
        }
        table = self._predict(rng, self.skills[key], spec.model.head)
        self.measured[key] = [
            [int(magnification), split, level, metric, value]
            for (magnification, split), part in table.groupby(["magnification", "split"], sort=True)
            for level, values in measure_levels(
                part["malignant"].to_numpy(), part["probability"].to_numpy(), part["patient"].to_numpy()
            ).items()
            for metric, value in values.items()
        ]
        group = int(np.argmin(self.free))
        train = 20.0 * spec.training.epochs * (1 + SKILL.get(spec.model.name, 0)) * rng.uniform(0.9, 1.1)
        started = max(self.free[group], self.finished.get(spec.parent or "", 0.0))
        self.free[group] = self.finished[key] = started + train + 2.5
        parameters = PARAMETERS.get(spec.model.name, 1_000_000)
        self.costs[key] = {
            "train_seconds": train,
            "evaluate_seconds": 2.0,
            "teacher_seconds": 0.3 * train if distillation else 0.0,
            "steps": 10 * spec.training.epochs,
            "images": 640 * spec.training.epochs,
            "evaluated_images": len(table),
            "teacher_asked": 640 * spec.training.epochs if distillation else 0,
            "teacher_computed": 160 * min(spec.training.epochs, 8) if distillation else 0,
            "parameters": parameters,
            "device": "cpu",
            "device_type": "cpu",
            "workers": 1,
            "latency_1_seconds": 1e-9 * parameters * 3,
            "latency_32_seconds": 4e-8 * parameters,
            "images_per_second": 32 / (4e-8 * parameters),
        }
        curves = [
            {
                "epoch": epoch,
                "loss": 2.0 / (epoch + 1) + 0.1,
                "cross_entropy": 1.8 / (epoch + 1) + 0.1,
                "distillation": 1.0 / (epoch + 1) if distillation else None,
                "lr": spec.training.lr * (1 - (epoch - 1) / spec.training.epochs),
                "agreement": 1 - 0.5 / epoch if distillation else None,
            }
            for epoch in range(1, spec.training.epochs + 1)
        ]
        follows = {"same_argmax": float(rng.uniform(0.6, 0.95)), "kl": float(rng.uniform(0.05, 0.5))}
        files: dict[str, Any] = dict.fromkeys((WEIGHTS, PREDICTIONS), NO_FILE)
        if self.with_predictions:
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sink, compression="zstd")
            content = sink.getvalue()
            self.folder.write(self.folder.predictions(key), content)
            files[PREDICTIONS] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        outputs, first = self.dataset.outputs(self.head), self.dataset.first_positive_output(self.head)
        record = StageRecord(
            key=key,
            spec=spec.to_dict(),
            measures=tuple(Measure(*each) for each in self.measured[key]),
            cost=self.costs[key],
            curves=curves,
            agreement=follows if distillation else None,
            weighting={"class_weights": [1.0] * len(outputs), "logit_offsets": [0.0] * len(outputs)},
            preprocessing=PREPROCESSING,
            classes={"names": list(outputs), "positive": list(outputs[first:])},
            versions={"python": "3.11.9", "torch": "2.10.0"},
            device="cpu",
            group=f"group-{group}",
            host=f"node-{group}",
            started=started,
            finished=self.finished[key],
            study=self.id,
            files=files,
        )
        self.folder.write_json(self.folder.stage(key), record.to_plain())

    def _predict(self, rng: np.random.Generator, skills: dict[int, float], head: str) -> pd.DataFrame:
        table = self.table.copy()
        classes, first = len(self.dataset.outputs(head)), self.dataset.first_positive_output(head)
        skill = table["magnification"].map(skills).to_numpy()
        offsets = pd.Series(rng.normal(0, 0.9, table["patient"].nunique()), index=table["patient"].unique())
        signal = skill * np.where(table["malignant"], 1.0, -1.0)
        malignancy = signal + table["patient"].map(offsets).to_numpy() + rng.normal(0, 0.8, len(table))
        if classes == 2:
            logits = np.stack([-malignancy / 2, malignancy / 2], axis=1)
        else:
            logits = rng.normal(0, 0.6, (len(table), classes))
            logits[:, first:] += malignancy[:, None] / 2
            logits[:, :first] -= malignancy[:, None] / 2
            logits[np.arange(len(table)), table["subtype"]] += 1.2 * skill
        logits = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (logits / logits.sum(axis=1, keepdims=True)).astype(np.float32)
        table["probability"] = positive_share(probabilities, first).astype(np.float32)
        for column in range(classes):
            table[f"p{column}"] = probabilities[:, column]
        return table

    def about(
        self,
        trials: int,
        baselines: Sequence[str],
        orders: Sequence[str],
        students: Sequence[str],
        per_stage: bool,
        searched_lr: bool,
    ) -> None:
        search: dict[str, Any] = {"order": list(orders), "student": list(students)}
        for name, grid in (("temperature", TEMPERATURES), ("alpha", ALPHAS)):
            search[name] = {"per_stage": list(grid)} if per_stage else list(grid)
        if searched_lr:
            search["training"] = {"lr": [3e-4, 1e-3, 3e-3]}
        counts = self.table.groupby("split")
        splits = {
            name: {
                "images": len(part),
                "patients": int(part["patient"].nunique()),
                **{f"{m}X": int((part["magnification"] == m).sum()) for m in self.dataset.magnifications},
            }
            for name, part in counts
        }
        splits["train"] = {name: 3 * value for name, value in splits["test"].items()}
        protocol = {name: getattr(self.data, name) for name in ("fold", "folds", "validation", "group", "seed")}
        dimensions = [
            *(f"{name}.{stage}" if per_stage and name in PER_STAGE else name for name in search for stage in (2, 3, 4))
        ]
        plain = study_file(
            study={
                "name": self.name,
                "seed": self.seed,
                "trials": trials,
                "metric": self.metric,
                "baselines": list(baselines),
            },
            protocol={"name": self.data.protocol, **protocol},
            chain={"teacher": "tiny", "order": format_order(self.dataset.magnifications), "head": self.head},
            training=vars(self.training),
            models={size: {"name": size, "args": {}, "image_size": 64, "weights": "none"} for size in students},
            search=search,
            data={
                "path": "/data/fake",
                "fingerprint": self.data.fingerprint,
                "images": 4 * len(self.table),
                "patients": 5 * int(self.table["patient"].nunique()) // 2,
                "leaks": self.data.protocol == "image",
                "notes": ["Slide 14-13412 was dropped from train: its patient is in test"],
                "splits": splits,
                "dataset": self.dataset.without_slides().to_plain(),
            },
            command=f"kdtvit-ray sweep space.toml --data /data/fake --out {self.folder.location}",
            id=self.id,
            dimensions=list(dict.fromkeys(dimensions)),
        )
        self.folder.write(self.folder.study, tomli_w.dumps(plain).encode())

    def status(self, state: str, trials: int, running: int, failed: int, pruned: int) -> None:
        ended = trials - running
        Status(
            state=state,
            name=self.name,
            metric=self.metric,
            dtype="float32",
            host="node-0",
            pid=1,
            elapsed=900.0,
            seconds_left=60.0 if running else 0.0,
            trials=TrialCounts(trials, ended - failed - pruned, failed, 0, pruned, running),
            baselines=TrialCounts(total=7, complete=7),
            stages=StageCounts(done=len(self.measured)),
            groups_wanted=self.groups,
            log="sweep.log",
        ).write(self.folder)


def _images(rng: np.random.Generator, patients: int, images: int, dataset: Dataset) -> pd.DataFrame:
    """Validation and test images: columns of predictions.parquet before the probabilities. Patients are positive and
    negative in turn, two by two; with few of them all of a side are of its first class."""
    first, count = dataset.first_positive, len(dataset.classes)
    sides = (range(first, count), range(first))
    lines = []
    for patient in range(patients):
        turn, side = divmod(patient // 2, 2)
        subtype = sides[side][turn % len(sides[side]) if patients >= 16 else 0]
        malignant, slide = subtype >= first, f"14-{20000 + patient}"
        for magnification in dataset.magnifications:
            for sequence in range(1, images + int(rng.integers(0, 3)) + 1):
                kind = dataset.classes[subtype]
                if dataset.source == "breakhis":
                    kind = f"SOB_{'M' if malignant else 'B'}_{kind}"
                name = f"{kind}-{slide}-{magnification}-{sequence:03d}"
                split = "validation" if patient % 2 else "test"
                lines.append((name, magnification, split, subtype, malignant, slide))
    table = pd.DataFrame(lines, columns=["name", "magnification", "split", "subtype", "malignant", "patient"])
    table = table.sort_values(["magnification", "name"]).reset_index(drop=True)
    table.insert(0, "image", np.arange(len(table), dtype=np.int32))
    return table.astype({"magnification": np.int16, "subtype": np.int8})
