"""Changes of colour, on uint8 pictures. Geometry is `detection.data.loading.augment`'s.

`ssd`: brightness, contrast, saturation, hue, channel order (Liu et al. 2015, section 2.2), in the ranges of
torchvision's references. `letterbox`: hue, saturation and value at once, as YOLO's descendants do.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def jitter_colors(policy: str, rng: np.random.Generator, picture: Tensor) -> Tensor:
    """Change a picture's colours as a policy does; most leave them alone.

    Args:
        policy: Name of the policy.
        rng: Source of randomness.
        picture: Tensor[3, H, W], uint8, RGB; it is not written to.
    """
    if policy in ("ssd", "ssd_legacy"):
        return _distort(rng, picture)
    if policy == "letterbox":
        return _jitter(rng, picture)
    return picture


def _distort(rng: np.random.Generator, picture: Tensor) -> Tensor:
    """Each change with probability one half; contrast comes second or last."""
    steps: list[tuple[Callable[[Tensor, float], Tensor], tuple[float, float]]] = [
        (F.adjust_brightness, (0.875, 1.125)),
        (F.adjust_contrast, (0.5, 1.5)),
        (F.adjust_saturation, (0.5, 1.5)),
        (turn_hue, (-0.05, 0.05)),
    ]
    contrast_last = rng.random() < 0.5
    if contrast_last:
        steps.append(steps.pop(1))
    chosen = [(change, float(rng.uniform(*limits))) for change, limits in steps if rng.random() < 0.5]
    shuffled = rng.permutation(3) if rng.random() < 0.5 else None
    if chosen:
        picture = picture.contiguous()  # decoders leave the channels last, where these changes are slower
    for change, amount in chosen:
        picture = change(picture, amount)
    return picture if shuffled is None else picture[torch.from_numpy(shuffled)]


def _jitter(rng: np.random.Generator, picture: Tensor) -> Tensor:
    """Turn the hue by up to a tenth of the circle; saturation and value times 1 to 1.5, or the inverse of it.

    PIL's conversions and one table for all three: one pass there and one back.
    """
    turn = rng.uniform(-0.1, 0.1)
    factors = rng.uniform(1, 1.5, 2) ** rng.choice([-1, 1], 2)
    levels = np.arange(256)
    hue = (levels + round(256 * turn)) % 256
    saturation, value = (np.minimum(levels * factor + 0.5, 255).astype(int) for factor in factors)
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).convert("HSV")
    image = image.point([*hue.tolist(), *saturation.tolist(), *value.tolist()]).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def turn_hue(picture: Tensor, turn: float) -> Tensor:
    """Turn the hue of a picture, its saturation and value (as of HSV) untouched.

    The same function as torchvision's `adjust_hue`, to one grey level, in a third of its time: a turn moves
    each channel between the least and the greatest of a pixel's three, so there is no way there and back.

    Args:
        picture: Tensor[3, H, W], uint8, RGB.
        turn: Share of the whole circle, -0.5..0.5.
    """
    red, green, blue = picture.float().unbind(0)  # [H, W] each
    greatest = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    range_ = greatest - least
    hue = torch.where(
        greatest == red,
        green - blue,
        torch.where(
            greatest == green,
            (blue - red).add_(range_, alpha=2),
            (red - green).add_(range_, alpha=4),
        ),
    )
    hue = hue.div_(range_.clamp(min=1)).add_(6 * turn)  # in sixths of the circle
    hue.sub_(hue.div(6).floor_(), alpha=6)
    result = torch.empty_like(picture)
    for channel, centre, sign, offset in ((0, 3, 1, -1), (1, 2, -1, 2), (2, 4, -1, 2)):
        share = hue.sub(centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        result[channel] = share.mul_(range_).add_(least).add_(0.5)  # uint8 cuts off what is left
    return result
