"""The objective over inner folds: which chains a setting gets, when racing drops it, and what is refit at the end."""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.report.build import assemble
from kdtvit_ray.report.document import markdown
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.out_of_fold import Judged, Part, judge, share_worse
from kdtvit_ray.results.rivals import rivals
from kdtvit_ray.results.rows import read_trials
from kdtvit_ray.results.study import load
from kdtvit_ray.study import asks, inner_folds
from kdtvit_ray.study.inner_folds import Chain, InnerFolds
from kdtvit_ray.study.ledger import Ledger
from tests.study import judged_stages, made_stages

TIMES = ["started", "finished"]


def open_ledger(place, retried=None, replicates=(), **study):
    folder, space = StudyFolder(str(place)), judged_stages.space(**study)
    return Ledger(folder, space, replicates, judged_stages.MAGNIFICATIONS, retried)


def end(ledger, ask, state="complete", reason=""):
    for spec in ask.stages:
        judged_stages.save(ledger.store, spec)
    done = len(ask.stages) if state == "complete" else 0
    ledger.ended(ask.trial, state, done, reason)


def finish(ledger, pick=lambda asks: 0, most=10_000, failing=()):
    """Run all chains: of those that are under way, the one that `pick` says ends next. Those that are named fail for
    reasons of the machines."""
    running = []
    for _ in range(most):
        while (ask := ledger.next()) is not None:
            running.append(ask)
        if not running:
            return
        ask = running.pop(pick(running))
        if ask.trial in failing:
            ledger.ended(ask.trial, "failed", 0, "its worker died", "infrastructure")
        else:
            end(ledger, ask)


def records(ledger):
    return read_trials(ledger.folder).drop(columns=TIMES)


class Growing(dict):
    """Grows while somebody walks over it, as by another thread."""

    def values(self):
        for each in super().values():
            self[str(len(self))] = each
            yield each


def test_what_is_left_can_be_told_while_another_thread_changes_it(tmp_path):
    ledger = open_ledger(tmp_path, trials=2, lag=2, baselines=[])
    end(ledger, ledger.next())
    left, ended = ledger.left, ledger.ended_chains
    assert (ended, left > 0) == (1, True)
    ledger.records, ledger.inner._open = Growing(ledger.records), Growing(ledger.inner._open)
    assert (ledger.left, ledger.ended_chains) == (left, ended)


def test_a_setting_is_judged_on_the_predictions_of_all_development_patients(tmp_path):
    ledger = open_ledger(tmp_path, trials=1, baselines=[])
    chains = [ledger.next() for _ in range(4)]
    assert [chain.trial for chain in chains] == ["t0000-i1", "t0000-i2", "t0000-i3", "t0000-i4"], "side by side"
    for chain in chains:
        end(ledger, chain)
    record = read_trials(ledger.folder).set_index("trial").loc["t0000"]
    frames = pd.concat([judged_stages.predictions(chain.stages[-1]) for chain in chains])
    frames = frames[frames["split"] == "validation"]
    assert frames["patient"].nunique() == judged_stages.PATIENTS
    by_magnification = [
        roc_auc_score(part["malignant"], part["probability"]) for _, part in frames.groupby("magnification")
    ]
    assert record["objective"] == pytest.approx(np.mean(by_magnification), abs=1e-12)
    assert record["state"] == "complete"
    assert list(record["stages"]) == [], "the stages are those of its chains"
    assert ledger.best.objective == record["objective"]
    assert list(ledger.best.by_magnification.values()) == pytest.approx(by_magnification)


def test_the_best_setting_the_other_students_best_and_the_baselines_are_refit_on_all_patients(tmp_path):
    ledger = open_ledger(tmp_path)
    finish(ledger)
    assert ledger.finished()
    assert ledger.left == 0
    trials = read_trials(ledger.folder)
    settings = trials[(trials["kind"] == "search") & (trials["state"] == "complete")]
    wanted = {"joint"} | {
        part.sort_values("objective", ascending=False).iloc[0]["trial"] for _, part in settings.groupby("student")
    }
    refits = trials[trials["kind"] == "refit"]
    assert {json.loads(each)["of"] for each in refits["params"]} == wanted
    for record in refits.itertuples():
        spec = ledger.store.record(record.stages[-1]).spec
        assert spec["data"]["inner_folds"] == 1, "trained on all development patients"
    assert len(trials[trials["kind"] == "search"]) == 12, "trials count different settings"


