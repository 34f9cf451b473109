"""A report from a study's folder: golden numbers, every section, whatever the study's state; the terminal's tables."""

import ast
import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tomli_w
from rich.console import Console

from kdtvit_ray.cli import main
from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.errors import UserError
from kdtvit_ray.report import build, chain_sections, search_sections, study_sections, terminal
from kdtvit_ray.report.document import Text, Thumbnails
from kdtvit_ray.report.escaping import MISSING
from kdtvit_ray.report.tables import Table
from kdtvit_ray.results import confirmation, models_on_test, study
from kdtvit_ray.results.answer import answer
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models import best_by_student
from kdtvit_ray.results.study import load
from tests.report.browser import browser, open_page
from tests.report.latex import assert_tables_compile, needs_latex
from tests.results.fake_study import fake_study, study_file

REPLICATES = 200
SECTIONS = (
    "answer",
    "headline",
    "patient",
    "trust",
    "order",
    "temperature",
    "size",
    "importance",
    "errors",
    "stages",
    "cost",
    "protocol",
    "failures",
)
COLUMNS = ("40X", "100X", "200X", "400X", "mean")


def report(folder):
    return build.write_report(Findings(load(str(folder)), REPLICATES))


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    folder = fake_study(tmp_path_factory.mktemp("study") / "fake", trials=14, name="fake_<b>50%_A&B</b>")
    report(folder)
    return folder


@pytest.fixture(scope="module")
def page_text(study_folder):
    return (study_folder / "report/index.html").read_text(encoding="utf-8")


def page_tables(text):
    """{name: rows of cell texts} of every table in the page."""
    found = {}
    for name, body in re.findall(r'data-name="([^"]+)"(.*?)</table>', text, flags=re.S):
        found[name] = [
            [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
            for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body.split("<tbody>")[1])
        ]
    return found


def numbers_of(line, column):
    names = (column, f"{column} low", f"{column} high")
    return [float(line[name]) if line.get(name) else float("nan") for name in names]


class TestGoldenNumbers:
    def test_page_csv_and_summary_say_the_same(self, study_folder, page_text):
        study = load(str(study_folder))
        long = Findings(study, REPLICATES).headline.long
        tables = page_tables(page_text)
        checked = 0
        for level in ("image", "patient_rate", "patient_vote"):
            for metric in ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "auc"):
                if level == "patient_rate" and metric != "accuracy":
                    continue
                name = f"headline-{level}-{metric}".replace("_", "-")
                part = long[(long["level"] == level) & (long["metric"] == metric)]
                lines = list(csv.DictReader(io.StringIO((study_folder / f"report/tables/{name}.csv").read_text())))
                labels = list(dict.fromkeys(part["label"]))
                assert len(lines) == len(tables[name]) == len(labels)
                for label, line, cells in zip(labels, lines, tables[name], strict=True):
                    assert line["chain"] == cells[0]
                    assert cells[0].startswith(label.removesuffix(" (reported)"))
                    for place, column in enumerate(COLUMNS, 1):
                        golden = part[(part["label"] == label) & (part["magnification"] == column)]
                        if not len(golden):
                            assert cells[place] == MISSING
                            continue
                        expected = golden[["value", "low", "high"]].to_numpy(float)[0]
                        assert np.array_equal(numbers_of(line, column), expected, equal_nan=True)
                        shown = f"{expected[0]:.3f}"
                        if np.isfinite(expected[1:]).all():
                            shown += f" [{expected[1]:.3f}, {expected[2]:.3f}]"
                        assert cells[place] == shown
                        checked += 1
        assert checked > 300

    def test_the_summary_says_what_the_predictions_say(self, study_folder):
        """The chain of numbers down to the images: accuracy of the best chain by hand."""
        study = load(str(study_folder))
        best = Findings(study).best
        predictions = study.predictions(best.keys[-1])
        test = predictions[predictions["split"] == "test"]
        right = (test["probability"] >= 0.5) == test["malignant"]
        by_hand = right.groupby(test["magnification"]).mean()
        lines = csv.DictReader(io.StringIO((study_folder / "report/tables/headline-image-accuracy.csv").read_text()))
        first = next(lines)
        for magnification, value in by_hand.items():
            assert float(first[f"{magnification}X"]) == pytest.approx(value, abs=1e-12)
        assert float(first["mean"]) == pytest.approx(by_hand.mean(), abs=1e-12)

    def test_published_averages_are_marked_and_never_bold(self, page_text):
        rows = re.findall(r'<tr class="reported">(.*?)</tr>', page_text, flags=re.S)
        assert any("KDTViT (reported, split unknown)" in row for row in rows)
        assert not any("<b>" in row for row in rows)

    def test_order_table_is_the_mean_of_its_trials(self, study_folder):
        trials = load(str(study_folder)).settings
        lines = csv.DictReader(io.StringIO((study_folder / "report/tables/effect-order.csv").read_text()))
        means = {line["order"]: float(line["mean"]) for line in lines}
        expected = trials.groupby("order")["objective"].mean()
        assert means == pytest.approx(expected.to_dict())
        assert list(means.values()) == sorted(means.values(), reverse=True)


