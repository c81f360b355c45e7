"""Recipes of the four detector families, each a published system at its published scale.

A recipe is complete. Its `overrides` in `params.yaml` hold what it does differently with a preset or on a
dataset (see `detection.params.reader`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from detection.params.bounds import Bounds, Count, Fraction, NonNegative, Positive
from detection.params.recipe_base import MOBILENETS, RESNETS, RecipeBase

SSD_MAPS = 6
"""Feature maps of SSD300 and SSDlite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchors:
    """Anchor boxes. The defaults are Faster R-CNN's on a feature pyramid."""

    sizes: tuple[tuple[Positive, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    """Anchor sizes (square roots of areas) in pixels, per feature map, the finest first."""
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    strides: tuple[Count, ...] | None = None
    """Pixels between anchors, per feature map; null: batch size in pixels over map size, rounded down."""
    offset: float = 0.0
    """Position of an anchor's center in its cell: 0 the upper left corner, 0.5 the middle."""
    round: bool = True
    """Round the corners to whole pixels, as torchvision does."""

    def __post_init__(self) -> None:
        """Refuse an empty list and unequal numbers of sizes."""
        if not any(self.sizes):
            raise ValueError("sizes: is empty: there would be no anchors")
        if not self.aspect_ratios:
            raise ValueError("aspect_ratios: is empty: there would be no anchors")
        if len({len(sizes) for sizes in self.sizes}) > 1:
            raise ValueError("sizes: the feature maps share one head; give each equally many sizes")

    def check_maps(self, count: int, what: str) -> None:
        """Raise ValueError for sizes or strides of another number of feature maps."""
        for name, entries in (("sizes", self.sizes), ("strides", self.strides)):
            if entries is not None and len(entries) != count:
                raise ValueError(f"anchors.{name}: needs one entry per {what}: {count}, not {len(entries)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetinaNetAnchors(Anchors):
    """Anchor boxes of RetinaNet: three sizes per pyramid level P3 to P7, as torchvision rounds them."""

    sizes: tuple[tuple[Positive, ...], ...] = (
        (32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812)
    )  # fmt: skip
    """Anchor sizes (square roots of areas) in pixels, per pyramid level, the finest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TopN:
    """A number of proposals, in training and in detection."""

    train: Count = 2000
    """Number in training."""
    test: Count = 1000
    """Number in detection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RPN:
    """Region proposal network of Faster R-CNN."""

    num_convs: Count = 1
    """Number of 3x3 convolutions in the RPN head."""
    channels: Count | None = None
    """Channels of these convolutions; null: those of the feature map."""
    inside_anchors_only: bool = False
    """Train on the anchors that lie inside the image only."""
    pre_nms_top_n: TopN = field(default_factory=TopN)
    """Proposals kept per feature map before NMS."""
    post_nms_top_n: TopN = field(default_factory=TopN)
    """Proposals kept per image after NMS."""
    nms_threshold: Fraction = 0.7
    """IoU above which the lower-scoring of two proposals is suppressed."""
    score_threshold: Fraction = 0.0
    """Proposals below this objectness are dropped."""
    min_size: float = 1e-3
    """Proposals with a side shorter than this many pixels are dropped."""
    fg_iou: Fraction = 0.7
    """Minimum IoU of a positive anchor."""
    bg_iou: Fraction = 0.3
    """Anchors below this IoU are negatives; anchors between `bg_iou` and `fg_iou` are ignored."""
    low_quality_matches: Literal["all_ties", "unique"] = "all_ties"
    """Anchors that become positive although their IoU is below `fg_iou`, so that every object has one.
    `all_ties`: every anchor that attains an object's largest IoU, matched with the object that the anchor
    overlaps most; `unique`: one anchor per object, the first with its largest IoU, matched with that object."""
    batch_size_per_image: Count = 256
    """Anchors sampled per image for the loss."""
    positive_fraction: Fraction = 0.5
    """Maximum fraction of positives among them."""
    smooth_l1_beta: NonNegative = 1 / 9
    """Error at which the box loss turns from quadratic to linear: 1 / sigma^2."""
    box_loss_normalizer: Literal["sampled", "positives"] = "sampled"
    """Divisor of the box loss: all sampled anchors, or the positives among them per image."""

    def __post_init__(self) -> None:
        """Refuse thresholds in the wrong order."""
        _check_thresholds(self.bg_iou, self.fg_iou)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoI:
    """Second stage of Faster R-CNN: pooling, head, sampling and loss."""

    pooling: Literal["roi_align", "roi_pool"] = "roi_align"
    """Pooling of a proposal's features; `roi_pool` works on a single feature map."""
    pool_scale: Literal["stride", "image"] = "stride"
    """Scale from a proposal to the feature map with `roi_pool`. `stride`: one over the map's stride, 1/16;
    `image`: the map's sides over the image's, 38/600 for a map of 38 cells."""
    pool_size: Count = 7
    """Side of the pooled features in cells."""
    head: Literal["fc", "conv_fc", "layer4"] = "fc"
    """Layers between pooling and predictor. `fc`: two linear layers; `conv_fc`: four 3x3 convolutions with
    BatchNorm and one linear layer; `layer4`: ResNet's last stage and average pooling."""
    hidden_channels: Count = 1024
    """Width of the linear layers; with 4096 VGG16's published fc6 and fc7 are loaded."""
    output_init: Literal["default", "normal"] = "default"
    """Initialization of the predictor. `default`: PyTorch's for linear layers; `normal`: normal distributions
    with standard deviations 0.01 (classes) and 0.001 (boxes), as in the paper."""
    fg_iou: Fraction = 0.5
    """Minimum IoU of a positive proposal."""
    bg_iou: Fraction = 0.5
    """Proposals below this IoU are negatives; proposals between `bg_iou` and `fg_iou` are ignored."""
    batch_size_per_image: Count = 512
    """Proposals sampled per image for the loss."""
    positive_fraction: Fraction = 0.25
    """Maximum fraction of positives among them."""
    smooth_l1_beta: NonNegative = 1 / 9
    """Error at which the box loss turns from quadratic to linear: 1 / sigma^2."""
    box_loss_normalizer: Literal["sampled", "positives"] = "sampled"
    """Divisor of the box loss: all sampled proposals, or the positives among them per image."""

    def __post_init__(self) -> None:
        """Refuse thresholds in the wrong order and a pooled map that layer4 cannot halve."""
        _check_thresholds(self.bg_iou, self.fg_iou)
        if self.head == "layer4" and self.pool_size < 2:
            raise ValueError("pool_size: layer4 halves it; set at least 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class FasterRCNNRecipe(RecipeBase):
    """Faster R-CNN on an FPN or a single feature map (Ren et al. 2015, arXiv:1506.01497; 1612.03144)."""

    architecture: Literal["fasterrcnn"]
    """Detector family."""
    features: Literal["fpn", "c4"] = "fpn"
    """`fpn`: feature pyramid; `c4`: one map of stride 16 (ResNet up to layer3, VGG16 up to conv5_3)."""
    fpn_levels: tuple[int, ...] = (2, 3, 4, 5)
    """Backbone levels of the FPN (level l has stride 2^l); one pooled level is added above."""
    fpn_channels: Count = 256
    """Channels of every pyramid level."""
    fpn_norm: Literal["none", "batch"] = "none"
    """Normalization in the FPN; `batch` in torchvision's v2."""
    anchors: Anchors = field(default_factory=Anchors)
    """Anchors of the RPN."""
    rpn: RPN = field(default_factory=RPN)
    """First stage."""
    roi: RoI = field(default_factory=RoI)
    """Second stage."""

    def __post_init__(self) -> None:
        """Refuse a backbone, anchors or heads that do not fit the feature maps."""
        RecipeBase.__post_init__(self)
        fpn = self.features == "fpn"
        _check_backbone(self, (*RESNETS, *MOBILENETS) if fpn else (*RESNETS, "vgg16"), f"features: {self.features}")
        _check_levels(self.fpn_levels, self.backbone)
        if not fpn and self.fpn_norm != "none":
            raise ValueError("fpn_norm: features: c4 has no FPN")
        maps = len(self.fpn_levels) + 1 if fpn else 1
        self.anchors.check_maps(maps, "pyramid level" if fpn else "map (features: c4 has one)")
        if fpn and self.roi.pooling == "roi_pool":
            raise ValueError(
                f"roi.pooling: roi_pool needs a single map, the FPN has {maps}; set roi_align or features: c4"
            )
        if self.roi.pooling == "roi_align" and self.roi.pool_scale != "stride":
            raise ValueError("roi.pool_scale: image needs roi.pooling: roi_pool")
        if self.roi.head == "layer4" and (fpn or self.backbone not in RESNETS):
            raise ValueError("roi.head: layer4 needs features: c4 and a ResNet; set fc or conv_fc")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetinaNetRecipe(RecipeBase):
    """RetinaNet (Lin et al. 2017, arXiv:1708.02002)."""

    architecture: Literal["retinanet"]
    """Detector family."""
    pyramid: Literal["fpn", "aligned"] = "fpn"
    """`fpn`: nearest-neighbor upsampling, P6 and P7 above; `aligned`: bilinear upsampling with aligned
    corners, P6 above, and a ReLU on every level (the 257-pixel system)."""
    fpn_levels: tuple[int, ...] = (3, 4, 5)
    """Backbone levels of the FPN."""
    fpn_channels: Count = 256
    """Channels of the FPN and of the heads."""
    p6_from: Literal["p5", "c5"] = "p5"
    """Input of P6: the last FPN level or the last backbone level."""
    head_convs: Count = 4
    """3x3 convolutions before the output of each head."""
    head_norm: Literal["none", "group"] = "none"
    """Group normalization in the heads (as in RetinaNet v2). Without it and without ImageNet weights,
    training starts slowly, because the initial weights are small."""
    anchors: RetinaNetAnchors = field(default_factory=RetinaNetAnchors)
    """Anchors of the pyramid levels."""
    fg_iou: Fraction = 0.5
    """Minimum IoU of a positive anchor."""
    bg_iou: Fraction = 0.4
    """Anchors below this IoU are negatives; anchors between `bg_iou` and `fg_iou` are ignored."""
    low_quality_matches: Literal["all_ties", "unique", "unique_below_fg"] = "all_ties"
    """Anchors that become positive although their IoU is below `fg_iou`, so that every object has one.
    `all_ties`: every anchor that attains an object's largest IoU, each matched with the object that the
    anchor overlaps most (torchvision's `allow_low_quality_matches`); `unique`: one anchor per object,
    the first with its largest IoU, matched with that object even if it overlaps another one more;
    `unique_below_fg`: as `unique`, unless the anchor's largest IoU reaches `fg_iou`."""
    box_loss: Literal["l1", "smooth_l1", "giou"] = "l1"
    """L1 or smooth L1 (beta 1) of the box deltas, or generalized IoU of the boxes."""
    loss_normalizer: Literal["image", "batch"] = "image"
    """`image`: losses over the number of positives of each image, then the mean; `batch`: summed losses over
    the number of positives of the batch."""
    topk_per_level: Count = 1000
    """Candidates per level before NMS."""
    class_agnostic_nms: bool = False
    """NMS across classes."""

    def __post_init__(self) -> None:
        """Refuse a backbone, levels or anchors that do not fit the pyramid."""
        RecipeBase.__post_init__(self)
        _check_backbone(self, RESNETS, self.architecture)
        _check_levels(self.fpn_levels, self.backbone)
        _check_thresholds(self.bg_iou, self.fg_iou)
        self.anchors.check_maps(len(self.fpn_levels) + (2 if self.pyramid == "fpn" else 1), "pyramid level")
        if self.pyramid == "aligned" and (self.fpn_levels != (3, 4, 5) or self.p6_from != "c5"):
            raise ValueError("pyramid: aligned needs fpn_levels: [3, 4, 5] and p6_from: c5")
        if self.head_norm == "group":
            _check_group_norm(self.fpn_channels)


@dataclass(frozen=True, kw_only=True, slots=True)
class FCOSRecipe(RecipeBase):
    """FCOS (Tian et al. 2019, arXiv:1904.01355)."""

    architecture: Literal["fcos"]
    """Detector family."""
    fpn_levels: tuple[int, ...] = (3, 4, 5)
    """Backbone levels of the FPN; P6 and P7 are added above."""
    fpn_channels: Count = 256
    """Channels of the FPN and of the heads."""
    center_sampling_radius: Positive = 1.5
    """Maximum distance of a positive location from an object's center, in strides."""
    topk_per_level: Count = 1000
    """Candidates per level before NMS."""

    def __post_init__(self) -> None:
        """Refuse a backbone or channels that FCOS does not support."""
        RecipeBase.__post_init__(self)
        _check_backbone(self, RESNETS, self.architecture)
        _check_levels(self.fpn_levels, self.backbone)
        _check_group_norm(self.fpn_channels)


@dataclass(frozen=True, kw_only=True, slots=True)
class DefaultBoxes:
    """Default boxes of SSD, on six feature maps."""

    scales: tuple[Positive, ...]
    """Sizes as a fraction of the image side: one per feature map and one more."""
    aspect_ratios: tuple[tuple[Positive, ...], ...]
    """Aspect ratios besides 1, per feature map."""
    steps: tuple[Count, ...] | None = None
    """Pixels between default boxes, per feature map; null: image side over map side."""
    clip_centers: bool = False
    """Clip the centers to the image, as the original does and torchvision does not."""

    def __post_init__(self) -> None:
        """Refuse lists for another number of feature maps."""
        lists: tuple[tuple[str, Sequence[object], int], ...] = (
            ("scales", self.scales, SSD_MAPS + 1),
            ("aspect_ratios", self.aspect_ratios, SSD_MAPS),
            ("steps", self.steps or (0,) * SSD_MAPS, SSD_MAPS),
        )
        for name, entries, count in lists:
            if len(entries) != count:
                raise ValueError(f"{name}: needs {count} entries for {SSD_MAPS} feature maps, not {len(entries)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SSDRecipe(RecipeBase):
    """SSD300 on VGG16 (Liu et al. 2015, arXiv:1512.02325) and SSDlite on MobileNetV3 (1905.02244)."""

    architecture: Literal["ssd", "ssdlite"]
    """`ssd`: VGG16 with fc6 and fc7; `ssdlite`: MobileNetV3 with depthwise heads."""
    default_boxes: DefaultBoxes
    """Default boxes."""
    reduced_tail: bool = False
    """Half as many channels in MobileNet's last blocks, as in torchvision's published detector; ImageNet
    weights need the full width."""
    fg_iou: Fraction = 0.5
    """Minimum IoU of a positive default box."""
    positive_fraction: Annotated[float, Bounds(above=0, at_most=1)] = 0.25
    """Fraction of positives among the boxes in the loss; 0.25: three hard negatives per positive."""
    topk_candidates: Count = 400
    """Candidates per class before NMS."""

    def __post_init__(self) -> None:
        """Refuse default boxes that do not fit the feature maps."""
        RecipeBase.__post_init__(self)
        _check_backbone(self, ("vgg16",) if self.architecture == "ssd" else MOBILENETS, self.architecture)
        if self.resize != "stretch" or not self.fixed_size:
            raise ValueError(
                "resize: default boxes fit one square image size; set resize: stretch and fixed_size: true"
            )
        if self.architecture == "ssd":
            if self.reduced_tail:
                raise ValueError("reduced_tail: applies to MobileNet, not to VGG16")
            _check_vgg_maps(self.image_size, self.default_boxes.steps or ())


Recipe = FasterRCNNRecipe | RetinaNetRecipe | FCOSRecipe | SSDRecipe
ARCHITECTURES: dict[str, type[Recipe]] = {
    "fasterrcnn": FasterRCNNRecipe,
    "retinanet": RetinaNetRecipe,
    "fcos": FCOSRecipe,
    "ssd": SSDRecipe,
    "ssdlite": SSDRecipe,
}


def _check_backbone(recipe: RecipeBase, supported: Sequence[str], what: str) -> None:
    if recipe.backbone not in supported:
        raise ValueError(f"backbone: {what} does not support {recipe.backbone}; possible: {', '.join(supported)}")


def _check_levels(levels: tuple[int, ...], backbone: str) -> None:
    lowest = 1 if backbone in MOBILENETS else 2
    if not levels or levels != tuple(range(max(levels[0], lowest), min(levels[-1], 5) + 1)):
        raise ValueError(f"fpn_levels: must be consecutive, from {backbone}'s {lowest} to 5")


def _check_thresholds(bg_iou: float, fg_iou: float) -> None:
    if bg_iou > fg_iou:
        raise ValueError(f"bg_iou: is above fg_iou ({bg_iou} > {fg_iou})")


def _check_group_norm(channels: int) -> None:
    if channels % 32:
        raise ValueError(f"fpn_channels: group normalization has 32 groups; {channels} is not a multiple")


def _check_vgg_maps(side: int, steps: Sequence[int]) -> None:
    """Refuse steps that leave part of the image without default boxes, or place some outside it."""
    conv4 = -(-(side // 4) // 2)
    fc7 = conv4 // 2
    conv8, conv9 = (fc7 + 1) // 2, ((fc7 + 1) // 2 + 1) // 2
    maps = [conv4, fc7, conv8, conv9, conv9 - 2, conv9 - 4]
    if maps[-1] < 1:
        raise ValueError(f"image_size: {side} pixels leave no cell on the last feature map; 300 is published")
    for cells, step in zip(maps, steps, strict=False):
        if not (cells - 1) * step < side <= (cells + 1) * step:
            raise ValueError(
                f"default_boxes.steps: {cells} boxes {step} pixels apart do not fit {side} pixels; the steps "
                "are for another image_size (8, 16, 32, 64, 100, 300 for 300 pixels)"
            )
