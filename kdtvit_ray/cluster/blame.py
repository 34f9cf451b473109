"""What becomes of stages that fail on a node and of worker groups that die: tried again, failed, a node set aside.

Time is this process's monotonic clock only.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from kdtvit_ray.cluster.change_signal import Changes
from kdtvit_ray.cluster.health import DEATH, NODE, STAGE, UNKNOWN, Fault, Health
from kdtvit_ray.cluster.roster import Group, Roster
from kdtvit_ray.study.tree import StageTree, State

MOST_DEATHS = 3
"""A node on which a group's workers have died this often in a row, each time before they had a stage, is set aside."""


class Blame:
    """Decides with `health`, of nodes and stages, and the `roster` of groups what happens in the `tree`. `more` says
    that nodes may join; `changes` is woken where a stage is free again or has failed."""

    def __init__(self, tree: StageTree, changes: Changes, more: bool) -> None:
        self.tree, self.health, self.roster = tree, Health(more), Roster(self.lost, self.back)
        self._changes = changes
        self._nodes: dict[str, str] = {}
        """Host by Ray's id of each node that lives, as the driver has seen it last; empty before."""
        self._to_come: set[str] = set()
        """Nodes that can hold a worker of the groups that are being started."""
        self._since: dict[str, float] = {}
        """When each stage first failed on a node."""
        self._lost_on: dict[str, list[str]] = {}
        """Stages in which a worker died, by node."""
        self._placed: dict[str, tuple[str, ...]] = {}
        """On which node each rank of a group was put when it was started last."""
        self._early: dict[str, Counter[str]] = {}
        """How often in a row workers of a group have died on each node before they had a stage."""
        self._killed: dict[str, dict[str, str]] = {}
        """Why worker processes of a group that is about to be lost have ended, by node."""
        self.dying: dict[str, str] = {}
        """A sentence on each group that was started again and again and has had no stage."""

    def nodes(self, living: Mapping[str, str], aside: Mapping[str, str], to_come: Collection[str]) -> None:
        """What the driver sees of the cluster, as the coordinator is told it."""
        for node in self._nodes.keys() - living.keys():
            for key in self._lost_on.pop(node, ()):
                self.tree.forgive(key)  # the node died, not the worker
        self._nodes, self._to_come = dict(living), set(to_come)
        for node, reason in aside.items():
            self.health.set_aside(node, reason)
        for key in self.health.open:
            self.decide(key)

    def met(self, group: Group, key: str, fault: Fault) -> None:
        """The group's stage has met a fault. Where that is the stage's own it fails; else it is tried again where it
        has not failed."""
        shared = any(each.key for each in self.roster.beside(group))
        group.idle()
        if fault.kind == STAGE:
            self.fail(key, fault)
        else:
            self.tree.abandon(group.name, key)
            self.health.met(key, fault, self.roster.places)
            self.decide(key, shared)
        self._changes.wake()

    def decide(self, key: str, shared: bool = False) -> None:
        """Fail a stage that failed on a node, if there is nowhere else to try it."""
        node = self.tree.nodes.get(key)
        if node is None or node.state in (State.FAILED, State.DONE):
            self.health.forget(key)
            self._since.pop(key, None)
        if node is None or node.state in (State.FAILED, State.DONE, State.RUNNING, State.SAVING):
            return
        now = time.monotonic()
        waited = now - self._since.setdefault(key, now)
        groups = self.roster.places
        # a group that is being started may get a node on which the stage has not failed
        fresh = self._to_come - self.health.aside.keys() - self.health.places(key) - set().union(*groups)
        fault = self.health.decide(key, groups, waited=waited, to_come=bool(fresh), shared=shared)
        if fault:
            self.fail(key, fault)

    def fail(self, key: str, fault: Fault) -> None:
        """The stage has failed of this fault, and all below it."""
        self.tree.fail(key, fault.reason, "stage" if fault.kind in (STAGE, UNKNOWN) else "infrastructure")
        self.health.forget(key)
        self._since.pop(key, None)
        self._changes.wake()

    def lost(self, group: Group) -> None:
        """A group is no longer there: its stage is free, and counts what it met."""
        name, places = group.name, set(group.places.values())
        lives = not self._nodes or places <= self._nodes.keys()
        fault, key, killed = group.last_fault, self.tree.running.get(name), self._killed.pop(name, {})
        if fault and killed and fault.node not in killed:
            fault = None  # of a worker that lost the connection to those that were killed
        certain = fault is not None and fault.kind == NODE
        last_words = group.silent or (fault.reason if fault else next(iter(killed.values()), ""))
        missed = self.tree.lose(name, last_words, counts=lives and not certain)
        if group.silent and lives:
            group.missed = missed
        if key and lives:
            for place in places:
                self._lost_on.setdefault(place, []).append(key)
            # whether one that is only silent has died is not known, so that it tells nothing of its nodes
            blamed = {fault.node: fault.reason} if fault else killed or dict.fromkeys(places, "its worker died")
            for place, reason in () if group.silent else blamed.items():
                self.health.met(key, Fault(NODE if certain else DEATH, place, reason), self.roster.places)
                self.decide(key)
        self._changes.wake()

    def back(self, group: Group) -> None:
        """A group that was silent speaks again: it had not died."""
        if group.missed is None:
            return
        self.tree.forgive(group.missed)
        for place in set(group.places.values()):
            with suppress(ValueError):
                self._lost_on.get(place, []).remove(group.missed)

    def placed(self, name: str, nodes: Sequence[str]) -> None:
        """A group is being started, with its ranks on these nodes."""
        self._placed[name] = tuple(nodes)

    def busy(self, name: str) -> None:
        """A group has a stage: its workers could be started."""
        self._early.pop(name, None)
        self.dying.pop(name, None)

    def died(self, name: str, reasons: Mapping[int, str], killed: Collection[int]) -> bool:
        """Workers of a group have died, by rank; the processes of those `killed` have ended, the others have raised an
        error, which may be that they lost the connection to these. Returns whether that was before they had a stage, in
        which their death would count. Sets a node aside where they do so again and again, unless other groups work
        there: one GPU of several may be full."""
        group = self.roster.groups.get(name)
        if group and group.worked:
            self._killed[name] = {group.places[rank]: reasons[rank] for rank in killed if rank in group.places}
            return False
        counts, places = self._early.setdefault(name, Counter()), dict(enumerate(self._placed.get(name, ())))
        for node, reason in {places[rank]: reasons[rank] for rank in killed or reasons if rank in places}.items():
            counts[node] += 1
            if counts[node] < 2:
                continue
            told = f"died {counts[node]} times before it had a stage, last with: {reason}"
            self.dying[name] = f"group {name} on {self._nodes.get(node, node)} {told}"
            if counts[node] >= MOST_DEATHS and not self.roster.works(node):
                del self.dying[name]
                self.health.set_aside(node, f"a worker {told}")
        return True
