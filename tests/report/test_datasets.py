"""Reports of studies that are not about BreakHis: other magnifications, other classes, other words."""

import csv
import html
import io
import math
import re

import pytest
from rich.console import Console

from kdtvit_ray.errors import UserError
from kdtvit_ray.report import build, style, terminal
from kdtvit_ray.results.answer import answer
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models import predictions_on_test
from kdtvit_ray.results.study import load
from kdtvit_ray.results.subtypes import METRICS, told
from tests.report.latex import assert_tables_compile, needs_latex
from tests.results.datasets import SEVEN, SLIDES, TWO
from tests.results.fake_study import fake_study

REPLICATES = 200
SEVEN_ORDERS = ("1>2>4>10>20>40>100", "100>40>20>10>4>2>1")
BREAKHIS_WORDS = re.compile(r"BreakHis|KDTViT|400X|\b(?:DC|PT)\b|four magnifications|subtype")


def made(location, dataset, **more):
    options = {"trials": 6, "dataset": dataset, "patients": 40, "confirm": 2, "name": dataset.name} | more
    return load(str(fake_study(location, **options)))


@pytest.fixture(scope="module", params=[SLIDES, TWO, SEVEN], ids=lambda each: each.name)
def reported(request, tmp_path_factory):
    """Findings of a study of each dataset whose report is written."""
    more = {"orders": SEVEN_ORDERS} if request.param is SEVEN else {}
    study = made(tmp_path_factory.mktemp("study") / request.param.name, request.param, **more)
    findings = Findings(study, REPLICATES)
    build.write_report(findings)
    return findings


def text_of(findings, name="report.md"):
    return findings.study.folder.read(f"report/{name}").decode()


def table_of(findings, name):
    return list(csv.DictReader(io.StringIO(text_of(findings, f"tables/{name}.csv"))))


def test_the_dataset_is_the_study_s(reported):
    study = reported.study
    assert study.dataset in (SLIDES, TWO, SEVEN)
    assert study.magnifications == study.dataset.magnifications
    assert study.columns == (*(f"{each}X" for each in study.dataset.magnifications), "mean")


def test_the_name_of_a_set_reads_as_a_name(reported):
    """A set may be called `images`."""
    assert f"The dataset is '{reported.study.dataset.name}': images at" in text_of(reported)


def test_nothing_of_breakhis_is_in_the_page(reported):
    """The study file at the page's end is the user's own."""
    page = text_of(reported).split("The resolved study file:")[0]
    assert not BREAKHIS_WORDS.findall(page)
    if reported.study.dataset != SEVEN:
        assert not re.search("benign|malignant", page)
    assert "nan" not in page.lower().split()


def test_a_mean_over_fewer_magnifications_than_all_says_so(tmp_path):
    study = made(tmp_path / "study", SLIDES, orders=("5>20",), confirm=0)
    findings, out = Findings(study, REPLICATES), io.StringIO()
    build.write_report(findings)
    build.print_headline(findings, Console(file=out, width=80))
    own = "the chain's own magnifications, 5X and 20X,"
    assert findings.transfer_of("accuracy").over == own
    assert f"average over {own} after the last stage" in " ".join(out.getvalue().split())
    assert "Average: over a chain's own magnifications after the last stage." in text_of(findings)


def test_a_mean_over_all_magnifications_says_so(reported):
    assert {each.over for each in reported.transfer.values()} == {"all magnifications"}
    assert "Average: over all magnifications after the last stage." in text_of(reported)


def test_tables_have_a_column_for_each_magnification(reported):
    columns = set(reported.study.columns)
    for name in ("headline-image-auc", "confirmations-image-auc", "pooled-image-auc"):
        if reported.study.folder.exists(f"report/tables/{name}.csv"):
            assert columns <= set(table_of(reported, name)[0]), name
    matrix = table_of(reported, "forgetting-auc")
    assert [line["after stage"] for line in matrix][-1] == "constant answer"
    assert len(matrix) == len(reported.study.dataset.magnifications) + 1
    (best,) = [line for line in table_of(reported, "headline-image-auc") if line["chain"] == "Best chain"]
    wide = reported.headline.wide("auc")
    for column in columns:
        assert float(best[column]) == pytest.approx(wide.loc["Best chain", column])


def test_classes_and_sides_have_their_names(reported):
    dataset, page = reported.study.dataset, text_of(reported)
    assert f"with {dataset.positive} as the positive side" in page
    assert f"{dataset.negative}, " in page
    if len(dataset.classes) > 2:
        lines = table_of(reported, "confused-classes")
        assert {line["true"] for line in lines} <= set(dataset.classes)
        for line in lines:
            crosses = (line["true"] in dataset.positives) != (line["predicted"] in dataset.positives)
            assert line[f"crosses {dataset.negative} and {dataset.positive}"] == ("yes" if crosses else "no")
    else:
        assert "The dataset has two classes, one on each side" in page
    svg = text_of(reported, "figures/confusion.svg")
    assert all(f">{word}<" in svg for word in dataset.words)


