import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from detection.errors import CheckpointError, DataError
from detection.files import WEIGHTS_JSON, save_weights, sha256, write_json
from detection.models.backbones import VGG_FC, feature_state, load_features, make_backbone
from detection.params import load
from detection.training.common.checkpoint import Checkpoints
from detection.training.pretrain.backbone_file import read_backbone
from detection.training.pretrain.methods import select_method


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    return dict(torchvision.models.resnet18(weights=None).state_dict())


@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("counters", [True, False])
def test_a_file_with_or_without_classifier_and_counters_loads(
    classifier: bool, counters: bool, resnet: dict[str, Tensor], tmp_path: Path
) -> None:
    state = {
        key: value
        for key, value in resnet.items()
        if (classifier or not key.startswith("fc.")) and (counters or "num_batches" not in key)
    }
    save_weights(tmp_path / "w.pth", state)
    features = read_backbone(tmp_path / "w.pth", "resnet18")
    assert features.keys() == feature_state(make_backbone("resnet18")).keys()
    assert torch.equal(features["conv1.weight"], resnet["conv1.weight"])
    assert load_features(make_backbone("resnet18"), features) == len(features)


def test_the_output_of_pretrain_is_such_a_file(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    state = {key: value for key, value in resnet.items() if not key.startswith("fc.")}
    save_weights(tmp_path / "backbone.pt", {"backbone": "resnet18", "state_dict": state})
    assert read_backbone(tmp_path / "backbone.pt", "resnet18").keys() == state.keys()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"conv1.weight": None}, r"the file lacks 'conv1\.weight';"),
        ({"extra": torch.zeros(1)}, r"the file has 'extra', which the network does not have;"),
        ({"conv1.weight": torch.zeros(64, 1, 7, 7)}, r"'conv1\.weight' has shape \(64, 1, 7, 7\) in the file, \(64, 3"),
        ({"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}, "not finite"),
    ],
)
def test_another_content_names_the_tensors(
    change: dict[str, Tensor | None], problem: str, resnet: dict[str, Tensor], tmp_path: Path
) -> None:
    save_weights(tmp_path / "w.pth", {k: v for k, v in {**resnet, **change}.items() if v is not None})
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_backbone(tmp_path / "w.pth", "resnet18")
    assert "w.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_recognized(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    save_weights(tmp_path / "w.pth", resnet)
    with pytest.raises(CheckpointError, match=r"does not fit resnet50: the file lacks '.*'; it fits a resnet18"):
        read_backbone(tmp_path / "w.pth", "resnet50")
    with pytest.raises(CheckpointError, match="does not fit vgg16"):
        read_backbone(tmp_path / "w.pth", "vgg16")


def test_published_features_of_vgg16(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shared_data / "weights/vgg16_imagenet_features.pth"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with caplog.at_level(logging.INFO):
        state = read_backbone(path, "vgg16")
    assert "all 26 tensors of vgg16's features, no classifier in the file" in caplog.text
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert load_features(make_backbone("vgg16"), state) == 26


def test_fc6_and_fc7_are_kept_if_they_are_whole(tmp_path: Path) -> None:
    shapes = {"0.weight": (4096, 25088), "0.bias": (4096,), "3.weight": (4096, 4096), "3.bias": (4096,)}
    features = {key: value for key, value in make_backbone("vgg16").state_dict().items() if "features" in key}
    classifier = {f"classifier.{key}": torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    save_weights(tmp_path / "w.pth", features | classifier)
    assert {key for key in read_backbone(tmp_path / "w.pth", "vgg16") if key.startswith(VGG_FC)} == classifier.keys()
    for broken in (
        {"classifier.0.bias": torch.full((4096,), torch.nan)},
        {"classifier.0.bias": torch.zeros(2)},
        {"classifier.6.bias": torch.zeros(20)},
    ):
        save_weights(tmp_path / "w.pth", features | broken)
        assert read_backbone(tmp_path / "w.pth", "vgg16").keys() == features.keys()


def test_the_file_is_an_input_of_the_key_and_may_not_change_after_check(
    resnet: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load(model="retinanet_resnet18")
    params = replace(params, pretrain=replace(params.pretrain, method="file", file="w.pth"))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_weights(tmp_path / "w.pth", resnet)
    digest = sha256("w.pth")
    write_json(WEIGHTS_JSON, {"backbone": {"method": "file", "sha256": digest}})
    inputs, make_weights = select_method(params, torch.device("cpu"))
    assert inputs == {"file": digest}
    result = make_weights(Checkpoints("pretrain", "key"), tmp_path / "curves.csv")
    assert result["metrics"] == {"method": "file", "weights": "w.pth", "sha256": digest}
    save_weights(tmp_path / "w.pth", {**resnet, "conv1.weight": resnet["conv1.weight"] + 1})
    with pytest.raises(DataError, match=r"w\.pth changed while the pipeline ran"):
        select_method(params, torch.device("cpu"))
