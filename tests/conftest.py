"""Fixtures of the whole suite."""

import os
from pathlib import Path

import pytest

from tests.experiment_projects import finished_project, project

__all__ = ["finished_project", "project", "shared_data"]

LONGEST = (
    "tests/pipeline/test_whole.py",
    "tests/tracking/team/test_page.py",
    "tests/tracking/team/test_sweep.py",
    "tests/export/test_onnx_file.py",
    "tests/training/common/test_checkpoint.py",
    "tests/experiments/test_noise.py",
)
"""Test files of a minute or more: at the end of the suite, one of them would leave the other cores idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data outside the repository: `$DETECTION_TEST_DATA`, or `../shared/data` beside it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DETECTION_TEST_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}; set DETECTION_TEST_DATA")
    return folder
