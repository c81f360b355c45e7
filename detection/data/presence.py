"""Whether a dataset's files are where `params.yaml` says: a look at names, before anything is read.

Imports no numpy: `check` tells a slip in half a second, before a stage removes its outputs.
"""

from pathlib import Path

from detection.data.layout import split_spec
from detection.errors import DataError
from detection.params.datasets import CocoDataset, Dataset, ShapesDataset, VocDataset
from detection.params.names import did_you_mean
from detection.paths import data_root


def check_present(name: str, dataset: Dataset) -> None:
    """Look for the folder, the split lists or annotation files, and the picture folders of a dataset.

    Args:
        name: The dataset's name in `params.yaml`, for the message.
        dataset: Its entry. `shapes` is never missing: it is drawn where it is not on disk.

    Raises:
        DataError: Something is not there; says where it was looked for and what belongs there.
    """
    if isinstance(dataset, ShapesDataset):
        return
    if not 0 <= dataset.holdout < 1:
        raise DataError(f"datasets.{name}.holdout must be at least 0 and below 1, not {dataset.holdout}")
    if not dataset.test and not dataset.holdout:
        raise DataError(
            f"datasets.{name} names no test: name one, or write `holdout: 0.1` to cut a tenth of train for it"
        )
    cut = sum(not split for split in (dataset.val, dataset.test))
    if cut * dataset.holdout >= 1:
        raise DataError(
            f"datasets.{name}.holdout cuts val and test, and must be below 0.5, not {dataset.holdout}"
        )
    root = data_root() / dataset.path
    if not root.is_dir():
        raise DataError(
            f"dataset {name} was looked for at {root.resolve()} and is not there; {what_belongs(dataset)}, "
            f"or set DATA_ROOT to the folder that holds {dataset.path}"
        )
    for split in ("train", "val", "test"):
        for path in _needed(dataset, root, split):
            if not path.exists():
                raise DataError(_missing(name, split, path, root))


def what_belongs(dataset: VocDataset | CocoDataset) -> str:
    """What a person has to put into a dataset's folder."""
    if isinstance(dataset, CocoDataset):
        first = dataset.train[0]
        return f"put {first.annotations} and the pictures of {first.images} there"
    parent = dataset.train[0].rpartition("/")[0]
    lists = "" if dataset.train[0].endswith("/") else ", ImageSets/Main"
    return f"put the VOC layout (JPEGImages, Annotations{lists}) there{parent and f' in {parent}'}"


def _needed(dataset: VocDataset | CocoDataset, root: Path, split: str) -> list[Path]:
    if isinstance(dataset, CocoDataset):
        parts = getattr(dataset, split)
        return [root / path for part in parts for path in (part.annotations, part.images)]
    paths = []
    for spec in getattr(dataset, split):
        folder, name = split_spec(root, spec)
        paths += [folder.path] if name is None else [folder.path, folder.list_file(name)]
    return paths


def _missing(name: str, split: str, path: Path, root: Path) -> str:
    """The message for one missing file or folder, with the nearest name that is there."""
    there = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    hint = did_you_mean(path.name, there) if 0 < len(there) <= 50 else f"datasets.{name} asks for it"
    return f"dataset {name}, {split}: {path.relative_to(root)} is not in {root.resolve()}; {hint}"
