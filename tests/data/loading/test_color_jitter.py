import colorsys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from detection.data.loading.color_jitter import adjust_hue, change_colors, from_hsv, jitter_colors, to_hsv
from detection.data.loading.index import Index
from detection.data.loading.loader import DetectionDataset
from detection.params import load
from detection.params.augmentation import POLICIES, Color, Step


@pytest.mark.parametrize("shift", [-0.5, -0.05, 0.0, 0.013, 0.05, 0.3, 0.5])
def test_hue_equals_torchvisions(shift: float) -> None:
    """Equal to one level: torchvision truncates, we round."""
    torch.manual_seed(0)
    grays = torch.arange(64, dtype=torch.uint8).mul(4).repeat(3, 1, 1)
    corners = torch.cartesian_prod(*[torch.tensor([0, 1, 127, 128, 254, 255])] * 3).T.reshape(3, 6, 36)
    for image in (torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), grays, corners.to(torch.uint8)):
        theirs = F.adjust_hue(image, shift)
        assert (adjust_hue(image, shift).int() - theirs.int()).abs().max() <= 1
        if shift == 0:
            assert torch.equal(adjust_hue(image, shift), image)


def test_a_third_of_the_circle_rotates_the_channels() -> None:
    image = torch.randint(0, 256, (3, 30, 30), dtype=torch.uint8)
    shifted = adjust_hue(image, 1 / 3)
    assert (shifted.int() - image[[2, 0, 1]].int()).abs().max() <= 1


@pytest.mark.parametrize("policy", ["ssd", "ssd_legacy", "letterbox"])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_transforms_follow_the_seed_and_do_not_write_to_the_input(policy: str, layout: str) -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8)
    if layout == "channels last":
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    before = image.clone()
    changed = [jitter_colors(POLICIES[policy], np.random.default_rng(s), image) for s in range(8)]
    again = [jitter_colors(POLICIES[policy], np.random.default_rng(s), before.contiguous()) for s in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(changed, again, strict=True))
    assert sum(not torch.equal(one, image) for one in changed) >= 5
    dtype = torch.float32 if policy == "ssd_legacy" else torch.uint8
    assert all(one.dtype == dtype and one.shape == image.shape for one in changed)
    assert torch.equal(image, before)


@pytest.mark.parametrize("policy", ["none", "flip", "multiscale", "ssdlite", "crop"])
def test_other_policies_keep_the_colors(policy: str) -> None:
    image = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    assert jitter_colors(POLICIES[policy], np.random.default_rng(0), image) is image


def test_hsv_jitter_stays_within_its_limits() -> None:
    """A uniform image stays uniform: the hue shifts by at most 0.1, the others change by at most 50 %."""
    red, green, blue = 70, 120, 60
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    image = torch.tensor([red, green, blue], dtype=torch.uint8).view(3, 1, 1).repeat(1, 4, 4)
    shifts, ratios = [], []
    for seed in range(300):
        changed = jitter_colors(POLICIES["letterbox"], np.random.default_rng(seed), image)
        assert (changed == changed[:, :1, :1]).all()
        h, s, v = colorsys.rgb_to_hsv(*(changed[:, 0, 0].double() / 255).tolist())
        shifts.append((h - hue + 0.5) % 1 - 0.5)
        ratios.append((s / saturation, v / value))
    assert -0.11 < min(shifts) < -0.08
    assert 0.08 < max(shifts) < 0.11
    for ratio in np.array(ratios).T:
        assert 1 / 1.55 < ratio.min() < 0.7
        assert 1.4 < ratio.max() < 1.55
        assert abs(np.median(np.log(ratio))) < 0.1


# -- the originals' arithmetic, written as their formulas: scalar by scalar, HSV by sectors as OpenCV defines it

EPSILON = float(np.finfo(np.float32).eps)


def hsv(red: float, green: float, blue: float) -> tuple[float, float, float]:
    value = max(red, green, blue)
    spread = value - min(red, green, blue)
    if value == red:
        hue = 60 * (green - blue) / (spread + EPSILON)
    elif value == green:
        hue = 120 + 60 * (blue - red) / (spread + EPSILON)
    else:
        hue = 240 + 60 * (red - green) / (spread + EPSILON)
    return hue + 360 if hue < 0 else hue, spread / (abs(value) + EPSILON), value


def rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    sector, rest = divmod(hue / 60, 1)
    low, falling, rising = (value * (1 - saturation * part) for part in (1, rest, 1 - rest))
    by_sector = [
        (value, rising, low), (falling, value, low), (low, value, rising),
        (low, falling, value), (rising, low, value), (value, low, falling),
    ]  # fmt: skip
    return by_sector[int(sector) % 6]


class Recorded(np.random.Generator):
    """Generator that records what it draws."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.draws: list[Any] = []

    def _record(self, draw: Any) -> Any:
        self.draws.append(draw)
        return draw

    def random(self, *args: Any, **kwargs: Any) -> Any:
        return self._record(super().random(*args, **kwargs))

    def uniform(self, *args: Any, **kwargs: Any) -> Any:
        return self._record(super().uniform(*args, **kwargs))

    def choice(self, *args: Any, **kwargs: Any) -> Any:
        return self._record(super().choice(*args, **kwargs))

    def permutation(self, *args: Any, **kwargs: Any) -> Any:
        return self._record(super().permutation(*args, **kwargs))


def colors() -> torch.Tensor:
    """[3, 8, 12] uint8: random colors, grays, black, white and saturated corners."""
    image = np.random.default_rng(3).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image[0] = np.arange(12)[:, None] * 23
    image[1, :8] = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).reshape(3, 8).T
    return torch.from_numpy(image).permute(2, 0, 1)


def distorted(pixel: NDArray[np.uint8], draws: Iterator[Any]) -> NDArray[np.float64]:
    """One pixel after the SSD original's steps, each with probability 0.5."""

    def drawn(neutral: float) -> float:
        return next(draws) if next(draws) < 0.5 else neutral

    brightness = drawn(0)
    contrast_last = next(draws) < 0.5
    contrast, saturation, shift = drawn(1), drawn(1), drawn(0)
    changed = pixel.astype(np.float64) + brightness
    if not contrast_last:
        changed = changed * contrast
    hue, sat, value = hsv(*changed)
    hue += shift
    hue += 360 if hue < 0 else -360 if hue > 360 else 0
    changed = np.array(rgb(hue, sat * saturation, value))
    if contrast_last:
        changed = changed * contrast
    return changed[next(draws)] if next(draws) < 0.5 else changed


def test_legacy_distortion_is_its_originals_arithmetic() -> None:
    image = colors()
    pixels = image.flatten(1).T.numpy()
    below = above = 0.0
    for seed in range(60):
        rng = Recorded(seed)
        ours = jitter_colors(POLICIES["ssd_legacy"], rng, image).flatten(1).T.numpy() * 255
        expected = np.array([distorted(pixel, iter(rng.draws)) for pixel in pixels])
        np.testing.assert_allclose(ours, expected, atol=2e-3)
        below, above = below + (expected < -0.01).mean(), above + (expected > 255.01).mean()
    assert below > 1  # negative values survive, and are in the comparison
    assert above > 1


def test_letterbox_jitter_is_its_originals_arithmetic() -> None:
    """Clipped hues and the one-degree correction included; rounded to 8 bits at the end, where it keeps floats."""
    image = colors()
    pixels = image.flatten(1).T.numpy()
    for seed in range(60):
        rng = Recorded(seed)
        ours = jitter_colors(POLICIES["letterbox"], rng, image).flatten(1).T.numpy()
        shift, amounts, signs = rng.draws
        expected = []
        for pixel in pixels:
            hue, saturation, value = hsv(*(pixel.astype(np.float64) / 255))
            hue += shift
            hue -= hue > 1
            hue += hue < 0
            sat, val = (min(x * a**s, 1) for x, a, s in zip((saturation, value), amounts, signs, strict=True))
            expected.append(rgb(min(max(hue, 0), 360), sat, val))
        np.testing.assert_allclose(ours, np.array(expected) * 255, atol=0.51)


