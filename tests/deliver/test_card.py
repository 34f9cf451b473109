"""What the model card says of where a model comes from, and of a study that still goes on."""

import re
from dataclasses import replace

import pytest
import timm

from kdtvit_ray.deliver.card import UNFINISHED, card
from kdtvit_ray.deliver.export import Compared
from kdtvit_ray.deliver.model_choice import choose_model, describe
from kdtvit_ray.results.operating import operating
from kdtvit_ray.results.study import load


def written(study, trial="best"):
    """The card of a trial of an open study, its texts without line ends."""
    chosen = choose_model(study, trial)
    decided = operating(study, chosen.trial, chosen.key, 10)
    return card(chosen, describe(chosen), decided, Compared(64, False, 1e-6))


def section(text, title):
    return text.split(f". {title}\n")[1].split("\n## ")[0]


def lines(text):
    """The cells of a table's lines, without its head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", text, re.M)[2:]]


def shown(number):
    """A whole number as tables write it."""
    return f"{number:,}".replace(",", "\u2009")


def changed(study, key, **parts):
    """Give the stage `key` of an open study another spec."""
    record = study.stages[key]
    spec = {**record.spec, **{name: {**record.spec[name], **part} for name, part in parts.items()}}
    study.stages[key] = replace(record, spec=spec)


def goes_on(study, *, refits):
    """The study in memory as it was before its last trials had ended, before its refits too where `refits` is false."""
    study.plain["study"]["trials"] = 5
    if not refits:
        study.trials = study.trials[study.trials["kind"] != "refit"].reset_index(drop=True)
    assert not study.finished


# -- origin ------------------------------------------------------------------------------------------------------------


def test_every_stage_has_its_model_and_what_it_starts_from(study):
    opened = load(str(study))
    first, last = choose_model(opened).stages
    digest = "ab" * 16
    changed(opened, last, model={"name": "tiny", "args": [], "weights": "/data/pathology_ssl.pth", "digest": digest})
    opened.stages[last] = replace(opened.stages[last], spec={**opened.stages[last].spec, "warm": False})
    one, two = lines(section(written(opened), "How it was made"))
    assert one[2:5] == [
        "micro with depth 2, embed_dim 24, num_heads 2, patch_size 4",
        shown(opened.stages[first].parameters),
        "random weights",
    ]
    assert two[2:5] == ["tiny", shown(opened.stages[last].parameters), f"pathology_ssl.pth (digest {digest})"]
    assert "have a licence of their own, which this card neither knows nor grants." in written(opened)


def test_a_stage_that_goes_on_with_the_weights_before_says_so(study):
    text = written(load(str(study)))
    assert [line[4] for line in lines(section(text, "How it was made"))] == ["random weights", "the stage before"]
    assert "licence" not in text


@pytest.mark.parametrize(
    ("name", "of_this_timm", "told", "licence"),
    [
        ("tiny", True, "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", True),
        ("tiny", False, "timm's hub", False),
        ("vit_small_patch16_224.dino", True, "timm/vit_small_patch16_224.dino", True),
        ("vit_small_patch16_224.dino", False, "vit_small_patch16_224.dino", False),
    ],
)
def test_weights_of_the_hub_are_named_as_far_as_that_is_certain(study, name, of_this_timm, told, licence):
    opened = load(str(study))
    first = choose_model(opened).stages[0]
    changed(opened, first, model={"name": name, "args": [], "weights": "hub", "digest": "ab12"})
    version = timm.__version__ if of_this_timm else "0.1"
    opened.stages[first] = replace(opened.stages[first], versions={"timm": version})
    text = written(opened)
    assert lines(section(text, "How it was made"))[0][4] == f"{told} (digest ab12)"
    assert "licence of their own" in text
    assert (f"timm names apache-2.0 for {told}" in text) == licence


def test_a_teacher_is_told_where_there_is_one(study):
    opened = load(str(study))
    told = "the teacher is the model of the stage before"
    assert told in written(opened)
    assert told not in written(opened, "joint")
    key = choose_model(opened).stages[-1]
    opened.stages[key] = replace(opened.stages[key], spec={**opened.stages[key].spec, "distillation": None})
    assert told not in written(opened)


# -- which model it is -------------------------------------------------------------------------------------------------


def test_a_refit_stands_for_its_setting_and_a_chain_over_an_inner_fold_for_itself(study):
    opened = load(str(study))
    best = choose_model(opened)
    by_refit = choose_model(opened, best.chain)
    assert best.chain.endswith("-refit")
    assert (by_refit.trial, by_refit.key, by_refit.is_best) == (best.trial, best.key, True)
    assert written(opened, best.chain) == written(opened)
    inner = choose_model(opened, f"{best.trial}-i2")
    assert (inner.trial, inner.left_out, inner.is_best) == (f"{best.trial}-i2", 2, False)
    text = written(opened, inner.trial)
    assert "It was trained on the development patients of all inner folds but fold 2." in text
    other = next(name for name in ("t0000", "t0001") if name != best.trial)
    assert "of all inner folds but fold 1: a setting that was not chosen" in written(opened, other)


# -- a study that goes on ----------------------------------------------------------------------------------------------


def test_while_a_study_goes_on_its_cards_have_no_figures_on_test(study):
    best, opened = choose_model(str(study)).trial, load(str(study))
    goes_on(opened, refits=False)
    text = written(opened, best)
    assert "the setting that the search has chosen so far" in text
    assert "of all inner folds but fold 1, and not on all of them yet." in text
    assert text.count(UNFINISHED) == 2
    assert "specificity" in section(text, "Decisions")
    assert {line[3] for line in lines(section(text, "Decisions"))} == {"development"}
    said = text.replace(UNFINISHED, "")
    for word in ("AUC |", "backward transfer", "test 0", "those on test"):
        assert word not in said, word
        assert word in written(load(str(study))), word


def test_a_study_with_refits_that_goes_on_has_none_either(study):
    opened = load(str(study))
    goes_on(opened, refits=True)
    assert written(opened).count(UNFINISHED) == 2
