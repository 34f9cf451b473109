"""The checks: each raises `AssertionError`, or returns in a few words what it saw."""

import signal
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from kdtvit_ray.data.batches import turned
from kdtvit_ray.learning import warm as warm_models
from kdtvit_ray.learning.augmentation import Variants
from kdtvit_ray.learning.compiling import COMPILE_CAPABILITY
from kdtvit_ray.learning.device_pixels import COPIES, DevicePixels
from kdtvit_ray.learning.feed import Feed
from kdtvit_ray.learning.models import build
from kdtvit_ray.learning.numeric import CONTEXT_BYTES, device_name, empty_caches, has_bfloat16
from kdtvit_ray.learning.outcome import Progress
from kdtvit_ray.learning.recorded import RecordedSteps, no_recordings
from kdtvit_ray.learning.stage import _Run as Run
from kdtvit_ray.learning.warm import WarmModels
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import Distillation, ModelSpec, StageSpec, Training
from kdtvit_ray.study.store import EpochCheckpoint
from tests.gpu.jobs import bits
from tests.gpu.outcomes import NeedsGpu, Skipped
from tests.gpu.setup import Setup, last_lines
from tests.ports import free_port

OUT_OF_MEMORY_BYTES = 1 << 29
"""What tensors of a stage get that must run out of it: less than weights, gradients and moments of a ViT-B take."""

LEFT_BEHIND = 1 << 26
"""Bytes that torch may hold more of after a second pass over the same stages, as it cuts memory into pieces."""


def cuda(setup: Setup) -> str:
    """A matrix product on the device against numpy's in float64."""
    random = np.random.default_rng(0)
    left, right = random.standard_normal((2, 512, 512))
    expected, found = left @ right, {}
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 5e-2)):
        a, b = (torch.from_numpy(each).to(setup.device, dtype) for each in (left, right))
        found[dtype] = float(np.abs((a @ b).double().cpu().numpy() - expected).max())
        assert found[dtype] < tolerance, f"a product in {dtype} is off by {found[dtype]:.2g}, over {tolerance:g}"
    return f"512 x 512 products off by {found[torch.float64]:.0e} in float64, {found[torch.float32]:.0e} in float32"


def _two(setup: Setup, job: str, **given: object) -> tuple[dict, dict]:
    if not setup.rehearsal and torch.cuda.device_count() < 2:
        raise Skipped("one GPU")
    port = free_port()
    jobs = [setup.start(job, rank=rank, port=port, **given) for rank in range(2)]
    try:
        return jobs[0].answer(), jobs[1].answer()
    finally:
        for each in jobs:
            each.end()


def all_reduce(setup: Setup) -> str:
    """Two processes with a GPU each add up a tensor (NCCL)."""
    answers = _two(setup, "reduced")
    for each in answers:
        assert each["found"] == [3.0, 3.0], f"1 + 2 is {each['found']}"
    return f"{answers[0]['backend']}: two processes agree on a sum of 2^20 numbers"


def workers(setup: Setup) -> str:
    """A stage on two GPUs against one."""
    spec = setup.taught()
    one, other = _two(setup, "shared", spec=spec.to_dict())
    assert one["bits"] == other["bits"], "the two workers hold different results"
    alone = setup.train(spec).predictions["probabilities"]
    apart = float(np.abs(np.array(one["probabilities"]) - alone).max())
    assert apart < 1e-3, f"probabilities differ by {apart:.2g} from those of one worker; allowed: 0.001"
    return f"probabilities within {apart:.1g} of one worker's"


def bf16(setup: Setup) -> str:
    """A stage in bfloat16 against the same in float32."""
    if not has_bfloat16(setup.device):
        raise (NeedsGpu if setup.rehearsal else Skipped)(f"{device_name(setup.device)} has no bfloat16")
    curves = [setup.train(setup.stage(epochs=12, dtype=dtype)).curves for dtype in ("float32", "bfloat16")]
    whole, half, before = curves[0][-1]["loss"], curves[1][-1]["loss"], curves[1][0]["loss"]
    assert half < before, f"the loss does not fall: {before:.4f} in the first epoch, {half:.4f} in the last"
    assert half != whole, "the loss is float32's to the last bit: bfloat16 was not used"
    assert abs(half / whole - 1) < 0.05, f"the last epoch's loss is {half:.4f}, in float32 {whole:.4f}; allowed: 5 %"
    return f"last epoch's loss {half:.4f}, in float32 {whole:.4f}"


