"""Training steps of our detectors and of torchvision's classes on the same batch.

Needs only torch, torchvision and numpy, and reads no YAML, so that the benchmarks run on a bare GPU machine.
The recipes are the published ones.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from detection.data.loading.batch import Targets
from detection.device import autocast, pick_memory_format
from detection.models.backbones import FrozenBatchNorm
from detection.models.build import build_detector
from detection.models.detector import Detector
from detection.params.recipe import (
    RPN,
    Anchors,
    DefaultBoxes,
    FasterRCNNRecipe,
    FCOSRecipe,
    Recipe,
    RetinaNetRecipe,
    RoI,
    SSDRecipe,
    TopN,
)
from detection.params.recipe_base import Optimizer
from detection.training.common.optim import make_optimizer

OBJECTS_PER_IMAGE = 8
TINY_STEP = Optimizer(lr=1e-6)  # the weights of both sides hardly change
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SSD_RATIOS = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))
MOBILENET_ANCHORS = ((32.0, 64.0, 128.0, 256.0, 512.0),) * 3


@dataclass(frozen=True)
class Case:
    """Detector at its published image size."""

    recipe: Recipe
    builder: str | None
    """Name of torchvision's builder, or None."""
    large: tuple[int, int, int]
    """Batch on a GPU: height and width in pixels, number of images."""
    small: tuple[int, int, int]
    """Batch on a CPU: height and width in pixels, number of images."""

    @property
    def one_stage(self) -> bool:
        """True for a detector without proposals."""
        return self.recipe.architecture != "fasterrcnn"

    @property
    def background(self) -> int:
        """See `background_labels`."""
        return background_labels(self.recipe)


def background_labels(recipe: Recipe) -> int:
    """Offset of torchvision's labels to ours: 1 where its label 0 is the background."""
    return 0 if recipe.architecture in ("retinanet", "fcos") else 1


