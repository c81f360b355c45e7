from itertools import pairwise

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from detection.ops.anchors import AnchorGrid, DefaultBoxes, Size

RATIOS = (0.5, 1.0, 2.0)
FASTER = [(32,), (64,), (128,), (256,), (512,)]
RETINA = [tuple(int(side * 2**third) for third in (0, 1 / 3, 2 / 3)) for side in (32, 64, 128, 256, 512)]
FCOS = [(8,), (16,), (32,), (64,), (128,)]
MOBILENET = [(32, 64, 128, 256, 512)] * 3
SSD300 = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
SSD300_RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
SSD300_STEPS = [8, 16, 32, 64, 100, 300]
SSD300_MAPS = [(side, side) for side in (38, 19, 10, 5, 3, 1)]


def maps_of(picture: Size, first: int, last: int) -> list[Size]:
    """Sizes of levels first..last, each half the one before, rounded up."""
    return [(-(-picture[0] // 2**level), -(-picture[1] // 2**level)) for level in range(first, last + 1)]


def theirs(generator: torch.nn.Module, maps: list[Size], picture: Size) -> torch.Tensor:
    images = ImageList(torch.zeros(1, 3, *picture), [picture])
    boxes: torch.Tensor = generator(images, [torch.zeros(1, 1, *size) for size in maps])[0]
    return boxes


@pytest.mark.parametrize("picture", [(800, 1088), (128, 96), (320, 448)])
@pytest.mark.parametrize(
    ("sizes", "levels", "ratios"),
    [(FASTER, (2, 6), RATIOS), (RETINA, (3, 7), RATIOS), (FCOS, (3, 7), (1.0,)), (MOBILENET, (4, 6), RATIOS)],
)
def test_anchors_equal_torchvisions(
    sizes: list[tuple[int, ...]], levels: Size, ratios: tuple[float, ...], picture: Size
) -> None:
    maps = maps_of(picture, *levels)
    ours = AnchorGrid(sizes, ratios)
    expected = theirs(AnchorGenerator(tuple(sizes), (ratios,) * len(sizes)), maps, picture)
    assert torch.equal(ours(maps, picture), expected)
    assert sum(ours.counts(maps)) == len(expected)


@pytest.mark.parametrize(
    ("scales", "ratios", "steps", "maps", "picture"),
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
    scales: list[float],
    ratios: list[list[int]],
    steps: list[int] | None,
    maps: list[Size],
    picture: Size,
) -> None:
    expected = theirs(DefaultBoxGenerator(ratios, scales=scales, steps=steps), maps, picture)
    assert torch.equal(DefaultBoxes(scales, ratios, steps=steps)(maps, picture), expected)


def test_published_counts() -> None:
    c4 = [(128, 256, 512)]
    at_257 = [(28,), (56,), (112,), (224,)]
    counts = {
        "SSD300": len(DefaultBoxes(SSD300, SSD300_RATIOS, steps=SSD300_STEPS)(SSD300_MAPS, (300, 300))),
        "600 px, ResNet-50-C4": len(AnchorGrid(c4, RATIOS, strides=[16])([(38, 38)], (600, 600))),
        "600 px, VGG16": len(AnchorGrid(c4, RATIOS, strides=[16])([(37, 37)], (600, 600))),
        "257 px": len(AnchorGrid(at_257, RATIOS, strides=[8, 16, 32, 64])(maps_257(), (257, 257))),
        "Faster R-CNN": len(AnchorGrid(FASTER, RATIOS)(maps_of((800, 1088), 2, 6), (800, 1088))),
        "RetinaNet": len(AnchorGrid(RETINA, RATIOS)(maps_of((800, 1088), 3, 7), (800, 1088))),
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
    """28x28, 19.8x39.6 and 39.6x19.8 at corner-aligned centres: the last one is the picture's last pixel."""
    grid = AnchorGrid([(28,), (56,), (112,), (224,)], (1.0, 2.0, 0.5), strides=[8, 16, 32, 64], rounded=False)
    boxes = grid(maps_257(), (257, 257))
    sides = boxes[:3, 2:] - boxes[:3, :2]
    torch.testing.assert_close(sides, torch.tensor([[28, 28], [19.799, 39.598], [39.598, 19.799]]))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for level in torch.split(centres, grid.counts(maps_257())):
        torch.testing.assert_close(level[0], torch.tensor([0.0, 0.0]), atol=1e-4, rtol=0)
        torch.testing.assert_close(level[-1], torch.tensor([256.0, 256.0]), atol=1e-4, rtol=0)


def test_the_middle_of_cells_without_rounding() -> None:
    """The anchor that Chen Yun's Faster R-CNN begins with: base 16, scale 8, ratio 0.5, centre (8, 8)."""
    boxes = AnchorGrid([(128,)], (0.5,), strides=[16], offset=0.5, rounded=False)([(1, 2)], (16, 32))
    expected = torch.tensor([[-82.51, -37.255, 98.51, 53.255], [-66.51, -37.255, 114.51, 53.255]])
    torch.testing.assert_close(boxes, expected, atol=1e-2, rtol=0)


def test_clipped_centres_change_114_of_ssd300s_priors() -> None:
    voc = [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05]
    plain, clipped = (
        DefaultBoxes(voc, SSD300_RATIOS, steps=SSD300_STEPS, clip_centers=clip)(SSD300_MAPS, (300, 300))
        for clip in (False, True)
    )
    differ = (plain != clipped).any(1)
    assert int(differ.sum()) == 114
    assert (plain - clipped).abs().max() <= 4 + 1e-3
    assert ((clipped[:, :2] + clipped[:, 2:]) / 2 <= 300).all()


def test_a_grid_is_made_once_and_can_be_trained_on_after_inference() -> None:
    grid = AnchorGrid(FASTER, RATIOS)
    maps = maps_of((64, 64), 2, 6)
    with torch.inference_mode():
        first = grid(maps, (64, 64))
    assert grid(maps, (64, 64)) is first
    assert grid(maps, (64, 96)) is not first
    assert grid(maps, (64, 64), dtype=torch.float64).dtype == torch.float64
    scale = torch.ones(4, requires_grad=True)
    (first * scale).square().sum().backward()
    for side in range(1, 200):
        grid(maps, (64, 64 + side))
    assert len(grid._made) <= 64


def test_levels_follow_one_another() -> None:
    grid = AnchorGrid(FASTER, RATIOS)
    maps = maps_of((128, 128), 2, 6)
    levels = torch.split(grid(maps, (128, 128)), grid.counts(maps))
    areas = [((level[0, 2] - level[0, 0]) * (level[0, 3] - level[0, 1])).item() for level in levels]
    assert all(large > 3 * small for small, large in pairwise(areas))