def compiled(setup: Setup) -> str:
    """A compiled stage against an uncompiled one; and the same by kept code and compiled anew, with another stage
    compiled between."""
    if not setup.rehearsal and torch.cuda.get_device_capability(setup.device) < COMPILE_CAPABILITY:
        raise Skipped(f"stages are not compiled on {device_name(setup.device)}")
    spec, kept = setup.taught(), WarmModels()
    with patch.object(warm_models, "repaid", lambda *_: False):
        plain = setup.train(spec)
    with patch.object(warm_models, "repaid", lambda *_: True):
        first = setup.train(spec, models=kept)
        setup.train(setup.stage(1), models=kept)
        for how, models in (("with kept code", kept), ("compiled anew", WarmModels())):
            again = setup.train(spec, models=models)
            assert bits(first) == bits(again), f"the same stage, {how}, has other bits"
    apart = float(np.abs(first.predictions["probabilities"] - plain.predictions["probabilities"]).max())
    assert apart < 1e-2, f"compiled, probabilities differ by {apart:.2g}; allowed: 0.01"
    return f"three times the same bits; probabilities within {apart:.1g} of uncompiled"


def recorded(setup: Setup) -> str:
    """Stages of recorded steps against stages whose steps are launched kernel by kernel; and one whose steps wait for
    the device and so cannot be recorded, after which the process must be as before."""
    setup.needs_gpu()
    made: list[Any] = []
    record = RecordedSteps._record

    def counted(steps: RecordedSteps, *told: Any) -> Any:
        found = record(steps, *told)
        if isinstance(getattr(steps._step, "__self__", None), Run):  # else it is a teacher's, or an evaluation's
            made.append(found)
        return found

    def compare(spec: StageSpec, what: str) -> int:
        """How many recordings of its own steps a stage has made; its bits are those of a stage without any."""
        count = len(made)
        with patch.object(RecordedSteps, "_record", counted):
            ours = setup.train(spec)
        with no_recordings():
            assert bits(ours) == bits(setup.train(spec)), f"launched in {spec.numeric.dtype} {what}, it has other bits"
        return len(made) - count

    changes: tuple[dict[str, Any], ...] = (
        {},
        {"mixup": 0.2},
        {"ema": 0.9},
        {"trainable_blocks": 1},
        {"clip_grad": 0.0},
    )
    dtypes = ["float32"] + [setup.numeric.dtype] * (len(changes) - 1)
    for number, (change, dtype) in enumerate(zip(changes, dtypes, strict=True)):
        make = setup.stage if "mixup" in change else setup.taught
        spec = replace(make(number % 3, dtype=dtype, **change), warm="trainable_blocks" in change)
        assert compare(spec, f"with {change}"), f"no step was recorded in {dtype} with {change}"
    plain = setup.taught()
    for loss in Distillation.LOSSES:
        spec = replace(plain, distillation=Distillation(3.0, 0.7, loss))
        assert spec.model.head == "subtype", "two classes leave one that is not the label"
        assert compare(spec, f"with {loss}"), f"no step was recorded with {loss}"

    backward = Run._backward

    def waiting(run: Any, given: Any, batch: int) -> Any:
        found = backward(run, given, batch)
        found.sum().item()
        return found

    with patch.object(Run, "_backward", waiting):
        assert not compare(plain, "with steps that wait"), "a step that waits for the device was recorded"
    empty_caches()
    assert compare(plain, "after a failed recording"), "no step was recorded after a recording had failed"
    empty_caches()
    stages = len(changes) + len(Distillation.LOSSES) + 1
    told = f"{len(made)} recordings in {stages} stages, {' and '.join(sorted(set(dtypes)))}: the same bits"
    return f"{told}, also after a recording that failed"


def determinism(setup: Setup) -> str:
    """The same stage twice in one process."""
    dtypes = ["float32"] + ["bfloat16"] * has_bfloat16(setup.device)
    for dtype in dtypes:
        spec = setup.taught(dtype=dtype)
        assert bits(setup.train(spec)) == bits(setup.train(spec)), f"the same stage in {dtype} has other bits"
    return f"twice the same bits in {' and in '.join(dtypes)}"


def fractional(setup: Setup) -> str:
    """Two processes that share the GPU train a stage each at the same time."""
    meeting = setup.folder / "meeting"
    meeting.mkdir()
    specs = [setup.stage(0, epochs=6), setup.taught(1, epochs=6)]
    jobs = [
        setup.start("beside", spec=spec.to_dict(), share=share, meeting=str(meeting), me=str(share), processes=2)
        for spec, share in zip(specs, (0.5, 0.25), strict=True)
    ]
    try:
        answers = [each.answer() for each in jobs]
    finally:
        for each in jobs:
            each.end()
    for spec, answer in zip(specs, answers, strict=True):
        assert answer["bits"] == bits(setup.train(spec)), f"{spec.model.name}: other bits than alone"
    together = min(each["ended"] for each in answers) - max(each["started"] for each in answers)
    return f"0.5 and 0.25 of the memory, {max(together, 0):.1f} s side by side: the bits that each has alone"


