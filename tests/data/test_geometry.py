import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.data.augment import OVERLAPS, change_colours, draw_window, inside
from detection.data.geometry import Geometry, result_size

SIZES = st.integers(20, 90)


def picture_with(box: tuple[int, int, int, int], height: int, width: int) -> torch.Tensor:
    """A white rectangle on black."""
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    picture[:, box[1] : box[3], box[0] : box[2]] = 255
    return picture


def bright(picture: torch.Tensor) -> np.ndarray:
    """Box around what is brighter than half."""
    rows, columns = torch.where(picture.float().mean(0) > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


@settings(deadline=None, max_examples=150)
@given(SIZES, SIZES, SIZES, SIZES, st.booleans(), st.integers(0, 10_000))
def test_boxes_go_where_the_pixels_go(h: int, w: int, out_h: int, out_w: int, flip: bool, seed: int) -> None:
    """Windows inside and beyond the picture, any output size, mirrored or not."""
    rng = np.random.default_rng(seed)
    x1, y1 = int(rng.integers(0, w - 12)), int(rng.integers(0, h - 12))
    box = (x1, y1, int(rng.integers(x1 + 10, w)), int(rng.integers(y1 + 10, h)))
    left, top, right, bottom = (int(v) for v in rng.integers(0, 10, 4))
    window = (
        (-left, -top, w + right, h + bottom)
        if seed % 2
        else (min(left, x1), min(top, y1), max(w - right, box[2]), max(h - bottom, box[3]))
    )
    geometry = Geometry(window, out_h, out_w, flip)
    result = geometry.picture(picture_with(box, h, w), (0, 0, 0))
    assert result.shape == (3, out_h, out_w)
    (moved,) = geometry.boxes(np.array([box], np.float32))
    np.testing.assert_allclose(bright(result), moved, atol=1.01)


@given(SIZES, SIZES, st.integers(0, 10_000))
def test_mirroring_twice_changes_nothing(h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.random((5, 2, 2)) * [w, h], axis=1).reshape(5, 4).astype(np.float32)
    flip = Geometry((0, 0, w, h), h, w, flip=True)
    np.testing.assert_allclose(flip.boxes(flip.boxes(boxes)), boxes, atol=1e-4)
    picture = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
    assert torch.equal(flip.picture(flip.picture(picture, (0, 0, 0)), (0, 0, 0)), picture)


def test_what_lies_beyond_the_picture_is_filled() -> None:
    result = Geometry((-10, 0, 10, 10), 10, 20).picture(
        torch.full((3, 10, 10), 255, dtype=torch.uint8), (1, 2, 3)
    )
    assert result[:, 0, 0].tolist() == [1, 2, 3]
    assert result[:, 0, 10].tolist() == [255, 255, 255]


def test_no_boxes_stay_no_boxes() -> None:
    assert Geometry((0, 0, 10, 10), 20, 20, True).boxes(np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((480, 640, "keep", 800, 1333), (800, 1067)),  # torchvision's rule: short side, unless
        ((400, 1000, "keep", 800, 1333), (533, 1333)),  # the long side gets too long
        ((1000, 500, "keep", 600, 1000), (1000, 500)),
        ((480, 640, "stretch", 300, None), (300, 300)),
        ((10, 3000, "keep", 800, 1333), (4, 1333)),
    ],
)
def test_result_sizes(given: tuple[int, int, str, int, int | None], expected: tuple[int, int]) -> None:
    assert result_size(*given) == expected


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["none", "flip", "ssd", "ssdlite"]),
    SIZES,
    SIZES,
    st.integers(0, 10_000),
    st.integers(0, 6),
)
def test_windows_show_an_object_whenever_there_is_one(
    policy: str, h: int, w: int, seed: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.random((count, 2)) * [w - 10, h - 10]
    boxes = np.concatenate([corner, corner + 5 + rng.random((count, 2)) * 5], axis=1).astype(np.float32)
    x1, y1, x2, y2 = draw_window(policy, rng, h, w, boxes)
    assert x1 < x2
    assert y1 < y2
    if policy in ("none", "flip"):
        assert (x1, y1, x2, y2) == (0, 0, w, h)
    if count:
        assert inside((x1, y1, x2, y2), boxes).any()
    if policy == "ssdlite":
        assert 0 <= x1 < x2 <= w
        assert 0 <= y1 < y2 <= h


def test_crops_keep_the_overlap_that_was_drawn() -> None:
    """The original never enforced it."""
    box = np.array([[20, 20, 60, 60]], np.float32)

    class High(np.random.Generator):
        def choice(self, *_: object, **__: object) -> float:  # type: ignore[override]
            return 0.7

    rng = High(np.random.PCG64(0))
    for _ in range(50):
        x1, y1, x2, y2 = draw_window("ssdlite", rng, 80, 80, box)
        shared = max(0, min(x2, 60) - max(x1, 20)) * max(0, min(y2, 60) - max(y1, 20))
        union = (x2 - x1) * (y2 - y1) + 1600 - shared
        assert shared / union >= 0.7
    assert 0.5 in OVERLAPS  # which the original's list lacked


def test_colours_change_for_ssd_alone_and_by_the_seed() -> None:
    picture = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    assert change_colours("flip", np.random.default_rng(0), picture) is picture
    changed = [change_colours("ssd", np.random.default_rng(s), picture) for s in range(8)]
    again = [change_colours("ssd", np.random.default_rng(s), picture) for s in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(changed, again, strict=True))
    assert sum(not torch.equal(one, picture) for one in changed) >= 5
    assert all(one.dtype == torch.uint8 for one in changed)
