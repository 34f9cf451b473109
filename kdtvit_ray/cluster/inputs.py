"""What a worker's stages need on its node: the prepared set, weights files, the weights of stages before. It is kept in
memory between stages."""

import platform
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from kdtvit_ray.errors import NodeFault, StorageLost, UserError
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.study.store import StageStore

PARENTS_KEPT = 4
Found = TypeVar("Found")


class Inputs:
    """Fetches them as the config of a group says, and keeps the last `PARENTS_KEPT` stages' weights."""

    def __init__(self, config: Mapping[str, Any], store: StageStore) -> None:
        self.config, self.store = config, store
        self.node = platform.node()
        self._data: dict[Any, Any] = {}
        self._parents: OrderedDict[str, Any] = OrderedDict()

    def data(self, spec: StageSpec) -> Any:
        """The images that a stage needs, a `StageData`. Raises `StorageLost`, `NodeFault`, and `UserError` for images
        that do not fit the stage."""
        from kdtvit_ray.data.batches import StageData
        from kdtvit_ray.data.cache import local_copy

        if spec.data not in self._data:
            source = self.config["data"], spec.data.fingerprint, self.config["published"]
            here = self._patiently("the prepared set", lambda: local_copy(*source))
            self._data[spec.data] = StageData(here, spec.data, self._data.values())
        return self._data[spec.data]

    def state(self, key: str) -> Any:
        """The weights that a finished stage has yielded. Raises `DamagedStage` and `StorageLost`."""
        if key not in self._parents:
            self.keep(key, self.store.state(key))
        self._parents.move_to_end(key)
        return self._parents[key]

    def keep(self, key: str, state: Any) -> None:
        """The stage that comes next may need these weights."""
        self._parents[key] = state
        while len(self._parents) > PARENTS_KEPT:
            self._parents.popitem(last=False)

    def located(self, spec: StageSpec) -> StageSpec:
        """The same stage with the path of its weights file on this node. The path is not part of the key. Raises
        `StorageLost` and `NodeFault`."""
        from kdtvit_ray.data.cache import local_file

        path = self.config["weights"].get(spec.model.digest)
        if path is None:
            return spec
        source = path, spec.model.digest, self.config["published_weights"]
        here = self._patiently(path, lambda: local_file(*source))
        return replace(spec, model=replace(spec.model, weights=str(here)))

    def _patiently(self, what: str, find: Callable[[], Found]) -> Found:
        """What `find` returns. A set or a file that is missing, damaged or another one was there when the study
        started: it is storage that is away, maybe for a moment, and says nothing against the stage or this node."""

        def found() -> Found:
            try:
                return find()
            except NodeFault:
                raise
            except (UserError, FileNotFoundError) as error:
                raise OSError(str(error)) from error

        try:
            return self.store.folder.patiently(f"Finding {what} on {self.node}", found)
        except StorageLost:
            raise
        except OSError as error:  # of a folder that has no pauses
            raise StorageLost(f"Finding {what} on {self.node} failed: {error}") from error
