import itertools

import numpy as np
import pytest
from PIL import Image, ImageColor

from detection.report.images.contact_sheet import PALETTE, Rectangle, class_color, draw_boxes, overlap, place_labels

NAMES = ("circle", "square")
CANVAS = (480.0, 360.0)


def black(width: int = 400, height: int = 320, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height))


def count(image: Image.Image, color: str) -> int:
    return int((np.asarray(image) == ImageColor.getrgb(color)).all(axis=-1).sum())


def test_box_is_drawn_at_its_position_in_the_color_of_its_class() -> None:
    drawn = draw_boxes(black(), np.array([[100, 120, 200, 220]], np.float32), np.array([1]), NAMES)
    assert drawn.size == (400, 320)
    for corner in ((100, 120), (199, 219), (100, 219)):
        assert drawn.getpixel(corner) == ImageColor.getrgb(PALETTE[1])
    assert drawn.getpixel((150, 170)) == (0, 0, 0)
    assert drawn.getpixel((99, 150)) == drawn.getpixel((200, 150)) == (0, 0, 0)


def test_the_given_image_is_not_changed() -> None:
    before = black()
    draw_boxes(before, np.array([[100, 120, 200, 220]], np.float32), np.array([1]), NAMES)
    assert before.getbbox() is None


def test_small_image_is_enlarged_with_its_boxes() -> None:
    drawn = draw_boxes(black(64, 32), np.array([[32, 0, 64, 32]], np.float32), np.array([0]), NAMES)
    assert drawn.size == (320, 160)
    left = np.asarray(drawn)[:, :155]
    assert not left.any()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("boxes", [[], [[-5, -5, 500, 500]], [[10, 10, 10, 10]], [[390, 310, 400, 320]]])
def test_any_mode_and_any_box(mode: str, boxes: list[list[float]]) -> None:
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    labels, scores = np.zeros(len(boxes), np.int64), np.ones(len(boxes))
    assert draw_boxes(black(mode=mode), corners, labels, NAMES, scores).mode == "RGB"


def test_labels_of_two_boxes_do_not_overlap() -> None:
    box = np.array([[100, 120, 300, 220]], np.float32)
    one = draw_boxes(black(), box, np.array([0]), NAMES, colors=["#0072B2"])
    two = draw_boxes(black(), np.repeat(box, 2, axis=0), np.array([0, 0]), NAMES, colors=["#0072B2"] * 2)
    assert count(two, "#0072B2") > count(one, "#0072B2") + 100  # a second label beside the first


def test_colors_of_eighty_classes_differ_from_their_neighbors() -> None:
    colors = [class_color(label) for label in range(80)]
    assert len(set(colors[:40])) == 40
    assert all(one != other for one, other in itertools.pairwise(colors))


def labels_of(boxes: list[Rectangle], width: float = 80, height: float = 19) -> list[Rectangle]:
    places = place_labels(boxes, [(width, height)] * len(boxes), CANVAS)
    return [(x, y, x + width, y + height) for x, y in places]


def test_label_is_above_its_box_and_inside_the_image() -> None:
    assert labels_of([(100, 100, 200, 200)]) == [(100, 81, 180, 100)]
    assert labels_of([(100, 5, 200, 200)]) == [(100, 5, 180, 24)]  # not enough space above
    assert labels_of([(450, 100, 480, 200)]) == [(400, 81, 480, 100)]


def test_ten_equal_boxes_have_labels_without_overlap() -> None:
    every = labels_of([(100, 100, 300, 300)] * 10)
    assert all(overlap(a, b) == 0 for a, b in itertools.combinations(every, 2))


def test_dropping_the_last_boxes_moves_no_other_label() -> None:
    rng = np.random.default_rng(0)
    boxes: list[Rectangle] = [(x, y, x + 60, y + 60) for x, y in rng.uniform(0, 300, (40, 2)).tolist()]
    every = labels_of(boxes)
    assert labels_of(boxes[:25]) == every[:25]
    covered = sum(overlap(a, b) for a, b in itertools.combinations(every, 2))
    plain = [(x1, max(0.0, y1 - 19), x1 + 80, max(0.0, y1 - 19) + 19) for x1, y1, _, _ in boxes]
    assert covered < 0.35 * sum(overlap(a, b) for a, b in itertools.combinations(plain, 2))
