"""The search as Optuna sees it: a copy of its trials in Optuna's journal format, for Optuna and optuna-dashboard.

Nothing of a study depends on it: a journal that cannot be used or written is left as it is, with a warning.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)


class Journal:
    """Copies the trials that Optuna was told of to the study `name` of a journal file.

    One driver runs a study at a time (`study.lock`), so what a killed one has left is cleared away: a last line that it
    wrote in part, behind which no other line could be read, and Optuna's own lock.
    """

    def __init__(self, path: str, name: str, directions: Sequence[str] = ("maximize",)) -> None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.path = path
        self.study: optuna.Study | None = None
        self._there: Counter[str] = Counter()
        """How often each set of parameters has been copied by earlier sessions."""
        try:
            _clear(Path(path))
            storage = JournalStorage(JournalFileBackend(path))
            if name in {each.study_name for each in storage.get_all_studies()}:
                study = optuna.load_study(study_name=name, storage=storage)  # creating it again would write a line
            else:
                study = optuna.create_study(study_name=name, storage=storage, directions=list(directions))
            self._there.update(_told(each.params) for each in study.get_trials(deepcopy=False))
            self.study = study
        except Exception as error:
            log.warning("The journal %s cannot be used and is left as it is: %s", path, error)

    def add(self, trial: FrozenTrial) -> None:
        """Copy one trial, if no earlier session has. Trials are known by their parameters, since no setting is tried
        twice: where results are told as they come, a later session tells them in another order."""
        if self.study is None:
            return
        told = _told(trial.params)
        if self._there[told]:
            self._there[told] -= 1
            return
        try:
            self.study.add_trial(trial)
        except Exception as error:
            log.warning("The journal %s cannot be written and gets no further trials: %s", self.path, error)
            self.study = None


def _told(params: Mapping[str, Any]) -> str:
    """Parameters as text; whole numbers may come back from the file as floats."""
    plain = {name: float(value) if type(value) is int else value for name, value in params.items()}
    return json.dumps(plain, sort_keys=True)


def _clear(path: Path) -> None:
    """Clear away what a killed session has left."""
    # a link to the journal's absolute path: once the folder has moved, Optuna would wait for it for ever
    Path(f"{path}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
