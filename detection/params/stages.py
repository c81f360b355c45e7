"""Sections of `params.yaml` that belong to one stage."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from detection.params.bounds import Bounds, Count, CountOrZero, Fraction, NonNegative, Positive


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """Action per type of problem in raw data.

    `error` refuses the dataset, `drop` removes the object or image, `clip` clips the box to the image, `keep`
    changes nothing. All problems are counted in the log and in the dataset's card.
    """

    missing_annotation: Literal["error", "drop", "background"] = "error"
    """Image in a split list or folder without an annotation file; `background` reads it as one without objects."""
    broken_annotation: Literal["error", "drop"] = "error"
    """Invalid XML or JSON, a DTD or entity, or an object without a name or four finite numbers."""
    unsafe_name: Literal["error", "drop"] = "error"
    """File name that leads out of the dataset's folder."""
    duplicate_id: Literal["error", "drop"] = "error"
    """Two images with the same id, or one image under two ids; `drop` keeps the first."""
    unlisted_image: Literal["error", "drop"] = "drop"
    """COCO annotation of an image that the file does not list."""
    unknown_class: Literal["error", "drop"] = "error"
    """Object of a class that the dataset does not have."""
    zero_area: Literal["error", "drop"] = "drop"
    """Box without area, or with swapped corners."""
    duplicate_object: Literal["error", "drop", "keep"] = "keep"
    """Same class and box twice in an image; `drop` keeps the first."""
    missing_image: Literal["error", "drop"] = "error"
    """Annotated image that does not exist."""
    broken_image: Literal["error", "drop"] = "error"
    """Invalid or truncated image. `prepare` reads headers and end markers, `detection doctor` decodes."""
    image_size_mismatch: Literal["error", "drop", "keep"] = "error"
    """Image size differs from its annotation; `keep` trusts the image."""
    exif_rotation: Literal["error", "drop", "keep"] = "keep"
    """EXIF orientation other than upright; `exif` of the dataset says how `keep` reads the images."""
    box_outside_image: Literal["error", "drop", "clip", "keep"] = "clip"
    """Box that exceeds its image by more than a pixel; `clip` drops a box that lies completely outside."""
    degenerate_box: Literal["error", "drop", "keep"] = "keep"
    """Side shorter than a pixel, or 100 times shorter than the other."""
    split_leak: Literal["error", "drop", "keep"] = "error"
    """Two splits with byte-identical images; `drop` keeps the image in test rather than val rather than
    train."""


