"""LaTeX tables, compiled as a reader would, where there is a compiler."""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


def assert_tables_compile(tables: Iterable[Path | str], place: Path) -> None:
    """All table files compile in one article and none is wider than its page; `place` takes what LaTeX writes."""
    body = "".join(f"\\input{{{each}}}\\clearpage\n" for each in tables)
    head = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,graphicx}\\begin{document}\n"
    (place / "all.tex").write_text(head + body + "\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    ran = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert "Overfull \\hbox" not in ran.stdout
