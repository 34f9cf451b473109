"""The stage tree: which stages a study needs, which can run, who wants them. Pure Python, no clock, no threads.

Trials are paths of stage keys; a key that several trials want is one node. A stage is ready when its parent is done,
runs once however many trials want it, is dropped when nobody wants it any more, goes back to ready when its worker
group dies, and fails the trials below it, and nothing else, when it cannot be finished. It is done when it is on
storage: a group that is putting one there may train another meanwhile, a child of it too.

Which ready stage a group gets: a child of the one it has just finished (the parent's model is still in memory), else
the one with most subscribers, else the oldest.
"""

import heapq
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    SAVING = "saving"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Node:
    """One stage. `losses` counts the deaths of worker groups in it since it last made progress; `fault` tells for a
    failed one whether the stage or the infrastructure is at fault."""

    key: str
    parent: str | None
    order: int
    state: State = State.WAITING
    subscribers: set[str] = field(default_factory=set)
    children: list[str] = field(default_factory=list)
    group: str | None = None
    losses: int = 0
    epoch: int = 0
    reason: str = ""
    fault: str = ""


class StageTree:
    """The stages of a study as a forest of keys.

    `attempts` is how many deaths in a row, without an epoch of progress between them, a stage survives before it
    counts as failed: a stage that kills its worker every time must not be retried for ever.
    """

    def __init__(self, attempts: int = 3) -> None:
        self.attempts = attempts
        self.nodes: dict[str, Node] = {}
        self.paths: dict[str, tuple[str, ...]] = {}
        self.running: dict[str, str] = {}
        self._saving: dict[str, set[str]] = {}
        """Stages that each group may be saving; what counts is their state."""
        self._ready: list[tuple[int, int, str]] = []
        self._count = 0

    def join(self, trial: str, stages: Sequence[tuple[str, str | None]], done: Iterable[str] = ()) -> None:
        """A trial wants these (key, parent key) stages, parents first; those in `done` are on storage already.

        Joining again with the same stages changes nothing, so that a caller may repeat itself.
        """
        self.paths[trial] = tuple(key for key, _ in stages)
        finished = set(done)
        for key, parent in stages:
            node = self.nodes.get(key)
            if node is None:
                node = self.nodes[key] = Node(key, parent, self._count)
                self._count += 1
                if parent is not None and parent in self.nodes:
                    self.nodes[parent].children.append(key)
            node.subscribers.add(trial)
            if key in finished and node.state in (State.WAITING, State.READY):
                node.state = State.DONE
            self._settle(node)

    def leave(self, trial: str) -> None:
        """The trial wants nothing any more. Stages that nobody wants now are dropped; running ones go on until
        `progress` says so."""
        for key in reversed(self.paths.pop(trial, ())):
            node = self.nodes[key]
            node.subscribers.discard(trial)
            if not node.subscribers:
                if node.state in (State.WAITING, State.READY) and not node.children:
                    self._drop(node)
            elif node.state is State.READY:
                self._push(node)

    def take(self, group: str, after: str | None = None, held: Iterable[str] = ()) -> str | None:
        """Give the group a stage to run, or None. `after` is the stage it has just finished; `held` are keys that
        it must not get (another group may still be running them)."""
        assert group not in self.running
        kept = set(held)
        node = self._child_of(after, group, kept) or self._best(kept)
        if node is None:
            return None
        node.state, node.group = State.RUNNING, group
        self.running[group] = node.key
        return node.key

    def resume(self, group: str, key: str) -> bool:
        """The group says that it is running this stage, after the tree was lost. False: it should stop."""
        node = self.nodes.get(key)
        if node is None or self.running.get(group, key) != key:
            return False
        if not self._ready_for(group, node) and not (node.state is State.RUNNING and node.group == group):
            return False
        node.state, node.group = State.RUNNING, group
        self.running[group] = key
        return True

    def progress(self, key: str, epoch: int) -> bool:
        """The stage has finished an epoch. Returns whether anybody still wants it."""
        node = self.nodes.get(key)
        if node is None:
            return False
        if epoch > node.epoch:
            node.epoch, node.losses = epoch, 0
        return bool(node.subscribers)

    def trained(self, group: str, key: str) -> None:
        """The group has trained the stage and is putting it on storage. This may be said again and again, until it is
        there, and also after the tree was lost."""
        if self.running.get(group) == key:
            del self.running[group]
        node = self.nodes.get(key)
        if node is None or node.state in (State.DONE, State.FAILED) or node.group not in (None, group):
            return
        node.state, node.group = State.SAVING, group
        self._saving.setdefault(group, set()).add(key)

    def finish(self, group: str, key: str) -> None:
        """The stage is on storage, and its children become ready. This also counts when it is said twice, or by a group
        that seemed dead."""
        if self.running.get(group) == key:
            del self.running[group]
        node = self.nodes.get(key)
        if node is None or node.state is State.DONE:
            return
        if node.group is not None and self.running.get(node.group) == key:
            del self.running[node.group]
        self._saving.get(node.group or "", set()).discard(key)
        node.state, node.group = State.DONE, None
        for child in node.children:
            self._settle(self.nodes[child])

    def reopen(self, key: str) -> bool:
        """The finished stage cannot be read: it has to be run again, before its children that have not begun. Returns
        False where the stage is not (or no longer) finished."""
        node = self.nodes.get(key)
        if node is None or node.state is not State.DONE:
            return False
        node.state, node.epoch, node.losses = State.WAITING, 0, 0
        for child in map(self.nodes.__getitem__, node.children):
            if child.state is State.READY:
                child.state = State.WAITING
        self._settle(node)
        return True

    def abandon(self, group: str, key: str) -> None:
        """The group has stopped a stage that nobody wanted; if somebody does by now, it is ready again."""
        self._release(group, key)

    def lose(self, group: str, last_error: str = "", *, counts: bool = True) -> str | None:
        """The group has died, of `last_error` where it could tell it. Its stage is ready again, or failed when it died
        too often; a death that has another cause than the stage does not count. What it was saving is ready again as
        well, and is to blame where it ran nothing. Returns the key of its stage."""
        unsaved = [
            key
            for key in sorted(self._saving.pop(group, ()))
            if key in self.nodes and self.nodes[key].state is State.SAVING and self.nodes[key].group == group
        ]
        key = self.running.get(group) or (unsaved.pop() if unsaved else None)
        for each in unsaved:
            self._free(self.nodes[each])
        if key is None:
            return None
        node = self.nodes[key]
        node.losses += counts
        if node.losses >= self.attempts:
            reason = f"its worker died {node.losses} times in it without finishing an epoch between"
            reason += f", last with {last_error}" if last_error else ""
            self.fail(key, reason, "infrastructure")
        elif node.state is State.SAVING:
            self._free(node)
        else:
            self._release(group, key)
        return key

    def forgive(self, key: str) -> None:
        """A death in the stage turned out not to be its own."""
        node = self.nodes.get(key)
        if node is not None and node.losses:
            node.losses -= 1

    def fail(self, key: str, reason: str, fault: str = "stage") -> None:
        """The stage cannot be finished: it fails, with all below it."""
        for group in [each for each, running in self.running.items() if running == key]:
            del self.running[group]
        node = self.nodes.get(key)
        if node is None or node.state is State.DONE:
            return
        below = [node]
        while below:
            each = below.pop()
            if each.state is State.FAILED:
                continue
            each.state, each.reason, each.fault, each.group = State.FAILED, reason, fault, None
            below.extend(self.nodes[child] for child in each.children)

    def counts(self, elsewhere: Container[str] = ()) -> dict[str, int]:
        """Number of stages in each state. One that is being saved is still running. Those ready ones of which other
        studies train the same, `elsewhere`, are counted apart."""
        counted = {str(state): 0 for state in State if state is not State.SAVING} | {"elsewhere": 0}
        for node in self.nodes.values():
            if node.state is State.READY and node.key in elsewhere:
                counted["elsewhere"] += 1
            else:
                counted[str(State.RUNNING if node.state is State.SAVING else node.state)] += 1
        return counted

    # -- inside ----------------------------------------------------------------------------------------------------

    def _settle(self, node: Node) -> None:
        """Move a waiting stage on as far as its parent's state allows. A ready stage is queued again, since its number
        of subscribers has changed."""
        if node.state is State.WAITING:
            parent = self.nodes.get(node.parent) if node.parent else None
            if node.parent is None or (parent is not None and parent.state is State.DONE):
                node.state = State.READY
            elif parent is not None and parent.state is State.FAILED:
                node.state, node.reason, node.fault = State.FAILED, parent.reason, parent.fault
        if node.state is State.READY:
            self._push(node)
        elif node.state is State.DONE:
            for child in node.children:
                if self.nodes[child].state is State.WAITING:
                    self._settle(self.nodes[child])

    def _push(self, node: Node) -> None:
        heapq.heappush(self._ready, (-len(node.subscribers), node.order, node.key))

    def _ready_for(self, group: str, node: Node) -> bool:
        """Whether the group may run the stage now: its parent is done, or is being saved by the group itself."""
        parent = self.nodes.get(node.parent) if node.parent else None
        own = parent is not None and parent.state is State.SAVING and parent.group == group
        return node.state is State.READY or (node.state is State.WAITING and own)

    def _child_of(self, after: str | None, group: str, held: set[str]) -> Node | None:
        parent = self.nodes.get(after) if after else None
        if parent is None:
            return None
        ready = [
            node
            for node in map(self.nodes.__getitem__, parent.children)
            if self._ready_for(group, node) and node.subscribers and node.key not in held
        ]
        return min(ready, key=lambda node: (-len(node.subscribers), node.order), default=None)

    def _best(self, held: set[str]) -> Node | None:
        skipped = []
        found = None
        while self._ready:
            entry = heapq.heappop(self._ready)
            node = self.nodes.get(entry[2])
            # an entry is stale if the stage is no longer ready or its number of subscribers has changed
            if node is None or node.state is not State.READY or -entry[0] != len(node.subscribers):
                continue
            if not node.subscribers:
                continue
            if node.key in held:
                skipped.append(entry)
                continue
            found = node
            break
        for entry in skipped:
            heapq.heappush(self._ready, entry)
        return found

    def _release(self, group: str, key: str) -> None:
        if self.running.get(group) == key:
            del self.running[group]
        node = self.nodes.get(key)
        if node is not None and node.state is State.RUNNING and node.group == group:
            self._free(node)

    def _free(self, node: Node) -> None:
        """No group has the stage any more: it is ready again, or dropped where nobody wants it."""
        node.state, node.group = State.WAITING, None
        if node.subscribers:
            self._settle(node)
        elif not node.children:
            self._drop(node)

    def _drop(self, node: Node) -> None:
        """Forget a stage that nobody wants, and its ancestors that nobody wants either."""
        del self.nodes[node.key]
        parent = self.nodes.get(node.parent) if node.parent else None
        if parent is None:
            return
        parent.children.remove(node.key)
        if not parent.children and not parent.subscribers and parent.state in (State.WAITING, State.READY):
            self._drop(parent)
