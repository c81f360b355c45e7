"""The batched matcher against torchvision's, image by image, and its further properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.ops import box_iou

from detection.ops import matcher
from detection.ops.anchors import PyramidAnchorGenerator
from detection.ops.matcher import BACKGROUND, IGNORE, balanced_sample, batched_iou, match, match_centers

SIDE = 64


def scene(seed: int, batch: int, count: int, on_grid: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Objects [B, M, 4] with their mask, and anchors [A, 4] that cover the image.

    On a coarse grid IoUs tie often.
    """
    generator = torch.Generator().manual_seed(seed)
    anchors = PyramidAnchorGenerator([(8, 12), (24,)], (0.5, 1.0, 2.0))([(8, 8), (4, 4)], (SIDE, SIDE))
    corner = torch.rand(batch, count, 2, generator=generator) * (SIDE - 20)
    side = torch.rand(batch, count, 2, generator=generator) * 30 + 2
    if on_grid:
        corner, side = corner.div(8, rounding_mode="floor") * 8, side.div(8, rounding_mode="floor") * 8 + 8
    mask = torch.rand(batch, count, generator=generator) < 0.7
    return torch.cat([corner, corner + side], dim=2) * mask[..., None], mask, anchors


def padded_index(mask: Tensor, image: int, matches: Tensor) -> Tensor:
    """Matches as indices into the padded objects, from indices into the valid ones."""
    rows = torch.where(mask[image])[0]
    if len(rows) == 0:
        return matches
    return torch.where(matches >= 0, rows[matches.clamp(min=0)], matches)


scenes = st.builds(scene, st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 7), st.booleans())


