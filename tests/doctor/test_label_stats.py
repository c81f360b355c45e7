"""Class balance and overlapping labels."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from detection.data.loading.index import Index, Record, pack
from detection.doctor.label_stats import SAME_OBJECT_IOU, balance, overlapping_pairs
from detection.ops.boxes import iou


def record(name: str, boxes: ArrayLike, labels: ArrayLike, crowd: ArrayLike = False) -> Record:
    corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    return Record(
        file=f"{name}.jpg",
        id=name,
        height=200,
        width=200,
        boxes=corners,
        labels=np.asarray(labels, dtype=np.int64),
        difficult=np.zeros(len(corners), dtype=bool),
        crowd=np.broadcast_to(np.asarray(crowd, dtype=bool), len(corners)),
        areas=np.prod(corners[:, 2:] - corners[:, :2], axis=1),
    )


def boxes_of(count: int) -> list[list[float]]:
    return [[5 * i, 0, 5 * i + 4, 4] for i in range(count)]


def test_balance_by_hand() -> None:
    """Classes: 0 in all splits, 1 rare and only in train, 2 only in test, 3 nowhere."""
    splits = {
        "train": pack([record("a", boxes_of(30), [0] * 30), record("b", boxes_of(5), [0, 0, 1, 1, 1])]),
        "val": pack([]),
        "test": pack([record("c", boxes_of(2), [0, 2])]),
    }
    stats = balance(splits, 4)
    assert stats.objects.tolist() == [32, 3, 0, 0]
    assert stats.images.tolist() == [2, 1, 0, 0]
    assert (stats.rare, stats.untrained) == ([1], [2])
    assert stats.ratio == pytest.approx(32 / 3)
    nothing = {name: pack([]) for name in splits}
    assert np.isnan(balance(nothing, 4).ratio)


def test_overlaps_by_hand() -> None:
    box, shifted, half = [0, 0, 100, 100], [0, 0, 100, 96], [0, 0, 100, 60]
    index = pack(
        [
            record("twice", [box, [150, 150, 160, 160], shifted], [0, 0, 0]),
            record("two names", [box, shifted, half], [1, 0, 2]),
            record("crowd", [box, box], [0, 0], crowd=[False, True]),
        ]
    )
    pairs = overlapping_pairs(index, 0.5)
    listed = sorted(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.iou.round(3).tolist(), strict=True))
    assert listed == [(0, 2, 0.96), (3, 4, 0.96), (3, 5, 0.6), (4, 5, 0.625)]
    assert pairs.same_object(True).first.tolist() == [0]
    assert pairs.same_object(False).first.tolist() == [3]
    assert pairs.same_object(False).labels.tolist() == [[1, 0]]
    assert (pairs.lost_to_nms(0.5), pairs.lost_to_nms(0.97)) == (1, 0)


def test_nms_drops_every_second_object_of_a_chain() -> None:
    """Each object has IoU 0.6 with the next: the first drops the second, so the third stays."""
    chain = [[25 * i, 0, 25 * i + 100, 10] for i in range(5)]
    pairs = overlapping_pairs(pack([record("chain", chain, [0] * 5)]), 0.5)
    assert len(pairs.iou) == 4
    assert pairs.lost_to_nms(0.5) == 2


def test_pairs_equal_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    records = []
    for number in range(20):
        low = rng.uniform(0, 60, (rng.integers(0, 12), 2))
        boxes = np.concatenate([low, low + rng.uniform(0, 60, low.shape)], axis=1)
        records.append(record(str(number), boxes, rng.integers(0, 3, len(low)), rng.random(len(low)) < 0.2))
    index: Index = pack(records)
    expected = set()
    for number in range(len(index)):
        one, start = index[number], int(index.offsets[number])
        overlap = iou(one.boxes, one.boxes)
        for i, j in combinations(range(len(one.boxes)), 2):
            if overlap[i, j] >= 0.3 and not one.crowd[[i, j]].any():
                expected.add((start + i, start + j))
    pairs = overlapping_pairs(index, 0.3)
    assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == expected
    assert len(expected) > 15
    assert (pairs.iou >= 0.3).all()
    assert SAME_OBJECT_IOU > 0.3
