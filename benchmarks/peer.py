"""Accuracy of torchvision's detector, trained in a plain loop for as long as our pipeline trained.

    python -m benchmarks.peer                      # after `dvc repro` or `dvc exp run`, on any dataset
    python -m benchmarks.peer --minutes 20         # another budget; may run beside our training
    python -m benchmarks.peer --published          # torchvision's builder on its published backbone
    python -m benchmarks.peer --fitted             # anchors, widths, sampling and optimizer of our recipe
    python -m benchmarks.peer --with-val           # train on train and val

Reads the finished experiment in `reports/` and `data/prepared`: same images, size and batch, and as many
seconds of training as our pretraining and training took together. The peer is torchvision's detector of the
same family over the same backbone with its defaults (anchors included), from random weights, on a GPU if
available (or `--device`), with bf16 autocast where the hardware has it, SGD at the learning rate of the
references for this batch, flips and a cosine schedule over the budget. With `--fitted` the sides differ only
in the code and in our pretraining on crops. Both are scored with COCO's protocol on test.
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

from detection.data.loading.image_io import read_image
from detection.data.loading.index import Index
from detection.data.loading.prepared import Prepared
from detection.device import autocast, pick_device, pick_precision
from detection.evaluation.protocol import coco_metrics
from detection.evaluation.protocol.results import SplitDetections
from detection.params import Optimizer
from detection.training.common.optim import make_optimizer

LEARNING_RATE = {"fasterrcnn": 0.02, "retinanet": 0.01, "fcos": 0.01, "ssd": 0.001, "ssdlite": 0.0125}
"""Learning rates of torchvision's references at batch 16."""
BUILDERS = {
    "fasterrcnn": "fasterrcnn_resnet50_fpn",
    "retinanet": "retinanet_resnet50_fpn",
    "fcos": "fcos_resnet50_fpn",
    "ssd": "ssd300_vgg16",
    "ssdlite": "ssdlite320_mobilenet_v3_large",
}


def peer(recipe: dict[str, Any], classes: int, published: bool, fitted: bool = False) -> Any:
    """Build torchvision's detector for a recipe; its label 0 is the background."""
    family = recipe["architecture"]
    size = {"min_size": recipe["image_size"], "max_size": recipe["max_size"] or recipe["image_size"] * 2}
    if fitted:
        if family not in ("fasterrcnn", "retinanet"):
            raise SystemExit(f"error: --fitted is for Faster R-CNN and RetinaNet, not for {family}")
        return fitted_peer(recipe, classes, size)
    if family in ("ssd", "ssdlite"):  # the architecture fixes the image size
        size = {}
    if published or size == {} or recipe["backbone"] == "resnet50" or family == "fcos":
        build = getattr(torchvision.models.detection, BUILDERS[family])
        return build(weights=None, weights_backbone=None, num_classes=classes + 1, **size)
    options: dict[str, Any] = {"norm_layer": torch.nn.BatchNorm2d, "trainable_layers": 5}
    if family == "retinanet":
        p6p7 = torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256)
        options |= {"returned_layers": [2, 3, 4], "extra_blocks": p6p7}
    body = resnet_fpn_backbone(backbone_name=recipe["backbone"], weights=None, **options)
    return {"fasterrcnn": FasterRCNN, "retinanet": RetinaNet}[family](body, classes + 1, **size)


