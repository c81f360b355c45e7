"""Datasets: location of the raw data, its splits, and how much training a dataset gets.

`val` selects the checkpoint, `test` is read by `evaluate` alone. `path` is relative to `DATA_ROOT`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from detection.params.bounds import Bounds, Count, CountOrZero

HoldoutFraction = Annotated[float, Bounds(at_least=0, below=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetBase:
    """Fields of every dataset."""

    path: str
    """Folder of the raw data, relative to `DATA_ROOT`."""
    digest: str | None = None
    """Expected hash of annotations and image files; null: not checked. `detection pin` writes it."""
    license: str = "unknown"
    """License of the data, for the reports and the model card."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesDataset(DatasetBase):
    """Synthetic objects on textured backgrounds, generated once in VOC layout; no download."""

    format: Literal["shapes"]
    """Reader."""
    image_size: Count = 128
    """Side of the square images in pixels."""
    train: Count = 1000
    """Number of training images."""
    val: CountOrZero = 100
    """Number of validation images."""
    test: Count = 200
    """Number of test images."""
    seed: int = 0
    """Seed of the generator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VocDataset(DatasetBase):
    """Pascal VOC layout: Annotations/*.xml, ImageSets/Main/*.txt, JPEGImages/*."""

    format: Literal["voc"]
    """Reader."""
    train: tuple[str, ...]
    """Split lists of the training images, each `FOLDER/LIST` or `LIST`: `VOC2007/trainval` is the file
    ImageSets/Main/trainval.txt in the folder VOC2007 of `path`. A name that ends in `/` is a folder without
    lists, used whole; `./` is `path` itself."""
    val: tuple[str, ...] = ()
    """Split lists that select the checkpoint; empty: see `holdout_fraction`."""
    test: tuple[str, ...] = ()
    """Split lists that `evaluate` scores; empty: see `holdout_fraction`."""
    holdout_fraction: HoldoutFraction = 0.0
    """Fraction of train, chosen by a hash of the file name, that becomes `val` if the dataset has none; the
    same fraction again becomes `test` if it has none."""
    skip_empty: bool = False
    """Leave out training images without a box of more than one pixel per side; else they are negatives."""
    classes: tuple[str, ...] | None = None
    """Class names in order; null: those of the training annotations, sorted."""
    images: str | None = None
    """Folder of the images in each folder of the splits; null: `JPEGImages` or `images`, else the folder itself."""
    annotations: str | None = None
    """Folder of the XML files in each folder of the splits; null: `Annotations`, `annotations` or `annots`, else the
    folder itself. Both are read with their sub-folders."""
    exif: Literal["auto", "upright", "stored"] = "auto"
    """Reading of images with an EXIF orientation, in `predict` too. `auto`: as the sizes in the annotations tell, with
    one decision for all that do not, and `upright` if none does; `upright`: turned; `stored`: not turned."""
    corners: Literal["1-based", "0-based", "swapped", "relative", "width-height"] = "1-based"
    """Meaning of xmin, ymin, xmax, ymax: pixels from `1-based` (VOC) or `0-based`; `swapped`: opposite corners in any
    order; `relative`: fractions of the image size; `width-height`: xmax and ymax are width and height."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoSplit:
    """One COCO split."""

    images: str
    """Image folder, relative to the dataset's `path`."""
    annotations: str
    """Instances JSON, relative to the dataset's `path`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoDataset(DatasetBase):
    """COCO layout: instances JSON beside image folders."""

    format: Literal["coco"]
    """Reader."""
    train: tuple[CocoSplit, ...]
    """Training split."""
    val: tuple[CocoSplit, ...] = ()
    """Split that selects the checkpoint; empty: see `holdout_fraction`."""
    test: tuple[CocoSplit, ...] = ()
    """Split that `evaluate` scores; empty: see `holdout_fraction`."""
    holdout_fraction: HoldoutFraction = 0.0
    """Same as for VOC."""
    skip_empty: bool = False
    """Same as for VOC; torchvision's references do, 1,021 of the images of `train2017`."""
    classes: tuple[str, ...] | None = None
    """Class names in order; null: the categories of the training files, those of the first file by id first."""
    exif: Literal["auto", "upright", "stored"] = "auto"
    """Same as for VOC."""
    corners: Literal["width-height", "0-based", "swapped", "relative"] = "width-height"
    """Meaning of `bbox`: `x, y, width, height` (COCO); `0-based`: `x1, y1, x2, y2`; `swapped`: width or height may be
    negative; `relative`: `x, y, width, height` as fractions of the image size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class YoloDataset(DatasetBase):
    """YOLO layout: images, a text file of relative boxes or polygons per image, and a file with the class names.

    A label file has the image's path with `labels` in place of the last `images`, or lies beside the image. An image
    without a label file, or with an empty one, has no objects.
    """

    format: Literal["yolo"]
    """Reader."""
    data: str | None = None
    """File with class names and splits (`data.yaml`, Darknet's `obj.data`), relative to `path`; null: found by its
    name. Its paths are relative to its `path:`, to itself, or to a folder that has been moved."""
    train: tuple[str, ...] | None = None
    """Image folders, or text files with an image per line, relative to `path`; null: those of `data`, without such a
    file `images` or all of `path`."""
    val: tuple[str, ...] | None = None
    """Those that select the checkpoint; null: those of `data`; empty: see `holdout_fraction`."""
    test: tuple[str, ...] | None = None
    """Those that `evaluate` scores; null: those of `data`; empty: see `holdout_fraction`."""
    labels: str | None = None
    """Folder of the label files, with the sub-folders of the images; null: found as above."""
    holdout_fraction: HoldoutFraction = 0.0
    """Same as for VOC."""
    skip_empty: bool = False
    """Same as for VOC."""
    classes: tuple[str, ...] | None = None
    """Class names in order; null: those of `data`, `classes.txt`, `obj.names` or `notes.json`. Without such a file the
    names of class 0, 1, …"""
    exif: Literal["auto", "upright", "stored"] = "auto"
    """Same as for VOC."""
    corners: Literal["center", "center-pixels", "relative", "0-based"] = "center"
    """Meaning of the four numbers of a box: `center`: `cx, cy, width, height` as fractions of the image size (YOLO);
    `center-pixels`: the same in pixels; `relative`: `x1, y1, x2, y2` as fractions; `0-based`: the same in pixels."""


Dataset = ShapesDataset | VocDataset | CocoDataset | YoloDataset
FORMATS: dict[str, type[Dataset]] = {
    "shapes": ShapesDataset,
    "voc": VocDataset,
    "coco": CocoDataset,
    "yolo": YoloDataset,
}
FRACTIONS = ("relative", "center")
"""Values of `corners` whose coordinates are fractions of the image size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Preset, image size and amount of training of a dataset; null: as in the merged recipe."""

    preset: str | None = None
    """An entry of `presets`, or `published`: the recipe's own settings. Null: `finetune` if `start.from` is set,
    else `small`."""
    image_size: Count | None = None
    """Image size in pixels, unless the architecture fixes it (`fixed_size`)."""
    batch_size: Count | None = None
    """Images per step; the learning rate is scaled linearly with it."""
    epochs: CountOrZero | None = None
    """Length of training; the schedule's milestones and phases move in proportion. 0: no training, the detector of
    `start.from` is evaluated as it is."""
