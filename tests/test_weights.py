"""Reading of weights files of any origin: what is accepted, and one line for what is not."""

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn

from detection.errors import CheckpointError
from detection.files import save_weights
from detection.weights import published_path, published_state_dict, read_state_dict

WEIGHTS = torchvision.models.ResNet18_Weights.IMAGENET1K_V1


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {"conv.weight": torch.randn(2, 3), "bn.num_batches_tracked": torch.tensor(3)}


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of published weights in an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return published_path(WEIGHTS)


class Shell:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"backbone": "resnet18", "state_dict": state},
        lambda state: {"format": 2, "model": "retinanet", "state_dict": state},
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 25},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: nn.Module().state_dict() | state,
    ],
    ids=["plain", "backbone.pt", "detector.pt", "torchvision reference", "parallel", "ordered"],
)
def test_every_usual_layout_gives_the_same_tensors(wrap: Any, state: dict[str, Tensor], tmp_path: Path) -> None:
    save_weights(tmp_path / "w.pth", wrap(state))
    read = read_state_dict(tmp_path / "w.pth")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], value) for key, value in state.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype: torch.dtype, state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    save_weights(tmp_path / "w.pth", half)
    read = read_state_dict(tmp_path / "w.pth")
    assert torch.equal(read["conv.weight"], half["conv.weight"].float())
    assert read["bn.num_batches_tracked"].dtype == torch.int64


def test_safetensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["conv.weight"], state["conv.weight"])
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"w\.safetensors is damaged"):
        read_state_dict(tmp_path / "w.safetensors")


def bad_files(folder: Path) -> dict[str, str]:
    """Bad files by the problem that the message names."""
    save_weights(folder / "whole.pth", {"weight": torch.randn(64, 64)})
    content = (folder / "whole.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(content[: len(content) // 2])
    (folder / "empty.pth").touch()
    (folder / "page.pth").write_text("<html>404 not found</html>\n")
    (folder / "code.pth").write_bytes(pickle.dumps({"weight": Shell()}, protocol=2))
    (folder / "protocol.pth").write_bytes(pickle.dumps({"weight": Shell()}))
    torch.save({"weight": Shell()}, folder / "zipped_code.pth")
    torch.save(nn.Linear(2, 2), folder / "module.pth")
    save_weights(folder / "numbers.pth", {"lr": 0.1})
    save_weights(folder / "nothing.pth", {})
    torch.save([torch.zeros(1)], folder / "list.pth")
    (folder / "folder.pth").mkdir()
    return {
        "missing.pth": "does not exist",
        "folder.pth": "is a folder",
        "truncated.pth": "damaged, truncated",
        "empty.pth": "damaged, truncated",
        "page.pth": "damaged, truncated",
        "code.pth": "system",
        "protocol.pth": "not a weights file",
        "zipped_code.pth": "system",
        "module.pth": r"torch\.nn\.modules\.linear\.Linear",
        "numbers.pth": "no tensors",
        "nothing.pth": "no tensors",
        "list.pth": "no tensors",
    }


def test_a_bad_file_is_one_line_that_names_file_and_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, problem in bad_files(tmp_path).items():
        with pytest.raises(CheckpointError, match=problem) as caught:
            read_state_dict(tmp_path / name)
        message = str(caught.value)
        assert name in message
        assert "expected a state dict" in message
        assert "\n" not in message
        assert "weights_only" not in message  # no advice to load it unsafely
    assert not (tmp_path / "executed").exists()


def test_a_cached_file_with_other_content_is_refused(cached: Path) -> None:
    cached.parent.mkdir(parents=True)
    save_weights(cached, {"weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"resnet18-f37072fd\.pth is not the file .* expected f37072fd; delete"):
        published_state_dict(WEIGHTS)


def test_without_network_an_empty_cache_is_one_line(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(CheckpointError, match=rf"ResNet18.*no network.*put https://.* at {cached}"):
        published_state_dict(WEIGHTS)
    assert not any(cached.parent.iterdir())


def test_a_download_with_other_content_leaves_nothing(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.html").write_text("not found")
    monkeypatch.setattr("torch.hub.urlopen", lambda _: (tmp_path / "page.html").as_uri() and _response(tmp_path))
    with pytest.raises(CheckpointError, match="invalid hash value"):
        published_state_dict(WEIGHTS)
    assert not any(cached.parent.iterdir())


def _response(folder: Path) -> Any:
    from urllib.request import urlopen

    return urlopen((folder / "page.html").as_uri())


def test_cached_and_downloaded_weights_with_the_published_hash_are_read(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(tmp_path / "page.html", {"weight": torch.ones(1)})
    digest = hashlib.sha256((tmp_path / "page.html").read_bytes()).hexdigest()
    name = cached.with_name(f"resnet18-{digest[:8]}.pth")
    monkeypatch.setattr("detection.weights.published_path", lambda _: name)
    monkeypatch.setattr("torch.hub.urlopen", lambda _: _response(tmp_path))
    assert published_state_dict(WEIGHTS)["weight"].item() == 1
    monkeypatch.delattr("torch.hub.urlopen")
    assert published_state_dict(WEIGHTS)["weight"].item() == 1
    shutil.rmtree(name.parent)


@pytest.mark.parametrize("builder", torchvision.models.list_models(module=torchvision.models.detection))
def test_every_published_detector_has_a_hash_in_its_name(builder: str) -> None:
    from detection.weights import HASH

    for weights in torchvision.models.get_model_weights(builder):
        assert HASH.findall(published_path(weights).name)
