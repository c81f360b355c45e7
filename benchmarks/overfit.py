"""Overfitting test of every recipe: eight generated images, until AP50 reaches 0.9.

    python -m benchmarks.overfit                       # all recipes of params.yaml
    python -m benchmarks.overfit retinanet ssd300
    python -m benchmarks.overfit --published-backbone  # instead of the smallest backbone of the family

Each recipe keeps its assignment, losses, sampling and postprocessing at a reduced size: 128 pixels unless its
size is fixed (256 where the finest feature map has a stride of 32), narrow FPNs, the smallest backbone of the
family, and the anchors of its `overrides.shapes`. Random weights, no augmentation, default precision, AdamW.
All recipes share one learning rate but VGG16's, whose thirteen layers without normalization hardly learn at
it: the detector is tested, not its schedule. Scored with COCO's protocol on the same eight images.
"""

import argparse
import os
import tempfile
import time
from itertools import chain, count
from typing import Any

import torch

from detection.data.loading.loader import DetectionDataset, Loader
from detection.data.sources.dataset import RawDataset, read
from detection.device import autocast, pick_precision
from detection.evaluation.protocol import coco_metrics
from detection.inference import run_detector
from detection.models.build import build_detector, without_weights
from detection.params import Optimizer, Recipe, ShapesDataset, load
from detection.params.reader import read_yaml
from detection.training.common.optim import make_optimizer, set_learning_rate

CPU = torch.device("cpu")
IMAGES, SIDE = 8, 128
TARGET_AP50 = 0.9
STEPS_PER_EVALUATION = 25
WARMUP_STEPS = 10
LEARNING_RATE, VGG_LEARNING_RATE = 1e-3, 2e-4
SMALLEST = {"resnet50": "resnet18", "resnet101": "resnet18", "mobilenet_v3_large": "mobilenet_v3_small"}


def reduced(name: str, keep_backbone: bool) -> Recipe:
    """Return a recipe at the size of this benchmark."""
    recipe = load(model=name, dataset="shapes").recipe
    # VGG16 has no BatchNorm: small batches save minutes
    batch = 2 if recipe.backbone == "vgg16" else IMAGES
    changes: dict[str, Any] = {"augmentation": "none", "batch_size": batch, "train_difficult": True}
    if not keep_backbone:
        changes["backbone"] = SMALLEST.get(recipe.backbone, recipe.backbone)
        if hasattr(recipe, "fpn_channels"):
            changes["fpn_channels"] = min(recipe.fpn_channels, 64)
        if hasattr(recipe, "roi"):
            changes["roi.hidden_channels"] = min(recipe.roi.hidden_channels, 256)
    if not recipe.fixed_size:
        coarse = getattr(recipe, "fpn_levels", ())[:1] == (4,)  # MobileNet: stride 32
        changes |= {"image_size": 2 * SIDE if coarse else SIDE, "max_size": None}
    return without_weights(recipe.update(changes))


def overfit(recipe: Recipe, data: RawDataset, limit: int) -> tuple[float, int]:
    """Train until the target AP50; return the best AP50 and its step."""
    torch.manual_seed(0)
    index = data.splits["train"]
    detector: Any = build_detector(recipe, len(data.classes), None)
    detector.to(memory_format=torch.channels_last)
    learning_rate = VGG_LEARNING_RATE if recipe.backbone == "vgg16" else LEARNING_RATE
    optimizer = make_optimizer(detector, Optimizer(name="adamw", lr=learning_rate, weight_decay=0.0))
    loader = Loader(DetectionDataset(index, data.root, recipe, train=True), recipe.batch_size, 0, True)
    best, best_step = 0.0, 0
    for step, batch in enumerate(chain.from_iterable(map(loader.epoch, count())), start=1):
        set_learning_rate(optimizer, min(step / WARMUP_STEPS, 1.0))
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with autocast(CPU, pick_precision("auto", CPU)):
            losses = detector.train()(images, batch.targets)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % STEPS_PER_EVALUATION == 0:
            results = run_detector(detector, index, data.root, recipe, batch_size=IMAGES, device="cpu")
            score = coco_metrics.score(index, results, data.classes).stats["AP50"]
            if score > best:
                best, best_step = score, step
            if best >= TARGET_AP50 or step >= limit:
                return best, best_step
    raise AssertionError


def main() -> None:
    """Print one row per recipe and the number of recipes that reach the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="recipes of params.yaml")
    parser.add_argument("--steps", type=int, default=600, help="maximum steps per recipe")
    parser.add_argument("--published-backbone", action="store_true", help="keep the backbones")
    options = parser.parse_args()
    names = options.names or list(read_yaml("params.yaml")["models"])
    reached = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DATA_ROOT"] = folder
        spec = ShapesDataset(format="shapes", path="eight", image_size=SIDE, train=IMAGES, val=1, test=1)
        data = read("eight", spec)
        print(f"{IMAGES} images, {len(data.splits['train'].boxes)} objects, {len(data.classes)} classes")
        print(f"{'recipe':26} {'backbone':20} {'pixels':>6} {'AP50':>6} {'steps':>6} {'CPU s':>7}")
        for name in names:
            recipe = reduced(name, options.published_backbone)
            started = time.process_time()
            score, step = overfit(recipe, data, options.steps)
            reached += score >= TARGET_AP50
            print(
                f"{name:26} {recipe.backbone:20} {recipe.image_size:6} {score:6.3f} {step:6} "
                f"{time.process_time() - started:7.0f}",
                flush=True,
            )
    print(f"{reached} of {len(names)} recipes reach AP50 {TARGET_AP50}")


if __name__ == "__main__":
    main()
