"""What runs in a process of its own: `python -m tests.gpu.jobs NAME FILE`; FILE holds the arguments as JSON, and the
answer is the last line of stdout."""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from kdtvit_ray.errors import OutOfMemory
from kdtvit_ray.learning.models import content_digest
from kdtvit_ray.learning.numeric import cap_memory, empty_caches
from kdtvit_ray.learning.outcome import Progress, StageResult
from kdtvit_ray.learning.stage import train_stage
from kdtvit_ray.learning.team import ALONE, Team
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.study.store import EpochCheckpoint
from tests.gpu.setup import opened, parent_of


def bits(result: StageResult) -> str:
    """Digest of a stage's weights, predictions and curves: equal where all bits are."""
    content = hashlib.blake2b(content_digest(result.state).encode(), digest_size=16)
    for name in sorted(result.predictions):
        content.update(np.ascontiguousarray(result.predictions[name]).tobytes())
    content.update(json.dumps(result.curves).encode())
    return content.hexdigest()


def trained(given: dict[str, Any], team: Team = ALONE, device: str = "", **more: Any) -> StageResult:
    spec = StageSpec.from_dict(given["spec"])
    device = device or given["device"]
    result = train_stage(spec, opened(Path(given["data"])), parent_of(spec), device=device, team=team, **more)
    assert result is not None
    return result


def stage(given: dict[str, Any]) -> dict[str, Any]:
    """Train one stage in this fresh process."""
    return {"bits": bits(trained(given))}


def beside(given: dict[str, Any]) -> dict[str, Any]:
    """Train a stage on a `share` of the GPU, while another process does so."""
    cap_memory(given["share"], torch.device(given["device"]))
    wait_for_others(given)
    started = time.time()
    return {"bits": bits(trained(given)), "started": started, "ended": time.time()}


def starved(given: dict[str, Any]) -> dict[str, Any]:
    """Train a stage that is too large for a `share` of the GPU, then a `small` one."""
    cap_memory(given["share"], torch.device(given["device"]))
    told = ""
    try:
        trained(given)
    except OutOfMemory as error:
        told = str(error)
    empty_caches()  # as a worker does after it
    return {"told": told, "bits": bits(trained({**given, "spec": given["small"]}))}


def wait_for_others(given: dict[str, Any]) -> None:
    """Wait until all processes that share the folder `meeting` are here."""
    meeting = Path(given["meeting"])
    (meeting / given["me"]).touch()
    while len(list(meeting.iterdir())) < given["processes"]:
        time.sleep(0.005)


def killed(given: dict[str, Any]) -> dict[str, Any]:
    """Train with a checkpoint after each epoch, and say so after each of them, to be killed in one."""

    def told(progress: Progress) -> bool:
        print(progress.epoch, flush=True)
        return True

    spec = StageSpec.from_dict(given["spec"])
    trained(given, checkpoint=EpochCheckpoint(StudyFolder(given["study"]), spec.key, 0.0), on_epoch=told)
    return {}


def _joined(given: dict[str, Any]) -> tuple[Team, str]:
    rank, device = given["rank"], given["device"]
    if device.startswith("cuda"):
        device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, f"tcp://127.0.0.1:{given['port']}", rank=rank, world_size=2)
    return Team(rank, 2), device


def reduced(given: dict[str, Any]) -> dict[str, Any]:
    """Sum a tensor over two processes, each with a device of its own."""
    team, device = _joined(given)
    values = torch.full((1 << 20,), float(team.rank + 1), device=device)
    team.add_up(values)
    found = [values.min().item(), values.max().item()]
    dist.destroy_process_group()
    return {"found": found, "backend": "nccl" if device.startswith("cuda") else "gloo"}


def shared(given: dict[str, Any]) -> dict[str, Any]:
    """Train a stage as one of two workers."""
    team, device = _joined(given)
    result = trained(given, team, device)
    dist.destroy_process_group()
    return {"bits": bits(result), "probabilities": result.predictions["probabilities"].tolist()}


def set_ups(given: dict[str, Any]) -> dict[str, Any]:
    """Seconds that a stage takes before it trains at its pace, of two that build their model anew and of a warm one."""
    from tests.gpu.figures import set_up_seconds

    return set_up_seconds(given)


def student(given: dict[str, Any]) -> dict[str, Any]:
    """Train a small student on a `share` of the GPU, while others do so."""
    from tests.gpu.students import beside_others

    return beside_others(given)


JOBS = {each.__name__: each for each in (stage, beside, starved, killed, reduced, shared, set_ups, student)}


def main() -> None:
    name, file = sys.argv[1:]
    print(json.dumps(JOBS[name](json.loads(Path(file).read_text()))))


if __name__ == "__main__":
    main()
