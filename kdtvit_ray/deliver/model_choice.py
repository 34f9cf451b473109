"""Which model of a study is meant: that of the chosen setting, of a trial, or of a baseline."""

import json
import re
from dataclasses import dataclass
from typing import Any

from kdtvit_ray.deliver.description import Description
from kdtvit_ray.errors import UserError, unknown
from kdtvit_ray.recipe import StageSpec
from kdtvit_ray.results.models import best
from kdtvit_ray.results.operating import decisions
from kdtvit_ray.results.rows import SEARCHES
from kdtvit_ray.results.stage_record import StageRecord
from kdtvit_ray.results.study import Study, load
from kdtvit_ray.study.asks import trial_named
from kdtvit_ray.study.store import DamagedStage, StageStore

BEST = "best"


@dataclass(frozen=True)
class Chosen:
    """One model of a study: the last stage of `chain`, a trial that stands for `trial`. With inner folds that is its
    refit on all development patients, or, where there is none, its chain over the first inner fold. `is_best` says
    whether it is the one that the search chose, or has chosen so far."""

    study: Study
    trial: str
    chain: str
    stages: tuple[str, ...]
    record: StageRecord
    is_best: bool

    @property
    def key(self) -> str:
        return self.stages[-1]

    @property
    def left_out(self) -> int:
        """The inner fold whose patients its stages were not trained on; 0 for none."""
        data = self.record.spec["data"]
        return int(data["inner"]) if data["inner_folds"] > 1 else 0

    @property
    def refit(self) -> bool:
        """Whether all patients that are to train the study's models trained this one."""
        return not self.left_out

    @property
    def trained(self) -> tuple[int, ...]:
        """The magnifications that the stages of the chain were trained at, in the order of the dataset."""
        chain = self.study.trial(self.chain)
        order = "" if chain is None else chain["order"]
        own = set(map(int, re.findall("[0-9]+", order))) | set(self.record.spec["magnifications"])
        return tuple(each for each in self.study.dataset.magnifications if each in own)

    @property
    def weights(self) -> bytes:
        """The weights' file (safetensors), as it was saved. Raises `UserError` where it is damaged."""
        try:
            return StageStore(self.study.folder).whole(self.key)
        except DamagedStage as error:
            raise _damaged(self.study, error) from None


def choose_model(source: str | Study, trial: str = BEST) -> Chosen:
    """The model of `trial` ("best", a number, or the name of a trial or a baseline) of a study, which may be
    open already. Raises `UserError` for a name that is none, a trial without a trained model, and a damaged stage."""
    study = load(source) if isinstance(source, str) else source
    winner = best(study)
    if trial == BEST:
        if winner is None:
            raise UserError(
                f"Study '{study.folder.shown}' has no complete searched trial, so none is the best; allowed: "
                f"{_names(study)}"
            )
        if not winner.keys:
            raise UserError(
                f"The best setting of study '{study.folder.shown}', {winner.trial}, was not trained on all development "
                f"patients yet; let the sweep finish, or choose one of: {_names(study)}"
            )
    name = winner.trial if trial == BEST and winner else _named(study, trial)
    record = study.chain_of(name)
    if record is None or not len(record["stages"]):
        raise UserError(
            f"Trial '{name}' of study '{study.folder.shown}' has no trained model; allowed: {_names(study)}"
        )
    stages = tuple(record["stages"])
    try:
        stage = StageStore(study.folder).record(stages[-1])
    except DamagedStage as error:
        raise _damaged(study, error) from None
    return Chosen(
        study=study,
        trial=name,
        chain=record["trial"],
        stages=stages,
        record=stage,
        is_best=winner is not None and name == winner.trial,
    )


def describe(chosen: Chosen) -> Description:
    """How the model of a study is used. Temperature and thresholds are fitted on development patients."""
    study, record = chosen.study, chosen.record
    temperature, thresholds = decisions(study, chosen.trial, chosen.key)
    spec = record.spec
    return Description(
        preprocessing=dict(record.preprocessing),
        classes=list(record.classes["names"]),
        positive=list(record.classes["positive"]),
        words=list(study.dataset.words),
        logit_offsets=list(record.weighting["logit_offsets"]),
        numeric=dict(spec["numeric"]),
        temperature=temperature,
        thresholds=thresholds,
        trained=list(chosen.trained),
        tested=list(study.magnifications),
        provenance={
            "study": study.name,
            "study_id": study.plain["id"],
            "trial": chosen.trial,
            "chain": chosen.chain,
            "stage": chosen.key,
            "stages": list(chosen.stages),
            "fingerprint": spec["data"]["fingerprint"],
            "protocol": study.protocol,
            "versions": dict(record.versions),
        },
    )


def network_of(chosen: Chosen) -> Any:
    """The model of a study in PyTorch, float32 on the CPU."""
    from safetensors.torch import load

    from kdtvit_ray.learning.models import build

    network = build(StageSpec.from_dict(dict(chosen.record.spec)).model, 0, initial=False)
    network.load_state_dict(load(chosen.weights))
    return network.eval()


def _named(study: Study, trial: str) -> str:
    """A trial's name from what the user wrote: `7`, `t0007`, `t0007-refit`, which stands for its setting, or `joint`,
    which is its chosen setting where that baseline was searched."""
    name = trial_named(trial)
    record = study.trial(name)
    if record is None:
        single = [each for each in study.trials["trial"] if re.fullmatch(rf"{re.escape(name)}-[0-9]+", each)]
        if single:
            raise UserError(
                f"'{trial}' has one model for each magnification, not one for all; allowed: {', '.join(sorted(single))}"
            )
        chosen = [BEST] if best(study) else []
        allowed = [*chosen, *_trained(study)] or [_names(study)]
        raise UserError(unknown(f"trial of '{study.folder.shown}'", trial, allowed))
    if record["state"] == "failed":
        raise UserError(f"Trial '{name}' of study '{study.folder.shown}' failed: {record['reason']}")
    if record["kind"] == "refit":
        setting = study.trial(json.loads(record["params"])["of"])
        record = record if setting is None else setting
    return str(record["trial"])


def _trained(study: Study) -> list[str]:
    """Names of the trials that have a model."""
    of_kind = study.trials[study.trials["kind"].isin(["baseline", *SEARCHES]) & (study.trials["state"] != "failed")]
    return [each for each in of_kind["trial"] if (chain := study.chain_of(each)) is not None and len(chain["stages"])]


def _names(study: Study) -> str:
    return ", ".join(_trained(study)) or "none, no trial has ended yet"


def _damaged(study: Study, error: DamagedStage) -> UserError:
    return UserError(f"In study '{study.folder.shown}' {error}; run its sweep again, which trains damaged stages again")