def out_of_memory(setup: Setup) -> str:
    """Too large a stage is told as such, and the process goes on with a small one under the same cap."""
    setup.needs_gpu()
    spec, small = StageSpec((40,), ModelSpec("base", image_size=64), Training(epochs=2, batch=48)), setup.stage()
    share = (OUT_OF_MEMORY_BYTES + CONTEXT_BYTES) / torch.cuda.get_device_properties(setup.device).total_memory
    answer = setup.apart("starved", spec=spec.to_dict(), small=small.to_dict(), share=share)
    told = answer["told"]
    assert told, f"a ViT-B trained in {OUT_OF_MEMORY_BYTES >> 20} MiB"
    for wanted in (device_name(setup.device), "batch 48", "base", "image_size 64"):
        assert wanted in told, f"the message does not name {wanted}: {told}"
    assert answer["bits"] == bits(setup.train(small)), "the stage after it has other bits"
    return str(told)


def warm(setup: Setup) -> str:
    """Stages of a worker that has trained others before, of mixed architectures, against fresh processes; and whether
    they leave memory of the GPU behind."""
    specs = [setup.stage(0), setup.stage(2), setup.taught(1), setup.stage(1), setup.taught(0), setup.stage(2)]
    models, found, left = WarmModels(), {}, []
    for _ in range(2):
        for spec in specs:
            found[spec.key] = bits(setup.train(spec, models=models))
        empty_caches()
        left.append(0 if setup.rehearsal else torch.cuda.memory_reserved(setup.device))
    more = left[1] - left[0]
    assert more <= LEFT_BEHIND, f"a second pass over {len(specs)} stages leaves {more >> 20} MiB of the GPU behind"
    compared = [specs[4], specs[5]]
    for spec in compared:
        fresh = setup.apart("stage", spec=spec.to_dict())["bits"]
        assert found[spec.key] == fresh, f"{spec.model.name} {spec.model.args}: other bits than in a fresh process"
    return f"{len(left) * len(specs)} stages of 3 architectures in one process; the last two as in fresh ones"


def pixels(setup: Setup) -> str:
    """Batches of pixels that lie on the device against those that the host gathers and copies, and against numpy's."""
    stored = setup.small.pixels(setup.sizes.small_side, "none")
    model, random, images = build(setup.models[0], 0), np.random.default_rng(0), setup.small.prepared.images
    stored.make(np.arange(len(images)))
    on_device = DevicePixels(stored, setup.device)
    count = 0
    for training in (Training(), Training(stain="hed", variants=2, zoom=0.2)):
        variants = Variants(training, 0, setup.device)
        near, far = (Feed(stored, model, 32, setup.device, variants) for _ in range(2))
        for size in (32, 31, 32, 1):
            rows = random.integers(len(images), size=size)
            views = random.integers(training.all_views, size=size)
            with COPIES.closed():
                expected = far(rows, views)
            assert torch.equal(near(rows, views), expected), f"a batch of {size} images differs"
            square = views % 8
            turns = np.stack([turned(images[row : row + 1], view)[0] for row, view in zip(rows, square, strict=True)])
            assert np.array_equal(on_device.gather(rows, square).cpu().numpy(), turns), "pixels on the device differ"
            count += size
    if not setup.rehearsal:
        assert COPIES.of(stored, setup.device, near) is not None, "pixels found no room on the device"
    return f"{count} images, with and without variants, are the same bits either way"


def resume(setup: Setup) -> str:
    """A process is killed inside a stage, and the stage goes on from its checkpoint."""
    spec, study = setup.taught(epochs=24), StudyFolder(str(setup.folder / "killed"))
    job = setup.start("killed", spec=spec.to_dict(), study=study.location)
    try:
        assert job.process.stdout is not None
        for line in job.process.stdout:
            if line.strip() == "3":
                break
        job.process.kill()
        job.process.wait()
    finally:
        job.end()
    assert job.process.returncode == -signal.SIGKILL, f"the process ended by itself: {last_lines(job.log)}"
    epochs = []

    def told(progress: Progress) -> bool:
        epochs.append(progress.epoch)
        return True

    resumed = setup.train(spec, checkpoint=EpochCheckpoint(study, spec.key, 1e9), on_epoch=told)
    assert epochs[0] > 1, "the stage began again at its first epoch"
    assert bits(resumed) == bits(setup.train(spec)), "the resumed stage has other bits"
    return f"killed after a checkpoint, gone on with epoch {epochs[0]} of {spec.training.epochs}: the same bits"


CHECKS = {
    "cuda": cuda,
    "all-reduce": all_reduce,
    "workers": workers,
    "bf16": bf16,
    "compile": compiled,
    "recorded": recorded,
    "determinism": determinism,
    "fractional": fractional,
    "out-of-memory": out_of_memory,
    "warm": warm,
    "pixels": pixels,
    "resume": resume,
}
