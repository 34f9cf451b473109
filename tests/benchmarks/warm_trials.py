"""What orchestration adds to a trial: no-op stages through the whole sweep, against trivial trials of Ray Tune alone.

Both run 8 trials at once with reused actors. Start-up is left out on both sides: the time between the first and the
last trial that ended is divided by the trials between.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
from rich.console import Console

from kdtvit_ray.cluster.driver import sweep
from kdtvit_ray.cluster.environment import RAY_ENVIRONMENT
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.rows import read_trials
from tests.cluster.noop import NoopWorker
from tests.study.made_stages import bound, space

TRIALS = int(os.environ.get("BENCH_TRIALS", "200"))

PEER = f"""
import os, time
from ray import tune
import ray
ray.init("local", include_dashboard=False, log_to_driver=False)
class Trivial(tune.Trainable):
    def setup(self, config): self.count = 0
    def reset_config(self, config): self.count = 0; return True
    def step(self):
        self.count += 1
        return {{"objective": 0.5, "ended": time.time(), "done": self.count == 4}}
    def save_checkpoint(self, folder): return None
    def load_checkpoint(self, checkpoint): return None
results = tune.Tuner(
    tune.with_resources(Trivial, {{"cpu": 0.001}}),
    param_space={{"x": tune.uniform(0, 1)}},
    tune_config=tune.TuneConfig(num_samples={TRIALS}, max_concurrent_trials=8, reuse_actors=True),
    run_config=tune.RunConfig(verbose=0, storage_path=os.environ["PEER_FOLDER"],
                              checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)),
).fit()
ended = sorted(time for time in (results[i].metrics.get("ended", 0) for i in range(len(results))) if time)
"""


class Memory(threading.Thread):
    """Resident memory of the coordinator's process, MB, once a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: list[float] = []
        self.closing = threading.Event()

    def run(self) -> None:
        while not self.closing.wait(1.0):
            told = subprocess.run(["pgrep", "-f", "ray::CoordinatorActor"], capture_output=True, text=True, check=False)
            for pid in told.stdout.split():
                status = Path(f"/proc/{pid}/status")
                lines = status.read_text().splitlines() if status.exists() else []
                self.found += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")]


def ours() -> tuple[pd.Series, Memory]:
    """When each trial ended (unix seconds, sorted), and the coordinator's memory."""
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory()
        memory.start()
        study = space(trials=TRIALS, sampler="random", lag=8, baselines=[])
        options = Options(out=f"{folder}/study", worker=NoopWorker, groups=2)
        with Path(os.devnull).open("w") as nowhere:
            sweep(bound(study), options, Console(file=nowhere))
        memory.closing.set()
        return read_trials(StudyFolder(f"{folder}/study"))["finished"].sort_values(ignore_index=True), memory


def theirs() -> list[float]:
    """When each trivial trial of Tune alone ended."""
    with tempfile.TemporaryDirectory() as folder:
        script = PEER + "print('ENDED', *ended)\n"
        environment = {**os.environ, **RAY_ENVIRONMENT, "PEER_FOLDER": folder}
        environment.pop("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS")  # its results are read back from its own files
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("ENDED"))
        return [float(each) for each in line.split()[1:]]


def main() -> None:
    started = time.time()
    ended, memory = ours()
    per_trial = (ended.iloc[-1] - ended.iloc[8]) / (len(ended) - 9)
    part = min(100, len(ended) // 4)
    first = (ended.iloc[8 + part] - ended.iloc[8]) / part
    last = (ended.iloc[-1] - ended.iloc[-1 - part]) / part
    print(
        f"  {len(ended)} trials of 4 no-op stages: {per_trial:.3f} s each (first {part}: {first:.3f}, last: {last:.3f})"
    )
    print(f"  first trial {ended.iloc[0] - started:.0f} s after the start")
    if memory.found:
        third = len(memory.found) // 3
        print(
            f"  coordinator {memory.found[third]:.0f} MB after a third of the time, {memory.found[-1]:.0f} MB at last"
        )
    alone = theirs()
    peer = (alone[-1] - alone[8]) / (len(alone) - 9)
    print(f"  Ray Tune alone, 4 reports a trial, reused actors: {peer:.3f} s a trial; ratio {per_trial / peer:.2f}")


if __name__ == "__main__":
    main()
