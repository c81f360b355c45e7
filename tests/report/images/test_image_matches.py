from pathlib import Path

import numpy as np
import pytest
from detection.report.images.sample_sheet import RIGHT, WRONG
from PIL import Image

from detection.data.index import Index, Record, pack
from detection.errors import DataError
from detection.evaluation.protocol.results import SplitDetections
from detection.report.images import gallery, sample_sheet
from detection.report.images.image_matches import Tally, judge


def record(number: int, boxes: list[list[float]], difficult: tuple[bool, ...] = ()) -> Record:
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    flags = np.zeros(len(corners), dtype=bool)
    return Record(
        file=f"{number}.png",
        id=str(number),
        height=100,
        width=200,
        boxes=corners,
        labels=np.zeros(len(corners), dtype=np.int64),
        difficult=np.array(difficult, dtype=bool) if difficult else flags,
        crowd=flags,
        areas=np.prod(corners[:, 2:] - corners[:, :2], axis=1),
    )


@pytest.fixture
def index() -> Index:
    box = [20.0, 20.0, 80.0, 80.0]
    return pack([record(number, [box] if number != 3 else []) for number in range(12)])


def pixels(picture: Image.Image, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.asarray(picture) == wanted).all(axis=2).sum())


def test_pictures_are_judged_alone_and_at_any_score() -> None:
    objects = [[0.0, 0.0, 20.0, 20.0], [40.0, 40.0, 90.0, 90.0], [100.0, 0.0, 150.0, 50.0]]
    index = pack([record(0, objects, (False, False, True)), record(1, []), record(2, objects[:1])])
    boxes = [objects[0], objects[0], objects[1], objects[2], [150, 60, 190, 90], objects[0]]
    results = SplitDetections.pack([0, 0, 0, 0, 1, 2], boxes, [0.9, 0.8, 0.4, 0.9, 0.6, 0.7], [0] * 6)
    judged = judge(index, results, [1, 0], 1)
    assert list(judged) == [1, 0]
    assert judged[0].tally(0.5) == Tally(right=1, wrong=1, missed=1)
    assert judged[0].tally(0.3) == Tally(right=2, wrong=1, missed=0)
    assert judged[1].tally(0.5) == Tally(right=0, wrong=1, missed=0)
    assert judged[0].found_at.tolist() == pytest.approx([0.9, 0.4, -1])
    assert judged[0].scores.tolist() == pytest.approx([0.9, 0.9, 0.8, 0.4])
    assert judge(index, results, [], 1) == {}


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_a_cross_section_is_spread_and_skips_empty_pictures(index: Index, count: int) -> None:
    rows = gallery.typical(index, count)
    assert rows == {0: [], 1: [0], 3: [0, 6, 11], 100: [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]}[count]


def test_found_is_green_and_missed_is_orange(index: Index, tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (200, 100), "white").save(tmp_path / f"{number}.png")
    results = SplitDetections.pack([0, 1], [[21, 20, 80, 80], [120, 20, 180, 80]], [0.9, 0.9], [0, 0])
    judged = judge(index, results, [0, 1], 1)
    good = sample_sheet.contact_sheet([judged[0]], tmp_path, ["thing"], 0.5)
    assert pixels(good, RIGHT) > 600
    assert pixels(good, WRONG) == 0
    bad = sample_sheet.contact_sheet([judged[1]], tmp_path, ["thing"], 0.5)
    assert pixels(bad, WRONG) > 600
    assert pixels(bad, RIGHT) == 0
    assert pixels(sample_sheet.contact_sheet([judged[0]], tmp_path, ["thing"], 0.95), RIGHT) == 0


def test_contact_sheet_holds_pairs_of_any_shape(tmp_path: Path) -> None:
    sizes = ((400, 300), (300, 400), (400, 100), (4000, 1000))
    box = [[10.0, 10.0, 30.0, 30.0]]
    index = pack([record(i, box)._replace(width=w, height=h) for i, (w, h) in enumerate(sizes)])
    for number, size in enumerate(sizes):
        Image.new("RGB", size, "black").save(tmp_path / f"{number}.png")
    shown = list(judge(index, SplitDetections.concat([]), range(4), 1).values())
    page = sample_sheet.contact_sheet(shown[:3], tmp_path, ["thing"], 0.5)
    assert page.width == 2 * (2 * 400 + 6) + 3 * 16
    assert page.height == (400 + 26) + (100 + 26) + 3 * 16
    large = sample_sheet.contact_sheet(shown[3:], tmp_path, ["thing"], 0.5)
    assert large.width == 2 * (2 * sample_sheet.LONGEST + 6) + 3 * 16


def test_broken_picture_is_told(index: Index, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_text("not a picture")
    judged = judge(index, SplitDetections.concat([]), [0], 1)
    with pytest.raises(DataError, match=r"0\.png cannot be read as a picture"):
        sample_sheet.contact_sheet(list(judged.values()), tmp_path, ["thing"], 0.5)
