"""What lies between the training of two stages, where the second is the child of the first.

set-up        of a stage that starts from its parent's weights and has a teacher: seconds with the models that the
              worker keeps, against the same with models built for each stage (the peer); medians of 9
in a sweep    one worker group, `micro` at 64 px, local disk: from the last step of a stage to the first step of its
              child, and its parts; stages a minute. Medians over all pairs that the group trained one after another
"""

import tempfile
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from kdtvit_ray.data.synthetic import synthesise
from kdtvit_ray.results.stage_record import StageRecord

TRIALS = 6
MODELS = {"micro": 64, "tiny": 64, "small": 224}
"""Image size of each model."""
REPEATS = 9


def set_up(prepared: Any, name: str, size: int) -> tuple[float, float]:
    """Median seconds from the begin of a stage to its first step: models kept, models built."""
    from kdtvit_ray.data.batches import StageData
    from kdtvit_ray.learning.models import build
    from kdtvit_ray.learning.stage import train_stage
    from kdtvit_ray.learning.teacher import Parent
    from kdtvit_ray.learning.warm import WarmModels
    from kdtvit_ray.recipe import DataSpec, Distillation, ModelSpec, StageSpec, Training

    training = Training(epochs=1, warmup_epochs=0.0, views="none")
    root = StageSpec((40,), ModelSpec(name, image_size=size), training, data=DataSpec(validation=0.5))
    child = replace(root, magnifications=(100,), distillation=Distillation(), parent=root.key, warm=True)
    parent, data = Parent(root, build(root.model, 0).state_dict()), StageData(prepared, root.data)
    models, spent = WarmModels(), ([], [])
    for _ in range(REPEATS + 1):
        for kept, told in ((models, spent[0]), (None, spent[1])):
            result = train_stage(child, data, parent, device="cpu", models=kept)
            assert result is not None
            told.append(result.cost["setup_seconds"])
    kept_seconds, built_seconds = (median(each[1:]) for each in spent)  # the first one builds in any case
    return kept_seconds, built_seconds


def parts(parent: StageRecord, child: StageRecord) -> tuple[float, float, float]:
    """Seconds from the parent's last step to its end, from there to the child's start, from there to its first step."""
    started = sum(parent.cost[name] for name in ("data_seconds", "setup_seconds", "train_seconds"))
    setting_up = child.cost["data_seconds"] + child.cost["setup_seconds"]
    return parent.finished - parent.started - started, child.started - parent.finished, setting_up


def sweep(folder: Path, prepared: Path) -> list[StageRecord]:
    """The stages of a sweep of one group, in the order in which they were trained."""
    import subprocess
    import sys

    import tomli_w

    from kdtvit_ray.paths import StudyFolder
    from kdtvit_ray.study.store import StageStore

    plain = tomllib.loads((Path(__file__).parent / "micro.toml").read_text())
    plain["study"] |= {"trials": TRIALS}
    (folder / "space.toml").write_text(tomli_w.dumps(plain))
    told = [str(folder / "space.toml"), "--data", str(prepared), "--out", str(folder / "study"), "--groups", "1"]
    subprocess.run([sys.executable, "-m", "kdtvit_ray", "sweep", *told], check=True, capture_output=True)
    store = StageStore(StudyFolder(str(folder / "study")))
    return sorted(map(store.record, store.keys()), key=lambda each: each.started)


def main() -> None:
    from kdtvit_ray.data.prepare import prepare
    from kdtvit_ray.data.prepared import open_prepared

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        synthesise(folder / "few", patients=16, per_magnification=1, size=(350, 230))
        prepare(folder / "few", folder / "large", size=224)
        few = open_prepared(folder / "large")
        for name, size in MODELS.items():
            kept, built = (1000 * each for each in set_up(few, name, size))
            print(f"  set-up of `{name}` at {size} px: kept {kept:.0f} ms, built {built:.0f} ms: {built / kept:.1f}x")
        synthesise(folder / "images", patients=48, per_magnification=6, size=(350, 230))
        prepare(folder / "images", folder / "prepared", size=64, aspect="squash")
        stages = sweep(folder, folder / "prepared")
        follow = [(one, two) for one, two in pairwise(stages) if two.parent == one.key]
        found = [parts(*pair) for pair in follow]
        ending, asking, setting_up = (median(each) for each in zip(*found, strict=True))
        whole = median(map(sum, found))
        print(
            f"  a sweep, {len(found)} children after their parents: {whole:.3f} s from last to first step (evaluation "
            f"and what follows {ending:.3f}, to the next stage {asking:.3f}, its set-up {setting_up:.3f})"
        )
        minutes = (stages[-1].finished - stages[0].started) / 60
        epochs, images = stages[0].spec["training"]["epochs"], median(each.cost["images"] for each in stages)
        print(
            f"  {len(stages)} stages of `micro` at 64 px in {minutes:.1f} min: {len(stages) / minutes:.1f} a minute, "
            f"of {epochs} epochs and {images:.0f} images"
        )


if __name__ == "__main__":
    main()
