"""Pictures of any shape on one sheet: none lost, no holes, names of files below them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detection.report.images.contact_sheet import GAP, LINE, TALLEST, WIDTH, Tile, sheet

CLASSES = ("cat", "dog")
PALE = (200, 210, 220)


def tile(width: int, height: int, text: str = "", boxes: list[list[float]] | None = None) -> Tile:
    packed = np.array(boxes or [], np.float32).reshape(-1, 4)
    labels = np.ones(len(packed), np.int64)
    return Tile(picture=Image.new("RGB", (width, height), PALE), boxes=packed, labels=labels, text=text)


def is_colour(page: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(page) == colour).all(axis=2)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from([(400, 300), (300, 400), (300, 300), (640, 200)]), min_size=4, max_size=9))
def test_rows_are_full_whatever_the_shapes(sizes: list[tuple[int, int]]) -> None:
    page = sheet([tile(*size) for size in sizes], CLASSES, columns=4)
    covered = is_colour(page, PALE)
    assert page.width == WIDTH
    first = covered[GAP + 2]
    assert first.sum() == WIDTH - 5 * GAP  # four pictures, and nothing white but the gaps
    starts = np.flatnonzero(np.diff(covered.any(axis=1).astype(int), prepend=0) == 1)
    assert len(starts) == -(-len(sizes) // 4)
    ends = np.flatnonzero(np.diff(covered.any(axis=1).astype(int), append=0) == -1)
    assert all(after - before == GAP + LINE + 1 for before, after in zip(ends, starts[1:], strict=False))


def test_tall_pictures_and_single_ones_are_not_blown_up() -> None:
    assert sheet([tile(100, 400)] * 4, CLASSES).height == TALLEST + LINE + 2 * GAP
    assert sheet([tile(20, 20)], CLASSES, columns=1).size == (TALLEST + 2 * GAP, TALLEST + LINE + 2 * GAP)


def test_a_row_that_is_not_full_is_as_high_as_the_others() -> None:
    page = sheet([tile(400, 300)] * 5, CLASSES, columns=4)
    assert page.height == 2 * (300 * (WIDTH - 5 * GAP) // 4 // 400 + LINE + GAP) + GAP


def test_pictures_of_a_pixel_or_a_row_pass() -> None:
    page = sheet([tile(1, 1), tile(1, 500), tile(500, 1), tile(9000, 3)], CLASSES)
    assert is_colour(page, PALE).any()


def test_boxes_are_drawn_where_they_stand_and_equally_thick() -> None:
    small = tile(40, 30, boxes=[[10, 5, 30, 25]])
    large = tile(4000, 3000, boxes=[[1000, 500, 3000, 2500]])
    page = sheet([small, large], CLASSES, columns=2)
    side = (page.width - 3 * GAP) // 2
    left, right = (page.crop((x, 0, x + side, page.height)) for x in (GAP, side + 2 * GAP))
    marks = [is_colour(half, (230, 159, 0)) for half in (left, right)]  # the second class's
    assert marks[0].sum() == pytest.approx(marks[1].sum(), rel=0.01)
    assert marks[0].sum() > 1000
    columns = np.flatnonzero(marks[0].sum(axis=0) > 100)
    assert columns[0] == pytest.approx(left.width / 4, abs=2)
    assert columns[-1] == pytest.approx(left.width * 3 / 4, abs=2)


def test_a_line_stands_below_each_picture_and_never_below_the_next() -> None:
    none = sheet([tile(400, 300)] * 4, CLASSES)
    page = sheet([tile(400, 300, "a-very-long-name-" * 9 + ".jpg"), *[tile(400, 300)] * 3], CLASSES)
    assert page.size == none.size
    changed = np.argwhere(np.asarray(page.convert("L")) != np.asarray(none.convert("L")))
    assert changed[:, 0].min() > page.height - LINE - GAP
    assert 300 < changed[:, 1].max() < (page.width - 5 * GAP) // 4 + GAP
