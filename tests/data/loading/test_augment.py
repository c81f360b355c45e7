"""Augmentation policies: their rules, and boxes that stay on their objects."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detection.data.loading.augment import draw_geometry, keep_mask
from detection.data.loading.geometry import Geometry
from detection.data.loading.index import Index, Record, pack
from detection.data.loading.loader import DetectionDataset
from detection.params import Recipe, load
from detection.params.augmentation import POLICIES, CropByOverlap, Policy

MIN_IOUS = CropByOverlap().min_overlaps
MULTISCALE_SIDES = range(480, 801, 32)
SQUARE = ("letterbox", "crop")
SEEDS = 20
SIZES = st.integers(20, 90)


OWN = load(model="retinanet_resnet18").recipe


def recipe_for(policy: Any, **fields: Any) -> Recipe:
    return replace(OWN, **{"augmentation": policy, "image_size": 128, "max_size": None, **fields})


# -- boxes stay on their objects: each object has its own color and is located by it


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[np.ndarray]]:
    """Four images of different shapes, each with six separate objects of different colors."""
    folder, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(1)
    records, colors = [], []
    for i, (height, width) in enumerate([(240, 320), (320, 240), (200, 200), (150, 400)]):
        pixels = rng.integers(0, 30, (height, width, 3), dtype=np.uint8)  # dark noise
        boxes = []
        for column in range(3):
            for row in range(2):
                cell_w, cell_h = width // 3, height // 2
                w, h = int(rng.integers(30, cell_w - 10)), int(rng.integers(30, cell_h - 10))
                x = column * cell_w + int(rng.integers(5, cell_w - w))
                y = row * cell_h + int(rng.integers(5, cell_h - h))
                boxes.append((x, y, x + w, y + h))
        hues = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]])
        for (x1, y1, x2, y2), color in zip(boxes, hues, strict=True):
            pixels[y1:y2, x1:x2] = color
        Image.fromarray(pixels).save(folder / f"{i}.png")
        none = np.zeros(6, np.bool_)
        packed = np.array(boxes, np.float32)
        areas = np.zeros(6, np.float32)
        records.append(Record(f"{i}.png", str(i), height, width, packed, np.arange(6), none, none, areas))
        colors.append(hues)
    return folder, pack(records), colors


def box_of_color(pixels: torch.Tensor, color: np.ndarray) -> np.ndarray | None:
    """Bounding box of the pixels of a color; a blend with more than 40 % of another does not count."""
    match = np.where(color[:, None, None] > 0, pixels.numpy() > 155, pixels.numpy() < 100)
    on = np.logical_and.reduce(match, axis=0)
    rows, columns = np.flatnonzero(on.any(axis=1)), np.flatnonzero(on.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


@pytest.mark.parametrize("policy", POLICIES)
def test_boxes_stay_on_their_objects(drawn: Any, policy: str, monkeypatch: Any) -> None:
    """From file to sample, over many seeds: within 1.5 pixels of the located color.

    One pixel for rounding (the window has whole pixels), half a pixel for the blur of the resize.
    Color transforms are disabled; the next test checks that they move nothing.
    """
    folder, index, colors = drawn
    monkeypatch.setattr("detection.data.loading.compose.jitter_colors", lambda steps, rng, image: image)
    shapes: tuple[Any, ...] = ("keep",) if policy == "multiscale" else ("keep", "stretch")
    sets = [DetectionDataset(index, folder, recipe_for(policy, resize=shape), train=True) for shape in shapes]
    for dataset in sets:
        dataset.fill = (15, 15, 15)
    compared, windows = 0, set()
    for epoch in range(SEEDS):
        for row in range(len(index)):
            sample = sets[epoch % len(sets)][epoch, row]
            height, width = sample.image.shape[1:]
            windows.add((height, width, *sample.boxes.ravel().tolist()))
            assert (sample.boxes[:, :2] < sample.boxes[:, 2:]).all()
            assert (sample.boxes >= 0).all()
            assert (sample.boxes <= [width, height, width, height]).all()
            for box, label in zip(sample.boxes, sample.labels, strict=True):
                if (box[2:] - box[:2]).min() < 3:
                    continue  # blurred into its neighbors
                seen = box_of_color(sample.image, colors[row][label])
                assert seen is not None, (epoch, row, label)
                np.testing.assert_allclose(seen, box, atol=1.5, err_msg=f"{epoch=} {row=} {label=}")
                compared += 1
            for label in set(range(6)) - set(sample.labels.tolist()) if policy in SQUARE else ():
                seen = box_of_color(sample.image, colors[row][label])
                if seen is not None:  # large objects are never dropped
                    assert (seen[2:] - seen[:2]).min() <= 3 or (seen[2:] - seen[:2]).prod() <= 50
    assert compared > 2 * SEEDS * len(index)
    assert len(windows) >= (len(index) if policy == "none" else 2 * len(index))


@pytest.mark.parametrize("policy", ["ssd", "ssd_legacy", "letterbox"])
def test_color_transforms_move_nothing(drawn: Any, policy: str) -> None:
    folder, index, _ = drawn
    dataset = DetectionDataset(index, folder, recipe_for(policy), train=True)
    for epoch in range(10):
        sample = dataset[epoch, 0]
        levels = sample.image * 255 if sample.image.is_floating_point() else sample.image.float()
        seen = levels.amax(0)
        for x1, y1, x2, y2 in sample.boxes.round().astype(int):
            if min(x2 - x1, y2 - y1) > 8:  # objects are bright in any color
                assert seen[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min() > 80


def test_each_policy_has_a_name_in_params() -> None:
    assert tuple(POLICIES) == get_args(Policy)


# -- the rules of each policy


def boxes_in(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    corner = rng.random((count, 2)) * [width - 10, height - 10]
    return np.concatenate([corner, corner + 5 + rng.random((count, 2)) * 5], axis=1).astype(np.float32)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([*POLICIES]), SIZES, SIZES, st.integers(0, 10_000), st.integers(0, 6))
def test_windows_are_valid_and_crops_show_an_object(policy: str, h: int, w: int, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = boxes_in(rng, count, h, w)
    geometry = draw_geometry(recipe_for(policy), rng, h, w, boxes)
    x1, y1, x2, y2 = geometry.window
    assert max(x1, 0) < min(x2, w)  # part of the image is visible
    assert max(y1, 0) < min(y2, h)
    if policy in ("none", "flip", "multiscale"):
        assert geometry.window == (0, 0, w, h)
        assert keep_mask(POLICIES[policy], geometry, boxes).all()
    if policy in ("ssd", "ssd_legacy", "ssdlite") and count:
        assert keep_mask(POLICIES[policy], geometry, boxes).any()
    if policy in ("ssdlite", "crop"):
        assert 0 <= x1 < x2 <= w
        assert 0 <= y1 < y2 <= h
    if policy in SQUARE:
        assert geometry.height == geometry.width == 128
    assert policy != "none" or not geometry.flip
    assert geometry.image(torch.zeros(3, h, w, dtype=torch.uint8), (0, 0, 0)).shape == (
        3,
        geometry.height,
        geometry.width,
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 400), (300, 1)])
def test_images_of_one_pixel_or_row(policy: str, h: int, w: int) -> None:
    image, boxes = torch.zeros(3, h, w, dtype=torch.uint8), np.array([[0, 0, w, h]], np.float32)
    for seed in range(30):
        geometry = draw_geometry(recipe_for(policy, max_size=320), np.random.default_rng(seed), h, w, boxes)
        assert geometry.image(image, (1, 1, 1)).shape == (3, geometry.height, geometry.width)
        assert np.isfinite(geometry.boxes(boxes)).all()


def test_half_of_the_images_are_flipped() -> None:
    for policy in set(POLICIES) - {"none"}:
        flips = [
            draw_geometry(
                recipe_for(policy), np.random.default_rng(s), 60, 80, boxes_in(np.random.default_rng(s), 3, 60, 80)
            ).flip
            for s in range(400)
        ]
        assert 0.4 < np.mean(flips) < 0.6, policy


def test_multiscale_draws_the_short_sides_of_the_references() -> None:
    recipe = recipe_for("multiscale", image_size=800, max_size=1333)
    none = np.zeros((0, 4), np.float32)
    drawn = [draw_geometry(recipe, np.random.default_rng(s), 375, 500, none) for s in range(300)]
    assert {g.height for g in drawn} == set(MULTISCALE_SIDES) == set(range(480, 801, 32))
    assert all(abs(g.width / g.height - 4 / 3) < 0.01 for g in drawn)
    wide = [draw_geometry(recipe, np.random.default_rng(s), 100, 400, none) for s in range(50)]
    assert max(g.width for g in wide) == 1333
    small = [draw_geometry(recipe_for("multiscale"), np.random.default_rng(s), 64, 64, none) for s in range(99)]
    assert {g.height for g in small} == {round(128 * side / 800) for side in MULTISCALE_SIDES}


def test_crops_reach_the_minimum_iou() -> None:
    """Unlike the original implementation."""
    box = np.array([[20, 20, 60, 60]], np.float32)

    class High(np.random.Generator):
        def integers(self, *_: object, **__: object) -> int:  # type: ignore[override]
            return MIN_IOUS.index(0.7)

    rng = High(np.random.PCG64(0))
    for _ in range(50):
        x1, y1, x2, y2 = draw_geometry(recipe_for("ssdlite"), rng, 80, 80, box).window
        shared = max(0, min(x2, 60) - max(x1, 20)) * max(0, min(y2, 60) - max(y1, 20))
        union = (x2 - x1) * (y2 - y1) + 1600 - shared
        assert shared / union >= 0.7
    assert 0.5 in MIN_IOUS  # missing in the original's list


def test_the_legacy_policy_accepts_every_crop_with_an_object() -> None:
    """Crops around a small object are rarely tight, and five of six images are cropped."""
    box = np.array([[100, 100, 160, 160]], np.float32)

    def windows(policy: str) -> list[tuple[int, int, int, int]]:
        rngs = [np.random.default_rng(seed) for seed in range(400)]
        return [draw_geometry(recipe_for(policy), rng, 300, 300, box).window for rng in rngs]

    def area(window: tuple[int, int, int, int]) -> float:
        return (window[2] - window[0]) * (window[3] - window[1]) / 300**2

    # without those that zoom out, half of both
    legacy = [w for w in windows("ssd_legacy") if w[0] >= 0 and w[1] >= 0 and w[2] <= 300 and w[3] <= 300]
    whole = np.mean([area(w) == 1 for w in legacy])
    assert 0.08 < whole < 0.3
    enforced = [w for w in windows("ssdlite") if area(w) < 1]
    assert np.mean([area(w) for w in enforced]) < np.mean([area(w) for w in legacy if area(w) < 1])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (400, 400)])
def test_letterbox_scales_and_stretches_around_the_square(height: int, width: int) -> None:
    none = np.zeros((0, 4), np.float32)
    recipe = recipe_for("letterbox", image_size=600)
    scales, ratios = [], []
    for seed in range(500):
        x1, y1, x2, y2 = draw_geometry(recipe, np.random.default_rng(seed), height, width, none).window
        across, down = width / (x2 - x1), height / (y2 - y1)  # sides of the image as fractions of the canvas
        scales.append(max(across, down))
        ratios.append(across / down)
        for start, end, length in ((x1, x2, width), (y1, y2, height)):  # whole image on the canvas, or no padding
            assert (start <= 0 and end >= length) or (start >= 0 and end <= length)
    assert 0.24 < min(scales) < 0.3
    assert 1.9 < max(scales) < 2.02
    assert 0.7 / 1.3 - 0.02 < min(ratios) < 0.65
    assert 1.5 < max(ratios) < 1.3 / 0.7 + 0.03
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1, abs=0.03)  # whatever the image's own


def test_letterbox_has_the_statistics_of_its_original(voc_images: tuple[Index, Path]) -> None:
    """Boxes of 250 images of VOC2007 train, 20 draws each, against 40 draws of the original on the same boxes.

    The original truncates boxes to whole pixels, hence the tolerance for its smallest and thinnest boxes.
    """
    index, _ = voc_images
    recipe = recipe_for("letterbox", image_size=600)
    aspects, sides, objects = [], [], 0
    for row in range(250):
        record = index[row]
        boxes = record.boxes[~record.difficult]
        for seed in range(20):
            geometry = draw_geometry(recipe, np.random.default_rng((seed, row)), record.height, record.width, boxes)
            kept = boxes[keep_mask(POLICIES["letterbox"], geometry, boxes)]
            moved = geometry.boxes(kept)
            w, h = (moved[:, 2:] - moved[:, :2]).T
            uncut = (moved > 0).all(axis=1) & (moved < 600).all(axis=1)
            aspects.append((w / h / ((kept[:, 2] - kept[:, 0]) / (kept[:, 3] - kept[:, 1])))[uncut])
            sides.append(np.sqrt(w * h) / 600)
            objects += len(boxes)
    aspect, side = np.concatenate(aspects), np.concatenate(sides)
    assert len(side) / objects == pytest.approx(0.950, abs=0.01)  # kept
    assert side.mean() == pytest.approx(0.342, abs=0.01)
    np.testing.assert_allclose(np.quantile(side, [0.1, 0.5, 0.9]), [0.073, 0.262, 0.759], rtol=0.05)
    assert aspect.mean() == pytest.approx(0.833, abs=0.02)
    assert aspect.std() == pytest.approx(0.331, abs=0.02)
    quantiles = np.quantile(aspect, [0.05, 0.25, 0.5, 0.75, 0.95])
    np.testing.assert_allclose(quantiles, [0.458, 0.612, 0.758, 0.961, 1.526], rtol=0.05)


def test_crop_keeps_most_of_the_image() -> None:
    none = np.zeros((0, 4), np.float32)
    squares = 0
    for seed in range(300):
        x1, y1, x2, y2 = draw_geometry(recipe_for("crop"), np.random.default_rng(seed), 375, 500, none).window
        w, h = x2 - x1, y2 - y1
        if (x1, y1, x2, y2) == (62, 0, 437, 375):  # no draw fits
            squares += 1
            continue
        assert 0.84 <= w * h / (375 * 500) <= 1
        assert 0.74 <= w / h <= 1.35
    assert squares < 150


def test_objects_that_become_too_small_are_dropped() -> None:
    boxes = np.array([[0, 0, 100, 100], [50, 50, 54, 54], [50, 50, 60, 60], [90, 0, 100, 100]], np.float32)
    shrunk = Geometry((0, 0, 80, 80), 40, 40)  # halved, without the last 20 columns and rows
    assert keep_mask(POLICIES["crop"], shrunk, boxes).tolist() == [True, False, False, False]  # areas 1600, 4, 25, 0
    assert keep_mask(POLICIES["letterbox"], shrunk, boxes).tolist() == [True, True, True, False]
    thin = np.array([[10, 10, 12, 70], [79, 10, 99, 70], [60, 10, 99, 70]], np.float32)
    assert keep_mask(POLICIES["letterbox"], shrunk, thin).tolist() == [False, False, True]
    assert keep_mask(POLICIES["ssd"], shrunk, thin).tolist() == [True, False, True]  # by the center