def test_the_chosen_setting_that_rehearses_is_refit_without_as_well(tmp_path):
    root = judged_stages.finished(tmp_path, training={"rehearsal": 0.3}, trials=6)
    findings = Findings(load(str(root)), replicates=50)
    best = findings.best
    trials = read_trials(StudyFolder(str(root))).set_index("trial")
    twin = trials.loc[f"{best.trial}-without_rehearsal-refit"]
    specs = [findings.study.stages[key].spec for key in twin["stages"]]
    assert [each["data"]["inner_folds"] for each in specs] == [1] * 4
    assert not any(each["training"]["rehearsal"] for each in specs)
    assert (twin["order"], twin["temperature"]) == (best.order, json.dumps(list(best.temperature)))
    kinds = [each.kind for each in findings.models]
    assert kinds == ["best", "student", "baseline", "baseline"]
    assert [each.name for each in findings.models][2:] == ["without_rehearsal", "joint"]
    assert findings.models[2].label == "The chosen chain without rehearsal"
    assert "without_rehearsal" in {each.against.name for each in findings.comparisons}
    assert sum("the chosen chain without rehearsal" in each for each in rivals(findings)) == 1
    transfer, other = findings.transfer["auc"], findings.transfer_without_rehearsal["auc"]
    assert other.order == transfer.order
    assert not other.matrix.equals(transfer.matrix)
    assert findings.rehearsal_told.startswith(
        "up to 30% of a stage's images, whose epochs then have 1.43 times as many"
    )
    assert markdown(assemble(findings)).count("the same without rehearsal") >= 3


def test_racing_drops_settings_that_are_behind_and_keeps_the_best(tmp_path):
    plain, raced = open_ledger(tmp_path / "plain", racing=False), open_ledger(tmp_path / "raced")
    finish(plain)
    finish(raced)
    chains = [int((records(each)["kind"] == "inner").sum()) for each in (plain, raced)]
    assert chains[0] == 13 * 4, "without racing every setting gets all inner folds"
    assert chains[1] < chains[0]
    states = records(raced).query("kind == 'search'")["state"]
    assert (states == "pruned").any()
    dropped = records(raced).query("kind == 'search' and state == 'pruned'")["trial"]
    of_dropped = [json.loads(each)["of"] for each in records(raced).query("kind == 'inner'")["params"]]
    assert all(2 <= of_dropped.count(trial) < 4 for trial in dropped), "none is dropped before its second inner fold"


def told_with(certainty, part=1, patients=10):
    """Predictions of patients of one inner fold, two images each, whose probabilities lie around `certainty` on the
    side of the truth: the larger, the better in every metric."""
    rng, malignant = np.random.default_rng(part), np.arange(2 * patients) % 4 > 1
    right = np.clip(certainty + rng.uniform(-0.04, 0.04, 2 * patients), 0, 1)
    told = {"magnification": 40, "malignant": malignant, "probability": np.where(malignant, right, 1 - right)}
    return pd.DataFrame({**told, "patient": [f"p{part}-{image // 2}" for image in range(2 * patients)]})


@pytest.mark.parametrize("metric", ["brier", "log_loss", "accuracy"])
def test_the_worse_of_two_is_worse_in_nearly_all_draws(metric):
    bad, good = ({Part(1, part): told_with(each, part) for part in (1, 2)} for each in (0.48, 0.8))
    bad, good = (judge(each, metric, (40,)) for each in (bad, good))
    assert share_worse(bad, good, metric) > 0.95
    assert share_worse(good, bad, metric) < 0.05
    assert share_worse(good, good, metric) == 0, "a draw in which both are equal does not count"


