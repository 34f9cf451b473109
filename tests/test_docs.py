"""What the documentation says of settings is what the program has, and its links lead somewhere."""

import math
import re
from pathlib import Path

import pytest

from kdtvit_ray import recipe
from kdtvit_ray.data.sources import folder, labelled
from kdtvit_ray.study import settings

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "clusters/README.md"]

DEFAULTS = {
    "study": settings.STUDY_DEFAULTS,
    "protocol": settings.PROTOCOL_DEFAULTS,
    "chain": settings.CHAIN_DEFAULTS,
    "models.X": settings.MODEL_DEFAULTS,
    "training": {name: getattr(recipe.Training(), name) for name in recipe.field_names(recipe.Training)},
    "numeric": settings.NUMERIC_DEFAULTS,
}
WORDS = {
    ("study", "sampler"): settings.SAMPLERS,
    ("study", "metric"): settings.METRICS,
    ("study", "pruner"): settings.PRUNERS,
    ("study", "baselines"): recipe.BASELINES,
    ("study", "track"): settings.TRACKERS,
    ("protocol", "name"): recipe.DataSpec.PROTOCOLS,
    ("protocol", "group"): recipe.DataSpec.GROUPS,
    ("chain", "loss"): recipe.Distillation.LOSSES,
    ("chain", "head"): recipe.ModelSpec.HEADS,
    ("numeric", "dtype"): settings.DTYPES,
    **{("training", name): words for name, words in recipe.Training.CHOICES.items()},
}


def table(name: str) -> dict[str, list[str]]:
    """{key: cells} of the first table of a section."""
    section = re.split(r"^## ", SETTINGS.split(f"## [{name}]\n")[1], flags=re.M)[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| `") else []
        if len(cells) == 4:
            found[cells[0].strip("`")] = cells
    return found


BOUNDS = [("training", *each) for each in settings.TRAINING_BOUNDS.items()]
BOUNDS += [("chain", *each) for each in settings.CHAIN_BOUNDS.items()]


@pytest.mark.parametrize(("where", "name", "bounds"), BOUNDS)
def test_every_number_stands_with_its_bounds(where, name, bounds):
    low, high = bounds
    told = table(where)[name][2]
    if name == "lora_rank":
        assert told == f"{low} to the attention's width, at most {high}"
    else:
        assert told.partition(",")[0] == (f"{low:g} to {high:.6g}" if math.isfinite(high) else f"{low} or more")


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_setting_stands_in_the_table_with_its_default(name):
    found = table(name)
    assert list(found) == list(DEFAULTS[name])
    for key, default in DEFAULTS[name].items():
        shown = found[key][1].strip("`")
        if key == "baselines":
            assert shown == "all four"
        elif isinstance(default, bool):
            assert shown == str(default).lower()
        elif isinstance(default, str):
            assert shown == f'"{default}"'
        elif isinstance(default, dict):
            assert shown == "{}"
        else:
            assert shown == repr(default)


@pytest.mark.parametrize(("name", "key"), WORDS)
def test_every_allowed_word_stands_in_the_table(name, key):
    assert tuple(re.findall(r"`([^`]+)`", table(name)[key][2])) == tuple(WORDS[name, key])


def test_every_loss_is_told_with_what_two_classes_do_to_it():
    told = dict(re.findall(r"^\| `([a-z-]+)` \| .* \| (works|refused)", SETTINGS, flags=re.M))
    from kdtvit_ray.learning.preflight import REFUSED_WITH_TWO_CLASSES

    assert tuple(told) == recipe.Distillation.LOSSES
    assert {loss for loss, verdict in told.items() if verdict == "refused"} == set(REFUSED_WITH_TWO_CLASSES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_files_and_private_names_in_the_design_are_there():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    there = [str(each.relative_to(ROOT)) for part in ("kdtvit_ray", "tests") for each in (ROOT / part).rglob("*.py")]
    for name in set(re.findall(r"`([\w/]+\.py)`", text)):
        assert any(f"/{each}".endswith(f"/{name}") for each in there), f"design.md names {name}"
    for row in re.findall(r"^\|.*\|$", text.split("## Private names")[1], flags=re.M)[2:]:
        files, names, _ = row.strip("|").split("|")
        paths = re.findall(r"`([\w/]+\.py)`", files)
        folder = Path(ROOT, "kdtvit_ray", paths[0]).parent
        code = "".join((folder / Path(each).name).read_text(encoding="utf-8") for each in paths)
        for name in re.findall(r"`([^`]+)`", names):
            assert all(word in code for word in re.findall(r"\w+", name)), f"design.md says {files} use {name}"


def test_the_columns_and_parts_of_a_dataset_are_those_that_are_read():
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    needed = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", text.split("## A table")[1].split("\n## ")[0], flags=re.M))
    assert needed == {**dict.fromkeys(labelled.REQUIRED, "yes"), **dict.fromkeys(labelled.OPTIONAL, "no")}
    parts = set(re.findall(r"`\{(\w+)\}`", text))
    assert parts == set(folder.FIELDS)
