"""A two-stage detector with dynamic sides: the file agrees at every size and batch size."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from detection.export import agreement, onnx_file, torch_program
from detection.models.build import LoadedDetector
from tests.export.conftest import SMALL_TWO_STAGE


def test_one_file_for_all_sizes(
    random_detector: Callable[..., LoadedDetector], images: list[Tensor], tmp_path: Path
) -> None:
    loaded = random_detector(**SMALL_TWO_STAGE)
    assert loaded.recipe.resize == "keep"
    path = tmp_path / "network.onnx"
    onnx_file.write_network(torch_program.trace(loaded, plain=False), path)
    found = agreement.check(loaded, agreement.OnnxDetector(path, threads=1), images)
    assert found.images == len(images) + 8  # each alone, and four at once at two sizes
    assert found.detections > 0
