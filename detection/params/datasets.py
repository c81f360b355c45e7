"""Datasets: where the raw data lies and which part of it is train, val and test.

`val` chooses the checkpoint, `test` is looked at by `evaluate` alone. `path` is relative to `DATA_ROOT`.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetBase:
    """What every dataset has."""

    path: str
    """Folder of the raw data, relative to `DATA_ROOT`."""
    digest: str | None = None
    """What `prepare` must find: a hash over annotations and picture listing. Null: any, and it says which."""
    license: str = "unknown"
    """Terms of the data, for the cards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesDataset(DatasetBase):
    """Drawn objects on textured backgrounds, generated once as a VOC tree. Needs no download."""

    format: Literal["shapes"]
    """The reader."""
    image_size: int = 128
    """Side of the square pictures in pixels."""
    train: int = 1000
    """Training pictures."""
    val: int = 100
    """Validation pictures."""
    test: int = 200
    """Test pictures."""
    seed: int = 0
    """Another seed draws other pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VocDataset(DatasetBase):
    """Pascal VOC layout: Annotations/*.xml, ImageSets/Main/*.txt, JPEGImages/*."""

    format: Literal["voc"]
    """The reader."""
    train: tuple[str, ...]
    """Split lists to train on, each `FOLDER/LIST` or `LIST`: `VOC2007/trainval` is the list
    ImageSets/Main/trainval.txt of the folder VOC2007 under `path`. A name that ends in `/` is a folder
    without lists, all of it; `./` is `path` itself."""
    val: tuple[str, ...] = ()
    """Split lists that choose the checkpoint; none: see `holdout_fraction`."""
    test: tuple[str, ...] = ()
    """Split lists that `evaluate` scores; none: see `holdout_fraction`."""
    holdout_fraction: float = 0.0
    """Share of train, chosen by a hash of the picture id, that becomes `val` where there is none; as much
    again becomes `test` where there is none."""
    classes: tuple[str, ...] | None = None
    """Class names in order; null: those found in the training annotations, sorted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoSplit:
    """One COCO split."""

    images: str
    """Folder of the pictures, relative to the dataset's `path`."""
    annotations: str
    """Instances JSON, relative to the dataset's `path`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoDataset(DatasetBase):
    """COCO instances JSON beside folders of pictures."""

    format: Literal["coco"]
    """The reader."""
    train: tuple[CocoSplit, ...]
    """What is trained on."""
    val: tuple[CocoSplit, ...] = ()
    """What chooses the checkpoint; none: see `holdout_fraction`."""
    test: tuple[CocoSplit, ...] = ()
    """What `evaluate` scores; none: see `holdout_fraction`."""
    holdout_fraction: float = 0.0
    """Share of train, chosen by a hash of the picture id, that becomes `val` where there is none; as much
    again becomes `test` where there is none."""


Dataset = ShapesDataset | VocDataset | CocoDataset
FORMATS: dict[str, type[Dataset]] = {"shapes": ShapesDataset, "voc": VocDataset, "coco": CocoDataset}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much training a dataset gets. An empty budget is the recipe's own scale."""

    image_size: int | None = None
    """Picture size in pixels, unless the recipe's size is fixed by its architecture."""
    batch_size: int | None = None
    """Pictures per step; the learning rate is scaled linearly with it."""
    epochs: int | None = None
    """Length of training; the schedule's milestones move in proportion."""
