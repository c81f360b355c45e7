"""What torchvision's own class reaches on the same pictures in a plain loop, in the time our pipeline took.

    python -m benchmarks.peer                      # after `dvc repro` or `dvc exp run`, on any dataset
    python -m benchmarks.peer --minutes 20         # another budget; may run beside our training
    python -m benchmarks.peer --published          # its builder on ResNet-50, whatever backbone ours has
    python -m benchmarks.peer --fitted             # our recipe's anchors, widths, samples, optimiser
    python -m benchmarks.peer --with-val           # the peer learns from val too, which it never looks at

Reads the finished experiment in `reports/` and `data/prepared`: the same pictures, size and batch, and as
many seconds of training as our pretraining and training took together. The peer is torchvision's detector of
the same family over the same backbone with its defaults (anchors too), from random weights, on a GPU where
there is one (or as `--device` says), bf16 autocast where the hardware has it, SGD with the references' rate
for this batch, flips, a cosine over the budget. With `--fitted` the two sides differ in what is no setting:
the code, and the crops that pretrain the backbone. Both are scored by COCO's protocol on test.
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import feature_pyramid_network

from detection.data.index import Index
from detection.data.loading.image_io import read_image
from detection.data.prepared import Prepared
from detection.device import autocast, pick_device, pick_precision
from detection.evaluation.protocol import coco_metrics
from detection.evaluation.protocol.results import SplitDetections
from detection.params import Optimizer
from detection.training.optim import make_optimizer

LEARNING_RATE = {"fasterrcnn": 0.02, "retinanet": 0.01, "fcos": 0.01, "ssd": 0.001, "ssdlite": 0.0125}
"""Of the references, at batch 16."""
BUILDERS = {
    "fasterrcnn": "fasterrcnn_resnet50_fpn",
    "retinanet": "retinanet_resnet50_fpn",
    "fcos": "fcos_resnet50_fpn",
    "ssd": "ssd300_vgg16",
    "ssdlite": "ssdlite320_mobilenet_v3_large",
}


def peer(recipe: dict[str, Any], classes: int, published: bool, fitted: bool = False) -> torch.nn.Module:
    """Torchvision's class for a recipe; label 0 is its background."""
    family = recipe["architecture"]
    size = {"min_size": recipe["image_size"], "max_size": recipe["max_size"] or recipe["image_size"] * 2}
    if fitted:
        if family not in ("fasterrcnn", "retinanet"):
            raise SystemExit(f"error: --fitted is for Faster R-CNN and RetinaNet, not for {family}")
        return fitted_peer(recipe, classes, size)
    if family in ("ssd", "ssdlite"):  # their picture size is their architecture's
        size = {}
    if published or size == {} or recipe["backbone"] == "resnet50" or family == "fcos":
        build = getattr(torchvision.models.detection, BUILDERS[family])
        model: torch.nn.Module = build(weights=None, weights_backbone=None, num_classes=classes + 1, **size)
        return model
    options: dict[str, Any] = {"norm_layer": torch.nn.BatchNorm2d, "trainable_layers": 5}
    if family == "retinanet":
        p6p7 = torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256)
        options |= {"returned_layers": [2, 3, 4], "extra_blocks": p6p7}
    body = resnet_fpn_backbone(backbone_name=recipe["backbone"], weights=None, **options)
    kind = {"fasterrcnn": FasterRCNN, "retinanet": RetinaNet}[family]
    return kind(body, classes + 1, **size)


def fitted_peer(recipe: dict[str, Any], classes: int, size: dict[str, int]) -> torch.nn.Module:
    """Torchvision's class with our recipe's settings, for two families on a ResNet's pyramid."""
    first = 3 if (one_stage := recipe["architecture"] == "retinanet") else 2
    stages = range(first - 1, 5)
    body = torchvision.models.get_model(recipe["backbone"], weights=None, zero_init_residual=True)  # as ours
    channels = [list(getattr(body, f"layer{i}").parameters())[-1].numel() for i in stages]
    width = recipe["fpn_channels"]
    above = feature_pyramid_network.LastLevelP6P7(width, width) if one_stage else None
    layers = {f"layer{i}": str(i) for i in stages}
    pyramid = BackboneWithFPN(body, layers, channels, width, above)
    sizes = recipe["anchors"]["sizes"]
    anchors = AnchorGenerator(sizes, (tuple(recipe["anchors"]["aspect_ratios"]),) * len(sizes))
    if one_stage:
        norm = partial(torch.nn.GroupNorm, 32) if recipe["head_norm"] == "group" else None
        head = RetinaNetHead(width, anchors.num_anchors_per_location()[0], classes + 1, norm_layer=norm)
        return RetinaNet(pyramid, classes + 1, anchor_generator=anchors, head=head, **size)
    pool = torchvision.ops.MultiScaleRoIAlign([str(i) for i in stages], 7, 2)
    hidden = recipe["roi"]["hidden_channels"]
    return FasterRCNN(
        pyramid,
        None,  # its predictor knows the number of classes
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=recipe["rpn"]["pre_nms_top_n"]["train"],
        rpn_post_nms_top_n_train=recipe["rpn"]["post_nms_top_n"]["train"],
        rpn_pre_nms_top_n_test=recipe["rpn"]["pre_nms_top_n"]["test"],
        rpn_post_nms_top_n_test=recipe["rpn"]["post_nms_top_n"]["test"],
        box_roi_pool=pool,
        box_head=TwoMLPHead(width * 49, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes + 1),
        box_batch_size_per_image=recipe["roi"]["batch_size_per_image"],
        **size,
    )


