from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detection.data.index import Index, Record, pack
from detection.data.loading.image_io import read_image
from detection.inference import detect_image, run_detector
from detection.models.build import build_detector
from detection.params import load


def drawn(folder: Path, sizes: list[tuple[int, int]]) -> Index:
    """Noise without objects, a PNG a size."""
    rng, records = np.random.default_rng(0), []
    none, labels, areas = np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0, np.float32)
    for i, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        records.append(
            Record(f"{i}.png", str(i), *size, np.zeros((0, 4), np.float32), labels, none, none, areas)
        )
    return pack(records)


@pytest.mark.parametrize("size", [(60, 90), (75, 75)])
@pytest.mark.parametrize("model", ["fasterrcnn_resnet18", "retinanet_resnet18"])
def test_a_picture_by_itself_gets_what_it_gets_on_a_split(
    tmp_path: Path, model: str, size: tuple[int, int]
) -> None:
    """Sides that are no multiples of 32: both ways must pad them, or the anchors stand elsewhere."""
    index = drawn(tmp_path, [size])
    recipe = replace(load(model=model).recipe, image_size=100, max_size=200, score_threshold=0.0)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3, None).eval()
    found = run_detector(detector, index, tmp_path, recipe, batch_size=4, device="cpu")
    alone = detect_image(detector, recipe, read_image(tmp_path / "0.png"))
    assert len(found.boxes) > 20
    np.testing.assert_allclose(alone.boxes.numpy(), found.boxes, atol=1e-3)
    np.testing.assert_allclose(alone.scores.numpy(), found.scores, atol=1e-6)


def test_detections_belong_to_their_pictures_whatever_the_batch(tmp_path: Path) -> None:
    index = drawn(tmp_path, [(64, 96)] * 5)
    recipe = replace(load(model="retinanet_resnet18").recipe, image_size=64, max_size=96, score_threshold=0.0)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3, None).eval()
    by_batch = [
        run_detector(detector, index, tmp_path, recipe, batch_size=b, device="cpu") for b in (1, 2, 5)
    ]
    first, second = (by_batch[0].select(by_batch[0].images == picture).scores[:20] for picture in (0, 1))
    assert np.abs(first - second).max() > 1e-3, "pictures that cannot be confused"
    for found in by_batch:
        assert set(found.images.tolist()) == set(range(5))
        for picture in range(5):
            ours, alone = (results.select(results.images == picture) for results in (found, by_batch[0]))
            np.testing.assert_allclose(ours.scores[:20], alone.scores[:20], atol=1e-5)
    middle = float(np.median(by_batch[1].scores))
    fewer = run_detector(
        detector, index, tmp_path, recipe, batch_size=2, device="cpu", score_threshold=middle
    )
    kept = by_batch[1].select(by_batch[1].scores >= middle)
    assert 0 < len(kept) < len(by_batch[1])
    np.testing.assert_array_equal(fewer.images, kept.images)
    np.testing.assert_array_equal(fewer.scores, kept.scores)
    none = run_detector(detector, index, tmp_path, recipe, batch_size=2, device="cpu", score_threshold=1.0)
    assert len(none) == 0
