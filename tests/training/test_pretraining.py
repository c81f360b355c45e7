import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from detection.errors import CheckpointError
from detection.models.backbones import feature_state, make_backbone
from detection.params import load
from detection.params.stages import Crops
from detection.training.checkpoint import Checkpoints
from detection.training.pretrain import crops as cutting
from detection.training.pretrain.crops import CropSet, augment, centre, cut_crops
from detection.training.pretrain.methods import choose, published, published_weights, train_on_crops

CROPS = Crops(image_size=32, batch_size=8, epochs=2, background=0.5)


def places(folder: Path, name: str) -> tuple[Checkpoints, Path]:
    """Checkpoints of a key, and the curve's file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        checkpoints = Checkpoints("pretrain", name)
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    return checkpoints, folder / name / "curves.csv"


def test_crops_show_objects_and_free_background(tiny: Any) -> None:
    index, classes = tiny.splits["train"], len(tiny.classes)
    cut = cut_crops(index, tiny.root, CROPS, classes, seed=0)
    kept = ~index.difficult & ~index.crowd
    side = round(32 * cutting.SLACK)
    assert cut.pixels.shape == (len(cut), 3, side, side)
    assert cut.pixels.dtype == torch.uint8
    objects = cut.labels[cut.labels < classes]
    assert sorted(objects.tolist()) == sorted(index.labels[kept].tolist())
    assert (cut.labels == classes).any()


def test_a_limit_and_an_empty_split(tiny: Any) -> None:
    limited = cut_crops(tiny.splits["train"], tiny.root, replace(CROPS, limit=5), 4, seed=0)
    assert 5 <= len(limited) < 20
    nothing = tiny.splits["train"].select(np.zeros(0, np.int64))
    empty = cut_crops(nothing, tiny.root, CROPS, 4, seed=0)
    assert len(empty) == 0


def test_background_keeps_off_the_objects() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[20, 20, 60, 60]], np.float32)
    for _ in range(200):
        found = cutting._background(rng, boxes, 100, 100)
        if found is None:
            continue
        x1, y1, x2, y2 = found
        assert 0 <= x1 < x2 <= 100
        assert 0 <= y1 < y2 <= 100
        shared = max(0, min(x2, 60) - max(x1, 20)) * max(0, min(y2, 60) - max(y1, 20))
        assert shared <= cutting.FREE * (x2 - x1) * (y2 - y1)


def test_augmented_and_central_crops_have_the_size_and_range() -> None:
    pixels = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8)
    for result in (augment(pixels, 32, torch.Generator().manual_seed(0)), centre(pixels, 32)):
        assert result.shape == (6, 3, 32, 32)
        assert result.dtype == torch.float32
        assert 0 <= float(result.min()) <= float(result.max()) <= 1


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_large"])
def test_pretraining_gives_weights_that_its_backbone_takes(tiny: Any, tmp_path: Path, backbone: str) -> None:
    train = cut_crops(tiny.splits["train"], tiny.root, CROPS, 4, 0)
    val = cut_crops(tiny.splits["val"], tiny.root, CROPS, 4, 0)
    runs = [
        train_on_crops(
            backbone, train, val, 4, CROPS, torch.device("cpu"), torch.float32, 3, *places(tmp_path, name)
        )
        for name in ("one", "two")
    ]
    state, curve = runs[0]
    own = feature_state(make_backbone(backbone))
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}
    assert [row["epoch"] for row in curve] == [1, 2]
    assert 0 <= curve[-1]["val_accuracy"] <= 1
    assert all(torch.equal(v, runs[1][0][k]) for k, v in state.items())


def test_pretraining_learns_to_tell_crops_apart(tmp_path: Path) -> None:
    """Noise with a touch of red, green or blue."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    noise = torch.randint(0, 180, (96, 3, 40, 40), generator=generator, dtype=torch.uint8)
    pixels = noise + 60 * torch.nn.functional.one_hot(labels, 3).view(-1, 3, 1, 1).to(torch.uint8)
    crops = CropSet(pixels, labels)
    settings = replace(CROPS, epochs=4, lr=0.005)
    cpu, fp32 = torch.device("cpu"), torch.float32
    _, curve = train_on_crops("resnet18", crops, crops, 2, settings, cpu, fp32, 0, *places(tmp_path, "one"))
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert curve[-1]["val_accuracy"] > 0.9


def test_published_weights_offline_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", refuse)
    with pytest.raises(
        CheckpointError, match=r"resnet18 cannot be had.*no network.*pretrain.method to crops"
    ):
        published_weights("resnet18", "retinanet")


def test_published_weights_lose_only_their_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: whole)
    state, name = published_weights("resnet18", "retinanet")
    assert state.keys() == feature_state(make_backbone("resnet18")).keys()
    assert name == "ResNet18_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("backbone", "architecture", "name"),
    [
        ("resnet50", "fasterrcnn", "ResNet50_Weights.IMAGENET1K_V1"),
        ("mobilenet_v3_large", "ssdlite", "MobileNet_V3_Large_Weights.IMAGENET1K_V1"),
        ("vgg16", "fasterrcnn", "VGG16_Weights.IMAGENET1K_V1"),
        ("vgg16", "ssd", "VGG16_Weights.IMAGENET1K_FEATURES"),
    ],
)
def test_a_detector_begins_with_the_weights_it_was_published_with(
    backbone: str, architecture: str, name: str
) -> None:
    """torchvision's own builders say which; its newer weights, and those for other pixels, are no such."""
    assert str(published(backbone, architecture)) == name
    if (backbone, architecture) != ("vgg16", "fasterrcnn"):  # has no builder
        builder = {
            "fasterrcnn": torchvision.models.detection.fasterrcnn_resnet50_fpn,
            "ssdlite": torchvision.models.detection.ssdlite320_mobilenet_v3_large,
            "ssd": torchvision.models.detection.ssd300_vgg16,
        }[architecture]
        default = inspect.signature(builder).parameters["weights_backbone"].default
        assert str(default) == name


def test_a_classifier_that_was_not_published_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        shapes = torchvision.models.vgg16(weights=None).state_dict()
    whole = {k: torch.zeros(1) if k.startswith("features") else torch.full((1,), torch.nan) for k in shapes}
    monkeypatch.setattr(torchvision.models.VGG16_Weights, "get_state_dict", lambda *_, **__: whole)
    state, _ = published_weights("vgg16", "ssd")
    assert state.keys() == {k for k in shapes if k.startswith("features")}


def test_a_finished_pretraining_is_not_taken_for_one_of_another_precision_or_determinism() -> None:
    given = load()
    changes: list[dict[str, Any]] = [{}, {"precision": "fp32"}, {"determinism": "bitwise"}]
    reads = [
        choose(replace(given, train=replace(given.train, **change)), torch.device("cpu"))[0]
        for change in changes
    ]
    assert reads[0] not in reads[1:]
    assert reads[1] != reads[2]
