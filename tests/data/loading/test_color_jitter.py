import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from detection.data.loading.augment import adjust_hue, jitter_colors


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
    changed = [jitter_colors(policy, np.random.default_rng(s), image) for s in range(8)]
    again = [jitter_colors(policy, np.random.default_rng(s), before.contiguous()) for s in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(changed, again, strict=True))
    assert sum(not torch.equal(one, image) for one in changed) >= 5
    assert all(one.dtype == torch.uint8 and one.shape == image.shape for one in changed)
    assert torch.equal(image, before)


@pytest.mark.parametrize("policy", ["none", "flip", "multiscale", "ssdlite", "crop"])
def test_other_policies_keep_the_colors(policy: str) -> None:
    image = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    assert jitter_colors(policy, np.random.default_rng(0), image) is image


def test_hsv_jitter_stays_within_its_limits() -> None:
    """A uniform image stays uniform: the hue shifts by at most 0.1, the others change by at most 50 %."""
    red, green, blue = 120, 70, 60
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    image = torch.tensor([red, green, blue], dtype=torch.uint8).view(3, 1, 1).repeat(1, 4, 4)
    shifts, ratios = [], []
    for seed in range(300):
        changed = jitter_colors("letterbox", np.random.default_rng(seed), image)
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
