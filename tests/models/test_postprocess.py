"""Postprocessing of a batch against torchvision's NMS, image by image."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms

from detection.models import postprocess
from detection.models.detector import ImageSizes
from detection.models.postprocess import (
    Candidates,
    SelectCandidates,
    clip,
    nms_and_rescale,
    rank_in_class,
    topk_per_class,
    topk_per_level,
    topk_scores,
)

SIDE, CLASSES, COUNT = 100, 3, 60


def scene(seed: int, batch: int) -> tuple[Tensor, Tensor, Tensor, ImageSizes]:
    """Boxes [B, N, 4], scores [B, N] of which some are -1, labels [B, N]."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, COUNT, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + torch.rand(batch, COUNT, 2, generator=generator) * 50 + 1], dim=2)
    fraction = torch.rand(batch, 1, generator=generator)
    scores = torch.rand(batch, COUNT, generator=generator)
    scores = torch.where(scores < fraction, -1.0, scores).sort(dim=1, descending=True).values
    labels = torch.randint(0, CLASSES, (batch, COUNT), generator=generator)
    inside = torch.tensor([[SIDE, SIDE - 10]] * batch)
    original = torch.randint(50, 300, (batch, 2), generator=generator)
    return clip(boxes, inside), scores, labels, ImageSizes(inside, original)


def selector(boxes: Tensor, scores: Tensor, labels: Tensor, counts: list[int]) -> SelectCandidates:
    def select(count: int) -> Candidates:
        counts.append(count)
        more = (scores[:, count:] >= 0).any(1)
        return Candidates(boxes[:, :count], scores[:, :count], labels[:, :count], more)

    return select


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([1, 5, 20, 100]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_equals_suppression_over_all_candidates(seed: int, batch: int, limit: int, agnostic: bool) -> None:
    boxes, scores, labels, sizes = scene(seed, batch)
    counts: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postprocess, "CANDIDATES_PER_DETECTION", 1)
        patch.setattr(postprocess, "CANDIDATES_GROWTH", 2)
        select = selector(boxes, scores, labels, counts)
        found = nms_and_rescale(select, sizes, 0.5, limit, CLASSES, agnostic)
    for b, one in enumerate(found):
        real = scores[b] >= 0
        groups = torch.zeros_like(labels[b]) if agnostic else labels[b]
        kept = batched_nms(boxes[b][real], scores[b][real], groups[real], 0.5)[:limit]
        assert torch.equal(one.scores, scores[b][real][kept])
        assert torch.equal(one.labels, labels[b][real][kept])
        height, width = sizes.original[b].tolist()
        scale = torch.tensor([width / (SIDE - 10), height / SIDE] * 2)
        torch.testing.assert_close(one.boxes, boxes[b][real][kept] * scale)
        assert (one.boxes <= torch.tensor([width, height] * 2)).all()
    assert counts[0] == limit


def test_no_candidates() -> None:
    sizes = ImageSizes(torch.tensor([[SIDE, SIDE]] * 2), torch.tensor([[SIDE, SIDE]] * 2))
    boxes, scores, labels = (torch.zeros(2, 4, 4), torch.full((2, 4), -1.0), torch.zeros(2, 4, dtype=torch.int64))
    found = nms_and_rescale(selector(boxes, scores, labels, []), sizes, 0.5, 10, CLASSES)
    assert [one.boxes.shape for one in found] == [(0, 4), (0, 4)]


@given(st.integers(0, 10**6), st.integers(1, 40))
@settings(deadline=None)
def test_topk_scores_equals_topk_over_all_pairs(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, 10, 4, generator=generator)
    values, rows, labels = topk_scores(scores, count)
    expected = scores.flatten(1).topk(count).values
    assert torch.equal(values, expected)
    for b in range(2):
        assert torch.equal(scores[b, rows[b], labels[b]], values[b])


def test_each_level_has_its_own_candidates() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]).view(1, 6, 1)
    boxes = torch.arange(24.0).view(1, 6, 4)
    sizes = ImageSizes(torch.tensor([[SIDE, SIDE]]), torch.tensor([[SIDE, SIDE]]))
    select = topk_per_level(
        scores, boxes, torch.zeros(6, 4), [4, 2], lambda out, _: out, sizes, per_level=2, threshold=0.45
    )
    found = select(3)
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.8, 0.5]]))
    assert torch.equal(found.boxes, boxes[:, [0, 1, 4]])
    assert found.more.tolist() == [False]  # 0.4 is below the threshold
    assert select(2).more.tolist() == [True]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_rank_in_class(labels: list[int]) -> None:
    expected = [labels[:i].count(label) for i, label in enumerate(labels)]
    assert rank_in_class(torch.tensor([labels, labels]), 4).tolist() == [expected, expected]


def test_nms_of_ssd_gets_no_more_candidates_than_can_be_valid() -> None:
    """One class ahead everywhere, as after the first epoch: most of the best candidates are beyond its limit."""
    torch.manual_seed(0)
    per_class, classes = 5, 3
    scores = torch.rand(2, 400, classes) * 0.5
    scores[..., 1] += 0.5
    anchors = torch.arange(400.0)[:, None] + torch.tensor([0.0, 0, 8, 8])
    select = topk_per_class(scores, anchors.expand(2, -1, -1), anchors, lambda box, _: box, None, per_class, 0.01)
    candidates = select(900)
    assert candidates.scores.shape == (2, per_class * classes)
    for image in range(2):
        for label in range(classes):
            best, rows = scores[image, :, label].topk(per_class)
            mine = (candidates.labels[image] == label) & (candidates.scores[image] >= 0)
            kept = min(per_class, int(mine.sum()))
            torch.testing.assert_close(candidates.scores[image][mine], best[:kept])
            torch.testing.assert_close(candidates.boxes[image][mine], anchors[rows[:kept]])
        assert int(((candidates.labels[image] == 1) & (candidates.scores[image] >= 0)).sum()) == per_class
