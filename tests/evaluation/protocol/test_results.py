from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from detection.evaluation.protocol.results import SplitDetections
from tests.evaluation.scenes import MakeIndex

corner = st.floats(-10, 500, width=32)
side = st.floats(0, 500, width=32)


def same(a: SplitDetections, b: SplitDetections) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in ("images", "boxes", "scores", "labels")
    )


@given(arrays(np.float32, (7, 2), elements=corner), arrays(np.float32, (7, 2), elements=side))
def test_coco_round_trip_is_exact(
    make_index: MakeIndex, corners: NDArray[np.float32], sides: NDArray[np.float32]
) -> None:
    index = make_index(([], []), ([], []), ([], []))
    results = SplitDetections.pack(
        [0, 2, 1, 1, 0, 2, 2],
        np.concatenate([corners, corners + sides], axis=1),
        np.linspace(0, 1, 7),
        [0, 1, 2, 3, 4, 5, 6],
    )
    assert same(SplitDetections.from_coco(index, results.to_coco(index)), results)


def test_coco_results_format(make_index: MakeIndex) -> None:
    index = make_index(([], []), ([], []))
    results = SplitDetections.of_image(1, [[10, 20, 40, 60]], [0.5], [3])
    assert results.to_coco(index) == [{"image_id": 2, "category_id": 4, "bbox": [10.0, 20.0, 30.0, 40.0], "score": 0.5}]


def test_category_ids_of_the_annotation_file(make_index: MakeIndex) -> None:
    index = replace(make_index(([], [])), category_ids=np.array([90, 3, 13]))
    results = SplitDetections.of_image(0, [[0, 0, 1, 1], [0, 0, 2, 2]], [0.5, 0.25], [2, 0])
    rows = results.to_coco(index)
    assert [row["category_id"] for row in rows] == [13, 90]
    assert same(SplitDetections.from_coco(index, rows), results)
    with pytest.raises(KeyError):
        SplitDetections.from_coco(index, [rows[0] | {"category_id": 1}])


def test_unknown_image_is_a_key_error(make_index: MakeIndex) -> None:
    rows = [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0}]
    with pytest.raises(KeyError):
        SplitDetections.from_coco(make_index(([], [])), rows)


def test_concat_keeps_order_and_types() -> None:
    a = SplitDetections.of_image(3, [[0, 0, 1, 1], [0, 0, 2, 2]], [0.1, 0.2], [0, 1])
    b = SplitDetections.of_image(0, [[0, 0, 3, 3]], [0.3], [2])
    both = SplitDetections.concat([a, b])
    assert both.images.tolist() == [3, 3, 0]
    assert both.boxes[:, 2].tolist() == [1, 2, 3]
    assert both.labels.tolist() == [0, 1, 2]
    assert same(both.select(both.images == 3), a)


def test_no_detections() -> None:
    nothing = SplitDetections.concat([SplitDetections.of_image(0, [], [], [])])
    assert len(nothing) == 0
    assert nothing.boxes.shape == (0, 4)
    assert same(nothing, SplitDetections.concat([]))


def test_lengths_must_agree() -> None:
    with pytest.raises(AssertionError):
        SplitDetections.pack([0, 1], [[0, 0, 1, 1]], [0.5], [0])
