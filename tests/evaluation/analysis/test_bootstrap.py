"""Weighted images against duplicated images, and intervals against textbook formulas."""

import json
import tracemalloc
from dataclasses import fields, replace
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from detection.errors import DetectionError
from detection.evaluation.analysis import bootstrap, resampling
from detection.evaluation.analysis.resampling import COCO_CURVE, BootstrapSample, Curve
from detection.evaluation.analysis.tables import nan_to_null
from detection.evaluation.protocol import coco_metrics, voc_metrics
from detection.evaluation.protocol.coco_metrics import AT_50
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import GroundTruth, Overlaps, Predictions
from tests.evaluation.scenes import NUM_CLASSES, NUM_IMAGES, crowded_split, random_split

Side = TypeVar("Side", GroundTruth, Predictions)


def sampled(
    truth: GroundTruth, predictions: Predictions, thresholds: tuple[int, ...] = resampling.ALL_THRESHOLDS
) -> BootstrapSample:
    pairs = Overlaps.of(truth, predictions, NUM_CLASSES)
    return BootstrapSample.of(pairs, match(pairs), num_images=NUM_IMAGES, thresholds=thresholds)


def average_precision(
    sample: BootstrapSample, weights: NDArray[np.uint16], curve: Curve = COCO_CURVE
) -> NDArray[np.float64]:
    """[rounds, thresholds, classes] AP."""
    return np.concatenate(list(resampling.average_precision(sample, weights, curve)))


def by_coco(truth: GroundTruth, predictions: Predictions) -> NDArray[np.float64]:
    """[thresholds, classes] AP of `coco_metrics`."""
    pairs = Overlaps.of(truth, predictions, NUM_CLASSES)
    precision = coco_metrics.score_matches(pairs, match(pairs)).precision
    ap: NDArray[np.float64] = np.ascontiguousarray(precision.transpose(0, 2, 1)).mean(axis=2)
    return ap


def copied(side: Side, times: NDArray[np.int64]) -> Side:
    """Copy image i `times[i]` times; the copies have consecutive numbers."""
    count = times[side.images]
    rows = np.repeat(np.arange(len(count)), count)
    copy = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    columns = {field.name: getattr(side, field.name)[rows] for field in fields(side) if field.name != "mask_areas"}
    first = np.cumsum(times) - times
    return type(side)(**columns | {"images": first[side.images][rows] + copy})


def unequal(predictions: Predictions, seed: int) -> Predictions:
    """The same detections with distinct scores: with ties, the copies of two detections could interleave."""
    return replace(predictions, scores=np.random.default_rng(seed).permutation(len(predictions.scores)) / 999)


def test_weight_one_is_coco_ap() -> None:
    ones = np.ones((1, NUM_IMAGES), dtype=np.uint16)
    for seed in range(40):
        sides = random_split(seed) if seed < 30 else crowded_split(seed)
        np.testing.assert_allclose(average_precision(sampled(*sides), ones)[0], by_coco(*sides), atol=1e-14)


@pytest.mark.parametrize("make", [random_split, crowded_split])
def test_weight_equals_copies(make: type) -> None:
    different = 0
    for seed in range(20):
        truth, predictions = make(seed)
        predictions = unequal(predictions, seed)
        drawn = bootstrap.draw(NUM_IMAGES, 4, seed)
        scores = average_precision(sampled(truth, predictions), drawn)
        for times, mine in zip(drawn.astype(np.int64), scores, strict=True):
            expected = by_coco(copied(truth, times), copied(predictions, times))
            np.testing.assert_allclose(mine, expected, atol=1e-14)
            different += not np.array_equal(expected, by_coco(truth, predictions), equal_nan=True)
    assert different > 40, "the draws change something"


def test_one_threshold_and_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, predictions = random_split(3)
    drawn = bootstrap.draw(NUM_IMAGES, 9)
    whole = average_precision(sampled(truth, predictions), drawn)
    assert np.array_equal(
        average_precision(sampled(truth, predictions, (AT_50,)), drawn)[:, 0], whole[:, AT_50], equal_nan=True
    )
    monkeypatch.setattr(resampling, "BLOCK_SIZE", 1)
    assert np.array_equal(average_precision(sampled(truth, predictions), drawn), whole, equal_nan=True)


def test_weight_one_is_voc_ap() -> None:
    ones = np.ones((1, NUM_IMAGES), dtype=np.uint16)
    for seed in range(20):
        pairs = Overlaps.of(*random_split(seed), NUM_CLASSES)
        matches = voc_metrics.match(pairs, strict=seed % 2 == 0)
        sample, expected = (
            BootstrapSample.of_voc(pairs, matches, num_images=NUM_IMAGES),
            voc_metrics.score_matches(pairs, matches),
        )
        by_name = {"voc_ap50_11pt": expected.ap_11pt, "voc_ap50_area": expected.ap_area}
        for name, curve in resampling.VOC_CURVES.items():
            np.testing.assert_allclose(average_precision(sample, ones, curve)[0, 0], by_name[name], atol=1e-14)


