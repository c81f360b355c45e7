"""A folder with a copy of params.yaml, and a detector file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection import params as parameters
from detection.cli import main

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


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector file with random weights: detections everywhere, none of them correct."""
    import torch

    from detection.models.build import build_detector, save_detector

    torch.manual_seed(0)
    recipe = parameters.load(ROOT / "params.yaml").recipe
    classes = ("ring", "cross", "leaf")
    file = tmp_path_factory.mktemp("weights") / "detector.pt"
    save_detector(file, build_detector(recipe, len(classes), None).state_dict(), recipe, classes, "toy")
    return file


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs `detection score` and returns its JSON."""

    def score(*arguments: str | Path) -> dict[str, Any]:
        main(["score", *map(str, arguments)])
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return score