class Raced:
    """Settings that are judged one after the other, each from the predictions that its inner folds are told with."""

    def __init__(self, **study):
        self.space = judged_stages.space(racing=True, **{"metric": "brier", "lag": 1, **study})
        self.predictions = {}
        self.inner = InnerFolds(self.space, self._read, (40,))

    def _read(self, key):
        if key not in self.predictions:
            raise FileNotFoundError(key)
        return self.predictions[key]

    def ask(self, number):
        params = {"order": "40>100>200>400", "student": "micro", "temperature": 1.0, "alpha": (number % 5 + 1) / 10}
        return asks.searched(self.space, number, params)

    def judged(self, number, told):
        """The verdict on a setting; `told` gives the predictions of an inner fold."""
        ask, verdict = self.ask(number), None
        self.inner.begin(ask)
        while verdict is None:
            while (chain := self.inner.next()) is not None:
                key = chain.stages[-1].key
                self.predictions[key] = told(chain.params["inner"])
                self.inner.ended(chain, Chain("complete", "", key, 1_000, 1.0))
            verdict = self.inner.verdict(ask.trial)
        return verdict

    def restored(self, number, told, objective, parts=4):
        """A complete setting of an earlier session."""
        trial = self.ask(number).trial
        for part in range(1, parts + 1):
            key = f"{trial}-{part}"
            self.predictions[key] = told(part)
            self.inner.restore_chain(trial, Part(1, part), Chain("complete", "", key, 1_000, 1.0))
        self.inner.restore_complete(trial, number, objective)


def certain(certainty):
    return lambda part: told_with(certainty, part)


@pytest.mark.parametrize("metric", ["brier", "log_loss"])
def test_where_less_is_better_settings_race_against_the_lowest(metric):
    """The second setting is better than the first one, the third lies between, the fourth is the best of all."""
    raced = Raced(metric=metric)
    states = [raced.judged(n, certain(each)).state for n, each in enumerate((0.6, 0.9, 0.75, 0.95))]
    assert states == ["complete", "complete", "pruned", "complete"]


@pytest.mark.parametrize(("lag", "state"), [(1, "pruned"), (2, "complete")])
def test_a_setting_races_against_those_alone_that_the_lag_lets_be_known(lag, state):
    raced = Raced(lag=lag)
    for number, each in enumerate((0.6, 0.9)):
        raced.judged(number, certain(each))
    assert raced.judged(2, certain(0.75)).state == state


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
def test_of_settings_that_are_equally_good_the_earlier_one_is_raced_against(numbers):
    raced = Raced()
    for number in numbers:
        raced.restored(number, certain((0.6, 0.9)[number]), objective=0.2)
    assert raced.judged(2, certain(0.75)).state == "complete", "it is behind the later one"


@pytest.mark.parametrize(("confidence", "state"), [(0.6, "pruned"), (0.99, "complete")])
def test_how_sure_racing_has_to_be_is_the_studys_setting(confidence, state):
    """On every inner fold a setting is worse for six patients of ten, and better for the others."""

    def mixed(part):
        frame, worse = told_with(0.7, part), np.arange(20) // 2 % 10 < 6
        shift = np.where(worse, -0.1, 0.14) * np.where(frame["malignant"], 1, -1)
        return frame.assign(probability=frame["probability"] + shift)

    raced = Raced(racing_confidence=confidence)
    raced.judged(0, certain(0.7))
    raced_on = {Part(1, part): (mixed(part), told_with(0.7, part)) for part in (1, 2, 3)}
    for count in (2, 3):
        both = ({part: raced_on[part][side] for part in sorted(raced_on)[:count]} for side in (0, 1))
        ours, theirs = (judge(each, "brier", (40,)) for each in both)
        assert 0.65 < share_worse(ours, theirs, "brier") < 0.98
    assert raced.judged(1, mixed).state == state


def test_a_setting_is_judged_once_on_the_same_inner_folds_and_forgotten_when_nobody_races_against_it(monkeypatch):
    made = []
    monkeypatch.setattr(inner_folds, "judge", lambda frames, *of: made.append(len(frames)) or judge(frames, *of))
    raced = Raced()
    raced.judged(0, certain(0.8))
    for number in (1, 2):
        raced.judged(number, certain(0.6))
    assert made == [4, 2, 2, 2], "the first over all four, then over two as each of the others"
    raced.judged(3, certain(0.9))
    raced.judged(4, certain(0.6))
    assert {trial for trial, _ in raced.inner._judged} == {"t0003"}
    assert raced.inner._draws.keys() == {raced.inner.parts[:2], raced.inner.parts[:3], raced.inner.parts}


