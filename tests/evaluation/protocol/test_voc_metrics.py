"""VOC's metrics against published values, against a plain loop, and invariants."""

import json
import math
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from detection.data.loading.index import Index, Record, pack
from detection.evaluation.protocol import voc_metrics
from detection.evaluation.protocol.results import SplitDetections
from tests.evaluation.scenes import FindAll, MakeIndex

Box = tuple[int, int, int, int]
Truth = list[list[tuple[Box, int, bool]]]
Drawn = list[tuple[int, Box, int, int]]
CORNERS = ("xmin", "ymin", "xmax", "ymax")
SHIFT = np.array([1.0, 1.0, 0.0, 0.0])
"""From 0-based half-open corners to 1-based inclusive ones."""


@pytest.fixture(scope="module")
def oracle(shared_data: Path) -> Path:
    return shared_data / "oracle" / "voc2007_test"


def read_index(folder: Path, classes: list[str]) -> Index:
    """Plain reader of the devkit's XML."""

    def text(element: ElementTree.Element, path: str) -> str:
        return element.findtext(path) or ""

    records = []
    for name in (folder / "ImageSets/Main/test.txt").read_text().split():
        root = ElementTree.parse(folder / f"Annotations/{name}.xml").getroot()
        objects = [one for one in root.findall("object") if one.findtext("name") in classes]
        boxes = np.array(
            [[float(text(one, f"bndbox/{corner}")) for corner in CORNERS] for one in objects], dtype=np.float64
        ).reshape(-1, 4)
        boxes = (boxes - SHIFT).astype(np.float32)
        records.append(
            Record(
                file=name,
                id=name,
                height=int(text(root, "size/height")),
                width=int(text(root, "size/width")),
                boxes=boxes,
                labels=np.array([classes.index(text(one, "name")) for one in objects], dtype=np.int64),
                difficult=np.array([one.findtext("difficult") == "1" for one in objects], dtype=bool),
                crowd=np.zeros(len(objects), dtype=bool),
                areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
            )
        )
    return pack(records)


def read_detections(folder: Path, index: Index, classes: list[str]) -> SplitDetections:
    """Result files of the devkit: image, score, four 1-based inclusive corners."""
    row_of = {name.decode(): row for row, name in enumerate(index.ids)}
    parts = []
    for label, name in enumerate(classes):
        lines = [line.split() for line in (folder / f"comp4_det_test_{name}.txt").read_text().splitlines()]
        numbers = np.array([line[1:] for line in lines], dtype=np.float64)
        boxes = numbers[:, 1:] - SHIFT
        images = [row_of[line[0]] for line in lines]
        parts.append(SplitDetections.pack(images, boxes, numbers[:, 0], np.full(len(lines), label)))
    return SplitDetections.concat(parts)


def test_published_metrics(oracle: Path) -> None:
    expected = json.loads((oracle / "expected.json").read_text())
    classes = list(expected["ap_11pt"])
    index = read_index(oracle / "VOCdevkit/VOC2007", classes)
    results = read_detections(oracle / "detections", index, classes)
    score = voc_metrics.score(index, results, classes)
    assert dict(zip(classes, score.ap_11pt, strict=True)) == pytest.approx(expected["ap_11pt"], abs=1e-9)
    assert score.stats["voc_ap50_11pt"] == pytest.approx(expected["map_11pt_19_classes"], abs=1e-9)
    # Scores have three decimals, so many are equal; the published area came from an unstable sort of them.
    assert dict(zip(classes, score.ap_area, strict=True)) == pytest.approx(expected["ap_area"], abs=2e-6)
    assert score.stats["voc_ap50_area"] == pytest.approx(expected["map_area_19_classes"], abs=2e-7)


def plain(index: Index, results: SplitDetections, label: int) -> tuple[float, float]:
    """VOC's two APs of one class, translated from the devkit's MATLAB, with 1-based inclusive corners."""
    order = sorted(np.flatnonzero(results.labels == label).tolist(), key=lambda i: -results.scores[i])
    taken, true_positive, false_positive = set(), [], []
    total = int(np.sum((index.labels == label) & ~index.difficult))
    for i in order:
        x1, y1, x2, y2 = results.boxes[i] + SHIFT
        one, best, which = index[int(results.images[i])], -np.inf, -1
        for j in np.flatnonzero(one.labels == label).tolist():
            a1, b1, a2, b2 = one.boxes[j] + SHIFT
            width, height = min(x2, a2) - max(x1, a1) + 1, min(y2, b2) - max(y1, b1) + 1
            if width > 0 and height > 0:
                areas = (x2 - x1 + 1) * (y2 - y1 + 1) + (a2 - a1 + 1) * (b2 - b1 + 1)
                if width * height / (areas - width * height) > best:
                    best, which = width * height / (areas - width * height), j
        key = (int(results.images[i]), which)
        hit = best >= 0.5
        true_positive.append(hit and not one.difficult[which] and key not in taken)
        false_positive.append(not hit or (not one.difficult[which] and key in taken))
        if true_positive[-1]:
            taken.add(key)
    true, false = np.cumsum(true_positive), np.cumsum(false_positive)
    recall, precision = true / total, true / np.maximum(true + false, 1)
    eleven = np.mean([max(precision[recall >= t], default=0) for t in np.arange(0, 1.1, 0.1)])
    rec, prec = np.array([0, *recall, 1]), np.array([0, *precision, 0])
    for i in range(len(prec) - 2, -1, -1):
        prec[i] = max(prec[i], prec[i + 1])
    return float(eleven), float(np.sum(np.diff(rec) * prec[1:]))


