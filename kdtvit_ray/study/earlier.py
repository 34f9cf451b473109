"""What earlier sessions of a study have left: which records stand, and what was drawn for settings that have none.

A setting keeps its parameters whatever becomes of it: one that was still being judged, or that failed and is run again,
is not drawn anew, since what is known by now could give another one, to which its chains do not belong.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdtvit_ray.metrics import gain
from kdtvit_ray.results.out_of_fold import Part
from kdtvit_ray.results.rows import SEARCHES, baseline_of
from kdtvit_ray.study.retries import Retried, without


@dataclass(frozen=True)
class Drawn:
    """What was drawn for a searched setting, and whether it had ended."""

    number: int
    params: Mapping[str, Any]
    ended: bool = False


@dataclass(frozen=True)
class Earlier:
    """`records` stand, in the order in which they were read; the settings in `drawn`, by name, are run or judged again
    with the chains of their own among these. `again` tells whether a searched setting that had ended is among them."""

    records: pd.DataFrame
    drawn: Mapping[str, Drawn]
    again: bool


def earlier(
    found: pd.DataFrame,
    retried: Retried,
    parts: Sequence[Part] = (),
    least: int = 1,
    metric: str = "auc",
    readable: Callable[[str], bool] = lambda key: True,
    gaps: bool = False,
) -> Earlier:
    """Sort the records `found` on storage.

    Where settings are judged over inner folds, the `parts`, a chain of other parameters than its setting's is not its
    own (where results count as they come, a session that was taken over from can leave one). A judged setting, or
    baseline, stands with chains of its own: a complete one with one on each part, one that racing dropped with the
    first ones, `least` at least, a failed one with one that failed. There may be `gaps` in the chains of those that
    racing dropped where results count as they come. The predictions of some complete settings are needed again: of
    those that were the best when they were judged. `readable` tells by the key of a chain's last stage whether they are
    there; else the setting is judged again, and the chain run. A chain that has failed does not count where its setting
    stands without it.

    Without inner folds, it tells whether the models are whole that a study yields: those of the best trial of each
    search, and of the baselines. A trial whose model is not is run again.

    Raises `UserError` for a trial to run again that has no record.
    """
    records = without(found, retried)
    drawn = {each.trial: Drawn(int(each.number), json.loads(each.params), True) for each in _settings(found)}
    chains = _Chains(records[records["kind"] == "inner"], drawn)
    records = records.drop(index=chains.foreign)
    if parts:
        judged = _settings(records, "baseline")
        fallen = {each.trial for each in judged if not chains.hold(each, parts, least, gaps)}
        records = records[~records["trial"].isin(fallen)]
        fallen |= set(_unreadable(records, metric, chains, readable))
        # a chain that failed before its setting was run again is found once more where its later record is lost
        old = [line for line, setting in chains.failed.items() if setting in fallen]
        records = records[~records["trial"].isin(fallen)].drop(index=old)
        stand = {each.trial for each in _settings(records, "baseline") if each.state != "failed"}
        records = records.drop(index=[line for line, setting in chains.failed.items() if setting in stand])
    else:
        records = records[~records["trial"].isin(list(_damaged(records, metric, readable)))]
    standing = {each.trial for each in _settings(records)}
    ended = {each.trial for each in _settings(found)}
    left = {trial: each for trial, each in drawn.items() if each.number >= 0 and trial not in standing}
    return Earlier(records, left, bool(ended - standing))


class _Chains:
    """Chains over inner folds by the setting that they belong to. What was `drawn` for a setting without a record is
    what its latest chain says, and is added."""

    def __init__(self, records: pd.DataFrame, drawn: dict[str, Drawn]) -> None:
        self.last: dict[str, dict[Part, str]] = {}
        """Key of the last stage of each complete chain of a setting's own."""
        self.failed: dict[Any, str] = {}
        """The setting of each failed chain, by the index of its record."""
        self.foreign: list[Any] = []
        """Index of the records of chains that are none of their setting's."""
        told = {each.Index: json.loads(each.params) for each in records.itertuples()}
        for each in records.sort_values("finished", ascending=False, kind="stable").itertuples():
            drawn.setdefault(told[each.Index]["of"], Drawn(int(each.number), told[each.Index]["params"]))
        for each in records.itertuples():
            of = told[each.Index]
            if of["params"] != drawn[of["of"]].params:
                self.foreign.append(each.Index)
            elif each.state == "failed":
                self.failed[each.Index] = of["of"]
            else:
                self.last.setdefault(of["of"], {})[Part(of["repeat"], of["inner"])] = each.stages[-1]

    def hold(self, setting: Any, parts: Sequence[Part], least: int, gaps: bool) -> bool:
        """Whether a judged setting has the chains that it was judged by."""
        own = self.last.get(setting.trial, {}).keys()
        if setting.state == "pruned":
            return own >= set(parts[:least]) and (gaps or own == set(parts[: len(own)]))
        if setting.state == "complete":
            return own == set(parts)
        # else its record is that of before it was run again, and the later one is lost
        return setting.trial in self.failed.values()


def _unreadable(records: pd.DataFrame, metric: str, chains: _Chains, readable: Callable[[str], bool]) -> Sequence[str]:
    """Complete settings of which predictions are missing that are needed: those of settings that were the best."""
    best: dict[str, float] = {}
    found = []
    for each in sorted(_settings(records), key=lambda setting: setting.number):
        search, quality = baseline_of(each.trial), gain(metric, each.objective)
        if each.state != "complete" or not quality > best.get(search, float("-inf")):
            continue
        if all(readable(key) for key in chains.last[each.trial].values()):
            best[search] = quality
        else:
            found.append(each.trial)
    return found


def _damaged(records: pd.DataFrame, metric: str, whole: Callable[[str], bool]) -> Iterator[str]:
    """The best trial of each search, and the baselines, of which the model is not whole."""
    complete = records[(records["state"] == "complete") & (records["stages"].map(len) > 0)]
    best: dict[str, Any] = {}
    for each in _settings(complete):
        search = baseline_of(each.trial)
        if not math.isnan(each.objective) and (search not in best or _before(each, best[search], metric)):
            best[search] = each
    for each in (*best.values(), *complete[complete["kind"] == "baseline"].itertuples()):
        if not whole(each.stages[-1]):
            yield each.trial


def _before(one: Any, other: Any, metric: str) -> bool:
    """Whether a trial is better than another one, of equal ones the earlier."""
    return (gain(metric, one.objective), -one.number) > (gain(metric, other.objective), -other.number)


def _settings(records: pd.DataFrame, *others: str) -> list[Any]:
    """Records of searched settings, and those of other kinds."""
    return list(records[records["kind"].isin((*SEARCHES, *others))].itertuples())
