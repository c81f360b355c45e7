"""A folder with a copy of params.yaml."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the repository's params.yaml."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    return folder


@pytest.fixture
def with_shapes(project: Path) -> Callable[[str], Path]:
    """Replaces the entry of shapes, the first dataset, in the project's params.yaml; returns the file."""

    def replace_entry(entry: str) -> Path:
        file = project / "params.yaml"
        head, rest = file.read_text().split("\ndatasets:\n")
        file.write_text(f"{head}\ndatasets:\n{entry}\n  voc2007:{rest.split('  voc2007:', 1)[1]}")
        return file

    return replace_entry
