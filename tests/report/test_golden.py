"""Every number of the report of a small study that is checked in: rows, trials, predictions and stages in `golden/`,
and what the report says of them in `golden/expected/`.

The study was invented once; it is complete, with a failed and a pruned trial, all baselines and a confirmation. Where a
number is meant to change, write what is expected anew, and read the difference:

    python -m tests.report.test_golden
"""

import csv
import io
import json
import re
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.paths import PREDICTIONS, WEIGHTS, StudyFolder
from kdtvit_ray.report.build import write_report
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.stage_record import Measure
from kdtvit_ray.results.study import load
from tests.results.fake_study import NO_FILE, PREPROCESSING

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = GOLDEN / "expected"
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")
REPLICATES = 2_000
OF_ALL_STAGES = {
    "measures": {each.name: [] for each in fields(Measure)},
    "weighting": {"logit_offsets": [0.0] * 8},
    "preprocessing": PREPROCESSING,
    "classes": {"names": list(breakhis().classes), "positive": list(breakhis().positives)},
    "study": "5" * 32,
    "files": dict.fromkeys((WEIGHTS, PREDICTIONS), NO_FILE),
}
"""What `stages.json` does not say again for each stage."""


def unpack(location: Path) -> StudyFolder:
    """A study's folder from the rows that are checked in."""
    folder = StudyFolder(str(location))
    for name in (folder.study, folder.status, "importance.json"):
        folder.write(name, (GOLDEN / name).read_bytes())
    for name in ("rows", "trials"):
        folder.write(f"{name}/part-000001.parquet", (GOLDEN / f"{name}.parquet").read_bytes())
    predictions = pq.read_table(GOLDEN / "predictions.parquet")
    for key, about in json.loads((GOLDEN / "stages.json").read_text()).items():
        mine = predictions.filter(pc.equal(predictions["key"].cast("string"), key)).drop_columns("key")
        if len(mine):
            content = io.BytesIO()
            pq.write_table(mine, content)
            folder.write(folder.predictions(key), content.getvalue())
        folder.write_json(folder.stage(key), {"key": key, **OF_ALL_STAGES, **about})
    return folder


def said(location: Path) -> dict[str, str]:
    """What the report says, as three texts: the page in Markdown, all tables, and the words and numbers in figures."""
    folder = unpack(location)
    write_report(Findings(load(str(location)), REPLICATES))
    report = location / folder.report
    tables = [f"# {path.stem}\n{path.read_text()}" for path in sorted((report / "tables").glob("*.csv"))]
    figures = []
    for path in sorted((report / "figures").glob("*.svg")):
        words = re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())
        figures.append(f"# {path.stem}\n" + "\n".join(words) + "\n")
    text = (report / "report.md").read_text().replace(str(location), "STUDY")
    return {"report.md": text, "tables.txt": "\n".join(tables), "figures.txt": "\n".join(figures)}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return said(tmp_path_factory.mktemp("golden") / "study")


def expected(name):
    return (EXPECTED / name).read_text()


def sections(text):
    """{name: lines} of a text whose parts begin with '# name'."""
    parts = re.split(r"^# (.+)\n", text, flags=re.M)
    return {name: body.strip().splitlines() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def same_numbers(ours, theirs):
    """The same words and whole numbers; others up to one unit of the last digit shown, which is what rounding on
    another machine may do to a half."""
    assert NUMBER.sub("#", ours) == NUMBER.sub("#", theirs)
    for mine, yours in zip(NUMBER.findall(ours), NUMBER.findall(theirs), strict=True):
        digits = len(yours.partition(".")[2])
        assert float(mine) == pytest.approx(float(yours), abs=1.01 * 10**-digits if digits else 0, rel=0)


def test_the_report_says_what_it_said(found):
    ours, theirs = found["report.md"].splitlines(), expected("report.md").splitlines()
    for mine, yours in zip(ours, theirs, strict=True):
        same_numbers(mine, yours)


def test_every_cell_of_every_table_is_what_it_was(found):
    ours, theirs = sections(found["tables.txt"]), sections(expected("tables.txt"))
    assert list(ours) == list(theirs)
    cells = 0
    for name, lines in theirs.items():
        for mine, yours in zip(csv.reader(ours[name]), csv.reader(lines), strict=True):
            for one, other in zip(mine, yours, strict=True):
                try:
                    value = float(other)
                except ValueError:
                    assert one == other, name
                else:
                    assert float(one) == pytest.approx(value, rel=1e-9, abs=1e-12), name
                    cells += 1
    assert cells > 1_000


def test_figures_carry_the_same_words_and_numbers(found):
    ours, theirs = sections(found["figures.txt"]), sections(expected("figures.txt"))
    assert list(ours) == list(theirs)
    for name, lines in theirs.items():
        for mine, yours in zip(ours[name], lines, strict=True):
            same_numbers(mine, yours)


if __name__ == "__main__":
    EXPECTED.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp())
    for name, text in said(scratch / "study").items():
        (EXPECTED / name).write_text(text)
    shutil.rmtree(scratch)
