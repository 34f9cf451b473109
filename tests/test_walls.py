"""The walls between the parts: who may import what, and how fast the command line answers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kdtvit_ray"
FORBIDDEN = {
    "data": {"ray", "optuna", "torch", "timm"},
    "learning": {"ray", "optuna"},
    "study": {"ray"},
    "results": {"ray", "optuna", "torch", "timm"},
    "report": {"ray", "optuna", "torch", "timm"},
    "deliver": {"ray", "optuna"},
    ".": {"ray", "optuna", "torch", "timm", "pandas", "matplotlib"},
}


DATASET = {"kdtvit_ray.data.dataset", "kdtvit_ray.data.sources.breakhis"}
"""Plain facts of a dataset, which whoever reads a study needs as well."""


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def files(part: str) -> list[Path]:
    """The files of a part with its subfolders, or those of the package itself, which is no part."""
    return sorted((PACKAGE / part).glob("*.py") if part == "." else (PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", FORBIDDEN)
def test_a_part_imports_nothing_that_it_must_not_know(part):
    assert files(part)
    for path in files(part):
        top = {name.split(".")[0] for name in imported(path)}
        assert not top & FORBIDDEN[part], f"{path.name} imports {top & FORBIDDEN[part]}"


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("data", {"data"}),
        ("learning", {"data", "learning", "metrics"}),
        ("results", {"results", "metrics"}),
        ("report", {"results", "report", "metrics"}),
        ("study", {"data", "learning", "results", "study", "metrics"}),
        ("cluster", {"data", "learning", "results", "study", "cluster", "metrics"}),
        ("deliver", {"data", "learning", "results", "report", "study", "deliver", "metrics"}),
    ],
)
def test_arrows_between_parts_point_one_way(part, allowed):
    for path in files(part):
        for name in imported(path):
            if name.startswith("kdtvit_ray."):
                other = name.split(".")[1]
                known = allowed | {"errors", "recipe", "chain", "paths", "console"}
                assert other in known or (part in ("results", "report") and name in DATASET), (
                    f"{part}/{path.name} imports {name}"
                )


def test_ray_is_imported_under_cluster_only():
    for path in PACKAGE.rglob("*.py"):
        if PACKAGE / "cluster" not in path.parents:
            assert not {name for name in imported(path) if name.split(".")[0] == "ray"}, path


def test_a_trials_actor_imports_ray_and_little_else():
    """Each of many actors has in its memory what it imports: with the ledger and Optuna 44 MB more."""
    own = "kdtvit_ray.cluster.messages"
    assert imported(PACKAGE / "cluster" / "chain_trial.py") == {"typing", "ray", own}
    heavy = "{'torch', 'optuna', 'timm', 'scipy', 'pandas', 'pyarrow', 'numpy'}"
    script = f"import sys, {own}\nsys.exit(str({heavy} & set(sys.modules) or '') or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\n"
        "from kdtvit_ray.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'optuna', 'timm', 'pandas', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: kdtvit-ray" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_files_stay_readable():
    long = {path.name: count for path in PACKAGE.rglob("*.py") if (count := len(path.read_text().splitlines())) > 400}
    assert not long


def test_reading_a_study_needs_no_torch_and_no_ray():
    script = (
        "import sys\nimport kdtvit_ray.report.build, kdtvit_ray.results.answer, kdtvit_ray.study.status\n"
        "import kdtvit_ray.deliver.tracking\n"
        "sys.exit(bool({'torch', 'ray', 'optuna', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_clocks_are_read_for_records_alone():
    """Nodes' clocks may differ by minutes: what decides anything counts beats or its own process's monotonic clock."""
    clocks = ("time.time(", "datetime.now(", "st_mtime")
    told = {path.name for path in PACKAGE.rglob("*.py") if any(clock in path.read_text() for clock in clocks)}
    # when trials, stages and a lock began; whether a source of images or a file of weights is still the one from before
    assert told == {"ledger.py", "workers.py", "lock.py", "same_source.py", "files.py", "manifest.py", "cache.py"}