def test_a_setting_is_judged_on_all_inner_folds_that_it_has_records_of():
    """The predictions of the third one are gone, and the first two show that the setting is behind."""
    raced = Raced()
    raced.judged(0, certain(0.9))
    setting = raced.ask(1)
    for part in (1, 2, 3):
        raced.predictions[f"key {part}"] = told_with(0.6, part)
        raced.inner.restore_chain(setting.trial, Part(1, part), Chain("complete", "", f"key {part}", 1_000, 1.0))
    del raced.predictions["key 3"]
    verdict = raced.judged(1, certain(0.6))
    assert (verdict.state, len(verdict.chains)) == ("pruned", 3)


def test_a_searched_baseline_races_against_its_own_settings():
    raced = Raced(baselines=["sequential"], baselines_searched=True)
    raced.judged(0, certain(0.9))
    own = raced.space.searched_baselines()["sequential"]
    ask = asks.searched(own, 5, next(own.samples(random.Random(0))))
    raced.inner.begin(ask)
    assert sum(raced.inner.next() is not None for _ in range(5)) == 4, "it is given all inner folds at once"


@pytest.mark.parametrize("order", [("stage", "infrastructure"), ("infrastructure", "stage")])
def test_a_setting_of_which_a_chain_fails_of_its_own_fails_of_its_own(order):
    raced = Raced()
    raced.inner.begin(raced.ask(0))
    chains = [raced.inner.next() for _ in range(4)]
    for chain, fault in zip(chains, (*order, "", ""), strict=True):
        raced.inner.ended(chain, Chain("failed" if fault else "complete", f"by {fault}", "", 0, 0.0, fault))
    verdict = raced.inner.verdict("t0000")
    assert (verdict.state, verdict.reason, verdict.fault) == ("failed", "by stage", "stage")


def test_an_objective_over_repeats_rests_on_the_patients_of_the_smallest_and_errs_as_they_vary():
    frames = {Part(1, 1): told_with(0.6, 1, 10), Part(2, 1): told_with(0.6, 1, 6)}
    found = judge(frames, "accuracy", (40,))
    assert found.patients == judge({Part(2, 1): frames[Part(2, 1)]}, "accuracy", (40,)).patients
    assert found.patients < judge({Part(1, 1): frames[Part(1, 1)]}, "accuracy", (40,)).patients
    assert Judged(0.5, {}, np.array([0.4, 0.6, np.nan, 0.8])).standard_error == pytest.approx(0.2)


