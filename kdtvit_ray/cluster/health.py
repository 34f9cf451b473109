"""Which nodes work: what failed where, and which nodes are set aside. Pure Python, no clock.

A stage that fails on one node is tried on another. So it turns out who is at fault: a stage that fails on two nodes, or
a node on which stages fail that others can run.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

STAGE = "stage"
"""No machine can finish the stage, such as after a loss that is not finite."""
NODE = "node"
"""The machine is at fault, such as one without a driver for its GPU."""
UNKNOWN = "unknown"
"""An error of which the words do not tell who is at fault."""
MEMORY = "memory"
"""Memory ran out, which another machine may have, or this one when nothing else runs on it."""
DEATH = "death"
"""The worker died. The stage tree counts the deaths in a stage; here they tell of the node."""

PROOF_SECONDS = 60.0
"""On a cluster, seconds that a stage which failed on a node waits for other stages to show whether that node works."""
START_SECONDS = 600.0
"""Seconds that it waits for a group on another node which is being started."""
MOST_ON_A_NODE = 3
"""A node on which this many different stages have failed, and none was finished meanwhile, is set aside."""
MOST_NODES = {NODE: 3, UNKNOWN: 2, MEMORY: 2}
"""On how many nodes a stage has to fail before it has failed. What is the machine's fault counts against the stage only
where others could be finished on these nodes; else the nodes are set aside."""


@dataclass(frozen=True)
class Fault:
    """Why a stage failed on the node with this id of Ray's: the kind of the fault and its words."""

    kind: str
    node: str
    reason: str


class Health:
    """The faults that stages have met and the nodes that are set aside, by Ray's id, each with its reason.

    With `more`, other nodes may join, as on a cluster; else there is this machine and no other.
    """

    def __init__(self, more: bool = False) -> None:
        self.more = more
        self.aside: dict[str, str] = {}
        self._proven: set[str] = set()
        """Nodes on which a stage was finished."""
        self.alone: set[str] = set()
        """Stages that ran out of memory beside others, and are to be tried alone."""
        self._met: dict[str, dict[str, Fault]] = {}
        self._failed: dict[str, dict[str, Fault]] = {}

    def met(self, key: str, fault: Fault, groups: Iterable[Collection[str]]) -> None:
        """A stage has met a fault; `groups` has the nodes of each group. Sets the node aside on which enough stages
        have failed, if it is at fault for certain, or another one with a group is left, or it is not proven to work and
        others may join. Of a node that is proven to work only what tells of a node counts: models that are too large
        fail on any. For want of memory no node is set aside without which no group runs: stages fail there."""
        self._met.setdefault(key, {})[fault.node] = fault
        failed = self._failed.setdefault(fault.node, {})
        failed[key] = fault
        proven = fault.node in self._proven
        counted = [each for each in failed.values() if not proven or each.kind in (NODE, DEATH)]
        lost = {fault.node, *self.aside}
        if fault.kind == MEMORY:
            spared = _some_apart(groups, lost)
        else:
            unproven = self.more and not proven
            spared = fault.kind == NODE or unproven or any(set(places) - lost for places in groups)
        if len(counted) >= MOST_ON_A_NODE and spared:
            self.set_aside(fault.node, f"{len(counted)} stages failed on it, last with: {fault.reason}")

    def set_aside(self, node: str, reason: str) -> None:
        """Nothing may run on a node. The first reason stays."""
        self.aside.setdefault(node, reason)

    def finished(self, key: str, nodes: Iterable[str]) -> None:
        """A stage was finished on these nodes, so they work."""
        for node in nodes:
            self._failed.pop(node, None)
            self._proven.add(node)
        self._met.pop(key, None)
        self.alone.discard(key)

    def avoided(self, nodes: Iterable[str]) -> set[str]:
        """Stages that must not run on any of these nodes, since they failed there."""
        there = set(nodes)
        return {key for key, faults in self._met.items() if faults.keys() & there}

    def places(self, key: str) -> set[str]:
        """Nodes on which a stage failed."""
        return set(self._met.get(key, ()))

    @property
    def open(self) -> tuple[str, ...]:
        """Stages that failed somewhere and are not decided."""
        return tuple(self._met)

    def decide(
        self,
        key: str,
        groups: Iterable[Collection[str]],
        *,
        waited: float = math.inf,
        to_come: bool = False,
        shared: bool = False,
    ) -> Fault | None:
        """The fault that a stage fails of; None where it may be tried again, or others may show who is at fault.

        `groups` has the nodes of each group: one of several nodes runs no stage that failed on any of them. `waited`
        are the seconds since it first failed; `to_come` says that other nodes will have groups soon, and `shared` that
        other stages ran on the node on which its memory ran out.
        """
        faults = self._met.get(key)
        if not faults:
            return None
        last = list(faults.values())[-1]
        elsewhere = _some_apart(groups, faults.keys() | self.aside.keys())
        if last.kind == DEATH:
            if not elsewhere:
                self.forget(key)  # it may run anywhere again
            return None
        if len(faults) >= MOST_NODES[last.kind]:
            if last.kind != NODE:
                self._blameless(key)
                return last
            if not all(self._failed.get(node) for node in faults):
                return last  # others were finished there meanwhile
            for node, fault in faults.items():
                self.set_aside(node, fault.reason)
        if elsewhere or faults.keys() <= self.aside.keys():
            return None
        if last.kind == NODE:
            for each in faults.values():
                if each.kind == NODE:
                    self.set_aside(each.node, each.reason)
            return None
        if last.kind == MEMORY and shared and key not in self.alone:
            self.alone.add(key)
            del faults[last.node]  # it may run there again, by itself
            return None
        unproven = self.more and not faults.keys() & self._proven
        patience = START_SECONDS if to_come else PROOF_SECONDS if unproven else 0.0
        return last if waited >= patience else None

    def forget(self, key: str) -> None:
        """Nobody asks for a stage any more."""
        self._met.pop(key, None)
        self.alone.discard(key)

    def _blameless(self, key: str) -> None:
        """The stage is at fault, not the nodes that it failed on."""
        for failed in self._failed.values():
            failed.pop(key, None)


def _some_apart(groups: Iterable[Collection[str]], nodes: Collection[str]) -> bool:
    """Whether one of the groups, each given by its nodes, runs on none of `nodes`."""
    return any(places and not set(places) & set(nodes) for places in groups)


def of_the_device(error: Exception) -> bool:
    """Whether the accelerator itself failed. Everything else that this process asks of it would fail as well."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def of_the_node(error: Exception) -> bool:
    """Whether the machine lacks what every stage needs: a package, a disk that can be written, a driver. A fault of the
    study's own storage is a `StorageLost`."""
    return isinstance(error, ImportError | OSError) or "Found no NVIDIA driver" in str(error)