def test_voc_intervals_contain_the_score_of_a_proportion() -> None:
    detected = np.arange(400) % 10 < 6
    spread = bootstrap.voc_intervals(one_class(detected, voc=True), rounds=500)
    assert list(spread.stats) == ["voc_ap50_11pt", "voc_ap50_area"]
    value, low, high = spread.stats["voc_ap50_area"]
    assert value == pytest.approx(0.6, abs=0.01)
    assert (low, high) == pytest.approx((0.552, 0.648), abs=0.02)
    value, low, high = spread.stats["voc_ap50_11pt"]  # six of eleven recalls: the devkit's 0.6 is slightly above
    assert value == pytest.approx(6 / 11, abs=0.001)
    assert low < 6 / 11 < high


def test_precision_without_bias() -> None:
    """True positive, false positive, true positive: COCO reads 1 and 2/3; without the true positive itself, 1/2.

    The first has no other detection with a higher score in its class: the precision of all classes takes its place.
    """
    box, count = np.array([[10.0, 10, 50, 50]]), 5
    truth = GroundTruth(
        images=np.array([0, 2, 3]),
        labels=np.array([0, 0, 1]),
        boxes=box.repeat(3, axis=0),
        areas=np.full(3, 2500.0),
        ignored=np.zeros(3, np.bool_),
    )
    found = Predictions(
        images=np.array([0, 1, 2, 3, 4]),
        labels=np.array([0, 0, 0, 1, 1]),
        boxes=box.repeat(count, axis=0),
        scores=np.array([0.7, 0.6, 0.5, 0.9, 0.8]),
    )
    pairs = Overlaps.of(truth, found, NUM_CLASSES)
    sample = BootstrapSample.of(pairs, match(pairs), num_images=count, thresholds=(AT_50,))
    ones = np.ones((1, count), dtype=np.uint16)
    assert average_precision(sample, ones)[0, 0, 0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(sample, ones, bootstrap.UNBIASED)[0, 0, 0] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert sample.images_per_class().tolist()[:2] == [2, 1]


def test_draws_cover_all_images_and_repeat() -> None:
    drawn = bootstrap.draw(50, 200, seed=7)
    assert (drawn.sum(axis=1) == 50).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(50), abs=0.3)
    assert np.array_equal(drawn[:20], bootstrap.draw(50, 20, seed=7))


def test_halves_have_half_of_the_images_once() -> None:
    halves = bootstrap.draw_halves(51, 200, seed=7)
    assert (halves.sum(axis=1) == 25).all()
    assert halves.max() == 1
    assert halves.mean(axis=0) == pytest.approx(np.full(51, 25 / 51), abs=0.15)
    assert bootstrap.draw_halves(0, 3).shape == (3, 0)


def one_class(detected: NDArray[np.bool_], *, voc: bool = False) -> BootstrapSample:
    """One object per image, detected perfectly or not at all; AP is the fraction detected."""
    images = len(detected)
    box = np.tile([10.0, 10, 50, 50], (images, 1))
    truth = GroundTruth(
        images=np.arange(images),
        labels=np.zeros(images, dtype=np.int64),
        boxes=box,
        areas=box[:, 2] * box[:, 3],
        ignored=np.zeros(images, dtype=np.bool_),
    )
    rows = np.flatnonzero(detected)
    predictions = Predictions(
        images=rows, labels=np.zeros(len(rows), dtype=np.int64), boxes=box[rows], scores=rows / 1e4
    )
    pairs = Overlaps.of(truth, predictions, 1)
    if voc:
        return BootstrapSample.of_voc(pairs, voc_metrics.match(pairs), num_images=images)
    return BootstrapSample.of(pairs, match(pairs), num_images=images)


def test_interval_of_a_proportion() -> None:
    """Recall is a binomial proportion here: p ± 1.96 sqrt(p (1 - p) / n)."""
    detected = np.arange(400) % 10 < 6
    spread = bootstrap.intervals(one_class(detected), rounds=2000)
    value, low, high = spread.stats["AP50"]
    assert value == pytest.approx(0.6, abs=0.01)
    assert (low, high) == pytest.approx((0.552, 0.648), abs=0.012)
    assert spread.per_class["AP50"] == [spread.stats["AP50"]]
    assert spread.stats["AP"] == pytest.approx(spread.stats["AP75"])


