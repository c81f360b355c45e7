"""Choice of device, number of devices and precision."""

import logging
import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn

from detection import nodes
from detection.errors import ParamsError

log = logging.getLogger(__name__)
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Quota and period of the control group, in microseconds; `max` for no limit."""


def pick_device(name: str) -> torch.device:
    """Device by name; `auto` is a GPU if available, else the CPU.

    Raises:
        ParamsError: `cuda` on a machine without a GPU, or with a driver that torch cannot use.
    """
    if name == "cpu" or torch.cuda.is_available():
        return torch.device("cuda" if name == "auto" else name)
    problem = unusable_gpu()
    if name == "cuda":
        raise ParamsError(f"params.yaml: device: cuda, but {problem or 'no GPU is available; set device: auto'}")
    if problem:
        log.warning("warning: using the CPU: %s", problem)
    return torch.device("cpu")


def unusable_gpu() -> str:
    """Reason and fix if this machine has an NVIDIA driver and torch cannot use it; empty if it has none."""
    if not NVIDIA_DRIVER.is_file() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""
    version = re.search(r"Kernel Module.*?(\d+\.[\d.]+)", NVIDIA_DRIVER.read_text(encoding="utf-8"))
    driver = f"driver {version[1]}" if version else "the driver"
    fix = "make install TORCH_INDEX=https://download.pytorch.org/whl/cu126"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, and there is an NVIDIA GPU with {driver}: {fix}"
    try:
        torch.cuda.init()
        reason = "torch finds no GPU"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition(".")[0].partition("\n")[0]
    return (
        f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use the GPU with {driver} ({reason}); update "
        f"the driver, or install torch for an older CUDA: {fix}"
    )


def pick_devices(count: int | str, device: torch.device, batch_size: int) -> int:
    """Number of devices to train on; `auto` is one CPU, or the most GPUs that divide the batch evenly.

    Raises:
        ParamsError: More GPUs than available, or a batch that the devices of several machines cannot share equally.
    """
    available = torch.cuda.device_count() if device.type == "cuda" else None
    nodes.check_batch(batch_size, count)
    if isinstance(count, str):
        machines = nodes.count()
        return max(n for n in range(1, (available or 1) + 1) if batch_size % (n * machines) == 0)
    if count < 1 or count > (available or count):
        limit = f"1 to {available} for the GPUs available" if available else "at least 1 (processes on the CPU)"
        raise ParamsError(f"params.yaml: train.devices: {count} is not possible here; set {limit}")
    return count


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def available_cores() -> int:
    """CPU cores that this process may use: fewer than the machine has under SLURM, `taskset` or `docker --cpus`."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text(encoding="utf-8").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return cores


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Precision by name; `auto` is bfloat16 where the hardware has it, else float32 (emulation is slow)."""
    if name == "auto":
        name = "bf16" if _supports_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def pick_memory_format(channels_last: bool | str, device: torch.device, network: nn.Module) -> torch.memory_format:
    """Memory format of a training's images and weights.

    `auto` is channels_last, but for networks without depthwise convolutions on a CPU with AVX2 only: there oneDNN's
    gradient of the weights of a 3×3 convolution takes 1.5 to 4 times as long in it.
    """
    if channels_last == "auto":
        avx2_only = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
        channels_last = not avx2_only or any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
    return torch.channels_last if channels_last else torch.contiguous_format


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[None]:
    """Mixed-precision context of a forward pass; a no-op for float32."""
    context: AbstractContextManager[None] = torch.autocast(
        device.type, torch.bfloat16, enabled=precision == torch.bfloat16
    )
    return context


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Compute float32 convolutions and matrix products of a GPU in float32.

    By default torch computes convolutions in TF32, with relative errors around 1e-3.
    """
    if device.type != "cuda":
        yield
        return
    previous = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = previous[0]
        torch.set_float32_matmul_precision(previous[1])


def _supports_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check() for check in checks if check is not None)
