"""Weights of a started training, from where `start.from` was resolved to."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torchvision.models import get_weight

from detection.errors import CheckpointError, DetectionError, ParamsError
from detection.experiments.start_weights import fetch_start
from detection.models.build import build_detector, save_detector
from detection.params import load
from detection.weights import load_start

PUBLISHED = "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_no_source_gives_no_weights(root: Path) -> None:
    fetch_start({"from": None}).save(root / "start.pt")
    assert load_start(root / "start.pt") is None


def test_a_detector_file_brings_recipe_and_classes(root: Path) -> None:
    recipe = load().recipe
    detector = build_detector(recipe, 2, None)
    save_detector(root / "first.pt", detector.state_dict(), recipe, ("cat", "dog"), "m")
    start = fetch_start({"from": "first.pt", "type": "file"})
    assert start.classes == ("cat", "dog")
    assert start.recipe["architecture"] == recipe.architecture
    assert start.recipe["rpn"] == asdict(recipe)["rpn"]


def test_the_file_is_the_same_for_the_same_weights(root: Path) -> None:
    torch.save({"a": torch.ones(2)}, root / "a.pth")
    digests = set()
    for name in ("one.pt", "two.pt"):
        fetch_start({"from": "a.pth", "type": "file"}).save(root / name)
        digests.add(hashlib.md5((root / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def cached(root: Path) -> Path:
    path: Path = root / "torch" / "hub" / "checkpoints" / get_weight(PUBLISHED).url.rsplit("/", 1)[1]
    path.parent.mkdir(parents=True)
    return path


def test_a_cached_file_of_another_hash_is_refused(root: Path) -> None:
    path = cached(root)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=f"{path.name} is not the file published.*delete it"):
        fetch_start({"from": "published", "type": "published", "weights": PUBLISHED})


def test_published_weights_have_the_names_of_their_91_outputs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cached(root)
    torch.save({"a": torch.ones(1)}, path)
    digest = path.name.rsplit("-", 1)[1].removesuffix(".pth")
    monkeypatch.setattr("detection.weights.sha256", lambda _: digest + "0" * 56)
    start = fetch_start({"from": "published", "type": "published", "weights": PUBLISHED})
    assert start.classes is not None
    assert start.classes[:2] == ("__background__", "person")
    assert len(start.classes) == 91


def test_unknown_published_weights_are_named() -> None:
    with pytest.raises(ParamsError, match=r"torchvision has no Nothing_Weights\.V1"):
        fetch_start({"from": "published", "type": "published", "weights": "Nothing_Weights.V1"})


class Code:
    """Object whose unpickling would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_a_file_that_is_no_state_dict_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(1000)}, root / "whole.pth")
    (root / "truncated.pth").write_bytes((root / "whole.pth").read_bytes()[:2000])
    (root / "text.pth").write_text("hello")
    (root / "empty.pth").touch()
    torch.save({"a": Code()}, root / "code.pth")
    torch.save([1, 2], root / "list.pth")
    for name in ("truncated.pth", "text.pth", "empty.pth", "code.pth", "list.pth"):
        with pytest.raises(DetectionError, match=name) as caught:
            fetch_start({"from": name, "type": "file"})
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
