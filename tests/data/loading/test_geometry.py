from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detection.data.loading.geometry import Geometry, result_size
from detection.data.loading.loader import eval_sample
from detection.params import load, schema

SIZES = st.integers(20, 90)
MODELS = tuple(schema.read(Path("params.yaml").read_text())["models"])


def image_with(box: tuple[int, int, int, int], height: int, width: int) -> torch.Tensor:
    """A white rectangle on black."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, box[1] : box[3], box[0] : box[2]] = 255
    return image


def bright_box(image: torch.Tensor) -> np.ndarray:
    """Bounding box of the bright pixels."""
    rows, columns = torch.where(image.float().mean(0) > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


@settings(deadline=None, max_examples=150)
@given(SIZES, SIZES, SIZES, SIZES, st.booleans(), st.integers(0, 10_000))
def test_boxes_follow_the_pixels(h: int, w: int, out_h: int, out_w: int, flip: bool, seed: int) -> None:
    """Windows inside and beyond the image, any output size, flipped or not."""
    rng = np.random.default_rng(seed)
    x1, y1 = int(rng.integers(0, w - 12)), int(rng.integers(0, h - 12))
    box = (x1, y1, int(rng.integers(x1 + 10, w)), int(rng.integers(y1 + 10, h)))
    left, top, right, bottom = (int(v) for v in rng.integers(0, 10, 4))
    window = (
        (-left, -top, w + right, h + bottom)
        if seed % 2
        else (min(left, x1), min(top, y1), max(w - right, box[2]), max(h - bottom, box[3]))
    )
    geometry = Geometry(window, out_h, out_w, flip)
    result = geometry.image(image_with(box, h, w), (0, 0, 0))
    assert result.shape == (3, out_h, out_w)
    (moved,) = geometry.boxes(np.array([box], np.float32))
    np.testing.assert_allclose(bright_box(result), moved, atol=1.01)


@given(SIZES, SIZES, st.integers(0, 10_000))
def test_flipping_twice_is_the_identity(h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.random((5, 2, 2)) * [w, h], axis=1).reshape(5, 4).astype(np.float32)
    flip = Geometry((0, 0, w, h), h, w, flip=True)
    np.testing.assert_allclose(flip.boxes(flip.boxes(boxes)), boxes, atol=1e-4)
    image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
    assert torch.equal(flip.image(flip.image(image, (0, 0, 0)), (0, 0, 0)), image)


def test_padding_has_the_fill_color() -> None:
    result = Geometry((-10, 0, 10, 10), 10, 20).image(torch.full((3, 10, 10), 255, dtype=torch.uint8), (1, 2, 3))
    assert result[:, 0, 0].tolist() == [1, 2, 3]
    assert result[:, 0, 10].tolist() == [255, 255, 255]


def test_no_boxes() -> None:
    assert Geometry((0, 0, 10, 10), 20, 20, True).boxes(np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((480, 640, "keep", 800, 1333), (800, 1066)),  # torchvision's rule: short side, unless
        ((400, 1000, "keep", 800, 1333), (533, 1333)),  # the long side exceeds its limit
        ((1000, 500, "keep", 600, 1000), (1000, 500)),
        ((480, 640, "stretch", 300, None), (300, 300)),
        ((10, 3000, "keep", 800, 1333), (4, 1333)),
    ],
)
def test_result_sizes(given: tuple[int, int, str, int, int | None], expected: tuple[int, int]) -> None:
    assert result_size(*given) == expected


TORCHVISIONS = [(800, 1333), (320, 640), (600, 1000)]


def torchvision_resized(image: torch.Tensor, side: int, longest: int) -> torch.Tensor:
    transform = GeneralizedRCNNTransform(side, longest, [0.0] * 3, [1.0] * 3)
    transform.eval()
    resized: torch.Tensor = transform.resize(image, None)[0]
    return resized


@settings(deadline=None, max_examples=400)
@given(st.integers(50, 1000), st.integers(50, 1000), st.sampled_from(TORCHVISIONS))
def test_sizes_are_torchvisions(height: int, width: int, limits: tuple[int, int]) -> None:
    image = torch.empty(1, height, width)
    assert result_size(height, width, "keep", *limits) == tuple(torchvision_resized(image, *limits).shape[1:])


@pytest.mark.parametrize("limits", TORCHVISIONS)
def test_short_sides_are_torchvisions(limits: tuple[int, int]) -> None:
    """Every short side: some lose a pixel, as 800 / 54 * 54 in floating point."""
    short = 0
    for side in range(50, 1001):
        image = torch.empty(1, side, side)
        expected = tuple(torchvision_resized(image, *limits).shape[1:])
        assert result_size(side, side, "keep", *limits) == expected
        short += expected[0] < limits[0]
    assert short > 0


def test_pixels_are_torchvisions() -> None:
    """Up to the rounding to 8 bits, when an image shrinks too; with `antialias` they are others."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 480, 640), dtype=torch.uint8)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 0
    for model in ("fasterrcnn", "fasterrcnn_mobilenet_320"):
        recipe = load(model=model, dataset="coco2017").recipe
        ours = eval_sample(image, *none, recipe).image
        theirs = torchvision_resized(image.float(), recipe.image_size, recipe.max_size or 0)
        difference = (ours - theirs).abs()
        assert difference.max() < 1.02
        assert difference.mean() < 0.33
    smooth = eval_sample(image, *none, replace(recipe, antialias=True)).image
    assert (smooth - theirs).abs().mean() > 5


