"""Checks of images and boxes: the problems reported and the effect of each action."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.data.loading.index import Index, Record, join, pack
from detection.data.sources.checks import PROBLEM_TYPES, Problems, check_boxes, check_images
from detection.data.sources.image_headers import Header
from detection.params.stages import Checks

CLASSES = ("cat", "dog")


def index_of(*boxes: list[float], labels: list[int] | None = None) -> Index:
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    flags = np.zeros(len(corners), dtype=np.bool_)
    numbers = np.array(labels or [0] * len(corners), dtype=np.int64)
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    return pack([Record("a.jpg", "a", 40, 50, corners, numbers, flags, flags, areas)])


def test_every_problem_type_has_a_param() -> None:
    assert set(PROBLEM_TYPES) == set(Checks.__slots__)


@pytest.mark.parametrize(
    ("action", "kept"),
    [
        ("clip", [[0, 0, 10, 10], [40, 30, 50, 40]]),
        ("drop", [[0, 0, 10, 10]]),
        ("error", [[0, 0, 10, 10]]),
        ("keep", [[0, 0, 10, 10], [40, 30, 60, 50], [60, 50, 70, 60]]),
    ],
)
def test_boxes_outside(action: str, kept: list[list[float]]) -> None:
    problems = Problems(replace(Checks(), box_outside_image=action))  # type: ignore[arg-type]
    checked = check_boxes(index_of([0, 0, 10, 10], [40, 30, 60, 50], [60, 50, 70, 60]), CLASSES, problems)
    assert checked.boxes.tolist() == kept
    assert checked.offsets.tolist() == [0, len(kept)]
    assert problems.counts() == {"box_outside_image": 2}
    assert problems.refused() == ({"box_outside_image": 2} if action == "error" else {})
    assert str(problems.entries[0]) == "a.jpg: cat [40, 30, 60, 50], in an image of 50x40"
    if action == "clip":
        assert checked.areas.tolist() == [100, 100]


def test_rounded_boxes_are_not_outside() -> None:
    problems = Problems(Checks())
    index = index_of([-1, -0.5, 51, 41])
    assert check_boxes(index, CLASSES, problems) is not None
    assert problems.entries == []


def test_degenerate_and_duplicate_boxes() -> None:
    boxes = index_of([0, 0, 0.4, 9], [1, 1, 5, 5], [1, 1, 5, 5], [1, 1, 5, 5], labels=[0, 0, 1, 0])
    problems = Problems(Checks())
    assert len(check_boxes(boxes, CLASSES, problems).boxes) == 4
    assert problems.counts() == {"duplicate_object": 1, "degenerate_box": 1}
    strict = Problems(replace(Checks(), degenerate_box="drop", duplicate_object="drop"))
    assert check_boxes(boxes, CLASSES, strict).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "orientation", "problem_type", "size"),
    [
        ((40, 50), 1, None, (40, 50)),
        ((0, 0), 1, None, (40, 50)),
        ((40, 50), 6, "exif_rotation", (40, 50)),
        ((50, 40), 6, "exif_rotation", (50, 40)),
        ((50, 40), 3, "image_size_mismatch", (40, 50)),
        ((50, 40), 1, "image_size_mismatch", (40, 50)),
        ((80, 100), 1, "image_size_mismatch", (40, 50)),
    ],
)
def test_size_of_rotated_and_misannotated_images(
    given: tuple[int, int], orientation: int, problem_type: str | None, size: tuple[int, int]
) -> None:
    index = index_of([0, 0, 9, 9])
    index = replace(index, sizes=np.array([given], dtype=np.int32))
    problems = Problems(replace(Checks(), image_size_mismatch="keep"))
    headers = {"a.jpg": Header(length=9, height=40, width=50, orientation=orientation)}
    assert check_images(index, headers, problems).sizes.tolist() == [list(size)]
    assert set(problems.counts()) >= ({problem_type} if problem_type else set())
    assert bool(problems.counts()) == (problem_type is not None)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 2**31), st.data())
def test_selection_keeps_each_image_with_its_boxes(count: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    parts = [index_of(*rng.uniform(0, 40, (rng.integers(0, 4), 4)).tolist()) for _ in range(count)]
    index = join(parts)
    assert len(index) == count
    rows = data.draw(st.lists(st.integers(0, count - 1), max_size=10)) if count else []
    selected = index.select(np.array(rows, dtype=np.int64))
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(selected[i].boxes, parts[row].boxes)
    kept = rng.random(len(index.boxes)) < 0.5
    fewer = index.keep_boxes(kept)
    np.testing.assert_array_equal(fewer.boxes, index.boxes[kept])
    np.testing.assert_array_equal(fewer.image_rows(), index.image_rows()[kept])