class TestWhatIsWritten:
    def test_every_section_in_order(self, page_text):
        assert tuple(re.findall(r'<section id="([^"]+)"', page_text)) == SECTIONS

    def test_names_survive(self, study_folder, page_text):
        assert "<b>50%" not in page_text
        assert "Study fake_&lt;b&gt;50%_A&amp;B&lt;/b&gt;" in page_text
        assert "# Study fake\\_&lt;b>50%" in (study_folder / "report/report.md").read_text()

    def test_a_command_loads_and_measures_a_study_once(self, tmp_path, monkeypatch):
        folder = fake_study(tmp_path / "study", trials=3, failed=0, pruned=0)
        calls = []
        for module, name in ((study, "load"), (models_on_test, "measure_models"), (confirmation, "confirmed")):
            real = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, real=real, name=name: calls.append(name) or real(*a))
        assert main(["report", str(folder)]) == 0
        assert calls == ["load", "measure_models", "confirmed"]

    def test_files_are_those_that_are_named_and_the_same_again(self, study_folder):
        def everything():
            return {
                str(path.relative_to(study_folder)): path.read_bytes()
                for path in (study_folder / "report").rglob("*")
                if path.is_file()
            }

        before = everything()
        (study_folder / "report/figures/old.svg").write_text("stale")
        report(study_folder)
        assert everything() == before
        endings = {"report": {".html", ".md"}, "tables": {".csv", ".tex"}, "figures": {".svg", ".png"}}
        for name, suffixes in endings.items():
            assert {Path(each).suffix for each in before if Path(each).parent.name == name} == suffixes
        for name in re.findall(r"\]\((figures/[^)]+)\)", (study_folder / "report/report.md").read_text()):
            assert (study_folder / "report" / name).exists()

    def test_the_answer_is_in_the_page(self, study_folder, page_text):
        for sentence in answer(Findings(load(str(study_folder)), REPLICATES)):
            assert html.escape(sentence) in page_text

    def test_measured_speed_names_its_device(self, tmp_path, study_folder):
        assert "Times were measured on cpu." in (study_folder / "report/report.md").read_text()
        folder = fake_study(tmp_path / "study", trials=6)
        best = {chain.student: chain.keys[-1] for chain in best_by_student(load(str(folder)))}
        assert len(best) == 2
        path = folder / "stages" / best["tiny"] / "stage.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "device": "NVIDIA H100"}))
        report(folder)
        text = (folder / "report/report.md").read_text()
        assert "different devices and do not compare" in text
        assert "tiny on NVIDIA H100" in text

    def test_failures_name_reason_and_log(self, study_folder, page_text):
        study = load(str(study_folder))
        broken = study.trials[study.trials["state"] == "failed"]
        section = page_text[page_text.index('<section id="failures"') :]
        assert len(broken) == 1
        for line in broken.itertuples():
            assert line.trial in section
            assert html.escape(line.reason) in section
        assert "sweep.log" in section

    def test_the_command_and_the_study_file_are_in_the_page(self, study_folder, page_text):
        assert "kdtvit-ray sweep space.toml" in page_text
        assert "[protocol]" in page_text

    def test_a_study_by_patient_that_is_done_has_no_banner(self, page_text):
        assert 'class="banner"' not in page_text


