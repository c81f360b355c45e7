"""Detectors with random weights that detect something, and real-looking images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.export import spread
from detection.models.build import LoadedDetector, build_detector, save_detector, without_weights
from detection.params import load
from detection.params.recipe import RPN, Anchors, RetinaNetAnchors, RoI, TopN

SMALL: dict[str, Any] = {
    "model": "retinanet_resnet18",
    "resize": "stretch",
    "image_size": 128,
    "fpn_levels": (4, 5),
    "fpn_channels": 32,
    "head_norm": "none",
    "anchors": RetinaNetAnchors(sizes=((16, 20), (32, 40), (64, 80), (128, 160))),
}
"""A graph of few nodes: exporters take tens of seconds for the whole recipe."""
SMALL_TWO_STAGE: dict[str, Any] = {
    "model": "fasterrcnn_resnet18",
    "image_size": 128,
    "max_size": 192,
    "fpn_levels": (4, 5),
    "fpn_channels": 32,
    "anchors": Anchors(sizes=((16,), (32,), (64,))),
    "rpn": RPN(pre_nms_top_n=TopN(train=100, test=60), post_nms_top_n=TopN(train=60, test=40)),
    "roi": RoI(hidden_channels=64),
}
CLASSES = ("ring", "cross", "leaf")


@pytest.fixture(scope="session")
def random_detector(images: list[Tensor]) -> Callable[..., LoadedDetector]:
    """Builds a small detector of a recipe, whose scores differ and all count."""

    def build(model: str, seed: int = 0, classes: tuple[str, ...] = CLASSES, **changes: Any) -> LoadedDetector:
        recipe = without_weights(load(model=model, dataset="shapes").recipe)
        recipe = replace(recipe, score_threshold=0.01, **changes)
        loaded = LoadedDetector(build_detector(recipe, len(classes), None).eval(), recipe, classes, model)
        spread(loaded, images[:2], seed)
        return loaded

    return build


@pytest.fixture(scope="session")
def images() -> list[Tensor]:
    """Four images of two sizes: smooth noise and rectangles."""
    rng = np.random.default_rng(0)
    result = []
    for height, width in ((150, 200), (150, 200), (230, 160), (97, 131)):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
        for _ in range(4):
            top, left = int(rng.integers(0, height - 40)), int(rng.integers(0, width - 40))
            pixels[top : top + 35, left : left + 25] = rng.integers(0, 256, 3)
        result.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return result


@pytest.fixture(scope="session")
def image_folder(images: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as PNG files."""
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def detector_file(random_detector: Callable[..., LoadedDetector], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a small RetinaNet on square images of one size, which are the fastest to export."""
    loaded, path = random_detector(**SMALL), tmp_path_factory.mktemp("detector") / "detector.pt"
    save_detector(path, loaded.detector.state_dict(), loaded.recipe, loaded.classes, loaded.model)
    return path
