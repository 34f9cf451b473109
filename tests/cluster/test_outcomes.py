"""Trials that do not end as complete: failed stages, stages that take their process down, trials stopped by ASHA."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest

from tests.cluster.real_sweeps import Sweep, sweep_log, trials

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def told_to_optuna(out):
    """The states of the search's trials in Optuna's journal, by number."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(Path(out) / "optuna" / "journal.log"))
    )
    study = optuna.load_study(study_name="noop", storage=storage)
    return Counter(trial.state.name for trial in study.trials)


@pytest.mark.slow
def test_failing_stages_fail_their_trials_with_the_reason_and_nothing_else(tmp_path, monkeypatch):
    """Alpha 0.9 raises in its first distilled stage, alpha 0.7 kills the worker's process each time it is tried."""
    monkeypatch.setenv("NOOP_FAILS", "0.9")
    monkeypatch.setenv("NOOP_DIES", "0.7")
    out = tmp_path / "study"
    study = {"trials": 6, "seed": 6, "sampler": "random", "baselines": ["joint"], "lag": 2}
    code, output = (sweep := Sweep(out, study, seconds="0.02", groups=1)).wait()
    assert code == 1, output + sweep_log(out)
    found = trials(out).set_index("trial")
    alphas = {name: json.loads(params).get("alpha") for name, params in found["params"].items()}
    assert {0.7, 0.9} <= set(alphas.values()), alphas
    for name, record in found.iterrows():
        expected = "failed" if alphas[name] in (0.7, 0.9) else "complete"
        assert record.state == expected, (name, record)
        assert len(record.stages) == (1 if expected == "failed" else 1 if name == "joint" else 4)
    reasons = {alphas[name]: reason for name, reason in found["reason"].items() if reason}
    assert "the loss is not finite at step 7" in reasons[0.9]
    assert "3" in reasons[0.7], reasons
    deaths = Counter(Path(f"{sweep.log}.deaths").read_text().split())
    assert set(deaths.values()) == {3}, "a stage has three attempts"
    states = told_to_optuna(out)
    assert states == {"COMPLETE": 4, "FAIL": 2}
    told = subprocess.run([sys.executable, "-m", "kdtvit_ray", "status", str(out)], capture_output=True, text=True)
    assert "2 failed" in told.stdout
    told = subprocess.run([sys.executable, "-m", "kdtvit_ray", "report", str(out)], capture_output=True, text=True)
    assert told.returncode == 2
    assert "predictions.parquet is damaged" in told.stderr, "stages that sleep predict nothing"
    report = (out / "report" / "report.md").read_text()
    for name, reason in found["reason"].items():
        if reason:
            assert name in report, "the report lists failed trials"
            assert reason in report, "with their reasons"

    code, output = Sweep(out, study).wait()
    assert code == 1, "the same command tells of the failed trials again"
    assert "is finished" in output


@pytest.mark.slow
def test_workers_that_die_before_they_have_a_stage_end_the_study_with_what_they_said(tmp_path, monkeypatch):
    monkeypatch.setenv("NOOP_NEVER_STARTS", "CUDA error: out of memory")
    out = tmp_path / "study"
    study = {"trials": 4, "sampler": "random", "baselines": [], "lag": 2}
    code, output = Sweep(out, study, groups=1).wait()
    assert code == 75, output + sweep_log(out)
    told = output.strip().splitlines()[-1]
    assert told.startswith("No node works: ")
    assert "died 3 times before it had a stage, last with: RuntimeError: CUDA error: out of memory" in told
    monkeypatch.delenv("NOOP_NEVER_STARTS")
    code, output = Sweep(out, study, groups=1).wait()
    assert code == 0, output + sweep_log(out)


@pytest.mark.slow
def test_errors_of_one_rank_end_as_they_should_in_a_real_train_group_too(tmp_path, monkeypatch):
    """As in test_ranks.py, where the groups are restarted by the test."""
    monkeypatch.setenv("NOOP_LACKS_MEMORY", "0.9")
    monkeypatch.setenv("NOOP_BREAKS", "0.7")
    out = tmp_path / "study"
    study = {"trials": 6, "seed": 6, "sampler": "random", "baselines": ["joint"], "lag": 6}
    code, output = Sweep(out, study, seconds="0.02", groups=1, workers=2).wait()
    assert code == 1, output + sweep_log(out)
    found = trials(out).set_index("trial")
    alphas = {name: json.loads(params).get("alpha") for name, params in found["params"].items()}
    reasons = {alphas[name]: reason for name, reason in found["reason"].items() if reason}
    assert "Out of memory on one rank" in reasons[0.9]
    assert "died 3 times" in reasons[0.7]
    assert reasons[0.7].endswith("last with RuntimeError: device-side assert")
    for name, record in found.iterrows():
        assert record.state == ("failed" if alphas[name] in (0.7, 0.9) else "complete"), (name, record)


@pytest.mark.slow
def test_asha_prunes_searched_trials_and_never_baselines(tmp_path):
    out = tmp_path / "study"
    study = {"trials": 10, "seed": 2, "lag": 5, "startup": 10, "pruner": "asha", "reproducible": False}
    code, output = (sweep := Sweep(out, study, seconds="0.02", groups=1)).wait()
    assert code == 0, output + sweep_log(out)
    found = trials(out)
    searched, baselines = found[found["kind"] == "search"], found[found["kind"] == "baseline"]
    pruned = searched[searched["state"] == "pruned"]
    assert set(baselines["state"]) == {"complete"}
    assert set(searched["state"]) == {"complete", "pruned"}, "half of what reaches a rung is stopped there"
    assert all(1 < len(keys) < 4 for keys in pruned["stages"]), "a first stage tells nothing of what is searched"
    assert pruned["objective"].notna().all(), "a pruned trial keeps what it reached"
    states = told_to_optuna(out)
    assert states == {"COMPLETE": len(searched) - len(pruned), "PRUNED": len(pruned)}
    wanted = {key for keys in found["stages"] for key in keys}
    trained = {key for key, _, _ in sweep.stages()}
    assert wanted <= trained
    # a stage that was being trained when its trial was pruned may still end; the rest of the chain must not
    assert len(trained - wanted) <= len(pruned)
