"""Images of any aspect ratio on one sheet, and test images with ground truth and predictions."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from detection.data.loading.index import Record, pack
from detection.errors import DataError
from detection.evaluation.protocol.results import SplitDetections
from detection.report.images.contact_sheet import (
    CAPTION_PX,
    FP_COLOR,
    GAP_PX,
    MAX_HEIGHT_PX,
    TP_COLOR,
    WIDTH_PX,
    Tile,
    contact_sheet,
    prediction_tiles,
)
from detection.report.images.image_matches import match_images

CLASSES = ("cat", "dog")
PALE = (200, 210, 220)


def tile(width: int, height: int, text: str = "", boxes: list[list[float]] | None = None) -> Tile:
    packed = np.array(boxes or [], np.float32).reshape(-1, 4)
    labels = np.ones(len(packed), np.int64)
    return Tile(image=Image.new("RGB", (width, height), PALE), boxes=packed, labels=labels, text=text)


def has_color(page: Image.Image, color: tuple[int, ...]) -> np.ndarray:
    return np.asarray((np.asarray(page) == color).all(axis=2))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from([(400, 300), (300, 400), (300, 300), (640, 200)]), min_size=4, max_size=9))
def test_rows_fill_the_width(sizes: list[tuple[int, int]]) -> None:
    page = contact_sheet([tile(*size) for size in sizes], CLASSES, columns=4)
    covered = has_color(page, PALE)
    assert page.width == WIDTH_PX
    first = covered[GAP_PX + 2]
    assert first.sum() == WIDTH_PX - 5 * GAP_PX  # four images, and nothing white but the gaps
    starts = np.flatnonzero(np.diff(covered.any(axis=1).astype(int), prepend=0) == 1)
    assert len(starts) == -(-len(sizes) // 4)
    ends = np.flatnonzero(np.diff(covered.any(axis=1).astype(int), append=0) == -1)
    gaps = [after - before for before, after in zip(ends, starts[1:], strict=False)]
    assert all(gap == GAP_PX + CAPTION_PX + 1 for gap in gaps)


def test_height_of_tall_images_and_single_ones_is_limited() -> None:
    height = MAX_HEIGHT_PX + CAPTION_PX + 2 * GAP_PX
    assert contact_sheet([tile(100, 400)] * 4, CLASSES).height == height
    assert contact_sheet([tile(20, 20)], CLASSES, columns=1).size == (MAX_HEIGHT_PX + 2 * GAP_PX, height)


def test_incomplete_row_has_the_height_of_the_others() -> None:
    page = contact_sheet([tile(400, 300)] * 5, CLASSES, columns=4)
    assert page.height == 2 * (300 * (WIDTH_PX - 5 * GAP_PX) // 4 // 400 + CAPTION_PX + GAP_PX) + GAP_PX


def test_images_of_one_pixel_or_one_row() -> None:
    page = contact_sheet([tile(1, 1), tile(1, 500), tile(500, 1), tile(9000, 3)], CLASSES)
    assert has_color(page, PALE).any()


def test_boxes_are_scaled_and_their_lines_are_equally_thick() -> None:
    small = tile(40, 30, boxes=[[10, 5, 30, 25]])
    large = tile(4000, 3000, boxes=[[1000, 500, 3000, 2500]])
    page = contact_sheet([small, large], CLASSES, columns=2)
    side = (page.width - 3 * GAP_PX) // 2
    left, right = (page.crop((x, 0, x + side, page.height)) for x in (GAP_PX, side + 2 * GAP_PX))
    marks = [has_color(half, (230, 159, 0)) for half in (left, right)]  # color of the second class
    assert marks[0].sum() == pytest.approx(marks[1].sum(), rel=0.01)
    assert marks[0].sum() > 1000
    columns = np.flatnonzero(marks[0].sum(axis=0) > 100)
    assert columns[0] == pytest.approx(left.width / 4, abs=2)
    assert columns[-1] == pytest.approx(left.width * 3 / 4, abs=2)


def test_caption_stays_below_its_image() -> None:
    none = contact_sheet([tile(400, 300)] * 4, CLASSES)
    page = contact_sheet([tile(400, 300, "a-very-long-name-" * 9 + ".jpg"), *[tile(400, 300)] * 3], CLASSES)
    assert page.size == none.size
    changed = np.argwhere(np.asarray(page.convert("L")) != np.asarray(none.convert("L")))
    assert changed[:, 0].min() > page.height - CAPTION_PX - GAP_PX
    assert 300 < changed[:, 1].max() < (page.width - 5 * GAP_PX) // 4 + GAP_PX


def record(number: int) -> Record:
    box = np.array([[20, 20, 80, 80]], np.float32)
    flags = np.zeros(1, dtype=bool)
    return Record(
        file=f"{number}.png",
        id=str(number),
        height=100,
        width=200,
        boxes=box,
        labels=np.zeros(1, dtype=np.int64),
        difficult=flags,
        crowd=flags,
        areas=np.prod(box[:, 2:] - box[:, :2], axis=1),
    )


def pixels(tiles: tuple[Tile, Tile], color: str) -> int:
    return int(has_color(contact_sheet(tiles, ["cat"], 2), ImageColor.getrgb(color)).sum())


def test_true_positives_and_errors_have_different_colors(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (200, 100), "white").save(tmp_path / f"{number}.png")
    index = pack([record(0), record(1)])
    boxes = [[21, 20, 80, 80], [120, 20, 180, 80]]
    matches = match_images(index, SplitDetections.pack([0, 1], boxes, [0.9, 0.9], [0, 0]), [0, 1], 1)
    good, bad = (prediction_tiles(matches[row], tmp_path, 0.5) for row in (0, 1))
    assert pixels(good, TP_COLOR) > 600
    assert pixels(good, FP_COLOR) == 0
    assert pixels(bad, FP_COLOR) > 600
    assert pixels(bad, TP_COLOR) == 0
    assert pixels(prediction_tiles(matches[0], tmp_path, 0.95), TP_COLOR) == 0
    assert "1 TP, 0 FP, 0 missed" in good[1].text


def test_unreadable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_text("not an image")
    matches = match_images(pack([record(0)]), SplitDetections.concat([]), [0], 1)
    with pytest.raises(DataError, match=r"0\.png"):
        prediction_tiles(matches[0], tmp_path, 0.5)
