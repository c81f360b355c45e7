"""Fields of every recipe: backbone, images, training and detection thresholds.

Rules between fields are checked in `__post_init__`, which raises `ValueError("field: reason")`;
`detection.params.schema` puts the rest of the key and the file before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from detection.params.augmentation import Augmentation, Step, check_steps, steps_of
from detection.params.bounds import Bounds, Count, CountOrZero, Fraction, NonNegative, Positive

Backbone = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v3_small", "mobilenet_v3_large", "vgg16"
]  # fmt: skip
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
MOBILENETS = ("mobilenet_v3_small", "mobilenet_v3_large")


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """Optimizer and its parameter groups."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """SGD with momentum, Adam (L2 penalty in the gradient) or AdamW (decoupled weight decay)."""
    lr: Positive = 0.02
    """Learning rate at the recipe's `batch_size`; a budget's `batch_size` scales it linearly."""
    momentum: Annotated[float, Bounds(at_least=0, below=1)] = 0.9
    """SGD momentum, or Adam's beta1."""
    nesterov: bool = False
    """Nesterov momentum (SGD)."""
    weight_decay: NonNegative = 1e-4
    """Weight decay of convolution and linear weights."""
    norm_weight_decay: NonNegative | None = None
    """Weight decay of normalization weights and biases; null: `weight_decay`."""
    bias_weight_decay: NonNegative | None = None
    """Weight decay of convolution and linear biases; null: `weight_decay`."""
    bias_lr_factor: NonNegative = 1.0
    """Learning rate of convolution and linear biases relative to `lr`."""
    backbone_lr_factor: NonNegative = 1.0
    """Learning rate of the pretrained backbone relative to `lr`."""

    def __post_init__(self) -> None:
        """Refuse Nesterov momentum without SGD's momentum."""
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError("nesterov: needs name: sgd and a momentum above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Part of a training with its own learning rate; the schedule restarts in each phase."""

    until: float
    """End of the phase in the recipe's unit; moved in proportion when a budget changes the length. The last
    phase lasts to the end."""
    lr_factor: NonNegative = 1.0
    """Learning rate of the phase relative to the optimizer's `lr`."""
    freeze_backbone: bool = False
    """Train the head alone: the backbone has no backward pass, and its optimizer state starts when the phase ends."""
    reset_optimizer: bool = False
    """Start with a new optimizer: without the momentum and the moments of the phase before."""
    reload_best: bool = False
    """Start from the weights with the best validation metric so far, if the dataset has a val split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Learning rate over training. Lengths count in the recipe's own unit: epochs or iterations."""

    name: Literal["constant", "multistep", "cosine", "exponential"] = "multistep"
    """`multistep`: times `gamma` at each milestone; `cosine`: down to `final`; `exponential`: times `gamma`
    after each epoch."""
    milestones: tuple[Positive, ...] = ()
    """Steps of `multistep`, in the recipe's unit; moved in proportion when a budget changes the length."""
    gamma: Positive = 0.1
    """Factor of `multistep` and `exponential`."""
    final: NonNegative = 0.0
    """Last learning rate of `cosine` as a fraction of the first."""
    warmup_iterations: int = 0
    """Iterations of linear warmup, at most one epoch."""
    warmup_factor: NonNegative = 0.001
    """First learning rate of the warmup as a fraction of the full one."""
    phases: tuple[Phase, ...] = ()
    """Phases of training in order; empty: a single one."""

    def __post_init__(self) -> None:
        """Refuse phases that do not follow one another."""
        ends = [0.0, *(phase.until for phase in self.phases)]
        for last, end in pairwise(ends):
            if end <= last:
                raise ValueError(f"phases: each must end after the one before ({end} <= {last})")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeBase:
    """Fields of every detector."""

    backbone: Backbone
    """Backbone network; the `pretrain` stage makes its weights."""
    pretrained: Literal["published", "imagefolder"] = "published"
    """Start of the published training, for `pretrain.method: auto`: torchvision's ImageNet weights, or a
    classification training of its own."""
    trainable_layers: CountOrZero = 3
    """Number of backbone stages that are trained, counted from the top: 0 to 6 of a MobileNet, 0 to 5 of the
    others. params.yaml may say `all`."""
    bn: Literal["live", "frozen", "frozen_stats"] = "frozen"
    """BatchNorm of the backbone. `live`: batch statistics and affine weights are trained; `frozen`: both
    fixed at their pretrained values (`FrozenBatchNorm2d`); `frozen_stats`: statistics fixed, affine weights
    trained. A RoI head made of `layer4` follows it. `live` without pretrained weights; VGG16 has no BatchNorm, and
    SSDlite's is always live."""

    resize: Literal["keep", "stretch"] = "keep"
    """`keep` the aspect ratio (short side `image_size`, long side at most `max_size`), or `stretch` to a
    square of `image_size`."""
    image_size: Count
    """Short side (`keep`) or side (`stretch`) in pixels."""
    max_size: int | None = None
    """Longest side in pixels with `keep`; scaled along when a budget changes `image_size`."""
    size_rounding: Literal["floor", "nearest"] = "floor"
    """Rounding of the sides with `keep`; `floor` gives torchvision's sizes."""
    antialias: bool = False
    """Smooth images that shrink, as PIL does; torchvision's detectors and OpenCV do not. Better for photos much
    larger than `image_size`."""
    fixed_size: bool = False
    """The architecture is built for this `image_size`: a budget does not change it."""
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean per RGB channel of pixels in 0..1."""
    image_std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Standard deviation per RGB channel of pixels in 0..1."""
    augmentation: Augmentation = "flip"
    """Training augmentation: a policy, or a list of steps, such as `[{affine: {rotate: 10}}, {flip: {}}]`."""
    train_difficult: bool = False
    """Train on objects that VOC marks difficult."""

    coco_weights: str | None = None
    """torchvision's weights of the whole detector, trained on COCO, for `start.from: published`; null: none exist."""
    batch_size: Count
    """Images per optimizer step over all devices."""
    epochs: CountOrZero | None = None
    """Length of training in epochs; or `iterations`. 0: no training, see `start.from`."""
    iterations: CountOrZero | None = None
    """Length of training in optimizer steps; or `epochs`."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer and parameter groups."""
    schedule: Schedule = field(default_factory=Schedule)
    """Learning rate over training."""

    score_threshold: Fraction = 0.05
    """Detections below this score are dropped."""
    nms_threshold: Fraction = 0.5
    """IoU above which the lower-scoring of two detections of a class is suppressed."""
    clip_before_nms: bool = True
    """Clip detections to the image before NMS, as torchvision does, or after it."""
    detections_per_image: Count = 100
    """Maximum number of detections per image."""

    def __post_init__(self) -> None:
        """Refuse fields that contradict one another."""
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("epochs: give either epochs or iterations")
        if self.resize == "keep" and self.max_size is not None and self.max_size < self.image_size:
            raise ValueError(f"max_size: is below image_size ({self.max_size} < {self.image_size})")
        check_steps(self.augmentation, self.resize, self.fixed_size)
        if self.trainable_layers > (stages := stages_of(self.backbone)):
            raise ValueError(f"trainable_layers: {self.backbone} has {stages} stages: 0 to {stages}")

    @property
    def steps(self) -> tuple[Step, ...]:
        """Steps of the training augmentation."""
        return steps_of(self.augmentation)

    def update(self, values: Mapping[str, Any]) -> Self:
        """Return a copy with other values, by dotted key: `recipe.update({"roi.hidden_channels": 64})`."""
        return _replaced(self, values)  # type: ignore[no-any-return]


def _replaced(group: Any, values: Mapping[str, Any]) -> Any:
    changes = {key: value for key, value in values.items() if "." not in key}
    for name in {key.split(".")[0] for key in values if "." in key}:
        inner = {k.removeprefix(f"{name}."): v for k, v in values.items() if k.startswith(f"{name}.")}
        changes[name] = _replaced(getattr(group, name), inner)
    return replace(group, **changes)


def stages_of(backbone: str) -> int:
    """Number of stages of a backbone, the most that `trainable_layers` can be."""
    return 6 if backbone in MOBILENETS else 5
