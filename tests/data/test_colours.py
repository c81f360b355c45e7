import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from detection.data.loading.color_jitter import jitter_colors, turn_hue


@pytest.mark.parametrize("turn", [-0.5, -0.05, 0.0, 0.013, 0.05, 0.3, 0.5])
def test_turned_hues_are_torchvisions(turn: float) -> None:
    """To one grey level: it rounds down, we round."""
    torch.manual_seed(0)
    greys = torch.arange(64, dtype=torch.uint8).mul(4).repeat(3, 1, 1)
    corners = torch.cartesian_prod(*[torch.tensor([0, 1, 127, 128, 254, 255])] * 3).T.reshape(3, 6, 36)
    for picture in (torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), greys, corners.to(torch.uint8)):
        theirs = F.adjust_hue(picture, turn)
        assert (turn_hue(picture, turn).int() - theirs.int()).abs().max() <= 1
        if turn == 0:
            assert torch.equal(turn_hue(picture, turn), picture)


def test_a_third_of_the_circle_moves_the_channels_on() -> None:
    picture = torch.randint(0, 256, (3, 30, 30), dtype=torch.uint8)
    turned = turn_hue(picture, 1 / 3)
    assert (turned.int() - picture[[2, 0, 1]].int()).abs().max() <= 1


@pytest.mark.parametrize("policy", ["ssd", "ssd_legacy", "letterbox"])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_changes_follow_the_seed_and_leave_the_given_picture_alone(policy: str, layout: str) -> None:
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8)
    if layout == "channels last":
        picture = picture.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    before = picture.clone()
    changed = [jitter_colors(policy, np.random.default_rng(s), picture) for s in range(8)]
    again = [jitter_colors(policy, np.random.default_rng(s), before.contiguous()) for s in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(changed, again, strict=True))
    assert sum(not torch.equal(one, picture) for one in changed) >= 5
    assert all(one.dtype == torch.uint8 and one.shape == picture.shape for one in changed)
    assert torch.equal(picture, before)


@pytest.mark.parametrize("policy", ["none", "flip", "multiscale", "ssdlite", "crop"])
def test_other_policies_change_no_colours(policy: str) -> None:
    picture = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    assert jitter_colors(policy, np.random.default_rng(0), picture) is picture


def test_letterbox_stays_within_its_limits() -> None:
    """One colour in, one colour out: hue by at most a tenth of the circle, the others by at most one half."""
    red, green, blue = 120, 70, 60
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    picture = torch.tensor([red, green, blue], dtype=torch.uint8).view(3, 1, 1).repeat(1, 4, 4)
    turns, ratios = [], []
    for seed in range(300):
        changed = jitter_colors("letterbox", np.random.default_rng(seed), picture)
        assert (changed == changed[:, :1, :1]).all()
        h, s, v = colorsys.rgb_to_hsv(*(changed[:, 0, 0].double() / 255).tolist())
        turns.append((h - hue + 0.5) % 1 - 0.5)
        ratios.append((s / saturation, v / value))
    assert -0.11 < min(turns) < -0.08
    assert 0.08 < max(turns) < 0.11
    for ratio in np.array(ratios).T:
        assert 1 / 1.55 < ratio.min() < 0.7
        assert 1.4 < ratio.max() < 1.55
        assert abs(np.median(np.log(ratio))) < 0.1
