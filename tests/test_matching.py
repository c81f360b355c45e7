"""Our batched matching against torchvision's, picture by picture, and what it promises beside that."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.ops import box_iou

from detection.ops import matcher
from detection.ops.anchors import AnchorGrid
from detection.ops.matcher import BACKGROUND, IGNORE, batched_iou, match, match_centers, sample

SIDE = 64


def problem(seed: int, batch: int, most: int, grid: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Objects [B, M, 4] with their mask, and anchors [A, 4] that cover the picture.

    On a grid of whole pixels IoUs tie often.
    """
    generator = torch.Generator().manual_seed(seed)
    anchors = AnchorGrid([(8, 12), (24,)], (0.5, 1.0, 2.0))([(8, 8), (4, 4)], (SIDE, SIDE))
    corner = torch.rand(batch, most, 2, generator=generator) * (SIDE - 20)
    side = torch.rand(batch, most, 2, generator=generator) * 30 + 2
    if grid:
        corner, side = corner.div(8, rounding_mode="floor") * 8, side.div(8, rounding_mode="floor") * 8 + 8
    mask = torch.rand(batch, most, generator=generator) < 0.7
    return torch.cat([corner, corner + side], dim=2) * mask[..., None], mask, anchors


def original(mask: Tensor, picture: int, matches: Tensor) -> Tensor:
    """Matches that count only the objects that are there, to numbers of the padded row."""
    rows = torch.where(mask[picture])[0]
    if len(rows) == 0:
        return matches
    return torch.where(matches >= 0, rows[matches.clamp(min=0)], matches)


problems = st.builds(problem, st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 7), st.booleans())


@given(problems)
@settings(deadline=None)
def test_iou_equals_torchvisions(given_problem: tuple[Tensor, Tensor, Tensor]) -> None:
    truth, mask, anchors = given_problem
    iou = batched_iou(truth, mask, anchors)
    for b in range(len(truth)):
        assert torch.equal(iou[b][mask[b]], box_iou(truth[b][mask[b]], anchors))
        assert (iou[b][~mask[b]] == -1).all()


@given(problems, st.sampled_from([(0.7, 0.3), (0.5, 0.4), (0.5, 0.5)]), st.sampled_from(["none", "all_ties"]))
@settings(deadline=None, max_examples=150)
def test_matching_equals_torchvisions(
    given_problem: tuple[Tensor, Tensor, Tensor], thresholds: tuple[float, float], best: str
) -> None:
    truth, mask, anchors = given_problem
    theirs = Matcher(*thresholds, allow_low_quality_matches=best == "all_ties")
    ours = match(truth, mask, anchors, *thresholds, best)  # type: ignore[arg-type]
    check(theirs, ours, truth, mask, anchors)


@given(problems)
@settings(deadline=None, max_examples=150)
def test_ssds_matching_equals_torchvisions(given_problem: tuple[Tensor, Tensor, Tensor]) -> None:
    truth, mask, anchors = given_problem
    check(SSDMatcher(0.5), match(truth, mask, anchors, 0.5, 0.5, "unique"), truth, mask, anchors)


def check(theirs: Matcher, ours: Tensor, truth: Tensor, mask: Tensor, anchors: Tensor) -> None:
    for b in range(len(truth)):
        if not mask[b].any():
            assert (ours[b] == BACKGROUND).all()
        else:
            expected = theirs(box_iou(truth[b][mask[b]], anchors))
            assert torch.equal(ours[b], original(mask, b, expected))


@given(problems, st.sampled_from(["none", "all_ties", "unique"]))
@settings(deadline=None)
def test_in_parts_or_at_once_is_the_same(given_problem: tuple[Tensor, Tensor, Tensor], best: str) -> None:
    truth, mask, anchors = given_problem
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for size in (1, 3 * len(anchors), 2**20):
            patch.setitem(matcher.AT_ONCE, "cpu", size)
            found.append(match(truth, mask, anchors, 0.5, 0.4, best))  # type: ignore[arg-type]
            found.append(match_centers(truth, mask, anchors, [384, 48], 1.5))
    assert all(torch.equal(found[0], other) for other in found[2::2])
    assert all(torch.equal(found[1], other) for other in found[3::2])


@given(problems)
@settings(deadline=None)
def test_each_pictures_own_anchors(given_problem: tuple[Tensor, Tensor, Tensor]) -> None:
    truth, mask, anchors = given_problem
    each = anchors.expand(len(truth), -1, -1) + torch.arange(len(truth))[:, None, None]
    together = match(truth, mask, each, 0.5, 0.4, "all_ties")
    for b in range(len(truth)):
        alone = match(truth[b : b + 1], mask[b : b + 1], each[b], 0.5, 0.4, "all_ties")
        assert torch.equal(together[b], alone[0])


