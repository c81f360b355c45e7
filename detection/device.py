"""Which device, and in which precision."""

from contextlib import AbstractContextManager

import torch

from detection.errors import ParamsError


def pick_device(name: str) -> torch.device:
    """`auto`: a GPU where there is one.

    Raises:
        ParamsError: A GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ParamsError("params.yaml: device: cuda is asked for and there is no GPU here; set device: auto")
    return torch.device(name)


def pick_devices(count: int | str, device: torch.device, batch_size: int) -> int:
    """How many devices train together: `auto` is all GPUs that can share a batch equally, or one CPU.

    Raises:
        ParamsError: More GPUs are asked for than there are.
    """
    there = torch.cuda.device_count() if device.type == "cuda" else None
    if isinstance(count, str):
        return max(n for n in range(1, (there or 1) + 1) if batch_size % n == 0)
    if count < 1 or count > (there or count):
        raise ParamsError(
            f"params.yaml: train.devices: {count} is not possible here; there are {there or 'only CPUs'}"
            f"{' GPUs' if there else ', which any number of processes from 1 may share'}"
        )
    return count


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the hardware multiplies in it, float32 elsewhere, where it would be emulated."""
    if name == "auto":
        name = "bf16" if _multiplies_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[None]:
    """Mixed precision for a forward pass; does nothing for float32."""
    context: AbstractContextManager[None] = torch.autocast(
        device.type, torch.bfloat16, enabled=precision == torch.bfloat16
    )
    return context


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check() for check in has if check is not None)
