"""Choice of the device, with a driver that torch cannot use, as a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detection import device
from detection.device import pick_device, pick_memory_format
from detection.errors import ParamsError

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\n"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "version"
    monkeypatch.setattr(device, "NVIDIA_DRIVER", path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return path


@pytest.fixture
def gpu(driver: Path) -> None:
    """A machine with an NVIDIA driver."""
    driver.write_text(DRIVER)


def too_old() -> Any:
    raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040). Please update your driver")


def test_without_a_gpu_the_cpu_is_used_silently(driver: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"
    assert caplog.messages == []
    with pytest.raises(ParamsError, match="no GPU is available"):
        pick_device("cuda")


def test_a_driver_that_is_too_old_is_reported_with_the_fix(
    gpu: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "init", too_old)
    assert pick_device("cpu").type == "cpu"
    assert caplog.messages == []
    assert pick_device("auto").type == "cpu"
    (message,) = caplog.messages
    for part in ("driver 550.54.14", "CUDA 13.2", "too old (found version 12040)", "make install TORCH_INDEX="):
        assert part in message
    assert "\n" not in message
    with pytest.raises(ParamsError, match=r"device: cuda, but torch .* driver 550\.54\.14 .*TORCH_INDEX"):
        pick_device("cuda")


def test_a_build_without_cuda_beside_a_gpu_is_reported(
    gpu: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    pick_device("auto")
    assert "built without CUDA" in caplog.messages[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the user hides the GPU
    assert device.unusable_gpu() == ""


def test_the_package_that_mlflow_reads_gpu_metrics_with_is_installed() -> None:
    root = Path(__file__).resolve().parents[1]
    assert '"nvidia-ml-py' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert 'name = "nvidia-ml-py"' in (root / "uv.lock").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("setting", "capability", "device", "groups", "expected"),
    [
        ("auto", "AVX512", "cpu", 1, torch.channels_last),
        ("auto", "AVX2", "cpu", 1, torch.contiguous_format),
        ("auto", "AVX2", "cpu", 8, torch.channels_last),
        ("auto", "AVX2", "cuda", 1, torch.channels_last),
        (True, "AVX2", "cpu", 1, torch.channels_last),
        (False, "AVX512", "cpu", 1, torch.contiguous_format),
    ],
)
def test_memory_format(
    setting: bool | str,
    capability: str,
    device: str,
    groups: int,
    expected: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    network = nn.Sequential(nn.Conv2d(8, 8, 3, groups=groups))
    assert pick_memory_format(setting, torch.device(device), network) == expected
