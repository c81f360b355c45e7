from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.index import Index, Record, pack
from detection.errors import DataError
from detection.evaluation.results import Results
from detection.reporting import samples
from detection.reporting.samples import RIGHT, WRONG, Review, Tally


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


def test_review_counts_above_the_threshold() -> None:
    objects = [[0.0, 0.0, 20.0, 20.0], [40.0, 40.0, 90.0, 90.0], [100.0, 0.0, 150.0, 50.0]]
    index = pack([record(0, objects, (False, False, True)), record(1, [])])
    boxes = [objects[0], objects[0], objects[1], objects[2], [150, 60, 190, 90]]
    results = Results.pack([0, 0, 0, 0, 1], boxes, [0.9, 0.8, 0.4, 0.9, 0.6], [0] * 5)
    review = Review.of(index, results, 0.5)
    assert review.total() == Tally(right=1, wrong=2, missed=1)
    assert review.mistakes().tolist() == [2, 1]
    assert Review.of(index, results, 0.3).total() == Tally(right=2, wrong=2, missed=0)


def test_choice_spreads_and_takes_mistakes_last(index: Index) -> None:
    all_but_7 = np.array([i for i in range(11) if i != 6])
    results = Results.pack(
        np.array([0, 1, 2, 4, 5, 6, 8, 9, 10, 11]), index.boxes[all_but_7], np.ones(10), [0] * 10
    )
    review = Review.of(index, results, 0.5)
    spread, hard = samples.choose(review, 6)
    assert spread == [0, 4, 7, 11]
    assert hard == []
    spread, hard = samples.choose(review, 3)
    assert (spread, hard) == ([0, 11], [7])


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_choice_never_repeats_a_picture(index: Index, count: int) -> None:
    spread, hard = samples.choose(Review.of(index, Results.concat([]), 0.5), count)
    assert len({*spread, *hard}) == len(spread) + len(hard) <= count
    assert 3 not in spread
    if count == 100:
        assert spread == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]


def test_found_is_green_and_missed_is_orange(index: Index, tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (200, 100), "white").save(tmp_path / f"{number}.png")
    results = Results.pack([0, 1], [[21, 20, 80, 80], [120, 20, 180, 80]], [0.9, 0.9], [0, 0])
    first, second = samples.draw(Review.of(index, results, 0.5), tmp_path, ["thing"], 3)[:2]
    assert (first.tally, second.tally) == (Tally(1, 0, 0), Tally(0, 0, 1))
    assert pixels(first.truth, RIGHT) > 300 < pixels(first.found, RIGHT)
    assert pixels(first.truth, WRONG) == pixels(first.found, WRONG) == 0
    assert pixels(second.truth, WRONG) > 300
    assert pixels(second.found, WRONG) == 0
    hard = samples.draw(Review.of(index, results, 0.5), tmp_path, ["thing"], 3)[2]
    assert hard.hard
    assert hard.file == "1.png"
    assert pixels(hard.found, WRONG) > 300


def test_small_pictures_are_enlarged_and_large_ones_reduced(tmp_path: Path) -> None:
    for size in ((40, 20), (4000, 2000)):
        index = pack([record(0, [[5.0, 5.0, 30.0, 15.0]])._replace(width=size[0], height=size[1])])
        Image.new("RGB", size, "white").save(tmp_path / "0.png")
        sample = samples.draw(Review.of(index, Results.concat([]), 0.5), tmp_path, ["thing"], 1)[0]
        assert 256 <= max(sample.truth.size) <= samples.LONGEST
        assert sample.truth.size == sample.found.size


def test_contact_sheet_holds_pairs_of_any_shape(tmp_path: Path) -> None:
    sizes = ((400, 300), (300, 400), (400, 100))
    box = [[10.0, 10.0, 30.0, 30.0]]
    index = pack([record(i, box)._replace(width=w, height=h) for i, (w, h) in enumerate(sizes)])
    for number, size in enumerate(sizes):
        Image.new("RGB", size, "black").save(tmp_path / f"{number}.png")
    shown = samples.draw(Review.of(index, Results.concat([]), 0.5), tmp_path, ["thing"], 4)
    page = samples.contact_sheet(shown)
    assert page.width == 2 * (2 * 400 + 6) + 3 * 16
    assert page.height == (400 + 26) + (100 + 26) + 3 * 16


def test_broken_picture_is_told(index: Index, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"0\.png cannot be read as a picture"):
        samples.draw(Review.of(index, Results.concat([]), 0.5), tmp_path, ["thing"], 1)