# Whole numbers make overlaps of exactly one half, exact copies and equal scores likely.
pixel = st.integers(0, 12)
box = st.tuples(pixel, pixel, st.integers(1, 8), st.integers(1, 8)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
truths = st.lists(st.lists(st.tuples(box, st.integers(0, 1), st.booleans()), max_size=4), min_size=1, max_size=3)
drawn_detections = st.lists(st.tuples(st.integers(0, 2), box, st.integers(0, 4), st.integers(0, 1)), max_size=12)


def build(make_index: MakeIndex, truth: Truth, drawn: Drawn) -> tuple[Index, SplitDetections]:
    images = [([b for b, _, _ in one], [label for _, label, _ in one], [hard for _, _, hard in one]) for one in truth]
    rows = [(image % len(truth), b, score / 4, label) for image, b, score, label in drawn]
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    return make_index(*images), SplitDetections.pack(*map(list, columns))


@given(truths, drawn_detections)
def test_equals_a_plain_loop(make_index: MakeIndex, truth: Truth, drawn: Drawn) -> None:
    index, results = build(make_index, truth, drawn)
    score = voc_metrics.score(index, results, "ab")
    for label in (0, 1):
        if np.any((index.labels == label) & ~index.difficult):
            eleven, area = plain(index, results, label)
            assert score.ap_11pt[label] == pytest.approx(eleven, abs=1e-12)
            assert score.ap_area[label] == pytest.approx(area, abs=1e-12)
        else:
            assert math.isnan(score.ap_11pt[label])
            assert math.isnan(score.ap_area[label])


@given(truths, drawn_detections, st.randoms(use_true_random=False))
def test_input_order_does_not_matter(make_index: MakeIndex, truth: Truth, drawn: Drawn, random: Random) -> None:
    index, results = build(make_index, truth, drawn)
    distinct = SplitDetections(
        results.images, results.boxes, np.linspace(0, 1, len(results), dtype=np.float32), results.labels
    )
    order = list(range(len(results)))
    random.shuffle(order)
    shuffled = distinct.select(np.array(order, dtype=np.int64))
    one, two = voc_metrics.score(index, distinct, "ab"), voc_metrics.score(index, shuffled, "ab")
    assert np.array_equal(one.ap_area, two.ap_area, equal_nan=True)
    assert np.array_equal(one.ap_11pt, two.ap_11pt, equal_nan=True)


@given(truths)
def test_perfect_detections(make_index: MakeIndex, perfect: FindAll, truth: Truth) -> None:
    index, _ = build(make_index, truth, [])
    # Of two identical objects, both detections overlap the first most, so one is a false positive.
    if len({(i, b, label) for i, one in enumerate(truth) for b, label, _ in one}) != len(index.labels):
        return
    score = voc_metrics.score(index, perfect(index), "ab")
    assert set(score.ap_area[~np.isnan(score.ap_area)]) <= {1.0}
    assert set(score.ap_11pt[~np.isnan(score.ap_11pt)]) <= {1.0}


def test_no_detections_score_zero_and_no_objects_nan(make_index: MakeIndex) -> None:
    index = make_index(([[0, 0, 50, 50]], [0]))
    score = voc_metrics.score(index, SplitDetections.concat([]), "ab")
    assert score.ap_11pt[0] == score.ap_area[0] == 0.0
    assert math.isnan(score.ap_11pt[1])
    assert score.stats == {"voc_ap50_11pt": 0.0, "voc_ap50_area": 0.0}
    empty = voc_metrics.score(make_index(), SplitDetections.concat([]), "ab")
    assert all(map(math.isnan, empty.stats.values()))


def test_iou_of_exactly_one_half_is_a_match(make_index: MakeIndex) -> None:
    index = make_index(([[0, 0, 10, 10]], [0]))
    half = SplitDetections.of_image(0, [[0, 0, 10, 5]], [0.9], [0])
    less = SplitDetections.of_image(0, [[0, 0, 10, 4.99]], [0.9], [0])
    assert voc_metrics.score(index, half, "a").ap_area[0] == 1.0
    assert voc_metrics.score(index, less, "a").ap_area[0] == 0.0


def test_duplicates_are_false_positives_and_difficult_objects_are_ignored(make_index: MakeIndex) -> None:
    index = make_index(([[0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 99, 99]], [0, 0, 0], [0, 0, 1]))
    twice = SplitDetections.of_image(0, index.boxes[[0, 0, 1]], [0.9, 0.8, 0.7], [0, 0, 0])
    assert voc_metrics.score(index, twice, "a").ap_area[0] == pytest.approx(0.5 + 0.5 * 2 / 3)
    hard = SplitDetections.of_image(0, index.boxes[[2, 2, 0, 1]], [0.9, 0.8, 0.7, 0.6], [0] * 4)
    assert voc_metrics.score(index, hard, "a").ap_area[0] == 1.0


def test_11_point_ap_by_hand() -> None:
    recall, precision = np.array([0.25, 0.5, 0.5]), np.array([1.0, 1.0, 2 / 3])
    assert voc_metrics.average_11pt(recall, precision) == pytest.approx(6 / 11)
    assert voc_metrics.average_area(recall, precision) == pytest.approx(0.5)
