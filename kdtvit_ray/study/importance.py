"""Importance of each searched value by Optuna's evaluators, stored for the report, which knows no Optuna."""

import logging
import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, create_trial

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.results.statistics import FEWEST_FOR_IMPORTANCE
from kdtvit_ray.study.ledger import Ledger

MOST_TRIALS = 500
"""fANOVA walks every leaf of 64 trees for each value: above this many trials it is given an even selection of them."""

log = logging.getLogger(__name__)


def write_importance(folder: StudyFolder, ledger: Ledger) -> None:
    """Write `importance.json`, {evaluator: {parameter: share}}; nothing where too few trials differ."""
    if "" not in ledger.searches:
        return
    study = ledger.searches[""].search.study
    complete = [each for each in study.get_trials(deepcopy=False) if each.state.name == "COMPLETE"]
    if found := importances(complete, study.directions[0]):
        folder.write_json(folder.importance, found)


def importances(
    complete: Sequence[FrozenTrial], direction: optuna.study.StudyDirection = optuna.study.StudyDirection.MAXIMIZE
) -> dict[str, dict[str, float]]:
    """Shares of the first objective's variance by evaluator and parameter; empty where too few trials differ. An
    evaluator that was given a selection of the trials says so in its name.

    fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014) and PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023).
    """
    if (
        len(complete) < FEWEST_FOR_IMPORTANCE
        or len({each.values[0] for each in complete}) < 2
        or not complete[0].params
    ):
        return {}
    found = {}
    step = -(-len(complete) // MOST_TRIALS)
    for name, evaluator, trials in (
        ("PED-ANOVA", PedAnovaImportanceEvaluator(), complete),
        ("fANOVA", FanovaImportanceEvaluator(seed=0), complete[::step]),
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                shares = get_param_importances(_counted(trials, direction), evaluator=evaluator)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            log.warning("No importance by %s: %s", name, error)
            continue
        selection = f" over {len(trials)} of {len(complete)} trials" if len(trials) < len(complete) else ""
        found[name + selection] = shares
    return found


def _counted(trials: Sequence[FrozenTrial], direction: optuna.study.StudyDirection) -> optuna.Study:
    """A study of these trials' first objective, with every choice as its place in the list of choices.

    Optuna's fANOVA gives each choice a column of its own and then takes all their combinations: 2^24 for 24 orders.
    Places in a list are one column, which trees split as finely as they need to.
    """
    study = optuna.create_study(direction=direction)
    study.add_trials(
        create_trial(
            value=trial.values[0],
            params={name: trial.distributions[name].to_internal_repr(value) for name, value in trial.params.items()},
            distributions={name: _places(trial.distributions[name]) for name in trial.params},
        )
        for trial in trials
    )
    return study


def _places(kind: BaseDistribution) -> BaseDistribution:
    return IntDistribution(0, len(kind.choices) - 1) if isinstance(kind, CategoricalDistribution) else kind