Overlap = Annotated[float, Bounds(at_least=0, below=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """Windows that large images are cut into, for training, validation, test and prediction.

    Detections of the windows are merged, and scored on whole images. The overlap in pixels should exceed the longest
    side of the objects: a longer one may be whole in no window.
    """

    size: Count = 640
    """Side of the square windows in pixels of the image; a smaller image is one window."""
    overlap: Overlap = 0.2
    """Least shared length of neighboring windows as a fraction of `size`."""
    min_visible: Fraction = 0.3
    """Fraction of an object's area that a window must show to have it as an object; with less it is background."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare:
    """Reading of the raw data."""

    checks: Checks = field(default_factory=Checks)
    """Action per type of problem."""
    tiles: Tiles | None = None
    """Windows that large images are cut into; null: images are used whole. In training an image is decoded for each
    window, unless windows are cached (`train.cache_mb`). `skip_empty` of a dataset drops windows without objects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crops:
    """Pretraining by classification of the objects cropped from the training split."""

    image_size: Count = 64
    """Side of the square crops in pixels."""
    context: float = 0.2
    """Margin around an object as a fraction of its sides."""
    background: float = 0.3
    """Number of background crops, a class of their own, as a fraction of the number of objects."""
    limit: Count = 50_000
    """Maximum number of crops; they are kept in memory (about 20 kB each at 64 px)."""
    batch_size: Count = 64
    """Crops per step."""
    epochs: Count = 12
    """Epochs."""
    lr: Positive = 0.05
    """Peak learning rate (SGD, cosine schedule with one epoch of warmup)."""
    weight_decay: NonNegative = 5e-4
    """Weight decay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """Pretraining by classification of an image folder, with the usual settings for ImageNet."""

    path: str = "imagenet"
    """Folder with `train/<class>/*` and `val/<class>/*`, relative to `DATA_ROOT`."""
    image_size: Count = 224
    """Side of the square images in pixels."""
    scale: tuple[Fraction, Fraction] = (0.53, 1.0)
    """Minimum and maximum fraction of the image area in a training crop."""
    jitter: float = 0.03
    """Maximum change of brightness, contrast, saturation and hue."""
    eval_resize: Count = 224
    """Short side in pixels to which a val image is resized before the center crop."""
    batch_size: Count = 128
    """Images per step over all devices."""
    iterations: Count = 550_000
    """Steps."""
    lr: Positive = 0.1
    """Learning rate (SGD)."""
    milestones: tuple[int, ...] = (150_000, 300_000)
    """Steps at which the learning rate is multiplied by `gamma`."""
    gamma: float = 0.1
    """Factor at each milestone."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: NonNegative = 1e-4
    """Weight decay."""
    log_every: Count = 100
    """Steps between log lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrain:
    """Initial weights of the backbone."""

    method: Literal["auto", "crops", "imagefolder", "published", "file", "none"] = "auto"
    """`auto`: the recipe's `pretrained` where the budget is `{preset: published}`, else `crops`. `crops`:
    classify the training objects; `imagefolder`: classify an image folder, such as ImageNet; `published`:
    torchvision's ImageNet weights; `file`: the weights in `file`; `none`: random weights."""
    file: str | None = None
    """Weights of `method: file`, relative to the repository: a state dict with torchvision's names, with or
    without the classifier (`.pth`, `.pt`, `.safetensors`)."""
    crops: Crops = field(default_factory=Crops)
    """Settings of `crops`."""
    imagefolder: ImageFolder = field(default_factory=ImageFolder)
    """Settings of `imagefolder`."""

    def __post_init__(self) -> None:
        """Refuse `method: file` without a file."""
        if self.method == "file" and not self.file:
            raise ValueError("file: method: file needs the path of a weights file")


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Trained detector that training starts from."""

    from_: str | None = None
    """Null: from the pretrained backbone. `published`: torchvision's COCO weights of the recipe. A file: a
    `detector.pt` of this project or a state dict with torchvision's names (`.pth`, `.safetensors`), relative to
    the repository. Or an experiment, an MLflow run id or name, or a registry URI `models:/<name>@<alias>`."""
    classes: tuple[str, ...] | None = None
    """Class names of a state dict's outputs in order, background not counted; null: COCO's if it has 91 outputs.
    A file of this project holds its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStop:
    """Early stopping on the monitored metric."""

    patience: Count = 10
    """Validations without improvement before training stops."""
    min_delta: float = 0.0
    """Minimum improvement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Execution of training, independent of the recipe."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU if available."""
    devices: Count | Literal["auto"] = "auto"
    """Number of devices, one process each, that split each batch; `auto`: as many GPUs as divide it equally,
    or one CPU."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 autocast on hardware with bf16 matrix multiplication."""
    channels_last: bool | Literal["auto"] = "auto"
    """Memory format of images and weights. `auto`: channels_last, except on a CPU with AVX2 only, unless the network
    has depthwise convolutions (MobileNet): SSD300 takes 1.4 times as long in channels_last there."""
    compile: bool | Literal["auto"] = False
    """Compile the losses of one-stage detectors, and backbone and heads of two-stage ones, by `torch.compile`; not yet
    timed on a GPU (RetinaNet was not compiled after 75 s on an H100). `auto`: on a GPU unless `determinism` is
    `bitwise`. Changes results by rounding, so a changed value trains again. The first steps take minutes. Without a
    working compiler, a warning is logged and the training is not compiled."""
    workers: CountOrZero | Literal["auto"] = "auto"
    """Data loading processes of each device, for validation and `evaluate` too; 0 loads in the process itself. `auto`:
    one per CPU core that this process may use, at most 32, for a GPU; none for a CPU."""
    cache_mb: CountOrZero = 0
    """Memory in MiB for decoded images, shared by a device's loader processes. Does not change results."""
    threads: Count | Literal["auto"] = "auto"
    """Threads on a CPU, of pretraining too; results are repeatable at the same number only. `auto`: all, or one where a
    step is then faster, as beside other programs; measured at the start, logged, recorded in `environment.json`, and
    kept by a resumed training (not with `determinism: fast`)."""
    determinism: Literal["fast", "seeded", "bitwise"] = "seeded"
    """`seeded`: the same seed gives the same training up to rounding on a GPU. `bitwise`: the same weights to
    the last bit on the same hardware, versions and threads; an operation that cannot is refused by name.
    `fast`: as `seeded`, with TF32 and cuDNN benchmarking on a GPU. Applies to pretraining, too."""
    accumulate: Count = 1
    """Forward and backward passes per optimizer step. Losses that are normalized over a batch (positives,
    samples) are normalized over each part."""
    clip_gradients: Positive | None = None
    """Maximum norm of the gradient; null: no clipping."""
    ema: Fraction | None = None
    """Decay of an exponential moving average of the weights, which is validated and saved; null: none."""
    validate_every: Count = 1
    """Epochs between validations."""
    validate_batch_size: Count | Literal["auto"] = "auto"
    """Images per forward pass of validation, of each device. `auto`: 16, but on a GPU at most as many as training takes
    at once, which need less memory without gradients."""
    monitor: Literal["AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area"] = "AP"
    """Metric on `val` that selects the checkpoint."""
    validation_loss: bool = False
    """Record the loss on `val` (`val_loss`) at each validation, without augmentation."""
    keep_every: Count | None = None
    """Epochs, or iterations if the recipe counts these, between weights that are kept in `reports/train/kept`,
    such as `epoch_0010.pt`, beside the selected ones; null: none."""
    early_stop: EarlyStop | None = None
    """Null: train to the end."""
    log_every: Count = 20
    """Steps between log lines; the losses of every step are recorded."""
    sample_every_epochs: CountOrZero = 5
    """Epochs between sample predictions in the MLflow run; 0: none. Without a val split they show training
    images, whose AP is recorded as `train/AP`."""
    sample_images: Count = 6
    """Number of images with sample predictions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Scoring of the test split."""

    batch_size: Count = 16
    """Images per forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU if available."""
    precision: Literal["auto", "bf16", "fp32"] = "fp32"
    """Precision of the forward pass; fp32 gives the same detections on all hardware."""
    score_threshold: Fraction | None = None
    """Detections below this score are dropped; null: the recipe's threshold."""
    verify: bool = False
    """Run pycocotools as well and stop at any difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plots:
    """Figures and HTML page."""

    sample_images: CountOrZero = 12
    """Images per gallery and in `samples.png`."""
    score_threshold: Fraction | None = None
    """Initial score threshold of the drawn detections; null: the threshold with the best F1."""
    smoothing: Fraction = 0.9
    """Weight of the past in the smoothed loss curves (exponential moving average)."""
