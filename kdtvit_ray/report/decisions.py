"""A model's temperature and thresholds, fitted on development patients, and how far they hold: for the report and the
model card."""

import math

from kdtvit_ray.report.tables import Column, Estimate, Table
from kdtvit_ray.results.operating import Operating, Rates

NOT_FITTED = (
    "There are no predictions of development patients of both classes, so no temperature and no threshold was fitted; "
    "the threshold is 0.5."
)

SOUND = "; those on test have no such flaw"


def fitted_on(decided: Operating, positive: str) -> str:
    """What was fitted on whom, and the log loss before and after the temperature."""
    losses = "; ".join(
        f"{name} {before:.3f} before, {after:.3f} after" for name, (before, after) in decided.log_loss.items()
    )
    return (
        f"Temperature and thresholds were fitted on development patients ({decided.judged_on}), never on test. The "
        f"temperature {decided.temperature:.3f} divides the log odds of {positive}: log loss on {losses}. "
        "Thresholds are on the probability before the temperature"
    )


def thresholds(decided: Operating) -> Table:
    on_test = any(each.test for each in decided.points)
    table = Table(
        "thresholds",
        "Thresholds, and how far they hold: all magnifications together, 95 % intervals over patients. The thresholds "
        "balanced and sensitive were chosen on these very images of development patients, so rates there are too good, "
        f"and their intervals allow for the patients but not for the choice{SOUND if on_test else ''}.",
        [
            Column("name"),
            Column("chosen for"),
            Column("threshold", 4),
            Column("patients"),
            Column("sensitivity", 3),
            Column("specificity", 3),
        ],
    )
    for each in decided.points:
        for who, rates in (("development", each.development), ("test", each.test))[: 1 + on_test]:
            table.add(each.name, each.why, each.threshold, who, *_cells(rates))
    return table


def _cells(rates: Rates | None) -> list[Estimate]:
    if rates is None:
        return [Estimate(math.nan), Estimate(math.nan)]
    return [Estimate.of(rates.sensitivity), Estimate.of(rates.specificity)]