@given(problems, st.sampled_from(["none", "all_ties", "unique"]))
@settings(deadline=None)
def test_anchors_that_take_no_part(given_problem: tuple[Tensor, Tensor, Tensor], best: str) -> None:
    truth, mask, anchors = given_problem
    allowed = (anchors >= 0).all(1) & (anchors <= SIDE).all(1)
    ours = match(truth, mask, anchors, 0.7, 0.3, best, allowed)  # type: ignore[arg-type]
    alone = match(truth, mask, anchors[allowed], 0.7, 0.3, best)  # type: ignore[arg-type]
    assert torch.equal(ours[:, allowed], alone)
    assert (ours[:, ~allowed] == IGNORE).all()


def test_the_docstrings_example_and_an_object_that_overlaps_nothing() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 1], [0, 0, 10, 5], [0, 0, 10, 6], [50, 50, 60, 60]])
    truth = torch.tensor([[[0.0, 0, 10, 10], [90, 90, 95, 95]]])
    mask = torch.tensor([[True, True]])
    assert match(truth, mask, anchors, 0.7, 0.3, "none").tolist() == [[-1, -2, -2, -1]]
    assert match(truth, mask, anchors, 0.7, 0.3, "all_ties").tolist() == [[-1, -2, 0, -1]]
    assert match(truth, mask, anchors, 0.7, 0.3, "unique").tolist() == [[-1, -2, 0, -1]]


def test_empty_boxes_have_no_iou() -> None:
    zero = torch.zeros(1, 1, 4)
    assert batched_iou(zero, torch.tensor([[True]]), zero[0]).tolist() == [[[0.0]]]


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_fcos_assignment_equals_torchvisions(seed: int, batch: int, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = [(16, 16), (8, 8), (4, 4)]
    grid = AnchorGrid([(8,), (16,), (32,)], (1.0,))
    anchors, counts = grid(maps, (128, 128)), grid.counts(maps)
    corner = torch.rand(batch, most, 2, generator=generator) * 100
    truth = torch.cat(
        [corner, corner + torch.rand(batch, most, 2, generator=generator) ** 2 * 120 + 2], dim=2
    )
    mask = torch.rand(batch, most, generator=generator) < 0.8
    ours = match_centers(truth, mask, anchors, counts, 1.5)
    for b in range(batch):
        expected = fcos_matches(truth[b][mask[b]], anchors, counts)
        assert torch.equal(ours[b], original(mask, b, expected))


def fcos_matches(boxes: Tensor, anchors: Tensor, counts: list[int]) -> Tensor:
    """What torchvision's FCOS hands to the losses of its head."""
    seen: list[Tensor] = []

    class Head:
        def compute_loss(self, _: object, __: object, ___: object, matches: list[Tensor]) -> None:
            seen.extend(matches)

    class Stand:
        head = Head()
        center_sampling_radius = 1.5

    FCOS.compute_loss(Stand(), [{"boxes": boxes}], {}, [anchors], counts)
    return seen[0]


@given(
    st.integers(0, 10**6),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 30),
    st.sampled_from([0.25, 0.5, 1.0]),
)
@settings(deadline=None)
def test_a_sample_has_torchvisions_numbers(
    seed: int, positives: int, negatives: int, count: int, fraction: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * 5)
    labels = torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(2)])
    keys = torch.rand(labels.shape, generator=generator)
    drawn = sample(labels == 1, labels == 0, count, fraction, keys)
    expected_p = min(positives, int(count * fraction))
    expected_n = min(negatives, count - expected_p)
    for b in range(2):
        picked = drawn.index[b][drawn.valid[b]]
        assert len(set(picked.tolist())) == len(picked) == expected_p + expected_n
        assert torch.equal(labels[b][picked] == 1, drawn.positive[b][drawn.valid[b]])
        assert int(drawn.positive[b].sum()) == expected_p
        assert (labels[b][picked] >= 0).all()
        smallest = keys[b][labels[b] == 0].sort().values[:expected_n]
        chosen = picked[labels[b][picked] == 0]
        assert torch.equal(keys[b][chosen].sort().values, smallest)


def test_without_keys_it_is_torchs_generator_that_draws() -> None:
    positive = torch.arange(100).expand(2, 100) < 50
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sample(positive, ~positive, 20, 0.5).index)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
