"""Devices, precision, and the processes (ranks) that train one detector together.

In a single process every function of ranks is a no-op: rank 0 of 1.

DDP averages the gradients of the ranks, each of which has an equal share of the batch. A loss that is a mean
over images needs nothing else. A loss divided by a count over the batch (positives, sampled boxes) is divided
by the mean of that count over the ranks, and then equals the loss of the whole batch:

    loss = sums.sum() / distributed.normalizer(positives.sum())
"""

import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from detection.errors import ParamsError

T = TypeVar("T")


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if _initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _initialized() else 1


def is_main() -> bool:
    """Return whether this process is rank 0, which logs, saves and reports."""
    return rank() == 0


def mean(value: Tensor) -> Tensor:
    """Mean of a tensor over the ranks; not differentiable, without host synchronization.

    Args:
        value: Tensor of any shape, the same on each rank; integers and booleans become float32.
    """
    value = value.detach()
    if not value.is_floating_point():
        value = value.float()
    if not _initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def normalizer(count: Tensor) -> Tensor:
    """Divisor that turns this rank's sum of losses into its part of the mean over the whole batch.

    Args:
        count: Tensor[], count on this rank; the global count is clamped to at least 1.
    """
    return mean(count).clamp(min=1 / world_size())


def maximum(*numbers: int) -> list[int]:
    """Maximum of each number over the ranks; waits for all of them."""
    if not _initialized():
        return list(numbers)
    values = torch.tensor(numbers)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return [int(value) for value in values]


def gather(value: T) -> list[T]:
    """Values of all ranks in order of rank, on every rank; any small object that can be pickled."""
    if not _initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def barrier() -> None:
    """Wait until every rank arrives."""
    maximum(0)


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def pick_device(name: str) -> torch.device:
    """Device by name; `auto` is a GPU if available, else the CPU.

    Raises:
        ParamsError: `cuda` on a machine without a GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ParamsError("params.yaml: device: cuda, but no GPU is available; set device: auto")
    return torch.device(name)


def pick_devices(count: int | str, device: torch.device, batch_size: int) -> int:
    """Number of devices to train on; `auto` is one CPU, or the most GPUs that divide the batch evenly.

    Raises:
        ParamsError: More GPUs than available.
    """
    available = torch.cuda.device_count() if device.type == "cuda" else None
    if isinstance(count, str):
        return max(n for n in range(1, (available or 1) + 1) if batch_size % n == 0)
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


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Precision by name; `auto` is bfloat16 where the hardware has it, else float32 (emulation is slow)."""
    if name == "auto":
        name = "bf16" if _supports_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[None]:
    """Mixed-precision context of a forward pass; a no-op for float32."""
    context: AbstractContextManager[None] = torch.autocast(
        device.type, torch.bfloat16, enabled=precision == torch.bfloat16
    )
    return context


def _supports_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check() for check in checks if check is not None)