def test_paired_difference_of_overlapping_intervals() -> None:
    """B detects all objects of A and 30 of 400 more: significant in pairs, though the intervals overlap."""
    detected = np.arange(400) % 10 < 6
    first, second = one_class(detected), one_class(detected | np.isin(np.arange(400) % 40, (7, 18, 29)))
    assert bootstrap.intervals(first).stats["AP50"].high > bootstrap.intervals(second).stats["AP50"].low
    difference = bootstrap.paired(first, second).stats["AP50"]
    assert difference.low > 0
    assert difference.better == 1
    same = bootstrap.paired(first, first).stats["AP50"]
    assert same == (0, 0, 0, 0.5, 1)
    assert difference.p_value < 1e-6
    back = bootstrap.paired(second, first).stats["AP50"]
    assert (back.value, back.better) == pytest.approx((-difference.value, 0))


def test_different_ground_truth_is_refused() -> None:
    with pytest.raises(DetectionError, match="different images, classes or objects"):
        bootstrap.paired(sampled(*random_split(2)), sampled(*random_split(3)))


def test_no_objects_is_null_in_json() -> None:
    truth, predictions = random_split(1)
    spread = bootstrap.intervals(sampled(truth, predictions), rounds=20)
    names = [f"class {label}" for label in range(NUM_CLASSES)]
    written = nan_to_null(spread.to_json(names))
    assert list(written) == ["rounds", "images", "level", "stats", "per_class"]
    assert 0 <= written["stats"]["AP"]["low"] <= written["stats"]["AP"]["high"] <= 1
    assert list(written["per_class"]["AP50"]) == names
    assert written["per_class"]["AP50"]["class 4"] == {"value": None, "low": None, "high": None}
    json.dumps(written, allow_nan=False)
    empty = truth.take(np.zeros(0, dtype=np.int64)), predictions.take(np.zeros(0, dtype=np.int64))
    pairs = Overlaps.of(*empty, NUM_CLASSES)
    nothing = bootstrap.intervals(BootstrapSample.of(pairs, match(pairs), num_images=0), rounds=3)
    assert np.isnan(nothing.stats["AP50"].value)


def test_memory_does_not_grow_with_classes_times_recalls() -> None:
    """20 images and 1,203 classes as in LVIS: [rounds, classes, recalls] alone would take 0.97 GB."""
    rng, num_classes = np.random.default_rng(0), 1203
    labels, boxes = rng.integers(0, num_classes, 240), np.tile([10.0, 10, 50, 50], (240, 1))
    images = np.arange(240) % 20
    truth = GroundTruth(
        images=images, labels=labels, boxes=boxes, areas=np.full(240, 2500.0), ignored=np.zeros(240, np.bool_)
    )
    predictions = Predictions(
        images=images, labels=labels, boxes=boxes + rng.uniform(-5, 5, (240, 4)), scores=labels / 2e3
    )
    pairs = Overlaps.of(truth, predictions, num_classes)
    sample = BootstrapSample.of(pairs, match(pairs), num_images=20)
    tracemalloc.start()
    spread = bootstrap.intervals(sample)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spread.stats["AP"].value > 0.1
    assert peak < 150e6


def test_bias_of_few_images_is_taken_off() -> None:
    """Half of the detections are good; intervals from 30 of 3,000 images contain the AP of all of them."""
    rng, total, count = np.random.default_rng(0), 3000, 30
    images = np.repeat(np.arange(total), 2)
    boxes = np.tile([10.0, 10, 50, 50], (2 * total, 1)) + np.arange(2 * total)[:, None] % 2 * [70, 0, 0, 0]
    moved = boxes + rng.choice([1.0, 40], (2 * total, 1)) * rng.uniform(-1, 1, boxes.shape) * [1, 1, 0, 0]
    scores = rng.random(2 * total)
    zeros, none = np.zeros(2 * total, np.int64), np.zeros(2 * total, np.bool_)
    truth = GroundTruth(images=images, labels=zeros, boxes=boxes, areas=boxes[:, 2] * 50, ignored=none)
    predictions = Predictions(images=images, labels=zeros, boxes=moved, scores=scores)

    def of(part: NDArray[np.int64]) -> BootstrapSample:
        number = np.full(total, -1)
        number[part] = np.arange(len(part))
        rows = np.flatnonzero(number[images] >= 0)
        mine, renumbered = truth.take(rows), number[images[rows]]
        found = replace(predictions.take(rows), images=renumbered)
        pairs = Overlaps.of(replace(mine, images=renumbered), found, 1)
        return BootstrapSample.of(pairs, match(pairs), num_images=len(part))

    expected = float(bootstrap.mean_scores(of(np.arange(total)), np.ones((1, total), np.uint16))["AP"][0])
    covered, plain = 0, 0
    for repeat in range(60):
        sample = of(rng.permutation(total)[:count])
        _, low, high = bootstrap.intervals(sample, 100, repeat).stats["AP"]
        covered += low <= expected <= high
        drawn = bootstrap.mean_scores(sample, bootstrap.draw(count, 100, repeat))["AP"]
        plain += bool(np.quantile(drawn, 0.025) <= expected <= np.quantile(drawn, 0.975))
    assert covered >= 52
    assert covered > plain
