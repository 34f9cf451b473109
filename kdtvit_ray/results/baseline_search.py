"""Baselines that were searched like the chains that they are compared with: how many settings each tried, which one it
chose."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from kdtvit_ray.results.rows import baseline_of
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.undefined_objectives import undefined
from kdtvit_ray.results.words import baseline_name, metric_name, tried


@dataclass(frozen=True)
class BaselineSearch:
    """The search for the settings of one baseline: `trial`, the chosen one of the `complete` settings, with its
    `objective` and its values in words; `dropped` more were dropped by racing, `failed` ones failed, `undefined` ones
    were complete without an objective."""

    baseline: str
    trial: str
    values: str
    objective: float
    complete: int
    dropped: int
    failed: int
    undefined: int = 0

    @property
    def tried(self) -> int:
        """How many settings were judged."""
        return self.complete + self.dropped + self.undefined

    @property
    def chosen_from(self) -> str:
        """`4 different settings (2 of which racing dropped)`."""
        rest = [f"{self.dropped} of which racing dropped"] * bool(self.dropped)
        has = "has" if self.undefined == 1 else "have"
        rest += [f"{self.undefined} of which {has} no objective"] * bool(self.undefined)
        dropped = f" ({', '.join(rest)})" if rest else ""
        return tried(self.tried) + (dropped if self.tried > 1 else "")

    @property
    def had_choice(self) -> bool:
        """Whether there was more than one setting to choose from."""
        return self.complete > 1


def baseline_searches(study: Study) -> dict[str, BaselineSearch]:
    """By baseline; without those of which no setting is complete (yet)."""
    found = {}
    for baseline, trial in study.chosen_of.items():
        record, states = study.trial(trial), study.settings_of(baseline)["state"].value_counts()
        assert record is not None
        settings = undefined(study, "baseline_search")["trial"]
        without = int((settings.map(baseline_of) == baseline).sum())
        values = [f"{name} {value}" for name, value in json.loads(record["params"]).items()]
        found[baseline] = BaselineSearch(
            baseline=baseline,
            trial=trial,
            values=", ".join(values) or "the fixed settings",
            objective=float(record["objective"]),
            complete=int(states.get("complete", 0)) - without,
            dropped=int(states.get("pruned", 0)),
            failed=int(states.get("failed", 0)),
            undefined=without,
        )
    return found


def told(study: Study, searches: dict[str, BaselineSearch]) -> Iterator[str]:
    """A sentence on each searched baseline."""
    for name in study.searched_baselines:
        each = searches.get(name)
        if each is None:
            yield f"No setting of the searched baseline {baseline_name(name)} is complete, so that it is not compared."
            continue
        yield (
            f"The baseline {baseline_name(name)} was searched by the same rules as the chains, with no more trials "
            f"than they: from {each.chosen_from} it has {each.trial} ({each.values}), whose {study.judged_on} "
            f"{metric_name(study.metric)} is {each.objective:.3f}."
        )
