"""A study as it lies in its folder, finished or not: settings, trials, rows, stages, predictions, and what is
damaged."""

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.choice import chosen, different_settings, with_objective
from kdtvit_ray.results.out_of_fold import JUDGED_COLUMNS, Part, judge, parts_of
from kdtvit_ray.results.rows import SEARCHABLE_BASELINES, baseline_of, read_rows, read_trials
from kdtvit_ray.results.sessions import Session, read_sessions
from kdtvit_ray.results.stage_record import NewerFormat, StageRecord
from kdtvit_ray.results.statistics import MEAN
from kdtvit_ray.results.study_file import settings_of
from kdtvit_ray.results.study_status import Status
from kdtvit_ray.results.words import counted

_THREADS = 16


@dataclass
class Study:
    """`plain` is study.toml, `status` the last status (an empty one where there is none). `trials` has one line for
    each trial that has ended, `rows` one line for each value that these trials measured. `notes` are sentences on what
    is damaged or missing; more are added when stages and predictions are read, which happens on first use."""

    folder: StudyFolder
    plain: Mapping[str, Any]
    status: Status
    trials: pd.DataFrame
    rows: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    _predictions: dict[str, pd.DataFrame | None] = field(default_factory=dict, repr=False)
    _judged: dict[str, pd.DataFrame | None] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.plain["study"]["name"] or self.folder.root.rsplit("/", 1)[-1]

    @property
    def metric(self) -> str:
        """The metric whose mean over magnifications is the objective."""
        return self.plain["study"]["metric"]

    @property
    def protocol(self) -> str:
        return self.plain["protocol"]["name"]

    @property
    def leaks(self) -> bool:
        """Whether images of one patient are in train and in test: such numbers say little about new patients."""
        return self.plain["data"]["leaks"]

    @cached_property
    def dataset(self) -> Dataset:
        """What the images are of."""
        return Dataset.from_plain(self.plain["data"]["dataset"])

    @cached_property
    def magnifications(self) -> tuple[int, ...]:
        """The magnifications of the test images; a mean over magnifications is over these. Before anything was measured
        they are all of the dataset's."""
        tested = self.rows.loc[self.rows["split"] == "test", "magnification"].unique()
        known = self.dataset.magnifications
        return tuple(each for each in known if each in tested) or known

    @property
    def taken_over(self) -> int:
        """How many stages other studies have trained."""
        return sum(each.study != self.plain["id"] for each in self.stages.values())

    @cached_property
    def sessions(self) -> tuple[Session, ...]:
        """The runs of the study's sweep, the first one first."""
        return read_sessions(self.folder)

    @property
    def tested_columns(self) -> tuple[str, ...]:
        """The names of these magnifications in tables: "40X" .."""
        return tuple(f"{each}X" for each in self.magnifications)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the headline table: every magnification, tested or not, then "mean" where there are
        several."""
        names = tuple(f"{each}X" for each in self.dataset.magnifications)
        return (*names, MEAN) if len(names) > 1 else names

    @property
    def planned(self) -> int:
        """How many searched trials the study is to have: a small space has fewer settings than [study] has trials, and
        one that asked for more before has those."""
        asked, counted = self.plain["study"]["trials"], self.status.trials.total
        return max(min(asked, counted or asked), int((self.trials["kind"] == "search").sum()))

    @property
    def planned_baselines(self) -> tuple[str, ...]:
        """Trial names of the baselines that are not searched: `per_magnification` is one trial for each magnification
        of the order."""
        order = self.plain["chain"]["order"].split(">")
        names: list[str] = []
        for each in self.plain["study"]["baselines"]:
            names += [f"{each}-{m}" for m in order] if each == "per_magnification" else [each]
        return tuple(name for name in names if name not in self.searched_baselines)

    @property
    def finished(self) -> bool:
        """Whether the sweep said so, or every planned trial and baseline has its record, and with inner folds some
        refits."""
        searched = int((self.trials["kind"] == "search").sum())
        there = set(self.trials["trial"])
        told = self.status.state == "finished" and not self.status.replicates.total
        refits = not self.parts or bool((self.trials["kind"] == "refit").any())
        # how many settings searched baselines have is in the status alone; without one their choices have to do
        tried, total = int((self.trials["kind"] == "baseline_search").sum()), self.status.baseline_settings.total
        rest = tried >= total if total else self.chosen_of.keys() == set(self.searched_baselines)
        ended = 0 < self.planned <= searched and set(self.planned_baselines) <= there and rest and refits
        return told or ended  # a confirmation that has finished says nothing of the sweep

    # -- inner folds ---------------------------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple[Part, ...]:
        """The inner folds that a setting is judged on; () where the objective is measured on one validation part."""
        return parts_of(self.plain["study"])

    @cached_property
    def _of_settings(self) -> dict[str, dict[Part | str, int]]:
        """By setting: the line in `trials` of each of its complete chains, by part, and of its refit. A chain of other
        parameters than its setting's, as a session leaves it that another one took over from, is none of it."""
        found: dict[str, dict[Part | str, int]] = {}
        params = dict(zip(self.trials["trial"], map(json.loads, self.trials["params"]), strict=True))
        complete = self.trials[self.trials["state"] == "complete"]
        for line, kind, trial in zip(complete.index, complete["kind"], complete["trial"], strict=True):
            if kind in ("inner", "refit"):
                told = params[trial]
                what = Part(told["repeat"], told["inner"]) if kind == "inner" else kind
                if kind == "refit" or told["params"] == params.get(told["of"], told["params"]):
                    found.setdefault(told["of"], {})[what] = line
        return found

    @property
    def judged_on(self) -> str:
        """What the objective is measured on, in a word: validation, or out-of-fold predictions."""
        return "out-of-fold" if self.parts else "validation"

    @property
    def chosen_on(self) -> str:
        """Whom the search saw, in words."""
        return "the development patients" if self.parts else "validation"

    def chains(self, setting: str) -> dict[Part, pd.Series]:
        """The records of a setting's complete chains over inner folds, in order."""
        lines = self._of_settings.get(self.named(setting), {})
        return {part: self.trials.loc[lines[part]] for part in self.parts if part in lines}

    def refit(self, setting: str) -> pd.Series | None:
        """The record of a setting's chain on all development patients; None where there is none (yet)."""
        line = self._of_settings.get(self.named(setting), {}).get("refit")
        return None if line is None else self.trials.loc[line]

    def stages_done(self, trial: str) -> int:
        """How many stages a trial has finished: its own, and with inner folds those of its chains."""
        return self._stages_done.get(trial, 0)

    @cached_property
    def _stages_done(self) -> dict[str, int]:
        found: dict[str, int] = {}
        columns = (self.trials[each] for each in ("trial", "kind", "params", "stages"))
        for trial, kind, params, keys in zip(*columns, strict=True):
            for name in (trial, json.loads(params)["of"]) if kind == "inner" else (trial,):
                found[name] = found.get(name, 0) + len(keys)
        return found

    def chain_of(self, trial: str) -> pd.Series | None:
        """The record of the chain that stands for a trial: without inner folds its own, else its refit, else its chain
        over the first inner fold; None where it has none."""
        record = self.trial(trial)
        if not self.parts or record is None or len(record["stages"]):
            return record
        refit = self.refit(trial)
        return next(iter(self.chains(trial).values()), None) if refit is None else refit

    def out_of_fold(self, setting: str) -> dict[Part, pd.DataFrame] | None:
        """The predictions of a setting's chains, each of the patients that it left out, as `JUDGED_COLUMNS`; None where
        some are missing, or where there are no inner folds."""
        found = {}
        for part, record in self.chains(setting).items():
            key = record["stages"][-1]
            # every chain of the search is read for this, and kept: a small part of its predictions
            if key not in self._judged:
                frame = self._read_predictions(key, ["split", *JUDGED_COLUMNS])
                if frame is not None:
                    frame = frame.loc[frame["split"] == "validation", list(JUDGED_COLUMNS)].reset_index(drop=True)
                self._judged[key] = frame
            judged = self._judged[key]
            if judged is None:
                return None
            found[part] = judged
        return found or None

    # -- choices -------------------------------------------------------------------------------------------------------

    def choose(self, settings: pd.DataFrame) -> pd.Series:
        """The chosen one of some complete settings, at least one, by the study's rule."""
        rule = self.plain["study"]["choose"]
        return chosen(settings, self.metric, rule, self.standard_error)

    def standard_error(self, trial: str) -> float:
        """That of a trial's objective, over the development patients; NaN where it cannot be told."""
        frames = self.out_of_fold(trial)
        return judge(frames, self.metric, self.magnifications).standard_error if frames else math.nan

    @property
    def searched_baselines(self) -> tuple[str, ...]:
        """The baselines that are searched, in the order of [study]."""
        settings = self.plain["study"]
        wanted = settings["baselines"] if settings["baselines_searched"] else ()
        return tuple(dict.fromkeys(name for name in wanted if name in SEARCHABLE_BASELINES))

    def settings_of(self, baseline: str) -> pd.DataFrame:
        """The trials that tried settings of a searched baseline."""
        of_kind = self.trials[self.trials["kind"] == "baseline_search"]
        return of_kind[of_kind["trial"].map(baseline_of) == baseline]

    @cached_property
    def chosen_of(self) -> dict[str, str]:
        """The trial that was chosen for each searched baseline of which a setting is complete."""
        found = {}
        for name in self.searched_baselines:
            settings = with_objective(self.settings_of(name))
            if len(settings):
                found[name] = str(self.choose(settings)["trial"])
        return found

    def named(self, trial: str) -> str:
        """The trial that a name stands for: a searched baseline's name for its chosen setting, any other for itself."""
        return self.chosen_of.get(trial, trial) if trial in self.searched_baselines else trial

    # -- trials --------------------------------------------------------------------------------------------------------

    @property
    def searched(self) -> pd.DataFrame:
        """Complete searched trials with an objective."""
        of_kind = self.trials[(self.trials["kind"] == "search") & (self.trials["state"] == "complete")]
        return of_kind[of_kind["objective"].map(math.isfinite).astype(bool)]

    @property
    def failed(self) -> pd.DataFrame:
        """Failed trials. A chain over inner folds is left out where its setting's record tells of it."""
        failed = self.trials[self.trials["state"] == "failed"]
        return failed[failed["kind"] != "inner"]

    @property
    def settings(self) -> pd.DataFrame:
        """Complete searched trials with an objective, each setting once."""
        return self.different(self.searched)

    def different(self, found: pd.DataFrame) -> pd.DataFrame:
        """Searched trials, each setting once: of trials that ended in the same stage, the first. A sampler may suggest
        a setting again; its trial then repeats known numbers and is no further evidence."""
        if not self.parts:
            return different_settings(found)
        # with inner folds a setting has no stages of its own: those of its first chain tell it from others
        stages = [next((list(each["stages"]) for each in self.chains(one).values()), []) for one in found["trial"]]
        known = found.assign(stages=pd.Series(stages, index=found.index, dtype=object))
        return found.loc[different_settings(known).index]

    @property
    def judged_settings(self) -> pd.DataFrame:
        """`settings`, and with inner folds also those that racing dropped, in the order of trials."""
        dropped = (self.trials["kind"] == "search") & (self.trials["state"] == "pruned")
        return self.trials[self.trials["trial"].isin(self.settings["trial"]) | (dropped & bool(self.parts))]

    def trial(self, name: str) -> pd.Series | None:
        """A trial's record, None where it has not ended. That of a searched baseline is its chosen setting's."""
        found = self.trials[self.trials["trial"] == self.named(name)]
        return found.iloc[0] if len(found) else None

    @cached_property
    def stages(self) -> dict[str, StageRecord]:
        """Every finished stage by key, without its measures, which are in the rows."""

        def one(key: str) -> StageRecord | str | None:
            try:
                return StageRecord.from_plain(self.folder.read_json(self.folder.stage(key)), measured=False)
            except FileNotFoundError:
                return None  # not finished yet
            except NewerFormat as error:
                return f"stages/{key} was written in format {error.version} by a newer version and was left out"
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return f"{StudyFolder.stage(key)} is damaged and was left out"

        keys = self.folder.names(self.folder.stages)
        with ThreadPoolExecutor(_THREADS) as pool:
            read = dict(zip(keys, pool.map(one, keys), strict=True))
        self.notes.extend(found for found in read.values() if isinstance(found, str))
        return {key: found for key, found in read.items() if isinstance(found, StageRecord)}

    def predictions(self, key: str) -> pd.DataFrame | None:
        """A stage's predictions on validation and test images; None, and a note, where they cannot be read."""
        if key not in self._predictions:
            self._predictions[key] = self._read_predictions(key)
        return self._predictions[key]

    def _read_predictions(self, key: str, columns: list[str] | None = None) -> pd.DataFrame | None:
        """The predictions of a stage, all columns or these; None, and a note, where they cannot be read."""
        name = self.folder.predictions(key)
        try:
            with self.folder.fs.open_input_file(self.folder.path(name)) as file:
                frame = pq.read_table(file, columns=columns).to_pandas()
            frame[["split", *JUDGED_COLUMNS]]
        except FileNotFoundError:
            what = "missing"
        except (OSError, ValueError, KeyError, pa.ArrowException):
            what = "damaged"
        else:
            return frame
        note = f"{name} is {what}: intervals and curves of this stage are left out"
        if note not in self.notes:
            self.notes.append(note)
        return None