def pictures(index: Index, root: Path) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """The whole split in memory, so that the peer never waits for a decoder."""
    rows = []
    for i in range(len(index)):
        record = index[i]
        kept = ~record.difficult & ~record.crowd
        target = {"boxes": torch.tensor(record.boxes[kept]), "labels": torch.tensor(record.labels[kept]) + 1}
        rows.append((read_image(root / record.file, (record.height, record.width)), target))
    return rows


def train(
    model: torch.nn.Module, data: list[Any], optimizer: torch.optim.Optimizer, batch: int, seconds: float
) -> int:
    """A plain loop until the time is up; returns its steps."""
    place = next(model.parameters()).device
    precision = pick_precision("auto", place)
    parameters = [p for p in model.parameters() if p.requires_grad]
    full = [group["lr"] for group in optimizer.param_groups]
    batch = min(batch, len(data))
    rng, started, step = np.random.default_rng(0), time.monotonic(), 0
    model.train()
    while (spent := time.monotonic() - started) < seconds:
        order = rng.permutation(len(data))
        for first in range(0, len(order) - batch + 1, batch):
            spent = time.monotonic() - started
            factor = min(1, (step + 1) / 100) * (1 + math.cos(math.pi * min(spent / seconds, 1))) / 2
            for group, lr in zip(optimizer.param_groups, full, strict=True):
                group["lr"] = lr * factor
            images, targets = [], []
            for i in order[first : first + batch]:
                picture, target = data[i]
                image, boxes = picture.to(place).float() / 255, target["boxes"].to(place)
                if rng.random() < 0.5:
                    image, width = image.flip(2), picture.shape[2]
                    boxes = torch.stack(
                        [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1
                    )
                images.append(image)
                targets.append({"boxes": boxes, "labels": target["labels"].to(place)})
            with autocast(place, precision):
                loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            step += 1
            if spent >= seconds:
                break
    return step


def score(model: torch.nn.Module, index: Index, root: Path, classes: tuple[str, ...]) -> dict[str, float]:
    """COCO's numbers on a split."""
    model.eval()
    place, parts = next(model.parameters()).device, []
    with torch.inference_mode():
        for i in range(len(index)):
            record = index[i]
            picture = read_image(root / record.file, (record.height, record.width))
            found = model([picture.to(place).float() / 255])[0]
            boxes, scores, labels = (found[k].cpu().numpy() for k in ("boxes", "scores", "labels"))
            kept = labels > 0
            parts.append(SplitDetections.of_image(i, boxes[kept], scores[kept], labels[kept] - 1))
    return coco_metrics.score(index, SplitDetections.concat(parts), classes).stats


def main() -> None:
    """Train the peer, score it, and print both sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="budget of the peer (default: what ours took)")
    parser.add_argument("--published", action="store_true", help="torchvision's builder on its own backbone")
    parser.add_argument("--fitted", action="store_true", help="the settings of our recipe for torchvision")
    parser.add_argument("--with-val", action="store_true", help="train on train and val")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="of the peer")
    options = parser.parse_args()
    ran = json.loads(Path("reports/train/recipe.json").read_text())
    seconds = (options.minutes or 0) * 60 or sum(
        json.loads(Path(f"reports/{stage}/metrics.json").read_text()).get("seconds", 0)
        for stage in ("pretrain", "train")
    )
    scored = Path("reports/evaluation/metrics.json")
    under_way = not Path("reports/train/metrics.json").exists()  # the scores there are of another detector
    stale = scored.stat().st_mtime_ns if under_way and scored.exists() else None
    recipe, prepared = ran["recipe"], Prepared.load()
    torch.manual_seed(0)
    model = peer(recipe, len(prepared.classes), options.published, options.fitted)
    model = model.to(pick_device(options.device)).to(memory_format=torch.channels_last)
    splits = ("train", "val") if options.with_val else ("train",)
    data = [row for split in splits for row in pictures(prepared.index(split), prepared.root)]
    settings = Optimizer(lr=LEARNING_RATE[recipe["architecture"]] * recipe["batch_size"] / 16)
    if options.fitted:
        settings = Optimizer(**recipe["optimizer"])  # its rate is this batch size's
    steps = train(model, data, make_optimizer(model, settings), recipe["batch_size"], seconds)
    theirs = score(model, prepared.index("test"), prepared.root, prepared.classes)
    while not scored.exists() or scored.stat().st_mtime_ns == stale:
        time.sleep(5)
    ours = json.loads(scored.read_text())
    print(
        f"{ran['model']} on {ran['dataset']}, {seconds:.0f} s of training, {torch.get_num_threads()} threads"
    )
    print(f"ours         AP {ours['AP']:.3f}  AP50 {ours['AP50']:.3f}")
    print(f"torchvision  AP {theirs['AP']:.3f}  AP50 {theirs['AP50']:.3f}  ({steps} steps)")
    print(f"ratio of AP50: {ours['AP50'] / max(theirs['AP50'], 1e-9):.2f}")


if __name__ == "__main__":
    main()
