"""Every word that a space may use has one meaning, and no other word has any: a missing entry is no silent default."""

import pytest
import torch

from kdtvit_ray import cli, metrics
from kdtvit_ray.arguments import parser
from kdtvit_ray.cluster import tuner
from kdtvit_ray.learning import losses
from kdtvit_ray.recipe import BASELINES, Distillation
from kdtvit_ray.study import baselines, search, settings
from kdtvit_ray.study.space import Space


@pytest.mark.parametrize(
    ("declared", "meanings"),
    [
        (settings.SAMPLERS, search.SAMPLERS),
        (settings.PRUNERS, tuner.SCHEDULERS),
        (BASELINES, baselines.BASELINES),
    ],
    ids=["samplers", "pruners", "baselines"],
)
def test_the_declared_words_are_those_that_have_a_meaning(declared, meanings):
    assert set(declared) == set(meanings)
    assert len(set(declared)) == len(declared)


def test_every_command_of_the_parser_is_carried_out():
    (commands,) = (each for each in parser()._actions if each.dest != "version" and each.choices)
    assert set(commands.choices) == set(cli.COMMANDS)


def test_every_metric_that_may_be_the_objective_is_measured():
    measured = metrics.measure([True, False], [0.9, 0.1])
    assert set(measured) == set(metrics.METRICS)
    assert set(settings.METRICS) <= set(measured)


def test_a_word_without_a_meaning_is_an_error_where_it_is_used():
    """Past the reader of spaces, which refuses it with the nearest word."""
    strange = Space({"study": {"trials": 2, "objective_folds": 1}})
    strange.study |= {"sampler": "bohb", "baselines": ["sequentail"]}
    with pytest.raises(KeyError, match="sequentail"):
        strange.baselines()
    with pytest.raises(KeyError, match="bohb"):
        search.Search(strange).suggest()
    logits, labels = torch.zeros(2, 8), torch.zeros(2, dtype=torch.long)
    objective = losses.Objective(Distillation(loss="hinton"), torch.ones(8), 0.0)
    with pytest.raises(KeyError, match="hinton"):
        objective(logits, logits, labels, 2)
