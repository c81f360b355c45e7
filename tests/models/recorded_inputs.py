"""Reproducible inputs of the recorded comparisons: pseudo-random numbers that no library version changes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def recorded(name: str) -> dict[str, NDArray[Any]]:
    """Arrays of one comparison, recorded with the original's code."""
    with np.load(Path(__file__).parent / "recorded" / f"{name}.npz") as arrays:
        return dict(arrays)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Float32 numbers uniform in -1..1: the fractional part of a large multiple of a sine."""
    count = int(np.prod(shape))
    values = np.sin(np.arange(count, dtype=np.float64) * 12.9898 + (seed + 1) * 78.233) * 43758.5453
    fraction = values - np.floor(values)
    return torch.from_numpy((2 * fraction - 1).astype(np.float32)).reshape(shape)


@torch.no_grad()
def fill(module: nn.Module, gain: float = 1.0) -> None:
    """Set every parameter: weights by He's rule times `gain`, biases to a tenth of it."""
    for seed, (_, parameter) in enumerate(sorted(module.named_parameters())):
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 600
        parameter.copy_(noise(*parameter.shape, seed=seed) * gain * (6 / fan_in) ** 0.5)


def image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """[height, width, 3] uint8: blocks of 24 pixels in random colors, with some noise."""
    blocks = noise(3, height // 24 + 1, width // 24 + 1, seed=seed)
    coarse = blocks.repeat_interleave(24, 1).repeat_interleave(24, 2)[:, :height, :width]
    pixels = 127.5 + 100 * coarse + 27 * noise(3, height, width, seed=seed + 1)
    array: NDArray[np.uint8] = pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return array
