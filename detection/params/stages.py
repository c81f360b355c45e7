"""The stages' own sections of `params.yaml`."""

from dataclasses import dataclass, field
from typing import Literal

from detection.params.constraints import Count, CountOrZero, Fraction, Positive


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """What `prepare` does about each kind of fault in raw data.

    `error` refuses the dataset, `drop` leaves out the object or picture, `clip` cuts the box at the picture's
    border, `keep` takes it as it is. Whatever is found is counted in the log and in the dataset's card.
    """

    missing_annotation: Literal["error", "drop"] = "error"
    """A split list, or a folder, has a picture without an annotation file."""
    broken_annotation: Literal["error", "drop"] = "error"
    """No XML or JSON, a DTD or entity, an object without a name or four finite numbers."""
    unsafe_name: Literal["error", "drop"] = "error"
    """A picture's or annotation's name leads out of the dataset's folder."""
    duplicate_id: Literal["error", "drop"] = "error"
    """Two pictures with the same id; `drop`: the first stays."""
    unknown_class: Literal["error", "drop"] = "error"
    """An object of a class that the dataset does not have."""
    zero_area: Literal["error", "drop"] = "drop"
    """A box without area, or with its corners exchanged."""
    duplicate_object: Literal["error", "drop", "keep"] = "keep"
    """The same class and box twice in a picture; `drop`: the first stays."""
    missing_image: Literal["error", "drop"] = "error"
    """The annotated picture is not there."""
    broken_image: Literal["error", "drop"] = "error"
    """No picture, or one that ends too early. `prepare` looks at headers and end marks, `detection doctor`
    decodes."""
    image_size_mismatch: Literal["error", "drop", "keep"] = "error"
    """The picture has another size than its annotation says; `keep`: the picture is right."""
    exif_rotation: Literal["error", "drop", "keep"] = "keep"
    """EXIF turns or mirrors the picture. `keep`: it is turned where the annotation has the turned size."""
    box_outside_image: Literal["error", "drop", "clip", "keep"] = "clip"
    """A box reaches out of its picture by more than a pixel; wholly outside, `clip` leaves it out."""
    degenerate_box: Literal["error", "drop", "keep"] = "keep"
    """A side shorter than a pixel, or 100 times shorter than the other."""
    split_leak: Literal["error", "drop", "keep"] = "error"
    """Two splits share a picture, byte for byte; `drop`: it stays in test before val before train."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare:
    """Reading the raw data."""

    checks: Checks = field(default_factory=Checks)
    """What is done about faults in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crops:
    """Pretraining by classifying the objects cut out of the training split."""

    image_size: Count = 64
    """Side of the square crops in pixels."""
    context: float = 0.2
    """Margin around an object, as a share of its sides."""
    background: float = 0.3
    """Pieces of background, as a share of the objects; they are a class of their own."""
    limit: Count = 50_000
    """Most crops that are cut; they are kept in memory (about 20 kB each at 64 px)."""
    batch_size: Count = 64
    """Crops per step."""
    epochs: Count = 12
    """Passes over the objects."""
    lr: Positive = 0.05
    """Peak learning rate (SGD, cosine with one epoch of warm-up)."""
    weight_decay: float = 5e-4
    """Weight decay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """Pretraining by classifying the pictures of a folder, at the scale that is usual for ImageNet."""

    path: str = "imagenet"
    """Folder, relative to `DATA_ROOT`, that holds `train/<class>/*` and `val/<class>/*`."""
    image_size: Count = 224
    """Side of the square pictures in pixels."""
    scale: tuple[float, float] = (0.53, 1.0)
    """Least and largest share of a picture's area that a training crop shows."""
    jitter: float = 0.03
    """Largest change of brightness, contrast, saturation and hue."""
    eval_resize: Count = 224
    """Short side in pixels that a val picture is scaled to before its middle is cut out."""
    batch_size: Count = 128
    """Pictures per step, over all devices."""
    iterations: Count = 550_000
    """Steps."""
    lr: Positive = 0.1
    """Learning rate (SGD)."""
    milestones: tuple[int, ...] = (150_000, 300_000)
    """Steps at which it is multiplied by `gamma`."""
    gamma: float = 0.1
    """See `milestones`."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4
    """Of all weights."""
    log_every: Count = 100
    """Steps between log lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrain:
    """Where the backbone's weights come from."""

    method: Literal["crops", "imagefolder", "published", "none"] = "crops"
    """`crops`: classify the training objects; `imagefolder`: classify a folder of pictures, such as ImageNet;
    `published`: the ImageNet weights that torchvision trained its detectors from; `none`: random."""
    crops: Crops = field(default_factory=Crops)
    """Settings of `crops`."""
    imagefolder: ImageFolder = field(default_factory=ImageFolder)
    """Settings of `imagefolder`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStop:
    """Stop when the monitored metric no longer rises."""

    patience: Count = 10
    """Validations without a rise before training stops."""
    min_delta: float = 0.0
    """What counts as a rise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """How training is run, whatever the recipe."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""
    devices: Count | Literal["auto"] = "auto"
    """How many of them share each batch, one process each; `auto`: as many GPUs as share it equally, or one
    CPU."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 autocast where the hardware multiplies in bf16."""
    channels_last: bool = True
    """Memory layout of pictures and weights."""
    workers: CountOrZero | Literal["auto"] = "auto"
    """Processes that load pictures; 0 loads in the training process."""
    cache_mb: CountOrZero = 0
    """Memory in MiB for decoded pictures, shared by a device's loader processes; others are decoded each
    time. A training comes out the same, whatever is kept."""
    threads: Count | Literal["auto"] = "auto"
    """Threads of a CPU training; part of what makes a run repeatable."""
    determinism: Literal["fast", "seeded", "bitwise"] = "seeded"
    """`seeded`: the same seed gives the same training, up to rounding on a GPU. `bitwise`: with the same kind
    of machine, versions and threads the same weights to the last bit; an operation that cannot do that is
    refused by name. `fast`: as `seeded`, but a GPU may round to TF32 and try out its convolutions. The
    pretraining keeps to it too."""
    accumulate: Count = 1
    """Split each batch into so many forward and backward passes before one optimiser step. What a loss is
    divided by, where it is counted over a batch (positives, samples), is then counted over each part."""
    clip_gradients: Positive | None = None
    """Largest norm of the gradient; null: no clipping."""
    ema: Fraction | None = None
    """Decay of an exponential moving average of the weights, which is then validated and saved."""
    validate_every: Count = 1
    """Epochs between validations."""
    monitor: Literal["AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area"] = "AP"
    """Metric on `val` that chooses the checkpoint."""
    early_stop: EarlyStop | None = None
    """Null: train to the end."""
    log_every: Count = 20
    """Steps between log lines; losses of every step are kept."""
    sample_every_epochs: CountOrZero = 5
    """Epochs between sample predictions in the tracked row; 0: none."""
    sample_images: Count = 6
    """How many pictures they show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Scoring the test split."""

    batch_size: Count = 16
    """Pictures per forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "fp32"
    """Precision of the forward pass; fp32 gives the same detections everywhere."""
    score_threshold: Fraction | None = None
    """Drop detections below this score; null: the recipe's threshold."""
    verify: bool = False
    """Run pycocotools beside our evaluator, and stop at any difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plots:
    """The figures and the page."""

    sample_images: CountOrZero = 12
    """Pictures of each gallery, and of the sheet `samples.png`."""
    score_threshold: Fraction | None = None
    """Detections below this score are not drawn at first; null: the threshold of best F1."""
    smoothing: Fraction = 0.9
    """Weight of the past in the drawn loss curves (exponential moving average)."""