def fitted_peer(recipe: dict[str, Any], classes: int, size: dict[str, int]) -> Any:
    """Build torchvision's Faster R-CNN or RetinaNet with the settings of our recipe on a ResNet FPN."""
    first = 3 if (one_stage := recipe["architecture"] == "retinanet") else 2
    stages = range(first - 1, 5)
    body = torchvision.models.get_model(recipe["backbone"], weights=None, zero_init_residual=True)  # as ours
    channels = [list(getattr(body, f"layer{i}").parameters())[-1].numel() for i in stages]
    width = recipe["fpn_channels"]
    above = feature_pyramid_network.LastLevelP6P7(width, width) if one_stage else None
    layers = {f"layer{i}": str(i) for i in stages}
    backbone = BackboneWithFPN(body, layers, channels, width, above)
    sizes = recipe["anchors"]["sizes"]
    anchors = AnchorGenerator(sizes, (tuple(recipe["anchors"]["aspect_ratios"]),) * len(sizes))
    if one_stage:
        norm = partial(torch.nn.GroupNorm, 32) if recipe["head_norm"] == "group" else None
        head = RetinaNetHead(width, anchors.num_anchors_per_location()[0], classes + 1, norm_layer=norm)
        return RetinaNet(backbone, classes + 1, anchor_generator=anchors, head=head, **size)
    pool = torchvision.ops.MultiScaleRoIAlign([str(i) for i in stages], 7, 2)
    hidden = recipe["roi"]["hidden_channels"]
    return FasterRCNN(
        backbone,
        None,  # the predictor knows the number of classes
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


def load_images(index: Index, root: Path) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Load a whole split into memory, so that the peer never waits for a decoder."""
    samples = []
    for i in range(len(index)):
        record = index[i]
        kept = ~record.difficult & ~record.crowd
        target = {"boxes": torch.tensor(record.boxes[kept]), "labels": torch.tensor(record.labels[kept]) + 1}
        samples.append((read_image(root / record.file, (record.height, record.width)), target))
    return samples


def train(model: torch.nn.Module, data: list[Any], optimizer: torch.optim.Optimizer, batch: int, seconds: float) -> int:
    """Train in a plain loop for a number of seconds; return the number of steps."""
    device = next(model.parameters()).device
    precision = pick_precision("auto", device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    base_rates = [group["lr"] for group in optimizer.param_groups]
    batch = min(batch, len(data))
    rng, started, step = np.random.default_rng(0), time.monotonic(), 0
    model.train()
    while (elapsed := time.monotonic() - started) < seconds:
        order = rng.permutation(len(data))
        for first in range(0, len(order) - batch + 1, batch):
            elapsed = time.monotonic() - started
            factor = min(1, (step + 1) / 100) * (1 + math.cos(math.pi * min(elapsed / seconds, 1))) / 2
            for group, lr in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = lr * factor
            images, targets = [], []
            for i in order[first : first + batch]:
                pixels, target = data[i]
                image, boxes = pixels.to(device).float() / 255, target["boxes"].to(device)
                if rng.random() < 0.5:
                    image, width = image.flip(2), pixels.shape[2]
                    boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
                images.append(image)
                targets.append({"boxes": boxes, "labels": target["labels"].to(device)})
            with autocast(device, precision):
                loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            step += 1
            if elapsed >= seconds:
                break
    return step


def score(model: torch.nn.Module, index: Index, root: Path, classes: tuple[str, ...]) -> dict[str, float]:
    """COCO metrics on a split."""
    model.eval()
    device, parts = next(model.parameters()).device, []
    with torch.inference_mode():
        for i in range(len(index)):
            record = index[i]
            image = read_image(root / record.file, (record.height, record.width))
            output = model([image.to(device).float() / 255])[0]
            boxes, scores, labels = (output[k].cpu().numpy() for k in ("boxes", "scores", "labels"))
            kept = labels > 0
            parts.append(SplitDetections.of_image(i, boxes[kept], scores[kept], labels[kept] - 1))
    return coco_metrics.score(index, SplitDetections.concat(parts), classes).stats


def main() -> None:
    """Train and score the peer, then print both sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="training time of the peer (default: as ours)")
    parser.add_argument("--published", action="store_true", help="torchvision's builder on its published backbone")
    parser.add_argument("--fitted", action="store_true", help="use the settings of our recipe")
    parser.add_argument("--with-val", action="store_true", help="train on train and val")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="device of the peer")
    options = parser.parse_args()
    experiment = json.loads(Path("reports/train/recipe.json").read_text())
    seconds = (options.minutes or 0) * 60 or sum(
        json.loads(Path(f"reports/{stage}/metrics.json").read_text()).get("seconds", 0)
        for stage in ("pretrain", "train")
    )
    scored = Path("reports/evaluation/metrics.json")
    training = not Path("reports/train/metrics.json").exists()  # then the scores are of an earlier detector
    stale = scored.stat().st_mtime_ns if training and scored.exists() else None
    recipe, prepared = experiment["recipe"], Prepared.load()
    torch.manual_seed(0)
    model = peer(recipe, len(prepared.classes), options.published, options.fitted)
    model = model.to(pick_device(options.device)).to(memory_format=torch.channels_last)
    splits = ("train", "val") if options.with_val else ("train",)
    data = [sample for split in splits for sample in load_images(prepared.index(split), prepared.root)]
    settings = Optimizer(lr=LEARNING_RATE[recipe["architecture"]] * recipe["batch_size"] / 16)
    if options.fitted:
        settings = Optimizer(**recipe["optimizer"])  # its learning rate is for this batch size
    steps = train(model, data, make_optimizer(model, settings), recipe["batch_size"], seconds)
    theirs = score(model, prepared.index("test"), prepared.root, prepared.classes)
    while not scored.exists() or scored.stat().st_mtime_ns == stale:
        time.sleep(5)
    ours = json.loads(scored.read_text())
    title = f"{experiment['model']} on {experiment['dataset']}"
    print(f"{title}, {seconds:.0f} s of training, {torch.get_num_threads()} threads")
    print(f"ours         AP {ours['AP']:.3f}  AP50 {ours['AP50']:.3f}")
    print(f"torchvision  AP {theirs['AP']:.3f}  AP50 {theirs['AP50']:.3f}  ({steps} steps)")
    print(f"ratio of AP50: {ours['AP50'] / max(theirs['AP50'], 1e-9):.2f}")


if __name__ == "__main__":
    main()