@pytest.mark.parametrize("racing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_order_in_which_chains_end_changes_nothing(tmp_path, racing):
    orders = (lambda asks: 0, lambda asks: len(asks) - 1, lambda asks: len(asks) // 2)
    ledgers = [open_ledger(tmp_path / str(number), racing=racing, trials=7) for number in range(len(orders))]
    for ledger, pick in zip(ledgers, orders, strict=True):
        finish(ledger, pick)
        assert ledger.finished()
    first, *others = (records(ledger) for ledger in ledgers)
    for each in others:
        pd.testing.assert_frame_equal(first, each)


def test_a_study_that_is_stopped_after_every_chain_is_the_study_that_was_never_stopped(tmp_path):
    plain = open_ledger(tmp_path / "plain", trials=7)
    finish(plain)
    for _ in range(200):
        ledger = open_ledger(tmp_path / "resumed", trials=7)
        ask = ledger.next()
        if ask is None:
            break
        ledger.next()  # one more is under way when it is killed
        end(ledger, ask)
    assert ledger.finished()
    pd.testing.assert_frame_equal(records(ledger), records(plain))
    assert ledger.best == plain.best


@pytest.mark.parametrize("metric", ["brier", "log_loss"])
def test_of_a_proper_score_the_lowest_is_the_best(tmp_path, metric):
    ledger = open_ledger(tmp_path, trials=8, metric=metric, baselines=[], racing=False)
    finish(ledger)
    trials = read_trials(ledger.folder)
    settings = trials[trials["kind"] == "search"]
    lowest = settings.loc[settings["objective"].idxmin(), "trial"]
    assert ledger.best.trial == lowest
    assert ledger.best.objective == settings["objective"].min() > 0
    refits = [json.loads(each)["of"] for each in trials.loc[trials["kind"] == "refit", "params"]]
    assert refits[0] == lowest or lowest in refits
    optuna_study = ledger.searches[""].search.study
    assert optuna_study.direction.name == "MINIMIZE"
    assert optuna_study.best_value == settings["objective"].min()


def test_a_setting_fails_with_its_chain_and_is_given_no_further_ones(tmp_path):
    ledger = open_ledger(tmp_path, trials=2, baselines=[])
    chains = [ledger.next() for _ in range(2)]
    end(ledger, chains[0], "failed", "the loss is not finite")
    end(ledger, chains[1])
    finish(ledger)
    assert ledger.finished()
    found = read_trials(ledger.folder).set_index("trial")
    assert found.loc["t0000", "state"] == "failed"
    assert found.loc["t0000", "reason"] == "the loss is not finite"
    assert found.loc["t0001", "state"] == "complete"


def test_a_settings_cost_is_that_of_its_chains(tmp_path):
    ledger = open_ledger(tmp_path, trials=1, baselines=[])
    for seconds in (1.0, 2.0, 3.0, 4.0):
        chain = ledger.next()
        for spec in chain.stages:
            if not ledger.store.has(spec.key):
                cost = {**made_stages.COST, "train_seconds": seconds, "evaluate_seconds": 0.5, "parameters": 1_000}
                record = replace(made_stages.record(spec), measures=judged_stages.measures(spec), cost=cost)
                ledger.store.save(record, {}, pa.Table.from_pandas(judged_stages.predictions(spec)))
        ledger.ended(chain.trial, "complete", len(chain.stages))
    found = records(ledger).set_index("trial")["cost_seconds"]
    assert found["t0000-i3"] == len(chain.stages) * 3.5
    assert found["t0000"] == len(chain.stages) * (1 + 2 + 3 + 4 + 4 * 0.5)


def test_a_chain_whose_predictions_are_gone_is_run_again(tmp_path):
    ledger = open_ledger(tmp_path, trials=1, baselines=[])
    first = ledger.next()
    end(ledger, first)
    ledger.folder.delete(ledger.folder.predictions(first.stages[-1].key))
    again = open_ledger(tmp_path, trials=1, baselines=[])
    assert first.trial in {again.next().trial for _ in range(4)}


def test_repeats_cut_the_patients_anew_and_have_their_own_seeds(tmp_path):
    space = judged_stages.space(objective_repeats=2)
    assert [part.name for part in space.parts] == ["i1", "i2", "i3", "i4", "r2-i1", "r2-i2", "r2-i3", "r2-i4"]
    params = next(space.samples(random.Random(0)))
    specs = [space.inner_fold(part).plan(params)[0] for part in space.parts]
    assert {spec.seed for spec in specs[:4]} == {1}
    assert {spec.seed for spec in specs[4:]} == {2}
    assert {spec.data.partition for spec in specs[4:]} == {1}
    assert len({spec.key for spec in specs}) == 8


def test_settings_share_the_stages_of_their_inner_folds(tmp_path):
    space = judged_stages.space()
    base = {"order": "40>100>200>400", "student": "micro"}
    one, two = ({**base, "temperature": 1.0, "alpha": alpha} for alpha in (0.1, 0.9))
    for part in space.parts:
        ours, theirs = (space.inner_fold(part).plan(params) for params in (one, two))
        assert ours[0].key == theirs[0].key
        assert ours[1].key != theirs[1].key
    firsts = {space.inner_fold(part).plan(one)[0].key for part in space.parts}
    assert len(firsts) == len(space.parts), "inner folds share nothing: each has other training patients"
    assert all(a != b for a, b in itertools.pairwise(sorted(firsts)))
