"""One door to the raw datasets, whatever their format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.data.index import Index
from detection.data.shapes import generator
from detection.data.shapes.render import CLASSES
from detection.data.sources import checks as checks_of
from detection.data.sources import coco, holdout, voc
from detection.data.sources.digest import Digest, listing_hash
from detection.data.sources.image_headers import read_headers
from detection.data.sources.preflight import check_present
from detection.data.sources.problems import Problems
from detection.errors import DataError
from detection.files import data_root
from detection.params.datasets import CocoDataset, Dataset, ShapesDataset, VocDataset
from detection.params.stages import Checks


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDataset:
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
    faults: Problems
    """What is wrong with it; those that are errors refused it, if it was `read`."""


def read(name: str, dataset: Dataset, checks: Checks | None = None) -> RawDataset:
    """Read and check a dataset; `shapes` is drawn first where it is not on disk.

    Args:
        name: The dataset's name in `params.yaml`, for messages.
        dataset: Its entry.
        checks: What is done about each kind of fault; None: the defaults.

    Raises:
        DataError: The data is absent, has faults (all of them in one message), or is not what the entry's
            `digest` pins.
    """
    raw = examine(name, dataset, checks or Checks())
    if raw.faults.refused():
        again = f"; or delete {raw.root}: it is drawn again" if isinstance(dataset, ShapesDataset) else ""
        raise DataError(raw.faults.message(name) + again)
    _check(raw, dataset)
    return raw


def examine(name: str, dataset: Dataset, checks: Checks, decode: bool = False) -> RawDataset:
    """Read a dataset and collect its faults, without refusing it for them.

    Args:
        name: The dataset's name in `params.yaml`, for messages.
        dataset: Its entry.
        checks: What is done about each kind of fault; at `error` it is left out here.
        decode: Decode every picture, not only its header.

    Raises:
        DataError: The data is absent, or an annotation file of a whole split is.
    """
    check_present(name, dataset)
    if isinstance(dataset, ShapesDataset):
        generator.ensure(dataset)
        path, share = generator.folder(dataset), 0.0
    else:
        path, share = dataset.path, dataset.holdout_fraction
    root = data_root() / path
    digest, faults = Digest(), Problems(checks)
    classes, splits = _splits(dataset, root, digest, faults)
    if share:
        missing = [split for split in ("val", "test") if not getattr(dataset, split)]
        splits = holdout.cut(splits, missing, share)
    files = list(dict.fromkeys(raw.decode() for index in splits.values() for raw in index.files.tolist()))
    headers = dict(zip(files, read_headers(root, files, decode), strict=True))
    for file, header in headers.items():
        if not header.missing:
            digest.entry(file, str(header.length))
    for split, index in splits.items():
        splits[split] = checks_of.check_boxes(checks_of.check_images(index, headers, faults), classes, faults)
    splits = checks_of.check_splits(root, splits, headers, faults)
    return RawDataset(
        name=name,
        classes=classes,
        splits=splits,
        path=path,
        root=root,
        digest=digest.hexdigest(),
        listing={split: _listing(index, headers) for split, index in splits.items()},
        faults=faults,
    )


def _splits(
    dataset: Dataset, root: Path, digest: Digest, faults: Problems
) -> tuple[tuple[str, ...], dict[str, Index]]:
    if isinstance(dataset, CocoDataset):
        return coco.read(dataset, root, digest, faults)
    if isinstance(dataset, VocDataset):
        return voc.read(dataset, root, digest, faults)
    lists: dict[str, Any] = {split: (split,) for split in generator.SPLITS}
    tree = VocDataset(format="voc", path=dataset.path, classes=CLASSES, **lists)
    try:
        return voc.read(tree, root, digest, faults)
    except DataError as error:
        raise DataError(f"{error}; or delete {root}: it is drawn again") from None


def _listing(index: Index, headers: checks_of.Headers) -> str:
    names = (raw.decode() for raw in index.files.tolist())
    return listing_hash({name: headers[name].length for name in names})


def _check(raw: RawDataset, dataset: Dataset) -> None:
    if len(raw.splits["train"]) == 0:
        raise DataError(f"dataset {raw.name}: the training split in {raw.root} has no pictures")
    if len(raw.splits["train"].boxes) == 0:
        raise DataError(f"dataset {raw.name}: the training pictures in {raw.root} have no annotated objects")
    if len(raw.splits["test"]) == 0 and not dataset.test:
        count = sum(len(index) for index in raw.splits.values())
        raise DataError(
            f"dataset {raw.name}: none of its {count} pictures fell to test, so there is nothing to score; "
            f"raise datasets.{raw.name}.holdout_fraction, or name a test"
        )
    if dataset.digest and dataset.digest != raw.digest:
        raise DataError(
            f"dataset {raw.name} in {raw.root} is not what datasets.{raw.name}.digest pins: "
            f"found {raw.digest}, expected {dataset.digest}; restore the data, or pin what is there with "
            f"`digest: {raw.digest}`"
        )
