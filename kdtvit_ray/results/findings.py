"""Everything that the answer, the report and the terminal say of one study, each part computed once.

    findings = Findings(load("studies/demo"))
    findings.best.trial, findings.headline.wide("auc"), findings.transfer["auc"].forgetting

A part is computed when it is first asked for. What is computed lies in the modules beside this one, one for each
question:

    study           the folder as it lies on storage: settings, trials, rows, stages, predictions
    models          which models are compared: the best chain, the other students' best chains, the baselines
    models_on_test  the headline table and the comparisons, with intervals over patients
    baseline_search which setting each searched baseline chose, from how many
    patients        one decision a patient over all magnifications, and what each of them adds
    nested          the whole search again in other outer folds
    confirmation    chains that were trained again over folds and seeds
    pooling         such chains on the test patients of all folds: differences over patients and trainings
    judged          all settings on the same drawn development patients, where there are inner folds
    trust           which settings cannot be told apart, how optimistic the choice is, who agrees with whom
    effects         what the searched settings did to the objective
    transfer        what chains learned, kept and lost; `kept` has the loss over patients
    effort          what the study took: sharing, seconds, timeline, learning curves
    operating       a temperature and thresholds from development patients, and how far they hold on test
    images          one model's errors: ROC, reliability, confusion, operating points
    subtypes        accuracy, macro F1, balanced accuracy and recalls over the dataset's classes
    bootstrap       intervals and differences over patients; `statistics` has those over folds and settings
    answer          plain sentences
"""

import math
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from kdtvit_ray.metrics import gain
from kdtvit_ray.results import baseline_search, confirmation, effects, effort, models, models_on_test, transfer, trust
from kdtvit_ray.results.backward_transfer import backward_over_patients
from kdtvit_ray.results.baseline_search import BaselineSearch
from kdtvit_ray.results.bootstrap import Difference
from kdtvit_ray.results.choice import with_objective
from kdtvit_ray.results.confirmation import Pooled
from kdtvit_ray.results.effects import Effect
from kdtvit_ray.results.effects_over_patients import OverPatients, effects_over_patients
from kdtvit_ray.results.effort import Sharing, StoredOutputs
from kdtvit_ray.results.images import tells_classes
from kdtvit_ray.results.judged_settings import (
    compared,
    development_patients,
    inner_folds_in_common,
    judged_alike,
    judged_together,
)
from kdtvit_ray.results.models import Best, Model, predictions_on_test
from kdtvit_ray.results.models_on_test import Comparison, Headline, Measured
from kdtvit_ray.results.nested import Nested, nested
from kdtvit_ray.results.operating import Operating, operating
from kdtvit_ray.results.out_of_fold import Judged, Part
from kdtvit_ray.results.patients import Patients, patients
from kdtvit_ray.results.statistics import REPLICATES, Sides
from kdtvit_ray.results.study import Study, importance
from kdtvit_ray.results.subtypes import Subtypes, subtypes
from kdtvit_ray.results.transfer import MeanTransfer, Transfer
from kdtvit_ray.results.words import BASELINE_NAMES, metric_name


