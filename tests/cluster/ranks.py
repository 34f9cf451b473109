"""A worker group of real ranks without Ray: processes that train together by gloo, with the real worker in them, and a
real coordinator that they talk to. What Ray Train does is done here: a group of which one rank dies is restarted."""

import asyncio
import multiprocessing
import threading
import time
import types
from multiprocessing.managers import BaseManager

import torch
import torch.distributed as dist

from kdtvit_ray.cluster import workers
from kdtvit_ray.cluster.coordinator import Coordinator
from kdtvit_ray.learning import stage  # noqa: F401  imported before the ranks are forked, which then start at once
from kdtvit_ray.learning.team import Team
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.study import stage_results  # noqa: F401
from kdtvit_ray.study.store import StageStore

RANKS = 2


class Served:
    """A coordinator whose coroutines are called from other processes."""

    def __init__(self, *arguments, **settings):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.coordinator = self._run(self._made(arguments, settings))

    async def _made(self, arguments, settings):
        return Coordinator(*arguments, **settings)

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def call(self, method, *arguments):
        return self._run(getattr(self.coordinator, method)(*arguments))

    def repairs(self):
        return dict(self.coordinator._finished.repairs)


class Manager(BaseManager):
    pass


Manager.register("Served", Served)


class Actor:
    """A served coordinator with an actor's face: `actor.method.remote(...)`."""

    def __init__(self, served):
        self._served = served

    def __getattr__(self, method):
        return types.SimpleNamespace(remote=lambda *arguments: self._served.call(method, *arguments))


def rank_main(rank, store, config, served, fault):
    """One rank: the loop of `kdtvit_ray.cluster.workers.serve`, with a fault."""
    torch.set_num_threads(1)
    workers.ray = types.SimpleNamespace(
        get=lambda answer: answer,
        util=types.SimpleNamespace(get_current_placement_group=lambda: None),
        get_runtime_context=lambda: types.SimpleNamespace(get_node_id=lambda: "here"),
        exceptions=types.SimpleNamespace(RayError=ConnectionError),
    )
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=RANKS)
    if fault:
        fault(rank)
    worker = workers.StageWorker({**config, "coordinator": Actor(served)}, Team(rank, RANKS))
    if worker.greet():
        while worker.work():
            pass
    worker.close()


class Group:
    """Runs trials with one group of `RANKS` ranks. `faults` has one callable for each start of the group, called with
    the rank in each of its processes before the work begins; the starts after these have none."""

    def __init__(self, folder, bound, faults=(), pauses=(0.01,), before_restart=None):
        self.folder = folder
        self.store = StageStore(StudyFolder(str(folder)))
        self.faults, self.before_restart = list(faults), before_restart
        self.starts = 0
        self.config = {
            "group": "1",
            "location": str(folder),
            "pauses": pauses,
            "checkpoint_seconds": 0.0,
            "data": bound.data["path"],
            "published": "",
            "weights": {},
            "published_weights": "",
            "gpus_per_worker": 0.0,
            "stages": "",
            "mix_devices": True,
            "study": "",
            "sample": bound.space.plan({})[0],
        }
        self.spawn = multiprocessing.get_context("forkserver")
        self.spawn.set_forkserver_preload(["tests.cluster.ranks"])
        self.manager = Manager(ctx=self.spawn)
        self.manager.start()
        self.served = self.manager.Served(str(folder), bound.space.study["metric"], pauses=pauses)

    def outcomes(self, asks):
        """The outcome of each stage of these trials, up to the first that is not done. The group ends before it is told
        what the last one is, or is stopped then."""
        for ask in asks:
            self.served.call("join", ask.trial, ask.stages, ask.labels)
        watching = threading.Thread(target=self._keep_running, daemon=True)
        watching.start()
        found = {ask.trial: self._of(ask) for ask in asks}
        self.served.call("drain")
        watching.join()
        return found

    def _of(self, ask):
        found = []
        for index in range(len(ask.stages)):
            while (outcome := self.served.call("result", ask.trial, index)).state == "waiting":
                pass
            found.append(outcome)
            if outcome.state != "done":
                break
        return found

    def _keep_running(self):
        """Start the group, and again when a rank has died, as Ray Train does, until all ranks end by themselves."""
        while True:
            fault = self.faults.pop(0) if self.faults else None
            self.starts += 1
            store = self.folder / f"rendezvous-{self.starts}"
            ranks = [
                self.spawn.Process(target=rank_main, args=(rank, store, self.config, self.served, fault), daemon=True)
                for rank in range(RANKS)
            ]
            for each in ranks:
                each.start()
            while any(each.is_alive() for each in ranks) and not any(each.exitcode for each in ranks):
                time.sleep(0.02)
            died = any(each.exitcode for each in ranks)
            for each in ranks:
                each.kill()
                each.join()
            if not died:
                return
            if self.before_restart:
                self.before_restart(self.starts)

    def close(self):
        self.manager.shutdown()
