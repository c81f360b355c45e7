"""Names of boxes keep out of each other's way."""

import itertools

import numpy as np

from detection.report.images.boxes_on_image import _common, place_labels

CANVAS = (480.0, 360.0)


def plates(boxes: list[tuple[float, float, float, float]], width: float = 80, height: float = 19) -> list:
    places = place_labels(boxes, [(width, height)] * len(boxes), CANVAS)
    return [(x, y, x + width, y + height) for x, y in places]


def test_a_name_stands_above_its_box_and_inside_the_picture() -> None:
    assert plates([(100, 100, 200, 200)]) == [(100, 81, 180, 100)]
    assert plates([(100, 5, 200, 200)]) == [(100, 5, 180, 24)]  # no room above
    assert plates([(450, 100, 480, 200)]) == [(400, 81, 480, 100)]


def test_the_same_box_ten_times_is_named_without_overlap() -> None:
    every = plates([(100, 100, 300, 300)] * 10)
    assert all(_common(a, b) == 0 for a, b in itertools.combinations(every, 2))


def test_leaving_out_the_last_moves_no_other() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (40, 2))
    boxes = [(x, y, x + 60, y + 60) for x, y in corners.tolist()]
    every = plates(boxes)
    assert plates(boxes[:25]) == every[:25]
    covered = sum(_common(a, b) for a, b in itertools.combinations(every, 2))
    plain = [(x1, max(0.0, y1 - 19), x1 + 80, max(0.0, y1 - 19) + 19) for x1, y1, _, _ in boxes]
    assert covered < 0.35 * sum(_common(a, b) for a, b in itertools.combinations(plain, 2))
