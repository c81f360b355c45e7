from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detection.data.index import Record, pack
from detection.data.pictures import read_picture
from detection.evaluation.inference import detect_picture, run
from detection.models.build import build_detector
from detection.params import load


@pytest.mark.parametrize("size", [(60, 90), (75, 75)])
@pytest.mark.parametrize("model", ["fasterrcnn_resnet18", "retinanet_resnet18"])
def test_a_picture_by_itself_gets_what_it_gets_on_a_split(
    tmp_path: Path, model: str, size: tuple[int, int]
) -> None:
    """Sides that are no multiples of 32: both ways must pad them, or the anchors stand elsewhere."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    none = np.zeros(0, bool)
    labels, areas = np.zeros(0, np.int64), np.zeros(0, np.float32)
    index = pack([Record("0.png", "0", *size, np.zeros((0, 4), np.float32), labels, none, none, areas)])
    recipe = replace(load(model=model).recipe, image_size=100, max_size=200, score_threshold=0.0)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3, None).eval()
    found = run(detector, index, tmp_path, recipe, batch_size=4, device="cpu")
    alone = detect_picture(detector, recipe, read_picture(tmp_path / "0.png"))
    assert len(found.boxes) > 20
    np.testing.assert_allclose(alone.boxes.numpy(), found.boxes, atol=1e-3)
    np.testing.assert_allclose(alone.scores.numpy(), found.scores, atol=1e-6)
