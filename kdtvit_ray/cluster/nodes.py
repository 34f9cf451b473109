"""The nodes of the cluster as the driver sees them: which live, which of them were found fit, which are set aside.

Before a worker group may run on a node of a cluster, a task looks around there (`probe`). A node without this package
answers with an error, which tells why it is set aside.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from kdtvit_ray.cluster.probe import Expected, Probe, differences, mismatch, probe
from kdtvit_ray.errors import first_line

NODE_ID = "ray.io/node-id"
"""Ray's label of every node."""
PROBE_SECONDS = 300.0
"""Seconds after which a node that has not answered is set aside."""
PATIENCE_SECONDS = 60.0
"""Seconds that groups are not started because a node has not answered yet."""
log = logging.getLogger(__name__)


class Nodes:
    """`aside` holds the reasons by Ray's id. Nodes are probed on a cluster, at `address`; the node of a Ray that was
    started for the study alone is fit as long as its stages do not show the opposite."""

    def __init__(self, expected: Expected, data: str, address: str) -> None:
        self.expected, self.data, self.probes = expected, data, bool(address)
        self.aside: dict[str, str] = {}
        self.living: dict[str, str] = {}
        """Host of each node that lives, by Ray's id."""
        self.differing: dict[str, str] = {}
        """In which versions a host differs from the driver's."""
        self.hosts: dict[str, str] = {}
        """Host of each node that has ever been seen."""
        self._resources: dict[str, Mapping[str, float]] = {}
        self._asked: dict[str, tuple[Any, float]] = {}
        self._fit: set[str] = set()
        self._twice: set[str] = set()
        """Nodes that were asked again, since the first probe broke off."""

    def look(self) -> None:
        """See which nodes live, probe those that are new, and take up what the probes have found."""
        import ray

        alive = [each for each in ray.nodes() if each["Alive"]]
        self.living = {each["NodeID"]: each["NodeManagerHostname"] for each in alive}
        self.hosts |= self.living
        self._resources = {each["NodeID"]: each["Resources"] for each in alive}
        for node in self.living.keys() - self._fit - self.aside.keys():
            if not self.probes:
                self._fit.add(node)
            elif node not in self._asked:
                self._ask(node)
            else:
                self._take_up(node)

    def settle(self) -> None:
        """Wait until every node that lives has been probed, `PATIENCE_SECONDS` at most."""
        end = time.monotonic() + PATIENCE_SECONDS
        self.look()
        while self.asking and time.monotonic() < end:
            time.sleep(0.1)
            self.look()

    def set_aside(self, aside: Mapping[str, str]) -> None:
        """Nodes that stages have shown to be unfit."""
        for node, reason in aside.items():
            if node not in self.aside:
                log.error("The node %s (%s) is set aside: %s", self.hosts.get(node, "?"), node, reason)
                self.aside[node] = reason

    @property
    def unfit(self) -> set[str]:
        """Nodes that no group may run on, as far as is known now."""
        return (self.living.keys() - self._fit) | self.aside.keys()

    @property
    def asking(self) -> bool:
        """Whether a node has been asked just now. A group that waits for room would keep off it for ever."""
        recent = time.monotonic() - PATIENCE_SECONDS
        return any(node not in self._asked or self._asked[node][1] > recent for node in self.unfit - self.aside.keys())

    @property
    def fit(self) -> dict[str, str]:
        """Host of each node that groups may run on, by Ray's id: it has CPUs or GPUs."""
        return {node: host for node, host in self.living.items() if node not in self.unfit and self._computes(node)}

    def able(self, gpus: float) -> set[str]:
        """Nodes that can hold a worker, which takes a CPU and `gpus` of a GPU; below 0 that is not known yet."""
        found = {node: self._resources[node] for node in self.fit}
        return {node for node, each in found.items() if each.get("CPU") and each.get("GPU", 0.0) >= gpus}

    @property
    def none_works(self) -> bool:
        """Whether every node that could run a group is set aside."""
        able = [node for node in self.living if self._computes(node)]
        return bool(able) and all(node in self.aside for node in able)

    def resources(self) -> Mapping[str, float]:
        """The resources of all nodes that groups may run on, by name."""
        found: Counter[str] = Counter()
        for node in self.living.keys() - self.unfit:
            found.update(self._resources[node])
        return found

    def told_aside(self) -> tuple[str, ...]:
        """One sentence a node that is set aside."""
        return tuple(f"{self.hosts.get(node, node)}: {reason}" for node, reason in self.aside.items())

    def _computes(self, node: str) -> bool:
        return bool(self._resources[node].get("CPU") or self._resources[node].get("GPU"))

    def _ask(self, node: str) -> None:
        self._asked[node] = task_on(node, probe).remote(node, self.expected.spec, self.data), time.monotonic()

    def _take_up(self, node: str) -> None:
        import ray

        asked, since = self._asked[node]
        if not ray.wait([asked], timeout=0)[0]:
            if time.monotonic() - since > PROBE_SECONDS:
                self.set_aside({node: f"it did not answer within {PROBE_SECONDS:.0f} s"})
            return
        try:
            found: Probe = ray.get(asked)
        except ray.exceptions.RayError as error:
            if node not in self._twice:  # its process may have died by chance, or for want of memory
                log.warning("A probe of %s is tried again: %s", self.hosts[node], said(error))
                self._twice.add(node)
                self._ask(node)
            elif node in self.living:
                self.set_aside({node: said(error)})
            return
        wrong = mismatch(self.expected, found)
        if wrong:
            self.set_aside({node: wrong})
            return
        if differing := differences(self.expected, found):
            log.warning("%s has %s", found.host, differing)
            self.differing[found.host] = differing
        self._fit.add(node)


def elsewhere(nodes: Iterable[str]) -> dict[str, str]:
    """A label selector that keeps off these nodes; empty where there are none."""
    unfit = sorted(nodes)
    return {NODE_ID: f"!in({','.join(unfit)})"} if unfit else {}


def on_the_drivers_node() -> Any:
    """Where the coordinator and the groups' tasks run, if they can: other nodes may be preemptible, and the loss of the
    driver's own node ends the session anyway."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def own_share() -> tuple[dict[str, float], dict[str, str]]:
    """A tiny share of a resource that this process's node alone has, and a label selector for that node: where
    something runs that needs no CPU."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    resources = next(each["Resources"] for each in ray.nodes() if each["NodeID"] == here)
    name = next(each for each in resources if each.startswith("node:") and each != "node:__internal_head__")
    return {name: 0.0001}, {NODE_ID: here}


def task_on(node: str, function: Any, gpus: float = 0.0) -> Any:
    """The function as a task of a node, and of no other one, without a CPU of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=there)(function)


def ended_by_ray(error: BaseException | None) -> str:
    """What Ray says of a process that it has ended, such as for want of memory; empty where the error has another
    cause. Ray Tune itself starts actors again that died; it does not know those that Ray ended, and gives up."""
    from ray import exceptions

    while error is not None:
        others = exceptions.RayTaskError, exceptions.RayActorError, exceptions.GetTimeoutError
        if isinstance(error, exceptions.RayError) and not isinstance(error, others):
            return first_line(error).rstrip(".")
        error = error.__cause__ or error.__context__
    return ""


def said(error: BaseException) -> str:
    """What an error of Ray says at last, which is the first cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