def test_recipes_resize_as_their_originals() -> None:
    """PIL smooths (`fasterrcnn_*_c4`, `retinanet_257`); torchvision, OpenCV and one call of scikit-image do not."""
    smoothed = {"fasterrcnn_resnet18", "retinanet_resnet18", "fasterrcnn_resnet50_c4", "fasterrcnn_vgg16_600"}
    for model in MODELS:
        published, small = (load(model=model, dataset=name).recipe for name in ("voc2007", "bccd"))
        assert published.antialias == (model in smoothed | {"retinanet_257"}), model
        assert published.size_rounding == ("nearest" if model == "fasterrcnn_vgg16" else "floor"), model
        assert small.antialias, model


def test_sizes_of_the_default_experiments_are_those_of_any_rounding() -> None:
    for model in ("fasterrcnn_resnet18", "retinanet_resnet18"):
        for dataset, size in (("shapes", (128, 128)), ("bccd", (480, 640))):
            recipe = load(model=model, dataset=dataset).recipe
            floor, nearest = (
                result_size(*size, recipe.resize, recipe.image_size, recipe.max_size, rounding)
                for rounding in ("floor", "nearest")
            )
            assert floor == nearest


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.integers(0, 10_000))
def test_the_flip_comes_last(h: int, w: int, out_h: int, out_w: int, seed: int) -> None:
    """Flipped pixels and boxes equal those of the plain geometry, flipped."""
    rng = np.random.default_rng(seed)
    left, top, right, bottom = (int(v) for v in rng.integers(-9, 10, 4))
    window = (left, top, w - right, h - bottom)
    plain, flipped = (Geometry(window, out_h, out_w, flip) for flip in (False, True))
    image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
    fill = (1, 2, 3)
    assert torch.equal(flipped.image(image, fill), plain.image(image, fill).flip(2))
    boxes = np.sort(rng.random((5, 2, 2)) * [w, h], axis=1).reshape(5, 4).astype(np.float32)
    a, b = plain.boxes(boxes), flipped.boxes(boxes)
    np.testing.assert_allclose(b[:, [2, 0]], out_w - a[:, [0, 2]], atol=1e-3)
    np.testing.assert_array_equal(b[:, [1, 3]], a[:, [1, 3]])


@pytest.mark.parametrize(("side", "seen_side"), [(20, 10), (80, 40), (200, 40)])
def test_colors_change_before_or_after_the_resize_and_never_on_the_padding(side: int, seen_side: int) -> None:
    """The image fills a quarter of the window: 40 pixels before the resize, half of the result after it."""
    seen = []

    def color(part: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(part.shape))
        return part + 100

    image = torch.full((3, 40, 40), 100, dtype=torch.uint8)
    result = Geometry((-40, 0, 40, 80), side, side, flip=True).image(image, (1, 2, 3), color)
    assert seen == [(3, seen_side, seen_side)]
    assert (result[:, : side // 2, : side // 2] == 200).all()
    assert (result[:, :, side // 2 :] == torch.tensor([1, 2, 3]).view(3, 1, 1)).all()
    assert (image == 100).all()
