"""Color transforms of uint8 images.

`ssd`: brightness, contrast, saturation, hue and channel order (Liu et al. 2015, section 2.2), in the ranges
of torchvision's references. `letterbox`: hue, saturation and value at once, as in YOLO implementations.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def jitter_colors(policy: str, rng: np.random.Generator, image: Tensor) -> Tensor:
    """Apply the color transform of a policy, if any, to Tensor[3, H, W], uint8, RGB; not in place."""
    if policy in ("ssd", "ssd_legacy"):
        return _photometric_distort(rng, image)
    return _hsv_jitter(rng, image) if policy == "letterbox" else image


def _photometric_distort(rng: np.random.Generator, image: Tensor) -> Tensor:
    """Apply each transform with probability 0.5; contrast is second or last."""
    transforms: list[tuple[Callable[[Tensor, float], Tensor], tuple[float, float]]] = [
        (F.adjust_brightness, (0.875, 1.125)),
        (F.adjust_contrast, (0.5, 1.5)),
        (F.adjust_saturation, (0.5, 1.5)),
        (adjust_hue, (-0.05, 0.05)),
    ]
    contrast_last = rng.random() < 0.5
    if contrast_last:
        transforms.append(transforms.pop(1))
    drawn = [(change, float(rng.uniform(*limits))) for change, limits in transforms if rng.random() < 0.5]
    channels = rng.permutation(3) if rng.random() < 0.5 else None
    if drawn:
        image = image.contiguous()  # decoders return channels last, where these transforms are slower
    for change, amount in drawn:
        image = change(image, amount)
    return image if channels is None else image[torch.from_numpy(channels)]


def _hsv_jitter(rng: np.random.Generator, image: Tensor) -> Tensor:
    """Shift the hue by up to 0.1 of the circle; multiply or divide saturation and value by 1 to 1.5.

    One lookup table for all three channels between PIL's two conversions.
    """
    shift = rng.uniform(-0.1, 0.1)
    factors = rng.uniform(1, 1.5, 2) ** rng.choice([-1, 1], 2)
    levels = np.arange(256)
    hue = (levels + round(256 * shift)) % 256
    saturation, value = (np.minimum(levels * factor + 0.5, 255).astype(int) for factor in factors)
    hsv = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).convert("HSV")
    rgb = hsv.point([*hue.tolist(), *saturation.tolist(), *value.tolist()]).convert("RGB")
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def adjust_hue(image: Tensor, shift: float) -> Tensor:
    """Shift the hue and keep HSV's saturation and value.

    Equal to torchvision's `adjust_hue` to one level, in a third of its time: the shift moves each channel
    between the minimum and the maximum of a pixel's three channels, so no conversion to HSV and back is
    needed.

    Args:
        image: Tensor[3, H, W], uint8, RGB.
        shift: Fraction of the hue circle, -0.5 to 0.5.
    """
    red, green, blue = image.float().unbind(0)  # [H, W] each
    maximum = torch.maximum(torch.maximum(red, green), blue)
    minimum = torch.minimum(torch.minimum(red, green), blue)
    spread = maximum - minimum
    if_green = (blue - red).add_(spread, alpha=2)
    if_blue = (red - green).add_(spread, alpha=4)
    hue = torch.where(maximum == red, green - blue, torch.where(maximum == green, if_green, if_blue))
    hue = hue.div_(spread.clamp(min=1)).add_(6 * shift)  # in sixths of the circle
    hue.sub_(hue.div(6).floor_(), alpha=6)
    result = torch.empty_like(image)
    for channel, center, sign, offset in ((0, 3, 1, -1), (1, 2, -1, 2), (2, 4, -1, 2)):
        level = hue.sub(center).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        result[channel] = level.mul_(spread).add_(minimum).add_(0.5)  # the conversion to uint8 truncates
    return result
