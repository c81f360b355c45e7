from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detection.ops import nms

GROUPS = 4


def scene(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes [5, 100, 4], scores, groups and valid; the boxes of padding are not finite."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(5, 100, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 1 + torch.rand(5, 100, 2, generator=generator) * 40], dim=2)
    scores = torch.rand(5, 100, generator=generator)
    group = torch.randint(0, 3, (5, 100), generator=generator)
    valid = torch.rand(5, 100, generator=generator) > 0.2
    boxes[~valid] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
    return boxes, scores, group, valid


@pytest.mark.parametrize("max_boxes", [1, 250, 2**15])  # of a call: one image, two, all
@pytest.mark.parametrize("grouped_nms", [nms._group_by_group, nms._on_tiles])  # CPU and GPU
def test_grouped_nms_equals_torchvisions_batched_nms(
    max_boxes: int, grouped_nms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nms, "MAX_BOXES", max_boxes)
    boxes, scores, group, valid = scene(max_boxes)
    keep = grouped_nms(boxes, scores, group, GROUPS, valid, 0.5)
    for image in range(5):
        rows = valid[image].nonzero()[:, 0]
        expected = torch.zeros(100, dtype=torch.bool)
        kept = batched_nms(boxes[image, rows], scores[image, rows], group[image, rows], 0.5)
        expected[rows[kept]] = True
        assert torch.equal(keep[image], expected)
    assert torch.equal(grouped_nms(boxes, scores, group, GROUPS, keep, 0.5), keep), "not idempotent"
