"""A recipe: everything that makes one published system, at its published scale.

A recipe is complete. What a smaller dataset needs otherwise stands in its `on:` entry for that dataset;
how much training a dataset gets stands in `budgets:` (see `detection.params.reader`).
"""

from dataclasses import dataclass, field
from typing import Literal

Backbone = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "vgg16",
]
Augmentation = Literal["none", "flip", "multiscale", "ssd", "ssd_legacy", "ssdlite", "letterbox", "crop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """Optimiser and its parameter groups."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """SGD with momentum, Adam (L2 in the gradient) or AdamW (decoupled decay)."""
    lr: float = 0.02
    """Learning rate at the recipe's own batch size; a budget's batch size scales it linearly."""
    momentum: float = 0.9
    """SGD's momentum, or Adam's beta1."""
    nesterov: bool = False
    """Nesterov momentum (SGD)."""
    weight_decay: float = 1e-4
    """Decay of convolution and linear weights."""
    norm_weight_decay: float | None = None
    """Decay of normalisation weights and biases; null: the same as `weight_decay`."""
    bias_weight_decay: float | None = None
    """Decay of convolution and linear biases; null: the same as `weight_decay`."""
    bias_lr_factor: float = 1.0
    """Learning rate of convolution and linear biases, relative to `lr`."""
    backbone_lr_factor: float = 1.0
    """Learning rate of the pretrained backbone, relative to `lr`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A part of training with its own learning rate; the schedule's curve starts anew in each."""

    until: float
    """Where it ends, in the recipe's unit; moved in proportion when a budget changes the length. The last
    phase lasts to the end."""
    lr_factor: float = 1.0
    """Learning rate of the phase, relative to the optimiser's `lr`."""
    freeze_backbone: bool = False
    """Keep the backbone (not the head) as it is."""
    reload_best: bool = False
    """Start from the weights with the best validation so far, where there is a val split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Learning rate over training. Lengths count in the recipe's own unit: epochs or iterations."""

    name: Literal["constant", "multistep", "cosine", "exponential"] = "multistep"
    """`multistep`: times `gamma` at each milestone; `cosine`: down to `final`; `exponential`: times `gamma`
    after each epoch."""
    milestones: tuple[float, ...] = ()
    """Where `multistep` steps, in the recipe's unit; moved in proportion when a budget changes the length."""
    gamma: float = 0.1
    """Factor of `multistep` and `exponential`."""
    final: float = 0.0
    """Last learning rate of `cosine`, as a share of the first."""
    warmup_iterations: int = 0
    """Iterations of linear warm-up; never more than the first epoch."""
    warmup_factor: float = 0.001
    """Where the warm-up starts, as a share of the learning rate."""
    phases: tuple[Phase, ...] = ()
    """Parts of training, in order; none: the whole is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeBase:
    """What every detector has."""

    backbone: Backbone
    """The network under the detector; pretrained by the `pretrain` stage."""
    trainable_layers: int = 3
    """How many of the backbone's stages, from the top, are trained."""
    freeze_bn: bool | Literal["statistics"] = True
    """Keep the backbone's BatchNorm at its pretrained statistics and weights, or `statistics` alone."""

    resize: Literal["keep", "stretch"] = "keep"
    """`keep` the aspect ratio (short side `image_size`, long side at most `max_size`), or `stretch` to a
    square of `image_size`."""
    image_size: int
    """Short side (`keep`) or side (`stretch`) in pixels."""
    max_size: int | None = None
    """Longest side in pixels with `keep`; scaled along when a budget changes `image_size`."""
    fixed_size: bool = False
    """The architecture is built for this `image_size`: a budget does not change it."""
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean per RGB channel of pixels in 0..1."""
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation per RGB channel of pixels in 0..1."""
    augmentation: Augmentation = "flip"
    """What training does to pictures; `detection.data.loading.augment` has the table."""
    train_difficult: bool = False
    """Train on objects that VOC marks difficult."""

    batch_size: int
    """Pictures per optimiser step over all devices."""
    epochs: int | None = None
    """Length of training in epochs; or `iterations`."""
    iterations: int | None = None
    """Length of training in optimiser steps; or `epochs`."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimiser and parameter groups."""
    schedule: Schedule = field(default_factory=Schedule)
    """Learning rate over training."""

    score_threshold: float = 0.05
    """Detections below this score are dropped."""
    nms_threshold: float = 0.5
    """IoU above which the weaker of two detections of a class is dropped."""
    detections_per_image: int = 100
    """At most so many detections leave a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FasterRCNNRecipe(RecipeBase):
    """Faster R-CNN over a pyramid or one map (Ren et al. 2015, arXiv:1506.01497; Lin et al., 1612.03144)."""

    architecture: Literal["fasterrcnn"]
    """The family."""
    features: Literal["fpn", "c4"] = "fpn"
    """`fpn`: a pyramid; `c4`: one map of stride 16, ResNet's up to layer3, VGG16's up to conv5_3."""
    fpn_levels: tuple[int, ...] = (2, 3, 4, 5)
    """Backbone levels the pyramid is built on (level l has stride 2^l); one pooled level is added above."""
    fpn_channels: int = 256
    """Channels of every pyramid level."""
    fpn_norm: Literal["none", "batch"] = "none"
    """BatchNorm in the pyramid (as v2 has it)."""

    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    """Anchor sides in pixels, per map (the pooled one included)."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    anchor_strides: tuple[int, ...] | None = None
    """Pixels between anchors, per map; null: size of the batch over size of the map, rounded down."""
    anchor_offset: float = 0.0
    """Where in its cell an anchor's centre is: 0 the corner, 0.5 the middle."""
    anchor_rounding: bool = True
    """Round the anchors' corners to whole pixels."""
    inside_anchors: bool = False
    """Train the RPN on anchors that lie wholly inside the picture, and on no others."""

    rpn_convs: int = 1
    """3x3 convolutions of the RPN's head."""
    rpn_channels: int | None = None
    """Their width; null: the map's."""
    rpn_pre_nms_train: int = 2000
    """Proposals kept per level before NMS in training."""
    rpn_pre_nms_test: int = 1000
    """Proposals kept per level before NMS in detection."""
    rpn_post_nms_train: int = 2000
    """Proposals kept per picture after NMS in training."""
    rpn_post_nms_test: int = 1000
    """Proposals kept per picture after NMS in detection."""
    rpn_nms_threshold: float = 0.7
    """IoU above which the weaker of two proposals is dropped."""
    rpn_score_threshold: float = 0.0
    """Proposals below this objectness are dropped."""
    rpn_min_size: float = 1e-3
    """Proposals with a side below this many pixels are dropped."""
    rpn_fg_iou: float = 0.7
    """Anchors with at least this IoU are positives."""
    rpn_bg_iou: float = 0.3
    """Anchors below this IoU are negatives."""
    rpn_batch: int = 256
    """Anchors sampled per picture for the RPN's loss."""
    rpn_positive_fraction: float = 0.5
    """Share of positives among them, at most."""
    rpn_beta: float = 1 / 9
    """Where the RPN's box loss turns from square to linear; 1 / sigma^2."""
    rpn_normaliser: Literal["sampled", "positives"] = "sampled"
    """What the RPN's box loss is divided by: all sampled anchors, or each picture's positives among them."""

    pooling: Literal["roi_align", "roi_pool"] = "roi_align"
    """How a proposal's features are taken; `roi_pool` reads one map."""
    pool_size: int = 7
    """Side of what it gives, in cells."""
    roi_head: Literal["fc", "conv_fc", "layer4"] = "fc"
    """Between pooling and the two outputs: two fully connected layers; four 3x3 convolutions with BatchNorm
    and one such layer; or ResNet's last stage and a mean."""
    roi_hidden: int = 1024
    """Width of the fully connected layers; 4096 on VGG16 takes its fc6 and fc7 where they are published."""
    roi_init: Literal["linear", "small"] = "linear"
    """First weights of the two outputs: torch's for linear layers, or small normal ones (0.01 and 0.001)."""
    roi_fg_iou: float = 0.5
    """Proposals with at least this IoU are positives."""
    roi_bg_iou: float = 0.5
    """Proposals below this IoU are negatives."""
    roi_batch: int = 512
    """Proposals sampled per picture for the head's loss."""
    roi_positive_fraction: float = 0.25
    """Share of positives among them, at most."""
    roi_beta: float = 1 / 9
    """Where the head's box loss turns from square to linear; 1 / sigma^2."""
    roi_normaliser: Literal["sampled", "positives"] = "sampled"
    """What the head's box loss is divided by: all samples, or each picture's positives among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetinaNetRecipe(RecipeBase):
    """RetinaNet (Lin et al. 2017, arXiv:1708.02002)."""

    architecture: Literal["retinanet"]
    """The family."""
    pyramid: Literal["fpn", "aligned"] = "fpn"
    """`fpn`: nearest up-sampling, and P6 and P7 above; `aligned`: bilinear up-sampling with aligned corners,
    P6 above, and a ReLU on every level (the 257-pixel system)."""
    fpn_levels: tuple[int, ...] = (3, 4, 5)
    """Backbone levels the pyramid is built on."""
    fpn_channels: int = 256
    """Channels of the pyramid and of the towers."""
    top_from: Literal["p5", "c5"] = "p5"
    """What P6 is made from: the pyramid's last level, or the backbone's."""
    tower_depth: int = 4
    """3x3 convolutions in each tower, before its output."""
    head_norm: Literal["none", "group"] = "none"
    """Group normalisation in the towers (as RetinaNet v2 has it): without it, and without ImageNet's weights
    below, their small first weights make learning slow."""
    anchor_sizes: tuple[tuple[float, ...], ...] = (
        (32, 40, 50),
        (64, 80, 101),
        (128, 161, 203),
        (256, 322, 406),
        (512, 645, 812),
    )
    """Anchor sides in pixels, per pyramid level P3..P7."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    anchor_strides: tuple[int, ...] | None = None
    """Pixels between anchors, per level; null: size of the batch over size of the map, rounded down."""
    anchor_rounding: bool = True
    """Round the anchors' corners to whole pixels."""
    fg_iou: float = 0.5
    """Anchors with at least this IoU are positives."""
    bg_iou: float = 0.4
    """Anchors below this IoU are negatives; between the two they count for nothing."""
    forced_match: Literal["ties", "own"] = "ties"
    """Which anchors an object claims, however bad: `ties`: all that tie for its largest IoU, each matched
    with the object that it overlaps most; `own`: the first of them, matched with this object."""
    box_loss: Literal["l1", "smooth_l1", "giou"] = "l1"
    """Of the deltas (smooth with beta 1), or the generalised IoU of the boxes."""
    loss_normaliser: Literal["picture", "batch"] = "picture"
    """Losses over each picture's number of positives and then the mean, or over the batch's number."""
    topk_per_level: int = 1000
    """Candidates per level before NMS."""
    class_agnostic_nms: bool = False
    """Detections of different classes drop one another too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FCOSRecipe(RecipeBase):
    """FCOS (Tian et al. 2019, arXiv:1904.01355)."""

    architecture: Literal["fcos"]
    """The family."""
    fpn_levels: tuple[int, ...] = (3, 4, 5)
    """Backbone levels the pyramid is built on; P6 and P7 are added above."""
    fpn_channels: int = 256
    """Channels of the pyramid and of the towers."""
    center_sampling_radius: float = 1.5
    """Positives lie within this many strides of an object's centre."""
    topk_per_level: int = 1000
    """Candidates per level before NMS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SSDRecipe(RecipeBase):
    """SSD300 on VGG16 (Liu et al. 2015, arXiv:1512.02325) and SSDlite on MobileNetV3 (1905.02244)."""

    architecture: Literal["ssd", "ssdlite"]
    """`ssd`: VGG16 with fc6/fc7; `ssdlite`: MobileNetV3 with depthwise heads."""
    scales: tuple[float, ...]
    """Prior sides as a share of the picture, one more than there are feature maps."""
    aspect_ratios: tuple[tuple[float, ...], ...]
    """Extra aspect ratios per feature map, of which there are six."""
    steps: tuple[int, ...] | None = None
    """Stride of each feature map in pixels; null: image size over feature size."""
    clip_centers: bool = False
    """Keep the priors' centres in the picture, as the original does and torchvision does not."""
    reduced_tail: bool = False
    """Half the width of MobileNet's last blocks, as in torchvision's published detector; ImageNet's weights
    have the full width."""
    fg_iou: float = 0.5
    """Priors with at least this IoU are positives."""
    positive_fraction: float = 0.25
    """Positives among the priors that enter the loss: 0.25 is three hard negatives for each."""
    topk_candidates: int = 400
    """Candidates per class before NMS."""


Recipe = FasterRCNNRecipe | RetinaNetRecipe | FCOSRecipe | SSDRecipe
ARCHITECTURES: dict[str, type[Recipe]] = {
    "fasterrcnn": FasterRCNNRecipe,
    "retinanet": RetinaNetRecipe,
    "fcos": FCOSRecipe,
    "ssd": SSDRecipe,
    "ssdlite": SSDRecipe,
}