def test_hsv_round_trip() -> None:
    """Identity wherever some channel is positive."""
    torch.manual_seed(0)
    pixels = torch.rand(3, 40, 40) * 400 - 100
    back = from_hsv(*to_hsv(pixels))
    positive = (pixels.amax(0) > 0).expand(3, -1, -1)
    torch.testing.assert_close(back[positive], pixels[positive], atol=2e-3, rtol=0)


def test_pixels_of_real_images_as_their_originals(voc_images: tuple[Index, Path]) -> None:
    """300 images of VOC2007 train, against the original on the same files (two draws each).

    Mean gray of a result: mean 108.3, standard deviation 31.0; values below 0: 1.7 %, above 255: 2.5 %.
    """
    dataset = real_images(voc_images, "ssd_legacy")
    results = [dataset[0, row].image * 255 for row in range(300)]
    grays = [float(result.mean()) for result in results]
    assert np.mean(grays) == pytest.approx(108.3, abs=5)
    assert np.std(grays) == pytest.approx(31, abs=3)
    assert np.mean([float((result < -0.01).float().mean()) for result in results]) == pytest.approx(0.0174, abs=0.006)
    assert np.mean([float((result > 255.01).float().mean()) for result in results]) == pytest.approx(0.0254, abs=0.009)


def test_letterbox_changes_the_gray_of_the_padding(voc_images: tuple[Index, Path]) -> None:
    """The original leaves 0.5 % of the pixels exactly gray, although a third is padding.

    Its results over the first 250 of these images have a third of grays and a mean standard deviation of 49.6 levels.
    """
    dataset = real_images(voc_images, "letterbox")
    results = [dataset[0, row].image for row in range(100)]
    assert np.mean([float((result == 128).all(0).float().mean()) for result in results]) < 0.02
    grays = [float((result == result[:1]).all(0).float().mean()) for result in results]
    assert np.mean(grays) == pytest.approx(0.32, abs=0.08)
    assert np.mean([float(result.float().std()) for result in results]) == pytest.approx(49.6, abs=5)


def real_images(images: tuple[Index, Path], policy: str) -> DetectionDataset:
    model = "ssd300" if policy == "ssd_legacy" else "fasterrcnn_resnet50_c4"
    recipe = load(model=model, dataset="voc2007").recipe.update({"augmentation": policy})
    return DetectionDataset(*images, recipe, train=True, seed=1)


# -- the linear step `color`


@pytest.mark.parametrize(
    ("factors", "name"), [((0.7, 1, 1), "brightness"), ((1, 1.3, 1), "contrast"), ((1, 1, 0.4), "saturation")]
)
def test_a_linear_change_equals_torchvisions(factors: tuple[float, float, float], name: str) -> None:
    """Equal to one level: torchvision truncates."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    theirs = getattr(F, f"adjust_{name}")(image, next(one for one in factors if one != 1))
    assert (change_colors(image, *factors, 0.0).int() - theirs.int()).abs().max() <= 1


def test_hue_rotates_the_colors_and_keeps_the_gray_level() -> None:
    torch.manual_seed(0)
    image = torch.randint(100, 156, (3, 40, 50), dtype=torch.uint8)  # no color is clipped
    weights = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    turned = change_colors(image, 1, 1, 1, 1 / 3)
    assert ((turned - image.float()) * weights).sum(0).abs().max() < 1
    assert (turned.int() - image.int()).abs().float().mean() > 5
    back = change_colors(turned, 1, 1, 1, -1 / 3)
    assert (back.int() - image.int()).abs().max() <= 3
    gray = torch.full((3, 4, 4), 77, dtype=torch.uint8)
    assert torch.equal(change_colors(gray, 1, 1, 1, 0.2), gray)


def test_color_settings_of_zero_change_nothing_and_gray_is_gray() -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8)
    assert jitter_colors([Step(color=Color())], np.random.default_rng(0), image) is image
    gray = jitter_colors([Step(color=Color(grayscale=1, hue=0.1))], np.random.default_rng(0), image)
    assert (gray.amax(0) - gray.amin(0)).max() <= 1
    blurred = jitter_colors([Step(color=Color(blur=1))], np.random.default_rng(0), image)
    assert blurred.float().std() < image.float().std()