@dataclass
class Findings:
    """`replicates`: bootstrap draws behind the intervals; 10,000 are for a paper, 2,000 are enough for a look."""

    study: Study
    replicates: int = REPLICATES

    @property
    def objective(self) -> str:
        """The study's objective in words."""
        return f"mean {self.study.judged_on} {metric_name(self.study.metric)}"

    @cached_property
    def best(self) -> Best | None:
        return models.best(self.study)

    @cached_property
    def best_by_student(self) -> list[Best]:
        return models.best_by_student(self.study)

    @cached_property
    def models(self) -> list[Model]:
        return models.models(self.study)

    @cached_property
    def same_stages(self) -> dict[str, str]:
        """By name of a model that trained the same stages as an earlier one: that one's name."""
        return models.same_stages(self.study, self.models)

    @cached_property
    def measured(self) -> Measured:
        """The models' numbers on test and their bootstrap draws: the dearest part."""
        return models_on_test.measure_models(self.study, self.models, self.replicates)

    @cached_property
    def headline(self) -> Headline:
        return models_on_test.headline(self.study, self.models, self.measured)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        if self.best is None:
            return []
        return models_on_test.comparisons(self.study, self.best, self.models, self.measured)

    @cached_property
    def patients(self) -> Patients | None:
        """Decisions on test patients over all magnifications; None where no model has predictions."""
        return patients(self.study, self.models, self.replicates)

    @cached_property
    def operating(self) -> Operating | None:
        """The chosen model's temperature and thresholds; None while it is not trained."""
        best = self.best
        if best is None or not best.keys:
            return None
        return operating(self.study, best.trial, best.keys[-1], self.replicates)

    @cached_property
    def subtypes(self) -> dict[str, Subtypes]:
        """By the name of every model that tells the dataset's classes apart, on the same drawn patients as `measured`;
        {} with a two-class head and where there are two classes."""
        drawn, found = self.measured.resampling, {}
        for model in self.models:
            frame = predictions_on_test(self.study, model)
            if drawn is not None and frame is not None and len(frame) and tells_classes(frame, self.study.dataset):
                found[model.name] = subtypes(frame, self.study.dataset, drawn, self.study.magnifications)
        return found

    @cached_property
    def runs_again(self) -> pd.DataFrame:
        """Every run of a confirmation on test."""
        return confirmation.runs(self.study)

    @cached_property
    def confirmed(self) -> pd.DataFrame:
        return confirmation.confirmed(self.study, self.runs_again)

    @cached_property
    def uneven(self) -> str:
        """That some confirmed chains lack folds that others have; "" where all have the same."""
        return confirmation.uneven(self.study, self.runs_again, self.confirmed) if len(self.confirmed) else ""

    @cached_property
    def pooled(self) -> Pooled | None:
        return confirmation.pooled(self.study, self.runs_again, self.replicates)

    @cached_property
    def nested(self) -> Nested | None:
        return nested(self.study, self.replicates)

    @cached_property
    def judged(self) -> dict[str, Judged]:
        """The objective of every complete setting and baseline, all on the same drawn patients; {} without inner
        folds."""
        return judged_together(self.study)

    @cached_property
    def development_patients(self) -> Sides:
        """How many patients the best chain was chosen on; none without inner folds."""
        return development_patients(self.study, self.best.trial) if self.best else Sides()

    @cached_property
    def search(self) -> trust.Search | None:
        return trust.search(self.study, self.judged)

    @cached_property
    def other_settings(self) -> list[trust.Rival]:
        """The chosen setting minus every other one, over the development patients; [] without inner folds."""
        ours = self.best
        return trust.against(self.judged, ours.trial, list(self.study.settings["trial"])) if ours else []

    @cached_property
    def flattery(self) -> dict[str, float]:
        """By baseline: how much its difference from the chosen setting is expected to be too good, in units of the
        metric: the optimism of the search for the chain, less that of the search for the baseline."""
        study = self.study
        if self.search is None:
            return {}
        tried = {name: list(with_objective(study.settings_of(name))["trial"]) for name in study.chosen_of}
        own = {name: trust.optimism(self.judged, settings, study.metric) for name, settings in tried.items()}
        net = {name: self.search.optimism - own.get(name, 0.0) for name in BASELINE_NAMES}
        return {name: float(gain(study.metric, much)) for name, much in net.items() if math.isfinite(much)}

    @cached_property
    def baselines_in_development(self) -> list[trust.Rival]:
        """The chosen setting minus every baseline, over the development patients, less their `flattery`; those that
        trained the same stages once, [] without inner folds."""
        ours, names = self.best, [name for name in BASELINE_NAMES if name not in self.same_stages]
        return trust.against(self.judged, ours.trial, names, self.flattery) if ours else []

    @cached_property
    def baseline_searches(self) -> dict[str, BaselineSearch]:
        """By baseline that was searched: which setting it chose, from how many."""
        return baseline_search.baseline_searches(self.study)

    @cached_property
    def judged_alike(self) -> dict[str, Judged]:
        """Every setting on the inner folds that all of them had; {} without inner folds."""
        return judged_alike(self.study)

    @cached_property
    def folds_in_common(self) -> list[Part]:
        """The inner folds that all settings that are `compared` had."""
        return inner_folds_in_common(self.study, list(self.compared["trial"]))

    @cached_property
    def compared(self) -> pd.DataFrame:
        """The records of the settings whose values are compared, with the objective that they have there."""
        return compared(self.study, self.judged_alike)

    @cached_property
    def effects(self) -> dict[str, Effect]:
        """By the name that was searched."""
        return {effect.setting: effect for effect in effects.effects(self.compared, self.study.metric)}

    @cached_property
    def effects_over_patients(self) -> dict[str, OverPatients]:
        """By the name that was searched; {} without inner folds."""
        return effects_over_patients(self.study, self.judged_alike)

    @cached_property
    def positive_shares(self) -> dict[int, float]:
        return transfer.positive_shares(self.study, self.best)

    @cached_property
    def transfer(self) -> dict[str, Transfer]:
        """The best chain's transfer by metric, the study's metric first; {} without a chain of several stages
        that has all its rows."""
        return {metric: found for metric in self.metrics if (found := self.transfer_of(metric)) is not None}

    @cached_property
    def backward_over_patients(self) -> dict[str, Difference]:
        """The best chain's backward transfer by metric, over test patients; {} where predictions are missing."""
        return backward_over_patients(self.study, self.best.trial, self.metrics, self.replicates) if self.best else {}

    @cached_property
    def transfer_without_rehearsal(self) -> dict[str, Transfer]:
        """That of the best chain's twin without rehearsal, as above; {} where the best chain does not rehearse."""
        record = models.without_rehearsal(self.study, self.best)
        if record is None:
            return {}
        found = {metric: self.transfer_of(metric, record["trial"]) for metric in self.metrics}
        return {metric: each for metric, each in found.items() if each is not None}

    @cached_property
    def mean_transfer(self) -> dict[str, MeanTransfer]:
        """The mean over chains by metric, as above."""
        return {metric: found for metric in self.metrics if (found := self.mean_transfer_of(metric)) is not None}

    def transfer_of(self, metric: str, trial: str | None = None) -> Transfer | None:
        """The transfer of the best chain, or of a trial's chain."""
        name = trial or (self.best.trial if self.best else None)
        return transfer.chain_transfer(self.study, name, metric, self.positive_shares) if name else None

    def mean_transfer_of(self, metric: str) -> MeanTransfer | None:
        return transfer.mean_transfer(self.study, metric, self.positive_shares)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics in which transfer is shown."""
        return transfer.transfer_metrics(self.study)

    @cached_property
    def importance(self) -> dict[str, dict[str, float]]:
        return importance(self.study)

    @cached_property
    def sharing(self) -> Sharing:
        return effort.sharing(self.study)

    @cached_property
    def stored_outputs(self) -> StoredOutputs | None:
        return effort.stored_outputs(self.study)

    @cached_property
    def variants_told(self) -> str:
        return effort.variants_told(self.study)

    @cached_property
    def rehearsal_told(self) -> str:
        return effort.rehearsal_told(effort.specs(self.study))

    @cached_property
    def timeline(self) -> pd.DataFrame:
        return effort.timeline(self.study)

    @cached_property
    def cost_by_depth(self) -> pd.DataFrame:
        return effort.cost_by_depth(self.study)