R50: dict[str, Any] = {"backbone": "resnet50", "image_size": 800, "batch_size": 16, "epochs": 1}
FIXED: dict[str, Any] = {"resize": "stretch", "fixed_size": True, "epochs": 1}
RETINANET = RetinaNetRecipe(architecture="retinanet", detections_per_image=300, **R50)
SSD300 = SSDRecipe(
    architecture="ssd",
    backbone="vgg16",
    image_size=300,
    batch_size=32,
    default_boxes=DefaultBoxes(
        scales=(0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
        aspect_ratios=((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,)),
        steps=(8, 16, 32, 64, 100, 300),
    ),
    score_threshold=0.01,
    nms_threshold=0.45,
    detections_per_image=200,
    image_mean=(0.48235, 0.45882, 0.40784),
    image_std=(1 / 255, 1 / 255, 1 / 255),
    **FIXED,
)
SSDLITE = SSDRecipe(
    architecture="ssdlite",
    backbone="mobilenet_v3_large",
    image_size=320,
    batch_size=192,
    default_boxes=DefaultBoxes(scales=(0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0), aspect_ratios=((2.0, 3.0),) * 6),
    reduced_tail=True,
    score_threshold=0.001,
    nms_threshold=0.55,
    detections_per_image=300,
    topk_candidates=300,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    **FIXED,
)
MOBILENET_320 = FasterRCNNRecipe(
    architecture="fasterrcnn",
    backbone="mobilenet_v3_large",
    image_size=320,
    batch_size=16,
    epochs=1,
    fpn_levels=(4, 5),
    anchors=Anchors(sizes=((32, 64, 128, 256, 512),) * 3),
    rpn=RPN(pre_nms_top_n=TopN(test=150), post_nms_top_n=TopN(test=150), score_threshold=0.05),
)
C4 = FasterRCNNRecipe(
    architecture="fasterrcnn",
    features="c4",
    anchors=Anchors(sizes=((128, 256, 512),), strides=(16,)),
    rpn=RPN(channels=512, pre_nms_top_n=TopN(train=12000), post_nms_top_n=TopN(train=600)),
    roi=RoI(pooling="roi_pool", pool_size=14, head="layer4", batch_size_per_image=128, positive_fraction=0.5),
    **R50,
)
WIDE, SQUARE = (800, 1088, 16), (320, 320, 2)
CASES = {
    "retinanet": Case(RETINANET, "retinanet_resnet50_fpn", WIDE, SQUARE),
    "fcos": Case(FCOSRecipe(architecture="fcos", **R50), "fcos_resnet50_fpn", WIDE, SQUARE),
    "ssd300": Case(SSD300, "ssd300_vgg16", (300, 300, 64), (300, 300, 4)),
    "ssdlite320": Case(SSDLITE, "ssdlite320_mobilenet_v3_large", (320, 320, 192), (320, 320, 8)),
    "fasterrcnn": Case(FasterRCNNRecipe(architecture="fasterrcnn", **R50), "fasterrcnn_resnet50_fpn", WIDE, SQUARE),
    "fasterrcnn_mobilenet_320": Case(
        MOBILENET_320, "fasterrcnn_mobilenet_v3_large_320_fpn", (320, 448, 64), (320, 320, 4)
    ),
    "fasterrcnn_resnet50_c4": Case(C4, None, (600, 608, 16), SQUARE),
}


def build(case: Case, classes: int = 90, finetune: bool = False) -> tuple[Detector, Any]:
    """Build our detector and torchvision's model (or None) with the same weights.

    All layers are trained, with live BatchNorm, or for `finetune` torchvision's default with a pretrained backbone: its
    last three stages, with frozen BatchNorm. torchvision's resize is disabled: both get images of the final size.
    """
    layers = 6 if case.recipe.backbone.startswith("mobilenet") else 5
    recipe = replace(case.recipe, trainable_layers=3 if finetune else layers, bn="frozen" if finetune else "live")
    ours = build_detector(recipe, classes, None).train()
    if case.builder is None:
        return ours, None
    make = getattr(torchvision.models.detection, case.builder)
    theirs = make(weights=None, weights_backbone=None, num_classes=classes + case.background)
    freeze_like(theirs, ours)
    ours.load_state_dict(theirs.state_dict())
    theirs.transform = KeepSize(case.recipe.image_mean, case.recipe.image_std)
    return ours, theirs.train()


def freeze_like(model: nn.Module, ours: Detector) -> None:
    """Freeze the BatchNorm layers and parameters of torchvision's model that are frozen in our detector."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d) and isinstance(ours.get_submodule(path), FrozenBatchNorm):
            model.set_submodule(path, torchvision.ops.FrozenBatchNorm2d(layer.num_features, layer.eps))
    trained = {key for key, parameter in ours.named_parameters() if parameter.requires_grad}
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trained)


class KeepSize(nn.Module):
    """torchvision's transform without the resize: normalizes and stacks images of the final size."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: list[Tensor], targets: Any) -> Any:
        """Return the batch and the unchanged targets."""
        batch = torch.stack([(image - self.mean) / self.std for image in images])
        return ImageList(batch, [(batch.shape[2], batch.shape[3])] * len(batch)), targets

    def postprocess(self, detections: Any, *_: Any) -> Any:
        """Return the detections unchanged."""
        return detections


def make_batch(count: int, height: int, width: int, classes: int, device: str) -> tuple[Tensor, Targets]:
    """Random uint8 images of one size with `OBJECTS_PER_IMAGE` objects each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    limit = torch.tensor([width, height])
    corner = torch.rand(count, OBJECTS_PER_IMAGE, 2, generator=generator) * limit * 0.6
    side = (0.05 + 0.35 * torch.rand(count, OBJECTS_PER_IMAGE, 2, generator=generator)) * limit
    labels = torch.randint(0, classes, (count, OBJECTS_PER_IMAGE), generator=generator)
    mask, sizes = (torch.ones(count, OBJECTS_PER_IMAGE, dtype=torch.bool), torch.tensor([[height, width]] * count))
    targets = Targets(torch.cat([corner, corner + side], dim=2), labels, mask, sizes)
    return images.to(device), targets.to(torch.device(device))


Step = Callable[[], None]


def our_step(detector: Detector, images: Tensor, targets: Targets, precision: torch.dtype) -> Step:
    """Optimizer step as in the training loop, with `train.channels_last: auto`."""
    memory_format = pick_memory_format("auto", images.device, detector)
    detector.to(memory_format=memory_format)
    images = images.contiguous(memory_format=memory_format)
    optimizer = make_optimizer(detector, TINY_STEP)

    def step() -> None:
        with autocast(images.device, precision):
            losses = detector(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def their_step(model: Any, images: Tensor, targets: Targets, precision: torch.dtype, background: int) -> Step:
    """Optimizer step as in torchvision's references, on float images in memory."""
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], TINY_STEP.lr, momentum=0.9, weight_decay=1e-4
    )
    float_images = [image.float() / 255 for image in images]
    ground_truth = [
        {"boxes": boxes, "labels": labels + background}
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]

    def step() -> None:
        with autocast(images.device, precision):
            losses = model(float_images, ground_truth)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Step) -> tuple[float, float]:
    """Wall and CPU seconds of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu
