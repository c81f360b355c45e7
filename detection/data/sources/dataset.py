"""Read and check a raw dataset of any format."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detection.data.loading.index import Index
from detection.data.sources import coco, voc, yolo, yolo_files
from detection.data.sources import shapes_generator as generator
from detection.data.sources.checks import Problems, check_boxes, check_images, check_splits
from detection.data.sources.corners import RawCorners
from detection.data.sources.digest import Digest, listing_hash
from detection.data.sources.fingerprint import changes_since_pinned, pin_message
from detection.data.sources.holdout import hold_out, split_keys
from detection.data.sources.image_headers import read_headers
from detection.data.sources.layout import check_present, shapes_folder
from detection.data.sources.orientation import Orientation, decide
from detection.data.sources.shapes_render import CLASSES
from detection.errors import DataError
from detection.files import data_root
from detection.params.datasets import FRACTIONS, CocoDataset, Dataset, ShapesDataset, VocDataset, YoloDataset
from detection.params.stages import Checks


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDataset:
    """A dataset as stored on disk, read and checked."""

    name: str
    """Name in `params.yaml`."""
    entry: Dataset
    """Entry in `params.yaml`, with the splits that the dataset's own files define."""
    classes: tuple[str, ...]
    """Class names; label i is `classes[i]`."""
    splits: dict[str, Index]
    """`train`, `val` and `test`; a split that the dataset lacks is empty."""
    path: str
    """Folder of the images, relative to `DATA_ROOT`."""
    root: Path
    """Absolute path of the same folder."""
    digest: str
    """Hash over annotations and image listing."""
    listing: dict[str, str]
    """Hash over the names and file sizes of the images, per split."""
    problems: Problems
    """Problems of the data, including those that `prepare.checks` tolerates."""
    orientation: Orientation = Orientation()  # noqa: RUF009 - frozen
    """Reading of the images that have an EXIF orientation."""


def read(name: str, dataset: Dataset, checks: Checks | None = None) -> RawDataset:
    """Read and check a dataset; `shapes` is generated first if it is not on disk.

    Args:
        name: Name of the dataset in `params.yaml`, for messages.
        dataset: Its entry.
        checks: Action per problem type; None for the defaults.

    Raises:
        DataError: The data is missing, has problems whose action is `error` (all in one message), has no
            training objects, or differs from the pinned `digest`.
    """
    raw = examine(name, dataset, checks or Checks())
    if raw.problems.refused():
        regenerate = f"; or delete {raw.root} to generate it again" if isinstance(dataset, ShapesDataset) else ""
        raise DataError(raw.problems.message(name) + regenerate)
    check_content(raw)
    return raw


def examine(name: str, dataset: Dataset, checks: Checks, decode: bool = False) -> RawDataset:
    """Read a dataset and collect its problems without raising for them.

    Args:
        name: Name of the dataset in `params.yaml`, for messages.
        dataset: Its entry.
        checks: Action per problem type; `error` is treated as `drop`.
        decode: Decode every image instead of reading only its header.

    Raises:
        DataError: The data or the annotation file of a whole split is missing.
    """
    check_present(name, dataset)
    if isinstance(dataset, ShapesDataset):
        generator.ensure(dataset)
        path, fraction = shapes_folder(dataset), 0.0
    else:
        path, fraction = dataset.path, dataset.holdout_fraction
    root = data_root() / path
    if isinstance(dataset, YoloDataset):
        dataset = yolo_files.resolve(name, dataset, root)
    digest, problems, raw = Digest(), Problems(checks), RawCorners()
    classes, splits = _read_splits(dataset, root, digest, problems, raw)
    files = list(dict.fromkeys(file.decode() for index in splits.values() for file in index.files.tolist()))
    headers = dict(zip(files, read_headers(root, files, decode), strict=True))
    for file, header in headers.items():
        if not header.missing:
            digest.entry(file, str(header.length))
    if fraction:
        missing = [split for split in ("val", "test") if not getattr(dataset, split)]
        splits = hold_out(splits, missing, fraction, split_keys(root, splits["train"], headers))
    orientation = decide(splits.values(), headers, "auto" if isinstance(dataset, ShapesDataset) else dataset.exif)
    splits = {split: check_images(index, headers, problems, orientation) for split, index in splits.items()}
    problems.ask_for_folder(sum(map(len, splits.values())))
    if not isinstance(dataset, ShapesDataset):
        sizes = {
            file.decode(): (height, width)
            for index in splits.values()
            for file, (height, width) in zip(index.files.tolist(), index.sizes.tolist(), strict=True)
        }
        raw.check(name, dataset.format, dataset.corners, sizes)
        if dataset.corners in FRACTIONS:
            splits = {split: index.scaled() for split, index in splits.items()}
    splits = {split: check_boxes(index, classes, problems) for split, index in splits.items()}
    splits = check_splits(root, splits, headers, problems)
    if not isinstance(dataset, ShapesDataset) and dataset.skip_empty:
        splits["train"] = without_empty(splits["train"])
    lengths = {
        split: {name: headers[name].length for name in map(bytes.decode, index.files.tolist())}
        for split, index in splits.items()
    }
    return RawDataset(
        name=name,
        entry=dataset,
        classes=classes,
        splits=splits,
        path=path,
        root=root,
        digest=digest.hexdigest(),
        listing={split: listing_hash(sizes) for split, sizes in lengths.items()},
        problems=problems,
        orientation=orientation,
    )


