"""A two-stage detector with dynamic sides: agreement at every size and batch size, and the two files of the core."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from detection.data.loading.batch import collate
from detection.export import agreement, core, onnx_file, torch_program
from detection.models.build import LoadedDetector
from detection.models.faster_rcnn import FasterRCNN
from tests.export.conftest import SMALL_TWO_STAGE


@pytest.fixture(scope="module")
def loaded(random_detector: Callable[..., LoadedDetector]) -> LoadedDetector:
    """A small two-stage detector that keeps the images' ratio."""
    loaded = random_detector(**SMALL_TWO_STAGE)
    assert loaded.recipe.resize == "keep"
    return loaded


def test_one_file_for_all_sizes(loaded: LoadedDetector, images: list[Tensor], tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    onnx_file.write_network(torch_program.trace(loaded, plain=False), path)
    found = agreement.check(loaded, agreement.OnnxDetector(path, threads=1), images)
    assert found.images == len(images) + 9  # each alone, four at once at two sizes, and one at the second size
    assert found.detections > 20 * found.tied


class _BoxHead(nn.Module):
    """`box_head.onnx` in place of the second stage's layers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and deltas of pooled features."""
        logits, deltas = self.session.run(None, {"pooled": pooled.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(deltas)


def test_core_and_box_head_make_the_detector(loaded: LoadedDetector, images: list[Tensor], tmp_path: Path) -> None:
    settings = onnx_file.settings(loaded, "outside", "fp32", {})
    assert "core.onnx" in core.write(loaded, tmp_path, images[:1], settings)
    batch = collate([agreement.sample(image, loaded) for image in images[:3]], loaded.recipe)
    session = onnxruntime.InferenceSession(tmp_path / "core.onnx", providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    values = dict(zip(names, map(torch.from_numpy, session.run(None, {"images": batch.images.numpy()})), strict=True))
    levels = [value for name, value in values.items() if name.startswith("features_")]
    detector = cast(FasterRCNN, loaded.detector)
    counts = [level.shape[2] * level.shape[3] * detector.rpn.anchors.anchors_per_cell[0] for level in levels]
    head = detector.roi_heads
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        expected = detector.detect(batch.images, batch.sizes)
        inside = batch.sizes.resized
        outputs = values["objectness"], values["deltas"], values["anchors"]
        proposals, mask = detector.rpn.propose(*outputs, counts, inside)
        patch.setattr(head, "box_head", nn.Identity())
        patch.setattr(head, "box_predictor", _BoxHead(tmp_path / "box_head.onnx"))
        actual = head.detect(levels, proposals, mask, batch.sizes, *batch.images.shape[2:])
    for ours, theirs in zip(expected, actual, strict=True):
        found = agreement.compare(ours, theirs)
        assert not found.problem
        assert found.matched > 20 * found.tied
