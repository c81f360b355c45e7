"""Lists of augmentation steps: boxes that stay on their objects, several images in one, randomness."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from detection.data.loading.augment import draw_geometry
from detection.data.loading.compose import Labeled, Source, compose
from detection.data.loading.geometry import Geometry
from detection.data.loading.index import Index, Record, pack
from detection.data.loading.loader import DetectionDataset, Loader
from detection.errors import ParamsError
from detection.models.build import build_detector, load_detector, save_detector
from detection.params import Recipe, load
from detection.params.augmentation import Affine, CopyPaste, Flip, Mixup, Mosaic, Step
from detection.params.reader import read_yaml

OWN = replace(load(model="retinanet_resnet18").recipe, image_size=128, max_size=None)
FILL = (0, 0, 0)
NAMES = ("red", "green", "blue", "yellow", "magenta", "cyan")
COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]])


def recipe_of(*steps: Step, **fields: Any) -> Recipe:
    return replace(OWN, augmentation=steps, **fields)


def drawn_image(row: int) -> Labeled:
    """Black image with a rectangle of each color, at other positions and in another shape for each row."""
    rng = np.random.default_rng(row)
    height, width = [(240, 320), (320, 240), (200, 200), (150, 400)][row % 4]
    pixels = np.zeros((height, width, 3), np.uint8)
    boxes = np.zeros((6, 4), np.float32)
    for cell, color in enumerate(COLORS):
        cell_w, cell_h = width // 3, height // 2
        w, h = int(rng.integers(30, cell_w - 10)), int(rng.integers(30, cell_h - 10))
        x = cell % 3 * cell_w + int(rng.integers(5, cell_w - w))
        y = cell // 3 * cell_h + int(rng.integers(5, cell_h - h))
        pixels[y : y + h, x : x + w] = color
        boxes[cell] = x, y, x + w, y + h
    return Labeled(torch.from_numpy(pixels).permute(2, 0, 1), boxes, np.arange(6))


SOURCE = Source(drawn_image, 4, FILL)


def is_color(pixels: torch.Tensor, label: int) -> np.ndarray:
    """[H, W] mask of a color; a blend with more than 40 % of another does not count."""
    match = np.where(COLORS[label][:, None, None] > 0, pixels.numpy() > 155, pixels.numpy() < 100)
    return np.asarray(np.logical_and.reduce(match, axis=0))


def located(pixels: torch.Tensor, label: int) -> np.ndarray | None:
    rows, columns = (np.flatnonzero(is_color(pixels, label).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


GEOMETRIC = {
    "flips": (Step(flip=Flip(vertical=0.5, rotate90=0.5)),),
    "scale and shift": (Step(affine=Affine(scale=(0.5, 1.5), translate=0.2)),),
    "rotation": (Step(affine=Affine(rotate=25, scale=(0.7, 1.3), translate=0.1)), Step(flip=Flip(rotate90=0.5))),
    "shear": (Step(affine=Affine(shear=15)), Step(flip=Flip(vertical=0.5))),
}


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize(("resize", "antialias"), [("keep", True), ("stretch", True), ("stretch", False)])
def test_boxes_stay_on_their_objects(name: str, resize: Any, antialias: bool) -> None:
    """Objects that are whole in the result: corners of a rotated rectangle are blurred, hence the two pixels."""
    recipe, compared = recipe_of(*GEOMETRIC[name], resize=resize, antialias=antialias), 0
    for seed in range(30):
        sample = compose(recipe, SOURCE, seed % 4, np.random.default_rng(seed))
        height, width = sample.image.shape[1:]
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= [width, height, width, height]).all()
        for box, label in zip(sample.boxes, sample.labels.tolist(), strict=True):
            cut = box[0] <= 0 or box[1] <= 0 or box[2] >= width or box[3] >= height
            if (cut and recipe.steps[0].affine) or (box[2:] - box[:2]).min() < 8:
                continue  # the box of a cut corner is larger than what is left
            seen = located(sample.image, label)
            assert seen is not None, (seed, label)
            np.testing.assert_allclose(seen, box, atol=2.5, err_msg=f"{seed=} {label=}")
            compared += 1
    assert compared > 60


def test_a_quarter_turn_exchanges_the_sides_and_four_are_the_identity() -> None:
    image, boxes, _ = drawn_image(3)
    geometry = draw_geometry(
        recipe_of(Step(flip=Flip(horizontal=0, rotate90=1))), np.random.default_rng(0), 150, 400, boxes
    )
    turned, moved = geometry.image(image, FILL), geometry.boxes(boxes).astype(np.float64)
    assert turned.shape[1:] == geometry.size == (geometry.width, geometry.height)
    for _ in range(3):
        moved = moved[:, [1, 2, 3, 0]] * [1, -1, 1, -1] + [0, turned.shape[2], 0, turned.shape[2]]
        turned = turned.rot90(1, (1, 2))
    whole = replace(geometry, quarter_turn=False)
    assert torch.equal(turned, whole.image(image, FILL))
    np.testing.assert_allclose(moved, whole.boxes(boxes), atol=1e-3)


def test_a_warp_of_nothing_changes_nothing() -> None:
    image, boxes, _ = drawn_image(0)
    plain = draw_geometry(recipe_of(), np.random.default_rng(0), 240, 320, boxes)
    warped = replace(plain, warp=(1.0, 0.0, 0.0, 1.0))
    np.testing.assert_allclose(warped.boxes(boxes), plain.boxes(boxes), atol=1e-3)
    assert (warped.image(image, FILL).int() - plain.image(image, FILL).int()).abs().max() <= 1


@pytest.mark.parametrize("height", [240, 120])
def test_a_rotation_is_that_of_bilinear_interpolation(height: int) -> None:
    """Of an image of its size, and of one that is resized before; outside the image is padding in both."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
    cos, sin, size = np.cos(0.4), np.sin(0.4), (height * 4 // 3, height)
    geometry = Geometry((0, 0, 320, 240), size[1], size[0], warp=(cos, -sin, sin, cos))
    shown = geometry.image(torch.from_numpy(np.array(photo)).permute(2, 0, 1), FILL)
    left, top = (1 - cos) * size[0] / 2 - sin * size[1] / 2, (1 - cos) * size[1] / 2 + sin * size[0] / 2
    exact = photo.resize(size, Image.Resampling.BILINEAR).transform(
        size, Image.Transform.AFFINE, (cos, sin, left, -sin, cos, top), Image.Resampling.BILINEAR
    )
    difference = shown.permute(1, 2, 0).numpy().astype(float) - np.array(exact)
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 34


def test_rotation_shows_what_lies_beyond_the_window() -> None:
    """An image that is zoomed in and rotated has no padding."""
    recipe = recipe_of(Step(affine=Affine(rotate=20, scale=(2, 2))))
    no_boxes, white = np.zeros((0, 4), np.float32), torch.full((3, 200, 300), 255, dtype=torch.uint8)
    source = Source(lambda row: Labeled(white, no_boxes, np.zeros(0, np.int64)), 1, FILL)
    for seed in range(5):
        assert compose(recipe, source, 0, np.random.default_rng(seed)).image.min() == 255


def test_a_mosaic_shows_four_images_at_their_boxes() -> None:
    recipe, compared, images = recipe_of(Step(mosaic=Mosaic(p=1)), image_size=256), 0, set()
    for seed in range(20):
        rows: list[int] = []
        source = Source(lambda row: rows.append(row) or drawn_image(row), 4, FILL)  # type: ignore[func-returns-value]  # noqa: B023
        sample = compose(recipe, source, seed % 4, np.random.default_rng(seed))
        assert len(rows) == 4
        images |= set(rows[1:])
        height, width = sample.image.shape[1:]
        assert abs(width / height - drawn_image(seed % 4).image.shape[2] / drawn_image(seed % 4).image.shape[1]) < 0.02
        for box, label in zip(sample.boxes.round().astype(int), sample.labels.tolist(), strict=True):
            x1, y1, x2, y2 = box.tolist()
            if min(x2 - x1, y2 - y1) < 8:
                continue
            inner = is_color(sample.image, label)[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
            assert inner.mean() > 0.9, (seed, label, box)
            compared += 1
    assert compared > 150
    assert images == {0, 1, 2, 3}


def test_pasted_objects_cover_no_other() -> None:
    recipe = recipe_of(Step(copy_paste=CopyPaste(p=1, max_objects=3)))
    added = 0
    for seed in range(20):
        plain = compose(recipe_of(), SOURCE, 0, np.random.default_rng(seed))
        sample = compose(recipe, SOURCE, 0, np.random.default_rng(seed))
        own = len(plain.boxes)
        np.testing.assert_array_equal(sample.boxes[:own], plain.boxes)
        added += len(sample.boxes) - own
        for i, box in enumerate(sample.boxes[own:], own):
            low = np.maximum(box[:2], sample.boxes[:i, :2])
            high = np.minimum(box[2:], sample.boxes[:i, 2:])
            assert not (low < high).all(axis=1).any()
            x1, y1, x2, y2 = box.astype(int).tolist()
            assert is_color(sample.image, int(sample.labels[i]))[y1:y2, x1:x2].mean() > 0.7
    assert 10 < added <= 60


def test_mixup_is_a_mean_with_the_objects_of_both() -> None:
    def plain_image(row: int) -> Labeled:
        pixels = torch.full((3, 100, 100 + 100 * row), 200 * row, dtype=torch.uint8)
        return Labeled(pixels, np.array([[10, 20, 60, 80]], np.float32), np.array([row]))

    recipe = recipe_of(Step(mixup=Mixup(p=1, alpha=50)))
    mixed = [compose(recipe, Source(plain_image, 2, FILL), 0, np.random.default_rng(seed)) for seed in range(12)]
    both = [one for one in mixed if one.labels.tolist() == [0, 1]]
    assert len(both) > 2
    for one in both:
        assert one.image.shape[1:] == (128, 128)  # that of the first; the second is half as high
        assert 60 < one.image[:, 30, 60].float().mean() < 140
        assert (one.image[:, 100] == 0).all()
        np.testing.assert_allclose(one.boxes[1], [6.4, 12.8, 38.4, 51.2], atol=0.5)


def test_steps_end_at_their_fraction_of_the_training() -> None:
    recipe = recipe_of(Step(mosaic=Mosaic(p=1, until=0.9)))
    early, late, last = (compose(recipe, SOURCE, 0, np.random.default_rng(1), at) for at in (0.89, 0.9, 0.95))
    assert not torch.equal(early.image, late.image)
    assert torch.equal(late.image, last.image)
    assert len(late.boxes) == 6


ALL_STEPS = """
- mosaic: {p: 0.5, until: 0.9}
- affine: {rotate: 10, scale: [0.5, 1.5], translate: 0.1, shear: 2}
- crop_by_overlap: {p: 0.5}
- mixup: {p: 0.3}
- copy_paste: {p: 0.3}
- flip: {horizontal: 0.5, vertical: 0.1, rotate90: 0.1}
- color: {brightness: 0.3, contrast: 0.3, saturation: 0.4, hue: 0.02, grayscale: 0.01, blur: 0.01}
"""


@pytest.fixture
def split(tmp_path: Path) -> Index:
    records = []
    for row in range(6):
        image, boxes, labels = drawn_image(row)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{row}.png")
        none, areas = np.zeros(6, np.bool_), np.zeros(6, np.float32)
        records.append(Record(f"{row}.png", str(row), image.shape[1], image.shape[2], boxes, labels, none, none, areas))
    return pack(records)


def test_samples_depend_on_seed_epoch_and_row_alone(
    split: Index, tmp_path: Path, params_of: Callable[..., Recipe]
) -> None:
    """Not on workers, the cache, the order or the samples before, so that a resumed training sees the same."""
    recipe = params_of(ALL_STEPS)
    sets = [DetectionDataset(split, tmp_path, recipe, train=True, seed=4, cache_mb=mb) for mb in (0, 10)]
    keys = [(epoch, row) for epoch in range(8) for row in range(6)]
    ahead = {key: sets[0][key] for key in keys}
    back = {key: sets[1][key] for key in reversed(keys)}
    for key in keys:
        assert torch.equal(ahead[key].image, back[key].image)
        np.testing.assert_array_equal(ahead[key].boxes, back[key].boxes)
        assert ahead[key].image.dtype == torch.uint8
        assert len(ahead[key].boxes) == len(ahead[key].labels)
    assert sum(not torch.equal(ahead[0, row].image, ahead[1, row].image) for row in range(6)) == 6
    here, workers = (Loader(DetectionDataset(split, tmp_path, recipe, train=True, seed=4), 3, n, True) for n in (0, 1))
    for a, b in zip(here.epoch(2, start=1), workers.epoch(2, start=1), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets.boxes, b.targets.boxes)


@pytest.fixture
def params_of(tmp_path: Path) -> Callable[..., Recipe]:
    """Recipe of retinanet_resnet18 from a params.yaml with some steps in the preset."""

    def loaded(steps: str) -> Recipe:
        raw = read_yaml("params.yaml")
        raw["presets"]["small"]["augmentation"] = yaml.safe_load(steps)
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return load(file, model="retinanet_resnet18", dataset="shapes").recipe

    return loaded


def test_a_list_in_params_is_read_and_kept(params_of: Callable[..., Recipe]) -> None:
    steps = params_of(ALL_STEPS).steps
    assert [step.name for step in steps] == [
        "mosaic", "affine", "crop_by_overlap", "mixup", "copy_paste", "flip", "color",
    ]  # fmt: skip
    assert steps[0].mosaic == Mosaic(p=0.5, until=0.9)
    assert params_of("[]").steps == ()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[{mosiac: {}}]", "did you mean 'mosaic'?"),
        ("[{flip: {horizontal: 2}}]", "at most 1"),
        ("[{flip: {}}, {flip: {}}]", "flip is listed twice"),
        ("[{flip: {}, affine: {}}]", "an entry per step"),
        ("[{flip: }]", "has no settings"),
        ("[flip]", "must be a mapping"),
        ("[{affine: {scale: [2, 1]}}]", "smallest and the largest"),
        ("[{photometric_distort: {clip: false}}, {color: {}}]", "clip: false"),
    ],
)
def test_invalid_lists_are_one_line(params_of: Callable[..., Recipe], steps: str, message: str) -> None:
    with pytest.raises(ParamsError) as error:
        params_of(steps)
    assert message in str(error.value)
    assert "presets.small.augmentation" in str(error.value)


def test_a_detector_file_keeps_the_list(params_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = params_of(ALL_STEPS)
    detector = build_detector(recipe, 2, None)
    save_detector(tmp_path / "detector.pt", detector.state_dict(), recipe, ("a", "b"), "retinanet_resnet18")
    assert load_detector(tmp_path / "detector.pt").recipe == recipe
