"""Color transforms of training images.

| step                   | transforms                                                                              |
|------------------------|-----------------------------------------------------------------------------------------|
| `photometric_distort`  | brightness, contrast, saturation, hue and channel order (Liu et al. 2015, section 2.2), |
|                        | in the ranges of torchvision's references; every step clips to 8 bits                   |
| `clip: false`          | the same steps in the arithmetic of a widely used SSD (77.43 on VOC2007): brightness is |
|                        | added, contrast multiplies by itself, nothing is clipped or rounded                     |
| `hsv_jitter`           | hue, saturation and value at once, also of the padding, as its original does            |
| `color`                | brightness, contrast, saturation and hue as one 3 x 3 matrix per image, clipped once;   |
|                        | the hue is rotated in YIQ, as NVIDIA DALI does, not in HSV                              |

HSV of floats: hue in degrees, saturation and value as OpenCV defines them, also for pixels below 0.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from detection.params.augmentation import Color, HsvJitter, PhotometricDistort, Step

EPSILON = float(np.finfo(np.float32).eps)
GRAY = np.array([0.2989, 0.587, 0.114])
"""Weights of RGB in the gray level, as torchvision's."""
YIQ = np.array([GRAY / GRAY.sum(), [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""Matrix of RGB to YIQ."""
MAX_SIGMA, BLUR_KERNEL = 2.0, 5


def jitter_colors(steps: Sequence[Step], rng: np.random.Generator, image: Tensor) -> Tensor:
    """Apply the color transforms of the steps, if any; not in place.

    Args:
        steps: Steps of the augmentation.
        rng: Source of randomness.
        image: Tensor[3, H, W], uint8, RGB.

    Returns:
        Tensor[3, H, W], uint8; float32 with `clip: false`, where 1 is white and values leave 0..1.
    """
    for step in steps:
        match step.settings:
            case PhotometricDistort(clip=clip):
                image = _photometric_distort(rng, image) if clip else _unclipped_distort(rng, image)
            case HsvJitter():
                image = _hsv_jitter(rng, image)
            case Color() as color:
                image = _linear(rng, image, color)
    return image


def _linear(rng: np.random.Generator, image: Tensor, settings: Color) -> Tensor:
    """Draw brightness, contrast, saturation and hue, apply them as one matrix; then gray and blur with their p."""
    factors = [
        float(rng.uniform(max(0, 1 - change), 1 + change)) if change else 1.0
        for change in (settings.brightness, settings.contrast, settings.saturation)
    ]
    hue = float(rng.uniform(-settings.hue, settings.hue)) if settings.hue else 0.0
    gray = settings.grayscale > 0 and rng.random() < settings.grayscale
    blur = settings.blur > 0 and rng.random() < settings.blur
    if gray or hue or factors != [1.0, 1.0, 1.0]:
        image = change_colors(image, factors[0], factors[1], 0.0 if gray else factors[2], hue)
    if blur:
        sigma = float(rng.uniform(0.1, MAX_SIGMA))
        image = F.gaussian_blur(image, [BLUR_KERNEL, BLUR_KERNEL], [sigma, sigma])
    return image


def change_colors(image: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Brightness, contrast, saturation and hue of an image as one linear transform of its pixels.

    Args:
        image: Tensor[3, H, W], uint8, RGB.
        brightness: Factor of the pixels.
        contrast: Factor of the distance from the image's mean gray level.
        saturation: Factor of the distance of each pixel from its gray level.
        hue: Rotation as a fraction of the circle.

    Returns:
        Tensor[3, H, W], uint8, contiguous.
    """
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), GRAY))
    matrix = _hue_rotation(hue) @ matrix
    pixels = image.contiguous().float().view(3, -1)  # planar: channels last, the product takes ten times as long
    bias = 0.5  # the conversion to uint8 truncates
    if contrast != 1:
        bias += (1 - contrast) * brightness * float(pixels.mean(dim=1).double() @ torch.from_numpy(GRAY))
    changed = torch.addmm(torch.tensor(bias), torch.from_numpy(matrix).float(), pixels)
    return changed.clamp_(0, 255).to(torch.uint8).view(image.shape)


def _hue_rotation(hue: float) -> NDArray[np.float64]:
    """[3, 3] rotation of the color plane of YIQ; gray stays gray."""
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    rotation: NDArray[np.float64] = np.linalg.inv(YIQ) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ YIQ
    return rotation


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


def _unclipped_distort(rng: np.random.Generator, image: Tensor) -> Tensor:
    """Apply each transform with probability 0.5; contrast comes before or after saturation and hue.

    The conversion to HSV and back changes pixels whose three channels are all negative, and always happens.
    """

    def drawn(low: float, high: float, neutral: float) -> float:
        return float(rng.uniform(low, high)) if rng.random() < 0.5 else neutral

    brightness = drawn(-32, 32, 0)
    contrast_last = rng.random() < 0.5
    contrast, saturation, hue_shift = drawn(0.5, 1.5, 1), drawn(0.5, 1.5, 1), drawn(-18, 18, 0)
    pixels = image.contiguous().float() + brightness
    hue, chroma, value = to_hsv(pixels if contrast_last else pixels.mul_(contrast))
    pixels = from_hsv(hue + hue_shift, chroma * saturation, value)
    if contrast_last:
        pixels *= contrast
    if rng.random() < 0.5:
        pixels = pixels[torch.from_numpy(rng.permutation(3))]
    return pixels / 255


def _hsv_jitter(rng: np.random.Generator, image: Tensor) -> Tensor:
    """Shift the hue by up to 36 degrees; multiply or divide saturation and value by 1 to 1.5.

    Hues that leave 0..360 degrees are clipped, not wrapped: shifted reds turn red or orange, never purple. The
    original's wrapping is written for a hue in 0..1 and moves hues by one degree.
    """
    shift = float(rng.uniform(-36, 36))
    factors = rng.uniform(1, 1.5, 2) ** rng.choice([-1, 1], 2)
    hue, saturation, value = to_hsv(image.contiguous().float() / 255)
    hue += shift
    hue -= (hue > 1).float()
    hue += (hue < 0).float()
    saturation, value = (saturation * factors[0]).clamp_(max=1), (value * factors[1]).clamp_(max=1)
    return from_hsv(hue.clamp_(0, 360), saturation, value).mul_(255).round_().to(torch.uint8)


def to_hsv(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in 0..360, saturation and value, Tensor[H, W] each, of Tensor[3, H, W], float32, RGB."""
    red, green, blue = pixels.unbind(0)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    if_green = (blue - red).add_(spread, alpha=2)
    if_blue = (red - green).add_(spread, alpha=4)
    hue = torch.where(value == red, green - blue, torch.where(value == green, if_green, if_blue))
    hue = hue.mul_(60).div_(spread + EPSILON)
    hue += 360 * (hue < 0)
    return hue, spread / (value.abs() + EPSILON), value


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """RGB, Tensor[3, H, W], of hue in degrees (any turn), saturation and value, Tensor[H, W] each."""
    spread = value * saturation
    sector = hue / 60
    result = torch.empty(3, *hue.shape)
    for channel, offset in enumerate((5, 3, 1)):
        position = (sector + offset).remainder_(6)
        level = torch.minimum(position, 4 - position).clamp_(0, 1)
        result[channel] = value - level.mul_(spread)
    return result


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
