"""Which failed trials are run again."""

import json
from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.errors import UserError


@dataclass(frozen=True)
class Retried:
    """Failed trials of earlier sessions that are run again: those that are `named`, and with `infrastructure` all that
    failed for reasons of the machines."""

    infrastructure: bool = False
    named: frozenset[str] = frozenset()


def without(records: pd.DataFrame, retried: Retried) -> pd.DataFrame:
    """The records of the trials that are not run again.

    A setting that failed on an inner fold is judged again with the chains that it has, and those that failed are run.
    One with a chain that failed of its own is not, unless it or one of its chains is named.
    Raises `UserError` for a named trial that did not fail.
    """
    failed = records[records["state"] == "failed"]
    strangers = retried.named - set(failed["trial"])
    if strangers:
        allowed = ", ".join(failed["trial"][failed["kind"] != "inner"]) or "none, no trial failed"
        raise UserError(f"--retry names {', '.join(sorted(strangers))}, which did not fail; allowed: {allowed}")
    told = [
        json.loads(text) if kind == "inner" else {} for text, kind in zip(failed["params"], failed["kind"], strict=True)
    ]
    setting = pd.Series([each.get("of", "") for each in told], index=failed.index, dtype=object)
    named = retried.named | set(setting[failed["trial"].isin(retried.named)])
    again = failed["trial"].isin(named) | setting.isin(named - {""})
    if retried.infrastructure:
        again |= failed["fault"] == "infrastructure"
        # it would fail with the other chain, again and again
        stuck = set(setting[~again]) - {""}
        again &= ~(failed["trial"].isin(stuck) | setting.isin(stuck))
    trials = set(failed["trial"][again]) | set(setting[again])
    return records[~(records["trial"].isin(trials) & (records["state"] == "failed"))]
