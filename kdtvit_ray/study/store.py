"""The content-addressed stage store: a finished stage lies under its key, whoever computed it.

A stage exists when its `stage.json` does: that file is written last, after the files whose sizes and hashes it names,
so a reader never meets a stage that is half written. Two groups that save the same key write the same bytes, so it
does not matter who is last.
"""

import hashlib
import io
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdtvit_ray.errors import StorageLost, UserError, first_line
from kdtvit_ray.paths import PREDICTIONS, STAGE, STAGE_FILES, WEIGHTS, StudyFolder
from kdtvit_ray.results.stage_record import VERSION, NewerFormat, StageRecord

if TYPE_CHECKING:
    import pandas as pd


class DamagedStage(StorageLost):
    """A file of a finished stage is not what was written, or not there: the stage, `key`, has to be run again."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"stages/{key} is damaged: {reason}")
        self.key, self.reason = key, reason

    def __reduce__(self) -> Any:
        return DamagedStage, (self.key, self.reason)


class StageStore:
    """Stages of one study's folder, which decides how patient it is with storage that fails."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder

    def keys(self) -> set[str]:
        """Keys of all finished stages, in one listing."""
        from pyarrow import fs

        selector = fs.FileSelector(self.folder.path(self.folder.stages), recursive=True, allow_not_found=True)
        what = f"Listing the stages of {self.folder.shown}"
        found = self.folder.patiently(what, lambda: self.folder.fs.get_file_info(selector))
        return {info.path.split("/")[-2] for info in found if info.base_name == STAGE}

    def has(self, key: str) -> bool:
        return self.folder.exists(self.folder.stage(key))

    def record(self, key: str) -> StageRecord:
        """What `stage.json` says of the stage. Raises `DamagedStage` where it is not there or damaged, and `UserError`
        where a newer version of this package wrote it."""
        try:
            return StageRecord.from_plain(self.folder.read_json(self.folder.stage(key)))
        except FileNotFoundError:
            raise DamagedStage(key, "it has no stage.json") from None
        except NewerFormat as error:
            raise UserError(
                f"Stage {key} of {self.folder.shown} was {error}; this one reads formats up to {VERSION}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedStage(key, f"stage.json says {type(error).__name__}: {error}") from None

    def verified(self, key: str) -> StageRecord:
        """The record of a stage whose files are whole: weights of the size, and predictions of the content, that
        `stage.json` names. Raises what `record` raises."""
        record = self.record(key)
        size, described = self.folder.size(self.folder.weights(key)), record.files[WEIGHTS]["bytes"]
        if size != described:
            raise DamagedStage(key, f"its weights have {size:,} bytes, not {described:,}")
        content = self._read(key, self.folder.predictions(key), "predictions")
        _check_hash(key, content, record.files[PREDICTIONS]["sha256"], "predictions")
        return record

    def save(self, record: StageRecord, state: dict[str, Any], predictions: Any) -> None:
        """Write a stage: `state` is tensors by name, `predictions` a pyarrow table. Raises `OSError`."""
        import pyarrow.parquet as pq
        from safetensors.torch import save

        table = io.BytesIO()
        pq.write_table(predictions, table, compression="zstd")
        files = {
            WEIGHTS: save({name: tensor.contiguous() for name, tensor in state.items()}),
            PREDICTIONS: table.getvalue(),
        }
        described = {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        }
        for name, content in files.items():
            self.folder.write(f"{self.folder.stages}/{record.key}/{name}", content, before_others=True)
        self.folder.write_json(self.folder.stage(record.key), replace(record, files=described).to_plain())

    def devices(self) -> dict[str, int]:
        """How many stages each kind of device has trained. Damaged ones are left out: they are trained again."""
        found: Counter[str] = Counter()
        for key in self.keys():
            with suppress(DamagedStage):
                found[self.record(key).device_kind] += 1
        return dict(sorted(found.items()))

    def predictions(self, key: str) -> "pd.DataFrame":
        """The stage's predictions. Raises `DamagedStage` where they are missing or cannot be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            content = self._read(key, self.folder.predictions(key), "predictions")
            return pq.read_table(io.BytesIO(content)).to_pandas()
        except (ValueError, pa.ArrowException) as error:
            raise DamagedStage(key, f"its predictions cannot be read: {first_line(error)}") from None

    def state(self, key: str) -> dict[str, Any]:
        """The stage's weights, tensors by name on the CPU. `DamagedStage` where they are not those that were saved."""
        from safetensors.torch import load

        return load(self.whole(key))

    def whole(self, key: str) -> bytes:
        """The content of the stage's weights file. Raises `DamagedStage` where it is not what was saved."""
        content = self._read(key, self.folder.weights(key), "weights")
        _check_hash(key, content, self.record(key).files[WEIGHTS]["sha256"], "weights")
        return content

    def contents(self, key: str) -> dict[str, bytes]:
        """The contents of the stage's files by path, in the order in which they are written, and as they were saved.
        Raises what `record` raises."""
        self.verified(key)
        contents = {self.folder.weights(key): self.whole(key)}
        for name, what in ((self.folder.predictions(key), "predictions"), (self.folder.stage(key), STAGE)):
            contents[name] = self._read(key, name, what)
        return contents

    def total_bytes(self, key: str) -> int:
        """How many bytes the stage's files have."""
        return sum(self.folder.size(f"{self.folder.stages}/{key}/{name}") for name in STAGE_FILES)

    def _read(self, key: str, name: str, what: str) -> bytes:
        try:
            return self.folder.read(name)
        except FileNotFoundError:
            raise DamagedStage(key, f"it has no {what}") from None


def _check_hash(key: str, content: bytes, wanted: str, what: str) -> None:
    if hashlib.sha256(content).hexdigest() != wanted:
        raise DamagedStage(key, f"its {what}, {len(content):,} bytes, do not have the hash that stage.json names")


class EpochCheckpoint:
    """Checkpoints of a stage that is being trained, on the study's storage, so that another node can go on with it.

    `every_seconds` bounds how often one is written; it changes no result, since every random choice is keyed.
    """

    def __init__(self, folder: StudyFolder, key: str, every_seconds: float = 20.0) -> None:
        self.folder, self.key, self.every_seconds = folder, key, every_seconds

    def load(self) -> bytes | None:
        try:
            return self.folder.read(self.folder.checkpoint(self.key))
        except FileNotFoundError:
            return None

    def save(self, content: bytes) -> None:
        self.folder.write(self.folder.checkpoint(self.key), content)

    def clear(self) -> None:
        self.folder.delete(f"{self.folder.checkpoints}/{self.key}")
