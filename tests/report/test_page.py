"""The page in a browser: it opens offline, asks for nothing, its parts work."""

import re

import pytest

from kdtvit_ray.report import figures
from kdtvit_ray.report.document import Code, Document, Parallel, Picker, Section, Text, Thumbnail, Thumbnails, markdown
from kdtvit_ray.report.html import page
from kdtvit_ray.report.tables import Column, Estimate, Table
from tests.report.browser import browser, open_page

needs_browser = pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome is installed")
EVIL = "</script><script>found.errors.push('injected')</script><img src=x onerror=found.errors.push('image')>&amp;\"'"


def sample_table(name="numbers"):
    table = Table(name, "A caption.", [Column("name"), Column("value", 2, "max")])
    for text, value in (("b2", 2.0), ("b10", None), ("a", 10.0), ("c", Estimate(-1.5, -2.0, -1.0))):
        table.add(text, value)
    return table


def sample_document():
    tables = [sample_table(), sample_table("other"), sample_table("third")]
    picks = [("image", "AUC"), ("image", EVIL), ("patient", "AUC")]
    choices = list(zip(picks, tables, strict=True))
    axes = [("T", [1.0, 2.0, 4.0]), (EVIL, ["a", EVIL, "b"]), ("objective", [0.5, 0.6, 0.7])]
    effects = Table("settings", "A caption.", [Column("alpha"), Column("mean")])
    for value in ("0.5", "0.25", "0.05", "1e-3", "10"):  # words, as settings are, that are numbers
        effects.add(value, 0.5)
    sections = [
        Section("first", f"Title {EVIL}", [Text(EVIL, "lead"), Text(EVIL, "missing"), Code(f"  {EVIL}\nline 2")]),
        Section("second", "Second", [sample_table(), Picker("pick", ("Level", "Metric"), choices), effects]),
        Section(
            "third",
            "Third",
            [
                figures.history([0, 1, 2], [0.5, 0.7, 0.6], ["t0", EVIL, "t2"], {EVIL: 0.55}, "objective", EVIL),
                figures.importance("fanova", {EVIL: 0.5, "order": 0.2}, EVIL),
                Parallel(axes, ["t0", "t1", EVIL], sample_table("lines")),
                Thumbnails([Thumbnail(EVIL, EVIL)]),
            ],
        ),
    ]
    return Document(f"Study {EVIL}", EVIL, [EVIL], sections)


