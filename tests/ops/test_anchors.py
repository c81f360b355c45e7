from itertools import pairwise

import pytest
import torch
from torchvision.models.detection import anchor_utils
from torchvision.models.detection.image_list import ImageList

from detection.ops.anchors import MAX_CACHED_SIZES, DefaultBoxGenerator, PyramidAnchorGenerator, Size

RATIOS = (0.5, 1.0, 2.0)
FASTER = [(32,), (64,), (128,), (256,), (512,)]
RETINA = [tuple(int(side * 2**third) for third in (0, 1 / 3, 2 / 3)) for side in (32, 64, 128, 256, 512)]
FCOS = [(8,), (16,), (32,), (64,), (128,)]
MOBILENET = [(32, 64, 128, 256, 512)] * 3
SSD300 = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
SSD300_RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
SSD300_STEPS = [8, 16, 32, 64, 100, 300]
SSD300_MAPS = [(side, side) for side in (38, 19, 10, 5, 3, 1)]


def maps_of(image_size: Size, first: int, last: int) -> list[Size]:
    """Sizes of levels first..last, each half the one before, rounded up."""
    height, width = image_size
    return [(-(-height // 2**level), -(-width // 2**level)) for level in range(first, last + 1)]


def theirs(generator: torch.nn.Module, maps: list[Size], image_size: Size) -> torch.Tensor:
    images = ImageList(torch.zeros(1, 3, *image_size), [image_size])
    boxes: torch.Tensor = generator(images, [torch.zeros(1, 1, *size) for size in maps])[0]
    return boxes


@pytest.mark.parametrize("image_size", [(800, 1088), (128, 96), (320, 448)])
@pytest.mark.parametrize(
    ("sizes", "levels", "ratios"),
    [(FASTER, (2, 6), RATIOS), (RETINA, (3, 7), RATIOS), (FCOS, (3, 7), (1.0,)), (MOBILENET, (4, 6), RATIOS)],
)
def test_anchors_equal_torchvisions(
    sizes: list[tuple[int, ...]], levels: Size, ratios: tuple[float, ...], image_size: Size
) -> None:
    maps = maps_of(image_size, *levels)
    ours = PyramidAnchorGenerator(sizes, ratios)
    expected = theirs(anchor_utils.AnchorGenerator(tuple(sizes), (ratios,) * len(sizes)), maps, image_size)
    assert torch.equal(ours(maps, image_size), expected)
    assert sum(ours.counts(maps)) == len(expected)


@pytest.mark.parametrize(
    ("scales", "ratios", "steps", "maps", "image_size"),
    [
        (SSD300, SSD300_RATIOS, SSD300_STEPS, SSD300_MAPS, (300, 300)),
        (
            [0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0],
            [[2, 3]] * 6,
            None,
            [(side, side) for side in (20, 10, 5, 3, 2, 1)],
            (320, 320),
        ),
    ],
)
def test_default_boxes_equal_torchvisions(
    scales: list[float], ratios: list[list[int]], steps: list[int] | None, maps: list[Size], image_size: Size
) -> None:
    expected = theirs(anchor_utils.DefaultBoxGenerator(ratios, scales=scales, steps=steps), maps, image_size)
    assert torch.equal(DefaultBoxGenerator(scales, ratios, steps=steps)(maps, image_size), expected)


def test_published_counts() -> None:
    c4 = [(128, 256, 512)]
    at_257 = [(28,), (56,), (112,), (224,)]
    counts = {
        "SSD300": len(DefaultBoxGenerator(SSD300, SSD300_RATIOS, steps=SSD300_STEPS)(SSD300_MAPS, (300, 300))),
        "600 px, ResNet-50-C4": len(PyramidAnchorGenerator(c4, RATIOS, strides=[16])([(38, 38)], (600, 600))),
        "600 px, VGG16": len(PyramidAnchorGenerator(c4, RATIOS, strides=[16])([(37, 37)], (600, 600))),
        "257 px": len(PyramidAnchorGenerator(at_257, RATIOS, strides=[8, 16, 32, 64])(maps_257(), (257, 257))),
        "Faster R-CNN": len(PyramidAnchorGenerator(FASTER, RATIOS)(maps_of((800, 1088), 2, 6), (800, 1088))),
        "RetinaNet": len(PyramidAnchorGenerator(RETINA, RATIOS)(maps_of((800, 1088), 3, 7), (800, 1088))),
    }
    assert counts == {
        "SSD300": 8_732,
        "600 px, ResNet-50-C4": 12_996,
        "600 px, VGG16": 12_321,
        "257 px": 4_452,
        "Faster R-CNN": 217_413,
        "RetinaNet": 163_206,
    }


def maps_257() -> list[Size]:
    return [(side, side) for side in (33, 17, 9, 5)]


def test_anchors_of_the_257_pixel_system() -> None:
    """28x28, 19.8x39.6 and 39.6x19.8 at corner-aligned centers; the last center is the image's last pixel."""
    generator = PyramidAnchorGenerator(
        [(28,), (56,), (112,), (224,)], (1.0, 2.0, 0.5), strides=[8, 16, 32, 64], round=False
    )
    boxes = generator(maps_257(), (257, 257))
    sides = boxes[:3, 2:] - boxes[:3, :2]
    torch.testing.assert_close(sides, torch.tensor([[28, 28], [19.799, 39.598], [39.598, 19.799]]))
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    for level in torch.split(centers, generator.counts(maps_257())):
        torch.testing.assert_close(level[0], torch.tensor([0.0, 0.0]), atol=1e-4, rtol=0)
        torch.testing.assert_close(level[-1], torch.tensor([256.0, 256.0]), atol=1e-4, rtol=0)


def test_centers_in_the_middle_of_cells_without_rounding() -> None:
    """The first anchor of Chen Yun's Faster R-CNN: base 16, scale 8, ratio 0.5, center (8, 8)."""
    boxes = PyramidAnchorGenerator([(128,)], (0.5,), strides=[16], offset=0.5, round=False)([(1, 2)], (16, 32))
    expected = torch.tensor([[-82.51, -37.255, 98.51, 53.255], [-66.51, -37.255, 114.51, 53.255]])
    torch.testing.assert_close(boxes, expected, atol=1e-2, rtol=0)


def test_clipped_centers_change_114_of_ssd300s_priors() -> None:
    voc = [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05]
    plain, clipped = (
        DefaultBoxGenerator(voc, SSD300_RATIOS, steps=SSD300_STEPS, clip_centers=clip)(SSD300_MAPS, (300, 300))
        for clip in (False, True)
    )
    differ = (plain != clipped).any(1)
    assert int(differ.sum()) == 114
    assert (plain - clipped).abs().max() <= 4 + 1e-3
    assert ((clipped[:, :2] + clipped[:, 2:]) / 2 <= 300).all()


def test_anchors_are_cached_and_usable_in_training_after_inference() -> None:
    generator = PyramidAnchorGenerator(FASTER, RATIOS)
    maps = maps_of((64, 64), 2, 6)
    with torch.inference_mode():
        first = generator(maps, (64, 64))
    assert generator(maps, (64, 64)) is first
    assert generator(maps, (64, 96)) is not first
    scale = torch.ones(4, requires_grad=True)
    (first * scale).square().sum().backward()
    for side in range(1, 200):
        generator(maps, (64, 64 + side))
    assert len(generator._cache) <= MAX_CACHED_SIZES


def test_levels_are_in_order() -> None:
    generator = PyramidAnchorGenerator(FASTER, RATIOS)
    maps = maps_of((128, 128), 2, 6)
    levels = torch.split(generator(maps, (128, 128)), generator.counts(maps))
    areas = [((level[0, 2] - level[0, 0]) * (level[0, 3] - level[0, 1])).item() for level in levels]
    assert all(large > 3 * small for small, large in pairwise(areas))
