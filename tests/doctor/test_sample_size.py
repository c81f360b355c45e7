"""Margins of AP50, and warnings about small splits and class names."""

import numpy as np
import pytest

from detection.data.loading.index import Index, Record, pack
from detection.doctor.label_stats import MAX_MARGIN, ap50_margin, reliability_warnings
from detection.params import ShapesDataset, VocDataset

CLASSES = ("cat", "dog", "cow")


def split_of(*labels: int, difficult: bool = False) -> Index:
    """A split of one image."""
    count = len(labels)
    flags = np.full(count, difficult)
    boxes = np.tile(np.array([0, 0, 9, 9], np.float32), (count, 1))
    numbers = np.array(labels, np.int64)
    none, areas = np.zeros(count, np.bool_), np.full(count, 81, np.float32)
    return pack([Record("a.jpg", "a", 40, 50, boxes, numbers, flags, none, areas)])


ENTRY = VocDataset(format="voc", path="mine", train=("train",), val=("val",), test=("test",))
LARGE = split_of(*[0, 1, 2] * 100)


def warnings_of(val: Index, test: Index, entry: VocDataset | ShapesDataset = ENTRY) -> list[str]:
    return reliability_warnings("mine", entry, {"train": LARGE, "val": val, "test": test}, CLASSES)


@pytest.mark.parametrize("counts", [(25,), (400,), (100, 100), (30, 300, 900), (12, 900)])
def test_the_margin_holds_95_percent_of_random_scores(counts: tuple[int, ...]) -> None:
    """For a detector that detects half of the objects of each class, the worst case."""
    rng = np.random.default_rng(0)
    scores = np.mean([rng.binomial(count, 0.5, 20_000) / count for count in counts], axis=0)
    labels = np.repeat(np.arange(len(counts)), counts).tolist()
    within = np.mean(np.abs(scores - 0.5) <= ap50_margin(split_of(*labels), 3) + 1e-9)
    assert within == pytest.approx(0.95, abs=0.02)


def test_ignored_objects_do_not_count() -> None:
    assert np.isnan(ap50_margin(split_of(*[0] * 99, difficult=True), 3))
    assert ap50_margin(split_of(*[0] * 25), 3) == pytest.approx(0.196)


def test_a_large_dataset_gives_no_warning() -> None:
    assert warnings_of(LARGE, LARGE) == []


def test_small_splits_are_named_with_margin_and_fix() -> None:
    small = split_of(0, 1, 2)
    assert ap50_margin(small, 3) > MAX_MARGIN
    val, test = warnings_of(small, small)
    for line, split in ((val, "val"), (test, "test")):
        assert line.startswith(f"{split} (1 images, 3 objects) is too small")
        assert "0.57" in line
        assert line.endswith(f"add images to {split}")
    assert "checkpoint" in val
    cut = VocDataset(format="voc", path="mine", train=("./",), holdout_fraction=0.1)
    fix = "; add images, or raise datasets.mine.holdout_fraction"
    assert all(line.endswith(fix) for line in warnings_of(small, small, cut))


def test_missing_classes_are_named_per_split() -> None:
    val, test = warnings_of(split_of(*[0, 1] * 100), split_of(*[2] * 200))
    assert val.startswith("val has no object of 1 of the 3 classes of train (cow)")
    assert test.startswith("test has no object of 2 of the 3 classes of train (cat, dog)")


def test_an_empty_split_is_a_warning_only_if_it_is_listed() -> None:
    empty = pack([])
    (line,) = warnings_of(empty, LARGE)
    assert line.startswith("val (0 images, 0 objects) has no object")
    no_val = VocDataset(format="voc", path="mine", train=("train",), test=("test",))
    assert warnings_of(empty, LARGE, no_val) == []
    assert warnings_of(empty, LARGE, ShapesDataset(format="shapes", path="shapes", val=0)) == []


@pytest.mark.parametrize(
    ("name", "count", "misspelled"),
    [("RCB", 1, True), ("rbc", 2, True), ("Rbc ", 1, True), ("RCB", 9, False), ("WBC", 9, False), ("X", 1, False)],
)
def test_misspelled_class_names(name: str, count: int, misspelled: bool) -> None:
    classes = ("RBC", name)
    split = split_of(*[0] * 200, *[1] * count)
    splits = dict.fromkeys(("train", "val", "test"), split)
    named = [
        line.split(":")[0] for line in reliability_warnings("mine", ENTRY, splits, classes) if "misspelled" in line
    ]
    expected = f"class {name} ({3 * count} objects) looks like a misspelled RBC"
    assert named == ([expected] if misspelled else [])
    listed = VocDataset(format="voc", path="mine", train=("t",), val=("v",), test=("w",), classes=classes)
    assert not any("misspelled" in line for line in reliability_warnings("mine", listed, splits, classes))
