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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tile", [1, 7, 512])
@pytest.mark.parametrize("grouped_nms", [nms._group_by_group, nms._in_parallel])  # CPU and GPU
def test_grouped_nms_equals_torchvisions_batched_nms(
    seed: int, tile: int, grouped_nms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nms, "TILE", tile)
    monkeypatch.setattr(nms, "MAX_PAIRS", 2000)  # groups of several parts
    boxes, scores, group, valid = scene(seed)
    keep = grouped_nms(boxes, scores, group, GROUPS, valid, 0.5)
    for image in range(5):
        rows = valid[image].nonzero()[:, 0]
        expected = torch.zeros(100, dtype=torch.bool)
        kept = batched_nms(boxes[image, rows], scores[image, rows], group[image, rows], 0.5)
        expected[rows[kept]] = True
        assert torch.equal(keep[image], expected)
    assert torch.equal(grouped_nms(boxes, scores, group, GROUPS, keep, 0.5), keep), "not idempotent"


def test_parallel_nms_of_many_boxes_equals_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(1, 3000, 2, generator=generator) * 400
    boxes = torch.cat([corner, corner + 10 + torch.rand(1, 3000, 2, generator=generator) * 100], dim=2)
    scores = torch.rand(1, 3000, generator=generator).mul(100).round()  # with ties
    arguments = (boxes, scores, torch.zeros(1, 3000, dtype=torch.int64), 1, torch.ones(1, 3000, dtype=torch.bool), 0.3)
    keep = nms._in_parallel(*arguments)
    assert 100 < keep.sum() < 1500
    assert torch.equal(keep, nms._group_by_group(*arguments))


@pytest.mark.parametrize("threshold", [0.3, 0.7])  # float32 of 0.3 is above it, that of 0.7 below
def test_parallel_nms_compares_as_torchvision_at_the_threshold(threshold: float) -> None:
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, threshold]]])  # IoU float32(threshold)
    arguments = (boxes, torch.tensor([[2.0, 1.0]]), torch.zeros(1, 2, dtype=torch.int64), 1, torch.ones(1, 2) > 0)
    assert torch.equal(nms._in_parallel(*arguments, threshold), nms._group_by_group(*arguments, threshold))


@pytest.mark.parametrize("count", [0, 1])
def test_parallel_nms_without_valid_boxes(count: int) -> None:
    valid = torch.zeros(2, count, dtype=torch.bool)
    arguments = (torch.zeros(2, count, 4), torch.zeros(2, count), torch.zeros(2, count, dtype=torch.int64), 3, valid)
    assert torch.equal(nms._in_parallel(*arguments, 0.5), valid)