SCRIPT = """
const column = place =>
  [...document.querySelector("#second table").tBodies[0].rows].map(row => row.cells[place].textContent);
const click = place => document.querySelectorAll("#second table")[0].querySelectorAll("th button")[place].click();
found.before = column(0);
click(0); found.up = column(0);
click(0); found.down = column(0);
click(1); found.largest = column(0);
click(1); found.smallest = column(0);
const settings = document.querySelector("[data-name='settings']");
settings.querySelector("th button").click();
found.settings = [...settings.tBodies[0].rows].map(row => row.cells[0].textContent);
found.sorted = document.querySelectorAll("#second table")[0].querySelectorAll("th")[1].getAttribute("aria-sort");
const picker = document.querySelector(".picker"), menus = picker.querySelectorAll("select");
const shown = () => [...picker.querySelectorAll("[data-pick]")].filter(each => !each.hidden)
  .map(each => each.querySelector("table").dataset.name);
const pick = (level, metric) => {
  menus[0].value = level; menus[1].value = metric;
  menus.forEach(menu => menu.dispatchEvent(new Event("change")));
};
found.first = shown();
pick("patient", "AUC"); found.second = shown();
pick("patient", menus[1].options[1].value); found.none = [shown(), picker.querySelector(".none").hidden];
pick("image", menus[1].options[1].value); found.third = shown();
document.body.style.width = "390px";
found.scrolls = [...document.querySelectorAll("figure .drawn")].map(each => {
  each.style.width = "350px";
  return each.scrollWidth > 600;
});
found.same = document.querySelector(".parallel details table").dataset.name;
found.lines = document.querySelectorAll(".parallel polyline").length;
const line = document.querySelector(".parallel polyline");
line.dispatchEvent(new Event("mouseenter"));
found.told = document.querySelector(".parallel .told").textContent;
found.anchors = [...document.querySelectorAll("nav a")].map(link => document.querySelector(link.hash) !== null);
found.tips = [...document.querySelectorAll("#third svg g > title")].map(each => each.textContent);
found.title = document.querySelector("h1").textContent;
found.code = document.querySelector("pre").textContent;
const long = document.createElement("td");
long.style.minWidth = "2000px";
const broad = document.querySelector("[data-name='settings']");
broad.tBodies[0].rows[0].append(long);
const box = broad.closest(".scroll").getBoundingClientRect();
found.caption = box.right - broad.caption.getBoundingClientRect().right;
found.broad = broad.getBoundingClientRect().right - box.right;
found.wide = document.documentElement.scrollWidth - innerWidth;
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    if browser() is None:
        pytest.skip("no Chromium or Chrome is installed")
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.html").write_text(page(sample_document()), encoding="utf-8")
    return open_page(folder / "page.html", SCRIPT, folder)


@pytest.mark.browser
@needs_browser
class TestInABrowser:
    def test_nothing_goes_wrong_and_nothing_leaves_the_page(self, seen):
        assert seen["errors"] == []
        assert seen["refused"] == []
        assert seen["requests"] == []

    def test_tables_sort_on_click(self, seen):
        assert seen["before"] == ["b2", "b10", "a", "c"]
        assert seen["up"] == ["a", "b2", "b10", "c"]
        assert seen["down"] == ["c", "b10", "b2", "a"]
        assert seen["largest"] == ["a", "b2", "c", "b10"]
        assert seen["smallest"] == ["c", "b2", "a", "b10"]  # what is missing stays last
        assert seen["sorted"] == "ascending"
        assert seen["settings"] == ["1e-3", "0.05", "0.25", "0.5", "10"]

    def test_the_picker_shows_one_table(self, seen):
        assert seen["first"] == ["numbers"]
        assert seen["second"] == ["third"]
        assert seen["third"] == ["other"]
        assert seen["none"] == [[], False]

    def test_parallel_coordinates_tell_their_trials(self, seen):
        assert seen["lines"] == 3
        assert seen["scrolls"] == [True] * 3, "figures keep a width at which they can be read"
        assert seen["same"] == "lines"
        assert seen["told"].startswith("t0: T 1,")

    def test_dots_tell_their_trials(self, seen):
        assert seen["tips"] == ["t0", EVIL, "t2"]

    def test_the_caption_of_a_table_that_is_too_broad_is_seen_whole(self, seen):
        assert seen["broad"] > 0
        assert seen["caption"] >= 0

    def test_text_is_shown_as_it_is(self, seen):
        assert seen["title"] == f"Study {EVIL}"
        assert seen["code"] == f"  {EVIL}\nline 2"
        assert all(seen["anchors"])
        assert seen["wide"] <= 0


@pytest.mark.browser
@needs_browser
def test_the_watch_sees_a_request_and_an_error(tmp_path):
    """The test above would notice: a page that does ask for something is caught."""
    text = page(sample_document())
    text = text.replace("</main>", '<img src="https://example.org/x.png"><script>nowhere()</script></main>')
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    seen = open_page(tmp_path / "page.html", "", tmp_path)
    assert seen["refused"] == ["https://example.org/x.png"]
    assert any("nowhere" in each for each in seen["errors"])


def test_ids_are_unique_and_nothing_points_outside():
    text = page(sample_document())
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert target in ids
    drawn = re.sub(r"<script>.*?</script>", "", text, flags=re.S).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r'(?:src|href|url\()="?https?:', drawn)


def test_the_same_figure_is_drawn_byte_for_byte_again():
    first, second = (figures.history([0, 1], [0.5, 0.6], ["a", "b"], {}, "objective", "2 settings") for _ in range(2))
    assert (first.inline, first.svg, first.png) == (second.inline, second.svg, second.png)


def test_figures_show_numbers_unrounded_by_the_svg_rewrite():
    drawn = figures.forgetting([figures.Matrix("best", ["1: 40X"], ["40X", "100X"], [[0.8125, 0.6789]])], "accuracy")
    assert ">0.679<" in drawn.inline
    assert "currentColor" in drawn.inline
    assert "#1b1f24" not in drawn.inline


def test_markdown_names_every_section_and_figure():
    text = markdown(sample_document())
    assert "## 2. Second" in text
    assert "![Optimisation history" in text
    assert "](figures/history.png)" in text
    assert "<img" not in text.replace("&lt;", "").split("```")[0]
