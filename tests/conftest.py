"""Fixtures of the whole suite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.experiment_projects import finished_project, project

__all__ = ["finished_project", "project", "shared_data"]

FIRST = (
    # Autograd on a pretended GPU leaves threads, after which no process that this one forks can train.
    "tests/training/test_loop_on_ranks.py",
    "tests/training/test_loop.py",
    # A minute or more: at the end of the suite, one of them would leave the other cores idle.
    "tests/docs/test_readme_pages.py",
    "tests/docs/test_experiments_page.py",
    "tests/docs/test_dataset_pages.py",
    "tests/pipeline/test_whole.py",
    "tests/tracking/team/test_page.py",
    "tests/tracking/team/test_sweep.py",
    "tests/experiments/test_search.py",
    "tests/export/test_onnx_file.py",
    "tests/training/common/test_checkpoint.py",
    "tests/experiments/test_noise.py",
)
"""Test files to begin with."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files."""
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(order)))


@pytest.fixture(autouse=True)
def _mlflow_variables() -> Iterator[None]:
    """Restore MLflow's variables: `mlflow.set_tracking_uri` sets one for child processes."""
    before = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}
    yield
    for key in [key for key in os.environ if key.startswith("MLFLOW_")]:
        del os.environ[key]
    os.environ.update(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data outside the repository: `$DETECTION_TEST_DATA`, or `../shared/data` beside it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DETECTION_TEST_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}; set DETECTION_TEST_DATA")
    return folder
