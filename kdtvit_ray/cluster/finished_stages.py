"""The stages that are on storage, as the coordinator knows them, and how often each of them had to be repaired."""

import asyncio
from collections import Counter, OrderedDict

from kdtvit_ray.errors import StorageLost
from kdtvit_ray.results.stage_record import StageSummary
from kdtvit_ray.study.store import DamagedStage, StageStore
from kdtvit_ray.study.tree import StageTree

SUMMARIES_KEPT = 20_000
MOST_REPAIRS = 3
"""How often a stage that turns out to be damaged is run again."""


class FinishedStages:
    """`keys` are on storage. `lost` says why they could not be listed, empty where they could."""

    def __init__(self, store: StageStore) -> None:
        self.store = store
        self.keys: set[str] = set()
        self.lost = ""
        self.repairs: Counter[str] = Counter()
        self._summaries: OrderedDict[str, StageSummary] = OrderedDict()
        try:
            self.keys = store.keys()
        except StorageLost as error:  # an actor that raises here is dead, and Ray hides the reason
            self.lost = str(error)

    def add(self, key: str, summary: StageSummary) -> bool:
        """A stage is on storage. Returns whether that is new."""
        new = key not in self.keys
        self.keys.add(key)
        self._remember(key, summary)
        return new

    async def summary(self, key: str) -> StageSummary:
        """The summary of a finished stage, which is verified once. Raises `DamagedStage`, `UserError` or `OSError`."""
        found = self._summaries.get(key)
        if found is None:
            # in a thread: it may wait for storage, and other calls must not
            found = (await asyncio.to_thread(self.store.verified, key)).summary()
            self._remember(key, found)
        return found

    def repair(self, error: DamagedStage, tree: StageTree) -> str:
        """A stage cannot be read: the tree has it run again, once however often the same damage is told. Returns why
        storage is given up, where it damages the stage again and again."""
        self.keys.discard(error.key)
        self._summaries.pop(error.key, None)
        if tree.reopen(error.key):
            self.repairs[error.key] += 1
        if self.repairs[error.key] > MOST_REPAIRS:
            return f"{error}, again after {MOST_REPAIRS} repairs"
        return ""

    def _remember(self, key: str, summary: StageSummary) -> None:
        self._summaries[key] = summary
        while len(self._summaries) > SUMMARIES_KEPT:
            self._summaries.popitem(last=False)
