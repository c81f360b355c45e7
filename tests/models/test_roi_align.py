import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign, roi_align

from detection.models.roi_align import PyramidRoIAlign, separable_roi_align


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([(5, 9), (16, 16), (1, 3)]))
def test_the_matrix_products_equal_torchvisions_kernel(seed: int, count: int, shape: tuple[int, int]) -> None:
    """Boxes of any size and place, partly and wholly outside the map."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, 4, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 24 - 6
    side = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 12
    boxes = torch.cat([corner, corner + side], dim=1)
    picture = torch.randint(0, 3, (count,), generator=generator).sort().values
    ours = separable_roi_align(maps, boxes, picture, 7)
    theirs = roi_align(maps, torch.cat([picture[:, None], boxes], dim=1), 7, 1.0, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    (a,) = torch.autograd.grad((ours * weight).sum(), maps)
    (b,) = torch.autograd.grad((theirs * weight).sum(), maps)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("image", [128, 1024])  # small maps and large ones take different ways
def test_a_pyramid_equals_torchvisions(image: int) -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, 4, image // s, image // s) for s in (4, 8, 16, 32)]
    corner = torch.rand(40, 2) * image
    boxes = torch.cat([corner, corner + torch.rand(40, 2) ** 3 * 900 + 1], dim=1)
    proposals = [boxes[:25], boxes[25:]]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = theirs({str(i): level for i, level in enumerate(levels)}, proposals, [(image, image)] * 2)
    torch.testing.assert_close(PyramidRoIAlign(7)(levels, proposals, image), expected, rtol=1e-4, atol=1e-5)


def test_a_picture_without_proposals_is_fine() -> None:
    levels = [torch.randn(2, 4, 16, 16, requires_grad=True)]
    pooled = PyramidRoIAlign(7)(levels, [torch.zeros(0, 4), torch.tensor([[0.0, 0, 20, 20]])], 64)
    assert pooled.shape == (1, 4, 7, 7)
    assert PyramidRoIAlign(7)(levels, [torch.zeros(0, 4)] * 2, 64).shape == (0, 4, 7, 7)
