"""Importance of each searched value by Optuna's evaluators, stored for the report, which knows no Optuna."""

import logging
import warnings

from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.study.ledger import Ledger

log = logging.getLogger(__name__)


def write_importance(folder: StudyFolder, ledger: Ledger) -> None:
    """Write `importance.json`, {evaluator: {parameter: share}}; nothing where too few trials differ."""
    study = ledger.search.study
    complete = [each for each in study.get_trials(deepcopy=False) if each.state.name == "COMPLETE"]
    if len(complete) < 4 or len({each.values[0] for each in complete}) < 2 or not complete[0].params:
        return
    found = {}
    # PED-ANOVA asks what makes a value low, so it is given the quality's negative
    for name, evaluator, sign in (
        ("PED-ANOVA", PedAnovaImportanceEvaluator(), -1.0),
        ("fANOVA", FanovaImportanceEvaluator(seed=0), 1.0),
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = get_param_importances(
                    study, evaluator=evaluator, target=lambda trial, sign=sign: sign * trial.values[0]
                )
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            log.warning("No importance by %s: %s", name, error)
    folder.write_json("importance.json", found)
