"""Settings of the five published systems, compared with those of our recipes.

    python -m tests.models.published               # the whole table
    python -m tests.models.published ssd300

`published.yaml` is typed from the originals. Our side is a field of the loaded recipe, or is measured on the
detector built from it. `test_published_settings.py` compares the two.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detection.models import faster_rcnn, ssd
from detection.models.build import build_detector
from detection.models.faster_rcnn import RPN
from detection.models.heads import CLASS_PRIOR
from detection.models.retinanet import RetinaNet
from detection.ops.anchors import AnchorGenerator, Size
from detection.ops.losses import FOCAL_ALPHA
from detection.params import FasterRCNNRecipe, Recipe, RetinaNetRecipe, SSDRecipe, load
from detection.params.reader import read_yaml
from detection.training.common.optim import learning_rate_factor

MAPS = {"ssd": (38, 19, 10, 5, 3, 1), "ssdlite": (20, 10, 5, 3, 2, 1)}
MAPS_257: list[Size] = [(side, side) for side in (33, 17, 9, 5)]
STEPS_PER_EPOCH = 2000  # any number above the warmup iterations


@dataclass(frozen=True)
class Setting:
    """One published setting."""

    model: str
    dataset: str
    name: str
    """Dotted field of the recipe, or a key of `MEASURED`."""
    published: Any
    ours: Any
    """Our value: the published one, unless `why` gives the reason for a difference."""
    why: str = ""


def settings() -> Iterator[Setting]:
    """All published settings, by recipe."""
    for key, figures in read_yaml(Path(__file__).with_suffix(".yaml"))["recipes"].items():
        model, dataset = key.split()
        for name, figure in figures.items():
            if name != "differs":
                yield Setting(model, dataset, name, figure, figure)
        for name, (published, ours, why) in figures.get("differs", {}).items():
            yield Setting(model, dataset, name, published, ours, why)


def actual(setting: Setting) -> Any:
    """Value of a setting in our recipe or in the detector built from it; sequences are lists."""
    recipe = load(model=setting.model, dataset=setting.dataset).recipe
    if setting.name == "rates":
        return rates(recipe, setting.published)
    if setting.name in MEASURED:
        return MEASURED[setting.name](recipe)
    value: Any = reduce(_part, setting.name.split("."), recipe)
    return _lists(value)


def _part(whole: Any, name: str) -> Any:
    return whole[int(name)] if name.isdigit() else getattr(whole, name)


def _lists(value: Any) -> Any:
    return [_lists(one) for one in value] if isinstance(value, tuple) else value


def rates(recipe: Recipe, moments: dict[float, float]) -> dict[float, float]:
    """Learning rates at given moments, in the recipe's own unit, to five digits."""
    in_epochs = recipe.epochs is not None
    unit, length = (STEPS_PER_EPOCH, recipe.epochs) if in_epochs else (1, recipe.iterations)
    assert length is not None
    factors = {
        moment: learning_rate_factor(recipe.schedule, round(moment * unit), length * unit, STEPS_PER_EPOCH, in_epochs)
        for moment in moments
    }
    return {moment: float(f"{recipe.optimizer.lr * factor:.5g}") for moment, factor in factors.items()}


