"""Fake studies, written once a run."""

from pathlib import Path

import pytest

from kdtvit_ray.results.study import Study, load
from tests.results.fake_study import fake_study


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: tests that change something make their own."""
    return fake_study(tmp_path_factory.mktemp("studies") / "small", trials=12, seed=0, confirm=3)


@pytest.fixture
def small(small_folder: Path) -> Study:
    return load(str(small_folder))
