"""Worker groups: Ray Train runs that stay up and pull stages from the coordinator.

`run_group` is a Ray task without a CPU of its own that holds one `TorchTrainer.fit()`; Ray Train places the workers,
sets up the process group (NCCL on GPUs, gloo on CPUs) and restarts them when one dies. `serve` is the loop inside each
worker: rank 0 asks for a stage and broadcasts the answer, all ranks train it, rank 0 saves it.
"""

import logging
import platform
import threading
import time
import traceback
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import ray

from kdtvit_ray.errors import OutOfMemory, StageFailed, StorageLost, UserError, first_line
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.study.stage_results import summary_of
from kdtvit_ray.study.store import DamagedStage, EpochCheckpoint, StageStore

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
PARENTS_KEPT = 4
CPU_SHARE = 0.95
"""Of the CPU that a worker uses; the rest leaves room for the trials' own tiny shares."""


def run_group(name: str, config: Mapping[str, Any]) -> str:
    """Run one worker group until it is told to stop. Returns its name. Runs inside a Ray task without a CPU."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = config["gpus_per_worker"]
    resources = {"CPU": CPU_SHARE, **({"GPU": gpus} if gpus else {})}
    folder = StudyFolder(config["location"])
    trainer = TorchTrainer(
        serve,
        train_loop_config={**config, "group": name},
        # a group of one reduces nothing, so it needs no NCCL, which several groups on one GPU would each pay for
        torch_config=TorchConfig(backend="gloo" if config["workers"] == 1 else None),
        scaling_config=ScalingConfig(num_workers=config["workers"], use_gpu=bool(gpus), resources_per_worker=resources),
        run_config=RunConfig(
            name=f"group-{name}-{uuid.uuid4().hex[:8]}",
            storage_path=folder.path(folder.tune),
            storage_filesystem=folder.fs,
            # the coordinator counts the deaths in a stage; the group itself comes back as often as it takes
            failure_config=FailureConfig(max_failures=1000, controller_failure_limit=10),
        ),
    )
    trainer.fit()
    return name


def serve(config: dict[str, Any]) -> None:
    """The loop of one worker (`train_loop_per_worker`): run stages until the coordinator says stop."""
    import ray.train

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    worker = config.get("worker", StageWorker)(config, rank, world)
    try:
        while worker.work():
            pass
    finally:
        worker.close()


class StageWorker:
    """One rank of a worker group: what it keeps warm between stages, and the conversation about them."""

    def __init__(self, config: Mapping[str, Any], rank: int, world: int) -> None:
        self.config, self.rank, self.world = config, rank, world
        self.name = config["group"]
        self.incarnation = uuid.uuid4().hex
        self.coordinator = config["coordinator"]
        self.store = StageStore(StudyFolder(config["location"], config["pauses"]))
        self.node = platform.node()
        self.after = ""
        self.key = ""
        self._data: dict[Any, Any] = {}
        self._parents: OrderedDict[str, Any] = OrderedDict()
        self._closed = threading.Event()
        reserved = ray.util.get_current_placement_group()
        self.placement_group = reserved.id.hex() if reserved else ""
        if rank == 0:
            threading.Thread(target=self._beat, daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def work(self) -> bool:
        """Ask for a stage and run it. Returns False when there is nothing more to do, ever."""
        order = self._agree(self._ask() if self.rank == 0 else None)
        if order["action"] == "run":
            self._run(order)
        elif order["action"] == "stop":
            self.close()
            if self.rank == 0:
                ray.get(self.coordinator.gone.remote(self.name))
            return False
        return True

    # -- conversation (rank 0) -------------------------------------------------------------------------------------

    def _ask(self) -> dict[str, Any]:
        return self._call("next_stage", self.node, self.world, self.after, self.placement_group)

    def _call(self, method: str, *arguments: Any) -> Any:
        remote = getattr(self.coordinator, method)
        return ray.get(remote.remote(self.name, self.incarnation, *arguments))

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            try:
                self._call("heartbeat", self.key, self.world, self.node, self.placement_group)
            except ray.exceptions.RayError as error:
                log.warning("The coordinator does not answer: %s", error)

    def _agree(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    # -- one stage -------------------------------------------------------------------------------------------------

    def _run(self, order: Mapping[str, Any]) -> None:
        key = self.key = order["key"]
        try:
            measured = self._train(order)
        except (StageFailed, UserError) as error:
            log.warning("Stage %s failed: %s", key, error)
            if self.world > 1 and isinstance(error, OutOfMemory | UserError):
                # it may have happened to this rank alone, and the others, rank 0 among them, wait in a collective call:
                # only a restart frees them
                ray.get(self.coordinator.fail.remote(self.name, key, str(error)))
                raise
            self._say("failed", key, str(error))
        except DamagedStage as error:
            ray.get(self.coordinator.damaged.remote(self.name, key, error.key, error.reason))
            if self.world > 1:
                raise  # as above
        except StorageLost as error:
            ray.get(self.coordinator.lost_storage.remote(str(error)))
            if self.world > 1:
                raise  # as above
            self._say("abandoned", key)
        except (MemoryError, RuntimeError, ValueError, KeyError, TypeError, AssertionError, OSError) as error:
            log.error("Stage %s failed:\n%s", key, traceback.format_exc())
            reason = f"{type(error).__name__}: {first_line(error)}"
            if self.world > 1 or _is_of_the_device(error):
                # the other ranks may be waiting in a collective call, or the device answers nothing else any more: only
                # a restart helps
                ray.get(self.coordinator.last_error.remote(self.name, reason))
                raise
            self._say("failed", key, reason)
        else:
            if measured is None:
                self._say("abandoned", key)
            else:
                self._say("finished", key, measured)
                self.after = key
        finally:
            self.key = ""

    def _say(self, method: str, *arguments: Any) -> None:
        if self.rank == 0:
            self._call(method, *arguments)

    def _train(self, order: Mapping[str, Any]) -> dict[str, Any] | None:
        """Train, evaluate and save one stage. Returns what the coordinator wants to know; None when told to stop."""
        from kdtvit_ray.learning.stage import Parent, train_stage
        from kdtvit_ray.study.stage_results import stage_record

        spec = StageSpec.from_dict(order["spec"])
        key = order["key"]
        started = time.time()
        stored = self._agree(self._stored(order) if self.rank == 0 else None)
        if stored:  # finished by a group that was thought dead
            return stored
        data = self._stage_data(spec)
        parent = None
        if spec.parent:
            parent_spec = StageSpec.from_dict(order["parent"])
            parent = Parent(parent_spec, self._parent_state(spec.parent))
        checkpoint = EpochCheckpoint(self.store.folder, key, self.config["checkpoint_seconds"])
        spec = self._located(spec)
        result = train_stage(
            spec, data, parent,
            checkpoint=checkpoint, on_epoch=self._on_epoch, teacher_outputs=self._teacher_outputs,
            rank=self.rank, world=self.world,
        )  # fmt: skip
        if result is None:
            return None
        self._keep(key, result.state)
        if self.rank != 0:
            return {}
        about, predictions = stage_record(spec, result, data)
        about |= {
            "group": self.name, "host": self.node, "workers": self.world, "started": started, "finished": time.time(),
        }  # fmt: skip
        self.store.save(key, about, result.state, predictions)
        checkpoint.clear()
        return summary_of(about)

    def _stored(self, order: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the stage measured, where it is on storage and can be read."""
        if order.get("again") or not self.store.has(order["key"]):
            return None
        try:
            return summary_of(self.store.about(order["key"]))
        except DamagedStage:
            return None

    def _on_epoch(self, progress: Any) -> bool:
        go_on = True
        if self.rank == 0:
            go_on = self._call("progress", self.key, progress.epoch, progress.epochs)
        return self._agree(go_on)

    @cached_property
    def _teacher_outputs(self) -> Any:
        from kdtvit_ray.learning.stage import TeacherOutputs

        return TeacherOutputs()

    def _stage_data(self, spec: StageSpec) -> Any:
        from kdtvit_ray.data.cache import local_copy
        from kdtvit_ray.learning.stage import StageData

        if spec.data not in self._data:
            source = self.config["data"], spec.data.fingerprint, self.config["published"]
            what = f"Copying the prepared set to {self.node}"
            here = self.store.folder.patiently(what, lambda: local_copy(*source))
            self._data[spec.data] = StageData(here, spec.data)
        return self._data[spec.data]

    def _parent_state(self, key: str) -> Any:
        if key not in self._parents:
            self._keep(key, self.store.state(key))
        self._parents.move_to_end(key)
        return self._parents[key]

    def _keep(self, key: str, state: Any) -> None:
        self._parents[key] = state
        while len(self._parents) > PARENTS_KEPT:
            self._parents.popitem(last=False)

    def _located(self, spec: StageSpec) -> StageSpec:
        """The same stage with its weights file where this node has it; the path is no part of the key."""
        from kdtvit_ray.data.cache import local_file

        path = self.config["weights"].get(spec.model.digest)
        if path is None:
            return spec
        source = path, spec.model.digest, self.config["published_weights"]
        here = self.store.folder.patiently(f"Copying {path} to {self.node}", lambda: local_file(*source))
        return replace(spec, model=replace(spec.model, weights=str(here)))


def _is_of_the_device(error: Exception) -> bool:
    """Whether the accelerator itself failed: what this process asks of it next would fail as well."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