@cache
def _without_weights(recipe: Recipe, classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_detector(recipe, classes, None)


def _count(recipe: Recipe, classes: int, frozen: bool = False) -> int:
    parameters = _without_weights(recipe, classes).parameters()
    return sum(p.numel() for p in parameters if not (frozen and p.requires_grad))


def _coco_parameters(recipe: Recipe) -> int:
    """Parameters with the number of COCO classes in torchvision: 91, or 90 and the background."""
    return _count(recipe, 91 if recipe.architecture in ("retinanet", "fcos") else 90)


def _grid(recipe: Recipe) -> AnchorGenerator:
    if isinstance(recipe, FasterRCNNRecipe):
        return RPN(recipe, 8).anchors
    assert isinstance(recipe, RetinaNetRecipe)
    return RetinaNet(recipe, 1, nn.Identity()).anchors


def _boxes_600(recipe: Recipe) -> int:
    cells = 38 if recipe.backbone.startswith("resnet") else 37  # ResNet rounds up, VGG16 down
    return len(_grid(recipe)([(cells, cells)], (600, 600)))


def _boxes_800x1088(recipe: Recipe) -> int:
    first = 2 if recipe.architecture == "fasterrcnn" else 3
    maps = [(-(-800 // 2**level), -(-1088 // 2**level)) for level in range(first, first + 5)]
    return len(_grid(recipe)(maps, (800, 1088)))


def _anchor_sides(recipe: Recipe) -> list[float]:
    """Width and height of the anchors at the finest level's first location."""
    boxes = _grid(recipe)(MAPS_257, (257, 257))[:3]
    return _hundredths((boxes[:, 2:] - boxes[:, :2]).flatten())


def _priors(recipe: Recipe) -> tuple[Tensor, ...]:
    """Default boxes per feature map, at the recipe's image size."""
    assert isinstance(recipe, SSDRecipe)
    maps = [(side, side) for side in MAPS[recipe.architecture]]

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parameter = nn.Parameter(torch.zeros(1))  # torchvision looks up its device

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {str(i): torch.zeros(1, 8, *size) for i, size in enumerate(maps)}

    grid = ssd.SSD(recipe, 1, Maps()).anchors
    return torch.split(grid(maps, (recipe.image_size, recipe.image_size)), grid.counts(maps))


def _prior_sides(recipe: Recipe) -> list[float]:
    """Sides of the first square box of each map, and the size that gives the last map's second square."""
    each = _priors(recipe)
    sides = [float(boxes[0, 2] - boxes[0, 0]) for boxes in each]
    second = float(each[-1][1, 2] - each[-1][1, 0])
    return [round(side, 2) for side in (*sides, second**2 / sides[-1])]


def _hundredths(values: Tensor) -> list[float]:
    return [round(float(value), 2) for value in values]


MEASURED: dict[str, Callable[[Any], Any]] = {
    "parameters": lambda recipe: _count(recipe, 20),
    "coco_parameters": _coco_parameters,
    "frozen_parameters": lambda recipe: _count(recipe, 20, frozen=True),
    "boxes_600": _boxes_600,
    "boxes_600x800": lambda recipe: len(_grid(recipe)([(37, 50)], (600, 800))),
    "boxes_800x1088": _boxes_800x1088,
    "boxes_257": lambda recipe: len(_grid(recipe)(MAPS_257, (257, 257))),
    "first_anchor": lambda recipe: _hundredths(_grid(recipe)([(37, 50)], (600, 800))[0]),
    "anchor_sides": _anchor_sides,
    "priors": lambda recipe: sum(map(len, _priors(recipe))),
    "prior_sides": _prior_sides,
    "box_weights": lambda recipe: list(ssd.WEIGHTS if isinstance(recipe, SSDRecipe) else faster_rcnn.ROI_WEIGHTS),
    "rpn_sigma": lambda recipe: round(recipe.rpn.smooth_l1_beta**-0.5, 6),
    "roi_sigma": lambda recipe: round(recipe.roi.smooth_l1_beta**-0.5, 6),
    "focal": lambda recipe: [FOCAL_ALPHA, CLASS_PRIOR],
}


def main(names: list[str]) -> None:
    """Print one row per setting."""
    rows = [one for one in settings() if not names or one.model in names]
    lines = [f"{'recipe':24} {'dataset':9} {'setting':33} {'published':48} ours"]
    for one in rows:
        ours = actual(one)
        text = "the same" if ours == one.published else f"{ours}   ({one.why or 'WRONG'})"
        lines.append(f"{one.model:24} {one.dataset:9} {one.name:33} {one.published!s:48} {text}")
    same = sum(line.endswith("the same") for line in lines)
    lines.append(f"{same} of {len(rows)} settings are the published ones; {len(rows) - same} differ")
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
