"""Fixtures of the whole suite."""

import os
from pathlib import Path

import pytest

from tests.experiment_projects import finished_project, project

__all__ = ["finished_project", "project", "shared_data"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data outside the repository: `$DETECTION_TEST_DATA`, or `../shared/data` beside it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DETECTION_TEST_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}; set DETECTION_TEST_DATA")
    return folder
