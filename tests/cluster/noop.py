"""Stages that cost nothing: the whole orchestration with real Ray, without data, torch or training."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdtvit_ray.cluster.messages import Work
from kdtvit_ray.cluster.probe import Probe, probe
from kdtvit_ray.cluster.workers import StageWorker
from kdtvit_ray.errors import OutOfMemory, StageFailed
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.stage_record import StageSummary
from kdtvit_ray.study.store import EpochCheckpoint
from tests.study import made_stages


class NoopWorker(StageWorker):
    """Sleeps for `NOOP_SECONDS` an epoch instead of training, and for `NOOP_SAVE_SECONDS` before it saves a stage; logs
    each stage to `NOOP_LOG` when it is saved."""

    def _probe(self) -> Probe:
        """Without the device: a cluster's GPUs may be such in Ray's books only. Where `NOOP_NEVER_STARTS` is set it
        raises that."""
        if told := os.environ.get("NOOP_NEVER_STARTS"):
            raise RuntimeError(told)
        return probe(self.place, self.config["sample"], self.config["data"])

    def _train(self, work: Work) -> Callable[[], StageSummary] | None:
        import torch.distributed as dist

        assert dist.is_initialized() != self.team.alone, "one worker has nobody to talk to"
        spec = work.spec
        self._fault_of_spec(spec)
        self._fault_of_one_rank(spec)
        checkpoint = EpochCheckpoint(self.store.folder, spec.key, 0.0)
        pause = float(os.environ.get("NOOP_SECONDS", "0"))
        if pause:
            first = int(checkpoint.load() or b"0")
            for epoch in range(first + 1, spec.training.epochs + 1):
                time.sleep(pause)
                self._wait_for_the_others()
                checkpoint.save(str(epoch).encode())
                now = type("Progress", (), {"epoch": epoch, "epochs": spec.training.epochs})
                if not self.team.agree(self._on_epoch(now)):
                    return None
        record = replace(made_stages.record(spec), group=self.name, host=self.node, study=self.config["study"])

        def put() -> StageSummary:
            self._fault_of_saving()
            self.store.save(record, _ballast(), pa.table({"image": pa.array([], pa.int32())}))
            log = os.environ.get("NOOP_LOG")
            if log:
                with Path(log).open("a") as file:
                    file.write(json.dumps([spec.key, self.name, os.getpid()]) + "\n")
            checkpoint.clear()
            return record.summary()

        return put

    def _fault_of_saving(self) -> None:
        """The process dies once while it saves a stage, if `NOOP_DIES_SAVING` names a file, which is made then."""
        time.sleep(float(os.environ.get("NOOP_SAVE_SECONDS", "0")))
        mark = os.environ.get("NOOP_DIES_SAVING")
        if mark and not Path(mark).exists():
            Path(mark).touch()
            os._exit(9)

    def _wait_for_the_others(self) -> None:
        """As in training, where every step adds up what the ranks have computed."""
        if not self.team.alone:
            import torch

            self.team.add_up(torch.zeros(1))

    def _fault_of_spec(self, spec: StageSpec) -> None:
        """Stages distilled with alpha `NOOP_FAILS` fail, those with `NOOP_DIES` take the process down, always; where
        `NOOP_SICK` is set every stage fails."""
        if os.environ.get("NOOP_SICK"):  # of a node on which nothing works
            raise RuntimeError(f"{os.environ['NOOP_SICK']} is broken")
        alpha = str(spec.distillation.alpha) if spec.distillation else ""
        if alpha and alpha == os.environ.get("NOOP_FAILS"):
            raise StageFailed("the loss is not finite at step 7")
        if alpha and alpha == os.environ.get("NOOP_DIES"):
            with Path(os.environ["NOOP_LOG"] + ".deaths").open("a") as file:
                file.write(spec.key + "\n")
            os._exit(9)

    def _fault_of_one_rank(self, spec: StageSpec) -> None:
        """The last rank of a group of several has no memory for alpha `NOOP_LACKS_MEMORY`, and meets an error of its
        device at alpha `NOOP_BREAKS`, always."""
        alpha = str(spec.distillation.alpha) if spec.distillation else ""
        if alpha and self.team.rank == self.team.size - 1:
            if alpha == os.environ.get("NOOP_LACKS_MEMORY"):
                raise OutOfMemory("Out of memory on one rank")
            if alpha == os.environ.get("NOOP_BREAKS"):
                raise RuntimeError("device-side assert")


def _ballast() -> dict[str, Any]:
    """Weights of `NOOP_BYTES` bytes, none by default."""
    size = int(os.environ.get("NOOP_BYTES", "0"))
    if not size:
        return {}
    import torch

    return {"ballast": torch.zeros(size, dtype=torch.uint8)}


def main() -> int:
    """`python -m tests.cluster.noop OUT '{"trials": 20}' '{"groups": 2}'`: a sweep of no-op stages in a process, with
    `NOOP_OPEN` trials open at once at least."""
    import sys

    from rich.console import Console

    from kdtvit_ray.cluster import tuner
    from kdtvit_ray.cluster.driver import sweep
    from kdtvit_ray.cluster.options import Options
    from kdtvit_ray.errors import Away, UserError

    tuner.LEAST_OPEN = int(os.environ.get("NOOP_OPEN", tuner.LEAST_OPEN))
    out, study, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    try:
        return sweep(
            made_stages.bound(made_stages.space(**study)),
            Options(out=out, worker=NoopWorker, **options),
            Console(width=100),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 75 if isinstance(error, Away) else 2


if __name__ == "__main__":
    raise SystemExit(main())
