"""How far a choice can be trusted: against scipy, by hand, and on studies whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdtvit_ray.report.build import write_report
from kdtvit_ray.results.answer import answer
from kdtvit_ray.results.effects_over_patients import main_effects
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.out_of_fold import Judged
from kdtvit_ray.results.study import load
from kdtvit_ray.results.trust import against, optimism, spearman
from tests.results.null_study import null_study
from tests.study import judged_stages


def judged(value, replicates, patients=20):
    return Judged(value, {}, np.asarray(replicates, dtype=float), patients)


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return Findings(load(str(judged_stages.finished(tmp_path_factory.mktemp("judged")))), 500)


def test_all_settings_are_judged_on_the_same_drawn_patients(findings):
    assert set(findings.study.settings["trial"]) < set(findings.judged)
    for trial, each in findings.judged.items():
        record = findings.study.trial(trial)
        assert each.value == pytest.approx(record["objective"], abs=1e-12)
    best = findings.best.trial
    rivals = {each.trial: each for each in findings.other_settings}
    for trial, rival in rivals.items():
        difference = findings.judged[best].replicates - findings.judged[trial].replicates
        assert rival.difference.value == pytest.approx(findings.judged[best].value - findings.judged[trial].value)
        assert rival.difference.low < np.median(difference) < rival.difference.high


def test_a_setting_that_is_worse_in_every_draw_is_told_apart_and_an_equal_one_is_not():
    rng = np.random.default_rng(0)
    base = rng.normal(0.9, 0.02, 2_000)
    found = {"a": judged(0.9, base), "b": judged(0.8, base - 0.1), "c": judged(0.9, base[::-1])}
    worse, equal = against(found, "a", ["a", "b", "c"])
    assert (worse.trial, worse.tied) == ("b", False)
    assert (equal.trial, equal.tied) == ("c", True)
    assert equal.p_holm >= equal.p


def test_optimism_is_zero_for_one_setting_and_that_of_the_maximum_for_many():
    rng = np.random.default_rng(1)
    alone = judged(0.8, 0.8 + rng.normal(0, 0.03, 4_000))
    assert optimism({"a": alone}, ["a"], "auc") == pytest.approx(0, abs=0.002)
    many = {str(n): judged(0.8, 0.8 + rng.normal(0, 0.03, 4_000)) for n in range(16)}
    expected = 0.03 * stats.norm.ppf(0.9)  # the mean of the largest of 16 is at 1.77 standard deviations
    assert optimism(many, list(many), "auc") == pytest.approx(0.03 * 1.766, abs=0.002)
    assert optimism(many, list(many), "auc") > expected
    assert optimism(many, list(many), "brier") == pytest.approx(0.03 * 1.766, abs=0.002), "where lower is better too"


def test_rank_correlations_are_scipys_and_missing_where_there_is_nothing_to_rank():
    first, second = np.array([1.0, 2, 3, 4, np.nan]), np.array([2.0, 1, 4, 3, 9])
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first[:4], second[:4]).statistic)
    assert np.isnan(spearman(first[:3], second[:3]))
    assert np.isnan(spearman(first, np.ones(5)))


def test_the_search_is_told_as_it_was(findings):
    found, study = findings.search, findings.study
    assert found.possible == len(found.table) * 4
    chains = study.trials[(study.trials["kind"] == "inner") & study.trials["trial"].str.startswith("t")]
    assert found.chains == len(chains) < found.possible, "racing spared some"
    complete = found.table[found.table["state"] == "complete"]
    assert found.table.loc[found.table["incumbent"], "objective"].is_monotonic_increasing
    assert complete["objective"].max() == found.table.loc[found.table["incumbent"], "objective"].iloc[-1]
    rows = study.rows
    for line in found.table.itertuples():
        keys = [each["stages"][-1] for each in study.chains(line.trial).values()]
        wanted = rows[rows["key"].isin(keys) & (rows["split"] == "test") & (rows["level"] == "image")]
        wanted = wanted[wanted["metric"] == "auc"].drop_duplicates(["key", "magnification"])
        assert line.test == pytest.approx(wanted["value"].mean())


def test_the_report_tells_it_in_words_and_tables(findings):
    written = write_report(findings)
    text = (findings.study.folder.local / written.markdown).read_text()
    assert "3. Can the search be trusted?" in text
    assert "points of AUC too good" in text
    assert "chosen on the development patients from" in text
    assert "validation" not in text[: text.index("Protocol and data")].replace("`validation", "")
    names = {name.rsplit("/", 1)[-1] for name in (*written.tables, *written.figures)}
    assert {"settings-against-chosen.csv", "baselines-in-development.csv", "trust-objectives.svg"} <= names
    assert any("cannot be told from it on the development patients" in each for each in answer(findings))


def test_an_interim_report_without_refits_has_no_figures_on_test(tmp_path):
    location = judged_stages.finished(tmp_path, trials=4)
    for path in location.glob("trials/*refit*"):
        path.unlink()
    findings = Findings(load(str(location)), 100)
    assert findings.best is not None
    assert findings.models == []
    write_report(findings)
    assert not any("On test images" in each for each in answer(findings))


# ---- effects over patients


def test_on_a_balanced_design_a_contrast_is_the_difference_of_means():
    rng = np.random.default_rng(2)
    columns = {"T": pd.Series([1, 1, 4, 4] * 3), "alpha": pd.Series([0.3, 0.9] * 6)}
    objective = pd.Series(rng.normal(0.8, 0.02, 12)) + 0.05 * (columns["T"] == 4)
    replicates = objective.to_numpy() + rng.normal(0, 0.01, (2_000, 1))
    found = main_effects(columns, objective.to_numpy(), replicates, 20)
    (contrast,) = found["T"].contrasts
    assert (contrast.high, contrast.low) == (4, 1)
    assert contrast.difference.value == pytest.approx(
        objective[columns["T"] == 4].mean() - objective[columns["T"] == 1].mean()
    )
    # patients move all settings alike here, so what is left is training noise: a t test with 9 degrees of freedom
    design = np.column_stack([np.ones(12), columns["T"] == 4, columns["alpha"] == 0.9]).astype(float)
    _, rss, _, _ = np.linalg.lstsq(design, objective.to_numpy(), rcond=None)
    error = np.sqrt(rss[0] / 9 * (1 / 6 + 1 / 6))
    assert contrast.p == pytest.approx(2 * stats.t.sf(contrast.difference.value / error, 9), rel=1e-6)
    assert found["alpha"].contrasts[0].p_holm == pytest.approx(found["alpha"].contrasts[0].p)


def test_what_the_settings_cannot_tell_is_not_claimed():
    columns = {"T": pd.Series([1, 1, 4, 4, 4]), "alpha": pd.Series([0.3, 0.3, 0.9, 0.9, 0.9])}
    objective = np.array([0.8, 0.81, 0.9, 0.91, 0.9])
    found = main_effects(columns, objective, np.tile(objective, (50, 1)), 20)
    assert found["T"].contrasts == (), "T and alpha go together in all settings"
    few = main_effects({"T": pd.Series([1, 1, 4, 4])}, objective[:4], np.tile(objective[:4], (50, 1)), 3)
    assert few["T"].contrasts == (), "three patients"


@pytest.mark.parametrize(("noise", "response"), [(0.0, 0.0), (0.02, 0.0), (0.01, 0.1)])
def test_settings_that_differ_in_name_only_seldom_make_a_difference(noise, response):
    rng, studies, claims = np.random.default_rng(3), 200, 0
    for _ in range(studies):
        found = main_effects(*null_study(rng, 24, 13, 43, noise, response=response))
        claims += any(each.p_holm < 0.05 for effect in found.values() for each in effect.contrasts)
    assert claims <= stats.binom.ppf(0.995, studies, 0.05)


def test_a_true_difference_is_found():
    rng, found = np.random.default_rng(4), 0
    for _ in range(50):
        effects = main_effects(*null_study(rng, 24, 13, 43, 0.01, effect=0.05))
        found += any(each.p_holm < 0.05 for each in effects["a"].contrasts)
    assert found >= 40
