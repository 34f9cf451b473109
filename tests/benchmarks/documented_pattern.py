"""A whole search against the pattern that Ray documents: the same trials, data, model and epochs, from PNG to AUC.

The peer is Ray's own guide taken at its word: a Tune function trainable starts one `TorchTrainer` per trial, whose
worker trains the four stages of its chain with a live teacher in the step and a `DataLoader` over PNG files. It uses
this package's model, optimiser, loss and precision, so both sides learn the same thing. Two trials at a time, one CPU
each; on a GPU (`tests.gpu`) one at a time. Both times are of whole commands: interpreter, Ray, decoding (ours once, in
`prepare`), training, evaluation of each stage.

`--trials 16` is what was measured; the default is less. Images have BreakHis's 700x460 pixels; with
`BENCH_SIZE=350x230` they have the demo's, a quarter, which favours the peer: it decodes each of them in every epoch.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from kdtvit_ray.cluster.environment import RAY_ENVIRONMENT
from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.data.synthetic import synthesise
from kdtvit_ray.paths import StudyFolder

TRIALS = int(os.environ.get("BENCH_TRIALS", "4"))
WIDTH, HEIGHT = map(int, os.environ.get("BENCH_SIZE", "700x460").split("x"))
ROOT = Path(__file__).resolve().parents[2]


def train_chain(config: dict[str, Any]) -> None:
    """The peer's loop in its worker: all stages of one trial, one report a stage."""
    import ray.train
    import torch
    from PIL import Image
    from ray.train.torch import get_device
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from kdtvit_ray.learning import losses
    from kdtvit_ray.learning.models import build, mean_std
    from kdtvit_ray.learning.numeric import autocast
    from kdtvit_ray.learning.optimise import adamw, learning_rate
    from kdtvit_ray.metrics import measure, positive_share
    from kdtvit_ray.recipe import StageSpec

    class Files(Dataset):
        def __init__(self, samples: list[tuple[str, int]], transform: Any) -> None:
            self.samples, self.transform = samples, transform

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            path, label = self.samples[index]
            with Image.open(path) as image:
                return self.transform(image.convert("RGB")), label

    torch.set_num_threads(1)
    device = get_device()
    teacher: Any = None
    for number, plain in enumerate(config["stages"], 1):
        spec = StageSpec.from_dict(plain)
        settings = spec.training
        torch.manual_seed(spec.seed)
        model = build(spec.model, spec.seed)
        if spec.warm:
            model.load_state_dict(teacher.state_dict())
        model.to(device)
        size = (spec.model.image_size,) * 2
        resize = transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
        tensor = [transforms.ToTensor(), transforms.Normalize(*mean_std(model))]
        turn = transforms.Lambda(lambda image: image.rotate(90 * int(torch.randint(4, ()))))
        train = Files(
            config["train"][str(spec.magnifications[0])],
            transforms.Compose([resize, turn, transforms.RandomHorizontalFlip(), *tensor]),
        )
        labels = torch.tensor([label for _, label in train.samples])
        first = breakhis().first_positive_output(spec.model.head)
        weights = losses.class_weights(settings.class_weights, labels, spec.model.classes, first)
        objective = losses.Objective(spec.distillation, weights.to(device), settings.label_smoothing)
        optimizer = adamw(model, settings)
        loader = DataLoader(train, settings.batch, shuffle=True)
        for epoch in range(settings.epochs):
            model.train()
            for index, (inputs, truth) in enumerate(loader):
                inputs, truth = inputs.to(device), truth.to(device)
                with torch.no_grad(), autocast(spec.numeric, device):
                    taught = teacher(inputs).float() if spec.distillation else None
                with autocast(spec.numeric, device):
                    logits = model(inputs).float()
                loss, _, _ = objective(logits, taught, truth, len(truth))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(epoch * len(loader) + index, len(loader), settings)
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        means = {}
        for split in ("validation", "test"):
            found = []
            for samples in config[split].values():
                batches = DataLoader(Files(samples, transforms.Compose([resize, *tensor])), 32)
                with torch.no_grad(), autocast(spec.numeric, device):
                    outputs = [model(inputs.to(device)).double().softmax(1).cpu().numpy() for inputs, _ in batches]
                shares = [positive_share(each, first) for each in outputs]
                found.append(measure(np.array([label >= 4 for _, label in samples]), np.concatenate(shares))["auc"])
            means[f"{split}_auc"] = float(np.mean(found))
        ray.train.report({"stage": number, **means})
        teacher = model.requires_grad_(False)


def drive(config: dict[str, Any]) -> None:
    """The peer's Tune trial: a Ray Train run of its own."""
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    shared = json.loads(Path(config["shared"]).read_text())
    TorchTrainer(
        train_chain,
        train_loop_config={**shared, "stages": shared["trials"][config["trial"]]},
        scaling_config=ScalingConfig(
            num_workers=1,
            use_gpu=bool(shared["gpus"]),
            resources_per_worker={"CPU": 0.9, **({"GPU": 1} if shared["gpus"] else {})},
        ),
        run_config=RunConfig(
            name=tune.get_context().get_trial_id(), storage_path=config["out"], callbacks=[TuneReportCallback()]
        ),
    ).fit()


