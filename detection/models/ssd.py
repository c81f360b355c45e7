"""SSD300 on VGG16 (Liu et al. 2015, arXiv:1512.02325) and SSDlite on MobileNetV3 (arXiv:1905.02244).

Letters: B images, A default boxes of all maps, C channels, K classes without background, H and W of a map.
Parameters have torchvision's names.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet
from torchvision.ops import Conv2dNormActivation

from detection import distributed
from detection.data.loading.batch import ImageSizes, Targets
from detection.models.backbones import freeze_stages, stage_starts
from detection.models.detector import BackboneDetector, Detections, matched_targets, pad_empty
from detection.models.heads import DetectionHead, flatten_cells, init_convs
from detection.models.postprocess import nms_and_rescale, topk_per_class
from detection.ops.anchors import DefaultBoxGenerator
from detection.ops.box_coder import Weights, decode
from detection.ops.losses import box_loss, masked_sum
from detection.ops.matcher import match
from detection.params.recipe import SSDRecipe

LITE_NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # MobileNetV3's own, in backbone and heads
WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # one over the paper's "variances" 0.1 and 0.2


class SSDOutputs(nn.Module):
    """Output layers of the classification or the regression head, one per feature map."""

    def __init__(self, layers: list[nn.Module], columns: int) -> None:
        super().__init__()
        self.module_list, self.columns = nn.ModuleList(layers), columns

    def forward(self, features: list[Tensor]) -> Tensor:
        """Tensor[B, A, columns]."""
        pairs = zip(self.module_list, features, strict=True)
        return torch.cat([flatten_cells(layer(level), self.columns) for layer, level in pairs], dim=1)


class SSD(BackboneDetector):
    """One-stage detector on default boxes, with a softmax over K + 1 classes, 0 being the background.

    Args:
        recipe: Default boxes, thresholds and losses.
        classes: K.
        backbone: From images to feature maps, finest first.
    """

    def __init__(self, recipe: SSDRecipe, classes: int, backbone: nn.Module) -> None:
        super().__init__(recipe, backbone)
        self.recipe = recipe
        self.anchors = DefaultBoxGenerator(**asdict(recipe.default_boxes))
        widths = retrieve_out_channels(backbone, (recipe.image_size, recipe.image_size))
        output = _output if recipe.architecture == "ssd" else _light_output

        def outputs(columns: int) -> SSDOutputs:
            pairs = zip(widths, self.anchors.anchors_per_cell, strict=True)
            return SSDOutputs([output(width, per_cell * columns) for width, per_cell in pairs], columns)

        self.head = DetectionHead(outputs(classes + 1), outputs(4))

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: MultiBox classification and box loss (Liu et al., section 2.2).

        The classification loss is the cross-entropy of the positives and of each image's hardest negatives,
        three per positive. Both losses are divided by the batch's number of positives.
        """
        recipe, targets = self.recipe, pad_empty(targets)
        logits, deltas, anchors = self._outputs(images)
        iou = recipe.fg_iou
        matches = match(targets.boxes, targets.mask, anchors, iou, iou, "unique")  # [B, A]
        positive = matches >= 0
        boxes, labels = matched_targets(targets, matches, anchors)
        labels = torch.where(positive, labels + 1, 0)
        entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # [B, A]
        regression_loss = box_loss("smooth_l1", deltas, boxes, anchors, positive, WEIGHTS)
        count = positive.sum(1, keepdim=True)
        hardest = entropy.masked_fill(positive, -1).sort(dim=1, descending=True).values
        negatives_per_positive = (1 - recipe.positive_fraction) / recipe.positive_fraction
        rank = torch.arange(hardest.shape[1], device=hardest.device)
        hard = (rank < negatives_per_positive * count) & (hardest >= 0)
        total = distributed.normalizer(count.sum())
        return {
            "class": (masked_sum(entropy, positive) + masked_sum(hardest, hard)) / total,
            "box": regression_loss.sum() / total,
        }

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`."""
        return self.select(*self._outputs(images), sizes)

    def select(self, logits: Tensor, deltas: Tensor, anchors: Tensor, sizes: ImageSizes) -> list[Detections]:
        """Detections from logits [B, A, K + 1] and deltas [B, A, 4] of default boxes [A, 4]."""
        recipe, coder = self.recipe, partial(decode, weights=WEIGHTS)
        scores = logits.softmax(-1)[..., 1:]
        limit, threshold = recipe.topk_candidates, recipe.score_threshold
        inside = sizes if recipe.clip_before_nms else None
        candidates = topk_per_class(scores, deltas, anchors, coder, inside, limit, threshold)
        return nms_and_rescale(candidates, sizes, recipe.nms_threshold, recipe.detections_per_image, scores.shape[2])

    def raw_outputs(self, features: list[Tensor]) -> dict[str, Tensor]:
        """See `BackboneDetector.raw_outputs`: `cls_logits` [B, A, K + 1] and `bbox_regression` [B, A, 4]."""
        logits, deltas = self.head(features)
        return {"cls_logits": logits, "bbox_regression": deltas}

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, A, K + 1], deltas [B, A, 4] and default boxes [A, 4]."""
        features = self.features(images)
        logits, deltas = self.head(features)
        # bf16 outputs under autocast are too coarse for losses and boxes
        return logits.float(), deltas.float(), self.anchors.for_batch(features, images)[0]


def _output(channels: int, columns: int) -> nn.Module:
    layer = nn.Conv2d(channels, columns, 3, padding=1)
    init_convs(layer, nn.init.xavier_uniform_)
    return layer


def _light_output(channels: int, columns: int) -> nn.Module:
    depthwise = Conv2dNormActivation(
        channels, channels, kernel_size=3, groups=channels, norm_layer=LITE_NORM, activation_layer=nn.ReLU6
    )
    layer = nn.Sequential(depthwise, nn.Conv2d(channels, columns, 1))
    init_convs(layer, partial(nn.init.normal_, std=0.03))
    return layer


class SSDBackboneVGG(nn.Module):
    """Six feature maps of VGG16 (Liu et al., section 3), 38 to 1 cells wide for 300 pixels.

    conv4_3 with its channels L2-normalized to a learned scale; fc6 and fc7 as convolutions, fc6 dilated; and
    four extra blocks.

    Args:
        network: torchvision's VGG16 with its weights loaded.
        trainable_layers: Trained stages of five, counted from the top.
    """

    def __init__(self, network: Any, trainable_layers: int) -> None:
        super().__init__()
        layers = network.features
        freeze_stages(layers, trainable_layers)
        _, _, _, pool3, pool4 = stage_starts(layers)  # each stage but the first starts with a pooling
        layers[pool3].ceil_mode = True  # 75 cells to 38, as published
        self.scale_weight = nn.Parameter(torch.full((512,), 20.0))
        self.features = nn.Sequential(*layers[:pool4])
        fc = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
        )
        shapes = [(1024, 512, 2, 1), (512, 256, 2, 1), (256, 256, 1, 0), (256, 256, 1, 0)]
        extra = [_extra_block(*shape) for shape in shapes]
        for part in (fc, *extra):
            init_convs(part, nn.init.xavier_uniform_)
        self.extra = nn.ModuleList([nn.Sequential(*layers[pool4:-1], fc), *extra])

    def load_classifier(self, state: Mapping[str, Tensor]) -> None:
        """Subsample VGG16's fc6 and fc7 to conv6 and conv7 (Liu et al., section 3): "reduced" VGG16.

        Every fourth output channel, and of fc6's 7x7 cells every third, which conv6's dilation of 6 spreads.

        Args:
            state: `classifier.0.*` [4096, 512 * 7 * 7] and `classifier.3.*` [4096, 4096], weight and bias.
        """
        _, conv6, _, conv7, _ = cast(nn.Sequential, cast(nn.Sequential, self.extra[0])[-1])
        fc6, fc7 = state["classifier.0.weight"].view(-1, 512, 7, 7), state["classifier.3.weight"][:, :, None, None]
        values = {
            "weight": (fc6[::4, :, ::3, ::3], fc7[::4, ::4]),
            "bias": (state["classifier.0.bias"][::4], state["classifier.3.bias"][::4]),
        }
        with torch.no_grad():
            for name, pair in values.items():
                for conv, value in zip((conv6, conv7), pair, strict=True):
                    getattr(conv, name).copy_(value)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of Tensor[B, 3, H, W], finest first."""
        x = self.features(images)
        features = [self.scale_weight.view(1, -1, 1, 1) * F.normalize(x)]
        for block in self.extra:
            x = block(x)
            features.append(x)
        return {str(i): level for i, level in enumerate(features)}


def _extra_block(channels: int, out: int, stride: int, padding: int) -> nn.Sequential:
    """1x1 convolution to half the new width, and a 3x3 convolution, each with a ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, out // 2, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out // 2, out, 3, stride=stride, padding=padding),
        nn.ReLU(inplace=True),
    )


def build(recipe: SSDRecipe, classes: int, network: nn.Module) -> SSD:
    """Build from a recipe, for `classes` classes, on a network with its weights loaded."""
    if recipe.architecture == "ssd":
        return SSD(recipe, classes, SSDBackboneVGG(network, recipe.trainable_layers))
    layers: Any = network.features
    freeze_stages(layers, recipe.trainable_layers)
    # six maps, 20 to 1 cells for 320 pixels; C4 is taken from its block's expansion, where it is widest
    # (Howard et al. 2019, arXiv:1905.02244, section 6.3)
    backbone = SSDLiteFeatureExtractorMobileNet(layers, stage_starts(layers)[-2], LITE_NORM)
    return SSD(recipe, classes, backbone)
