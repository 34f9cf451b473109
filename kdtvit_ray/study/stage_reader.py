"""What a study's driver reads of finished stages, kept in memory for the trials that share them."""

import logging
from dataclasses import replace
from functools import lru_cache

import pandas as pd

from kdtvit_ray.paths import WEIGHTS
from kdtvit_ray.results.out_of_fold import JUDGED_COLUMNS
from kdtvit_ray.results.stage_record import StageRecord
from kdtvit_ray.study.store import DamagedStage, StageStore

KEPT = 500
"""Number of stages of which records, and of which predictions, are kept: those that were asked for last."""
log = logging.getLogger(__name__)


class StageReader:
    """Reads the stages of one store. Its methods raise `OSError` where storage fails."""

    def __init__(self, store: StageStore) -> None:
        self.store = store
        self._record = lru_cache(maxsize=KEPT)(self._read_record)
        self._validation = lru_cache(maxsize=KEPT)(self._read_validation)

    def record(self, key: str) -> StageRecord:
        """A stage's record without its curves. Raises `DamagedStage`."""
        return self._record(key)

    def validation(self, key: str) -> pd.DataFrame:
        """A stage's predictions of its validation images. Raises `DamagedStage` where they are missing or damaged."""
        return self._validation(key)

    def readable(self, key: str) -> bool:
        """Whether a stage's predictions can be read."""
        try:
            self.validation(key)
        except DamagedStage as error:
            log.warning("%s; its setting is judged again", error)
            return False
        return True

    def sound(self, key: str) -> bool:
        """Whether all files of a stage are what was written, to the byte. One whose files are not is not finished any
        more: the chain that asks for it trains it again."""
        try:
            if WEIGHTS in self.store.verified(key).files:
                self.store.whole(key)
        except DamagedStage as error:
            log.warning("%s; it is trained again", error)
            self.store.folder.delete(self.store.folder.stage(key))
            return False
        return True

    def _read_record(self, key: str) -> StageRecord:
        return replace(self.store.record(key), curves=())

    def _read_validation(self, key: str) -> pd.DataFrame:
        frame = self.store.predictions(key)
        return frame[frame["split"] == "validation"][list(JUDGED_COLUMNS)]
