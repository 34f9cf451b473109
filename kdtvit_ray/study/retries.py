"""Which failed trials are run again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from kdtvit_ray.errors import UserError


@dataclass(frozen=True)
class Retried:
    """Failed trials of earlier sessions that are run again: those that are `named`, and with `infrastructure` all that
    failed for reasons of the machines."""

    infrastructure: bool = False
    named: frozenset[str] = frozenset()

    def note(self, standing: Mapping[str, tuple[str, str]]) -> str:
        """One sentence on the named trials of which records stand, given the kind and state of each that does; empty
        where there are none. The same command may have run them again before."""
        told = [f"{trial} ({standing[trial][1]})" for trial in sorted(self.named & standing.keys())]
        return f"--retry runs failed trials again, and so leaves {', '.join(told)}" if told else ""


def without(records: pd.DataFrame, retried: Retried) -> pd.DataFrame:
    """The records of the trials that are not run again.

    A setting that failed on an inner fold is judged again with the chains that it has, and those that failed are run.
    One with a chain that failed of its own is not, unless it or one of its chains is named.
    A named trial that has not failed stays as it is: an earlier session may have run it again.
    Raises `UserError` for a named trial that has no record.
    """
    failed = records[records["state"] == "failed"]
    strangers = retried.named - set(records["trial"])
    if strangers:
        allowed = ", ".join(failed["trial"][failed["kind"] != "inner"]) or "none, no trial failed"
        raise UserError(
            f"--retry names {', '.join(sorted(strangers))}, of which the study has no record; allowed: {allowed}"
        )
    setting = _settings(failed)
    named = retried.named | set(_settings(records[records["trial"].isin(retried.named)]))
    again = failed["trial"].isin(named) | setting.isin(named - {""})
    if retried.infrastructure:
        again |= failed["fault"] == "infrastructure"
        # it would fail with the other chain, again and again
        stuck = set(setting[~again]) - {""}
        again &= ~(failed["trial"].isin(stuck) | setting.isin(stuck))
    trials = set(failed["trial"][again]) | set(setting[again])
    return records[~(records["trial"].isin(trials) & (records["state"] == "failed"))]


def _settings(records: pd.DataFrame) -> pd.Series:
    """The setting that each record's chain belongs to, where it is a chain over an inner fold; else empty."""
    told = zip(records["params"], records["kind"], strict=True)
    found = [json.loads(text).get("of", "") if kind == "inner" else "" for text, kind in told]
    return pd.Series(found, index=records.index, dtype=object)
