"""Sets that are not BreakHis through the whole program: prepared, checked, swept on Ray, reported, LaTeX and all."""

import json
import shutil

import pytest

from tests.cluster.test_sweep import run
from tests.data.other_sets import nerves, scanner
from tests.report.latex import assert_tables_compile

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

SPACE = """
[study]
trials = 3
lag = 2
startup = 2
baselines = ["joint", "sequential"]
[protocol]
name = "{protocol}"
[chain]
order = "{order}"
image_size = 32
[training]
epochs = 2
batch = 16
[search]
temperature = [1, 4]
order = "first"
"""


@pytest.mark.parametrize("name", ["scanner", "nerves"])
def test_a_set_is_prepared_checked_swept_and_reported(name, tmp_path):
    if name == "scanner":
        source, options = scanner(tmp_path / "source"), ("--positive", "tumour")
        protocol, order, classes = "official", "5>10>20", 3
    else:
        source, options = nerves(tmp_path / "source"), ("--positive", "ill")
        protocol, order, classes = "patient", "10>40", 2
    data, study, space = tmp_path / "data", tmp_path / "study", tmp_path / "space.toml"
    run("prepare", source, data, "--size", 32, *options)
    space.write_text(SPACE.format(protocol=protocol, order=order))
    assert f"protocol {protocol}" in run("check", space, "--data", data)
    told = run("sweep", space, "--data", data, "--out", study)
    magnifications = [f"{each}X" for each in order.split(">")]
    assert all(each in told for each in magnifications)
    assert "40X" not in told or "40X" in magnifications
    about = json.loads(next((study / "stages").glob("*/stage.json")).read_text())
    assert len(about["classes"]["names"]) == classes
    assert about["preprocessing"]["image_size"] == 32
    report = (study / "report" / "index.html").read_text()
    assert all(each in report for each in magnifications)
    assert "KDTViT (reported" not in report, "published rows are of BreakHis"
    tables = sorted((study / "report" / "tables").glob("*.tex"))
    assert tables
    if shutil.which("pdflatex"):
        assert_tables_compile(tables, tmp_path)