def peer(shared: str, out: str) -> None:
    """Run the peer's search; writes the test AUC of each trial, and the seconds that each of its stages took: those of
    the first begin with the trial."""
    import ray
    from ray import tune

    settings = json.loads(Path(shared).read_text())
    count, gpus = len(settings["trials"]), settings["gpus"]
    ray.init("local", include_dashboard=False, num_cpus=2, num_gpus=gpus, log_to_driver=False)
    results = tune.Tuner(
        tune.with_resources(drive, {"CPU": 0.01}),
        param_space={"trial": tune.grid_search(list(range(count))), "shared": shared, "out": out},
        tune_config=tune.TuneConfig(max_concurrent_trials=gpus or 2),
        run_config=tune.RunConfig(verbose=0, storage_path=out),
    ).fit()
    if results.errors:
        raise results.errors[0]
    last = [len(stages) for stages in settings["trials"]]
    found = [result.metrics["test_auc"] for result in results if result.metrics.get("stage") in last]
    assert len(found) == count, [dict(result.metrics) for result in results]
    Path(out, "aucs.json").write_text(json.dumps(found))
    seconds = [result.metrics_dataframe["time_this_iter_s"].to_list() for result in results]
    Path(out, "seconds.json").write_text(json.dumps(seconds))
    ray.shutdown()


def run(*arguments: str) -> float:
    """Seconds of a Python command in the repository's root."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in RAY_ENVIRONMENT:  # our sweep sets them itself; the peer runs as Ray comes
        variables.pop(name, None)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-3000:]}")
    return time.perf_counter() - started


def shared_settings(space_file: Path, prepared: Path, images: Path, study: Path, gpus: int = 0) -> dict[str, Any]:
    """What the peer is given: the stages of each trial that our sweep has run in the folder `study`, in the dtype that
    it ran them in, files by split and magnification, and how many GPUs there are for it."""
    from kdtvit_ray.data.batches import StageData
    from kdtvit_ray.study.binding import bind, dtype_of
    from kdtvit_ray.study.search import Search
    from kdtvit_ray.study.space import load_space

    bound = bind(load_space(str(space_file)), str(prepared))
    space = bound.space.with_dtype(dtype_of(StudyFolder(str(study))))
    # random suggestions depend on no result: all can be had at once
    space.study["lag"] = space.study["trials"]
    search, trials = Search(space), []
    while (suggested := search.suggest()) is not None:
        trials.append([stage.to_dict() for stage in space.plan(suggested[1])])
    data = StageData(bound.prepared, bound.space.data)
    labels = data.labels("subtype")
    paths = {path.stem: str(path) for path in images.rglob("*.png")}
    names = data.table["name"].to_list()
    shared: dict[str, Any] = {"trials": trials, "gpus": gpus}
    for split in ("train", "validation", "test"):
        shared[split] = {
            str(each): [(paths[names[row]], int(labels[row])) for row in data.rows(split, (each,))]
            for each in breakhis().magnifications
        }
    return shared


def main() -> None:
    import tomli_w

    from kdtvit_ray.results.rows import read_rows, read_trials

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        plain = tomllib.loads((Path(__file__).parent / "micro.toml").read_text())
        plain["study"] |= {"trials": TRIALS}
        space_file = folder / "space.toml"
        space_file.write_text(tomli_w.dumps(plain))
        synthesise(folder / "images", patients=48, per_magnification=6, size=(WIDTH, HEIGHT))

        preparing = run(
            "-m",
            "kdtvit_ray",
            "prepare",
            f"{folder}/images",
            f"{folder}/prepared",
            "--size",
            "64",
            "--aspect",
            "squash",
        )
        sweeping = run(
            "-m",
            "kdtvit_ray",
            "sweep",
            str(space_file),
            "--data",
            f"{folder}/prepared",
            "--out",
            f"{folder}/study",
            "--groups",
            "2",
        )
        load = os.getloadavg()[0]  # runnable processes of everyone: the ratio is good for what these are alike
        study = StudyFolder(f"{folder}/study")
        rows, trials = read_rows(study), read_trials(study)
        last = rows[(rows["stage"] == 4) & (rows["split"] == "test") & (rows["level"] == "image")]
        aucs = last[last["metric"] == "auc"].groupby("trial", observed=True)["value"].mean()
        stages = len({key for keys in trials["stages"] for key in keys})
        ours = preparing + sweeping
        print(
            f"  {TRIALS} trials of 4 stages, 8 epochs each, ViT-micro at 64 px from PNG files of "
            f"{WIDTH}x{HEIGHT}, two trials or groups at a time"
        )
        print(
            f"  kdtvit-ray: {ours:.0f} s (prepare {preparing:.0f}, sweep {sweeping:.0f}), {stages} stages trained for "
            f"{4 * TRIALS} asked; test AUC {aucs.mean():.3f} (trials {aucs.min():.3f} to {aucs.max():.3f})",
            flush=True,
        )
        shared = folder / "shared.json"
        shared.write_text(
            json.dumps(shared_settings(space_file, folder / "prepared", folder / "images", folder / "study"))
        )
        (folder / "peer").mkdir()
        call = f"from tests.benchmarks.documented_pattern import peer; peer('{shared}', '{folder}/peer')"
        theirs = run("-c", call)
        found = np.array(json.loads((folder / "peer" / "aucs.json").read_text()))
        print(
            f"  one TorchTrainer per trial, live teacher, PNG DataLoader: {theirs:.0f} s, {len(found)} trials ended; "
            f"test AUC {found.mean():.3f} (trials {found.min():.3f} to {found.max():.3f})"
        )
        print(f"  ratio {theirs / ours:.1f}; load average as ours ended {load:.0f}, the peer {os.getloadavg()[0]:.0f}")


if __name__ == "__main__":
    main()