def load(location: str) -> Study:
    """Read a study's folder, a path or a URI, also while a sweep writes to it. Raises `UserError` where there is no
    study, and where study.toml is damaged or not that of its trials. `notes` tell which rows or records are damaged,
    and that a newer version wrote the study."""
    folder = StudyFolder(location)
    notes: list[str] = []
    plain = settings_of(folder, notes)
    status = Status()
    try:
        status = Status.read(folder)
    except FileNotFoundError:
        pass
    except ValueError:
        notes.append(f"{folder.status} is damaged and was left out")
    trials = read_trials(folder, notes)
    rows = read_rows(folder, notes)
    ended = rows["trial"].cat.categories.isin(trials["trial"])
    if not ended.all():  # killed between rows and record: that trial has not ended
        rows = rows[ended[rows["trial"].cat.codes]].reset_index(drop=True)
    study = Study(folder, plain, status, trials, rows, notes)
    if not study.parts and (trials["kind"] == "inner").any():
        raise UserError(
            f"The study file '{folder.path(folder.study)}' is damaged: [study] objective_folds and objective_repeats "
            "name no inner folds, on which its trials were judged"
        )
    of_stages = trials[trials["stages"].map(len) > 0]
    if without := set(of_stages["trial"]) - set(rows["trial"].cat.categories):
        names = ", ".join(sorted(without)[:5]) + (" and more" if len(without) > 5 else "")
        notes.append(
            f"The rows of {counted(len(without), 'trial')} are lost ({names}), which tables and sentences leave out; "
            "start the sweep again to have them written anew"
        )
    return study


def importance(study: Study) -> dict[str, dict[str, float]]:
    """{evaluator: {parameter: value}} from importance.json; {} where there is none."""
    try:
        found = study.folder.read_json(StudyFolder.importance)
        return {str(name): {str(k): float(v) for k, v in values.items()} for name, values in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        study.notes.append(f"{StudyFolder.importance} is damaged and was left out")
        return {}
