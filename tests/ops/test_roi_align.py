import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign, roi_align, roi_pool

from detection.ops.roi_align import PyramidRoIAlign, RoIPool, separable_roi_align


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([(5, 9), (16, 16), (1, 3)]))
def test_matrix_products_equal_torchvisions_kernel(seed: int, count: int, shape: tuple[int, int]) -> None:
    """Boxes of any size and position, partly and wholly outside the map."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, 4, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 24 - 6
    side = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 12
    boxes = torch.cat([corner, corner + side], dim=1)
    image = torch.randint(0, 3, (count,), generator=generator).sort().values
    ours = separable_roi_align(maps, boxes, image, 7)
    theirs = roi_align(maps, torch.cat([image[:, None], boxes], dim=1), 7, 1.0, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    (a,) = torch.autograd.grad((ours * weight).sum(), maps)
    (b,) = torch.autograd.grad((theirs * weight).sum(), maps)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", ["any", "from the top"])
def test_high_maps_are_multiplied_in_bands(order: str) -> None:
    """Only the rows that neighboring boxes read; boxes above and below the map too."""
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 90, 7, dtype=torch.float64, requires_grad=True)
    corner = torch.rand(300, 2, dtype=torch.float64) * torch.tensor([9, 120]) - torch.tensor([1, 15])
    boxes = torch.cat([corner, corner + torch.rand(300, 2, dtype=torch.float64) * 12 - 1], dim=1)
    if order == "from the top":
        boxes = torch.cat([part[part[:, 1].argsort()] for part in boxes.split(150)])
    image = torch.arange(2).repeat_interleave(150)
    ours = separable_roi_align(maps, boxes, image, 7)
    theirs = roi_align(maps, torch.cat([image[:, None], boxes], dim=1), 7, 1.0, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    (a,) = torch.autograd.grad(ours.square().sum(), maps)
    (b,) = torch.autograd.grad(theirs.square().sum(), maps)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_level_in_bands_keeps_the_order_of_the_proposals() -> None:
    torch.manual_seed(0)
    level, corner = torch.randn(2, 4, 80, 20), torch.rand(2, 30, 2) * torch.tensor([80, 300])
    proposals = torch.cat([corner, corner + 20], dim=2)
    theirs = MultiScaleRoIAlign(["0"], 7, 2)
    expected = theirs({"0": level}, list(proposals), [(320, 80)] * 2)
    torch.testing.assert_close(PyramidRoIAlign(7)([level], proposals, 320, 320), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [128, 1024])  # matrix products, and torchvision's kernel
def test_pyramid_equals_torchvisions(side: int) -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, 4, side // s, side // s) for s in (4, 8, 16, 32)]
    corner = torch.rand(40, 2) * side
    boxes = torch.cat([corner, corner + torch.rand(40, 2) ** 3 * 900 + 1], dim=1)
    proposals = boxes.view(2, 20, 4)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = theirs({str(i): level for i, level in enumerate(levels)}, list(proposals), [(side, side)] * 2)
    torch.testing.assert_close(PyramidRoIAlign(7)(levels, proposals, side, side), expected, rtol=1e-4, atol=1e-5)


def test_all_boxes_from_all_levels_add_up_to_each_from_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, which needs no synchronization; bit for bit, with the gradients."""
    torch.manual_seed(0)
    monkeypatch.setattr("detection.ops.roi_align.MAX_MATMUL_CELLS", dict.fromkeys((torch.float32, torch.bfloat16), 0))
    corner = torch.rand(40, 2) * 128
    boxes = torch.cat([corner, corner + torch.rand(40, 2) ** 3 * 900 + 1], dim=1)
    results = []
    for method in ("_pool_by_level", "_pool_all"):
        generator = torch.Generator().manual_seed(1)
        levels = [torch.randn(2, 4, 128 // s, 128 // s, generator=generator).requires_grad_() for s in (4, 8, 16, 32)]
        monkeypatch.setattr(PyramidRoIAlign, "_pool_by_level", getattr(PyramidRoIAlign, method))
        pooled = PyramidRoIAlign(7)(levels, boxes.view(2, 20, 4), 128, 128)
        results.append([pooled, *torch.autograd.grad(pooled.square().sum(), levels)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_in_deterministic_mode_no_level_is_pooled_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any device but a CPU, where its backward pass is deterministic; `meta` has no kernel of it either."""
    level, boxes = torch.zeros(2, 4, 96, 96, device="meta"), torch.zeros(2, 5, 4, device="meta")
    used: list[str] = []

    def kernel(*_: object) -> torch.Tensor:
        used.append("kernel")
        return torch.zeros(10, 4, 7, 7, device="meta")

    monkeypatch.setattr(PyramidRoIAlign, "_pool_by_level", lambda *_: used.append("by level"))
    monkeypatch.setattr(PyramidRoIAlign, "_kernel", kernel)
    PyramidRoIAlign(7)([level], boxes, 384, 384)
    assert used == ["kernel"]
    torch.use_deterministic_algorithms(True)
    try:
        PyramidRoIAlign(7)([level], boxes, 384, 384)
    finally:
        torch.use_deterministic_algorithms(False)
    assert used == ["kernel", "by level"]


def test_no_proposals() -> None:
    levels = [torch.randn(2, 4, 16, 16, requires_grad=True)]
    assert PyramidRoIAlign(7)(levels, torch.zeros(2, 0, 4), 64, 64).shape == (0, 4, 7, 7)


def test_maps_of_one_stride_are_pooled_from_the_first_as_torchvision_does() -> None:
    """MobileNet's two levels both have stride 32; a very large box does not change that."""
    levels = [torch.randn(1, 4, 32, 32) for _ in range(2)]
    boxes = torch.tensor([[[0.0, 0, 1000, 1000], [10, 10, 200, 90]]])
    theirs = MultiScaleRoIAlign(["0", "1"], 7, 2)
    expected = theirs({str(i): level for i, level in enumerate(levels)}, list(boxes), [(1024, 1024)])
    torch.testing.assert_close(PyramidRoIAlign(7)(levels, boxes, 1024, 1024), expected, rtol=1e-4, atol=1e-5)


def test_roi_pool_is_torchvisions_for_a_batch() -> None:
    level = torch.randn(2, 4, 16, 16)
    boxes = torch.tensor([[[0.0, 0, 100, 60], [20.8, 20.3, 90, 99]], [[5, 5, 6, 6], [100, 100, 256, 256]]])
    expected = roi_pool(level, list(boxes), 7, 1 / 16)
    assert torch.equal(RoIPool(7)([level], boxes, 256, 256), expected)
