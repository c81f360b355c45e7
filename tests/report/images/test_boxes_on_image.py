import itertools

import numpy as np
import pytest
from PIL import Image, ImageColor

from detection.report.images.boxes_on_image import PALETTE, class_colour, draw_boxes

NAMES = ("circle", "square")


def picture(width: int = 400, height: int = 320, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height))


def count(image: Image.Image, colour: str) -> int:
    return int((np.asarray(image) == ImageColor.getrgb(colour)).all(axis=-1).sum())


def test_a_box_is_drawn_where_it_stands_in_its_class_colour() -> None:
    drawn = draw_boxes(picture(), np.float32([[100, 120, 200, 220]]), np.array([1]), NAMES)
    assert drawn.size == (400, 320)
    for corner in ((100, 120), (199, 219), (100, 219)):
        assert drawn.getpixel(corner) == ImageColor.getrgb(PALETTE[1])
    assert drawn.getpixel((150, 170)) == (0, 0, 0)
    assert drawn.getpixel((99, 150)) == drawn.getpixel((200, 150)) == (0, 0, 0)


def test_the_given_picture_is_left_alone() -> None:
    before = picture()
    draw_boxes(before, np.float32([[100, 120, 200, 220]]), np.array([1]), NAMES)
    assert before.getbbox() is None


def test_a_small_picture_is_enlarged_with_its_boxes() -> None:
    drawn = draw_boxes(picture(64, 32), np.float32([[32, 0, 64, 32]]), np.array([0]), NAMES)
    assert drawn.size == (320, 160)
    left = np.asarray(drawn)[:, :155]
    assert not left.any()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("boxes", [[], [[-5, -5, 500, 500]], [[10, 10, 10, 10]], [[390, 310, 400, 320]]])
def test_any_picture_and_any_box(mode: str, boxes: list[list[float]]) -> None:
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    drawn = draw_boxes(
        picture(mode=mode), corners, np.zeros(len(boxes), np.int64), NAMES, np.ones(len(boxes))
    )
    assert drawn.mode == "RGB"


def test_names_of_two_boxes_do_not_cover_each_other() -> None:
    box = np.float32([[100, 120, 300, 220]])
    one = draw_boxes(picture(), box, np.array([0]), NAMES, colours=["#0072B2"])
    two = draw_boxes(picture(), np.repeat(box, 2, axis=0), np.array([0, 0]), NAMES, colours=["#0072B2"] * 2)
    assert count(two, "#0072B2") > count(one, "#0072B2") + 100  # a second plate beside the first


def test_colours_of_eighty_classes_differ_from_their_neighbours() -> None:
    colours = [class_colour(label) for label in range(80)]
    assert len(set(colours[:40])) == 40
    assert all(one != other for one, other in itertools.pairwise(colours))
