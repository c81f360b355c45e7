from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection.models.backbones import feature_state, make_backbone
from detection.params.stages import Crops
from detection.training.common.checkpoint import Checkpoints
from detection.training.pretrain import crops as crops_module
from detection.training.pretrain.classifier import fit
from detection.training.pretrain.crops import CropSet, augment, center_crop, cut_crops
from detection.training.pretrain.methods import crops_job

CROPS = Crops(image_size=32, batch_size=8, epochs=2, background=0.5)


@pytest.fixture
def learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))

    def run(name: str, backbone: str, train: CropSet, val: CropSet, classes: int, settings: Crops) -> Any:
        job = crops_job(
            train,
            val,
            classes,
            settings,
            backbone=backbone,
            device=torch.device("cpu"),
            precision=torch.float32,
            seed=3,
            curves=tmp_path / name / "curves.csv",
        )
        with Checkpoints("pretrain", name).locked() as checkpoints:
            return fit(job, checkpoints)

    return run


def test_crops_show_objects_and_free_background(tiny: Any) -> None:
    index, classes = tiny.splits["train"], len(tiny.classes)
    crops = cut_crops(index, tiny.root, CROPS, classes, seed=0)
    keep = ~index.difficult & ~index.crowd
    side = round(32 * crops_module.STORED_SCALE)
    assert crops.pixels.shape == (len(crops), 3, side, side)
    assert crops.pixels.dtype == torch.uint8
    objects = crops.labels[crops.labels < classes]
    assert sorted(objects.tolist()) == sorted(index.labels[keep].tolist())
    assert (crops.labels == classes).any()


def test_a_limit_and_an_empty_split(tiny: Any) -> None:
    limited = cut_crops(tiny.splits["train"], tiny.root, replace(CROPS, limit=5), 4, seed=0)
    assert 5 <= len(limited) < 20
    nothing = tiny.splits["train"].select(np.zeros(0, np.int64))
    empty = cut_crops(nothing, tiny.root, CROPS, 4, seed=0)
    assert len(empty) == 0


def test_background_avoids_the_objects() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[20, 20, 60, 60]], np.float32)
    for _ in range(200):
        window = crops_module._background_window(rng, boxes, 100, 100)
        if window is None:
            continue
        x1, y1, x2, y2 = window
        assert 0 <= x1 < x2 <= 100
        assert 0 <= y1 < y2 <= 100
        overlap = max(0, min(x2, 60) - max(x1, 20)) * max(0, min(y2, 60) - max(y1, 20))
        assert overlap <= crops_module.MAX_OBJECT_FRACTION * (x2 - x1) * (y2 - y1)


def test_augmented_and_central_crops_have_the_size_and_range() -> None:
    pixels = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8)
    for result in (augment(pixels, 32, torch.Generator().manual_seed(0)), center_crop(pixels, 32)):
        assert result.shape == (6, 3, 32, 32)
        assert result.dtype == torch.float32
        assert 0 <= float(result.min()) <= float(result.max()) <= 1


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_large"])
def test_pretraining_gives_weights_that_fit_the_backbone(tiny: Any, learn: Any, backbone: str) -> None:
    train = cut_crops(tiny.splits["train"], tiny.root, CROPS, 4, 0)
    val = cut_crops(tiny.splits["val"], tiny.root, CROPS, 4, 0)
    runs = [learn(name, backbone, train, val, 4, CROPS) for name in ("one", "two")]
    state, curve = runs[0]
    expected = feature_state(make_backbone(backbone))
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
    assert [row["epoch"] for row in curve] == [1, 2]
    assert 0 <= curve[-1]["val_accuracy"] <= 1
    assert all(torch.equal(v, runs[1][0][k]) for k, v in state.items())


def test_pretraining_learns_to_classify_crops(learn: Any) -> None:
    """Noise tinted red, green or blue."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    noise = torch.randint(0, 180, (96, 3, 40, 40), generator=generator, dtype=torch.uint8)
    pixels = noise + 60 * torch.nn.functional.one_hot(labels, 3).view(-1, 3, 1, 1).to(torch.uint8)
    crops = CropSet(pixels, labels)
    _, curve = learn("one", "resnet18", crops, crops, 2, replace(CROPS, epochs=4, lr=0.005))
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert curve[-1]["val_accuracy"] > 0.9
