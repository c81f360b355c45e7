"""How far scores can be trusted: by hand, and against drawn scores."""

import numpy as np
import pytest

from detection.data.index import Index, Record, pack
from detection.doctor.sample_size import UNSURE, ap50_margin, reliability_warnings
from detection.params import ShapesDataset, VocDataset

CLASSES = ("cat", "dog", "cow")


def split_of(*labels: int, difficult: bool = False) -> Index:
    """A split of one picture."""
    count = len(labels)
    flags = np.full(count, difficult)
    boxes = np.tile(np.array([0, 0, 9, 9], np.float32), (count, 1))
    numbers = np.array(labels, np.int64)
    none, areas = np.zeros(count, np.bool_), np.full(count, 81, np.float32)
    return pack([Record("a.jpg", "a", 40, 50, boxes, numbers, flags, none, areas)])


ENTRY = VocDataset(format="voc", path="mine", train=("train",), val=("val",), test=("test",))
LARGE = split_of(*[0, 1, 2] * 100)


def told(val: Index, test: Index, entry: VocDataset | ShapesDataset = ENTRY) -> list[str]:
    return reliability_warnings("mine", entry, {"train": LARGE, "val": val, "test": test}, CLASSES)


@pytest.mark.parametrize("counts", [(25,), (400,), (100, 100), (30, 300, 900), (12, 900)])
def test_the_margin_holds_19_of_20_drawn_scores(counts: tuple[int, ...]) -> None:
    """Of a detector that finds half of the objects of each class, which is the worst case."""
    rng = np.random.default_rng(0)
    scores = np.mean([rng.binomial(count, 0.5, 20_000) / count for count in counts], axis=0)
    labels = np.repeat(np.arange(len(counts)), counts).tolist()
    held = np.mean(np.abs(scores - 0.5) <= ap50_margin(split_of(*labels), 3) + 1e-9)
    assert held == pytest.approx(0.95, abs=0.02)


def test_what_is_not_scored_does_not_count() -> None:
    assert np.isnan(ap50_margin(split_of(*[0] * 99, difficult=True), 3))
    assert ap50_margin(split_of(*[0] * 25), 3) == pytest.approx(0.196)


def test_a_large_dataset_gives_no_doubt() -> None:
    assert told(LARGE, LARGE) == []


def test_small_splits_say_what_follows_and_what_to_do() -> None:
    small = split_of(0, 1, 2)
    assert ap50_margin(small, 3) > UNSURE
    val, test = told(small, small)
    assert val == (
        "val (1 pictures, 3 objects) is too small: chance alone moves its AP50 by up to 0.57, "
        "and which checkpoint is best is mostly luck; name more pictures for val"
    )
    assert "and detectors that differ by less cannot be told apart; name more" in test
    cut = VocDataset(format="voc", path="mine", train=("./",), holdout_fraction=0.1)
    assert all(line.endswith("raise datasets.mine.holdout_fraction") for line in told(small, small, cut))


def test_classes_that_are_missing_are_named_for_val_and_test() -> None:
    val, test = told(split_of(*[0, 1] * 100), split_of(*[2] * 200))
    assert val.startswith("val has no object of 1 of the 3 classes of train (cow)")
    assert test.startswith("test has no object of 2 of the 3 classes of train (cat, dog)")


def test_an_empty_split_is_missed_only_where_it_is_wanted() -> None:
    empty = pack([])
    (line,) = told(empty, LARGE)
    assert line == "val (0 pictures, 0 objects) has nothing to score; name more pictures for val"
    no_val = VocDataset(format="voc", path="mine", train=("train",), test=("test",))
    assert told(empty, LARGE, no_val) == []
    assert told(empty, LARGE, ShapesDataset(format="shapes", path="shapes", val=0)) == []


@pytest.mark.parametrize(
    ("name", "count", "slip"),
    [
        ("RCB", 1, True),
        ("rbc", 2, True),
        ("Rbc ", 1, True),
        ("RCB", 9, False),
        ("WBC", 9, False),
        ("X", 1, False),
    ],
)
def test_a_class_that_looks_misspelt_is_named(name: str, count: int, slip: bool) -> None:
    classes = ("RBC", name)
    split = split_of(*[0] * 200, *[1] * count)
    splits = dict.fromkeys(("train", "val", "test"), split)
    found = [
        line.split(":")[0]
        for line in reliability_warnings("mine", ENTRY, splits, classes)
        if "misspelt" in line
    ]
    assert found == ([f"class {name} ({3 * count} objects) looks like RBC misspelt"] if slip else [])
    listed = VocDataset(format="voc", path="mine", train=("t",), val=("v",), test=("w",), classes=classes)
    assert not any("misspelt" in line for line in reliability_warnings("mine", listed, splits, classes))
