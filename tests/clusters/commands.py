"""Commands that stand on the PATH of a script under test."""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"


def command(folder: Path, name: str, body: str) -> None:
    """An executable file of bash in the folder."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def python(folder: Path, name: str, module: str, *first: str) -> None:
    """A command that runs a module with this Python."""
    command(folder, name, f'exec "{sys.executable}" -m {module} {" ".join(first)} "$@"')


def on_path(folder: Path, **more: str) -> dict[str, str]:
    """The environment with the folder first on the PATH, and the package that is tested."""
    path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **path, **more}


def tool(name: str) -> str:
    """A program that was installed with this Python, whose folder need not be on the PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name} is not installed: it is in the extra 'test'"
    return found