def raw_digest(name: str, dataset: Dataset, checks: Checks) -> str:
    """Digest of a dataset's present files, without a look into the images.

    Raises:
        DataError: The annotation file of a whole split is missing.
    """
    root = data_root() / (shapes_folder(dataset) if isinstance(dataset, ShapesDataset) else dataset.path)
    if isinstance(dataset, YoloDataset):
        dataset = yolo_files.resolve(name, dataset, root)
    digest = Digest()
    _, splits = _read_splits(dataset, root, digest, Problems(checks), RawCorners())
    for file in {file.decode() for index in splits.values() for file in index.files.tolist()}:
        path = root / file
        if path.is_file():
            digest.entry(file, str(path.stat().st_size))
    return digest.hexdigest()


def _read_splits(
    dataset: Dataset, root: Path, digest: Digest, problems: Problems, raw: RawCorners
) -> tuple[tuple[str, ...], dict[str, Index]]:
    match dataset:
        case CocoDataset():
            return coco.read(dataset, root, digest, problems, raw)
        case VocDataset():
            return voc.read(dataset, root, digest, problems, raw)
        case YoloDataset():
            return yolo.read(dataset, root, digest, problems, raw)
        case ShapesDataset():
            train, val, test = ("train",), ("val",), ("test",)
            tree = VocDataset(format="voc", path=dataset.path, classes=CLASSES, train=train, val=val, test=test)
            try:
                return voc.read(tree, root, digest, problems)
            except DataError as error:
                raise DataError(f"{error}; or delete {root} to generate it again") from None


def check_learnable(name: str, train: Index, train_difficult: bool) -> None:
    """Refuse a training split whose objects are all ignored in training.

    Raises:
        DataError: All objects are crowds or, unless the recipe trains on them, difficult.
    """
    if train.learnable(train_difficult).any():
        return
    crowds = int(train.crowd.sum())
    kinds = [f"{crowds} crowds (iscrowd: 1)"] if crowds else []
    kinds += [f"{len(train.crowd) - crowds} difficult ones"] if crowds < len(train.crowd) else []
    fix = "correct the flags" if crowds else "correct the flags, or set the recipe's `train_difficult: true`"
    raise DataError(f"dataset {name}: no training object can be learnt: all are {' or '.join(kinds)}; {fix}")


def check_content(raw: RawDataset) -> None:
    """Refuse an empty training or test split, and data other than the pinned.

    Raises:
        DataError: See above.
    """
    dataset = raw.entry
    if len(raw.splits["train"]) == 0:
        raise DataError(f"dataset {raw.name}: the training split in {raw.root} has no images")
    if len(raw.splits["train"].boxes) == 0:
        raise DataError(f"dataset {raw.name}: the training images in {raw.root} have no annotated objects")
    if len(raw.splits["test"]) == 0 and not dataset.test:
        count = sum(len(index) for index in raw.splits.values())
        raise DataError(
            f"dataset {raw.name}: none of its {count} images was held out for test; "
            f"increase datasets.{raw.name}.holdout_fraction, or set datasets.{raw.name}.test"
        )
    if dataset.digest and dataset.digest != raw.digest:
        changes = changes_since_pinned(dataset, raw.problems.checks, raw.root)
        raise DataError(pin_message(raw.name, dataset, raw.root, raw.digest, changes))


def without_empty(index: Index) -> Index:
    """Images with at least one box, crowds included, of more than one pixel per side, as torchvision's references."""
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    usable = np.unique(index.image_rows()[(sides > 1).all(axis=1)])
    return index.select(usable)
