"""One door to the raw datasets, whatever their format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.data import coco, holdout, shapes, voc
from detection.data.index import Index
from detection.data.listing import Digest, listing_hash, sizes
from detection.data.paint import CLASSES
from detection.data.presence import check_present
from detection.errors import DataError
from detection.params.datasets import CocoDataset, Dataset, ShapesDataset, VocDataset
from detection.paths import data_root


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A dataset as it lies on disk, read and checked."""

    name: str
    """Its name in `params.yaml`."""
    classes: tuple[str, ...]
    """Label i is `classes[i]`."""
    splits: dict[str, Index]
    """`train`, `val` and `test`; a split that the dataset lacks is empty."""
    path: str
    """Folder of the pictures, relative to `DATA_ROOT`."""
    root: Path
    """The same folder on this machine."""
    digest: str
    """Hash over annotations and picture listing."""
    listing: dict[str, str]
    """Per split, a hash over names and sizes of its pictures."""


def read(name: str, dataset: Dataset) -> Raw:
    """Read a dataset; `shapes` is drawn first where it is not on disk.

    Args:
        name: The dataset's name in `params.yaml`, for messages.
        dataset: Its entry.

    Raises:
        DataError: The data is absent or broken, or is not what the entry's `digest` pins.
    """
    check_present(name, dataset)
    if isinstance(dataset, ShapesDataset):
        shapes.ensure(dataset)
        path, share = shapes.folder(dataset), 0.0
    else:
        path, share = dataset.path, dataset.holdout
    root = data_root() / path
    digest = Digest()
    classes, splits = _splits(dataset, root, digest)
    if share and len(splits["val"]) == 0:
        splits["train"], splits["val"] = holdout.cut(splits["train"], share)
    listing = {}
    for split, index in splits.items():
        found = sizes(root, index)
        listing[split] = listing_hash(found)
        for file, size in found.items():
            digest.entry(file, str(size))
    raw = Raw(
        name=name,
        classes=classes,
        splits=splits,
        path=path,
        root=root,
        digest=digest.hexdigest(),
        listing=listing,
    )
    _check(raw, dataset)
    return raw


def _splits(dataset: Dataset, root: Path, digest: Digest) -> tuple[tuple[str, ...], dict[str, Index]]:
    if isinstance(dataset, CocoDataset):
        return coco.read(dataset, root, digest)
    if isinstance(dataset, VocDataset):
        return voc.read(dataset, root, digest)
    lists: dict[str, Any] = {split: (split,) for split in shapes.SPLITS}
    tree = VocDataset(format="voc", path=dataset.path, classes=CLASSES, **lists)
    try:
        return voc.read(tree, root, digest)
    except DataError as error:
        raise DataError(f"{error}; or delete {root}: it is drawn again") from None


def _check(raw: Raw, dataset: Dataset) -> None:
    if len(raw.splits["train"]) == 0:
        raise DataError(f"dataset {raw.name}: the training split in {raw.root} has no pictures")
    if len(raw.splits["train"].boxes) == 0:
        raise DataError(f"dataset {raw.name}: the training pictures in {raw.root} have no annotated objects")
    if dataset.digest and dataset.digest != raw.digest:
        raise DataError(
            f"dataset {raw.name} in {raw.root} is not what datasets.{raw.name}.digest pins: "
            f"found {raw.digest}, expected {dataset.digest}; restore the data, or pin what is there with "
            f"`digest: {raw.digest}`"
        )
