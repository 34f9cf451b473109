"""What a study took: stages shared, seconds spent and saved, who worked when, how each stage learned."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.recipe import StageSpec, Training
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.words import counted


@dataclass(frozen=True)
class Sharing:
    """Stages of the stage tree against stages that the trials asked for. `asked` counts a stage once for each trial
    that used it, `distinct` counts it once; `shared` is the difference. Seconds are train plus evaluate seconds, as the
    stages recorded them; stages without a readable stage.json count none."""

    distinct: int
    asked: int
    shared: int
    seconds_spent: float
    seconds_saved: float

    @property
    def factor(self) -> float:
        """How many times as long a search without sharing would have taken."""
        return (self.seconds_spent + self.seconds_saved) / self.seconds_spent if self.seconds_spent else 1.0


def sharing(study: Study) -> Sharing:
    """Over all trials that have ended, baselines included."""
    uses = Counter(key for keys in study.trials["stages"] for key in keys)
    seconds = {key: study.stages[key].seconds for key in uses if key in study.stages}
    asked = uses.total()
    return Sharing(
        distinct=len(uses),
        asked=asked,
        shared=asked - len(uses),
        seconds_spent=float(sum(seconds.values())),
        seconds_saved=float(sum((uses[key] - 1) * each for key, each in seconds.items())),
    )


@dataclass(frozen=True)
class StoredOutputs:
    """Teachers' outputs over all stages: for how many images they were `asked`, for how many they were `computed`, how
    many seconds that took, and how many more seconds computing all of them would have taken at the same teachers'
    speed."""

    asked: int
    computed: int
    seconds: float
    seconds_saved: float


def stored_outputs(study: Study) -> StoredOutputs | None:
    """None where no stage had a teacher."""
    lines = []
    for about in study.stages.values():
        cost, parent = about.cost, study.stages.get(about.parent or "")
        if cost["teacher_asked"]:
            teacher = str(parent.spec["model"]) if parent else ""
            lines.append((teacher, cost["teacher_asked"], cost["teacher_computed"], cost["teacher_seconds"]))
    if not lines:
        return None
    table = pd.DataFrame(lines, columns=["teacher", "asked", "computed", "seconds"]).groupby("teacher").sum()
    each = (table["seconds"] / table["computed"]).where(table["computed"] > 0)
    saved = ((table["asked"] - table["computed"]) * each).sum()
    return StoredOutputs(
        int(table["asked"].sum()), int(table["computed"].sum()), float(table["seconds"].sum()), float(saved)
    )


def views_told(training: Training) -> str:
    """What the views of an image cost a teacher, in words."""
    square, passes = Training.VIEWS[training.views], counted(training.teacher_passes, "pass", "passes")
    of = f" ({training.variants} variants, each in {square} of the square's views)" if training.variants > 1 else ""
    return (
        f"{training.all_views} of an image{of}; a teacher computes at most {passes} over a stage's images, one a view "
        f"and no more than the {counted(training.epochs, 'epoch')}"
    )


def variants_told(study: Study) -> str:
    """What variants of the images cost, of the distilled stage whose teacher had most to compute. Empty where no stage
    has variants."""
    trainings = [each.training for each in specs(study) if each.distillation]
    most = max(trainings, key=lambda each: (each.teacher_passes, each.all_views), default=Training())
    return views_told(most) if most.variants > 1 else ""


def specs(study: Study) -> list[StageSpec]:
    """Of every finished stage."""
    return [StageSpec.from_dict(dict(about.spec)) for about in study.stages.values()]


def rehearsal_told(stages: Iterable[StageSpec]) -> str:
    """What rehearsal costs at most, in words; empty where no stage rehearses.

    A teacher computes the outputs of rehearsed images once a view: no more than all views of all that is rehearsed, of
    which each magnification is taken to have as many images as the stage's own.
    """
    rehearsing = [each for each in stages if each.earlier]
    if not rehearsing:
        return ""
    share = max(each.training.rehearsal for each in rehearsing)
    told = f"up to {share:.0%} of a stage's images, whose epochs then have {1 / (1 - share):.2f} times as many"
    taught = [each for each in rehearsing if each.distillation]
    if not taught:
        return told
    passes = max(
        min(
            each.training.epochs * each.training.rehearsal / (1 - each.training.rehearsal),
            each.training.all_views * len(each.earlier),
        )
        for each in taught
    )
    return f"{told}; a teacher computes about {passes:.1f} outputs more for each of a stage's images"


def cost_by_depth(study: Study) -> pd.DataFrame:
    """Distinct stages by their place in the chain (1 = the first): depth, stages, device_seconds (a stage's seconds
    times its group's workers, each of which has a device to itself), mean (seconds a stage)."""
    depth = depths(study)
    lines = [(depth[key], about.seconds, about.seconds * about.workers) for key, about in study.stages.items()]
    frame = pd.DataFrame(lines, columns=["depth", "seconds", "device_seconds"])
    grouped = frame.groupby("depth")
    table = grouped.agg(stages=("seconds", "count"), device_seconds=("device_seconds", "sum"), mean=("seconds", "mean"))
    return table.reset_index()


def device_kind(study: Study) -> str:
    """What the stages ran on: "CPU", "GPU", or "device" where both did or there are none."""
    kinds = {about.cost["device_type"] for about in study.stages.values()}
    return {("cpu",): "CPU", ("cuda",): "GPU"}.get(tuple(kinds), "device")


def depths(study: Study) -> dict[str, int]:
    """Place of each stage in its chain, 1 for the first, found by following parents. A stage has one place whoever uses
    it, also while no chain with it has ended. Where a parent cannot be read, the place is that in the trials."""
    told = {key: depth for keys in study.trials["stages"] for depth, key in enumerate(keys, 1)}
    found: dict[str, int] = {}

    def depth(key: str) -> int:
        if key not in found:
            about = study.stages.get(key)
            parent = about.parent if about else None
            found[key] = told.get(key, 1) if about is None else depth(parent) + 1 if parent else 1
        return found[key]

    for key in (*study.stages, *told):
        depth(key)
    return found


def timeline(study: Study) -> pd.DataFrame:
    """Which worker group trained which stage when: group, key, depth, trained, started, finished, ordered by group and
    start. Times are seconds since the first stage started."""
    depth = depths(study)
    lines = [
        (about.group, key, depth[key], about.trained, float(about.started), float(about.finished))
        for key, about in study.stages.items()
    ]
    frame = pd.DataFrame(lines, columns=["group", "key", "depth", "trained", "started", "finished"])
    first = frame["started"].min()
    frame[["started", "finished"]] -= first
    return frame.sort_values(["group", "started", "key"], ignore_index=True)


def curves(study: Study, keys: Sequence[str]) -> pd.DataFrame:
    """Learning curves of a chain's stages: stage (1 ..), key, trained, epoch, loss, cross_entropy, distillation, lr,
    agreement; NaN where a stage has no teacher. Stages that cannot be read are left out."""
    lines = [
        {"stage": stage, "key": key, "trained": about.trained, **each}
        for stage, key in enumerate(keys, 1)
        if (about := study.stages.get(key))
        for each in about.curves
    ]
    names = ["stage", "key", "trained", "epoch", "loss", "cross_entropy", "distillation", "lr", "agreement"]
    frame = pd.DataFrame(lines, columns=names)
    return frame.astype(dict.fromkeys(names[4:], float))


def agreement(study: Study, keys: Sequence[str]) -> pd.DataFrame:
    """How far each student of a chain follows its teacher on validation images of its magnification: stage, key,
    trained, same_argmax (share of images), kl (nats, teacher against student). Stages without a teacher are left
    out."""
    lines = [
        {"stage": stage, "key": key, "trained": about.trained, **about.agreement}
        for stage, key in enumerate(keys, 1)
        if (about := study.stages.get(key)) and about.agreement
    ]
    return pd.DataFrame(lines, columns=["stage", "key", "trained", "same_argmax", "kl"])
