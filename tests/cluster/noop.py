"""Stages that cost nothing: the whole orchestration with real Ray, without data, torch or training."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdtvit_ray.cluster.workers import StageWorker
from kdtvit_ray.errors import StageFailed
from kdtvit_ray.recipe import StageSpec
from tests.study.made_stages import about_of, bound, space


class NoopWorker(StageWorker):
    """Sleeps for `NOOP_SECONDS` an epoch instead of training; logs each stage that it finishes to `NOOP_LOG`."""

    def _train(self, order: Any) -> Any:
        from kdtvit_ray.study.stage_results import summary_of
        from kdtvit_ray.study.store import EpochCheckpoint

        spec = StageSpec.from_dict(order["spec"])
        stored = self._agree(self._stored(order) if self.rank == 0 else None)
        if stored:
            return stored
        self._fault(spec)
        checkpoint = EpochCheckpoint(self.store.folder, spec.key, 0.0)
        pause = float(os.environ.get("NOOP_SECONDS", "0"))
        if pause:
            first = int(checkpoint.load() or b"0")
            for epoch in range(first + 1, spec.training.epochs + 1):
                time.sleep(pause)
                checkpoint.save(str(epoch).encode())
                if not self._on_epoch(type("Progress", (), {"epoch": epoch, "epochs": spec.training.epochs})):
                    return None
        about = {**about_of(spec), "group": self.name, "host": self.node}
        if self.rank == 0:
            log = os.environ.get("NOOP_LOG")
            if log:
                with Path(log).open("a") as file:
                    file.write(json.dumps([spec.key, self.name, os.getpid()]) + "\n")
            self.store.save(spec.key, about, _ballast(), pa.table({"image": pa.array([], pa.int32())}))
            checkpoint.clear()
        return summary_of(about)

    def _fault(self, spec: StageSpec) -> None:
        """Stages distilled with alpha `NOOP_FAILS` fail, those with `NOOP_DIES` take the process down, always."""
        alpha = str(spec.distillation.alpha) if spec.distillation else ""
        if alpha and alpha == os.environ.get("NOOP_FAILS"):
            raise StageFailed("the loss is not finite at step 7")
        if alpha and alpha == os.environ.get("NOOP_DIES"):
            with Path(os.environ["NOOP_LOG"] + ".deaths").open("a") as file:
                file.write(spec.key + "\n")
            os._exit(9)


def _ballast() -> dict[str, Any]:
    """Weights of `NOOP_BYTES` bytes, none by default."""
    size = int(os.environ.get("NOOP_BYTES", "0"))
    if not size:
        return {}
    import torch

    return {"ballast": torch.zeros(size, dtype=torch.uint8)}


def main() -> int:
    """`python -m tests.cluster.noop OUT '{"trials": 20}' '{"groups": 2}'`: a sweep of no-op stages in a process."""
    import sys

    from rich.console import Console

    from kdtvit_ray.cluster.driver import sweep
    from kdtvit_ray.cluster.options import Options
    from kdtvit_ray.errors import UserError

    out, study, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    try:
        return sweep(
            bound(space(**study)), Options(out=out, data="/nowhere", worker=NoopWorker, **options), Console(width=100)
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