@given(scenes)
@settings(deadline=None)
def test_iou_equals_torchvisions(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, mask, anchors = batch
    iou = batched_iou(boxes, mask, anchors)
    for b in range(len(boxes)):
        assert torch.equal(iou[b][mask[b]], box_iou(boxes[b][mask[b]], anchors))
        assert (iou[b][~mask[b]] == -1).all()


@given(scenes, st.sampled_from([(0.7, 0.3), (0.5, 0.4), (0.5, 0.5)]), st.sampled_from(["none", "all_ties"]))
@settings(deadline=None, max_examples=150)
def test_matches_equal_torchvisions(
    batch: tuple[Tensor, Tensor, Tensor], thresholds: tuple[float, float], low_quality: str
) -> None:
    boxes, mask, anchors = batch
    theirs = Matcher(*thresholds, allow_low_quality_matches=low_quality == "all_ties")
    ours = match(boxes, mask, anchors, *thresholds, low_quality)  # type: ignore[arg-type]
    check(theirs, ours, boxes, mask, anchors)


@given(scenes)
@settings(deadline=None, max_examples=150)
def test_ssd_matches_equal_torchvisions(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, mask, anchors = batch
    check(SSDMatcher(0.5), match(boxes, mask, anchors, 0.5, 0.5, "unique"), boxes, mask, anchors)


def check(theirs: Matcher, ours: Tensor, boxes: Tensor, mask: Tensor, anchors: Tensor) -> None:
    for b in range(len(boxes)):
        if not mask[b].any():
            assert (ours[b] == BACKGROUND).all()
        else:
            expected = theirs(box_iou(boxes[b][mask[b]], anchors))
            assert torch.equal(ours[b], padded_index(mask, b, expected))


def test_a_claim_gives_way_to_an_object_above_the_threshold() -> None:
    """Two objects whose best anchor is the same one: it overlaps the first most, and the second claims it last."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 16]]])
    mask, anchors = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0.0, 0, 10, 9], [30, 30, 40, 40]])
    assert match(boxes, mask, anchors, 0.5, 0.3, "unique").tolist() == [[1, BACKGROUND]]
    assert match(boxes, mask, anchors, 0.5, 0.3, "unique_below_fg").tolist() == [[0, BACKGROUND]]
    assert match(boxes, mask, anchors, 0.95, 0.3, "unique_below_fg").tolist() == [[1, BACKGROUND]]


@given(scenes, st.sampled_from(["none", "all_ties", "unique", "unique_below_fg"]))
@settings(deadline=None)
def test_chunks_do_not_change_the_matches(batch: tuple[Tensor, Tensor, Tensor], low_quality: str) -> None:
    boxes, mask, anchors = batch
    with pytest.MonkeyPatch.context() as patch:
        matches = []
        for size in (1, 3 * len(anchors), 2**20):
            patch.setitem(matcher.MAX_IOUS, "cpu", size)
            matches.append(match(boxes, mask, anchors, 0.5, 0.4, low_quality))  # type: ignore[arg-type]
            matches.append(match_centers(boxes, mask, anchors, [384, 48], 1.5))
    assert all(torch.equal(matches[0], other) for other in matches[2::2])
    assert all(torch.equal(matches[1], other) for other in matches[3::2])


@given(scenes)
@settings(deadline=None)
def test_anchors_per_image(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, mask, anchors = batch
    each = anchors.expand(len(boxes), -1, -1) + torch.arange(len(boxes))[:, None, None]
    together = match(boxes, mask, each, 0.5, 0.4, "all_ties")
    for b in range(len(boxes)):
        alone = match(boxes[b : b + 1], mask[b : b + 1], each[b], 0.5, 0.4, "all_ties")
        assert torch.equal(together[b], alone[0])


@given(scenes, st.sampled_from(["none", "all_ties", "unique", "unique_below_fg"]))
@settings(deadline=None)
def test_ignored_anchors(batch: tuple[Tensor, Tensor, Tensor], low_quality: str) -> None:
    boxes, mask, anchors = batch
    allowed = (anchors >= 0).all(1) & (anchors <= SIDE).all(1)
    ours = match(boxes, mask, anchors, 0.7, 0.3, low_quality, ~allowed)  # type: ignore[arg-type]
    alone = match(boxes, mask, anchors[allowed], 0.7, 0.3, low_quality)  # type: ignore[arg-type]
    assert torch.equal(ours[:, allowed], alone)
    assert (ours[:, ~allowed] == IGNORE).all()


def test_the_docstrings_example_and_an_object_without_overlap() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 1], [0, 0, 10, 5], [0, 0, 10, 6], [50, 50, 60, 60]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [90, 90, 95, 95]]])
    mask = torch.tensor([[True, True]])
    assert match(boxes, mask, anchors, 0.7, 0.3, "none").tolist() == [[-1, -2, -2, -1]]
    assert match(boxes, mask, anchors, 0.7, 0.3, "all_ties").tolist() == [[-1, -2, 0, -1]]
    assert match(boxes, mask, anchors, 0.7, 0.3, "unique").tolist() == [[-1, -2, 0, -1]]


def test_iou_of_empty_boxes_is_0() -> None:
    zero = torch.zeros(1, 1, 4)
    assert batched_iou(zero, torch.tensor([[True]]), zero[0]).tolist() == [[[0.0]]]


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_fcos_assignment_equals_torchvisions(seed: int, batch: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = [(16, 16), (8, 8), (4, 4)]
    anchor_generator = PyramidAnchorGenerator([(8,), (16,), (32,)], (1.0,))
    anchors, counts = anchor_generator(maps, (128, 128)), anchor_generator.counts(maps)
    corner = torch.rand(batch, count, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + torch.rand(batch, count, 2, generator=generator) ** 2 * 120 + 2], dim=2)
    mask = torch.rand(batch, count, generator=generator) < 0.8
    ours = match_centers(boxes, mask, anchors, counts, 1.5)
    for b in range(batch):
        expected = fcos_matches(boxes[b][mask[b]], anchors, counts)
        assert torch.equal(ours[b], padded_index(mask, b, expected))


def fcos_matches(boxes: Tensor, anchors: Tensor, counts: list[int]) -> Tensor:
    """Matches that torchvision's FCOS passes to its head's losses."""
    seen: list[Tensor] = []

    class Head:
        def compute_loss(self, _: object, __: object, ___: object, matches: list[Tensor]) -> None:
            seen.extend(matches)

    class Peer:
        head = Head()
        center_sampling_radius = 1.5

    FCOS.compute_loss(Peer(), [{"boxes": boxes}], {}, [anchors], counts)
    return seen[0]


@given(
    st.integers(0, 10**6), st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.sampled_from([0.25, 0.5, 1.0])
)
@settings(deadline=None)
def test_samples_have_torchvisions_counts(
    seed: int, positives: int, negatives: int, count: int, fraction: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * 5)
    labels = torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(2)])
    keys = torch.rand(labels.shape, generator=generator)
    sampled = balanced_sample(labels == 1, labels == 0, count, fraction, keys)
    expected_p = min(positives, int(count * fraction))
    expected_n = min(negatives, count - expected_p)
    for b in range(2):
        indices = sampled.index[b][sampled.valid[b]]
        assert len(set(indices.tolist())) == len(indices) == expected_p + expected_n
        assert torch.equal(labels[b][indices] == 1, sampled.positive[b][sampled.valid[b]])
        assert int(sampled.positive[b].sum()) == expected_p
        assert (labels[b][indices] >= 0).all()
        smallest = keys[b][labels[b] == 0].sort().values[:expected_n]
        negative = indices[labels[b][indices] == 0]
        assert torch.equal(keys[b][negative].sort().values, smallest)


def test_samples_without_keys_follow_torchs_seed() -> None:
    positive = torch.arange(100).expand(2, 100) < 50
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(balanced_sample(positive, ~positive, 20, 0.5).index)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
