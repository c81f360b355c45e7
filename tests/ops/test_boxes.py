import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from detection.ops.boxes import areas, clip, intersections, iou


@st.composite
def boxes(draw: st.DrawFn) -> NDArray[np.float32]:
    """[N, 4] ordered boxes with corners on a grid of halves, some of them without area."""
    count = draw(st.integers(0, 5))
    corners = draw(hnp.arrays(np.int64, (count, 2, 2), elements=st.integers(-40, 200)))
    ordered = np.sort(corners, axis=1) / 2
    return ordered.reshape(-1, 4).astype(np.float32)


@given(boxes(), boxes())
def test_iou_is_symmetric_and_between_0_and_1(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    overlap = iou(a, b)
    assert overlap.shape == (len(a), len(b))
    assert overlap.dtype == np.float32
    assert ((overlap >= 0) & (overlap <= 1)).all()
    np.testing.assert_array_equal(overlap, iou(b, a).T)


@given(boxes())
def test_iou_of_a_box_with_itself_is_1(a: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(np.diag(iou(a, a)), (areas(a) > 0).astype(np.float32))


@given(boxes(), st.integers(1, 100), st.integers(1, 100))
def test_clipping_is_the_intersection_with_the_image(a: NDArray[np.float32], height: int, width: int) -> None:
    clipped = clip(a, height, width)
    image = np.array([[0, 0, width, height]], dtype=np.float32)
    np.testing.assert_array_equal(areas(clipped), intersections(a, image)[:, 0])
    np.testing.assert_array_equal(clip(clipped, height, width), clipped)


def test_known_values() -> None:
    a = np.array([[0, 0, 10, 10], [5, 5, 15, 15]], dtype=np.float32)
    b = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [4, 4, 2, 2]], dtype=np.float32)
    np.testing.assert_array_equal(areas(b), [100, 100, 0])
    np.testing.assert_array_equal(intersections(a, b), [[100, 0, 0], [25, 25, 0]])
    np.testing.assert_allclose(iou(a, b), np.array([[1, 0, 0], [1 / 7, 1 / 7, 0]]), rtol=1e-6)
