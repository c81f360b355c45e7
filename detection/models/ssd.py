"""SSD300 on VGG16 (Liu et al. 2015, arXiv:1512.02325) and SSDlite on MobileNetV3 (arXiv:1905.02244).

Letters: B pictures in a batch, A priors of all maps, K classes (no background), N candidates of a picture.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from detection import distributed
from detection.models.detector import (
    BackboneDetector,
    Detections,
    ImageSizes,
    Targets,
    flatten_places,
    map_sizes,
    matched_boxes,
    matched_labels,
    pad_empty,
)
from detection.models.heads import Head, init_normal
from detection.models.postprocess import Candidates, clip, nms_and_rescale, topk_scores
from detection.models.ssd_backbones import MobileNetMaps, VGGMaps, xavier
from detection.ops.anchors import DefaultBoxes
from detection.ops.box_coder import Weights, decode
from detection.ops.losses import box_loss, masked_sum
from detection.ops.matcher import match
from detection.params.recipe import SSDRecipe

LITE_NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # MobileNetV3's own, in backbone and heads
WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # one over the paper's "variances" 0.1 and 0.2


class Outputs(nn.Module):
    """An output layer of its own for each map; names as in torchvision."""

    def __init__(self, layers: list[nn.Module], columns: int) -> None:
        super().__init__()
        self.module_list, self.columns = nn.ModuleList(layers), columns

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Tensor[B, A, columns]."""
        answers = zip(self.module_list, maps, strict=True)
        return torch.cat([flatten_places(layer(level), self.columns) for layer, level in answers], dim=1)


class SSD(BackboneDetector):
    """Priors on maps of falling size; softmax over K + 1 classes, 0 the background.

    Args:
        recipe: Its fields.
        classes: K.
        backbone: From pictures to maps.
    """

    def __init__(self, recipe: SSDRecipe, classes: int, backbone: nn.Module) -> None:
        super().__init__(backbone, recipe.image_mean, recipe.image_std)
        self.recipe = recipe
        boxes = recipe.default_boxes
        self.priors = DefaultBoxes(
            boxes.scales, boxes.aspect_ratios, steps=boxes.steps, clip_centers=boxes.clip_centers
        )
        widths = _widths(backbone, recipe.image_size)
        output = _output if recipe.architecture == "ssd" else _light_output

        def outputs(columns: int) -> Outputs:
            places = zip(widths, self.priors.per_place, strict=True)
            return Outputs([output(width, each * columns) for width, each in places], columns)

        self.head = Head(outputs(classes + 1), outputs(4))

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: MultiBox classification and box (Liu et al., section 2.2).

        Classification is cross-entropy over the positives and, in each picture, the negatives with the
        largest loss, three for each positive. Both losses are sums over the batch's number of positives.
        """
        recipe, targets = self.recipe, pad_empty(targets)
        logits, deltas, priors = self._outputs(images)
        matches = match(targets.boxes, targets.mask, priors, recipe.fg_iou, recipe.fg_iou, "unique")
        positive = matches >= 0
        labels = torch.where(positive, matched_labels(targets, matches) + 1, 0)
        entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # [B, A]
        boxes = matched_boxes(targets, matches, priors)
        far = box_loss("smooth_l1", deltas, boxes, priors, WEIGHTS)
        count = positive.sum(1, keepdim=True)
        hardest = entropy.masked_fill(positive, -1).sort(dim=1, descending=True).values
        negatives_each = (1 - recipe.positive_fraction) / recipe.positive_fraction
        place = torch.arange(hardest.shape[1], device=hardest.device)
        hard = (place < negatives_each * count) & (hardest >= 0)
        total = distributed.normalizer(count.sum())
        return {
            "class": (masked_sum(entropy, positive) + masked_sum(hardest, hard)) / total,
            "box": masked_sum(far, positive) / total,
        }

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`."""
        return self.select(*self._outputs(images), sizes)

    def select(self, logits: Tensor, deltas: Tensor, priors: Tensor, sizes: ImageSizes) -> list[Detections]:
        """Detections from logits [B, A, K + 1] and deltas [B, A, 4] of priors [A, 4]."""
        recipe = self.recipe
        scores = logits.softmax(-1)[..., 1:]
        candidates = _candidates(recipe, scores, deltas, priors, sizes)
        limit, classes = recipe.detections_per_image, scores.shape[2]
        return nms_and_rescale(candidates, sizes, recipe.nms_threshold, limit, classes)

    def core(self, images: Tensor) -> dict[str, Tensor]:
        """See `Detector.core`: `cls_logits` [B, A, K + 1] and `bbox_regression` [B, A, 4]."""
        logits, deltas = self.head(self.features(images))
        return {"cls_logits": logits, "bbox_regression": deltas}

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, A, K + 1], deltas [B, A, 4] and priors [A, 4]."""
        maps = self.features(images)
        logits, deltas = self.head(maps)
        priors = self.priors(map_sizes(maps), (images.shape[2], images.shape[3]), images.device)
        # under autocast the heads answer in bf16, too coarse for losses and boxes
        return logits.float(), deltas.float(), priors


def _candidates(
    recipe: SSDRecipe, scores: Tensor, deltas: Tensor, priors: Tensor, sizes: ImageSizes
) -> Callable[[int], Candidates]:
    """For `finish`; of each class at most `topk_candidates` take part."""

    def best(count: int) -> Candidates:
        values, rows, labels = topk_scores(scores, min(count, scores[0].numel()))
        picked = deltas.gather(1, rows[..., None].expand(-1, -1, 4))
        boxes = clip(decode(picked, priors[rows], WEIGHTS), sizes.resized)
        more = (values[:, -1] > recipe.score_threshold) & (count < scores[0].numel())
        real = values > recipe.score_threshold
        if count > recipe.topk_candidates:
            real &= _rank_in_class(labels, scores.shape[2]) < recipe.topk_candidates
        return Candidates(boxes, torch.where(real, values, -1.0), labels, more)

    return best


def _rank_in_class(labels: Tensor, classes: int) -> Tensor:
    """Tensor[B, N]: how many of the same class come before, for labels Tensor[B, N]."""
    order = labels.argsort(dim=1, stable=True)
    place = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    each = torch.zeros(len(labels), classes, dtype=torch.int64, device=labels.device)
    each = each.scatter_add(1, labels, torch.ones_like(labels))
    start = (each.cumsum(1) - each).gather(1, labels.gather(1, order))
    return torch.empty_like(labels).scatter_(1, order, place - start)


def _widths(backbone: nn.Module, side: int) -> list[int]:
    """Channels of each map."""
    training = backbone.training
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, side, side))
    backbone.train(training)
    return [level.shape[1] for level in maps.values()]


def _output(channels: int, columns: int) -> nn.Module:
    layer = nn.Conv2d(channels, columns, 3, padding=1)
    xavier(layer)
    return layer


def _light_output(channels: int, columns: int) -> nn.Module:
    depthwise = Conv2dNormActivation(
        channels, channels, kernel_size=3, groups=channels, norm_layer=LITE_NORM, activation_layer=nn.ReLU6
    )
    layer = nn.Sequential(depthwise, nn.Conv2d(channels, columns, 1))
    init_normal(layer, std=0.03)
    return layer


def build(recipe: SSDRecipe, classes: int, network: nn.Module) -> SSD:
    """Build from a recipe, for `classes` classes, on a network whose weights are loaded."""
    if recipe.architecture == "ssd":
        return SSD(recipe, classes, VGGMaps(network, recipe.trainable_layers))
    return SSD(recipe, classes, MobileNetMaps(network, recipe.trainable_layers, LITE_NORM))