@pytest.mark.usefixtures("unrendered")
class TestEveryState:
    @pytest.mark.parametrize(
        ("state", "more"),
        [
            ("none", {"trials": 3, "running": 3, "failed": 0, "pruned": 0, "baselines": (), "importance": False}),
            ("all failed", {"trials": 2, "failed": 2, "pruned": 0, "baselines": (), "importance": False}),
            ("one", {"trials": 1, "failed": 0, "pruned": 0, "baselines": ()}),
            ("one order, one student", {"trials": 4, "orders": ("40>100>200>400",), "students": ("micro",)}),
            ("two classes", {"trials": 4, "head": "binary", "metric": "f1"}),
            ("no predictions", {"trials": 4, "predictions": False}),
            ("per stage", {"trials": 8, "per_stage": True, "searched_lr": True, "confirm": 2}),
            ("two magnifications", {"trials": 4, "orders": ("40>100", "100>40"), "baselines": ("joint",)}),
        ],
    )
    def test_all_sections_are_there_and_say_what_is_missing(self, tmp_path, state, more):
        folder = fake_study(tmp_path / "study", **more)
        report(folder)
        text = (folder / "report/index.html").read_text(encoding="utf-8")
        bodies = re.split(r'<section id="', text)[1:]
        assert [body.split('"')[0] for body in bodies] == list(SECTIONS)
        for body in bodies:
            assert len(re.sub(r"<[^>]+>", "", body)) > 30, body[:200]
        assert "nan" not in re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.S).lower().split()
        if state in ("none", "all failed"):
            assert text.count('class="missing"') >= 7
        if state == "two classes":
            assert "two-class head" in text
        if state == "one order, one student":
            assert page_tables(text)["effect-order"][0][:2] == ["40>100>200>400", "2"]
        if state == "no predictions":
            assert "predictions" in text[text.index('id="errors"') : text.index('id="stages"')]

    def test_a_partial_study_that_leaks_says_both(self, tmp_path):
        folder = fake_study(tmp_path / "study", trials=8, running=3, protocol="image")
        report(folder)
        text = (folder / "report/index.html").read_text(encoding="utf-8")
        banners = re.findall(r'class="banner"[^>]*>([^<]+)<', text)
        assert len(banners) == 2
        assert "leak" in banners[0]
        assert "partial: 5 of 8" in banners[1]
        assert "**This study splits by image" in (folder / "report/report.md").read_text()
        assert "(image split, leaks)" in text[text.index('id="headline"') :]

    def test_a_damaged_stage_is_noted_and_the_rest_is_there(self, tmp_path):
        folder = fake_study(tmp_path / "study", trials=5)
        key = Findings(load(str(folder))).best.keys[1]
        (folder / "stages" / key / "stage.json").write_text("{")
        report(folder)
        text = (folder / "report/index.html").read_text(encoding="utf-8")
        assert text.count(f"stages/{key}/stage.json is damaged") == 1
        assert f"The file of stage 2 ({key}) is missing or damaged" in text

    @pytest.mark.parametrize("command", ["report", "compare"])
    def test_what_cannot_be_read_is_one_sentence_and_exit_2_after_all_that_can(self, tmp_path, capsys, command):
        folder = fake_study(tmp_path / "study", trials=4, orders=("40>100",), baselines=("joint",))
        assert main([command, str(folder)]) == 0
        assert capsys.readouterr().err == ""
        (folder / "rows" / "t0001.parquet").write_bytes(b"PAR1")
        (folder / "status.json").write_text("{")
        assert main([command, str(folder)]) == 2
        told = capsys.readouterr()
        assert Findings(load(str(folder))).best.trial in told.out
        assert told.err.count("\n") == 1
        assert told.err.startswith(f"kdtvit-ray: The study '{folder}' was read in part: status.json is damaged")
        assert "rows/t0001.parquet is damaged" in load(str(folder)).notes[1]
        assert "(and 2 more, all listed in its report" in told.err

    def test_output_that_nobody_reads_changes_no_exit_code(self, tmp_path):
        folder = fake_study(tmp_path / "study", trials=1, failed=0, pruned=0, baselines=())
        command = [sys.executable, "-m", "kdtvit_ray", "report", str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0

    def test_a_folder_that_is_no_study_is_the_user_s_mistake(self, tmp_path):
        with pytest.raises(UserError, match="is not a study"):
            report(tmp_path)


class TestThumbnails:
    def prepared(self, folder, study, count):
        folder.mkdir()
        fingerprint = load(str(study)).plain["data"]["fingerprint"]
        np.save(folder / "images.npy", np.full((count, 48, 48, 3), 128, np.uint8))
        (folder / "prepared.json").write_text(json.dumps({"fingerprint": fingerprint}))
        text = (study / "study.toml").read_text().replace('path = "/data/fake"', f'path = "{folder}"')
        (study / "study.toml").write_text(text)

    def shown(self, study):
        blocks = chain_sections.errors(Findings(load(str(study)), REPLICATES)).blocks
        text = " ".join(block.text for block in blocks if isinstance(block, Text))
        return next(block for block in blocks if isinstance(block, Thumbnails)).items, text

    def test_wrong_images_are_shown_where_the_data_can_be_read(self, tmp_path):
        study = fake_study(tmp_path / "study", trials=3, baselines=())
        self.prepared(tmp_path / "prepared", study, 1_000)
        items, text = self.shown(study)
        assert items
        assert all(
            re.fullmatch(r"is \w+, \w+(, taken for \w+)?; P\(malignant\) [01]\.\d\d", item.text) for item in items
        )
        assert all(item.data.startswith(b"\xff\xd8") for item in items)  # JPEG
        assert "by name only" not in text

    def test_other_images_than_the_study_s_are_not_shown(self, tmp_path):
        study = fake_study(tmp_path / "study", trials=3, baselines=())
        self.prepared(tmp_path / "prepared", study, 1_000)
        (tmp_path / "prepared/prepared.json").write_text(json.dumps({"fingerprint": "other"}))
        items, text = self.shown(study)
        assert not any(item.data for item in items)
        assert "holds other images by now" in text


def test_a_failed_trial_stands_with_all_that_it_tried(tmp_path):
    study = load(str(fake_study(tmp_path, trials=4, failed=2, pruned=0, searched_lr=True, per_stage=True, confirm=1)))
    again = study.trials["kind"] == "confirm"
    study.trials.loc[again & (study.trials["trial"] == "t0000-f1-s1"), "state"] = "failed"
    (table,) = [each for each in study_sections.failures(Findings(study, REPLICATES)).blocks if isinstance(each, Table)]
    place = [column.title for column in table.columns].index("searched values")
    told = {row.cells[0]: row.cells[place] for row in table.rows}
    assert len(told) == 3
    for line in study.failed.itertuples():
        given = json.loads(line.params)
        values = given["params"] if line.kind == "confirm" else given
        assert values.keys() > {"order", "student", "training.lr", "alpha.2"}
        expected = {f"{name} {value:g}" for name, value in values.items() if name not in ("order", "student")}
        assert set(told[line.trial].split(", ")) == expected


def test_chains_of_one_stage_have_no_map_of_temperature_and_have_their_other_settings(tmp_path):
    one = Dataset("one", "manifest", magnifications=(40,), classes=("a", "b"), positives=("b",))
    folder = fake_study(tmp_path / "study", trials=6, failed=0, pruned=0, dataset=one, searched_lr=True, baselines=())
    section = search_sections.settings(Findings(load(str(folder)), REPLICATES))
    (said,) = [block.text for block in section.blocks if isinstance(block, Text)]
    assert said == "No complete chain distils, so there is no map of temperature and alpha."
    assert [block.name for block in section.blocks if isinstance(block, Table)] == ["effect-training-lr"]


def test_a_study_on_another_file_system_is_read_and_written(tmp_path):
    folder = fake_study(tmp_path / "study", trials=2, failed=0, pruned=0, baselines=())
    report(folder.as_uri())
    assert (folder / "report" / "index.html").exists()


@pytest.mark.usefixtures("unrendered")
class TestTerminal:
    def test_it_fits_80_columns_and_says_what_matters(self, study_folder):
        out = io.StringIO()
        study = load(str(study_folder))
        build.print_headline(Findings(study, REPLICATES), Console(file=out, width=80, force_terminal=False))
        lines = out.getvalue().splitlines()
        assert max(len(line) for line in lines if not line.startswith("report")) <= 80
        text = " ".join(out.getvalue().split())
        assert "KDTViT (reported, split AUC" in text or "KDTViT (reported, split unknown)" in text
        for column in COLUMNS:
            assert column in text
        wide = Findings(study, REPLICATES).headline.wide("auc")
        for column in COLUMNS:
            assert f"{wide.loc['Best chain', column]:.3f}" in text
        assert "backward and forward transfer" in text
        assert str(study_folder / "report/index.html") in text

    def test_a_study_that_may_only_be_read_is_told_of_all_the_same(self, study_folder, monkeypatch, capsys):
        def refused(*_):
            raise PermissionError(13, "Cannot create directory. Detail: Permission denied")

        monkeypatch.setattr("kdtvit_ray.paths.StudyFolder._write", refused)
        assert main(["report", str(study_folder)]) == 2
        told = capsys.readouterr()
        assert "backward and forward transfer" in told.out
        assert f"The report cannot be written to '{study_folder}': Permission denied; copy the study" in told.err

    def test_failed_trials_are_told_with_their_reason(self, tmp_path):
        study, out = load(str(fake_study(tmp_path, trials=3, failed=2, pruned=0))), io.StringIO()
        build.print_headline(Findings(study, REPLICATES), Console(file=out, width=80))
        told = next(each for each in answer(Findings(study, REPLICATES)) if "trials failed" in each)
        assert "2 trials failed: t0001 (The loss is not finite" in told
        assert told in " ".join(out.getvalue().split())

    def test_nothing_finished_is_said(self, tmp_path):
        folder = fake_study(tmp_path / "s", trials=2, running=2, failed=0, pruned=0, baselines=(), importance=False)
        out = io.StringIO()
        build.print_headline(Findings(load(str(folder))), Console(file=out, width=80))
        assert "No searched trial is complete; the study is not finished." in " ".join(out.getvalue().split())

    def test_studies_side_by_side(self, tmp_path, study_folder):
        other = fake_study(tmp_path / "other", trials=3, protocol="image", name="other", baselines=())
        out = io.StringIO()
        for ending in ("csv", "tex", "md", "html"):
            path = tmp_path / f"deep/side.{ending}"
            build.compare([str(study_folder), str(other)], Console(file=out, width=80), path)
            assert path.stat().st_size > 100
        text = out.getvalue()
        assert max(map(len, text.splitlines())) <= 80
        assert "different protocols (patient of fake_<b>50%_A&B</b>, image of other)" in " ".join(text.split())
        lines = list(csv.DictReader(io.StringIO((tmp_path / "deep/side.csv").read_text())))
        best = Findings(load(str(other)), 200).headline.wide("auc").loc["Best chain"]
        found = next(line for line in lines if line["study"] == "other" and line["metric"] == "AUC")
        assert [float(found[column]) for column in COLUMNS] == pytest.approx(best.tolist())
        assert found["protocol"] == "image (leaks)"

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"folds": 7}, "([protocol] folds 3 of a, 7 of b)"),
            ({"fold": 2, "group": "id"}, "([protocol] fold 1 of a, 2 of b; [protocol] group stem of a, id of b)"),
            ({"seed": 5}, "([protocol] seed 0 of a, 5 of b)"),
            ({"validation": 0.3}, ""),
            ({"name": "official", "folds": 7}, ""),
        ],
    )
    def test_studies_with_other_test_images_are_not_comparable(self, tmp_path, change, told):
        protocol = {"name": "patient", "fold": 1, "folds": 3, "group": "stem", "seed": 0, "validation": 0.15}
        for place, own in (("a", {"name": change.get("name", "patient")}), ("b", change)):
            folder = fake_study(tmp_path / place, trials=1, failed=0, pruned=0, baselines=(), name=place)
            plain = tomllib.loads((folder / "study.toml").read_text())
            (folder / "study.toml").write_text(tomli_w.dumps({**plain, "protocol": {**protocol, **own}}))
        out = io.StringIO()
        build.compare([str(tmp_path / "a"), str(tmp_path / "b")], Console(file=out, width=80))
        text = " ".join(out.getvalue().split())
        assert (f"different test images {told}: their numbers are not comparable" in text) == bool(told)
        assert ("not comparable" in text) == bool(told)

    def test_studies_of_other_data_are_told_apart_by_their_fingerprints(self):
        plain = [study_file(data={"fingerprint": 32 * each}) for each in ("a", "a", "b")]
        studies = [SimpleNamespace(plain=each, protocol="patient") for each in plain]
        assert [*terminal._differences(["one", "two", "three"], studies)] == [
            f"used different data (fingerprint {12 * 'a'} of one and two, {12 * 'b'} of three)"
        ]

    def test_a_folder_that_is_no_study_costs_no_comparison_of_the_others(self, tmp_path, study_folder, capsys):
        twin = shutil.copytree(study_folder, tmp_path / "twin")
        path = tmp_path / "side.csv"
        missing = str(tmp_path / "missing")
        assert main(["compare", str(study_folder), missing, str(twin), "--out", str(path)]) == 2
        told = capsys.readouterr()
        assert told.err.startswith(f"kdtvit-ray: '{missing}' is not a study")
        assert told.err.count("\n") == 1
        names = {line["study"] for line in csv.DictReader(io.StringIO(path.read_text()))}
        assert len(names) == 2, "studies of one name are told apart by where they lie"
        assert main(["compare", missing, str(tmp_path)]) == 2
        assert capsys.readouterr().err.count(". '") == 1, "a full stop parts two sentences"
        assert any(name.endswith(f"({twin})") for name in names)

    def test_another_ending_is_the_user_s_mistake(self, tmp_path, study_folder):
        with pytest.raises(UserError, match="ending must be one of"):
            build.compare([str(study_folder)], Console(file=io.StringIO()), tmp_path / "side.pdf")


def test_no_heavy_module_is_needed_to_build_a_report(study_folder):
    script = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name in ('torch', 'ray', 'optuna', 'timm'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "from kdtvit_ray.report.build import write_report\n"
        "from kdtvit_ray.results.findings import Findings\n"
        "from kdtvit_ray.results.study import load\n"
        f"write_report(Findings(load({str(study_folder)!r}), {REPLICATES}))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_modules_stay_small():
    for path in Path(build.__file__).parent.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path.name
        assert ast.get_docstring(ast.parse(path.read_text())), path.name


@needs_latex
def test_all_latex_tables_compile(study_folder, tmp_path):
    tables = sorted((study_folder / "report/tables").glob("*.tex"))
    assert_tables_compile(tables, tmp_path)


@pytest.mark.browser
@pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome is installed")
def test_the_whole_report_opens_in_a_browser(study_folder, tmp_path):
    script = """
    found.sections = [...document.querySelectorAll("main > section")].map(each => each.id);
    found.lines = document.querySelectorAll(".parallel polyline").length;
    found.shown = [...document.querySelectorAll("#headline [data-pick]")].filter(each => !each.hidden).length;
    const table = document.querySelector('table[data-name="effect-order"]');
    const firsts = () => [...table.tBodies[0].rows].map(row => Number(row.cells[2].dataset.v));
    table.querySelectorAll("th button")[2].click(); found.falling = firsts();
    table.querySelectorAll("th button")[2].click(); found.rising = firsts();
    found.wide = document.documentElement.scrollWidth - innerWidth;
    """
    seen = open_page(study_folder / "report/index.html", script, tmp_path)
    assert seen["errors"] == seen["refused"] == seen["requests"] == []
    assert tuple(seen["sections"]) == SECTIONS
    assert seen["lines"] == len(load(str(study_folder)).settings), "a setting that was tried again counts once"
    assert seen["shown"] == 1
    assert seen["falling"] == sorted(seen["falling"], reverse=True)
    assert seen["rising"] == sorted(seen["rising"])
    assert seen["wide"] <= 0


def test_the_page_is_small(study_folder):
    assert (study_folder / "report/index.html").stat().st_size < 1_500_000


def test_thresholds_in_the_report_are_those_that_never_saw_test(study_folder):
    findings = Findings(load(str(study_folder)), REPLICATES)
    lines = csv.DictReader(io.StringIO((study_folder / "report/tables/thresholds.csv").read_text()))
    points = {(line["name"], line["patients"]): line for line in lines}
    key = findings.best.keys[-1]
    validation, test = (findings.study.predictions(key).query(f"split == '{each}'") for each in ("validation", "test"))
    of = {"development": validation, "test": test}
    assert set(points) == {(name, who) for name in ("half", "balanced", "sensitive") for who in of}
    for (_, who), each in points.items():
        part = of[who]
        called = part["probability"] >= float(each["threshold"])
        assert float(each["sensitivity"]) == pytest.approx(called[part["malignant"]].mean())
        assert float(each["specificity"]) == pytest.approx((~called)[~part["malignant"]].mean())
    assert float(points["sensitive", "development"]["sensitivity"]) >= 0.95
    before, after = findings.operating.log_loss["test"]
    assert f"test {before:.3f} before, {after:.3f} after" in (study_folder / "report/report.md").read_text()