def test_every_class_and_every_chain_has_its_numbers(reported):
    dataset, study = reported.study.dataset, reported.study
    if len(dataset.classes) == 2:
        assert reported.subtypes == {}
        assert not study.folder.exists("report/tables/class-recall.csv")
        return
    recalls = table_of(reported, "class-recall")
    assert [line["class"] for line in recalls] == list(dataset.classes)
    found = reported.subtypes["best"]
    test = predictions_on_test(study, reported.models[0])
    for of, line in enumerate(recalls):
        own = test[test["subtype"] == of]
        assert (int(line["images"]), int(line["patients"])) == (len(own), own["patient"].nunique())
        for column, place in zip((*study.tested_columns, "mean"), (*study.magnifications, "mean"), strict=True):
            value = found.recall(place, of).value
            assert line[column] == ("" if math.isnan(value) else repr(value))
    for metric in METRICS:
        lines = table_of(reported, f"classes-{metric}".replace("_", "-"))
        assert len(lines) == len(reported.models)
        assert float(lines[0]["mean"]) == pytest.approx(found.metric(metric, "mean").value)
    assert told(found) in html.unescape(text_of(reported, "index.html"))


def test_references_are_the_dataset_s(reported):
    page = text_of(reported)
    assert ("Others' results on" in page) == bool(reported.study.dataset.references)
    if reported.study.dataset == SLIDES:
        assert "Others' results on colon_slides as they reported them" in page
        (line,) = [line for line in table_of(reported, "headline-image-auc") if line["chain"].startswith("Others")]
        assert (line["5X"], line["10X"], line["20X"], line["mean"]) == ("0.9", "0.92", "", "")


def test_the_answer_speaks_of_its_magnifications(reported):
    told = " ".join(answer(reported))
    first, last = reported.study.tested_columns[0], reported.study.tested_columns[-1]
    assert f"{first} 0." in told or f"{first} 1." in told
    assert last in told
    assert not BREAKHIS_WORDS.findall(told)


def test_the_terminal_holds_it_in_80_columns(reported):
    out = io.StringIO()
    build.print_headline(reported, Console(file=out, width=80, force_terminal=False))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines if not line.startswith("report")) <= 80
    for column in reported.study.columns:
        assert column in out.getvalue()
    wide = reported.headline.wide("auc")
    for column in reported.study.columns:
        assert f"{wide.loc['Best chain', column]:.3f}" in out.getvalue()


def test_more_magnifications_than_a_terminal_has_room_for_are_means_there(tmp_path):
    from dataclasses import replace

    many = replace(TWO, magnifications=tuple(range(1, 13)), name="many")
    order = ">".join(map(str, many.magnifications))
    study = made(tmp_path / "study", many, trials=2, failed=0, pruned=0, orders=(order,), confirm=0, baselines=())
    findings, out = Findings(study, REPLICATES), io.StringIO()
    build.write_report(findings)
    build.print_headline(findings, Console(file=out, width=80))
    assert max(len(line) for line in out.getvalue().splitlines() if not line.startswith("report")) <= 80
    assert f"{findings.headline.wide('auc').loc['Best chain', 'mean']:.3f}" in out.getvalue()


def test_colours_go_by_rank():
    drawn = style.looks((5, 10, 20))
    assert [each.colour for each in drawn.values()] == [each.colour for each in style.looks((40, 100, 200)).values()]
    every = style.looks(range(1, 41))
    assert len(set(every.values())) == 40


def test_studies_of_different_datasets_stand_side_by_side(tmp_path):
    folders = [
        fake_study(tmp_path / each.name, trials=2, failed=0, pruned=0, baselines=(), dataset=each, name=each.name)
        for each in (SLIDES, TWO)
    ]
    out, path = io.StringIO(), tmp_path / "side.csv"
    build.compare([str(folder) for folder in folders], Console(file=out, width=80), path)
    assert max(map(len, out.getvalue().splitlines())) <= 80
    lines = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [each for each in lines[0] if re.fullmatch(r"\d+X|mean", each)] == ["5X", "10X", "20X", "40X", "mean"]
    assert lines[0]["40X"] == "" != lines[0]["5X"]


def test_a_name_turns_no_line_of_the_terminal_round(tmp_path):
    turned = "a\u202eb"
    options = {"failed": 0, "pruned": 0, "baselines": (), "name": turned}
    folders = [fake_study(tmp_path / f"{trials}", trials=trials, dataset=TWO, **options) for trials in (0, 1)]
    out = io.StringIO()
    for each in folders:
        build.print_headline(Findings(load(str(each)), REPLICATES), Console(file=out, width=80))
    build.compare([str(each) for each in folders], Console(file=out, width=200))
    assert "none in study ab." in out.getvalue()
    assert "ab (" in out.getvalue()
    assert turned not in out.getvalue()


def test_a_study_without_a_choice_says_why_beside_others(tmp_path, monkeypatch):
    folder = fake_study(tmp_path / "study", trials=2, failed=0, pruned=0, baselines=(), metric="precision")
    study, out = load(str(folder)), io.StringIO()
    study.trials["objective"] = float("nan")
    monkeypatch.setattr(terminal, "load", lambda location: study)
    build.compare([str(folder)], Console(file=out, width=200))
    assert "no complete searched trial has an objective (precision is undefined)" in out.getvalue()


def test_a_damaged_dataset_is_one_sentence(tmp_path):
    folder = fake_study(tmp_path / "study", trials=1, failed=0, pruned=0, baselines=(), dataset=SLIDES)
    path = folder / "study.toml"
    path.write_text(path.read_text().replace('positives = [\n    "carcinoma",\n]', 'positives = ["normal"]'))
    with pytest.raises(UserError, match=r"is damaged: \[data\.dataset\] describes no dataset"):
        load(str(folder))


@needs_latex
def test_all_latex_tables_compile(reported, tmp_path):
    folder = reported.study.folder
    tables = [name for name in folder.names("report/tables") if name.endswith(".tex")]
    assert_tables_compile([folder.path(f"report/tables/{name}") for name in tables], tmp_path)
